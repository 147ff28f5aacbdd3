"""DeepSpeed's engine (ZeRO) runs the steps: it spreads optimizer states, gradients and parameters over processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fulgur.checkpoint.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from fulgur.checkpoint.location import is_sharded
from fulgur.errors import CheckpointError, MisconfigurationException, MissingExtraError, PossibleUserWarning
from fulgur.rank import rank_zero_warn
from fulgur.strategies.batch_norm import share_batch_norms
from fulgur.strategies.deepspeed_config import add_precision, build_zero, read_config, require, stage_of
from fulgur.strategies.parallel import ParallelStrategy, broadcast_module
from fulgur.strategies.routing import demanding_loss
from fulgur.strategies.votes import Votes, open_votes

if TYPE_CHECKING:
    from fulgur.agreement import Agreement
    from fulgur.launch.environments import ClusterEnvironment
    from fulgur.loops.plan import StepPlan

_LEFT_BY_ENGINES = ("_hp_mapping", "_z3_optimizer")


class DeepSpeedStrategy(ParallelStrategy):
    """Train with DeepSpeed's engine. The module stays as it is; the package must be installed.

    The engine goes backward, accumulates, clips by norm and steps. The module makes one optimizer, and at most one
    scheduler, which the Trainer steps. Arguments that are not explained here are DeepSpeed's settings of these names; a
    `config` takes the place of all of them.

    Args:
        accelerator: Accepted for compatibility: the Trainer's counts.
        zero_optimization: Must be True: without, it would be data parallelism.
        stage: 1 spreads optimizer states, 2 gradients too, 3 parameters too.
        remote_device: ``"nvme"`` is the older way to say `offload_params_device`.
        offload_optimizer, offload_optimizer_device: Keep optimizer states on ``"cpu"`` or ``"nvme"``.
        offload_parameters, offload_params_device: Keep parameters there; stage 3 only.
        nvme_path: Folder on a fast disk.
        optimizer_buffer_count, params_buffer_count, params_buffer_size, max_in_cpu, pin_memory: Of offloading.
        block_size, queue_depth, single_submit, overlap_events, thread_count: Of reading and writing disks.
        sub_group_size: Parameters that stage 3 steps at once.
        contiguous_gradients, overlap_comm, allgather_partitions, reduce_scatter: How gradients are reduced.
        allgather_bucket_size, reduce_bucket_size: Elements that are sent at once.
        zero_allow_untested_optimizer: Accept optimizers that DeepSpeed has not been tested with.
        logging_batch_size_per_gpu: Batch size in DeepSpeed's own throughput log; "auto" says 1.
        config: DeepSpeed's settings: a dict, or the path of a JSON file. None takes the path in the environment
            variable ``PL_DEEPSPEED_CONFIG_PATH``, or the arguments where there is none.
        logging_level: Of DeepSpeed's own logger.
        parallel_devices: Device of each process of this machine. None takes those of the Trainer.
        cluster_environment: Says which of the processes this one is. None finds it.
        loss_scale, initial_scale_power, loss_scale_window, hysteresis, min_loss_scale: Of 16-bit floats; a `loss_scale`
            of 0 adapts.
        partition_activations, cpu_checkpointing, contiguous_memory_optimization, synchronize_checkpoint_boundary: Of
            DeepSpeed's own activation checkpointing, which the module has to call.
        load_full_weights: Accepted for compatibility: whole weights are always loaded.
        precision_plugin: Accepted for compatibility: the Trainer's counts.
        process_group_backend: "gloo", "nccl", …; None takes what suits the devices.
        timeout: How long a collective waits for the other ranks.
        exclude_frozen_parameters: Leave parameters that are not trained out of DeepSpeed's files.
        checkpoint_io: Writes files of weights; None is the default one. Directories are DeepSpeed's.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
        MisconfigurationException: Arguments contradict each other, or `config` cannot be read.
    """

    def __init__(
        self,
        accelerator: Any = None,
        zero_optimization: bool = True,
        stage: int = 2,
        remote_device: str | None = None,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        offload_params_device: str = "cpu",
        nvme_path: str = "/local_nvme",
        params_buffer_count: int = 5,
        params_buffer_size: int = 100_000_000,
        max_in_cpu: int = 1_000_000_000,
        offload_optimizer_device: str = "cpu",
        optimizer_buffer_count: int = 4,
        block_size: int = 1048576,
        queue_depth: int = 8,
        single_submit: bool = False,
        overlap_events: bool = True,
        thread_count: int = 1,
        pin_memory: bool = False,
        sub_group_size: int = 1_000_000_000_000,
        contiguous_gradients: bool = True,
        overlap_comm: bool = True,
        allgather_partitions: bool = True,
        reduce_scatter: bool = True,
        allgather_bucket_size: int = 200_000_000,
        reduce_bucket_size: int = 200_000_000,
        zero_allow_untested_optimizer: bool = True,
        logging_batch_size_per_gpu: str | int = "auto",
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        logging_level: int = logging.WARNING,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        loss_scale: float = 0,
        initial_scale_power: int = 16,
        loss_scale_window: int = 1000,
        hysteresis: int = 2,
        min_loss_scale: int = 1,
        partition_activations: bool = False,
        cpu_checkpointing: bool = False,
        contiguous_memory_optimization: bool = False,
        synchronize_checkpoint_boundary: bool = False,
        load_full_weights: bool = False,
        precision_plugin: Any = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        exclude_frozen_parameters: bool = False,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        _require_package(stage, offload_parameters=offload_parameters)
        super().__init__(
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            process_group_backend=process_group_backend,
            timeout=timeout,
            checkpoint_io=checkpoint_io,
        )
        given = read_config(config)
        if given is None:
            zero = build_zero(
                stage if zero_optimization else 0,
                offload_optimizer=offload_optimizer,
                offload_optimizer_device=offload_optimizer_device,
                offload_parameters=offload_parameters,
                offload_params_device="nvme" if remote_device == "nvme" else offload_params_device,
                nvme_path=nvme_path,
                optimizer_buffer_count=optimizer_buffer_count,
                params_buffer_count=params_buffer_count,
                params_buffer_size=params_buffer_size,
                max_in_cpu=max_in_cpu,
                pin_memory=pin_memory,
                sub_group_size=sub_group_size,
                contiguous_gradients=contiguous_gradients,
                overlap_comm=overlap_comm,
                allgather_partitions=allgather_partitions,
                reduce_scatter=reduce_scatter,
                allgather_bucket_size=allgather_bucket_size,
                reduce_bucket_size=reduce_bucket_size,
            )
            given = {
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": zero_allow_untested_optimizer,
                "activation_checkpointing": {
                    "partition_activations": partition_activations,
                    "cpu_checkpointing": cpu_checkpointing,
                    "contiguous_memory_optimization": contiguous_memory_optimization,
                    "synchronize_checkpoint_boundary": synchronize_checkpoint_boundary,
                },
            }
            if "nvme" in (zero.get(name, {}).get("device") for name in ("offload_optimizer", "offload_param")):
                given["aio"] = {
                    "block_size": block_size,
                    "queue_depth": queue_depth,
                    "single_submit": single_submit,
                    "overlap_events": overlap_events,
                    "thread_count": thread_count,
                }
        self.config: dict[str, Any] = given
        self.stage = stage_of(given)
        self.logging_level = logging_level
        self.exclude_frozen_parameters = exclude_frozen_parameters
        self._batch_size = 1 if logging_batch_size_per_gpu == "auto" else int(logging_batch_size_per_gpu)
        self._scaling = {
            "loss_scale": loss_scale,
            "initial_scale_power": initial_scale_power,
            "loss_scale_window": loss_scale_window,
            "hysteresis": hysteresis,
            "min_loss_scale": min_loss_scale,
        }
        self._of_run: dict[str, Any] = {}
        self._engine: Any = None
        self._hooks: set[int] = set()
        self._is_trained = False
        self._is_window_open = False
        self._step: Callable[..., Any] | None = None
        self._routed: Callable[..., Any] | None = None
        self._loaded: tuple[Any, Mapping[str, Any] | None, bool] | None = None
        self._resumes = False

    @property
    def forward_is_collective(self) -> bool:  # type: ignore[override]
        return self.stage == 3

    @property
    def zero_stage_3(self) -> bool:
        """Whether parameters are spread too."""
        return self.stage == 3

    @property
    def deepspeed_engine(self) -> Any:
        """DeepSpeed's engine; None before training has begun."""
        return self._engine

    # ------------------------------------------------------------------------------------------------ the model

    def setup_module(self, module: Any) -> nn.Module:
        """Place `module`, and forget the engine around another one.

        Raises:
            MisconfigurationException: The engine of another Trainer holds the parameters.
        """
        if self._engine is not None and self._engine.module is not module:
            self._leave_engine()
        if self._engine is None:
            if any(hasattr(p, name) for p in module.parameters() for name in _LEFT_BY_ENGINES):
                raise MisconfigurationException(
                    f"The parameters of this {type(module).__name__} are held by another Trainer's DeepSpeed engine. "
                    "Go on with that Trainer, or load its checkpoint into a new model."
                )
            module.to(self.root_device)
        self.lightning_module = module
        self.model = module if self._engine is None else self._engine
        return self.model

    def wrap_step(self, step: Callable[..., Any], *, name: str = "training_step") -> Callable[..., Any]:
        from fulgur.strategies.deepspeed_engine import as_forward

        if name == "training_step":
            self._step = demanding_loss(step, "DeepSpeed's engine")
            return self._run_step
        module = self.lightning_module
        if self.stage == 3:
            step = as_forward(module, module, step, hooks=self._hooks)
        buffers = list(module.buffers()) if self.world_size > 1 else []
        return partial(_evaluate, step, buffers) if buffers else step

    def _run_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._routed(*args, **kwargs)  # type: ignore[misc]

    def adapt_plan(
        self, plan: StepPlan, *, clip_val: float | None, clip_algorithm: str | None, accumulate: int
    ) -> None:
        from fulgur.strategies.deepspeed_engine import EngineSteps

        module = self.lightning_module
        _check_optimizers(module, self.optimizers, self.lr_scheduler_configs)
        clips = clip_val is not None and clip_val > 0
        if clips and clip_algorithm == "value":
            raise MisconfigurationException(
                "gradient_clip_algorithm='value' does not go with DeepSpeed, whose engine clips by norm. Use 'norm'."
            )
        if plan.clip is not None and getattr(plan.clip, "keywords", {}).keys() >= {"gradient_clip_val"}:
            _warn_ignored(module, "configure_gradient_clipping", "clips")
        if plan.backward is not None:
            _warn_ignored(module, "backward", "goes backward")
        self._of_run = self._configure(accumulate, float(clip_val or 0.0) if clips else 0.0)
        (update,) = plan.updates
        steps = EngineSteps(update, lambda: self._engine)
        plan.scaler, plan.clip, plan.backward = steps, None, None  # type: ignore[assignment]
        update.backward = steps.backward

    def _configure(self, accumulate: int, clip_val: float) -> dict[str, Any]:
        """DeepSpeed's settings of this run."""
        config = {**self.config}
        require(
            config,
            "gradient_accumulation_steps",
            accumulate,
            argument=f"accumulate_grad_batches={accumulate}",
        )
        require(config, "gradient_clipping", clip_val, argument=f"gradient_clip_val={clip_val or None}")
        if config.get("train_micro_batch_size_per_gpu", "auto") == "auto" and "train_batch_size" not in config:
            config["train_micro_batch_size_per_gpu"] = self._batch_size
        config.setdefault("zero_force_ds_cpu_optimizer", False)
        name = self.precision_plugin.name if self.precision_plugin is not None else "32-true"
        add_precision(config, name, scaling=self._scaling)
        return config

    def wrap_training(self, module: Any) -> None:
        """Start the engine, and load what a resumed run goes on from. All ranks must reach this."""
        from fulgur.strategies.deepspeed_engine import as_forward

        self._leave_engine()
        if self.sync_batchnorm:
            share_batch_norms(module, self.root_device)
        (optimizer,) = self.optimizers
        optimizer.__dict__["zero_grad"] = _nothing  # its gradients are the engine's
        self._start(module, optimizer, self._of_run)
        assert self._step is not None
        self._routed = as_forward(self._engine, module, self._step, hooks=self._hooks)
        if self._resumes:
            self._load_engine()

    def _start(self, module: nn.Module, optimizer: Any, config: dict[str, Any]) -> None:
        from fulgur.checkpoint.engine_files import EngineWriter
        from fulgur.strategies.deepspeed_engine import hooks_of, start_engine

        known = hooks_of(module)
        self._engine = start_engine(self._package(), module, optimizer, config, local_rank=self.local_rank)
        self._hooks = hooks_of(module) - known
        self._is_trained = optimizer is not None
        if self._is_trained:
            self._engine.checkpoint_engine = EngineWriter(self._engine.checkpoint_engine)
        self._is_window_open = False
        self.model = self._engine

    def _package(self) -> Any:
        from fulgur.strategies.deepspeed_engine import import_deepspeed

        return import_deepspeed(self.root_device, logging_level=self.logging_level)

    def _leave_engine(self) -> None:
        """Take the engine's hooks off; the module keeps its weights, in parts where they are in parts."""
        if self._engine is None:
            return
        engine, self._engine, self._routed = self._engine, None, None
        self.model = module = engine.module
        engine.destroy()
        engine.module_forward_pre_hook.remove()
        engine.module_forward_post_hook.remove()
        for parameter in module.parameters():
            for name in _LEFT_BY_ENGINES:
                parameter.__dict__.pop(name, None)

    @contextmanager
    def on_trial(self) -> Iterator[Callable[[Any], None]]:
        raise MisconfigurationException(
            "Trials of learning rates and batch sizes do not go with DeepSpeed, whose engine is made once for one "
            "optimizer. Look for them with strategy='ddp', or strategy='fsdp' for a larger model."
        )
        yield self.wrap_training

    def follow_trainable(self, module: Any) -> None:
        raise MisconfigurationException(
            "Parameters were frozen or unfrozen within a run, and DeepSpeed's engine has divided them between the "
            "processes already. Use strategy='fsdp', or begin another fit."
        )

    def prepare_evaluation(self, module: Any) -> None:
        if self._engine is not None:
            return
        if self.stage < 3:
            broadcast_module(module)
            return
        self._start(module, None, self._configure(1, 0.0))  # all ranks must reach this

    def set_grad_sync(self) -> Callable[[bool], None] | None:
        return self._set_boundary

    def _set_boundary(self, updates: bool) -> None:
        self._is_window_open = not updates
        self._engine.set_gradient_accumulation_boundary(updates)

    def build_votes(self, agreement: Agreement) -> Votes | None:
        return open_votes(self, agreement, _nothing) if self.world_size > 1 else None

    def wrap_module(self, module: nn.Module, *, move_to_device: bool = True) -> nn.Module:
        raise MisconfigurationException(
            "Fabric does not drive DeepSpeed's engine. Call deepspeed.initialize in the loop, or use strategy='fsdp'."
        )

    # ------------------------------------------------------------------------------------------------- files

    def load_model_state(self, module: nn.Module, state: Mapping[str, Any], *, strict: bool = True) -> Any:
        from fulgur.strategies.deepspeed_engine import is_parted, load_parted

        if is_parted(module):
            return load_parted(self._package(), module, dict(state), strict=strict)  # all ranks must reach this
        return super().load_model_state(module, state, strict=strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {} if self._is_trained else super().optimizer_state(optimizer)  # the engine writes it

    def load_optimizer_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Note that the engine is to load its own files when it is there.

        Raises:
            CheckpointError: The checkpoint is not one that this engine can go on from.
        """
        path, engine, _ = self._loaded or (None, None, False)
        if engine is None:
            raise CheckpointError(
                f"{str(path)!r} was not written by DeepSpeed's engine, which takes optimizer states from its own files "
                "only. Resume with the strategy that wrote it, or load only the weights with load_from_checkpoint."
            )
        now = {"world_size": self.world_size, "stage": self.stage}
        then = {name: engine.get(name) for name in now}
        if then != now:
            raise CheckpointError(
                f"{str(path)!r} was written by DeepSpeed's engine on {then['world_size']} ranks in stage "
                f"{then['stage']}, and this run has {now['world_size']} ranks and stage {now['stage']}: its optimizer "
                "states are cut for the former. Resume as it was saved, or load only the weights with "
                "load_from_checkpoint."
            )
        self._resumes = True

    def _load_engine(self) -> None:
        from fulgur.checkpoint.engine_files import TAG

        assert self._loaded is not None
        path, _, trusts = self._loaded
        self._resumes, self._engine.checkpoint_engine.trusts = False, trusts
        found, _ = self._engine.load_checkpoint(os.fspath(path), TAG, load_lr_scheduler_states=False)
        if found is None:
            raise CheckpointError(f"DeepSpeed's engine did not find its files in {str(path)!r}. Use another one.")

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: Any,
        storage_options: Any = None,
        *,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        """Write a directory of the engine's; of weights only, one file of whole ones. All ranks must call it."""
        if "optimizer_states" in checkpoint and self._is_trained and self._engine is not None:
            self._save_engine(checkpoint, filepath, storage_options, checkpoint_io or self.checkpoint_io)
            return
        if self._engine is not None:
            from fulgur.strategies.deepspeed_engine import whole_state

            package, module, is_kept = self._package(), self._engine.module, self.is_global_zero
            whole = whole_state(package, module, checkpoint["state_dict"], is_kept=is_kept)
            checkpoint = {**checkpoint, "state_dict": whole}
        super().save_checkpoint(checkpoint, filepath, storage_options, checkpoint_io=checkpoint_io)

    def _save_engine(self, checkpoint: dict[str, Any], path: Any, storage_options: Any, writer: CheckpointIO) -> None:
        from fulgur.checkpoint.engine_files import save_engine

        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r} is for URLs, and DeepSpeed writes to disks.")
        if isinstance(writer, AsyncCheckpointIO) or type(writer) is not TorchCheckpointIO:
            raise MisconfigurationException(
                f"{type(writer).__name__} does not write DeepSpeed's checkpoints: its engine does, at once. Leave out "
                "async_save and plugins that write files, or save weights only."
            )
        if self._is_window_open:
            raise MisconfigurationException(
                "Within an accumulation window DeepSpeed's engine holds gradients that its files leave out. Save after "
                "the window's last batch, as ModelCheckpoint does."
            )
        about = {"stage": self.stage, "world_size": self.world_size, "version": self._package().__version__}
        save_engine(checkpoint, path, self, write=self._write_engine, about=about)  # all ranks must reach this

    def _write_engine(self, directory: str) -> Any:
        from fulgur.checkpoint.engine_files import TAG

        writer = self._engine.checkpoint_engine
        writer.begin(directory)
        excluded = self.exclude_frozen_parameters
        self._engine.save_checkpoint(directory, TAG, exclude_frozen_parameters=excluded)  # all ranks must reach this
        return writer.written

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; of the engine's own, everything but optimizer states. All ranks must reach this."""
        from fulgur.checkpoint.engine_files import engine_of
        from fulgur.checkpoint.sharded_read import load_meta, load_sharded, verify_sharded

        self._loaded, self._resumes = (checkpoint_path, None, weights_only is False), False
        if not is_sharded(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        share = slice(self.global_rank, None, self.world_size)
        verdicts = self.all_gather_object(verify_sharded(checkpoint_path, share=share))  # all ranks must reach this
        for verdict in verdicts:
            if not verdict.is_usable:
                raise CheckpointError(f"{str(checkpoint_path)!r} {verdict.reason}. Use another checkpoint.")
        engine = engine_of(load_meta(checkpoint_path, weights_only=weights_only))
        self._loaded = (checkpoint_path, engine, weights_only is False)
        return load_sharded(checkpoint_path, weights_only=weights_only, is_verified=True)


def _require_package(stage: int, *, offload_parameters: bool) -> None:
    if find_spec("deepspeed") is None:
        instead = f"FSDPStrategy(sharding_strategy={'SHARD_GRAD_OP' if stage < 3 else 'FULL_SHARD'!r}"
        instead += ", cpu_offload=True)" if offload_parameters else ")"
        raise MissingExtraError(
            f"DeepSpeedStrategy (torch's own sharding does the same without it: strategy={instead}, or 'fsdp')",
            "deepspeed",
            "deepspeed",
        )


def _check_optimizers(module: Any, optimizers: list[Any], schedulers: list[Any]) -> None:
    name = type(module).__name__
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{name} optimizes manually, and DeepSpeed's engine goes backward and steps by itself. Use automatic "
            "optimization, or strategy='fsdp'."
        )
    if len(optimizers) != 1 or len(schedulers) > 1:
        raise MisconfigurationException(
            f"configure_optimizers of {name} returned {len(optimizers)} optimizers and {len(schedulers)} schedulers. "
            "DeepSpeed's engine has one optimizer and at most one scheduler: return these, or use strategy='fsdp'."
        )
    if isinstance(optimizers[0], torch.optim.LBFGS):
        raise MisconfigurationException(
            "torch.optim.LBFGS evaluates its closure several times a step, and DeepSpeed's engine steps once for each "
            "backward pass. Use another optimizer, or strategy='ddp'."
        )


def _warn_ignored(module: Any, hook: str, does: str) -> None:
    rank_zero_warn(
        f"{hook} of {type(module).__name__} is not called under DeepSpeed, whose engine {does} by itself.",
        PossibleUserWarning,
    )


def _evaluate(step: Callable[..., Any], buffers: list[Any], batch: Any, batch_idx: int, *args: Any) -> Any:
    """`step`, with the buffers of rank 0, such as running means, on all ranks."""
    if batch_idx == 0:
        for buffer in buffers:
            torch.distributed.broadcast(buffer, src=0)  # all ranks must reach this
    return step(batch, batch_idx, *args)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What there is to do, or to give, where the engine does it."""
