"""LightningModule: the research code of a training, and every hook it may override."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulgur.data.transfer import move_to_device
from fulgur.errors import MisconfigurationException
from fulgur.hparams import HyperparametersMixin, class_only
from fulgur.module_hooks import ModuleHooks
from fulgur.optim.clip import clip_gradients
from fulgur.optim.gradients import clear_gradients
from fulgur.optim.toggle import toggle_parameters, untoggle_parameters

if TYPE_CHECKING:
    import os

    from typing_extensions import Self

    from fulgur.hooks import Callback
    from fulgur.loggers.logger import Logger
    from fulgur.optim.manual import LightningOptimizer
    from fulgur.trainer import Trainer


class LightningModule(HyperparametersMixin, ModuleHooks, nn.Module):
    """A model with its training: what a step computes, the optimizers, optionally the data.

    An ``nn.Module`` in every respect. Override `training_step` and `configure_optimizers`; everything else is optional.

    Attributes:
        automatic_optimization: False hands ``backward`` and optimizer steps to `training_step`.
        strict_loading: Whether loading weights demands exactly this module's keys.
        example_input_array: An input of `forward`, for summaries and graphs: a tensor for one argument, a tuple for
            several, a dict for keywords.
        prepare_data_per_node: Whether `prepare_data` runs once on each node, or once in all.

    Example:
        >>> class Line(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 1)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return torch.nn.functional.mse_loss(self.layer(x), y)
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    """

    # What `torch.jit.script` leaves alone: these are for training.
    __jit_unused_properties__: ClassVar[list[str]] = [
        *("trainer", "fabric", "device", "dtype", "on_gpu", "current_epoch", "global_step", "global_rank"),
        *("local_rank", "device_mesh", "logger", "loggers", "hparams", "hparams_initial", "_runner"),
    ]
    __jit_ignored_attributes__: ClassVar[list[str]] = [
        *__jit_unused_properties__,
        *("_trainer", "_metric_log", "_fabric", "_fabric_optimizers", "compiler", "prepare_data_per_node"),
        "allow_zero_length_dataloader_with_multiple_devices",
    ]

    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "hparams_type"

    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False
    _trainer: Any = None
    _metric_log: Any = None
    _fabric: Any = None
    _fabric_optimizers: Sequence[Any] = ()
    compiler: Any = None
    """What `torch.compile` made of this module was passed to the Trainer with; compiles the steps. Else None."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization: bool = True
        self.strict_loading: bool = True
        self.example_input_array: Any = None
        self._device = torch.device("cpu")
        self._dtype = torch.get_default_dtype()

    # ---------------------------------------------------------------------------------------------- where it runs

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs this module.

        Raises:
            RuntimeError: None does.
        """
        if self._trainer is None and self._fabric is not None:
            return cast("Trainer", self._fabric)  # ranks, strategy and loggers are asked for by the same names
        if self._trainer is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a Trainer: self.trainer is there from `setup` on. "
                "Pass the module to trainer.fit, validate, test or predict."
            )
        return cast("Trainer", self._trainer)

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.attach(trainer, trainer.metrics if trainer is not None else None)

    def attach(self, trainer: Trainer | None, metrics: Any) -> None:
        """Make `trainer` and its log the ones this module, and any LightningModule inside it, speaks to."""
        for module in self.modules():
            if isinstance(module, LightningModule):
                module._trainer, module._metric_log = trainer, metrics

    @property
    def fabric(self) -> Any:
        """The Fabric that set this module up, or None."""
        return self._fabric

    @property
    def _runner(self) -> Any:
        """The Trainer, or else the Fabric, or None."""
        return self._trainer if self._trainer is not None else self._fabric

    @property
    def device(self) -> torch.device:
        """Device the module is on; from `setup` on the one it will train on."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type that the last conversion of the whole module asked for."""
        return self._dtype

    @property
    def on_gpu(self) -> bool:
        """Whether `device` is a CUDA device."""
        return self._device.type == "cuda"

    @property
    def current_epoch(self) -> int:
        """Index of the running epoch; 0 without a Trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Training batches, or accumulation windows, that updated anything; 0 without a Trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Rank among all processes; 0 without a Trainer."""
        return self._runner.global_rank if self._runner is not None else 0

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this machine; 0 without a Trainer."""
        return self._runner.local_rank if self._runner is not None else 0

    @property
    def device_mesh(self) -> Any:
        """The strategy's `DeviceMesh`, for ``configure_model``; None where there is none."""
        return getattr(self._runner.strategy, "device_mesh", None) if self._runner is not None else None

    @property
    def logger(self) -> Logger | None:
        """The Trainer's first logger."""
        loggers = self.loggers
        return loggers[0] if loggers else None

    @property
    def loggers(self) -> list[Logger]:
        """All loggers of the Trainer."""
        return self._runner.loggers if self._runner is not None else []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Every ``.to``, ``.cuda``, ``.half`` … of `nn.Module` ends here: an empty tensor tells where it leads."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        probe = fn(torch.empty(0, device=self._device, dtype=self._dtype))
        self._device, self._dtype = probe.device, probe.dtype
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_trainer": None, "_metric_log": None, "_fabric": None, "_fabric_optimizers": []}

    # ------------------------------------------------------------------------------------------------ logging

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool | None = None,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a scalar for loggers, progress bar and callbacks. Never waits for the device.

        A `Fabric` that has set the module up sends it to its loggers at once. Does nothing where neither it nor a
        Trainer runs the module, so that steps can be called by hand.

        Args:
            name: Key. With `on_step` and `on_epoch` both, loggers see ``name_step`` and ``name_epoch``.
            value: Tensor with one element, number, or a torchmetrics metric that is an attribute of the module.
            prog_bar: Show it in the progress bar.
            logger: Send it to the loggers. None means yes.
            on_step: Keep the value of the step. None takes the hook's default: True in training steps.
            on_epoch: Accumulate over the epoch. None takes the hook's default: True elsewhere.
            reduce_fx: How an epoch's value comes about: "mean" (weighted by batch size), "sum", "min" or "max".
            enable_graph: Keep the autograd graph of the step's value.
            sync_dist: None and True reduce over all ranks; False keeps the value of this rank.
            sync_dist_group: Accepted for compatibility; values are reduced over all ranks.
            add_dataloader_idx: Append ``/dataloader_idx_N`` where an evaluation has several loaders.
            batch_size: Weight in the mean. None reads it from the batch.
            metric_attribute: Name of the attribute that holds a metric object, for messages.
            rank_zero_only: The call is made on rank 0 only; never reduced.

        Raises:
            MisconfigurationException: Not allowed in this hook, or called twice differently, or no batch size found.
            ValueError: `value` is no scalar.
        """
        if self._metric_log is not None:
            options = (
                prog_bar,
                logger,
                on_step,
                on_epoch,
                reduce_fx,
                enable_graph,
                sync_dist,
                add_dataloader_idx,
                metric_attribute,
                rank_zero_only,
            )
            self._metric_log.log(name, value, options, batch_size)
        elif self._fabric is not None:
            self._fabric.log(name, value)

    def log_dict(
        self,
        dictionary: Mapping[str, Any],
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool | None = None,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Call `log` for each item, with the same options.

        Args:
            dictionary: Names and values, or a torchmetrics MetricCollection.
            prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph: As for `log`.
            sync_dist, sync_dist_group, add_dataloader_idx, batch_size, rank_zero_only: As for `log`.

        Raises:
            TypeError: `dictionary` has no items.
        """
        if not hasattr(dictionary, "items"):
            raise TypeError(
                f"self.log_dict got a {type(dictionary).__name__}; a dict of names and values is needed. For one value "
                "use self.log('name', value)."
            )
        keep_base = {"keep_base": False} if hasattr(dictionary, "compute_groups") else {}
        for name, value in dictionary.items(**keep_base):
            self.log(
                name,
                value,
                prog_bar=prog_bar,
                logger=logger,
                on_step=on_step,
                on_epoch=on_epoch,
                reduce_fx=reduce_fx,
                enable_graph=enable_graph,
                sync_dist=sync_dist,
                sync_dist_group=sync_dist_group,
                add_dataloader_idx=add_dataloader_idx,
                batch_size=batch_size,
                rank_zero_only=rank_zero_only,
            )

    def get_progress_bar_dict(self) -> dict[str, Any]:
        """What the bar shows besides what was logged for it: ``v_num``. Override it, as in 1.x, for other things."""
        if self._trainer is None:
            return {}
        from fulgur.callbacks.progress import standard_metrics

        return standard_metrics(self._trainer)

    def summarize(self, mode: str | None = "top", max_depth: int | None = None) -> Any:
        """The table of layers, as in 1.x.

        Args:
            mode: "top" for the direct children, "full" for all layers.
            max_depth: Levels to list, in the place of `mode`; -1 for all.
        """
        from fulgur.callbacks.summary import Summary

        return Summary(self, {"top": 1, "full": -1}.get(mode or "top", 1) if max_depth is None else max_depth)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print from global rank 0 only, above the progress bar."""
        if self._trainer is None and self._fabric is not None:
            self._fabric.print(*args, **kwargs)
            return
        if self._trainer is None or self._trainer.is_global_zero:
            bar = self._trainer.progress_bar_callback if self._trainer is not None else None
            (bar.print if bar is not None and bar.is_enabled else print)(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------- steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch. Must be overridden to fit.

        Args:
            *args: ``(batch)``, ``(batch, batch_idx)``, ``(batch, batch_idx, optimizer_idx)`` with several optimizers in
                automatic optimization, or ``(dataloader_iter)``.
            **kwargs: None.

        Returns:
            The loss, a scalar tensor; or a dict with the loss under ``"loss"``; or None to skip the batch.
        """

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one validation batch: ``(batch)``, ``(batch, batch_idx)``, or with ``dataloader_idx`` after them."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one test batch: ``(batch)``, ``(batch, batch_idx)``, or with ``dataloader_idx`` after them."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict for one batch; returns ``self(batch)`` unless overridden."""
        batch = kwargs.get("batch", args[0])
        return self(batch)

    def configure_optimizers(self) -> Any:
        """Build optimizers and learning-rate schedulers. Must be overridden to fit.

        Returns:
            An optimizer; a list of them; ``([optimizers], [schedulers])``; a dict with ``"optimizer"`` and
            optionally ``"lr_scheduler"`` and ``"monitor"``; a list of such dicts; or [] to train without one. None
            does the same, with a warning, for a forgotten ``return`` looks like it. A scheduler may be a dict with
            ``scheduler``, ``interval`` ("epoch" or "step"), ``frequency``, ``monitor``, ``strict`` and ``name``.
        """

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Callbacks of the module's own, added at every entry point; one of a class replaces the Trainer's of it."""
        return []

    # ---------------------------------------------------------------------------------------------- batches

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it goes to the device. Must return the batch."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device. Must return the batch; the default goes through any nesting."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device, for example to augment it there. Must return the batch."""
        return batch

    # ------------------------------------------------------------------------------- automatic optimization

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
        *earlier: Any,
        **flags: Any,
    ) -> None:
        """Run one optimizer step; override to warm up a learning rate or to step less often.

        Args:
            epoch: Index of the running epoch.
            batch_idx: Index of the batch.
            optimizer: The optimizer, wrapped; ``step`` applies precision and clipping.
            optimizer_closure: Runs forward and backward. Must be called, normally by passing it on.
            *earlier: An override of 1.x passes the optimizer's index before the closure.
            **flags: Others that it passes on; without effect.
        """
        closure = next((value for value in (optimizer_closure, *earlier) if callable(value)), None)
        optimizer.step(closure=closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear gradients at the beginning of an accumulation window."""
        optimizer.zero_grad()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients. `loss` is divided by the window's length and scaled under 16-mixed."""
        if args and hasattr(args[0], "param_groups"):  # an override of 1.x passes the optimizer and its index
            args = args[2:]
        loss.backward(*args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients before a step; called also when the Trainer has clipping off. Call `clip_gradients` here."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of an optimizer's parameters in place. Does not wait for the device.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: Largest norm or value; None takes the Trainer's, and then 0, which clips nothing.
            gradient_clip_algorithm: "norm" or "value"; None takes the Trainer's, and then "norm".

        Raises:
            MisconfigurationException: The arguments contradict the Trainer's.
        """
        trainer = self._trainer
        if trainer is None and self._fabric is not None:
            self._fabric.unscale(optimizer)
        if trainer is not None and trainer.scaler is not None:
            trainer.fit_loop.plan.scaler.unscale(getattr(optimizer, "optimizer", optimizer))
        value = _agreed("gradient_clip_val", gradient_clip_val, trainer.gradient_clip_val if trainer else None)
        algorithm = _agreed(
            "gradient_clip_algorithm", gradient_clip_algorithm, trainer.gradient_clip_algorithm if trainer else None
        )
        clip_gradients(optimizer, value or 0.0, algorithm or "norm")

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Step one scheduler when it is due. `metric` is the monitored value of a plateau scheduler, else None."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    # ---------------------------------------------------------------------------------- manual optimization

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizer, or the list of them, for manual optimization.

        Args:
            use_pl_optimizer: Wrapped, so that ``step`` counts and applies precision; False gives them bare.
        """
        if self._fabric is not None and self._trainer is None:
            found = self._fabric_optimizers if use_pl_optimizer else [o.optimizer for o in self._fabric_optimizers]
            return found[0] if len(found) == 1 else found
        return (self._trainer or self.trainer).fit_loop.optimizers_for_user(wrapped=use_pl_optimizer)

    def lr_schedulers(self) -> Any:
        """The scheduler, the list of them, or None."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return (schedulers[0] if len(schedulers) == 1 else schedulers) if schedulers else None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients in manual optimization, with the precision's scaling and the backward hooks.

        Raises:
            MisconfigurationException: The module optimizes automatically.
        """
        if self._fabric is not None and self._trainer is None:
            self._fabric.backward(loss, *args, **kwargs)
            return
        if self.automatic_optimization:
            raise MisconfigurationException(
                "self.manual_backward(loss) was called under automatic optimization, which calls backward itself. "
                "Return the loss from training_step, or set self.automatic_optimization = False in __init__."
            )
        (self._trainer or self.trainer).fit_loop.manual_backward(loss, *args, **kwargs)

    def toggle_optimizer(self, optimizer: Optimizer, optimizer_idx: int | None = None) -> None:
        """Let only this optimizer's parameters require gradients, until `untoggle_optimizer`.

        Args:
            optimizer: Whose parameters.
            optimizer_idx: Accepted for 1.x; without effect.
        """
        self.__dict__["_toggled"] = toggle_parameters(optimizer, self.trainer.optimizers)

    def untoggle_optimizer(self, optimizer: Optimizer | int | None = None) -> None:
        """Undo `toggle_optimizer`. The argument, in 1.x an index, has no effect: one optimizer is toggled at a time."""
        untoggle_parameters(self.__dict__.pop("_toggled", []))

    @contextmanager
    def toggled_optimizer(self, optimizer: Optimizer) -> Iterator[None]:
        """`toggle_optimizer` for the length of a ``with`` block."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def freeze(self) -> Self:
        """Stop all parameters from requiring gradients, and switch to eval mode."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        return self.eval()

    def unfreeze(self) -> Self:
        """Make all parameters require gradients, and switch to train mode."""
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        return self.train()

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Gather tensors of all ranks along a new first dimension; unchanged on one process. All ranks must call."""
        if self._trainer is None and self._fabric is not None:
            return self._fabric.all_gather(data, group, sync_grads)
        return self.trainer.strategy.all_gather_nested(data, group, sync_grads)

    # ------------------------------------------------------------------------------------- before and after evaluation

    def on_validation_model_zero_grad(self) -> None:
        """Before a validation run in fit, unless gradients are being accumulated: frees their memory."""
        if type(self).zero_grad is nn.Module.zero_grad:
            clear_gradients(self)
        else:
            self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Put the model into eval mode for validation."""
        self.trainer.model.eval()

    def on_validation_model_train(self) -> None:
        """Put the model back after validation; unless overridden, every submodule gets back the mode it had."""

    def on_test_model_eval(self) -> None:
        """Put the model into eval mode for a test."""
        self.trainer.model.eval()

    def on_test_model_train(self) -> None:
        """Put the model back after a test; unless overridden, every submodule gets back the mode it had."""

    def on_predict_model_eval(self) -> None:
        """Put the model into eval mode for prediction."""
        self.trainer.model.eval()

    # ---------------------------------------------------------------------------------------------- loading

    def to_onnx(self, file_path: Any = None, input_sample: Any = None, **kwargs: Any) -> Any:
        """Write the module as ONNX, in evaluation mode.

        Args:
            file_path: Where. None writes nothing; with ``dynamo=True`` the program is returned.
            input_sample: Arguments of `forward`: a tensor, a tuple, or a dict of keywords. None takes
                `example_input_array`.
            **kwargs: For `torch.onnx.export`.

        Raises:
            MissingExtraError: The package onnx, or onnxscript for ``dynamo=True``, is not installed.
            ValueError: There is no input.
        """
        from fulgur.export import export_onnx

        return export_onnx(self, file_path, input_sample, **kwargs)

    def to_exported(self, file_path: Any = None, input_sample: Any = None, **kwargs: Any) -> Any:
        """The module as a `torch.export.ExportedProgram`, in evaluation mode.

        It runs without the module's code, in Python and beyond: ``torch.export.load(path).module()(x)``.

        Args:
            file_path: Also write it there, as ``.pt2``: a path, a URL or an open file.
            input_sample: Arguments of `forward`: a tensor, a tuple, or a dict of keywords. None takes
                `example_input_array`.
            **kwargs: For `torch.export.export`, above all ``dynamic_shapes``: without it the program takes inputs of
                the sample's shapes only.

        Raises:
            ValueError: There is no input.

        Example:
            >>> batch = torch.export.Dim("batch")
            >>> program = model.to_exported("model.pt2", x, dynamic_shapes={"x": {0: batch}})
        """
        from fulgur.export import export_program

        return export_program(self, file_path, input_sample, **kwargs)

    def to_safetensors(self, file_path: str | os.PathLike[str]) -> None:
        """Write the weights alone, for any reader of safetensors.

        The hyperparameters that JSON has a form of are in the file's metadata, so that `load_from_checkpoint` builds
        the module from it. Weights that share memory are written once for each name. Where weights are split over
        ranks, all must call it; rank 0 writes.

        Args:
            file_path: Path or URL, ending in ``.safetensors``.

        Raises:
            ValueError: `file_path` ends in something else.
            CheckpointError: Something of the state is no tensor, or the file cannot be written.
            MissingExtraError: The package safetensors is not installed.
        """
        from fulgur.checkpoint.tools.deployment import export_weights

        export_weights(self, file_path)

    def to_torchscript(
        self, file_path: Any = None, method: str = "script", example_inputs: Any = None, **kwargs: Any
    ) -> Any:
        """The module as TorchScript, in evaluation mode.

        Args:
            file_path: Also write it there.
            method: "script" compiles the code of `forward`; "trace" records what one call does.
            example_inputs: For "trace": arguments of `forward`. None takes `example_input_array`.
            **kwargs: For `torch.jit.script` or `torch.jit.trace`.

        Raises:
            ValueError: `method` is neither, or there is nothing to trace with.
        """
        from fulgur.export import export_torchscript

        return export_torchscript(self, file_path, method, example_inputs, **kwargs)

    @class_only
    def load_from_checkpoint(
        cls,  # noqa: N805 - class_only is a classmethod
        checkpoint_path: str | IO[bytes],
        map_location: Any = None,
        hparams_file: str | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the module from a checkpoint: its saved hyperparameters, then its weights.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: As for `torch.load`. None keeps devices, those that are not here become the CPU.
            hparams_file: ``.yaml`` or ``.csv`` file whose values replace the saved hyperparameters.
            strict: Whether weights must match exactly. None takes `strict_loading`.
            weights_only: None and True execute nothing from the file; False unpickles it, for files you trust.
            **kwargs: Arguments of `__init__` that override the saved ones.

        Raises:
            CheckpointRefusedError: The file holds more than plain data, and `weights_only` is not False.
            WeightsMismatchError: The weights are those of another network.
            TypeError: `__init__` has a required argument that neither the file nor `kwargs` gives.
            ValueError: `strict` contradicts `strict_loading`, or `hparams_file` has another extension.
        """
        from fulgur.checkpoint.instantiate import load_module

        if cls is LightningModule:
            raise TypeError("load_from_checkpoint builds the class it is called on: call it on your LightningModule.")
        module: Self = load_module(
            cls,
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            strict=strict,
            weights_only=weights_only,
            overrides=kwargs,
        )
        return module


def _agreed(name: str, given: Any, of_trainer: Any) -> Any:
    """One of two values, an error where they contradict each other."""
    if given is not None and of_trainer is not None and given != of_trainer:
        raise MisconfigurationException(
            f"clip_gradients({name}={given!r}) contradicts Trainer({name}={of_trainer!r}). Leave out one of them."
        )
    return given if given is not None else of_trainer
