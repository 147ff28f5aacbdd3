"""What a module is made of: layers, parameters, sizes, FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fulgur.rng import isolate_rng

UNKNOWN_SIZE = "?"
NOT_APPLICABLE = "n/a"

# Size of one batch argument: a shape, a list of them, or "?".
Size = list[Any] | str


@dataclass(slots=True)
class LayerSummary:
    """One line of a `Summary`.

    Attributes:
        name: Dotted path within the module.
        layer_type: Name of the class.
        num_parameters: Elements in all parameters below this layer. Parameters that are not initialized count 0.
        mode: ``"train"`` or ``"eval"``; ``"n/a"`` for the line of parameters outside of layers.
        flops: Floating-point operations of one forward pass; 0 if none was run.
        in_size: Shape of the input in the first call, or a list of shapes; ``"?"`` if it was not called.
        out_size: Shape of the output, likewise.
    """

    name: str
    layer_type: str
    num_parameters: int
    mode: str
    flops: int = 0
    in_size: Size = UNKNOWN_SIZE
    out_size: Size = UNKNOWN_SIZE


class Summary:
    """Table of a module's layers; ``str(summary)`` is the text.

    If the module has an ``example_input_array`` (a tensor, a tuple of arguments, or a dict of keyword arguments),
    one forward pass on it finds input and output sizes and FLOPs. It runs in eval mode without gradients and leaves
    modes and random generators as they were; a module with uninitialized parameters is not run.

    Args:
        model: Any module; the table lists its submodules.
        max_depth: Levels to list: 1 lists the direct children, -1 everything, 0 nothing but the totals.

    Attributes:
        layers: Lines of the table, in order of registration.
        has_sizes: Whether the forward pass was run.
        total_flops: FLOPs of the whole forward pass; 0 if it was not run.

    Raises:
        ValueError: `max_depth` is below -1.

    Example:
        >>> Summary(nn.Sequential(nn.Linear(2, 3), nn.ReLU())).total_parameters
        9
    """

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        self._module = model
        self.max_depth = check_max_depth(max_depth)
        named = _submodules(model, max_depth)
        self.layers = [_layer(name, submodule) for name, submodule in named.items()]
        self.total_flops = 0
        example = getattr(model, "example_input_array", None)
        self.has_sizes = example is not None and not any(map(_is_lazy, model.parameters()))
        if self.has_sizes:
            self._measure(named, example)
        self._add_other_parameters()

    def __str__(self) -> str:
        table = _text_table(self.columns())
        return "\n".join([*table, *(f"{value:<9} {label}" for value, label in self.totals())])

    @property
    def layer_names(self) -> list[str]:
        """Name of each line."""
        return [layer.name for layer in self.layers]

    @property
    def layer_types(self) -> list[str]:
        """Class name of each line."""
        return [layer.layer_type for layer in self.layers]

    @property
    def param_nums(self) -> list[int]:
        """Parameter count of each line."""
        return [layer.num_parameters for layer in self.layers]

    @property
    def in_sizes(self) -> list[Size]:
        """Input size of each line."""
        return [layer.in_size for layer in self.layers]

    @property
    def out_sizes(self) -> list[Size]:
        """Output size of each line."""
        return [layer.out_size for layer in self.layers]

    @property
    def total_parameters(self) -> int:
        """Elements in all parameters; a shared parameter counts once."""
        return sum(map(_count, self._module.parameters()))

    @property
    def trainable_parameters(self) -> int:
        """Elements in the parameters that require gradients."""
        return sum(_count(p) for p in self._module.parameters() if p.requires_grad)

    @property
    def model_size(self) -> float:
        """Size of the parameters as they are stored, in MB (1e6 bytes)."""
        return sum(_count(p) * p.element_size() for p in self._module.parameters() if not _is_lazy(p)) / 1e6

    @property
    def total_training_modes(self) -> dict[str, int]:
        """Submodules in train and in eval mode; the module itself is not counted."""
        modes = [submodule.training for submodule in self._module.modules()][1:]
        return {"train": sum(modes), "eval": len(modes) - sum(modes)}

    def columns(self) -> list[tuple[str, list[str]]]:
        """Title and cells of each column."""
        columns = [
            ("Name", self.layer_names),
            ("Type", self.layer_types),
            ("Params", [format_count(number) for number in self.param_nums]),
            ("Mode", [layer.mode for layer in self.layers]),
        ]
        if self.has_sizes:
            columns.append(("FLOPs", [format_count(layer.flops) for layer in self.layers]))
            columns.append(("In sizes", [str(size) for size in self.in_sizes]))
            columns.append(("Out sizes", [str(size) for size in self.out_sizes]))
        return columns

    def totals(self) -> list[tuple[str, str]]:
        """Value and label of each line below the table."""
        trainable, total = self.trainable_parameters, self.total_parameters
        modes = self.total_training_modes
        lines = [
            (format_count(trainable), "Trainable params"),
            (format_count(total - trainable), "Non-trainable params"),
            (format_count(total), "Total params"),
            (f"{self.model_size:,.3f}", "Total estimated model params size (MB)"),
            (str(modes["train"]), "Modules in train mode"),
            (str(modes["eval"]), "Modules in eval mode"),
        ]
        return [*lines, (format_count(self.total_flops), "Total Flops")] if self.has_sizes else lines

    def _measure(self, named: dict[str, nn.Module], example: Any) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        recorded = list(zip(self.layers, named.values(), strict=True))
        with _recording_sizes(recorded), _eval_mode(self._module), isolate_rng(), torch.no_grad(), counter:
            _call(self._module, example)
        self.total_flops = counter.get_total_flops()
        by_module = counter.get_flop_counts()
        root = type(self._module).__name__
        for layer in self.layers:
            layer.flops = sum(by_module.get(f"{root}.{layer.name}", {}).values())

    def _add_other_parameters(self) -> None:
        if self.max_depth == 0:
            return
        in_children = {id(p) for child in self._module.children() for p in child.parameters()}
        number = sum(_count(p) for p in self._module.parameters() if id(p) not in in_children)
        if number:
            line = LayerSummary("other params", NOT_APPLICABLE, number, NOT_APPLICABLE)
            line.in_size = line.out_size = NOT_APPLICABLE
            self.layers.append(line)


def summarize(lightning_module: nn.Module, max_depth: int = 1) -> Summary:
    """Summarize a module: see `Summary`.

    Example:
        >>> print(summarize(module, max_depth=-1))
    """
    return Summary(lightning_module, max_depth)


def format_count(number: int) -> str:
    """A count in short: ``"999"``, ``"1.2 K"``, ``"13.0 M"``, ``"400 B"``, ``"5,000 T"``."""
    value = float(number)
    units = ["", "K", "M", "B", "T"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    if not units[0]:
        return str(number)
    return f"{int(value):,d} {units[0]}" if value >= 100 else f"{value:.1f} {units[0]}"


def parse_batch_shape(batch: Any) -> Size:
    """Shape of a tensor, a list of shapes for a tuple or list, ``"?"`` for anything else."""
    if isinstance(batch, Tensor):
        return list(batch.shape)
    if isinstance(batch, (list, tuple)):
        return [parse_batch_shape(item) for item in batch]
    return UNKNOWN_SIZE


def check_max_depth(max_depth: int) -> int:
    """Return `max_depth` if it is an integer of at least -1.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(max_depth, int) or max_depth < -1:
        raise ValueError(f"max_depth={max_depth!r}: use -1 for all levels, 0 for none, or the number of levels.")
    return max_depth


