"""One run, from entry to exit, in order: what `Trainer.fit`, `validate`, `test` and `predict` do.

Reading order: `fit` -> `_fit` -> `_start` -> `connect_training` -> `_sanity_check` -> `FitLoop.run` -> `_execute`
(teardown, always). `evaluate` and `predict` go the same way without the training in the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fulgur.checkpoint import state as checkpoint_state
from fulgur.connect import (
    PREFIX,
    connect_training,
    eval_context,
    eval_plan,
    is_profiled,
    lend_log,
    load_evaluation,
    load_first_validation,
    load_training,
    resume_generators,
    resume_loading,
)
from fulgur.continuing import say_complete, warn_of_short_schedules
from fulgur.datamodule import LightningDataModule
from fulgur.errors import MisconfigurationException, PossibleUserWarning, RequeueException
from fulgur.hooks import (
    Callback,
    earlier_hooks,
    nearest_own,
    overrides,
    warn_of_slips,
)
from fulgur.launching import on_all_ranks, prepare_once, watch_failure
from fulgur.leaving import remove_interrupted, watch_signals
from fulgur.loops.choose import check_turns
from fulgur.loops.resume import begin_epoch_at, keep_epoch, resume_epoch
from fulgur.module import LightningModule
from fulgur.optim.configure import OptimizerSetup, build_optimizers
from fulgur.profilers.profiler import measured
from fulgur.rank import rank_zero_warn
from fulgur.resolve import determinism, merge_module_callbacks
from fulgur.rng import fold_rng, isolate_rng
from fulgur.saving import (
    choose_own,
    contents_of,
    given_path,
    keep_training,
    load,
    state_here,
    warn_of_refused_hparams,
)
from fulgur.sources import (
    Call,
    can_validate,
    eval_feed,
    find_source,
    missing_loader,
    settle_epochs,
    shard_of,
)
from fulgur.states import RunningStage, TrainerFn, TrainerStatus

if TYPE_CHECKING:
    from fulgur.trainer import Trainer

_FIRST_STAGE = {
    TrainerFn.FITTING: RunningStage.TRAINING,
    TrainerFn.VALIDATING: RunningStage.VALIDATING,
    TrainerFn.TESTING: RunningStage.TESTING,
    TrainerFn.PREDICTING: RunningStage.PREDICTING,
}


# ------------------------------------------------------------------------------------------------- entry points


def fit(trainer: Trainer, call: Call) -> None:
    """Train, from launch to teardown."""
    on_all_ranks(trainer, _fit, call)


def evaluate(trainer: Trainer, call: Call) -> list[dict[str, float]]:
    """Validate or test, from launch to teardown."""
    results: list[dict[str, float]] = on_all_ranks(trainer, _evaluate, call)
    return results


def predict(trainer: Trainer, call: Call, *, returns: bool | str) -> list[Any] | None:
    """Predict, from launch to teardown."""
    predictions: list[Any] | None = on_all_ranks(trainer, _predict, call, returns=returns)
    return predictions


def _fit(trainer: Trainer, call: Call) -> None:
    def body() -> None:
        module, loop = trainer.lightning_module, trainer.fit_loop
        _check_training(trainer, module)
        _check_sources(trainer, call)
        _start(trainer, call)
        if trainer.checkpoint_callbacks and not trainer.fast_dev_run:  # while it can still be changed
            warn_of_refused_hparams(trainer)
        checkpoint = _load_and_place(trainer, call)
        setup = _configure_optimizers(trainer, module)
        connect_training(trainer, call, setup)
        _call_all(loop.hooks.on_fit_start)
        _log_hyperparameters(trainer)
        loop.progress.restart_epoch()
        if checkpoint is not None:
            checkpoint_state.restore_training(checkpoint, contents_of(trainer))
        trainer.strategy.wrap_training(module)  # all ranks must reach this
        settle_epochs(trainer)
        module.zero_grad()
        with watch_signals(trainer, loop, trainer._val_loop), _anomaly(trainer):
            _sanity_check(trainer, call)
            load_training(trainer, call)
            _check_resumed_epoch(trainer)
            own = checkpoint.get("fulgur", {}) if checkpoint is not None else {}
            running, rng = state_here(trainer, own) if "running" in own else (None, None)
            if given_path(trainer, call) == "auto":  # the same command again: what had stopped by itself stays stopped
                loop.should_stop = own.get("running", {}).get("should_stop", False)
            if loop.is_done():
                if running is not None:
                    keep_epoch(loop, running, rng)
                if checkpoint is not None:
                    say_complete(trainer)
            else:
                if running is not None:
                    resume_loading(trainer, running)
                load_first_validation(trainer, call)
                if checkpoint is not None:
                    warn_of_short_schedules(trainer)
                if running is not None:
                    resume_epoch(loop, trainer._feeds["train"], module, running, rng)
                    resume_generators(trainer)  # order matters: training may draw from the same ones
                elif checkpoint is not None:
                    states = checkpoint_state.loader_states(checkpoint)
                    is_last = checkpoint_state.ends_epoch(checkpoint)
                    begin_epoch_at(loop, trainer._feeds["train"], is_last=is_last, states=states)
                fold_rng(trainer.strategy.data_rank)
                loop.run()
        _move_metrics(trainer)
        trainer.strategy.teardown()
        _call_all(loop.hooks.on_fit_end)
        remove_interrupted(trainer)

    trainer.should_stop = False
    _execute(trainer, call, body)


def _evaluate(trainer: Trainer, call: Call) -> list[dict[str, float]]:
    name = "val" if call.fn is TrainerFn.VALIDATING else "test"
    loop = trainer.validate_loop if name == "val" else trainer.test_loop

    def body() -> list[dict[str, float]]:
        _check_has_step(trainer.lightning_module, f"{PREFIX[name]}_step")
        if find_source(trainer, call, name) is None:
            raise MisconfigurationException(missing_loader(trainer, name))
        _start(trainer, call)
        _load_and_place(trainer, call)
        trainer.strategy.prepare_evaluation(trainer.lightning_module)  # all ranks must reach this
        _log_hyperparameters(trainer)
        feed = load_evaluation(trainer, call, name, loop)
        if feed.is_empty:
            return []
        feed.set_epoch(trainer.current_epoch)
        with watch_signals(trainer, loop):
            results = loop.run(context=eval_context(trainer))
        _move_metrics(trainer)
        if call.is_verbose and trainer.is_global_zero:
            from fulgur.loops.results import print_results

            print_results(results, "Validate metric" if name == "val" else "Test metric")
        return results

    results: list[dict[str, float]] = _execute(trainer, call, body)
    return results


def _predict(trainer: Trainer, call: Call, *, returns: bool | str) -> list[Any] | None:
    loop = trainer.predict_loop

    def body() -> list[Any] | None:
        module = trainer.lightning_module
        if not (overrides(module, "predict_step", LightningModule) or overrides(module, "forward", torch.nn.Module)):
            raise MisconfigurationException(
                f"{type(module).__name__} has neither predict_step nor forward, which predict_step calls unless "
                "overridden. Define one of them."
            )
        if find_source(trainer, call, "predict") is None:
            raise MisconfigurationException(missing_loader(trainer, "predict"))
        _start(trainer, call)
        _load_and_place(trainer, call)
        trainer.strategy.prepare_evaluation(module)  # all ranks must reach this
        _log_hyperparameters(trainer)
        loop.metrics = trainer.metrics
        loop.feed = eval_feed(trainer, call, "predict")
        loop.plan = eval_plan(trainer, module, "predict", loop.feed)
        writers: list[Any] = [c for c in trainer.callbacks if hasattr(c, "write_on_batch_end")]
        loop.records_indices = bool(writers) or returns == "ordered"
        loop.keeps_predictions = bool(returns) or any(c.interval.on_epoch for c in writers)
        if trainer._settings.limit_predict_batches == 0:
            return None
        loop.feed.set_epoch(trainer.current_epoch)
        with watch_signals(trainer, loop):
            predictions = loop.run(context=eval_context(trainer))
        if returns == "ordered":
            from fulgur.loops.order import predictions_in_order

            return predictions_in_order(loop, shard_of(trainer.strategy))
        return predictions

    predictions: list[Any] | None = _execute(trainer, call, body)
    return predictions if returns else None


def _execute(trainer: Trainer, call: Call, body: Callable[[], Any]) -> Any:
    """Run `body` between attaching the model and teardown, which happens after an exception too."""
    state = trainer.state
    keep_training(trainer, call)
    _attach(trainer, call)
    trainer._call = call
    state.fn, state.status, state.stage = call.fn, TrainerStatus.RUNNING, _FIRST_STAGE[call.fn]
    trainer._has_set_up = False
    settings = trainer._settings
    with determinism(settings.deterministic, settings.benchmark):
        try:
            result = body()
            if call.fn is not TrainerFn.FITTING:  # fit has hooks that come after it
                trainer.strategy.teardown()
            _teardown(trainer, call)
            trainer.strategy.checkpoint_io.teardown()
        except BaseException as error:
            state.status = TrainerStatus.INTERRUPTED
            with watch_failure(trainer, error):
                _on_exception(trainer, error)
            raise
    state.status = TrainerStatus.FINISHED
    for logger in trainer.loggers:
        logger.finalize("success")
    trainer.profiler.describe()
    trainer.profiler.teardown(str(call.fn))
    state.stage = None
    return result


def _on_exception(trainer: Trainer, error: BaseException) -> None:
    """Tell everyone, then tear down; a hook that fails here does not hide what went wrong first."""
    module, datamodule = trainer.lightning_module, trainer.datamodule
    trainer.metrics.scope = trainer.metrics.batch = None
    calls: list[Callable[[], Any]] = [partial(c.on_exception, trainer, module, error) for c in trainer.callbacks]
    if isinstance(error, KeyboardInterrupt):
        calls += earlier_hooks("on_keyboard_interrupt", trainer.callbacks, trainer, module)
    if datamodule is not None:
        calls.append(partial(datamodule.on_exception, error))
    end: Callable[[], Any] = partial(
        _teardown, trainer, Call(trainer.state.fn or TrainerFn.FITTING, None, None, None, None)
    )
    calls += [trainer.strategy.teardown, end, trainer.strategy.checkpoint_io.teardown]
    calls.append(partial(trainer.profiler.teardown, str(trainer.state.fn)))
    for hook in calls:
        try:
            hook()
        except Exception as second:
            rank_zero_warn(f"After {error!r}, another exception came from {_name(hook)}: {second!r}.")
    for logger in trainer.loggers:
        logger.finalize("finished" if isinstance(error, RequeueException) else "failed")
    trainer.state.stage = None


def _teardown(trainer: Trainer, call: Call) -> None:
    """The hooks of the end, in the order of their beginning."""
    if not trainer._has_set_up:
        return
    trainer._has_set_up = False
    module, stage = trainer.lightning_module, call.fn
    trainer.metrics.scope = None
    if trainer.datamodule is not None:
        measured(trainer.profiler, trainer.datamodule.teardown)(stage=stage)
    for callback in trainer.callbacks:
        measured(trainer.profiler, callback.teardown)(trainer, module, stage=stage)
    measured(trainer.profiler, module.teardown)(stage=stage)


# --------------------------------------------------------------------------------------------------- the beginning


def _attach(trainer: Trainer, call: Call) -> None:
    """Check what was passed and make it the Trainer's own."""
    model = getattr(call.model, "_orig_mod", call.model)  # torch.compile'd
    if model is None:
        model = trainer._module
    if model is None:
        raise TypeError(
            f"trainer.{call.fn}() was called without a model, and none has been attached by an earlier call. Pass one."
        )
    if not isinstance(model, LightningModule):
        raise TypeError(f"trainer.{call.fn} needs a LightningModule; {_what_came(model)}")
    if "_modules" not in model.__dict__:
        raise MisconfigurationException(
            f"{type(model).__name__}.__init__ did not call super().__init__(). Make that its first line."
        )
    if call.datamodule is not None and not isinstance(call.datamodule, LightningDataModule):
        raise TypeError(
            f"datamodule={call.datamodule!r:.80} is no LightningDataModule. "
            + ("Pass an instance." if isinstance(call.datamodule, type) else "Pass loaders by their own name.")
        )
    trainer._module, trainer.strategy.model = model, None
    trainer._loaded_ckpt_path = given_path(trainer, call)  # `setup` of callbacks may ask what is about to be loaded
    model.attach(trainer, trainer.metrics)
    if call.model is not None:
        model.compiler = getattr(call.model, "dynamo_ctx", None)
    legacy = trainer._legacy
    if legacy.automatic_optimization is not None:
        model.automatic_optimization = legacy.automatic_optimization
    if call.datamodule is not None:
        trainer.datamodule = call.datamodule
    if trainer.datamodule is not None:
        trainer.datamodule.trainer = trainer
    if legacy.prepare_data_per_node is not None:
        model.prepare_data_per_node = legacy.prepare_data_per_node
        if trainer.datamodule is not None:
            trainer.datamodule.prepare_data_per_node = legacy.prepare_data_per_node
    own = model.configure_callbacks()
    if own:
        trainer.callbacks = merge_module_callbacks(trainer.callbacks, own)
    lend_log(trainer)
    warn_of_slips(model, LightningModule)
    for callback in trainer.callbacks:
        warn_of_slips(callback, Callback)


