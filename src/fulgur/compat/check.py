"""``python -m fulgur.compat --check``: what a program uses that is missing or differs, without running it.

A program is read as a syntax tree. Names that it imports are looked up in the table of names, arguments and attributes
of the Trainer in the Trainer itself.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fulgur.compat.differences import find_differences
from fulgur.compat.names import ROOTS, explain_missing, homes_in, is_module
from fulgur.compat.surface import explain_argument, explain_attribute


@dataclass(frozen=True, order=True)
class Finding:
    """One use of something.

    Attributes:
        file: Path of the program.
        line: From 1.
        kind: Whether it is missing, or there and different.
        text: What it is, and the way out.
    """

    file: str
    line: int
    kind: Literal["missing", "differs"]
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}: {self.text}"


def report(paths: Sequence[str]) -> int:
    """Print what `paths` use that is missing or differs.

    Returns:
        Exit code: 1 if anything is missing, 2 if a path cannot be read, else 0.
    """
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        sys.stderr.write(f"There is no {missing[0]!r}.\n")
        return 2
    files = list(_python_files(paths))
    findings = sorted({finding for file in files for finding in check_file(file)})
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    n_missing = sum(finding.kind == "missing" for finding in findings)
    n_files = f"{len(files)} file" + "s" * (len(files) != 1)
    sys.stdout.write(f"{n_files}: {n_missing} missing, {len(findings) - n_missing} different\n")
    return 1 if n_missing else 0


def check_file(file: str) -> list[Finding]:
    """Findings in one file; one that is not Python of this version is a finding itself."""
    with open(file, encoding="utf-8") as opened:
        return check_source(opened.read(), file)


def check_source(source: str, file: str = "<program>") -> list[Finding]:
    """Findings in the text of a program."""
    try:
        tree = ast.parse(source, file)
    except SyntaxError as error:
        return [Finding(file, error.lineno or 1, "missing", f"this is no Python: {error.msg}.")]
    reader = _Reader(file)
    reader.visit(tree)
    differences = [Finding(file, line, "differs", text) for line, text in find_differences(tree, reader.trainer_calls)]
    return reader.findings + differences


def _python_files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if os.path.isfile(path):
            yield path
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
            yield from (os.path.join(folder, name) for name in sorted(files) if name.endswith(".py"))


class _Reader(ast.NodeVisitor):
    """Walks a program and looks up what it takes from the old packages."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self.bound: dict[str, str] = {}
        self.trainer_calls: list[ast.Call] = []
        self.own_attributes: set[str] = set()

    def visit_Module(self, node: ast.Module) -> None:
        for part in ast.walk(node):  # an import within a function counts for what stands before it too
            if isinstance(part, ast.Import):
                self._bind_import(part)
            elif isinstance(part, ast.ImportFrom):
                self._bind_import_from(part)
            elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and _is_trainer(part.value):
                self.own_attributes.add(part.attr)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = _dotted(node)
        if chain and chain[0] in self.bound:
            self._look_up(node, self.bound[chain[0]].split("."), chain[1:])
            return
        attributes = _of_trainer(node)
        if attributes and attributes[0] not in self.own_attributes:
            self._add(node, explain_attribute(tuple(attributes)))
            return
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        chain = _dotted(node.func)
        path = ".".join([self.bound[chain[0]], *chain[1:]]) if chain and chain[0] in self.bound else ""
        if path.endswith(".Trainer"):
            self.trainer_calls.append(node)
            for keyword in node.keywords:
                if keyword.arg is not None:
                    self._add(keyword.value, explain_argument(keyword.arg, keyword.value))
        self.generic_visit(node)

    def _bind_import(self, node: ast.Import) -> None:
        for alias in node.names:
            root = alias.name.partition(".")[0]
            if root not in ROOTS:
                continue
            self.bound[alias.asname or root] = alias.name if alias.asname else root
            if not is_module(alias.name):
                parent, _, name = alias.name.rpartition(".")
                self._add(node, explain_missing(parent, name))

    def _bind_import_from(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level or module.partition(".")[0] not in ROOTS:
            return
        if not is_module(module):
            parent, _, name = module.rpartition(".")
            self._add(node, explain_missing(parent, name))
            return
        for alias in node.names:
            if alias.name == "*":
                self.bound.update({name: f"{module}.{name}" for name in homes_in(module)})
                continue
            self.bound[alias.asname or alias.name] = f"{module}.{alias.name}"
            if alias.name not in homes_in(module) and not is_module(f"{module}.{alias.name}"):
                self._add(node, explain_missing(module, alias.name))

    def _look_up(self, node: ast.AST, path: list[str], rest: Sequence[str]) -> None:
        """Follow attributes from a module as far as they are modules or names of it."""
        module = ".".join(path)
        for name in rest:
            if not is_module(module):
                return  # an object: what it has is not looked into
            if name not in homes_in(module) and not is_module(f"{module}.{name}") and not name.startswith("__"):
                self._add(node, explain_missing(module, name))
                return
            module = f"{module}.{name}"

    def _add(self, node: ast.AST, text: str | None) -> None:
        if text:
            self.findings.append(Finding(self.file, getattr(node, "lineno", 1), "missing", text))


def _dotted(node: ast.AST) -> list[str]:
    """The names of ``a.b.c``; [] where it begins with anything but a name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _is_trainer(node: ast.AST) -> bool:
    """Whether an expression is named like a Trainer: ``trainer`` or ``something.trainer``."""
    return (isinstance(node, ast.Name) and node.id == "trainer") or (
        isinstance(node, ast.Attribute) and node.attr == "trainer"
    )


def _of_trainer(node: ast.AST) -> list[str]:
    """The attributes that follow a Trainer, in order."""
    names: list[str] = []
    while isinstance(node, ast.Attribute) and not _is_trainer(node):
        names.append(node.attr)
        node = node.value
    return names[::-1] if _is_trainer(node) else []
