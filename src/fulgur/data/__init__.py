"""Loaders, and what happens to a batch between a loader and a step."""