def _what_came(model: Any) -> str:
    if isinstance(model, type):
        return f"got the class {model.__name__}. Pass an instance: {model.__name__}()."
    if isinstance(model, torch.nn.Module):
        return f"got {type(model).__name__}, a plain nn.Module. Make it an attribute of a LightningModule."
    return f"got {type(model).__name__}. The model comes first, then the loaders."


def _start(trainer: Trainer, call: Call) -> None:
    """Prepare data, open the loggers, set everyone up, build the model."""
    module, datamodule, stage = trainer.lightning_module, trainer.datamodule, call.fn
    trainer.metrics.reset(module, is_enabled=not trainer.barebones)
    if trainer.strategy.is_distributed:
        from fulgur.sums import SharedSums, mean_over_ranks

        trainer.metrics.sums = SharedSums(trainer.strategy, trainer.metrics)
        trainer.metrics.share_step = partial(mean_over_ranks, trainer.strategy)
    trainer.metrics.__dict__.pop("log", None)
    if module.compiler is not None:  # what logging changes differs at every step: traced, it would be compiled anew
        trainer.metrics.__dict__["log"] = torch.compiler.disable(trainer.metrics.log)
    for name in call.sources:
        trainer._feeds.pop(name, None)
    trainer._loaded_at.clear()
    trainer._saved = None
    module._device = trainer.strategy.root_device
    for owner, base in ((datamodule, LightningDataModule), (module, LightningModule)):
        if owner is not None and overrides(owner, "prepare_data", base):
            prepare_once(trainer.strategy, owner.prepare_data, on_each_node=owner.prepare_data_per_node)
    choose_own(trainer, call)  # order matters: loggers go on with an earlier version before they open a new one
    for logger in trainer.loggers:
        _ = logger.experiment
    if is_profiled(trainer):
        trainer.profiler.setup(str(stage), trainer.local_rank, trainer.log_dir)
    trainer._has_set_up = True
    if datamodule is not None:
        measured(trainer.profiler, datamodule.setup)(stage=stage)
    for callback in trainer.callbacks:
        measured(trainer.profiler, callback.setup)(trainer, module, stage=stage)
    measured(trainer.profiler, module.setup)(stage=stage)
    trainer.strategy.barrier("setup")
    if overrides(module, "configure_model", LightningModule):
        trainer.strategy.prepare_configuration(module)  # all ranks must reach this
        with trainer.precision_plugin.init_context():
            module.configure_model()
    elif hasattr(module, "configure_sharded_model"):
        module.configure_sharded_model()  # type: ignore[operator]
    module.attach(trainer, trainer.metrics)  # modules inside it that were made just now, too


