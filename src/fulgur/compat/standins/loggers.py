"""What loggers of other packages take from the old ones."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from fulgur.loggers.hparams import to_dict


def merge_dicts(
    dicts: Sequence[Mapping[str, Any]],
    agg_key_funcs: Mapping[str, Callable[[Sequence[float]], float]] | None = None,
    default_func: Callable[[Sequence[float]], float] | None = None,
) -> dict[str, Any]:
    """Merge dicts of values, where a key in several of them is aggregated.

    Args:
        dicts: In the order in which functions see the values.
        agg_key_funcs: A function of the values, for some keys.
        default_func: The function for all other keys. None takes the mean.
    """
    chosen = agg_key_funcs or {}
    keys = dict.fromkeys(key for values in dicts for key in values)
    merged: dict[str, Any] = {}
    for key in keys:
        found = [values[key] for values in dicts if key in values]
        if isinstance(found[0], Mapping):
            merged[key] = merge_dicts(found, chosen.get(key), default_func)  # type: ignore[arg-type]
        else:
            merged[key] = chosen.get(key, default_func or _mean)(found)
    return merged


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _add_prefix(metrics: Mapping[str, Any], prefix: str, separator: str) -> Mapping[str, Any]:
    if not prefix:
        return metrics
    return {f"{prefix}{separator}{name}": value for name, value in metrics.items()}


def _convert_params(params: dict[str, Any] | Namespace | None) -> dict[str, Any]:
    return {} if params is None else to_dict(params)


def _flatten_dict(params: MutableMapping[Any, Any], delimiter: str = "/", parent_key: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        path = f"{parent_key}{delimiter}{key}" if parent_key else str(key)
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, MutableMapping):
            flat |= _flatten_dict(value, delimiter, path)
        else:
            flat[path] = value
    return flat


def _sanitize_callable_params(params: dict[str, Any]) -> dict[str, Any]:
    """Each function replaced by what it returns, or by its name where it needs arguments."""

    def plain(value: Any) -> Any:
        if not callable(value):
            return value
        if isinstance(value, type):
            return value.__name__
        try:
            returned = value()
        except Exception:
            return getattr(value, "__name__", None)
        return getattr(value, "__name__", None) if callable(returned) else returned

    return {name: plain(value) for name, value in params.items()}


def _scan_checkpoints(checkpoint_callback: Any, logged_model_time: Mapping[str, float]) -> list[tuple[Any, ...]]:
    """New files of a `ModelCheckpoint`, oldest first: when, where, score, tag."""
    files = {checkpoint_callback.last_model_path: (checkpoint_callback.current_score, "latest")}
    files[checkpoint_callback.best_model_path] = (checkpoint_callback.best_model_score, "best")
    files |= {path: (score, "best_k") for path, score in checkpoint_callback.best_k_models.items() if path not in files}
    found = [(os.path.getmtime(path), path, *about) for path, about in files.items() if os.path.isfile(path)]
    new = [file for file in found if logged_model_time.get(file[1], 0.0) < file[0]]
    return sorted(new, key=lambda file: file[0])
