"""Every page of the documentation runs from top to bottom, and prints what it says it prints.

The ``python`` blocks of a page are one program. A ``text`` block right after one holds the end of what it prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]
MARK = "-- end of block --"


def test_there_is_a_page_with_examples() -> None:
    assert "getting-started.md" in [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs_without_a_warning_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    blocks: list[tuple[str, str]] = BLOCK.findall(page.read_text(encoding="utf-8"))
    program = tmp_path / "page.py"
    program.write_text("".join(f"{code}\nprint({MARK!r})\n" for code, _ in blocks), encoding="utf-8")
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=_environment())
    assert done.returncode == 0, f"{page.name} failed:\n{done.stdout}\n{done.stderr}"
    printed = done.stdout.split(MARK + "\n")
    for (code, expected), output in zip(blocks, printed, strict=False):
        assert output.endswith(expected), f"after\n{code}\nthe page says\n{expected}\nbut it was\n{output}"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
