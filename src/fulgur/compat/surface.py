"""What the Trainer has: asked of the Trainer itself, for programs that are only read."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

from fulgur.errors import FulgurError, nearest_name

_OF_THIS_MACHINE = ("gpus", "auto_select_gpus")  # what they mean depends on the devices that are here


def explain_argument(name: str, value: ast.expr) -> str | None:
    """What is wrong with ``Trainer(name=value)``, or None. Values that are no literals count as right."""
    from fulgur.resolve.arguments import build_arguments
    from fulgur.resolve.legacy import LEGACY_NAMES, translate_legacy

    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        literal = None
    if name in _OF_THIS_MACHINE:
        return None
    try:
        today, _ = translate_legacy({name: literal})
        build_arguments(today, LEGACY_NAMES)
    except (FulgurError, TypeError, ValueError) as error:
        return str(error)
    if name == "strategy" and isinstance(literal, str):
        return _explain_strategy(literal)
    if name in ("accelerator", "distributed_backend") and literal in ("tpu", "hpu", "ipu"):
        return f"{name}={literal!r}: fulgur does not drive it. Use 'cpu', 'cuda' or 'mps'."
    return None


def _explain_strategy(name: str) -> str | None:
    from fulgur.strategies import StrategyRegistry

    known = ["auto", *StrategyRegistry.available_strategies()]
    if name.lower() in known:
        return None
    short = ", ".join(other for other in known if "_find_unused" not in other)
    return f"strategy={name!r} is unknown.{nearest_name(name, known)} There are: {short}."


def explain_attribute(attributes: tuple[str, ...]) -> str | None:
    """What is wrong with ``trainer.a.b.c``, or None. Looked into as far as the parts are fulgur's."""
    found: Any = _probe()
    path = "trainer"
    for name in attributes:
        if not _is_ours(found):
            return None
        if not _has(found, name):
            return f"{path} has no attribute {name!r}.{nearest_name(name, dir(found))}"
        try:
            found = getattr(found, name, None)
        except Exception:
            return None
        path = f"{path}.{name}"
    return None


def _is_ours(value: Any) -> bool:
    is_data = isinstance(value, (dict, list, tuple, str))
    return type(value).__module__.partition(".")[0] == "fulgur" and not is_data


def _has(owner: Any, name: str) -> bool:
    declared = any(name in vars(kind).get("__annotations__", {}) for kind in type(owner).__mro__)
    if declared or name in vars(owner) or hasattr(type(owner), name):
        return True
    from fulgur.strategies import Strategy

    if isinstance(owner, Strategy):  # which one it will be is not known
        return any(hasattr(kind, name) for kind in _all_below(Strategy))
    return False


def _all_below(kind: type) -> list[type]:
    import fulgur.strategies

    for name in fulgur.strategies.__all__:
        getattr(fulgur.strategies, name)
    below: list[type] = kind.__subclasses__()
    return [*below, *(deeper for other in below for deeper in _all_below(other))]


@cache
def _probe() -> Any:
    """A Trainer that does nothing, to see what one has."""
    from fulgur.trainer import Trainer

    return Trainer(
        accelerator="cpu",
        devices=1,
        strategy="single_device",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
