"""LightningCLI: a command line for a module, a datamodule and a Trainer, from their signatures.

One call goes: build the parser, parse, put a checkpoint's hyperparameters under explicit options, seed, make the
objects, run the subcommand.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import yaml
from jsonargparse import Namespace
from torch.optim import Optimizer

import fulgur.callbacks
import fulgur.loggers
import fulgur.profilers
from fulgur.checkpoint.made_by_cli import CLASS_PATH, INSTANTIATOR, INSTANTIATOR_NAME
from fulgur.cli import resumed
from fulgur.cli.optimizers import as_configured, replace_configure_optimizers
from fulgur.cli.parser import LightningArgumentParser, as_list
from fulgur.cli.refused import told_in_one_line
from fulgur.cli.save_config import SaveConfigCallback
from fulgur.cli.schedulers import LRSchedulerTypeTuple
from fulgur.datamodule import LightningDataModule
from fulgur.errors import (
    CheckpointRefusedError,
    PossibleUserWarning,
    UnknownArgumentError,
    nearest_name,
)
from fulgur.hooks import Callback
from fulgur.hparams import ParsedArguments, parsed_arguments
from fulgur.module import LightningModule
from fulgur.rank import rank_zero_warn
from fulgur.rng import seed_everything
from fulgur.trainer import Trainer

# Arguments of entry points that the command line makes itself, or that are older names.
_OBJECTS = {"model", "datamodule", "dataloaders"}
_SUBCOMMANDS = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "train_dataloader"},
    "validate": {*_OBJECTS, "val_dataloaders"},
    "test": {*_OBJECTS, "test_dataloaders"},
    "predict": _OBJECTS,
}
_PURPOSES = {
    "fit": "Train.",
    "validate": "Evaluate on the validation set.",
    "test": "Evaluate on the test set.",
    "predict": "Predict for every sample.",
}


class LightningCLI:
    """Reads a command line, makes what it asks for, and runs it: ``python train.py fit --model.lr 0.1``.

    What counts, from the weakest to the strongest: defaults of signatures, `trainer_defaults`, default configuration
    files, the environment (with ``parser_kwargs={"default_env": True}``: ``PL_FIT__TRAINER__MAX_EPOCHS``), then the
    command line from left to right, where each ``--config`` file stands for what is in it. Hyperparameters of the file
    at ``--ckpt_path`` are stronger than files, and weaker than ``--model`` options on the command line.

    Args:
        model_class: The module's class, or a function that returns one; None takes any subclass, named by ``--model``.
        datamodule_class: The same for the data; None takes any subclass, named by ``--data``, or none.
        save_config_callback: Saves the configuration beside the logs; None saves nothing.
        save_config_kwargs: Arguments of `save_config_callback`.
        trainer_class: The Trainer's class, or a function that returns one.
        trainer_defaults: Arguments of the Trainer that are not its own defaults. Callbacks, loggers and the like may be
            objects; those are not in the saved configuration.
        seed_everything_default: Default of ``--seed_everything``: a seed, True, or False.
        parser_kwargs: Arguments of the parser; under the name of a subcommand, those of its parser.
        parser_class: Class of the parser.
        subclass_mode_model: Take any subclass of `model_class`, named by ``--model``.
        subclass_mode_data: Take any subclass of `datamodule_class`, named by ``--data``.
        args: Options instead of the process's own: a list of words, a dict, or a Namespace.
        run: Take a subcommand and run it. False only makes the objects.
        auto_configure_optimizers: Take ``--optimizer`` and ``--lr_scheduler``, and make `configure_optimizers` of them.
        load_from_checkpoint_support: Keep the parsed arguments as hyperparameters, so that `load_from_checkpoint` can
            make the module with all the objects it was given.
        **kwargs: Arguments of 1.x: ``save_config_filename``, ``save_config_overwrite``, ``save_config_multifile``,
            ``description``, ``env_prefix``, ``env_parse``.

    Attributes:
        parser: The parser.
        subcommand: Which one is run; None with ``run=False``.
        config: What was parsed.
        config_init: The same with objects made.
        config_dump: The same as plain data.
        model, datamodule, trainer: The objects. `datamodule` is None where none was asked for.

    Raises:
        MisconfigurationException: Classes or arguments that cannot work.
        SystemExit: With code 2: the command line is wrong; the message says where.
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int | None = True,
        parser_kwargs: dict[str, Any] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: Sequence[str] | dict[str, Any] | Namespace | None = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
        **kwargs: Any,
    ) -> None:
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = dict(save_config_kwargs or {})
        self.trainer_class = trainer_class
        self.trainer_defaults = dict(trainer_defaults or {})
        self.seed_everything_default = False if seed_everything_default is None else seed_everything_default
        self.parser_kwargs = dict(parser_kwargs or {})
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        self.model_class: Any = model_class
        self.datamodule_class: Any = datamodule_class
        self._model_class: Any = model_class or LightningModule
        self._datamodule_class: Any = datamodule_class or LightningDataModule
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self._keeps_arguments = load_from_checkpoint_support
        self._runs = run
        self._trainer_objects: dict[str, Any] = {}
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        self._subcommand_arguments: dict[str, list[str]] = {}
        self._take_older_arguments(kwargs)
        _import_known_classes()
        main_kwargs, subparser_kwargs = self._setup_parser_kwargs(self.parser_kwargs)
        self.setup_parser(run, main_kwargs, subparser_kwargs)
        self.subcommand: str | None = None
        self._parse(args)
        self._set_seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        if self.subcommand is not None:
            self._run_subcommand(self.subcommand)

    # ------------------------------------------------------------------------------------------------ the parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser with the arguments of every one: configuration files and the seed."""
        parser = self.parser_class(**kwargs)
        parser.add_core_arguments(seed=self.seed_everything_default)
        return parser

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Make `parser`, with subcommands or with all arguments itself."""
        if not add_subcommands:
            self.parser = self.init_parser(**main_kwargs)
            self._add_arguments(self.parser)
            return
        self.parser = self.parser_class(**main_kwargs)
        self.parser.add_config_argument()
        self._add_subcommands(self.parser, **subparser_kwargs)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Kept for programs that override it; `init_parser` adds what every parser has."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of Trainer, module and datamodule."""
        self.add_trainer_arguments_to_parser(parser)
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=self.subclass_mode_model)
        parser.add_lightning_class_args(
            self._datamodule_class,
            "data",
            subclass_mode=self.subclass_mode_data,
            required=self.datamodule_class is not None,
        )

    def add_trainer_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of the Trainer, with `trainer_defaults`."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_older_trainer_arguments(self.trainer_class)
        for name, value in self.trainer_defaults.items():
            if name == "callbacks":
                continue
            try:
                parser.set_defaults({f"trainer.{name}": value})
            except ValueError:  # an object: it has no form that a file could hold
                self._trainer_objects[name] = value

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Override to add arguments, defaults and links of your own; called for each subcommand's parser."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Methods of the Trainer that can be run, each with the arguments that are no options."""
        return {name: set(skipped) for name, skipped in _SUBCOMMANDS.items()}

    @staticmethod
    def link_optimizers_and_lr_schedulers(parser: LightningArgumentParser) -> None:
        """Send the options of optimizers and schedulers to the arguments that `link_to` names."""
        parser.link_torch_classes()

    def _setup_parser_kwargs(self, parser_kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        names = self.subcommands()
        main = {name: value for name, value in parser_kwargs.items() if name not in names}
        return main, {name: value for name, value in parser_kwargs.items() if name in names}

    def _take_older_arguments(self, kwargs: dict[str, Any]) -> None:
        """Arguments of 1.x, brought to the place where they are now."""
        saved = {"save_config_filename": "config_filename", "save_config_overwrite": "overwrite"}
        saved["save_config_multifile"] = "multifile"
        parsed = {"description": "description", "env_prefix": "env_prefix", "env_parse": "default_env"}
        for name, value in kwargs.items():
            if name in saved:
                self.save_config_kwargs.setdefault(saved[name], value)
            elif name in parsed:
                self.parser_kwargs.setdefault(parsed[name], value)
            else:
                known = [*inspect.signature(LightningCLI).parameters, *saved, *parsed]
                raise UnknownArgumentError(f"LightningCLI has no argument {name!r}.{nearest_name(name, known)}")

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.add_core_arguments_to_parser(parser)
        self.add_default_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser.optimizers:
                parser.add_optimizer_args((Optimizer,))
            if not parser.lr_schedulers:
                parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        self.link_optimizers_and_lr_schedulers(parser)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        group = parser.add_subcommands()
        for name in self.subcommands():
            own = dict(kwargs.get(name, {}))
            purpose = own.setdefault("description", _PURPOSES.get(name, f"Run {name} of the Trainer."))
            subparser = self._prepare_subcommand_parser(self.trainer_class, name, **own)
            group.add_subcommand(name, subparser, help=purpose)
            self._subcommand_parsers[name] = subparser

    def _prepare_subcommand_parser(self, klass: Any, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        skipped = set(self.subcommands()[subcommand])
        owner = klass if isinstance(klass, type) else Trainer
        known = inspect.signature(getattr(owner, subcommand)).parameters
        self._subcommand_arguments[subcommand] = parser.add_method_arguments(
            owner, subcommand, skip={name for name in skipped if name in known}, fail_untyped=False
        )
        return parser

    # ------------------------------------------------------------------------------------------------- parsing

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`, or the process's own options, into `config`."""
        if args is not None and any(word.startswith("-") for word in sys.argv[1:]):
            rank_zero_warn(
                f"LightningCLI(args=...) is what counts; the options of the command line are not read: {sys.argv[1:]}. "
                "Leave out args to read them.",
                PossibleUserWarning,
            )
        if isinstance(args, (dict, Namespace)):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args)

    def _parse(self, args: Any) -> None:
        """Parse, with the hyperparameters of a checkpoint under explicit options."""
        given = self._with_checkpoint(args, resumed.find_path(args)) if self._runs else args
        self.parse_arguments(self.parser, given)
        self.subcommand = self.config["subcommand"] if self._runs else None
        if self.subcommand is None or given is not args:
            return
        # A file or the environment may name the checkpoint, and options may import what it needs.
        given = self._with_checkpoint(args, self.config[self.subcommand].get("ckpt_path"), is_last=True)
        if given is not args:
            self.config = self.parser.parse_object(given) if isinstance(given, dict) else self.parser.parse_args(given)

    def _with_checkpoint(self, args: Any, path: Any, *, is_last: bool = False) -> Any:
        """`args` with the hyperparameters of the checkpoint at `path` among them; `args` itself where it has none."""
        words = args.as_dict() if isinstance(args, Namespace) else sys.argv[1:] if args is None else args
        subcommand = resumed.find_subcommand(words, self._subcommand_parsers)
        hparams = resumed.read_hparams(path)
        if subcommand is None or not hparams:
            return args
        parser = self._subcommand_parsers[subcommand]
        try:
            config = resumed.as_configuration(parser, hparams, subclass_mode=self.subclass_mode_model)
        except CheckpointRefusedError:
            if is_last:
                raise
            return args
        if not config:
            return args
        if isinstance(words, dict):
            return {**resumed.merge(words, {subcommand: config}), "subcommand": subcommand}
        start = list(words).index(subcommand) + 1
        return [*words[:start], *resumed.insert(words[start:], config)]

    def _set_seed(self) -> None:
        config = self._own_config
        seed = config["seed_everything"]
        if seed is False or seed is None:
            return
        config["seed_everything"] = seed_everything(None if seed is True else seed, workers=True, verbose=False)

    @property
    def _own_config(self) -> Namespace:
        """The part of `config` that the subcommand has."""
        own: Namespace = self.config if self.subcommand is None else self.config[self.subcommand]
        return own

    @property
    def config_dump(self) -> dict[str, Any]:
        """The configuration as plain data."""
        parser = self._parser(self.subcommand)
        everything = {"skip_link_targets": False, "skip_unset": False, "skip_validation": True}
        return dict(yaml.safe_load(parser.dump(self._own_config, format="yaml", **everything)) or {})

    def _parser(self, subcommand: str | None) -> LightningArgumentParser:
        return self.parser if subcommand is None else self._subcommand_parsers[subcommand]

    def _get(self, config: Namespace, key: str, default: Any = None) -> Any:
        """A value of the configuration, under the subcommand where there is one."""
        return config.get(key if self.subcommand is None else f"{self.subcommand}.{key}", default)

    # ------------------------------------------------------------------------------------------------- objects

    def before_instantiate_classes(self) -> None:
        """Override for what must happen between parsing and the making of objects."""

    def instantiate_classes(self) -> None:
        """Make module, datamodule and Trainer."""
        makers = [(self._make, LightningModule, True), (self._make, LightningDataModule, True)]
        with self._told_in_one_line():
            if not self._own_config.get("trainer.plugins"):  # which may have a CheckpointIO with places of its own
                resumed.require_file(self._own_config.get("ckpt_path"))
            self.config_init = self.parser.instantiate(self.config, instantiators=makers)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._configure_optimizers_of(self.model)
        with self._told_in_one_line():
            self.trainer = self.instantiate_trainer()

    def _told_in_one_line(self) -> AbstractContextManager[None]:
        return told_in_one_line(self._parser(self.subcommand), self._own_config.as_dict())

    def after_instantiate_classes(self) -> None:
        """Override for what must happen between the making of objects and the run."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer.

        Args:
            **kwargs: Arguments that win over those of the configuration.
        """
        added = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        config = self._get(self.config_init, "trainer", Namespace())
        given = config.as_dict() if isinstance(config, Namespace) else dict(config)
        return self._instantiate_trainer({**given, **kwargs}, [callback for callback in added if callback is not None])

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        config["callbacks"] = [
            *as_list(config.get("callbacks")),
            *callbacks,
            *as_list(self.trainer_defaults.get("callbacks")),
        ]
        if self.save_config_callback is not None and not config.get("fast_dev_run"):
            config["callbacks"].append(
                self.save_config_callback(self._parser(self.subcommand), self._own_config, **self.save_config_kwargs)
            )
        for name, value in self._trainer_objects.items():
            if name not in self._own_config["trainer"] or self._own_config["trainer"][name] is None:
                config[name] = value
        parameters = inspect.signature(self.trainer_class).parameters
        return self.trainer_class(**{k: v for k, v in config.items() if not _is_default(v, parameters.get(k))})

    def _make(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        """Make a module or datamodule; it keeps the parsed arguments as its hyperparameters."""
        if not self._keeps_arguments:
            return class_type(*args, **kwargs)
        with self._keeping(class_type, kwargs):
            return class_type(*args, **kwargs)

    @contextmanager
    def _keeping(self, cls: type, arguments: Mapping[str, Any]) -> Iterator[None]:
        key = "model" if issubclass(cls, LightningModule) else "data"
        is_named = self.subclass_mode_model if key == "model" else self.subclass_mode_data
        config = self.config_dump.get(key) or {}
        marks = {INSTANTIATOR: INSTANTIATOR_NAME}
        if is_named and isinstance(config, dict):
            marks[CLASS_PATH] = config.get("class_path", "")
            config = config.get("init_args") or {}
        linked = {k: v for k, v in arguments.items() if k not in config and isinstance(v, (int, float, str, bool))}
        token = parsed_arguments.set(ParsedArguments(cls, {**config, **linked}, marks))
        try:
            yield
        finally:
            parsed_arguments.reset(token)

    # ----------------------------------------------------------------------------------------------- optimizers

    @staticmethod
    def configure_optimizers(lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        """What the module's `configure_optimizers` returns. Override for other intervals, monitors and the like.

        Args:
            lightning_module: The module.
            optimizer: Of ``--optimizer``.
            lr_scheduler: Of ``--lr_scheduler``, or None.
        """
        return as_configured(optimizer, lr_scheduler)

    def _configure_optimizers_of(self, model: LightningModule) -> None:
        """Replace `configure_optimizers` of the module by what the configuration says."""
        if not self.auto_configure_optimizers:
            return
        replace_configure_optimizers(
            model,
            self._parser(self.subcommand),
            values=lambda key: self._get(self.config_init, key),
            configure=self.configure_optimizers,
        )

    # ------------------------------------------------------------------------------------------------- the run

    def _run_subcommand(self, subcommand: str) -> None:
        for when in ("before", "after"):
            if when == "after":
                self._call(subcommand)
            hook = getattr(self, f"{when}_{subcommand}", None)
            if callable(hook):
                hook()

    def _call(self, subcommand: str) -> None:
        own = getattr(self, subcommand, None)
        function = own if callable(own) else getattr(self.trainer, subcommand)
        function(**self._prepare_subcommand_kwargs(subcommand))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        names = self._subcommand_arguments[subcommand]
        config = self.config_init[subcommand]
        kwargs = {name: config[name] for name in names if name in config}
        kwargs["model"] = self.model
        if self.datamodule is not None:
            kwargs["datamodule"] = self.datamodule
        return kwargs


def _import_known_classes() -> None:
    """Import every callback, logger and profiler of fulgur, so that each can be named without its module."""
    for package in (fulgur.callbacks, fulgur.loggers, fulgur.profilers):
        for name in package.__all__:
            if name[0].isupper():
                getattr(package, name)


def _is_default(value: Any, parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and type(value) is type(parameter.default) and value == parameter.default
