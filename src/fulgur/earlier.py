"""What programs find on a Trainer besides its own surface: the names of 1.x, and parts they look into.

Nothing of fulgur's own uses it, and nothing here runs in a step.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from fulgur import saving
from fulgur.checkpoint import state as checkpoint_state
from fulgur.resolve.arguments import apply_environment
from fulgur.resolve.callbacks import order_callbacks
from fulgur.resolve.legacy import LEGACY_NAMES

if TYPE_CHECKING:
    from fulgur.datamodule import LightningDataModule
    from fulgur.trainer import Trainer
    from fulgur.tuner import Tuner

T = TypeVar("T")


class EarlierTrainer:
    """The surface of 1.x, and views of parts that are private there and read all the same."""

    OLDER_ARGUMENTS: ClassVar[tuple[str, ...]] = LEGACY_NAMES
    """Arguments of 1.x, which are accepted beside today's."""

    @property
    def _own(self) -> Trainer:
        return cast("Trainer", self)

    # ------------------------------------------------------------------------------------ options of a command line

    @classmethod
    def add_argparse_args(
        cls, parent_parser: ArgumentParser, *, use_argument_group: bool = True, **kwargs: Any
    ) -> ArgumentParser:
        """Add an option for each argument, those of 1.x too; see `fulgur.argparsing.add_arguments`."""
        from fulgur import argparsing

        return argparsing.add_arguments(cls, parent_parser, use_argument_group=use_argument_group, **kwargs)

    @classmethod
    def from_argparse_args(cls: type[T], args: Namespace | ArgumentParser, **kwargs: Any) -> T:
        """Make a Trainer of parsed options; `kwargs` win over them."""
        from fulgur import argparsing

        return argparsing.from_arguments(cls, args, **kwargs)

    @classmethod
    def parse_argparser(cls, arg_parser: ArgumentParser | Namespace) -> Namespace:
        """The options as values."""
        from fulgur import argparsing

        return argparsing.parse_arguments(cls, arg_parser)

    @classmethod
    def get_init_arguments_and_types(cls) -> list[tuple[str, tuple[Any, ...], Any]]:
        """Name, types and default of each argument."""
        from fulgur import argparsing

        return argparsing.arguments_and_types(cls)

    @classmethod
    def default_attributes(cls) -> dict[str, Any]:
        """Default of each argument."""
        return {name: default for name, _, default in cls.get_init_arguments_and_types()}

    @classmethod
    def match_env_arguments(cls) -> Namespace:
        """Arguments that ``PL_TRAINER_<ARGUMENT>`` in the environment gives."""
        return Namespace(**apply_environment({}))

    # ------------------------------------------------------------------------------------------------ names of 1.x

    def tune(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        scale_batch_size_kwargs: dict[str, Any] | None = None,
        lr_find_kwargs: dict[str, Any] | None = None,
        method: str = "fit",
        *,
        train_dataloader: Any = None,
    ) -> dict[str, Any]:
        """Look for a learning rate or batch size where ``auto_lr_find`` or ``auto_scale_batch_size`` ask for it.

        Args:
            model, train_dataloaders, val_dataloaders, dataloaders, datamodule, method: As for `fulgur.tuner.Tuner`.
            scale_batch_size_kwargs, lr_find_kwargs: More arguments of its methods.
            train_dataloader: The earlier name of `train_dataloaders`.

        Returns:
            Under ``"scale_batch_size"`` the size, under ``"lr_find"`` what was measured; those that were asked for.

        Raises:
            MisconfigurationException, ValueError: See `Tuner`.
        """
        from fulgur.tuner.earlier import tune

        train = train_dataloaders if train_dataloaders is not None else train_dataloader
        data = {"train_dataloaders": train, "val_dataloaders": val_dataloaders, "dataloaders": dataloaders}
        return tune(
            self._own,
            model,
            data | {"datamodule": datamodule, "method": method},
            auto_lr_find=self._own._legacy.auto_lr_find,
            auto_scale_batch_size=self._own._legacy.auto_scale_batch_size,
            scale_batch_size_kwargs=scale_batch_size_kwargs,
            lr_find_kwargs=lr_find_kwargs,
        )

    @property
    def tuner(self) -> Tuner:
        """A `fulgur.tuner.Tuner` of this Trainer."""
        from fulgur.tuner import Tuner

        return Tuner(self._own)

    @property
    def tuning(self) -> bool:
        """Whether a tuner tries something out."""
        return self._own._is_trial

    @property
    def auto_lr_find(self) -> bool | str:
        """What `tune` looks for a learning rate with; set it to False to leave it out."""
        return self._own._legacy.auto_lr_find

    @auto_lr_find.setter
    def auto_lr_find(self, value: bool | str) -> None:
        self._own._legacy.auto_lr_find = value

    @property
    def auto_scale_batch_size(self) -> str | bool | None:
        """How `tune` looks for a batch size; set it to False to leave it out."""
        return self._own._legacy.auto_scale_batch_size

    @auto_scale_batch_size.setter
    def auto_scale_batch_size(self, value: Any) -> None:
        self._own._legacy.auto_scale_batch_size = value

    @property
    def lr_schedulers(self) -> list[dict[str, Any]]:
        """`lr_scheduler_configs` as dicts."""
        names = ("scheduler", "name", "interval", "frequency", "reduce_on_plateau", "monitor", "strict", "opt_idx")
        return [{name: getattr(c, name) for name in names if hasattr(c, name)} for c in self._own.lr_scheduler_configs]

    @property
    def progress_bar_dict(self) -> dict[str, Any]:
        """What the bar shows."""
        bar = self._own.progress_bar_callback
        shown: dict[str, Any] = {} if bar is None else bar.get_metrics(self._own, self._own.lightning_module)
        return shown or dict(self._own.progress_bar_metrics)

    @property
    def training_type_plugin(self) -> Any:
        """The name of `strategy` in 1.4 and 1.5."""
        return self._own.strategy

    @property
    def running_sanity_check(self) -> bool:
        """The name of `sanity_checking` in 1.0 and 1.1."""
        return self._own.sanity_checking

    @property
    def fitting(self) -> bool:
        """Whether fit runs."""
        return self._own.state.fn == "fit"

    @property
    def train_loop(self) -> Any:
        """The name of `fit_loop` in 1.0 to 1.2."""
        return self._own.fit_loop

    @property
    def batch_idx(self) -> int:
        """Index of the training batch that runs or ran last; -1 before the first."""
        return self._own.fit_loop.batch_idx

    @property
    def total_batch_idx(self) -> int:
        """The same counted over all epochs."""
        return self._own.fit_loop.total_batch_idx

    @property
    def distributed_backend(self) -> str | None:
        """What joins the processes: "ddp", "fsdp", …; None on one process."""
        kind = type(self._own.strategy).__name__
        return kind.removesuffix("Strategy").lower() if self._own.strategy.is_distributed else None

    @property
    def accelerator_backend(self) -> Any:
        """The name of `accelerator` in 1.0 and 1.1."""
        return self._own.accelerator

    @property
    def prediction_writer_callbacks(self) -> list[Any]:
        """Callbacks that write predictions."""
        from fulgur.callbacks import BasePredictionWriter

        return [callback for callback in self._own.callbacks if isinstance(callback, BasePredictionWriter)]

    @property
    def gpus(self) -> int:
        """GPUs of this machine that the Trainer uses."""
        return sum(device.type == "cuda" for device in self._own._devices)

    num_gpus = gpus

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on GPUs."""
        return self.gpus > 0

    @property
    def root_gpu(self) -> int | None:
        """Index of this process's GPU."""
        device = self._own.strategy.root_device
        return (device.index or 0) if device.type == "cuda" else None

    @property
    def num_processes(self) -> int:
        """Processes on this machine."""
        return self._own.num_devices

    @property
    def data_parallel_device_ids(self) -> list[int] | None:
        """Indices of the GPUs; None without."""
        return self._own.device_ids if self.on_gpu else None

    @property
    def use_amp(self) -> bool:
        """Whether steps run in mixed precision."""
        return "mixed" in self._own.precision

    @property
    def amp_backend(self) -> str | None:
        """What does mixed precision."""
        return "native" if self.use_amp else None

    @property
    def disable_validation(self) -> bool:
        """Whether fit does not validate."""
        return not self._own.enable_validation

    @property
    def weights_save_path(self) -> str:
        """Where checkpoints go that name no directory."""
        path = self._own._legacy.weights_save_path
        return self._own.default_root_dir if path is None else os.fspath(path)

    @property
    def resume_from_checkpoint(self) -> Any:
        """The file that `fit` resumes from by the argument of 1.x."""
        return self._own._legacy.resume_from_checkpoint

    @property
    def slurm_job_id(self) -> int | None:
        """Number of the job under SLURM."""
        number = os.environ.get("SLURM_JOB_ID", "")
        return int(number) if number.isdecimal() else None

    def get_model(self) -> Any:
        """The bare module."""
        return self._own.lightning_module

    def is_overridden(self, name: str, model: Any = None) -> bool:
        """Whether the module defines a hook itself."""
        from fulgur.hooks import overrides
        from fulgur.module import LightningModule

        return overrides(model or self._own.lightning_module, name, LightningModule)

    # --------------------------------------------------------------------------- parts that programs look into

    @property
    def _model(self) -> Any:
        return self.__dict__.get("_given_model", self._own._module)

    @_model.setter
    def _model(self, model: Any) -> None:
        self.__dict__["_given_model"] = model  # some packages keep what they call a model there

    @property
    def _accelerator_connector(self) -> AcceleratorView:
        return AcceleratorView(self._own)

    @property
    def _checkpoint_connector(self) -> CheckpointView:
        return CheckpointView(self._own)

    @property
    def _callback_connector(self) -> CallbackView:
        return CallbackView(self._own)

    @property
    def _results(self) -> ResultsView:
        return ResultsView(self._own)

    @property
    def _evaluation_loop(self) -> Any:
        own = self._own
        if own.testing:
            return own.test_loop
        return own._val_loop if own.state.fn == "fit" else own.validate_loop


