"""Trials: training or evaluating for a few steps, in a run or before one, that leave everything as it was.

Reading order: `search` (a run that only tries things out) -> `Trial` (what it, or a callback within a run, tries them
with) -> `Trial.train`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from fulgur import run
from fulgur.connect import PREFIX, connect_training, eval_context, eval_plan, load_evaluation, load_training
from fulgur.data.combine import CombinedLoader, flatten_loaders
from fulgur.data.loaders import sized_length
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback, ignores_outputs
from fulgur.launching import on_all_ranks
from fulgur.leaving import watch_signals
from fulgur.loops.evaluate import EvaluationLoop
from fulgur.loops.feed import Feed
from fulgur.loops.fit import FitLoop
from fulgur.loops.limits import Limits
from fulgur.loops.predict import PredictLoop
from fulgur.metrics import MetricLog
from fulgur.optim.configure import OptimizerSetup
from fulgur.profilers.profiler import PassThroughProfiler
from fulgur.progress import Progress
from fulgur.rng import isolate_rng
from fulgur.sources import Call, eval_feed, find_source, missing_loader, train_feed
from fulgur.states import TrainerFn, TrainerState
from fulgur.strategies import SingleDeviceStrategy
from fulgur.tuner.kept import Kept

if TYPE_CHECKING:
    from fulgur.strategies import Strategy
    from fulgur.strategies.votes import Votes
    from fulgur.trainer import Trainer

_NAMES = {TrainerFn.FITTING: "train", TrainerFn.VALIDATING: "val", TrainerFn.TESTING: "test"} | {
    TrainerFn.PREDICTING: "predict"
}


def search(trainer: Trainer, call: Call, look: Callable[[Trial], Any]) -> Any:
    """Do `look` where a run of `call` would begin to loop, and leave Trainer, module and datamodule as they were.

    The Trainer's callbacks, loggers and profiler take no part. Everything else of a run happens: launch,
    `prepare_data`, `setup`, `configure_model`, `configure_optimizers`, and teardown at the end.

    Args:
        trainer: Whose run it would be.
        call: With what.
        look: Takes the trial, and returns what is returned. Pickled where other processes are started for it.
    """
    return on_all_ranks(trainer, _search, call, look=look)


def _search(trainer: Trainer, call: Call, *, look: Callable[[Trial], Any]) -> Any:
    trial = Trial(trainer, call)

    def body() -> Any:
        module, strategy = trainer.lightning_module, trainer.strategy
        is_fitting = call.fn is TrainerFn.FITTING
        trainer.callbacks = []  # those of configure_callbacks take no part either
        if is_fitting:
            run._check_training(trainer, module)
            run._check_sources(trainer, call)
        else:
            run._check_has_step(module, f"{PREFIX[trial.name]}_step")
        run._start(trainer, call)
        trainer.precision_plugin.convert_module(module)
        strategy.setup_module(module)
        if is_fitting:
            trial.setup = run._configure_optimizers(trainer, module)
        else:
            strategy.prepare_evaluation(module)  # all ranks must reach this
        if not is_sharding:
            return look(trial)
        with trial.unnoticed(module, trainer.datamodule, is_whole=False):  # it stays sharded, with the weights it had
            return look(trial)

    is_sharding = trainer.strategy.forward_is_collective
    owner = getattr(call.model, "_orig_mod", call.model) if call.model is not None else trainer._module
    is_kept = isinstance(owner, nn.Module) and "_modules" in vars(owner) and not is_sharding
    with trial.unnoticed(owner if is_kept else None, call.datamodule or trainer.datamodule, is_whole=True):
        return run._execute(trainer, call, body)


class Trial:
    """Runs a few steps with the model of a run, its optimizers and its loaders, asked for anew each time.

    Used as a context manager it is a trial within a run: at its end everything is as it was at its beginning.

    Args:
        trainer: Whose run it is.
        call: Its call. None is the one that is under way.

    Attributes:
        name: Which loaders it is about: "train", "val", "test" or "predict".
        setup: Optimizers and schedulers.
        feed: The loaders asked for last; None before.
        bar: The Trainer's progress bar, on the rank that has one; else None.
    """

    def __init__(self, trainer: Trainer, call: Call | None = None) -> None:
        self.trainer = trainer
        self.call: Call = call if call is not None else trainer._call  # type: ignore[assignment]
        self.name = _NAMES[self.call.fn]
        self.setup = OptimizerSetup(trainer.optimizers, trainer.lr_scheduler_configs)
        self.feed: Feed | None = None
        self.bar = trainer.progress_bar_callback if trainer.is_global_zero else None
        self._is_agreeing, self._votes = False, cast("Votes | None", None)
        self._generators: list[tuple[Feed, Any]] = []
        self._scope: AbstractContextManager[None] | None = None

    def __enter__(self) -> Trial:
        trainer = self.trainer
        if self.call.fn is TrainerFn.FITTING:
            turns = trainer.fit_loop.plan.turns
            self.setup.frequencies = [turns.count(index) for index in sorted(set(turns))]
        self._scope = self.unnoticed(trainer.lightning_module, trainer.datamodule, is_whole=False)
        self._scope.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        assert self._scope is not None
        self._scope.__exit__(*exc_info)

    # ------------------------------------------------------------------------------------------- what is tried out

    def load(self) -> Feed:
        """Ask for the loaders, as they are with what has been set so far. All ranks must reach this."""
        trainer, call = self.trainer, self.call
        trainer._feeds, trainer._loaded_at = {}, {}
        if find_source(trainer, call, self.name) is None:
            raise MisconfigurationException(missing_loader(trainer, self.name))
        self.feed = train_feed(trainer, call) if self.name == "train" else eval_feed(trainer, call, self.name)
        self._generators.append((self.feed, self.feed.generators()))
        return self.feed

    def longest_dataset(self, strategy: Strategy) -> float:
        """Samples that a rank of `strategy` sees of the longest dataset loaded last; ``inf`` if unknown."""
        structure = self._feed_here().structure
        loaders = structure.flattened if isinstance(structure, CombinedLoader) else flatten_loaders(structure)
        lengths = [sized_length(getattr(loader, "dataset", None)) for loader in loaders]
        longest = max((length for length in lengths if not math.isinf(length)), default=math.inf)
        return longest if math.isinf(longest) else math.ceil(longest / strategy.data_size)

    def load_anew(self) -> None:
        """After a trial within a run: let the run have loaders as they are by now. All ranks must reach this."""
        trainer, call, feeds = self.trainer, self.call, self.trainer._feeds
        if self.name != "train":
            loops = {"val": trainer.validate_loop, "test": trainer.test_loop, "predict": trainer.predict_loop}
            loops[self.name].feed = eval_feed(trainer, call, self.name)
            return
        was_loaded = "train" in feeds and trainer._loaded_at.get("train") is not None
        feeds.pop("train", None)
        feeds.pop("val", None)
        if was_loaded:
            load_training(trainer, call)
            feeds["train"].set_epoch(trainer.current_epoch)

    def train(self, max_steps: int, *, callback: Callback | None = None) -> None:
        """Train for `max_steps` steps of the optimizer, or as many windows without one, with no validation.

        Args:
            max_steps: >= 1.
            callback: The only one that takes part. It may set `fit_loop.should_stop`, on all ranks after the same
                batch.
        """
        trainer, module = self.trainer, self.trainer.lightning_module
        enough = _Enough(max_steps * trainer.accumulate_grad_batches)
        trainer.callbacks = [enough] if callback is None else [callback, enough]
        self._take_loop(max_steps)
        self._take_metrics()
        for parameter in module.parameters():
            parameter.grad = None
        with trainer.strategy.on_trial() as wrap_training:
            connect_training(trainer, self.call, self._without_schedulers())
            wrap_training(module)  # all ranks must reach this
            self.load()
            load_training(trainer, self.call)
            with self._agreeing():
                trainer.fit_loop.run()

    def _agreeing(self) -> AbstractContextManager[None]:
        """What lets ranks leave out batches in the steps of a trial, as they may in those of a run."""
        trainer = self.trainer
        if not trainer.strategy.is_distributed:
            return nullcontext()
        if not self._is_agreeing:
            return watch_signals(trainer, trainer.fit_loop, trainer._val_loop)
        trainer.fit_loop.plan.votes = self._votes  # the run's: two agreements would share their connections
        return nullcontext()

    def evaluate(self, n_batches: int) -> None:
        """Evaluate, or predict for, `n_batches` batches of each loader."""
        trainer = self.trainer
        trainer.callbacks = []
        self._take_metrics()
        setattr(trainer, f"limit_{self.name}_batches", n_batches)
        self.load()
        context = eval_context(trainer)
        if self.name == "predict":
            predicting = PredictLoop()
            predicting.metrics, predicting.keeps_predictions = trainer.metrics, False
            predicting.feed = self._feed_here()
            predicting.plan = eval_plan(trainer, trainer.lightning_module, "predict", predicting.feed)
            predicting.run(context=context)
            return
        loop = EvaluationLoop("validation" if self.name == "val" else "test")
        load_evaluation(trainer, self.call, self.name, loop)
        loop.feed = self._feed_here()
        loop.run(context=context, writes=False)

    def _feed_here(self) -> Feed:
        assert self.feed is not None
        return self.feed

    def _take_loop(self, max_steps: int) -> None:
        trainer, progress = self.trainer, self._began_at
        loop = FitLoop(Limits(max_epochs=-1, accumulate=trainer.accumulate_grad_batches, log_every_n_steps=0))
        loop.limits.max_steps = progress.global_step + max_steps
        loop.progress = Progress(progress.epoch, global_step=progress.global_step, log_step=progress.log_step)
        loop.val_loop = trainer._val_loop
        trainer.fit_loop = loop

    def _take_metrics(self) -> None:
        trainer = self.trainer
        trainer.metrics = MetricLog()
        trainer.metrics.reset(trainer.lightning_module, is_enabled=not trainer.barebones)
        trainer.lightning_module.attach(trainer, trainer.metrics)

    def _without_schedulers(self) -> OptimizerSetup:
        return OptimizerSetup(self.setup.optimizers, [], self.setup.frequencies)

    # ------------------------------------------------------------------------------------ what is left as it was

    @contextmanager
    def unnoticed(self, module: Any, datamodule: Any, *, is_whole: bool) -> Iterator[None]:
        """Within the block Trainer, `module` and `datamodule` may change.

        Args:
            module, datamodule: What is kept; None for none.
            is_whole: Whether the block holds a run of its own: then what `setup` and `configure_model` make goes again.
        """
        trainer, strategy, kept = self.trainer, self.trainer.strategy, Kept()
        is_emptied = is_whole and not strategy.forward_is_collective
        if module is not None:
            kept.keep_module(module, drops_all=is_emptied)
        if datamodule is not None:
            kept.keep_attributes(datamodule, drops_all=is_emptied)
        for optimizer in strategy.optimizers:
            kept.keep_optimizer(optimizer)
        for config in strategy.lr_scheduler_configs:
            kept.keep_attributes(config.scheduler)
        scaling, before = trainer.precision_plugin.state_dict(), dict(vars(trainer))
        own = (strategy.model, strategy.lightning_module, strategy.optimizers, strategy.lr_scheduler_configs)
        writer_failure = getattr(strategy.checkpoint_io, "on_failure", None)
        self._began_at = copy(trainer.fit_loop.progress)
        if trainer._agreement is not None:
            self._is_agreeing, self._votes = True, trainer.fit_loop.plan.votes
        with isolate_rng():
            try:
                self._replace_parts()
                yield
            finally:
                for feed, states in reversed(self._generators):
                    feed.set_generators(states)
                self._generators.clear()
                vars(trainer).clear()
                vars(trainer).update(before)
                strategy.model, strategy.lightning_module, strategy.optimizers, strategy.lr_scheduler_configs = own
                if hasattr(strategy.checkpoint_io, "on_failure"):
                    strategy.checkpoint_io.on_failure = writer_failure
                if scaling:
                    trainer.precision_plugin.load_state_dict(scaling)
                kept.restore()
                if module is not None and not is_whole:
                    module.attach(trainer, trainer.metrics)

    def _replace_parts(self) -> None:
        """Nobody who belongs to the run hears of the trial."""
        trainer, state = self.trainer, self.trainer.state
        if trainer.loggers:
            from fulgur.loggers.logger import DummyLogger

            trainer.loggers = [DummyLogger() for _ in trainer.loggers]
        trainer.callbacks = []
        trainer.profiler = PassThroughProfiler()
        trainer.state = TrainerState(state.status, state.fn, state.stage)
        trainer.metrics = MetricLog()
        trainer._feeds, trainer._loaded_at, trainer._signals = {}, {}, set()
        trainer._val_loop, trainer.limit_val_batches = EvaluationLoop("validation"), 0 if self.name == "train" else 1.0
        trainer.validate_loop, trainer.test_loop = EvaluationLoop("validation"), EvaluationLoop("test")
        trainer.predict_loop = PredictLoop()
        trainer._agreement = trainer._before_validation = trainer._saved = None
        trainer._ckpt_path = trainer._loaded_ckpt_path = None
        trainer._is_trial = True
        loop = FitLoop(copy(trainer.fit_loop.limits))
        loop.progress, loop.val_loop = copy(self._began_at), trainer._val_loop
        trainer.fit_loop = loop

    @contextmanager
    def alone(self) -> Iterator[Strategy]:
        """Within the block this process trains by itself, whatever the others do. Yields the strategy it has else."""
        trainer, strategy = self.trainer, self.trainer.strategy
        if not strategy.is_distributed:
            yield strategy
            return
        own = SingleDeviceStrategy(strategy.root_device)
        own.precision_plugin, own.checkpoint_io = strategy.precision_plugin, strategy.checkpoint_io
        own.model = own.lightning_module = trainer.lightning_module
        own.optimizers, own.lr_scheduler_configs = strategy.optimizers, strategy.lr_scheduler_configs
        trainer.strategy = own
        try:
            yield strategy
        finally:
            trainer.strategy = strategy


class _Enough(Callback):
    """Ends a trial whose steps update nothing."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches, self.n_done, self.n_before = n_batches, 0, 0

    @ignores_outputs
    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.n_done += 1
        if self.n_done >= self.n_batches:
            trainer.fit_loop.should_stop = True

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        self.n_before = self.n_done

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.n_done == self.n_before:
            trainer.fit_loop.should_stop = True
