"""A bar of tqdm, as `TQDMProgressBar` draws it. Imported when one is drawn: needs tqdm."""

from __future__ import annotations

from tqdm import tqdm


class Tqdm(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
    """tqdm's bar without the thread that watches it, so that workers can be forked at any time."""

    monitor_interval = 0