def _load_and_place(trainer: Trainer, call: Call) -> dict[str, Any] | None:
    """Bring the model into its format and onto its device.

    Weights are loaded before the model is placed, unless then no rank holds all of it.
    """
    module, strategy = trainer.lightning_module, trainer.strategy
    trainer.precision_plugin.convert_module(module)  # order matters: a float32 module would round what is loaded
    if strategy.restores_after_setup:
        strategy.setup_module(module)
        return load(trainer, call)
    checkpoint = load(trainer, call)
    strategy.setup_module(module)
    return checkpoint


def _log_hyperparameters(trainer: Trainer) -> None:
    """Send hyperparameters and graph to the loggers."""
    module, datamodule = trainer.lightning_module, trainer.datamodule
    if not trainer.loggers or not trainer.enable_autolog_hparams:
        return
    merged: dict[str, Any] = {}
    for owner in (module, datamodule):
        if owner is None or not getattr(owner, "_log_hyperparams", False):
            continue
        for name, value in dict(owner.hparams_initial).items():
            if name == "_class_path":  # module and datamodule may each have one
                continue
            if name in merged and not _is_same(merged[name], value):
                raise RuntimeError(
                    f"Module and datamodule both save the hyperparameter {name!r}, with the values {merged[name]!r} "
                    f"and {value!r}. Rename one, or call save_hyperparameters(logger=False) in one of them."
                )
            merged[name] = value
    for logger in trainer.loggers:
        if merged:
            logger.log_hyperparams(merged)
        logger.log_graph(module)
        logger.save()


