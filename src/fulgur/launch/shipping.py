"""What rank 0 found out, on its way to the Trainer of the process that started the ranks.

It goes through a pipe between the two; nothing is read from a file.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

_PLAIN = (str, int, float, bool, type(None))
_LENT = ("log", "log_dict")
"""Methods of the module that callbacks have for the length of a run."""


def ship(trainer: Any, result: Any) -> bytes:
    """Result, weights, counters, metrics and states of callbacks and loggers, as bytes. All ranks must reach this.

    Without a Trainer only the result.
    """
    if trainer is None:
        return pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
    module = trainer.lightning_module
    metrics = trainer.metrics
    metrics.refresh()
    return _dump(
        trainer,
        {
            "result": result,
            "state": trainer.state,
            "progress": trainer.fit_loop.progress,
            "should_stop": trainer.fit_loop.should_stop,
            "max_epochs": trainer.fit_loop.limits.max_epochs,
            "ckpt_path": trainer._loaded_ckpt_path,
            "signals": trainer._signals,
            "metrics": [
                _on_host(dict(values))
                for values in (metrics.callback_metrics, metrics.logged_metrics, metrics.progress_bar_metrics)
            ],
            "weights": _on_host(dict(trainer.strategy.model_state(module))),
            "callbacks": [_sendable(trainer, callback) for callback in trainer.callbacks],
            "loggers": [_plain(logger) for logger in trainer.loggers],
        },
    )


def take_over(trainer: Any, shipped: bytes) -> Any:
    """Give `trainer` what `ship` has packed. Returns the result of the call."""
    if trainer is None:
        return pickle.loads(shipped)
    found = _Unpickler(io.BytesIO(shipped), trainer).load()
    trainer.state = found["state"]
    loop, metrics = trainer.fit_loop, trainer.metrics
    loop.progress, loop.should_stop = found["progress"], found["should_stop"]
    loop.limits.max_epochs = found["max_epochs"]
    trainer._loaded_ckpt_path, trainer._signals = found["ckpt_path"], found["signals"]
    kept = (metrics.callback_metrics, metrics.logged_metrics, metrics.progress_bar_metrics)
    for values, new in zip(kept, found["metrics"], strict=True):
        values.clear()
        values.update(new)
    for owners, states in ((trainer.callbacks, found["callbacks"]), (trainer.loggers, found["loggers"])):
        for owner, state in zip(owners, states, strict=False):
            owner.__dict__.update(state)
    trainer.lightning_module.load_state_dict(found["weights"])
    return found["result"]


def _sendable(trainer: Any, owner: Any) -> dict[str, Any]:
    """Attributes of `owner` that can be sent: open files and the like stay where they are."""
    state = {}
    for name, value in owner.__dict__.items():
        if name in _LENT:
            continue
        try:
            _dump(trainer, value)
        except Exception:  # whatever an object says when it is asked to be pickled
            continue
        state[name] = value
    return state


def _plain(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in owner.__dict__.items() if isinstance(value, _PLAIN)}


def _on_host(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def _dump(trainer: Any, value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, trainer).dump(value)
    return buffer.getvalue()


def _shared(trainer: Any) -> dict[str, Any]:
    """Objects that both processes have: a reference to one becomes a reference to the other's."""
    named = {"trainer": trainer, "module": trainer.lightning_module, "datamodule": trainer.datamodule}
    named |= {f"callback {i}": callback for i, callback in enumerate(trainer.callbacks)}
    named |= {f"logger {i}": logger for i, logger in enumerate(trainer.loggers)}
    return {name: value for name, value in named.items() if value is not None}


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, trainer: Any) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = {id(value): name for name, value in _shared(trainer).items()}

    def persistent_id(self, obj: Any) -> str | None:
        return self._names.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, trainer: Any) -> None:
        super().__init__(file)
        self._shared = _shared(trainer)

    def persistent_load(self, name: str) -> Any:
        return self._shared.get(name)
