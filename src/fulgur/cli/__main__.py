"""``python -m fulgur.cli``: the command ``fulgur`` where its script is not on the path."""

from __future__ import annotations

import sys

from fulgur.cli.main import main

sys.exit(main())