# -------------------------------------------------------------------------------------------------------- training


def _check_training(trainer: Trainer, module: LightningModule) -> None:
    """Everything that can be known to be wrong before anything has run."""
    name = type(module).__name__
    _check_has_step(module, "training_step")
    if not overrides(module, "configure_optimizers", LightningModule):
        raise MisconfigurationException(
            f"{name} has no configure_optimizers.{nearest_own(module, 'configure_optimizers', LightningModule)} Return "
            "an optimizer from it, for example torch.optim.Adam(self.parameters(), lr=1e-3); or [] to train without."
        )
    if not module.automatic_optimization:
        accumulate, clip = trainer.accumulate_grad_batches, trainer.gradient_clip_val
        if accumulate != 1:
            raise MisconfigurationException(
                f"accumulate_grad_batches={accumulate} has no effect on {name}, which optimizes manually. Leave it out "
                "and step the optimizer every so many batches in training_step."
            )
        if clip is not None and clip > 0:
            raise MisconfigurationException(
                f"gradient_clip_val={clip} has no effect on {name}, which optimizes manually. Leave it out and call "
                "self.clip_gradients(optimizer, ...) in training_step."
            )


def _check_has_step(module: LightningModule, step: str) -> None:
    if not overrides(module, step, LightningModule):
        lack = "has no" if getattr(module, step, None) is not None else "sets to None its"
        raise MisconfigurationException(
            f"{type(module).__name__} {lack} {step}.{nearest_own(module, step, LightningModule)} "
            f"Define {step}(self, batch, batch_idx)."
        )


