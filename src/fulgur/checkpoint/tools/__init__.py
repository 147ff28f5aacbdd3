"""``python -m fulgur.checkpoint``: look into checkpoints, compare, convert, average and prune them."""
