"""Where the processes of a run are and how they talk: one device today, several processes by subclass."""

from fulgur.strategies.single_device import SingleDeviceStrategy
from fulgur.strategies.strategy import Strategy

__all__ = ["SingleDeviceStrategy", "Strategy"]
