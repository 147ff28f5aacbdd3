"""The command ``fulgur``."""
