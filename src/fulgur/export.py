"""A module in forms that run without its code: ONNX, torch.export and TorchScript."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from fulgur.errors import MissingExtraError

if TYPE_CHECKING:
    from fulgur.module import LightningModule


def export_onnx(module: LightningModule, file_path: Any, input_sample: Any, **options: Any) -> Any:
    """See `LightningModule.to_onnx`."""
    if options.get("dynamo", True) and find_spec("onnxscript") is None:
        raise MissingExtraError("to_onnx(dynamo=True)", "onnxscript", "onnx")
    if find_spec("onnx") is None:
        raise MissingExtraError("to_onnx", "onnx", "onnx")
    arguments, keywords = _as_arguments(_sample(module, "to_onnx", "input_sample", input_sample))
    target = () if file_path is None else (os.fspath(file_path) if not hasattr(file_path, "write") else file_path,)
    if options.get("dynamo", True):
        options.setdefault("verbose", False)
    with _evaluating(module), _without_torchs_own_warnings():
        return torch.onnx.export(module, arguments, *target, kwargs=keywords or None, **options)


def export_program(module: LightningModule, file_path: Any, input_sample: Any, **options: Any) -> Any:
    """See `LightningModule.to_exported`."""
    arguments, keywords = _as_arguments(_sample(module, "to_exported", "input_sample", input_sample))
    with _evaluating(module), _without_torchs_own_warnings():
        program = torch.export.export(module, arguments, keywords or None, **options)
        if file_path is not None:
            _write(file_path, lambda file: torch.export.save(program, file))
    return program


def export_torchscript(
    module: LightningModule, file_path: Any, method: str, example_inputs: Any, **options: Any
) -> Any:
    """See `LightningModule.to_torchscript`."""
    if method not in ("script", "trace"):
        raise ValueError(f"method={method!r} is neither 'script' nor 'trace'. Use one of these.")
    with _evaluating(module):
        if method == "script":
            compiled: Any = torch.jit.script(module, **options)
        else:
            arguments, _ = _as_arguments(_sample(module, "to_torchscript", "example_inputs", example_inputs))
            compiled = torch.jit.trace(module, arguments, **options)
    if file_path is not None:
        _write(file_path, lambda file: torch.jit.save(compiled, file))
    return compiled


def _write(file_path: Any, save: Callable[[Any], None]) -> None:
    """Call `save` with an open file at a path or URL, or with the open file that `file_path` is."""
    if hasattr(file_path, "write"):
        save(file_path)
        return
    from fsspec.core import open as open_anywhere

    with open_anywhere(os.fspath(file_path), "wb") as file:
        save(file)


def _sample(module: LightningModule, method: str, argument: str, given: Any) -> Any:
    sample = module.example_input_array if given is None else given
    if sample is None:
        raise ValueError(
            f"{type(module).__name__}.{method} needs an input of forward. Pass {argument}=..., or set "
            "self.example_input_array in __init__."
        )
    sample = module.on_before_batch_transfer(sample, 0)
    sample = module.transfer_batch_to_device(sample, module.device, 0)
    return module.on_after_batch_transfer(sample, 0)


def _as_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, dict):
        return (), sample
    return (sample if isinstance(sample, tuple) else (sample,)), {}


@contextmanager
def _without_torchs_own_warnings() -> Iterator[None]:
    """torch's exporters use what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        yield


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients, and every submodule's own mode afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    trainers = [(each, each.__dict__.get("_trainer")) for each in module.modules() if hasattr(each, "_trainer")]
    module.eval()
    for each, _ in trainers:
        each.__dict__["_trainer"] = object()  # torch.jit reads every property, and `trainer` raises without one
    try:
        with torch.no_grad():
            yield
    finally:
        for each, trainer in trainers:
            each.__dict__["_trainer"] = trainer
        for each, training in modes:
            each.training = training
