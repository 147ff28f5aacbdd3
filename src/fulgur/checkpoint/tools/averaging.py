"""``average``: the mean of the weights of several files."""

from __future__ import annotations

import copy
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fulgur.checkpoint.load import require_weights
from fulgur.checkpoint.tools.command import Command, Outcome, Table
from fulgur.checkpoint.tools.conversion import build_checkpoint, metadata_of
from fulgur.checkpoint.tools.safetensors_file import SAFETENSORS
from fulgur.checkpoint.tools.show import describe_tensor
from fulgur.checkpoint.tools.source import Opened, open_file, write_file
from fulgur.errors import CheckpointError

# What belongs to the run of one of the files, and would be wrong beside weights that no run ever had.
_OF_A_RUN = (
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "MixedPrecision",
    "native_amp_scaling_state",
    "amp_scaling_state",
)
_SAME_MODEL = "Average files of one and the same model."


def average(files: Sequence[Opened]) -> dict[str, Any]:
    """A checkpoint with the mean of the files' weights, and everything else but what resuming needs of the last.

    Floating point weights are added up in float64, one tensor at a time, and rounded once, to the last file's dtype.
    Others, counts of batches for example, are the last file's.

    Args:
        files: Two at least, with weights of the same names and shapes.

    Raises:
        CheckpointError: A file has no weights, or others.
    """
    weights = [_weights_of(file) for file in files]
    for file, other in zip(files, weights, strict=True):
        _require_same(other, weights[-1], file.path, files[-1].path)
    last = files[-1]
    mean = copy.copy(weights[-1])  # keeps what torch notes beside a state_dict
    means: dict[tuple[Any, ...], Tensor] = {}
    for name, value in mean.items():
        if _is_averaged(value):
            tensors = [other[name] for other in weights]
            key = tuple((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
            if value.numel() == 0 or key not in means:  # tied weights stay tied
                means[key] = _mean(tensors)
            mean[name] = means[key]
    if last.kind in ("weights", "safetensors"):
        return build_checkpoint(mean, last.metadata)
    content = {key: value for key, value in last.content.items() if key not in _OF_A_RUN} | {"state_dict": mean}
    if "fulgur" in content:
        kept = {key: value for key, value in content["fulgur"].items() if key not in ("rng", "running")}
        content["fulgur"] = kept | {"averaged": [file.path for file in files]}
    return content


def _weights_of(file: Opened) -> Any:
    require_weights(file.content, file.path)
    return file.content["state_dict"]


def _require_same(weights: Any, last: Any, path: str, last_path: str) -> None:
    differing = sorted(set(weights) ^ set(last))
    if differing:
        where, other = (path, last_path) if differing[0] in weights else (last_path, path)
        raise CheckpointError(
            f"{len(differing)} weights, {differing[0]!r} first, are in {where!r} and not in {other!r}. {_SAME_MODEL}"
            if len(differing) > 1
            else f"The weight {differing[0]!r} is in {where!r} and not in {other!r}. {_SAME_MODEL}"
        )
    for name, value in weights.items():
        if _form(value) != _form(last[name]):
            raise CheckpointError(
                f"{name!r} is {_text(value)} in {path!r} and {_text(last[name])} in {last_path!r}. {_SAME_MODEL}"
            )


def _text(value: Any) -> str:
    return describe_tensor(value) if isinstance(value, Tensor) else type(value).__name__


def _is_averaged(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _form(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return value.shape, value.is_floating_point(), value.is_complex()


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    last = tensors[-1]
    wide = torch.complex128 if last.is_complex() else torch.float64
    total = torch.zeros(last.shape, dtype=wide)
    for tensor in tensors:
        total += tensor.detach().to(wide)
    return (total / len(tensors)).to(last.dtype)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="two or more files of one model, the newest last")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="where to write the mean")


def _run(arguments: Namespace) -> Outcome:
    paths, output = arguments.files, arguments.output
    if len(paths) < 2:
        raise ValueError(f"average needs two files or more, got only {paths[0]!r}.")
    files = [open_file(path, trust=arguments.trust) for path in paths]
    content = average(files)
    is_bare = files[-1].kind == "weights" and not output.endswith(SAFETENSORS)
    write_file(content["state_dict"] if is_bare else content, output, metadata_of(content)[0])
    n_averaged = sum(_is_averaged(value) for value in content["state_dict"].values())
    data = {"output": output, "files": list(paths), "averaged": n_averaged, "tensors": len(content["state_dict"])}
    line = f"{output}: the mean of {len(paths)} files, for {n_averaged} of {data['tensors']} tensors."
    return Outcome(data, (line, Table("", ("averaged",), [(path,) for path in paths])))


COMMAND = Command("average", "write the mean of the weights of several files", _add_arguments, _run)
