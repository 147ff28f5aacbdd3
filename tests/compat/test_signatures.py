"""Public classes and functions take every argument that programs pass, in the old order and with the old defaults."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.compat.test_names import find

import fulgur.compat

FILE = Path(__file__).parent / "data" / "signatures.txt"
LINES = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


def old_arguments(line: str) -> tuple[str, ast.arguments]:
    """The path of what is called, and its arguments."""
    path, _, rest = line.partition("(")
    function = ast.parse(f"def f({rest}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    return path, function.args


def with_defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr | None]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    without = [None] * (len(positional) - len(arguments.defaults))
    yield from zip((a.arg for a in positional), [*without, *arguments.defaults], strict=True)
    yield from zip((a.arg for a in arguments.kwonlyargs), arguments.kw_defaults, strict=True)


def ours(path: str) -> dict[str, inspect.Parameter]:
    found = find(path)
    parameters = dict(inspect.signature(found).parameters)
    is_method = path.rpartition(".")[0].rpartition(".")[2].lstrip("_")[:1].isupper()
    if is_method and next(iter(parameters), "") == "self":
        del parameters["self"]
    return parameters


def differences(line: str) -> list[str]:
    path, arguments = old_arguments(line)
    parameters, found = ours(path), []
    kinds = {parameter.kind for parameter in parameters.values()}
    for name, default in with_defaults(arguments):
        parameter = parameters.get(name)
        if parameter is None:
            found.append(f"no {name}")
        elif default is None and parameter.default is not inspect.Parameter.empty:
            continue  # an argument that need not be given is no loss
        elif default is not None and parameter.default is inspect.Parameter.empty:
            found.append(f"{name} must be given")
        elif isinstance(default, ast.Constant) and default.value is not ... and parameter.default != default.value:
            found.append(f"{name}={parameter.default!r}, was {default.value!r}")
    by_place = [a.arg for a in arguments.args]
    order = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if by_place != order[: len(by_place)]:
        found.append(f"by place: {order}, were {by_place}")
    if arguments.kwarg and inspect.Parameter.VAR_KEYWORD not in kinds:
        found.append("takes no further keywords")
    if arguments.vararg and inspect.Parameter.VAR_POSITIONAL not in kinds:
        found.append("takes no further arguments")
    return found


@pytest.mark.parametrize("line", LINES, ids=[line.partition("(")[0] for line in LINES])
def test_a_call_of_the_old_form_is_taken(line: str) -> None:
    assert differences(line) == []
