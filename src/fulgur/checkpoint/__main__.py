"""``python -m fulgur.checkpoint``."""

from __future__ import annotations

import sys

from fulgur.checkpoint.tools.commands import main

sys.exit(main())
