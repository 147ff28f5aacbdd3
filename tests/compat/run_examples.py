"""Run the examples whose paths are given, in one process, and print what each prints last: a line of JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path

results = {}
for path in sys.argv[1:]:
    folder = Path(Path(path).stem)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(path, run_name="__main__")
    os.chdir("..")
    results[folder.name] = json.loads(printed.getvalue().splitlines()[-1])
print(json.dumps(results))
