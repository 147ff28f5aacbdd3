"""The version that old packages say they are; `finder.py` answers with the one that `install` was given."""

from __future__ import annotations

from fulgur.compat import DEFAULT_VERSION

__version__ = DEFAULT_VERSION
