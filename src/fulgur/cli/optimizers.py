"""Optimizer and scheduler of the command line in the place of a module's `configure_optimizers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from jsonargparse import Namespace
from torch.optim import Optimizer

from fulgur.cli.instantiate import instantiate_class
from fulgur.cli.parser import AUTOMATIC, LightningArgumentParser
from fulgur.cli.schedulers import ReduceLROnPlateau
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.hooks import overrides
from fulgur.module import LightningModule
from fulgur.rank import rank_zero_warn

_Build = Callable[[tuple[Any, ...]], Any]


def as_configured(optimizer: Optimizer, lr_scheduler: Any) -> Any:
    """What `configure_optimizers` returns for one optimizer and its scheduler, if there is one."""
    if lr_scheduler is None:
        return optimizer
    if isinstance(lr_scheduler, ReduceLROnPlateau):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor}}
    return [optimizer], [lr_scheduler]


def replace_configure_optimizers(
    model: LightningModule,
    parser: LightningArgumentParser,
    values: Callable[[str], Any],
    configure: Callable[[LightningModule, Optimizer, Any], Any],
) -> None:
    """Make `configure_optimizers` of the module from the options, if they name an optimizer.

    Args:
        model: The module.
        parser: Which options are optimizers and schedulers.
        values: What was given under a key; None where nothing was.
        configure: Takes module, optimizer and scheduler, and returns what `configure_optimizers` is to return.

    Raises:
        MisconfigurationException: Several of a kind are 'AUTOMATIC'.
        SystemExit: With code 2: a scheduler is given without an optimizer.
    """
    optimizer = _choose(parser.optimizers, "optimizer", values)
    scheduler = _choose(parser.lr_schedulers, "lr_scheduler", values)
    if optimizer is None:
        if scheduler is not None:
            parser.error(
                f"--{scheduler[0]} is given without an optimizer, whose rate it is to change. Give --optimizer too."
            )
        return
    if overrides(model, "configure_optimizers", LightningModule):
        rank_zero_warn(
            f"configure_optimizers of {type(model).__name__} is replaced by the optimizer of the command line, "
            f"--{optimizer[0]}. Leave that out to use the module's own.",
            PossibleUserWarning,
        )
    build_optimizer, build_scheduler = optimizer[1], None if scheduler is None else scheduler[1]

    def configure_optimizers(module: LightningModule) -> Any:
        made = build_optimizer((module.parameters(),))
        return configure(module, made, build_scheduler and build_scheduler((made,)))

    model.configure_optimizers = MethodType(configure_optimizers, model)  # type: ignore[method-assign]


def _choose(
    registered: Mapping[str, tuple[Any, str]], kind: str, values: Callable[[str], Any]
) -> tuple[str, _Build] | None:
    """Key of the one that is automatic and given, and what makes it of its leading argument."""
    automatic = {key: cls for key, (cls, link_to) in registered.items() if link_to == AUTOMATIC}
    if len(automatic) > 1:
        raise MisconfigurationException(
            f"Several arguments of kind {kind} are 'AUTOMATIC': {', '.join(automatic)}. configure_optimizers can "
            "be made of one. Pass link_to for the others, and write configure_optimizers yourself."
        )
    given = [(key, cls) for key, cls in automatic.items() if values(key) is not None]
    if not given:
        return None
    [(key, cls)] = given
    config = values(key)
    arguments = config.as_dict() if isinstance(config, Namespace) else dict(config)
    if isinstance(cls, tuple):
        return key, lambda leading: instantiate_class(leading, arguments)
    return key, lambda leading: cls(*leading, **arguments)
