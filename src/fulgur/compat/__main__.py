"""``python -m fulgur.compat``: run a program that was written for Lightning, or check one."""

from __future__ import annotations

import sys

from fulgur.compat.program import main

if __name__ == "__main__":
    sys.exit(main())
