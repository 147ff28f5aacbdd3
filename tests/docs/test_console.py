"""Commands that the documentation shows run as shown, after the Python examples of the same page.

A Python example that begins with ``# name.py`` is also a file of that name. A command's exit code is 0 or 1, and it
says nothing on stderr; or it is 2, and stderr says what the page shows. Lines below a command are in its output, in
that order; spaces may be more or fewer.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if CONSOLE.search(page.read_text(encoding="utf-8"))]


def test_there_is_a_page_with_commands() -> None:
    assert "checkpoints.md" in [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for code in PYTHON.findall(text):
        if named := FILE_NAME.match(code):
            (tmp_path / named[1]).write_text(code, encoding="utf-8")
    program = tmp_path / "page.py"
    program.write_text("\n".join(PYTHON.findall(text)), encoding="utf-8")
    assert call([sys.executable, str(program)], tmp_path).returncode == 0
    for shown in (shown for block in CONSOLE.findall(text) for shown in re.split(r"^\$ ", block, flags=re.MULTILINE)):
        command, *expected = shown.splitlines() or [""]
        if command:
            check(command, expected, tmp_path)


def check(command: str, expected: list[str], directory: Path) -> None:
    name, *words = shlex.split(command)
    assert name == "fulgur", f"{command}: only fulgur's own commands are run"
    done = call([sys.executable, "-W", "error", "-m", "fulgur.cli", *words], directory)
    is_refused = done.returncode == 2 and bool(expected)
    assert is_refused or (done.returncode in (0, 1), done.stderr) == (True, ""), f"{command}\n{done.stderr}"
    output = done.stderr if is_refused else done.stdout
    printed = iter(" ".join(line.split()) for line in output.splitlines())
    for line in expected:
        wanted = " ".join(line.split())
        assert any(wanted in found for found in printed), f"$ {command}\n{output}\ndoes not say, there: {line}"


def call(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, env=environment)
