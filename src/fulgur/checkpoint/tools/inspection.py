"""``inspect``: what is in a file, without reading its tensors."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fulgur.checkpoint.tools.command import Command, Outcome, Table
from fulgur.checkpoint.tools.layouts import progress_of
from fulgur.checkpoint.tools.show import dtype_name, format_size, key_name, readable, shorten
from fulgur.checkpoint.tools.source import Opened, find_tensors, open_file

# As many rows as can be taken in at a glance; --all shows the rest.
_N_TENSORS_SHOWN = 30
# Beside the longest of the usual names that makes lines of 80 characters.
_VALUE_WIDTH, _WHOLE = 50, 100_000
_HPARAMS_KEYS = ("hyper_parameters", "hparams", "module_arguments", "datamodule_hyper_parameters")


def describe(opened: Opened) -> dict[str, Any]:
    """Everything about a file that can be said without its tensors' values, as JSON has it.

    Tensors of one element, scores for example, are given by value where the file is a local one.
    """
    content = opened.content
    weights = dict(find_tensors(content.get("state_dict", {})))
    return {
        "path": opened.path,
        "kind": opened.kind,
        "size_bytes": opened.size_bytes,
        "resume": _describe_resume(content),
        "versions": _versions(content),
        "counters": _counters(content),
        "keys": [_describe_key(key, value) for key, value in content.items()],
        "weights": _describe_weights(weights),
        "tensors": [_describe_entry(name, tensor) for name, tensor in weights.items()],
        "hyper_parameters": {key: readable(content[key]) for key in _HPARAMS_KEYS if key in content},
        "callbacks": {key_name(key): readable(state) for key, state in _mapping(content, "callbacks").items()},
        "optimizers": [_describe_optimizer(state) for state in content.get("optimizer_states", [])],
        "lr_schedulers": [readable(state) for state in content.get("lr_schedulers", [])],
        "metadata": dict(opened.metadata),
    }


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[Any, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _describe_resume(content: Mapping[str, Any]) -> str:
    own = _mapping(content, "fulgur")
    if "optimizer_states" not in content:
        return "weights only: training cannot resume from it"
    if "running" in own and "rng" in own:
        return "exact, with position in the data and generators"
    return "inexact: the data and the generators start anew"


def _versions(content: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: readable(value) for key, value in content.items() if str(key).endswith("_version")}
    own = _mapping(content, "fulgur")
    return found | ({"fulgur format": own["format"]} if "format" in own else {})


def _counters(content: Mapping[str, Any]) -> dict[str, Any]:
    own = _mapping(content, "fulgur").get("progress")
    if own is not None:
        return dict(own)
    if "global_step" not in content:
        return {}
    return progress_of(content).state_dict()


def _describe_key(key: str, value: Any) -> dict[str, Any]:
    tensors = [tensor for _, tensor in find_tensors(value)]
    is_container = isinstance(value, (dict, list, tuple))
    holds = f"{type(value).__name__} of {len(value)}" if is_container else shorten(readable(value), width=30)
    return {"key": str(key), "holds": holds, "tensors": len(tensors), "size_bytes": stored_bytes(tensors)}


def _describe_weights(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "tensors": len(weights),
        "elements": sum(tensor.numel() for tensor in weights.values()),
        "size_bytes": stored_bytes(weights.values()),
        "dtypes": dict(Counter(dtype_name(tensor.dtype) for tensor in weights.values())),
    }


def _describe_entry(name: str, tensor: Tensor) -> dict[str, Any]:
    size_bytes = tensor.numel() * tensor.element_size()
    return {"name": name, "shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype), "size_bytes": size_bytes}


def _describe_optimizer(state: Any) -> dict[str, Any]:
    groups = state.get("param_groups", [])
    return {
        "groups": [
            {key: readable(value) for key, value in group.items() if key != "params"}
            | {"params": len(group.get("params", []))}
            for group in groups
        ],
        "state": sorted({str(name) for entry in _mapping(state, "state").values() for name in _keys(entry)}),
        "size_bytes": stored_bytes(tensor for _, tensor in find_tensors(state)),
    }


def _keys(entry: Any) -> Iterator[Any]:
    return iter(entry) if isinstance(entry, Mapping) else iter(())


def stored_bytes(tensors: Any) -> int:
    """What tensors take in a file, in bytes: those that share memory are stored once, and whole."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.layout.is_sparse if hasattr(tensor.layout, "is_sparse") else tensor.is_sparse:
            sizes[id(tensor)] = tensor.values().nbytes + tensor.indices().nbytes
        else:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