def _submodules(module: nn.Module, max_depth: int) -> dict[str, nn.Module]:
    named = ((name, submodule) for name, submodule in module.named_modules() if name)
    return {name: submodule for name, submodule in named if max_depth == -1 or name.count(".") < max_depth}


def _layer(name: str, module: nn.Module) -> LayerSummary:
    number = sum(map(_count, module.parameters()))
    return LayerSummary(name, type(module).__name__, number, "train" if module.training else "eval")


def _is_lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter)


def _count(parameter: nn.Parameter) -> int:
    return 0 if _is_lazy(parameter) else parameter.numel()


def _text_table(columns: list[tuple[str, list[str]]]) -> list[str]:
    length = len(columns[0][1])
    cells = [["", *map(str, range(length))], *([title, *column] for title, column in columns)]
    widths = [max(map(len, column)) for column in cells]
    rows = [" | ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in zip(*cells, strict=True)]
    ruler = "-" * len(rows[0])
    return [line.rstrip() for line in (rows[0], ruler, *rows[1:], ruler)]


def _call(module: nn.Module, example: Any) -> None:
    example = _placed(example, module)
    if isinstance(example, dict):
        module(**example)
    elif isinstance(example, (tuple, list)):
        module(*example)
    else:
        module(example)


def _placed(value: Any, module: nn.Module) -> Any:
    """`value` with its tensors on the module's device, floating ones in the dtype of its floating parameters."""
    parameters = list(module.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)

    def place(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item.to(device, dtype if item.is_floating_point() else None)
        if isinstance(item, dict):
            return {key: place(entry) for key, entry in item.items()}
        if isinstance(item, (tuple, list)):
            return [place(entry) for entry in item]
        return item

    return place(value)


@contextmanager
def _recording_sizes(layers: Iterable[tuple[LayerSummary, nn.Module]]) -> Iterator[None]:
    def record(layer: LayerSummary, inputs: Any, output: Any) -> None:
        if layer.in_size == UNKNOWN_SIZE and layer.out_size == UNKNOWN_SIZE:
            layer.in_size = parse_batch_shape(inputs[0] if len(inputs) == 1 else inputs)
            layer.out_size = parse_batch_shape(output)

    handles = []
    for layer, module in layers:
        # A scripted module takes no Python hooks.
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_hook(lambda _, inputs, out, layer=layer: record(layer, inputs, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
