"""Checkpoints: what is in one, how it gets to a disk or a store, and how it is opened without running anything."""