# ---------------------------------------------------------------------------------------------------------- shown


def _show(opened: Opened, data: dict[str, Any], *, is_full: bool) -> Iterator[Table | str]:
    yield f"{opened.path}: {opened.kind_name}, {format_size(opened.size_bytes)}"
    facts = data["versions"] | data["counters"] | data["metadata"]
    if opened.kind in ("fulgur", "shards", "lightning"):
        facts["resume"] = data["resume"]
    if facts:
        yield Table("", ("fact", "value"), [(name, _text(value, is_full=is_full)) for name, value in facts.items()])
    if opened.kind not in ("weights", "safetensors"):
        yield _keys_table(data["keys"])
    yield from _hparams_tables(data["hyper_parameters"], is_full=is_full)
    yield from _state_tables(data, is_full=is_full)
    yield _weights_table(data, is_full=is_full)


def _keys_table(keys: list[dict[str, Any]]) -> Table:
    rows = [(k["key"], k["holds"], str(k["tensors"] or ""), _size(k["size_bytes"])) for k in keys]
    return Table("Keys", ("key", "holds", ">tensors", ">size"), rows)


def _hparams_tables(hparams: dict[str, Any], *, is_full: bool) -> Iterator[Table]:
    for key, values in hparams.items():
        yield _values_table(key, values, is_full=is_full)


def _values_table(title: str, values: Any, *, is_full: bool) -> Table:
    items = values.items() if isinstance(values, dict) else [("", values)]
    return Table(title, ("name", "value"), [(name, _text(value, is_full=is_full)) for name, value in items])


def _state_tables(data: dict[str, Any], *, is_full: bool) -> Iterator[Table]:
    for key, state in data["callbacks"].items():
        yield _values_table(f"Callback {key if is_full else key.partition('{')[0]}", state, is_full=is_full)
    for index, entry in enumerate(data["optimizers"]):
        yield _optimizer_table(index, entry, is_full=is_full)
    for index, state in enumerate(data["lr_schedulers"]):
        yield _values_table(f"Scheduler {index}", state, is_full=is_full)


def _optimizer_table(index: int, entry: dict[str, Any], *, is_full: bool) -> Table:
    """A row for each option: what all groups have in common, or the value of each group."""
    groups = entry["groups"]
    values: dict[str, Any] = {"groups": len(groups)}
    for name in dict.fromkeys(name for group in groups for name in group):
        of_groups = [group.get(name) for group in groups]
        values[name] = of_groups if any(value != of_groups[0] for value in of_groups) else of_groups[0]
    kept = {"state of each": ", ".join(entry["state"]), "size": format_size(entry["size_bytes"])}
    return _values_table(f"Optimizer {index}", values | kept, is_full=is_full)


def _weights_table(data: dict[str, Any], *, is_full: bool) -> Table:
    weights, entries = data["weights"], data["tensors"]
    dtypes = ", ".join(f"{count} {name}" for name, count in weights["dtypes"].items())
    title = f"Weights: {weights['elements']:,} numbers in {weights['tensors']} tensors ({dtypes or 'none'})"
    shown = entries if is_full else entries[:_N_TENSORS_SHOWN]
    rows = [(e["name"], str(e["shape"]), e["dtype"], format_size(e["size_bytes"])) for e in shown]
    if len(shown) < len(entries):
        rows.append((f"... and {len(entries) - len(shown)} more: --all shows them", "", "", ""))
    rows.append(("all", "", "", format_size(weights["size_bytes"])))
    return Table(title, ("tensor", "shape", "dtype", ">size"), rows)


def _text(value: Any, *, is_full: bool) -> str:
    return shorten(value, width=_WHOLE if is_full else _VALUE_WIDTH)


def _size(size_bytes: int) -> str:
    return format_size(size_bytes) if size_bytes else ""


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="checkpoint, weights or .safetensors file; a path or a URL")
    parser.add_argument("--all", action="store_true", help="show every tensor, and long values in full")


def _run(arguments: Namespace) -> Outcome:
    opened = open_file(arguments.file, trust=arguments.trust, shapes_only=True)
    data = describe(opened)
    return Outcome(data, _show(opened, data, is_full=arguments.all))


COMMAND = Command("inspect", "what is in a file, without reading its tensors", _add_arguments, _run)
