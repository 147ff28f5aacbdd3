"""Fabric: what a loop that somebody writes himself takes from the framework, and nothing more.

A facade: strategies, precision, launchers, loggers and checkpoints are those of the Trainer.
"""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fulgur import resolve
from fulgur.checkpoint.io import AsyncCheckpointIO, CheckpointIO
from fulgur.data.transfer import move_to_device
from fulgur.data.workers import seed_workers
from fulgur.fabric import states
from fulgur.fabric.arguments import is_started_by_command, read_callbacks, read_settings
from fulgur.fabric.values import WithoutValues, map_tensors, to_scalar
from fulgur.fabric.wrappers import (
    _FabricDataLoader,
    _FabricModule,
    _FabricOptimizer,
    is_wrapped,
    no_sync_of,
    replace_parameters,
    unwrap,
    unwrap_compiled,
)
from fulgur.launching import Ranks, check_own_world, join_ranks
from fulgur.loops.scaling import LossScaling
from fulgur.rank import rank_zero_warn
from fulgur.rng import seed_everything
from fulgur.strategies import SingleDeviceStrategy, Strategy

if TYPE_CHECKING:
    from fulgur.accelerators import Accelerator
    from fulgur.loggers.logger import Logger

Path = str | os.PathLike[str]


class Fabric(Ranks):
    """Devices, processes, precision, logging and checkpoints for a loop of the user's own.

    Args:
        accelerator: "auto", "cpu", "cuda", "gpu" or "mps", or an `Accelerator`.
        strategy: "auto" (one process, or "ddp"), "ddp", "ddp_spawn", "fsdp", … or a `Strategy`, as for the Trainer.
        devices: How many on each machine, or which: a number, a list of indices, "auto".
        num_nodes: Machines. >= 1.
        precision: "32-true", "64-true", "bf16-true", "16-true", "bf16-mixed" or "16-mixed" (CUDA only).
        plugins: A `Precision`, a `CheckpointIO`, a `ClusterEnvironment`, or a list of them.
        callbacks: Objects whose methods `call` calls by name: one, or a list.
        loggers: A `Logger` or a list of them.

    Raises:
        MisconfigurationException: Values that cannot work, or not together.
        ValueError, TypeError: Values out of range, or of a wrong type.

    Example:
        >>> import torch
        >>> from fulgur import Fabric
        >>> fabric = Fabric(accelerator="cpu", devices=1)
        >>> model = torch.nn.Linear(2, 1)
        >>> model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> fabric.backward(model(torch.ones(1, 2)).sum())
        >>> optimizer.step()
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        plugins: Any = None,
        callbacks: Any = None,
        loggers: Any = None,
    ) -> None:
        given = {"accelerator": accelerator, "strategy": strategy, "devices": devices, "num_nodes": num_nodes}
        self._settings = read_settings({**given, "precision": precision}, plugins)
        processes = resolve.resolve_processes(self._settings)
        self._accelerator, self._devices, self._num_nodes = (
            processes.accelerator,
            processes.devices,
            processes.num_nodes,
        )
        device_type = self._devices[0].type
        own_precision = getattr(self._settings.strategy, "own_precision", None)
        self._precision = resolve.resolve_precision(self._settings.precision, plugins, device_type, own=own_precision)
        self.strategy: Strategy = resolve.resolve_strategy(self._settings, processes)
        self.strategy.precision_plugin, self.strategy.accelerator = self._precision, self._accelerator
        checkpoint_io = resolve.resolve_checkpoint_io(plugins)
        if checkpoint_io is not None:
            self.strategy.checkpoint_io = checkpoint_io
        self._loggers: list[Logger] = resolve.resolve_loggers(loggers or False, "", False)
        self._callbacks = read_callbacks(callbacks)
        self._scaling = LossScaling(self._precision.scaler) if self._precision.scaler is not None else None
        self._is_launched = False
        self._awaited: CheckpointIO | None = None
        if _overrides_run(self):
            self.run = partial(_run_launched, self)  # type: ignore[method-assign]
        if is_started_by_command():
            self.launch()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Override this in a subclass to have all of its code run on all ranks when it is called."""

    # ------------------------------------------------------------------------------------------- the processes

    @property
    def accelerator(self) -> Accelerator:
        """Kind of the devices."""
        return self._accelerator

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.strategy.root_device

    @property
    def loggers(self) -> list[Logger]:
        """The loggers."""
        return self._loggers

    @property
    def logger(self) -> Logger:
        """The first logger.

        Raises:
            IndexError: There is none.
        """
        return self._loggers[0]

    @property
    def callbacks(self) -> list[Any]:
        """What `call` calls."""
        return self._callbacks

    def launch(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Start the other processes, where nothing else has, and join them.

        Without a function the program goes on on all ranks. Strategies that start functions ("ddp_spawn", "ddp_fork",
        "ddp_notebook") need one: this process is no rank then.

        Args:
            function: Called on all ranks with this Fabric, then `args` and `kwargs`.
            *args: For the function.
            **kwargs: For the function.

        Returns:
            What the function returned; of rank 0, where this process is none.

        Raises:
            TypeError: `function` takes no argument, is no function, or there is none and the strategy needs one.
            RankFailedError: Another rank has failed first.
        """
        _check_function(function)
        launcher = self.strategy.launcher
        check_own_world(self)
        if launcher is None or self._is_launched:
            return _on_this_rank(self, function, args, kwargs)
        if launcher.is_rank:
            return launcher.launch(_on_this_rank, self, function, args, kwargs, trainer=self)
        if function is None:
            raise TypeError(
                f"{type(self.strategy).__name__} with start_method={getattr(self.strategy, 'start_method', None)!r} "
                "starts functions. Put the loop into one, and pass it: fabric.launch(function)."
            )
        return launcher.launch(_on_this_rank, self, function, args, kwargs, trainer=None)

    def barrier(self, name: str | None = None) -> None:
        """Wait until all ranks are here."""
        self._check_launched()
        self.strategy.barrier(name)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """`obj` of rank `src`, on all ranks. Objects are pickled. All ranks must call it."""
        self._check_launched()
        return self.strategy.broadcast(obj, src)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Tensors and numbers of all ranks, stacked along a new first dimension; unchanged on one process.

        Args:
            data: Tensors of the same shapes on all ranks, numbers, or lists, tuples and dicts of them.
            group: Process group; None is all ranks.
            sync_grads: Whether gradients flow back to the ranks that the parts came from.
        """
        self._check_launched()
        gather = partial(self.strategy.all_gather, group=group, sync_grads=sync_grads)
        return map_tensors(data, gather, self.device)

    def all_reduce(self, data: Any, group: Any = None, reduce_op: str = "mean") -> Any:
        """Tensors and numbers reduced over all ranks; the given ones stay as they are.

        Args:
            data: Tensors of the same shapes on all ranks, numbers, or lists, tuples and dicts of them.
            group: Process group; None is all ranks.
            reduce_op: "mean", "sum", "min", "max" or "product".
        """
        self._check_launched()
        reduce = partial(self.strategy.reduce, group=group, reduce_op=reduce_op)
        return map_tensors(data, reduce, self.device)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        """The first rank runs the ``with`` block before all others do, however long it takes.

        Args:
            local: The first rank of each machine, instead of one for all.
        """
        self._check_launched()
        store = self.strategy.open_store("rank_zero_first")  # all ranks must reach this
        key = f"ready/{self.node_rank}" if local else "ready"
        is_first = (self.local_rank if local else self.global_rank) == 0
        if store is not None and not is_first:
            _wait_for(store, key)
        try:
            yield
        finally:
            if store is not None and is_first:
                store.set(key, "1")
        self.strategy.barrier("rank_zero_first")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process of each machine."""
        if self.local_rank == 0:
            print(*args, **kwargs)  # noqa: T201

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool | None = None, verbose: bool = True) -> int:
        """Seed Python, NumPy and torch; see `fulgur.seed_everything`."""
        return seed_everything(seed, workers=bool(workers), verbose=verbose)

    # ------------------------------------------------------------------------------------------------- setting up

    def setup(
        self,
        module: nn.Module,
        *optimizers: Optimizer,
        scheduler: Any = None,
        move_to_device: bool = True,
        _reapply_compile: bool = True,
    ) -> Any:
        """Make a model and its optimizers ready. All ranks must call it, and have the weights of rank 0 afterwards.

        Args:
            module: The model; its weights are placed and cast in place.
            *optimizers: Built from its parameters.
            scheduler: Returned as it is, after the optimizers.
            move_to_device: Whether the model is moved to `device`.
            _reapply_compile: Whether what ``torch.compile`` was called with is compiled again, around the strategy.

        Returns:
            The model, or a tuple of the model, the optimizers and the scheduler, as far as they were given.

        Raises:
            ValueError: One of them has been set up already.
            RuntimeError: There are to be other processes, and `launch` has not been called.
        """
        _check_new(optimizers, "optimizer", "setup")
        model = self._wrap(module, optimizers, move_to_device=move_to_device, recompiles=_reapply_compile)
        wrapped = tuple(self._wrap_optimizer(optimizer) for optimizer in optimizers)
        inner = model.module
        if hasattr(inner, "_fabric"):
            inner.__dict__["_fabric_optimizers"] = list(wrapped)
        self.call("on_after_setup", fabric=self, module=model)
        if not optimizers and scheduler is None:
            return model
        return (model, *wrapped) if scheduler is None else (model, *wrapped, scheduler)

    def setup_module(
        self, module: nn.Module, move_to_device: bool = True, _reapply_compile: bool = True
    ) -> _FabricModule:
        """Make a model ready; for optimizers that are built afterwards. See `setup`."""
        return self._wrap(module, (), move_to_device=move_to_device, recompiles=_reapply_compile)

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """Make optimizers ready that were built from the parameters of a model that is. Returns one, or a tuple.

        Raises:
            ValueError: There are none, or one has been set up already.
        """
        if not optimizers:
            raise ValueError("setup_optimizers() got no optimizer. Pass one or more.")
        self._check_launched()
        _check_new(optimizers, "optimizer", "setup_optimizers")
        wrapped = tuple(self._wrap_optimizer(optimizer) for optimizer in optimizers)
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def setup_dataloaders(
        self, *dataloaders: DataLoader[Any], use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """Make loaders ready: each rank sees its own samples, and batches come on the device. Returns one, or a list.

        Args:
            *dataloaders: DataLoaders.
            use_distributed_sampler: Whether samples are split over ranks, with a `DistributedSampler`.
            move_to_device: Whether batches are moved to `device`.

        Raises:
            ValueError: There are none, or one has been set up already.
            TypeError: One is no DataLoader.
        """
        if not dataloaders:
            raise ValueError("setup_dataloaders() got no loader. Pass one or more.")
        self._check_launched()
        _check_new(dataloaders, "dataloader", "setup_dataloaders")
        for loader in dataloaders:
            if not isinstance(loader, DataLoader):
                raise TypeError(f"setup_dataloaders got a {type(loader).__name__}. Pass torch's DataLoader.")
        device = self.device if move_to_device else None
        ready = [self._split(loader, splits=use_distributed_sampler) for loader in dataloaders]
        wrapped = [_FabricDataLoader(loader, device) for loader in ready]
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def _split(self, loader: DataLoader[Any], *, splits: bool) -> DataLoader[Any]:
        if splits and self.world_size > 1:
            from fulgur.fabric.loaders import split_over_ranks

            loader = split_over_ranks(loader, self.strategy)
        seed_workers(loader, global_rank=self.global_rank)
        return loader

    def _wrap(
        self, module: nn.Module, optimizers: tuple[Optimizer, ...], *, move_to_device: bool, recompiles: bool
    ) -> _FabricModule:
        self._check_launched()
        _check_new((module,), "model", "setup")
        original = unwrap_compiled(module)
        compiler = None
        if original is not module and recompiles:
            compiler = partial(_compile_again, type(module), module.dynamo_ctx)
        before = {id(p): name for name, p in original.named_parameters(remove_duplicate=False)}
        original = self._precision.convert_module(original)
        wrapped = self.strategy.wrap_module(original, move_to_device=move_to_device)  # all ranks must reach this
        replace_parameters(before, original, optimizers)
        for inner in original.modules():
            if hasattr(inner, "_fabric"):
                inner.__dict__["_fabric"] = self
        return _FabricModule(original, wrapped, strategy=self.strategy, precision=self._precision, compiler=compiler)

    def _wrap_optimizer(self, optimizer: Optimizer) -> _FabricOptimizer:
        told = [c.on_after_optimizer_step for c in self._callbacks if hasattr(c, "on_after_optimizer_step")]
        if self._scaling is None and not told:
            return _FabricOptimizer(optimizer)
        return _FabricOptimizer(optimizer, partial(_step, self._scaling, told, self.strategy, optimizer))

    def _check_launched(self) -> None:
        if not self._is_launched and not isinstance(self.strategy, SingleDeviceStrategy):
            raise RuntimeError(
                f"This Fabric has {self.num_devices * self.num_nodes} process(es) with "
                f"{type(self.strategy).__name__}, and they have not been started. Call fabric.launch() first."
            )

    # -------------------------------------------------------------------------------------------------- the steps

    def backward(self, tensor: Tensor, *args: Any, model: Any = None, **kwargs: Any) -> None:
        """``tensor.backward(*args, **kwargs)``, with the loss scaled where the precision asks for it.

        Args:
            tensor: The loss.
            *args: For ``backward``.
            model: Accepted for compatibility.
            **kwargs: For ``backward``.
        """
        if self._scaling is not None:
            self._scaling.update()  # order matters: not between the steps of optimizers that share this scale
            tensor = self._scaling.scale(tensor)
        tensor.backward(*args, **kwargs)

    def clip_gradients(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        clip_val: float | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor | None:
        """Clip the gradients of an optimizer's parameters in place, after their scale has been taken off.

        Args:
            module: The model that was set up.
            optimizer: The optimizer that was set up.
            clip_val: Upper bound of each element's size.
            max_norm: Upper bound of the norm over all parameters, and over all ranks that share them.
            norm_type: Which norm; 2.0 is the Euclidean one.
            error_if_nonfinite: Whether a norm that is not finite is an error. Waits for the device.

        Returns:
            The norm before, with `max_norm`; else None.

        Raises:
            ValueError: Both bounds are given, or neither.
            RuntimeError: The norm is not finite.
        """
        if (clip_val is None) == (max_norm is None):
            raise ValueError(
                f"clip_gradients got clip_val={clip_val} and max_norm={max_norm}. Give exactly one: clip_val bounds "
                "each element, max_norm the norm of all."
            )
        from fulgur.optim.over_meshes import clip_norm, clip_value

        self.unscale(optimizer)
        parameters = [parameter for group in unwrap(optimizer).param_groups for parameter in group["params"]]
        if clip_val is not None:
            clip_value(parameters, clip_val)
            return None
        assert max_norm is not None
        return clip_norm(parameters, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite)

    def unscale(self, optimizer: Optimizer) -> None:
        """Take the scale of 16-mixed off the gradients of `optimizer`, for a loop that looks at them. Once a step."""
        if self._scaling is not None:
            self._scaling.unscale(unwrap(optimizer))

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for computations outside of the model's forward pass, under the same precision."""
        return self._precision.context_of_steps() or nullcontext()

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """A context in which gradients are kept on each rank, for all batches of a window but the last.

        Both the forward and the backward pass belong into it. Nothing changes on one process.

        Args:
            module: The model that was set up.
            enabled: False makes the context do nothing.

        Raises:
            TypeError: `module` was not set up.
        """
        context = no_sync_of(module)
        return context if enabled else nullcontext()

    def to_device(self, obj: Any) -> Any:
        """A module, a tensor or a nesting of tensors, on `device`."""
        if isinstance(obj, nn.Module):
            return obj.to(self.device)
        return move_to_device(obj, self.device)

    @contextmanager
    def init_tensor(self) -> Iterator[None]:
        """Context in which new tensors are on `device`, with the dtype of the precision."""
        with self.device, self._precision.init_context():
            yield

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Context in which models are made with the dtype of the precision, where they will be.

        Args:
            empty_init: True leaves out initial values, for a model that will be loaded. Strategies that cut models into
                parts then make them without memory; None and False make them whole, in the host's memory.
        """
        self._check_launched()
        with ExitStack() as stack:
            stack.enter_context(self.strategy.init_context(is_empty=bool(empty_init)))
            stack.enter_context(self._precision.init_context())
            if empty_init:
                stack.enter_context(WithoutValues())
            yield

    @contextmanager
    def sharded_model(self) -> Iterator[None]:
        """The earlier name of a context in which models were cut into parts; `setup` does that now."""
        self._check_launched()
        yield

    # ------------------------------------------------------------------------------------------ files and loggers

    def save(self, path: Path, state: Mapping[str, Any], filter: states.Filter | None = None) -> None:
        """Write a checkpoint. All ranks must call it.

        The file appears whole or not at all. Strategies that cut models into parts write one file, or a directory of
        parts (``FSDPStrategy(state_dict_type="sharded")``); every strategy reads both.

        Args:
            path: A path, or a URL.
            state: Models, optimizers and other objects with a ``state_dict``, and plain data, by name.
            filter: By name in `state`, a function of a key and a value that says whether it is saved.

        Raises:
            CheckpointError: It could not be written. What was at `path` is untouched.
            TypeError, ValueError: `filter` is no dict of functions, or has a key that `state` has not.
        """
        self._raise_at_the_end()
        states.save(self.strategy, path, state, filter)

    def _raise_at_the_end(self) -> None:
        """Nobody says when a loop is over: a write in the background that fails last is told when the program ends."""
        writer = self.strategy.checkpoint_io
        if isinstance(writer, AsyncCheckpointIO) and writer is not self._awaited:
            self._awaited = writer
            atexit.register(writer.wait)

    def load(
        self, path: Path, state: Any = None, strict: bool = True, *, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint into the objects of `state`. All ranks must call it.

        Args:
            path: A path, or a URL.
            state: As for `save`; plain data in it is replaced. A model or an optimizer alone takes the whole file. None
                loads into nothing.
            strict: Whether all names of `state`, and all of a model's, must be there.
            weights_only: None and True execute nothing from the file; False unpickles it, for files you trust.

        Returns:
            What of the file was not loaded.

        Raises:
            FileNotFoundError: There is nothing at `path`.
            KeyError: A name of `state` is missing.
            CheckpointError: The file is damaged, or is no checkpoint.
        """
        if state is None:
            return states.read(self.strategy, path, {}, weights_only=weights_only)
        if isinstance(state, (nn.Module, Optimizer)):
            self.load_raw(path, state, strict, weights_only=weights_only)
            return {}
        return states.load(self.strategy, path, state, strict=strict, weights_only=weights_only)

    def load_raw(self, path: Path, obj: Any, strict: bool = True, *, weights_only: bool | None = None) -> None:
        """Load a file that is the ``state_dict`` of one model or optimizer. All ranks must call it.

        Args:
            path: A path, or a URL.
            obj: What to load into.
            strict: Whether all names of a model must be there.
            weights_only: As for `load`.
        """
        states.load_raw(self.strategy, path, obj, strict=strict, weights_only=weights_only)

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Send a number to all loggers. Waits for the device, if it is in a tensor there.

        Args:
            name: Of the metric.
            value: A number, or a tensor of one element.
            step: The loggers' axis; None leaves it to them.
        """
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send several numbers to all loggers; see `log`."""
        if not self._loggers:
            return
        values = {name: to_scalar(name, value) for name, value in metrics.items()}
        for logger in self._loggers:
            logger.log_metrics(dict(values), step=step)

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call the method `hook_name` of each callback that has one, in their order."""
        for callback in self._callbacks:
            method = getattr(callback, hook_name, None)
            if callable(method):
                method(*args, **kwargs)
            elif method is not None:
                rank_zero_warn(
                    f"{type(callback).__name__}.{hook_name} is {method!r:.60}, which cannot be called, and was passed "
                    "over."
                )


def _overrides_run(fabric: Fabric) -> bool:
    return type(fabric).run is not Fabric.run


def _run_launched(fabric: Fabric, *args: Any, **kwargs: Any) -> Any:
    """Call the ``run`` of a subclass, on all ranks."""
    return fabric.launch(type(fabric).run, *args, **kwargs)


def _on_this_rank(fabric: Fabric, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not isinstance(fabric.strategy, SingleDeviceStrategy):
        join_ranks(fabric)  # all ranks must reach this
    fabric._is_launched = True
    return None if function is None else function(fabric, *args, **kwargs)


def _check_function(function: Any) -> None:
    if function is None:
        return
    if not callable(function):
        raise TypeError(f"fabric.launch({function!r:.60}): pass a function that takes a Fabric, or nothing.")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return
    if not parameters:
        raise TypeError(
            f"fabric.launch({getattr(function, '__name__', function)}): the function is called with the Fabric, and "
            "takes no argument. Give it one."
        )


def _check_new(objects: tuple[Any, ...], kind: str, method: str) -> None:
    if any(map(is_wrapped, objects)):
        raise ValueError(f"{method} got a {kind} that was set up already. Pass each {kind} once.")


def _compile_again(kind: Any, compiler: Any, module: nn.Module) -> Any:
    return kind(module, compiler)


def _step(
    scaling: LossScaling | None,
    told: list[Callable[..., Any]],
    strategy: Strategy,
    optimizer: Any,
    closure: Callable[[], Any] | None,
    kwargs: dict[str, Any],
) -> Any:
    """One step of an optimizer whose gradients may be scaled, or which callbacks hear of."""
    if scaling is None:
        result = optimizer.step(**kwargs) if closure is None else optimizer.step(closure, **kwargs)
    else:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        result = scaling.step(optimizer, **kwargs)
        result = loss if closure is not None else result
    for call in told:
        call(strategy=strategy, optimizer=optimizer)
    return result


def _wait_for(store: Any, key: str) -> None:
    """The store, not a collective: collectives have a timeout, and what the first rank does may take hours."""
    import time

    while not store.check([key]):
        time.sleep(0.02)
