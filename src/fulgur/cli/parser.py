"""LightningArgumentParser: jsonargparse's parser that knows Trainers, modules, callbacks, optimizers and schedulers."""

from __future__ import annotations

import inspect
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, class_from_function
from torch.optim import Optimizer

from fulgur.cli.advice import advise, command_of
from fulgur.cli.schedulers import LRSchedulerTypeTuple
from fulgur.datamodule import LightningDataModule
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback
from fulgur.module import LightningModule
from fulgur.trainer import Trainer

AUTOMATIC = "AUTOMATIC"
"""Where an optimizer or scheduler goes: `configure_optimizers` of the module is made from it."""


class LightningArgumentParser(ArgumentParser):  # type: ignore[misc,unused-ignore]
    """Reads options, configuration files and the environment.

    Args:
        *args: As `argparse.ArgumentParser` has them.
        description: Shown by ``--help``.
        env_prefix: First part of the names of variables of the environment, which are read with ``default_env=True``.
        default_env: Whether variables of the environment are read.
        **kwargs: As `jsonargparse.ArgumentParser` has them.

    Attributes:
        callback_keys: Keys of the callbacks that `add_lightning_class_args` has added.
        optimizers: For each key of optimizers their classes, and where they go.
        lr_schedulers: The same for schedulers.
    """

    def __init__(
        self,
        *args: Any,
        description: str = "Trains, evaluates and predicts.",
        env_prefix: str = "PL",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("allow_abbrev", False)  # a misspelt option is told of, not guessed
        super().__init__(*args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs)
        self.callback_keys: list[str] = []
        self.optimizers: dict[str, tuple[Any, str]] = {}
        self.lr_schedulers: dict[str, tuple[Any, str]] = {}

    def add_core_arguments(self, *, seed: bool | int = True) -> None:
        """Add ``--config`` and ``--seed_everything``.

        Args:
            seed: Default of the latter.
        """
        self.add_config_argument()
        self.add_argument(
            "--seed_everything",
            type=bool | int,
            default=seed,
            help="Seed of every random generator; true takes PL_GLOBAL_SEED or 0, false sets none.",
        )

    def add_config_argument(self) -> None:
        """Add ``--config``."""
        text = "Path of a configuration file, yaml or json; may be repeated."
        self.add_argument("-c", "--config", action=ActionConfigFile, help=text)

    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        """Add the arguments of a class as options.

        Args:
            lightning_class: A `Trainer`, `LightningModule`, `LightningDataModule` or `Callback` class, or a function
                that returns an object of one.
            nested_key: First part of the options' names.
            subclass_mode: Take any subclass, named by the option itself.
            required: Whether, in subclass mode, one must be named.

        Returns:
            Keys of the options.

        Raises:
            MisconfigurationException: It is another class.
        """
        if callable(lightning_class) and not isinstance(lightning_class, type):
            lightning_class = class_from_function(lightning_class)
        bases = (Trainer, LightningModule, LightningDataModule, Callback)
        if not isinstance(lightning_class, type) or not issubclass(lightning_class, bases):
            raise MisconfigurationException(
                f"add_lightning_class_args got {lightning_class!r}. Give it a Trainer, LightningModule, "
                "LightningDataModule or Callback class, or a function that is annotated to return one."
            )
        if issubclass(lightning_class, Callback):
            self.callback_keys.append(nested_key)
        if subclass_mode:
            self.add_subclass_arguments(lightning_class, nested_key, fail_untyped=False, required=required)
            return [nested_key]
        added: list[str] = self.add_class_arguments(
            lightning_class,
            nested_key,
            fail_untyped=False,
            instantiate=not issubclass(lightning_class, Trainer),
            sub_configs=True,
        )
        return added

    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of an optimizer as options.

        Args:
            optimizer_class: The class, or a tuple of classes of which any subclass may be named.
            nested_key: First part of the options' names.
            link_to: Key of an argument that gets ``{"class_path": ..., "init_args": ...}`` for `instantiate_class`.
                "AUTOMATIC" makes the module's `configure_optimizers` of it.
        """
        self._add_torch_class(optimizer_class, nested_key, skip="params")
        self.optimizers[nested_key] = (optimizer_class, link_to)

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: Any = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of a learning-rate scheduler as options; see `add_optimizer_args`."""
        self._add_torch_class(lr_scheduler_class, nested_key, skip="optimizer")
        self.lr_schedulers[nested_key] = (lr_scheduler_class, link_to)

    def _add_torch_class(self, cls: Any, nested_key: str, *, skip: str) -> None:
        kwargs: dict[str, Any] = {"instantiate": False, "fail_untyped": False, "skip": {skip}}
        if isinstance(cls, tuple):
            self.add_subclass_arguments(cls, nested_key, required=False, **kwargs)
        else:
            self.add_class_arguments(cls, nested_key, sub_configs=True, **kwargs)

    def add_older_trainer_arguments(self, trainer_class: Any, nested_key: str = "trainer") -> None:
        """Take the Trainer's arguments of 1.x too, without showing them."""
        taken = inspect.signature(trainer_class).parameters
        for name in getattr(trainer_class, "OLDER_ARGUMENTS", ()):
            if name not in taken:
                self.add_argument(f"--{nested_key}.{name}", type=Any, default=SUPPRESS, help=SUPPRESS)

    def link_torch_classes(self) -> None:
        """Send optimizers and schedulers where they go, other than those that are "AUTOMATIC"."""
        for key, (cls, link_to) in {**self.optimizers, **self.lr_schedulers}.items():
            if link_to != AUTOMATIC:
                self.link_arguments(key, link_to, compute_fn=_class_spec(cls))

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The configuration as text; see `jsonargparse.ArgumentParser.dump`. A tuple is written as a list."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*does not round-trip")
            return str(super().dump(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong with an option, what was expected, and what may have been meant; exit with 2."""
        advice = advise(self, message)
        if not self.exit_on_error:
            super().error(advice, ex)
        self.exit(2, f"{command_of(self)}: error: {advice}\n")


def _class_spec(cls: Any) -> Callable[[Any], Any]:
    """What makes an `instantiate_class` argument of parsed options."""

    def build(config: Any) -> Any:
        if config is None:
            return None
        values = config.as_dict() if isinstance(config, Namespace) else dict(config)
        if isinstance(cls, tuple):
            return values
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": values}

    return build


def as_list(value: Any) -> list[Any]:
    """`value` in a list of its own; None is an empty one."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]