def _check_sources(trainer: Trainer, call: Call) -> None:
    """Loaders that are missing, and loaders that nobody will ask for."""
    module = trainer.lightning_module
    if find_source(trainer, call, "train") is None:
        raise MisconfigurationException(missing_loader(trainer, "train"))
    trainer._val_loop.source = find_source(trainer, call, "val")
    if overrides(module, "validation_step", LightningModule):
        return
    nearest = nearest_own(module, "validation_step", LightningModule)
    if call.sources.get("val") is not None:
        rank_zero_warn(
            f"A validation loader was passed to trainer.fit, and {type(module).__name__} has no validation_step, so it "
            f"is not used.{nearest} Define validation_step(self, batch, batch_idx), or leave the loader out.",
            PossibleUserWarning,
        )
    elif nearest and (source := find_source(trainer, call, "val")) is not None:  # else the loader may be for others
        rank_zero_warn(
            f"{source[0]} gives a validation loader, and {type(module).__name__} has no validation_step, so it is not "
            f"used.{nearest}",
            PossibleUserWarning,
        )


def _configure_optimizers(trainer: Trainer, module: LightningModule) -> OptimizerSetup:
    returned = measured(trainer.profiler, module.configure_optimizers)()
    if returned is None and module.automatic_optimization:
        rank_zero_warn(
            f"configure_optimizers of {type(module).__name__} returned None, so nothing will be trained. Return the "
            "optimizer; or [] if this is meant.",
            PossibleUserWarning,
        )
    setup = build_optimizers(
        returned,
        automatic=module.automatic_optimization,
        has_scheduler_step_override=overrides(module, "lr_scheduler_step", LightningModule),
    )
    trainer.strategy.optimizers = setup.optimizers
    trainer.strategy.lr_scheduler_configs = setup.schedulers
    check_turns(setup.frequencies, trainer.accumulate_grad_batches)
    return setup


