"""The Trainer's arguments, as given and as settled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from fulgur.errors import UnknownArgumentError, nearest_name

if TYPE_CHECKING:
    from fulgur.accelerators import Accelerator
    from fulgur.hooks import Callback
    from fulgur.loggers.logger import Logger
    from fulgur.profilers.profiler import Profiler


@dataclass(slots=True)
class Arguments:
    """What a Trainer was given, one field for each argument. None stands for a default that `check_arguments` fills in.

    The meaning of each is told in the docstring of `Trainer`.
    """

    accelerator: str | Accelerator = "auto"
    strategy: Any = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    precision: str | int | None = None
    logger: Logger | Iterable[Logger] | bool | None = None
    callbacks: Callback | list[Callback] | None = None
    fast_dev_run: int | bool = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | timedelta | dict[str, int] | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | str | timedelta | dict[str, int] | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | float | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: Profiler | str | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: Any = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | os.PathLike[str] | None = None
    enable_autolog_hparams: bool = True
    model_registry: str | None = None
    uneven_loaders: Literal["join", "error"] = "join"


@dataclass(slots=True, kw_only=True)
class Settings(Arguments):
    """Arguments that were checked, with every default filled in and their effects on each other applied.

    Attributes:
        callbacks: A list of its own; the user's is left as it is.
        max_epochs: None means that no limit was given; what that means is decided when a fit begins.
        min_epochs: 0 if not given, or 1 with `min_steps`.
        fast_dev_run: False, True (one batch) or a number of batches.
        limit_train_batches: An int counts batches, a float is a fraction of them; the same for the other limits.
        val_check_interval: An int counts batches, a float is a fraction of the epoch, a timedelta is wall-clock time.
        num_sanity_val_steps: ``math.inf`` for all batches.
        gradient_clip_val: As given; 0 and below clip nothing.
        gradient_clip_algorithm: ``"norm"``, ``"value"`` or, if not given, None, which stands for ``"norm"``.
        default_root_dir: A normalised path with ``~`` expanded, or the address of a remote place as given.
    """

    callbacks: list[Callback]
    fast_dev_run: int | bool
    min_epochs: int
    max_time: timedelta | None
    limit_train_batches: int | float
    limit_val_batches: int | float
    limit_test_batches: int | float
    limit_predict_batches: int | float
    val_check_interval: int | float | timedelta
    num_sanity_val_steps: int | float
    log_every_n_steps: int
    enable_checkpointing: bool
    enable_progress_bar: bool
    enable_model_summary: bool
    gradient_clip_algorithm: Literal["norm", "value"] | None
    default_root_dir: str


ARGUMENT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Arguments))
"""Names of the arguments, in the order in which positional values are taken."""


def name_positionals(positionals: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Add values given by position to those given by name.

    Raises:
        TypeError: There are too many, or one is given both ways.
    """
    if len(positionals) > len(ARGUMENT_NAMES):
        raise TypeError(f"Trainer takes {len(ARGUMENT_NAMES)} arguments, got {len(positionals)}. Give them by name.")
    named = dict(zip(ARGUMENT_NAMES, positionals, strict=False))
    for name in named:
        if name in given:
            raise TypeError(f"{name}={given[name]!r} is given by name and by position. Give it by name only.")
    return {**named, **given}


def apply_environment(given: Mapping[str, Any], names: Iterable[str] = ARGUMENT_NAMES) -> dict[str, Any]:
    """Add the defaults that the environment holds as ``PL_TRAINER_<ARGUMENT>``.

    A value is read as a Python literal where it is one, and as text otherwise. What is given wins; an empty
    variable counts as absent.

    Args:
        given: Arguments given by the user.
        names: Arguments to look for.
    """
    found = {name: os.environ.get(f"PL_TRAINER_{name.upper()}", "") for name in names}
    return {**{name: _literal(text) for name, text in found.items() if text}, **given}


def build_arguments(given: Mapping[str, Any], also_known: Iterable[str] = ()) -> Arguments:
    """The arguments as one object.

    Args:
        given: Arguments by today's names.
        also_known: Further names that an error may suggest.

    Raises:
        UnknownArgumentError: A name that nobody knows; the error tells the nearest one.
    """
    for name in given:
        if name not in ARGUMENT_NAMES:
            hint = nearest_name(name, (*ARGUMENT_NAMES, *also_known))
            raise UnknownArgumentError(
                f"Trainer has no argument {name!r}.{hint or ' help(fulgur.Trainer) lists those there are.'}"
            )
    return Arguments(**given)


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
