"""Trainer: its arguments, its entry points, and what can be read from it during and after a run.

Nothing here runs per step. `run.py` tells what an entry point does, `loops/fit.py` what a step does.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from fulgur import resolve, run, saving, sources
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.connect import has_own_parts
from fulgur.earlier import EarlierTrainer
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback, earlier_hooks
from fulgur.launching import Ranks
from fulgur.loops.evaluate import EvaluationLoop
from fulgur.loops.fit import FitLoop
from fulgur.loops.limits import Limits
from fulgur.loops.predict import PredictLoop
from fulgur.metrics import MetricLog
from fulgur.module import LightningModule
from fulgur.profilers.profiler import PassThroughProfiler, Profiler, measured
from fulgur.states import RunningStage, TrainerFn, TrainerState, TrainerStatus

if TYPE_CHECKING:
    from fulgur.accelerators import Accelerator
    from fulgur.agreement import Agreement
    from fulgur.checkpoint.io import CheckpointIO
    from fulgur.datamodule import LightningDataModule
    from fulgur.launch.environments.environment import ClusterEnvironment
    from fulgur.leaving import BeforeValidation
    from fulgur.loggers.logger import Logger
    from fulgur.loops.feed import Feed
    from fulgur.precision import Precision
    from fulgur.strategies.strategy import Strategy
    from fulgur.trials import Trial

    _Plugin = Precision | CheckpointIO | ClusterEnvironment | str


class Trainer(EarlierTrainer, Ranks):
    """Runs a `LightningModule`: loops, device, precision, logging, checkpoints.

    Every argument has a default; ``PL_TRAINER_<ARGUMENT>`` in the environment supplies others. The arguments of 1.x
    (``gpus``, ``checkpoint_callback``, ``resume_from_checkpoint``, …) are accepted and mean what they meant.

    Args:
        accelerator: "auto", "cpu", "cuda", "gpu" or "mps", or an `Accelerator`.
        strategy: "auto" (one process, or "ddp"), "single_device", "ddp", "ddp_spawn", "ddp_notebook", "fsdp" or
            another name of the `StrategyRegistry`, or a `Strategy`.
        devices: How many on each machine, or which: a number, a list of indices, "auto". Each has a process of its
            own. "auto" takes what torchrun, SLURM or the like has started, else all GPUs, or one process on the CPU.
        num_nodes: Machines. >= 1.
        precision: "32-true", "64-true", "bf16-true", "16-true", "bf16-mixed" or "16-mixed" (CUDA only).
        logger: A `Logger`, several, True for the default one (TensorBoard where installed, else CSV), or False.
        callbacks: A `Callback` or a list of them.
        fast_dev_run: Run this many batches (True: 1) of everything, without logs and checkpoints, to find errors.
        max_epochs: None means 1000, or no limit where steps or time are limited; -1 means no limit.
        min_epochs: Epochs before `should_stop` takes effect.
        max_steps: In units of `global_step`; -1 means no limit.
        min_steps: Steps before `should_stop` takes effect.
        max_time: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments.
        limit_train_batches: Batches of an epoch: an int counts, a float from 0 to 1 is a fraction. The same for val,
            test and predict.
        overfit_batches: Train and validate on this many batches (or this fraction) in fixed order.
        val_check_interval: Validate after this fraction of an epoch (float), this many batches (int), or this time.
        check_val_every_n_epoch: Validate every n epochs only; None counts `val_check_interval` across epochs.
        num_sanity_val_steps: Validation batches run before training, to find errors early; -1 runs all.
        log_every_n_steps: Steps between two rows of step values in the loggers; 0 for none.
        enable_checkpointing: Save a checkpoint every epoch, unless a `ModelCheckpoint` says otherwise.
        enable_progress_bar: Show progress.
        enable_model_summary: Print layers and sizes when fit starts.
        accumulate_grad_batches: Batches to an optimizer step; a short last window is averaged over its true length.
        gradient_clip_val: Largest norm (or value) of gradients. None or 0: no clipping.
        gradient_clip_algorithm: "norm" or "value".
        deterministic: Demand deterministic algorithms of torch while a run lasts; "warn" only warns.
        benchmark: ``torch.backends.cudnn.benchmark`` while a run lasts.
        inference_mode: Use `torch.inference_mode` rather than `torch.no_grad` in validate, test and predict.
        use_distributed_sampler: Split samples over processes. False where loaders give each its own by themselves.
        profiler: "simple", "advanced" or a `Profiler`.
        detect_anomaly: Run fit under autograd's anomaly detection.
        barebones: Switch off everything that costs time: checkpoints, loggers, bar, summary, sanity check, `self.log`.
        plugins: A `Precision`, a `CheckpointIO` such as `AsyncCheckpointIO`, a `ClusterEnvironment`, or a list.
        sync_batchnorm: Share batch statistics over processes.
        reload_dataloaders_every_n_epochs: Ask for new loaders this often; 0 loads them once.
        default_root_dir: Where logs and checkpoints go; None is the working directory.
        enable_autolog_hparams: Send hyperparameters and graph to the loggers.
        model_registry: Accepted for compatibility.
        uneven_loaders: What is done where loaders that are not split by the Trainer have other lengths on other ranks:
            "join" lets the short ranks take part in the steps of the others without counting, "error" refuses them.
        **kwargs: Arguments of 1.x.

    Raises:
        UnknownArgumentError: An argument nobody knows; the message names the nearest one.
        MisconfigurationException: Values that cannot work, or not together.
        ValueError, TypeError: Values out of range, or of a wrong type.
    """

    def __init__(
        self,
        *args: Any,
        accelerator: Accelerator | str = "auto",
        strategy: Strategy | str | None = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: _Plugin | list[_Plugin] | None = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        uneven_loaders: Literal["join", "error"] = "join",
        **kwargs: Any,
    ) -> None:
        named = {k: v for k, v in locals().items() if k not in ("self", "args", "kwargs")}
        given = {k: v for k, v in named.items() if v is not _DEFAULTS[k]} | kwargs
        settings, legacy = resolve.read_arguments(args, given)
        self._assign_arguments(settings)
        self._assign_parts(settings, legacy)
        for hook in ("on_init_start", "on_init_end"):
            for call in earlier_hooks(hook, self.callbacks, self):
                call()

    def _assign_arguments(self, settings: resolve.Settings) -> None:
        self.fast_dev_run = settings.fast_dev_run
        self.overfit_batches = settings.overfit_batches
        self.limit_train_batches = settings.limit_train_batches
        self.limit_val_batches = settings.limit_val_batches
        self.limit_test_batches = settings.limit_test_batches
        self.limit_predict_batches = settings.limit_predict_batches
        self.gradient_clip_val = settings.gradient_clip_val
        self.gradient_clip_algorithm = settings.gradient_clip_algorithm
        self.barebones = settings.barebones
        self.enable_autolog_hparams = settings.enable_autolog_hparams

    def _assign_parts(self, settings: resolve.Settings, legacy: resolve.LegacySettings) -> None:
        self._settings: resolve.Settings = settings
        self._legacy: resolve.LegacySettings = legacy
        self.state = TrainerState()
        self.metrics = MetricLog()

        processes = resolve.resolve_processes(settings)
        self.accelerator, self._devices, self._num_nodes = (
            processes.accelerator,
            processes.devices,
            processes.num_nodes,
        )
        self.precision_plugin: Precision = resolve.resolve_precision(
            settings.precision,
            settings.plugins,
            self._devices[0].type,
            own=getattr(settings.strategy, "own_precision", None),
        )
        self.strategy = resolve.resolve_strategy(settings, processes)
        self.strategy.precision_plugin, self.strategy.accelerator = self.precision_plugin, self.accelerator
        self.strategy.layer_sync = resolve.resolve_layer_sync(settings.plugins, sync_batchnorm=settings.sync_batchnorm)
        if has_own_parts(self):
            from fulgur.own_parts import bind_strategy

            bind_strategy(self.strategy)
        checkpoint_io = resolve.resolve_checkpoint_io(settings.plugins)
        if checkpoint_io is not None:
            self.strategy.checkpoint_io = checkpoint_io
        self.loggers: list[Logger] = resolve.resolve_loggers(
            settings.logger,
            settings.default_root_dir,
            settings.fast_dev_run,
            flush_every_n_steps=self._legacy.flush_logs_every_n_steps,
        )
        self.callbacks: list[Callback] = resolve.resolve_callbacks(settings, self._legacy)
        self.profiler: Profiler = resolve.resolve_profiler(settings.profiler) or PassThroughProfiler()
        if settings.deterministic:  # order matters: cuBLAS reads it once, when it starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

        self.fit_loop = FitLoop(_limits(settings))
        self._val_loop = EvaluationLoop("validation")  # in fit; validate() has its own counters
        self.fit_loop.val_loop = self._val_loop
        self.validate_loop, self.test_loop = EvaluationLoop("validation"), EvaluationLoop("test")
        self.predict_loop = PredictLoop()

        self.datamodule: LightningDataModule | None = None
        self._module: LightningModule | None = None
        self._feeds: dict[str, Feed] = {}
        self._loaded_at: dict[str, int] = {}
        self._call: sources.Call | None = None
        self._has_set_up = False
        self._signals: set[int] = set()
        self._agreement: Agreement | None = None
        self._before_validation: BeforeValidation | None = None
        self._saved: tuple[str, dict[str, Any]] | None = None
        self._is_trial = False
        self._ckpt_path: Any = None
        self._loaded_ckpt_path: Any = None

    # --------------------------------------------------------------------------------------------- entry points

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        *,
        train_dataloader: Any = None,
    ) -> None:
        """Train.

        Args:
            model: What to train.
            train_dataloaders: A loader, or a list or dict of them; None asks datamodule or module. A
                `LightningDataModule` may stand here too.
            val_dataloaders: Likewise for validation.
            datamodule: Where loaders come from.
            ckpt_path: Resume from this file: a path, "best", "last", or "hpc" (saved before a requeue by SLURM).
                "auto" is the newest whole checkpoint of this run, or a fresh start where there is none.
            weights_only: None and True execute nothing from the file; False unpickles it, for files you trust.
            train_dataloader: The 1.x name of `train_dataloaders`.

        Raises:
            MisconfigurationException: Something is missing, or contradicts something else.
            TypeError: `model` is no LightningModule.
            FileNotFoundError: There is no file at `ckpt_path`.
        """
        train, datamodule = _split_datamodule(_either(train_dataloaders, train_dataloader), datamodule)
        _refuse_both(datamodule, train_dataloaders=train, val_dataloaders=val_dataloaders)
        call = sources.Call(TrainerFn.FITTING, model, datamodule, ckpt_path, weights_only)
        call.sources = {"train": train, "val": val_dataloaders}
        run.fit(self, call)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        *,
        val_dataloaders: Any = None,
    ) -> list[dict[str, float]]:
        """Evaluate on the validation set.

        Args:
            model: What to evaluate. None takes the attached one, with its best checkpoint where there is one.
            dataloaders: A loader, or a list or dict of them; None asks datamodule or module.
            ckpt_path: Load weights from this file first: a path, "best" or "last".
            verbose: Print the results as a table.
            datamodule: Where loaders come from.
            weights_only: As for `fit`.
            val_dataloaders: The 1.x name of `dataloaders`.

        Returns:
            For each loader what was logged, by key.

        Raises:
            MisconfigurationException: Something is missing, or contradicts something else.
            TypeError: There is no model, or it is no LightningModule.
        """
        loaders = _either(dataloaders, val_dataloaders)
        return self._evaluate(TrainerFn.VALIDATING, model, loaders, ckpt_path, verbose, datamodule, weights_only)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        *,
        test_dataloaders: Any = None,
    ) -> list[dict[str, float]]:
        """Evaluate on the test set; see `validate`. After `fit` no argument is needed."""
        loaders = _either(dataloaders, test_dataloaders)
        return self._evaluate(TrainerFn.TESTING, model, loaders, ckpt_path, verbose, datamodule, weights_only)

    def _evaluate(
        self, fn: TrainerFn, model: Any, loaders: Any, ckpt_path: Any, verbose: bool, datamodule: Any, weights_only: Any
    ) -> list[dict[str, float]]:
        loaders, datamodule = _split_datamodule(loaders, datamodule)
        _refuse_both(datamodule, dataloaders=loaders)
        call = sources.Call(fn, model, datamodule, ckpt_path, weights_only, is_verbose=verbose)
        call.sources = {"val" if fn is TrainerFn.VALIDATING else "test": loaders}
        return run.evaluate(self, call)

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | Literal["ordered"] | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """Run `predict_step` over every sample of a set.

        Args:
            model: None takes the attached one, with its best checkpoint where there is one.
            dataloaders: A loader, or a list or dict of them; None asks datamodule or module.
            datamodule: Where loaders come from.
            return_predictions: True, or None, gives each process the predictions for the batches that it got itself.
                "ordered" gives every process those of all, in the order of the dataset, with as many samples each as a
                batch of the loader. It needs predictions that can be cut into samples where batches are not in order.
            ckpt_path: Load weights from this file first: a path, "best" or "last".
            weights_only: As for `fit`.

        Returns:
            A prediction for each batch, on the host; with several loaders a list of such lists. None where
            `return_predictions` is False, or ``limit_predict_batches=0``.
        """
        loaders, datamodule = _split_datamodule(dataloaders, datamodule)
        _refuse_both(datamodule, dataloaders=loaders)
        call = sources.Call(TrainerFn.PREDICTING, model, datamodule, ckpt_path, weights_only)
        call.sources = {"predict": loaders}
        returns = True if return_predictions is None else return_predictions
        if returns not in (True, False, "ordered"):
            raise MisconfigurationException(
                f"return_predictions={return_predictions!r} is unknown. Use True, False or 'ordered'."
            )
        return run.predict(self, call, returns=returns)

    def save_checkpoint(
        self,
        filepath: str | os.PathLike[str],
        weights_only: bool | None = None,
        storage_options: Any = None,
        *,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        """Write a checkpoint of the run as it stands. All ranks must call it.

        Args:
            filepath: Path or URL.
            weights_only: Leave out everything that only training needs.
            storage_options: For plugins that write elsewhere.
            checkpoint_io: What to write with. ``None`` is the plugin of the Trainer.

        Raises:
            AttributeError: No model has been attached yet.
            CheckpointError: The file cannot be written; earlier ones are untouched.
        """
        if self._module is None:
            raise AttributeError(
                "trainer.save_checkpoint was called before a model was attached. Call it during or after "
                "fit, validate, test or predict."
            )
        if checkpoint_io is None and not weights_only and saving.is_saved_again(self, filepath):
            return
        # Between two runs the profiler is at rest.
        profiler = self.profiler if self.state.stage is not None else PassThroughProfiler()
        write = measured(profiler, self._write_checkpoint, "save_checkpoint")
        write(filepath, bool(weights_only), storage_options, checkpoint_io)

    def _write_checkpoint(
        self, filepath: Any, weights_only: bool, storage_options: Any, checkpoint_io: CheckpointIO | None
    ) -> None:
        scope, self.metrics.scope = self.metrics.scope, None  # nothing can be logged in the hooks of a checkpoint
        if not self.checkpoint_callbacks:  # with them, it was said when fit began
            saving.warn_of_refused_hparams(self)
        checkpoint = saving.build_checkpoint(self, weights_only=weights_only)
        self.metrics.scope = scope
        own = {} if checkpoint_io is None else {"checkpoint_io": checkpoint_io}
        self.strategy.save_checkpoint(checkpoint, filepath, storage_options, **own)
        self.strategy.barrier("save_checkpoint")
        is_written = not isinstance(checkpoint_io or self.strategy.checkpoint_io, AsyncCheckpointIO)
        saving.note_saved(self, filepath, is_full=is_written and not weights_only)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print from local rank 0, above the progress bar."""
        if self.local_rank == 0:
            bar = self.progress_bar_callback
            (bar.print if bar is not None and bar.is_enabled else print)(*args, **kwargs)

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Build a model on the device and in the dtype of this Trainer.

        Args:
            empty_init: Accepted for compatibility; weights are always initialised on one device.
        """
        with self.precision_plugin.init_context(), torch.device(self.strategy.root_device):
            yield

    def trial(self) -> Trial:
        """What a callback tries settings out with, within a run: ``with trainer.trial() as trial:``.

        In the block `trial` trains or evaluates for a few steps. At its end everything is as it was. All ranks must
        reach this.
        """
        from fulgur.trials import Trial

        return Trial(self)

    def search(
        self,
        method: str,
        look: Callable[[Trial], Any],
        *,
        model: LightningModule | None = None,
        loaders: dict[str, Any] | None = None,
        datamodule: LightningDataModule | None = None,
    ) -> Any:
        """Do `look` where a run would begin to loop, and leave everything as it was; see `fulgur.tuner`.

        Args:
            method: Which run: "fit", "validate", "test" or "predict".
            look: Is given the trial; what it returns is returned.
            model, datamodule: As for `fit`.
            loaders: By "train", "val", "test", "predict".
        """
        from fulgur import trials

        _refuse_both(datamodule, **(loaders or {}))
        call = sources.Call(TrainerFn(method), model, datamodule, None, None, is_verbose=False)
        call.sources = dict(loaders or {})
        return trials.search(self, call, look)

    # ----------------------------------------------------------------------------------------- counters and limits

    @property
    def global_step(self) -> int:
        """Training batches, or accumulation windows, that updated anything."""
        return self.fit_loop.progress.global_step

    @property
    def current_epoch(self) -> int:
        """Completed epochs: during an epoch its index, after fit their number."""
        return self.fit_loop.progress.epoch

    @property
    def log_step(self) -> int:
        """Axis of the loggers: `global_step` before the batch that runs or ran last."""
        return self.fit_loop.progress.log_step

    @property
    def is_logging_step(self) -> bool:
        """Whether the loggers get values for the running training batch, if it updates."""
        every = self.log_every_n_steps
        return every > 0 and (self.fit_loop.progress.log_step + 1) % every == 0

    @property
    def max_epochs(self) -> int | None:
        """Limit of `current_epoch`; -1 for none; None before the first fit where nothing was given."""
        return self.fit_loop.limits.max_epochs

    @property
    def min_epochs(self) -> int:
        """Epochs before `should_stop` takes effect."""
        return self.fit_loop.limits.min_epochs

    @property
    def max_steps(self) -> int:
        """Limit of `global_step`; -1 for none."""
        steps = self.fit_loop.limits.max_steps
        return -1 if math.isinf(steps) else int(steps)

    @property
    def min_steps(self) -> int | None:
        """Steps before `should_stop` takes effect."""
        return self.fit_loop.limits.min_steps or None

    @property
    def should_stop(self) -> bool:
        """Set it to end the training after this batch, once the minimums are met.

        Set on one of several ranks, it ends the training of all, one or two batches later.
        """
        return self.fit_loop.should_stop or (self._agreement is not None and self._agreement.wishes("stop"))

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value and self._agreement is not None:
            if not self.should_stop:
                self._agreement.request("stop")
        else:
            self.fit_loop.should_stop = bool(value)

    def agree(self, name: str, is_wanted: bool) -> bool:
        """Whether all ranks do something now that depends on what only one of them knows, such as the time.

        Exchanges nothing unless somebody wants it, and is free then, too, for the training goes on meanwhile. Call it
        after each training batch, on all ranks.

        Args:
            name: What it is about. Different things have different names.
            is_wanted: Whether this rank wants it.

        Returns:
            On one process `is_wanted`. On several True once, on all of them after the same batch, soon after any of
            them has wanted it.
        """
        return is_wanted if self._agreement is None else self._agreement.agree(name, is_wanted)

    @property
    def is_last_batch(self) -> bool:
        """Whether the running training batch is the last of its epoch."""
        fetch = getattr(self.fit_loop, "fetch", None)
        return bool(fetch.is_last) if fetch is not None else False

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches to an optimizer step; a change takes effect with the next epoch."""
        return self.fit_loop.limits.accumulate

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int) -> None:
        self.fit_loop.limits.accumulate = value

    @property
    def log_every_n_steps(self) -> int:
        """Steps between two rows of step values in the loggers; 0 for none."""
        return self.fit_loop.limits.log_every_n_steps

    @log_every_n_steps.setter
    def log_every_n_steps(self, value: int) -> None:
        self.fit_loop.limits.log_every_n_steps = value

    @property
    def val_check_interval(self) -> int | float | timedelta:
        """Fraction of an epoch (float), batches (int) or time between two validations."""
        return self.fit_loop.limits.val_check_interval

    @val_check_interval.setter
    def val_check_interval(self, value: int | float | timedelta) -> None:
        self.fit_loop.limits.val_check_interval = value

    @property
    def val_check_batch(self) -> int | float:
        """Batches between two validations; ``inf`` before the loader is there, and where time decides."""
        return self.fit_loop.val_every

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """Epochs between two that validate; None counts batches across epochs."""
        return self.fit_loop.limits.check_val_every_n_epoch

    @check_val_every_n_epoch.setter
    def check_val_every_n_epoch(self, value: int | None) -> None:
        self.fit_loop.limits.check_val_every_n_epoch = value

    @property
    def num_sanity_val_steps(self) -> int | float:
        """Validation batches before training; ``inf`` for all."""
        return self.fit_loop.limits.n_sanity_batches

    @num_sanity_val_steps.setter
    def num_sanity_val_steps(self, value: int | float) -> None:
        self.fit_loop.limits.n_sanity_batches = value

    @property
    def reload_dataloaders_every_n_epochs(self) -> int:
        """Epochs between two requests for new loaders; 0 loads them once."""
        return self.fit_loop.limits.reload_every_n_epochs

    @reload_dataloaders_every_n_epochs.setter
    def reload_dataloaders_every_n_epochs(self, value: int) -> None:
        self.fit_loop.limits.reload_every_n_epochs = value

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole training; ``inf`` or `max_steps` where it has no end by epochs.

        Loads the training loader if that has not happened yet.
        """
        return sources.estimate_steps(self)

    # ---------------------------------------------------------------------------------------------------- loaders

    @property
    def num_training_batches(self) -> int | float:
        """Batches of a training epoch; ``inf`` before the loader is there, and for one without a length."""
        return self._feeds["train"].n_batches[0] if "train" in self._feeds else math.inf

    @property
    def num_val_batches(self) -> list[int | float]:
        """Validation batches of each loader."""
        return list(self._feeds["val"].n_batches) if "val" in self._feeds else []

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each loader in the check before training."""
        return [min(n, self.num_sanity_val_steps) for n in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[int | float]:
        """Test batches of each loader."""
        return list(self._feeds["test"].n_batches) if "test" in self._feeds else []

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Prediction batches of each loader."""
        return list(self._feeds["predict"].n_batches) if "predict" in self._feeds else []

    @property
    def train_dataloader(self) -> Any:
        """The training loaders in the structure they came in; None before they are loaded."""
        return self._structure("train")

    @property
    def val_dataloaders(self) -> Any:
        """The validation loaders."""
        return self._structure("val")

    @property
    def test_dataloaders(self) -> Any:
        """The test loaders."""
        return self._structure("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The prediction loaders."""
        return self._structure("predict")

    def _structure(self, name: str) -> Any:
        return self._feeds[name].structure if name in self._feeds else None

    @property
    def enable_validation(self) -> bool:
        """Whether fit validates: a loader, a `validation_step`, and a limit above 0."""
        return sources.can_validate(self)

    # ---------------------------------------------------------------------------------------------------- metrics

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """Latest value of every logged name, as tensors on their device. Reading it does not wait."""
        self.metrics.refresh()
        return self.metrics.callback_metrics

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """What the loggers were sent last, as tensors."""
        return self.metrics.logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What ``prog_bar=True`` asked for, as numbers. Waits for the device if a step's values are newer."""
        self.metrics.refresh_progress_bar()
        return self.metrics.progress_bar_metrics

    @property
    def flushed_progress_bar_metrics(self) -> dict[str, float]:
        """The same as of the last flush to the loggers. Never waits."""
        return self.metrics.progress_bar_metrics

    # ------------------------------------------------------------------------------------------------------ parts

    @property
    def lightning_module(self) -> LightningModule:
        """The bare module."""
        return cast(LightningModule, self._module)

    @property
    def model(self) -> Any:
        """The module, in whatever wrapper the strategy put around it."""
        return self.strategy.model if self.strategy.model is not None else self._module

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers. A new list takes effect at the next fit."""
        return self.strategy.optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Any]) -> None:
        self.strategy.optimizers = list(optimizers)

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        """Learning-rate schedulers with when they step."""
        return self.strategy.lr_scheduler_configs

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [logger] if logger is not None else []

    @property
    def log_dir(self) -> str | None:
        """Directory of the first logger, or `default_root_dir`. All ranks must reach this."""
        first = self.logger
        if first is None:
            path: str | None = self.default_root_dir
        else:
            path = first.log_dir if first.log_dir is not None else first.save_dir
        return cast("str | None", self.strategy.broadcast(path))

    @property
    def default_root_dir(self) -> str:
        """Where logs and checkpoints go unless told otherwise."""
        return self._settings.default_root_dir

    @property
    def precision(self) -> str:
        """Name of the precision, such as "bf16-mixed"."""
        return self.precision_plugin.name

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of 16-mixed."""
        return self.precision_plugin.scaler

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """All callbacks that save checkpoints."""
        from fulgur.callbacks.checkpoint import Checkpoint

        return [c for c in self.callbacks if isinstance(c, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Any:
        """The first of them."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """All `EarlyStopping` callbacks."""
        from fulgur.callbacks.early_stopping import EarlyStopping

        return [c for c in self.callbacks if isinstance(c, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> Any:
        """The first of them."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> Any:
        """The progress bar."""
        from fulgur.callbacks.progress import ProgressBar

        return next((c for c in self.callbacks if isinstance(c, ProgressBar)), None)

    @property
    def ckpt_path(self) -> Any:
        """The file that the running or latest call was loaded from. Set it to load it in every call, until None."""
        return self._loaded_ckpt_path if self._loaded_ckpt_path is not None else self._ckpt_path

    @ckpt_path.setter
    def ckpt_path(self, path: str | os.PathLike[str] | None) -> None:
        self._ckpt_path = self._loaded_ckpt_path = path

    # ---------------------------------------------------------------------------------------------- what is running

    @property
    def training(self) -> bool:
        """Whether fit is training, not validating."""
        return self.state.stage is RunningStage.TRAINING

    @property
    def validating(self) -> bool:
        """Whether a validation runs, in fit too."""
        return self.state.stage is RunningStage.VALIDATING

    @property
    def testing(self) -> bool:
        """Whether a test runs."""
        return self.state.stage is RunningStage.TESTING

    @property
    def predicting(self) -> bool:
        """Whether a prediction runs."""
        return self.state.stage is RunningStage.PREDICTING

    @property
    def sanity_checking(self) -> bool:
        """Whether the check before training runs."""
        return self.state.stage is RunningStage.SANITY_CHECKING

    @property
    def evaluating(self) -> bool:
        """Whether a validation, a test or the check before training runs."""
        return self.state.stage is not None and self.state.stage.evaluating

    @property
    def interrupted(self) -> bool:
        """Whether the latest call ended with an exception."""
        return self.state.status is TrainerStatus.INTERRUPTED

    @property
    def received_sigterm(self) -> bool:
        """Whether the process was asked to end, by SIGTERM, while the running or latest call was in its loops."""
        return signal.SIGTERM in self._signals

    # ------------------------------------------------------------------------------------------------- processes

    @property
    def device_ids(self) -> list[int]:
        """Indices of the devices of this machine."""
        return [device.index if device.index is not None else i for i, device in enumerate(self._devices)]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """Arguments of a DistributedSampler for this process; None on one process."""
        return {"num_replicas": self.world_size, "rank": self.global_rank} if self.world_size > 1 else None


def _limits(settings: Any) -> Limits:
    """What the loops need of the arguments."""
    return Limits(
        max_epochs=settings.max_epochs,
        min_epochs=settings.min_epochs,
        max_steps=math.inf if settings.max_steps == -1 else settings.max_steps,
        min_steps=settings.min_steps or 0,
        accumulate=settings.accumulate_grad_batches,
        log_every_n_steps=settings.log_every_n_steps,
        val_check_interval=settings.val_check_interval,
        check_val_every_n_epoch=settings.check_val_every_n_epoch,
        n_sanity_batches=settings.num_sanity_val_steps,
        reload_every_n_epochs=settings.reload_dataloaders_every_n_epochs,
    )


def _either(today: Any, of_1x: Any) -> Any:
    return today if today is not None else of_1x


def _split_datamodule(loaders: Any, datamodule: Any) -> tuple[Any, Any]:
    """A datamodule may stand in the place of loaders."""
    from fulgur.datamodule import LightningDataModule

    if isinstance(loaders, LightningDataModule) and datamodule is None:
        return None, loaders
    return loaders, datamodule


def _refuse_both(datamodule: Any, **loaders: Any) -> None:
    given = [name for name, value in loaders.items() if value is not None]
    if datamodule is not None and given:
        raise MisconfigurationException(
            f"Both {given[0]} and a datamodule ({type(datamodule).__name__}) were passed, and it is not clear which to "
            "use. Pass one of them."
        )


_DEFAULTS: dict[str, Any] = dict(Trainer.__init__.__kwdefaults__ or {})