def _check_resumed_epoch(trainer: Trainer) -> None:
    max_epochs, epoch = trainer.max_epochs, trainer.current_epoch
    if trainer._loaded_ckpt_path is not None and max_epochs not in (None, -1) and epoch > max_epochs:
        raise MisconfigurationException(
            f"The checkpoint {str(trainer._loaded_ckpt_path)!r} was saved after {epoch} epochs, and "
            f"max_epochs={max_epochs}. max_epochs counts from the very first epoch: raise it."
        )


def _sanity_check(trainer: Trainer, call: Call) -> None:
    """Run a few validation batches, so that an error in the code shows before an epoch has passed."""
    loop, limits, progress = trainer._val_loop, trainer.fit_loop.limits, trainer.fit_loop.progress
    if limits.n_sanity_batches == 0 or not can_validate(trainer, call) or progress.phase != "start":
        return
    hooks, previous = trainer.fit_loop.hooks, trainer.state.stage
    trainer.state.stage = RunningStage.SANITY_CHECKING
    with isolate_rng():
        _call_all(hooks.on_sanity_check_start)
        feed = load_evaluation(trainer, call, "val", loop)
        feed.set_epoch(progress.epoch)
        if not feed.is_empty:
            loop.run(context=torch.no_grad(), at_most=limits.n_sanity_batches, writes=False)
        _call_all(hooks.on_sanity_check_end)
    metrics = trainer.metrics
    for stale in (metrics.callback_metrics, metrics.logged_metrics, metrics.progress_bar_metrics):
        stale.clear()
    trainer.state.stage = previous


# ----------------------------------------------------------------------------------------------- metrics and files


def _move_metrics(trainer: Trainer) -> None:
    """After a run metrics live on the host, so that the device's memory is free."""
    trainer.metrics.refresh()
    for kept in (trainer.metrics.callback_metrics, trainer.metrics.logged_metrics):
        for key, value in kept.items():
            if isinstance(value, torch.Tensor):
                kept[key] = value.cpu()  # waits for the device


def _anomaly(trainer: Trainer) -> Any:
    return torch.autograd.set_detect_anomaly(True) if trainer._settings.detect_anomaly else nullcontext()


def _call_all(calls: tuple[Callable[..., Any], ...]) -> None:
    for hook in calls:
        hook()


def _is_same(first: Any, second: Any) -> bool:
    if first is second or type(first) is not type(second):
        return first is second
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


def _name(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__qualname__", hook))