class AcceleratorView:
    """``trainer._accelerator_connector``: what the arguments came to."""

    def __init__(self, trainer: Trainer) -> None:
        self.strategy, self.accelerator = trainer.strategy, trainer.accelerator
        self.precision_plugin, self.num_nodes = trainer.precision_plugin, trainer.num_nodes
        self.parallel_devices = self._parallel_devices = list(trainer._devices)
        self.parallel_device_ids = trainer.device_ids
        self.cluster_environment = getattr(trainer.strategy, "cluster_environment", None)
        self.is_distributed = trainer.world_size > 1
        self.use_distributed_sampler = trainer._settings.use_distributed_sampler
        self.devices = trainer.num_devices
        self._devices_flag: int | list[int] = self.devices
        if self.parallel_device_ids and trainer.strategy.root_device.type != "cpu":
            self._devices_flag = list(self.parallel_device_ids)
        self._accelerator_flag: Any = _name_of(trainer.accelerator)


def _name_of(accelerator: Any) -> Any:
    """The argument that asks for one of ours; the accelerator itself where it is the user's own."""
    is_ours = type(accelerator).__module__ == "fulgur.accelerators"
    return accelerator.name if is_ours else accelerator


class CheckpointView:
    """``trainer._checkpoint_connector``: a checkpoint built or restored piece by piece."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._loaded_checkpoint: dict[str, Any] = trainer.__dict__.setdefault("_restoring", {})

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a checkpoint of the run as it stands."""
        return saving.build_checkpoint(self.trainer, weights_only=bool(weights_only))

    def save_checkpoint(self, filepath: Any, weights_only: bool | None = None, storage_options: Any = None) -> None:
        """`Trainer.save_checkpoint`."""
        self.trainer.save_checkpoint(filepath, weights_only, storage_options)

    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        """Read the file that the following calls restore from."""
        if checkpoint_path is not None:
            self._loaded_checkpoint.update(
                self.trainer.strategy.load_checkpoint(checkpoint_path, weights_only=weights_only)
            )

    def restore_model(self) -> None:
        """Give back weights, datamodule and callbacks."""
        if self._loaded_checkpoint:
            contents = saving.contents_of(self.trainer)
            strict = self.trainer.lightning_module.strict_loading
            checkpoint_state.restore_model(self._loaded_checkpoint, contents, source=None, strict=strict)

    def restore_datamodule(self) -> None:
        """Nothing is left to do after `restore_model`."""

    def restore_callbacks(self) -> None:
        """Nothing is left to do after `restore_model`."""

    def restore_training_state(self) -> None:
        """Give back counters, optimizers and schedulers."""
        if self._loaded_checkpoint:
            checkpoint_state.restore_training(self._loaded_checkpoint, saving.contents_of(self.trainer))

    def resume_end(self) -> None:
        """Forget the file."""
        self._loaded_checkpoint.clear()


class CallbackView:
    """``trainer._callback_connector``: the order of callbacks."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @staticmethod
    def _reorder_callbacks(callbacks: list[Any]) -> list[Any]:
        return order_callbacks(callbacks)


class ResultsView:
    """``trainer._results``: what is being logged."""

    DATALOADER_SUFFIX = "/dataloader_idx_{}"

    def __init__(self, trainer: Trainer) -> None:
        self.result_metrics: list[Any] = []
        self.batch, self.batch_size = trainer.metrics.batch, trainer.metrics.batch_size
        self.device = trainer.strategy.root_device
