"""``convert``: one form of a checkpoint from another."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from fulgur.checkpoint.load import require_weights
from fulgur.checkpoint.state import LAYOUT_VERSION, VERSION_KEY, Contents, build_loops
from fulgur.checkpoint.tools.command import Command, Outcome
from fulgur.checkpoint.tools.layouts import TENSORS, own_part, to_common, to_current
from fulgur.checkpoint.tools.safetensors_file import SAFETENSORS
from fulgur.checkpoint.tools.source import Opened, open_file, write_file
from fulgur.errors import CheckpointError
from fulgur.progress import Progress

Form = Literal["fulgur", "lightning", "safetensors"]
_HPARAMS, _HPARAMS_NAME = "hyper_parameters", "hparams_name"


def convert(file: Opened, form: Form) -> tuple[dict[str, Any], list[str]]:
    """The content of `file` in another form. Tensors are the same ones.

    Args:
        file: A checkpoint, bare weights or a safetensors file.
        form: What to make of it.

    Returns:
        A checkpoint's content, of which `form` ``"safetensors"`` keeps only the weights, and a sentence for each thing
        that the new form cannot hold.

    Raises:
        CheckpointError: It has no weights, or is in that form already.
    """
    require_weights(file.content, file.path)
    if file.kind == form:
        others = [f"--to {other}" for other in ("fulgur", "lightning", "safetensors") if other != form]
        raise CheckpointError(f"{file.path!r} is {file.kind_name} already. Use {' or '.join(others)}.")
    if form == "safetensors":
        return _only_tensors(file.content)
    if file.kind in ("weights", "safetensors"):
        content = build_checkpoint(file.content["state_dict"], file.metadata)
        return (content if form == "fulgur" else _without_own_part(content)), []
    if form == "fulgur":
        content = to_current(file.content)
        return content | {"fulgur": own_part(file.content)}, _new_beginnings(content)
    return _without_own_part(file.content), _left_behind(file.content)


def build_checkpoint(weights: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """A checkpoint that holds weights only.

    Args:
        weights: What the module's ``state_dict()`` has returned.
        metadata: From `metadata_of`, or anybody's: what it does not name is zero or absent.
    """
    progress = Progress(epoch=_number(metadata, "epoch"), global_step=_number(metadata, "global_step"))
    content = {
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        VERSION_KEY: LAYOUT_VERSION,
        "state_dict": weights,
        "loops": build_loops(Contents(None, None, progress=progress)),
    }
    content["fulgur"] = own_part(content)
    hparams = _parsed(metadata.get(_HPARAMS, ""))
    if isinstance(hparams, dict):
        content |= {_HPARAMS_NAME: metadata.get(_HPARAMS_NAME), _HPARAMS: hparams}
    return content


def metadata_of(content: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What a safetensors file can say beside the weights, and the hyperparameters that it cannot."""
    metadata = {"format": "pt"}
    metadata |= {key: str(content[key]) for key in ("epoch", "global_step") if isinstance(content.get(key), int)}
    hparams = content.get(_HPARAMS)
    if not isinstance(hparams, Mapping):
        return metadata, []
    kept = {name: value for name, value in hparams.items() if _survives_json(value)}
    metadata[_HPARAMS] = json.dumps(kept)
    if content.get(_HPARAMS_NAME) is not None:
        metadata[_HPARAMS_NAME] = str(content[_HPARAMS_NAME])
    return metadata, [str(name) for name in hparams if name not in kept]


def _survives_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _number(metadata: Mapping[str, str], key: str) -> int:
    text = metadata.get(key, "0")
    return int(text) if text.isdecimal() else 0


def _only_tensors(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    weights = content["state_dict"]
    others = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    left_out = metadata_of(content)[1]
    notes = [f"Left out, for they are no tensors: {others}."] if others else []
    notes += [f"Left out, for JSON has no form of them: the hyperparameters {left_out}."] if left_out else []
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    return content | {"state_dict": tensors}, notes


def _without_own_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """The rest is in the layout already; what has a form of fulgur's own becomes what comes nearest to it."""
    kept = {key: value for key, value in content.items() if key != "fulgur"}
    return {key: value if key in TENSORS else to_common(value) for key, value in kept.items()}


def _left_behind(content: Mapping[str, Any]) -> list[str]:
    own = content["fulgur"]
    running = own.get("running") or {}
    left = ["the generators"] if "rng" in own else []
    left += ["the position in the data"] if running.get("in_pass") else []
    left += ["the gradients of an open accumulation window"] if running.get("gradients") else []
    return [f"Lightning has no place for {', '.join(left)}: they stay behind."] if left else []


def _new_beginnings(content: Mapping[str, Any]) -> list[str]:
    if "optimizer_states" not in content:
        return []
    return ["The file does not hold the generators and the position in the data: they start anew when it is resumed."]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="checkpoint, bare weights or .safetensors file; a path or a URL")
    parser.add_argument("output", metavar="OUT", help="where to write; a path or a URL")
    parser.add_argument(
        "--to",
        choices=("fulgur", "lightning", "safetensors"),
        help="form to write; without it the one that OUT's name ends in, or else fulgur",
    )


def _run(arguments: Namespace) -> Outcome:
    is_named = arguments.output.endswith(SAFETENSORS)
    form: Form = arguments.to or ("safetensors" if is_named else "fulgur")
    if (form == "safetensors") != is_named:
        raise ValueError(
            f"--to {form} and OUT={arguments.output!r} contradict each other: names of weights in safetensors, and "
            f"only those, end in {SAFETENSORS}."
        )
    file = open_file(arguments.input, trust=arguments.trust)
    content, notes = convert(file, form)
    write_file(content, arguments.output, metadata_of(content)[0])
    data = {"input": arguments.input, "from": file.kind, "output": arguments.output, "to": form, "notes": notes}
    return Outcome(data, (f"{arguments.output}: {form}, from {file.kind_name}.", *notes))


COMMAND = Command("convert", "make another form of a checkpoint or of weights", _add_arguments, _run)
