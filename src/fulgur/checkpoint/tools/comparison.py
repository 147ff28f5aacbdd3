"""``diff``: where two files differ, and by how much."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgur.checkpoint.load import require_weights
from fulgur.checkpoint.tools.command import Command, Outcome, Table
from fulgur.checkpoint.tools.show import describe_tensor, key_name, readable, shorten
from fulgur.checkpoint.tools.source import open_file

# Numbers compared at a time: 8 MB in float64 for each side, whatever the tensor's size.
_N_AT_A_TIME = 2**20
_VALUE_WIDTH, _WHOLE = 24, 100_000
_EMPTY: tuple[Any, ...] = ({}, [], ())


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, lists and tuples, with their dotted names; an empty container is a leaf."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key_name(key)}" if name else key_name(key))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}[{index}]")
    else:
        yield name, value


def compare(a: Any, b: Any, *, tolerance: float = 0.0) -> dict[str, Any]:
    """Differences between two contents of files.

    Args:
        a: The first.
        b: The second.
        tolerance: Absolute difference up to which tensors and floats count as equal. NaN equals NaN.

    Returns:
        ``only_a`` and ``only_b``, lists of names; ``values``, with ``a`` and ``b``; ``tensors``, with
        ``max_abs_difference``, ``n_different`` and ``n``, or both descriptions where they cannot be subtracted.
    """
    leaves_a, leaves_b = dict(flatten(a)), dict(flatten(b))
    found: dict[str, Any] = {
        "only_a": [name for name in leaves_a if name not in leaves_b],
        "only_b": [name for name in leaves_b if name not in leaves_a],
        "values": [],
        "tensors": [],
    }
    for name in leaves_a:
        if name not in leaves_b:
            continue
        x, y = leaves_a[name], leaves_b[name]
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            difference = _compare_tensors(x, y, tolerance)
            found["tensors"] += [{"name": name} | difference] if difference else []
        elif not _is_same(x, y, tolerance):
            found["values"].append({"name": name, "a": readable(x), "b": readable(y)})
    return found


def _is_same(x: Any, y: Any, tolerance: float) -> bool:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return False
    if isinstance(x, float) and isinstance(y, float):
        return x == y or (x != x and y != y) or abs(x - y) <= tolerance
    return (type(x) is type(y) and bool(x == y)) or (x in _EMPTY and y in _EMPTY and len(x) == len(y) == 0)


def _compare_tensors(x: Tensor, y: Tensor, tolerance: float) -> dict[str, Any]:
    """How two tensors differ; empty if they do not."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return {"a": describe_tensor(x), "b": describe_tensor(y)}
    largest, n_different = 0.0, 0
    flat_x, flat_y = _flat(x), _flat(y)
    for start in range(0, flat_x.numel(), _N_AT_A_TIME):
        part_x, part_y = flat_x[start : start + _N_AT_A_TIME], flat_y[start : start + _N_AT_A_TIME]
        if torch.equal(part_x, part_y):
            continue
        distances = _distances(part_x, part_y)
        differing = ~(distances <= tolerance)  # NaN is no distance that can be tolerated
        n_different += int(differing.sum())
        largest = _larger(largest, float(distances.max()))
    if not n_different:
        return {}
    return {"max_abs_difference": largest, "n_different": n_different, "n": x.numel()}


def _flat(tensor: Tensor) -> Tensor:
    dense = tensor.dequantize() if tensor.is_quantized else tensor.to_dense() if tensor.is_sparse else tensor
    return dense.detach().reshape(-1)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Absolute differences in float64: 0 where both are NaN or the same infinity, NaN where one of them is NaN."""
    wide = torch.complex128 if x.is_complex() else torch.float64
    same = (x == y) if _is_exact(x.dtype) else (x.to(wide) == y.to(wide)) | (_is_nan(x, wide) & _is_nan(y, wide))
    distances = (x.to(wide) - y.to(wide)).abs()
    if _is_exact(x.dtype):  # large integers may differ by less than float64 can tell
        distances = distances.clamp(min=1.0)
    return torch.where(same, torch.zeros((), dtype=torch.float64), distances)


def _is_exact(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _is_nan(tensor: Tensor, wide: torch.dtype) -> Tensor:
    return tensor.to(wide).isnan()


def _larger(a: float, b: float) -> float:
    return b if b != b or b > a else a


def _show(data: dict[str, Any], *, is_full: bool) -> Iterator[Table | str]:
    if data["is_equal"]:
        yield f"{data['a']} and {data['b']} hold the same."
        return
    n_hidden = 0
    for side in ("a", "b"):
        names = [name for name in data[f"only_{side}"] if is_full or not _is_counter(name)]
        n_hidden += len(data[f"only_{side}"]) - len(names)
        if names:
            yield Table(f"Only in {data[side]}", ("name",), [(_short(name, is_full),) for name in names])
    values = [entry for entry in data["values"] if is_full or not _is_counter(entry["name"])]
    n_hidden += len(data["values"]) - len(values)
    if values:
        width = _WHOLE if is_full else _VALUE_WIDTH
        rows = [(_short(e["name"], is_full), *(shorten(e[side], width=width) for side in ("a", "b"))) for e in values]
        yield Table(f"Values (A is {data['a']}, B is {data['b']})", ("name", "A", "B"), rows)
    if n_hidden:
        yield f"{n_hidden} counters under 'loops' differ: --all shows them.\n"
    if data["tensors"]:
        rows = [(_short(entry["name"], is_full), *_tensor_cells(entry)) for entry in data["tensors"]]
        yield Table("Tensors", ("name", ">max abs difference", ">different"), rows)


def _is_counter(name: str) -> bool:
    """Whether it is a counter in the other layout, which says nothing that ``fulgur.progress`` does not."""
    return name.startswith("loops.")


def _short(name: str, is_full: bool) -> str:
    """A name without the arguments that keys of callbacks have."""
    return name if is_full else re.sub(r"\{[^}]*\}", "{...}", name)


def _tensor_cells(entry: dict[str, Any]) -> tuple[str, str]:
    if "a" in entry:
        return f"{entry['a']} / {entry['b']}", "all"
    return f"{entry['max_abs_difference']:.6g}", f"{entry['n_different']:,} of {entry['n']:,}"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a path or a URL")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--weights-only", action="store_true", help="compare the weights and nothing else")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="absolute difference that counts as none (0)"
    )
    parser.add_argument("--all", action="store_true", help="show every counter, and names in full")


def _run(arguments: Namespace) -> Outcome:
    sides = [open_file(path, trust=arguments.trust) for path in (arguments.a, arguments.b)]
    contents: list[Any] = [side.content for side in sides]
    if arguments.weights_only or any(side.kind in ("weights", "safetensors") for side in sides):
        for side in sides:
            require_weights(side.content, side.path)
        contents = [side.content["state_dict"] for side in sides]
    differences = compare(*contents, tolerance=arguments.tolerance)
    is_equal = not any(differences.values())
    data = {"a": arguments.a, "b": arguments.b, "is_equal": is_equal, **differences}
    return Outcome(data, _show(data, is_full=arguments.all), exit_code=0 if is_equal else 1)


COMMAND = Command("diff", "where two files differ, and by how much", _add_arguments, _run)
