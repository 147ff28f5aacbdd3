"""ModelCheckpoint: when to save, under which name, and which of the saved files to keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from fulgur.callbacks.background_saves import BackgroundSaves
from fulgur.callbacks.checkpoint import Checkpoint
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.checkpoint.location import canonical, is_inside, is_remote, join, list_files
from fulgur.checkpoint.names import format_name, name_pattern
from fulgur.checkpoint.write import checkpoint_exists, link_checkpoint
from fulgur.errors import CheckpointError, MisconfigurationException, PossibleUserWarning, nearest_name
from fulgur.hooks import Callback, ignores_outputs
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

Method = TypeVar("Method", bound=Callable[..., Any])

_STATE_OF_THE_DIRECTORY = ("best_model_score", "best_k_models", "kth_best_model_path", "kth_value", "last_model_path")


def _not_counted_as_override(base: Callable[..., Any]) -> Callable[[Method], Method]:
    """Make `fulgur.hooks.overrides` see a method as the base's own.

    The loop then calls it only for an instance that asks for it, while a subclass that overrides it can still call
    ``super()``.
    """

    def mark(method: Method) -> Method:
        method.__wrapped__ = base  # type: ignore[attr-defined]
        return method

    return mark


class ModelCheckpoint(Checkpoint):
    """Saves the model while it trains, and keeps the best or the newest files.

    Without a trigger it saves at the end of every epoch. What triggers is one of `every_n_epochs`,
    `every_n_train_steps` and `train_time_interval`. An old file is deleted after the new one is safe; the file that
    a run was resumed from never is. Saving waits for the device; a batch without a save does not.

    Args:
        dirpath: Directory or URL. ``None`` puts files into ``checkpoints/`` of the first logger's version
            directory, or of `default_root_dir` without a logger.
        filename: Template without extension: ``"{epoch:02d}-{val_loss:.2f}"`` makes ``epoch=02-val_loss=0.32.ckpt``.
            A metric with a slash makes a subdirectory. ``None`` means ``"{epoch}-{step}"``.
        monitor: Metric that ranks the files. ``None`` keeps the newest.
        verbose: Print a line for each decision.
        save_last: True also saves ``last.ckpt`` whenever a file is saved; ``"link"`` makes it a symbolic link to
            the newest file.
        save_top_k: How many files to keep. -1 keeps all, 0 saves none (but `save_last`).
        save_on_exception: Also save when an exception or Ctrl-C ends the run.
        save_weights_only: Leave out what only resuming needs: optimizers, schedulers, callbacks.
        mode: Whether the lowest (``"min"``) or the highest (``"max"``) value of `monitor` is best.
        auto_insert_metric_name: Write ``name=value`` in file names, rather than the value alone.
        every_n_train_steps: Save when `global_step` is a multiple of this. 0 turns it off.
        train_time_interval: Save at the first batch end after this much time since the last save.
        every_n_epochs: Save at the end of every n-th epoch. 0 turns it off.
        save_on_train_epoch_end: True saves after the training epoch's end, False after validation. ``None`` chooses
            the latter where validation does not run exactly once an epoch.
        enable_version_counter: Add ``-v1``, ``-v2``, ... to a name that is taken, rather than overwrite.
        async_save: Write while training goes on, which then waits only for a copy to the host's memory. A file is
            complete some time after its save, at the latest when training ends. Always so where the Trainer's plugin
            is an `AsyncCheckpointIO`.
        on_save_error: What a save that fails (three times, unless a plugin says otherwise) does to the run: ``"stop"``
            ends it with the error, ``"continue"`` warns and tries again at the next time to save. Earlier files are
            safe in any case.

    Attributes:
        best_model_path: The best file, or the newest without `monitor`. Empty before the first save.
        best_model_score: Value of `monitor` for it, on the CPU.
        best_k_models: Score by path of the files that are kept.
        kth_best_model_path: The file that goes next.
        kth_value: Its score.
        current_score: Score of the latest candidate.
        last_model_path: Where ``last.ckpt`` is. Empty before the first.

    Raises:
        MisconfigurationException: The arguments contradict each other.
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        *,
        async_save: bool = False,
        on_save_error: Literal["stop", "continue"] = "stop",
    ) -> None:
        self.dirpath = None if dirpath is None else canonical(dirpath)
        self.filename = filename
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.mode = mode
        self.auto_insert_metric_name = auto_insert_metric_name
        self.enable_version_counter = enable_version_counter
        self.async_save = async_save
        self.on_save_error = on_save_error

        self.best_model_path = ""
        self.best_model_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value: Tensor | None = None
        self.current_score: Tensor | None = None
        self.last_model_path = ""

        has_trigger = not (every_n_train_steps is None and every_n_epochs is None and train_time_interval is None)
        self._every_n_train_steps = every_n_train_steps or 0
        self._every_n_epochs = (every_n_epochs or 0) if has_trigger else 1
        self._train_time_interval = train_time_interval
        self._save_on_train_epoch_end = save_on_train_epoch_end

        self._last_checkpoint_saved = ""
        self._last_global_step_saved = 0
        self._last_step_triggered = 0
        self._has_deferred_save = False
        self._has_validated = False
        self._has_warned_of_monitor = False
        self._resumed_from = ""
        self._background: BackgroundSaves | None = None
        self._clock = _IntervalClock(train_time_interval)

        self._check_arguments()
        if self._every_n_train_steps or train_time_interval is not None:
            self.__dict__["on_train_batch_end"] = self.on_train_batch_end

    def _check_arguments(self) -> None:
        if self.save_top_k < -1:
            raise MisconfigurationException(
                f"save_top_k={self.save_top_k} is not possible. Use -1 to keep all, or 0 or more."
            )
        if self.monitor is None and self.save_top_k not in (-1, 0, 1):
            raise MisconfigurationException(
                f"save_top_k={self.save_top_k} needs something to rank by, and monitor is None. "
                "Pass monitor=<a logged metric>, or save_top_k=1 (newest), -1 (all) or 0 (none)."
            )
        if self.mode not in ("min", "max"):
            raise MisconfigurationException(f"mode={self.mode!r} is not possible. Use 'min' or 'max'.")
        if self.save_last not in (None, True, False, "link"):
            raise MisconfigurationException(f"save_last={self.save_last!r} is not possible. Use True, False or 'link'.")
        if self.on_save_error not in ("stop", "continue"):
            raise MisconfigurationException(
                f"on_save_error={self.on_save_error!r} is not possible. Use 'stop' or 'continue'."
            )
        self._check_link()
        self._check_triggers()

    def _check_triggers(self) -> None:
        steps, epochs, interval = self._every_n_train_steps, self._every_n_epochs, self._train_time_interval
        for name, value in (("every_n_train_steps", steps), ("every_n_epochs", epochs)):
            if value < 0:
                raise MisconfigurationException(f"{name}={value} is negative. Use 0 to turn it off.")
        if (steps >= 1) + (epochs >= 1) + (interval is not None) > 1:
            raise MisconfigurationException(
                f"every_n_train_steps={steps}, every_n_epochs={epochs} and train_time_interval={interval} exclude each "
                "other. Keep one, and add a second ModelCheckpoint for another."
            )

    def _check_link(self) -> None:
        if self.save_last == "link" and self.dirpath is not None and is_remote(self.dirpath):
            raise ValueError(f"save_last='link' needs a local directory, not {self.dirpath!r}. Use save_last=True.")

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    @property
    def every_n_epochs(self) -> int:
        """Epochs between two saves. 0 where another trigger is on."""
        return self._every_n_epochs

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "current_score": self.current_score,
            "dirpath": self.dirpath,
            "best_k_models": dict(self.best_k_models),
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self.last_model_path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the ranking; only `best_model_path` if files go to another directory by now."""
        self.best_model_path = state_dict["best_model_path"]
        if state_dict.get("dirpath") == self.dirpath:
            for name in _STATE_OF_THE_DIRECTORY:
                if name in state_dict:
                    setattr(self, name, state_dict[name])

    # ---- when -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:
            return
        dirpath = self._resolve_dirpath(trainer) if trainer.is_global_zero else None
        self.dirpath = trainer.strategy.broadcast(dirpath)  # all ranks must reach this
        self._check_link()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Resolved now: a link may point elsewhere by the time something is deleted.
        self._resumed_from = canonical(trainer.ckpt_path) if trainer.ckpt_path else ""
        if self.async_save or isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            self._background = BackgroundSaves(trainer, on_failure=partial(self._settle, trainer))
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self._warn_of_files(trainer)  # not before it is known whether the run goes on from one of them

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.restart()

    @ignores_outputs
    @_not_counted_as_override(Callback.on_train_batch_end)
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a step or time trigger is due. The loop calls it only where such a trigger is set."""
        step = trainer.global_step
        every = self._every_n_train_steps
        if every:
            if step % every or step == self._last_step_triggered:
                return
        elif self._train_time_interval is None or not self._clock.is_due(trainer):
            return
        if self._should_skip(trainer):
            return
        self._last_step_triggered = step
        self._clock.restart()
        if self._should_wait_for_validation(trainer, batch_idx):
            self._has_deferred_save = True
        else:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self._is_epoch_due(trainer) and self._saves_on_train_epoch_end(trainer)
        is_overdue = self._has_deferred_save and not self._awaits_first_validation(trainer)
        if (is_due or is_overdue) and not self._should_skip(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._has_validated = True
        is_due = self._is_epoch_due(trainer) and not self._saves_on_train_epoch_end(trainer)
        if (is_due or self._has_deferred_save) and not self._should_skip(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.save_last and not self._last_checkpoint_saved and not self._should_skip(trainer):
            with self._errors_as_told():
                self._prune(trainer, self._save_last(trainer, self._candidates(trainer)))
        self._settle(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._settle(trainer)
            if self.save_on_exception and not self._should_skip(trainer):
                self._save_on_exception(trainer)
        except CheckpointError as error:
            # The exception that ended the run is the one to be seen.
            rank_zero_warn(f"No checkpoint was saved on {type(exception).__name__}: {error}")

    def _save_on_exception(self, trainer: Trainer) -> None:
        candidates = self._candidates(trainer)
        with self._together():
            path = self._free_path(trainer, candidates, self.filename)
            self._save_file(trainer, path, self._state())
            if self.save_last:
                self._prune(trainer, self._save_last(trainer, candidates))
        self._settle(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._background is not None:
            background = self._background
            try:
                self._settle(trainer)
            finally:
                self._background = None
                background.release()

    def _should_skip(self, trainer: Trainer) -> bool:
        return bool(
            trainer.fast_dev_run
            or trainer.state.fn != "fit"
            or trainer.sanity_checking
            or trainer.global_step == self._last_global_step_saved
        )

    def _is_epoch_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _saves_on_train_epoch_end(self, trainer: Trainer) -> bool:
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        if not isinstance(trainer.val_check_interval, (int, float)) or trainer.check_val_every_n_epoch != 1:
            return False
        return not _has_validation(trainer) or trainer.val_check_interval == 1.0

    def _awaits_first_validation(self, trainer: Trainer) -> bool:
        is_missing = self.monitor is not None and not self._knows_monitored(trainer)
        return is_missing and not self._has_validated and _has_validation(trainer)

    def _knows_monitored(self, trainer: Trainer) -> bool:
        return self.monitor in ("epoch", "step") or self.monitor in trainer.callback_metrics

    def _should_wait_for_validation(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether a better moment to save is near: the metric is not there yet, or will be renewed after this batch."""
        if self.monitor is not None and not self._knows_monitored(trainer):
            return True
        needs_validation = self.monitor is not None or not self._saves_on_train_epoch_end(trainer)
        return needs_validation and _validation_follows(trainer, batch_idx)

    # ---- what -----------------------------------------------------------------------------------------------------

    def _save(self, trainer: Trainer) -> None:
        """One save in full: the ranked file, the last one, then the files that have to go."""
        self._has_deferred_save = False
        candidates = self._candidates(trainer)
        with self._errors_as_told(), self._together():
            obsolete = self._save_top_k(trainer, candidates)
            obsolete_last = ""
            if self._should_refresh_last(trainer):
                obsolete_last = self._save_last(trainer, candidates)
            # order matters: nothing is deleted before all that replaces it is on the disk
            self._prune(trainer, obsolete)
            self._prune(trainer, obsolete_last)

    def _together(self) -> AbstractContextManager[None]:
        """What is saved within the block is saved at one moment."""
        return nullcontext() if self._background is None else self._background.together()

    @contextmanager
    def _errors_as_told(self) -> Iterator[None]:
        """Pass the error of a save on, or not, as `on_save_error` says."""
        try:
            yield
        except CheckpointError as error:
            if self.on_save_error == "stop":
                raise
            rank_zero_warn(f"{error} Training goes on (on_save_error='continue').")

    def _settle(self, trainer: Trainer) -> None:
        """Wait for the files that are being written; take back what was noted of one that failed, and report it."""
        if self._background is None:
            return
        outcome = self._background.settle(trainer)
        if outcome.before is not None:
            self._take_back(outcome.before)
        if outcome.num_saved and trainer.is_global_zero:
            self._tell_loggers(trainer)
        if outcome.failure is not None:
            with self._errors_as_told():
                raise outcome.failure

    def _should_refresh_last(self, trainer: Trainer) -> bool:
        if self.save_last == "link" and not self._last_checkpoint_saved:
            return self.save_top_k != 0
        return bool(self.save_last) and self._last_global_step_saved == trainer.global_step

    def _save_top_k(self, trainer: Trainer, candidates: dict[str, Any]) -> str:
        """Save if the ranking, if there is one, says so. Returns the file that has to go, or an empty string."""
        if self.save_top_k == 0:
            return ""
        if self.monitor is None:
            return self._save_newest(trainer, candidates)
        if self.monitor not in candidates:
            self._report_missing_monitor(trainer)
            return ""
        self.current_score = self._rankable(candidates[self.monitor])
        if self.check_monitor_top_k(trainer, self.current_score):
            return self._save_ranked(trainer, candidates, self.current_score)
        self._tell(trainer, f"was not in top {self.save_top_k}")
        return ""

    def _save_newest(self, trainer: Trainer, candidates: dict[str, Any]) -> str:
        self._settle(trainer)  # order matters: a name whose file is on its way is not free
        previous = self.best_model_path if self.save_top_k == 1 else ""
        path = self._free_path(trainer, candidates, self.filename, replaced=previous)
        before = self._state()
        self.best_model_path = path
        self._save_or_restore(trainer, path, before)
        return "" if previous == path else previous

    def _save_ranked(self, trainer: Trainer, candidates: dict[str, Any], score: Tensor) -> str:
        self._settle(trainer)
        is_full = len(self.best_k_models) == self.save_top_k
        replaced = self.kth_best_model_path if is_full else ""
        path = self._free_path(trainer, candidates, self.filename, replaced=replaced)
        before = self._state()
        self.best_k_models = {p: s for p, s in self.best_k_models.items() if p != replaced}
        self.best_k_models[path] = score
        self._update_ranking()
        self._tell(trainer, f"reached {score.item():.5f}, saving {path!r} as one of top {self.save_top_k}")
        self._save_or_restore(trainer, path, before)
        return "" if replaced == path else replaced

    def _update_ranking(self) -> None:
        best, worst = (min, max) if self.mode == "min" else (max, min)
        scores = {path: score.item() for path, score in self.best_k_models.items()}
        self.best_model_path = best(scores, key=scores.__getitem__)
        self.best_model_score = self.best_k_models[self.best_model_path]
        self.kth_best_model_path = worst(scores, key=scores.__getitem__)
        self.kth_value = self.best_k_models[self.kth_best_model_path]

    def _state(self) -> dict[str, Any]:
        """What a save changes."""
        return self.state_dict() | {
            "_last_global_step_saved": self._last_global_step_saved,
            "_last_checkpoint_saved": self._last_checkpoint_saved,
        }

    def _take_back(self, before: dict[str, Any]) -> None:
        for name, value in before.items():
            setattr(self, name, value)

    def _save_or_restore(self, trainer: Trainer, path: str, before: dict[str, Any]) -> None:
        # The ranking is changed before the save, because the file holds it, and back if there is no file.
        try:
            self._save_file(trainer, path, before)
        except BaseException:
            self._take_back(before)
            raise

    def _save_file(self, trainer: Trainer, path: str, before: dict[str, Any]) -> None:
        if self._background is not None:
            self._background.save(trainer, path, weights_only=self.save_weights_only, before=before)
        else:
            trainer.save_checkpoint(path, self.save_weights_only)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = path
        if self._background is None and trainer.is_global_zero:
            self._tell_loggers(trainer)

    def _tell_loggers(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)

    def _save_last(self, trainer: Trainer, candidates: dict[str, Any]) -> str:
        """Renew the last checkpoint. Returns the one under an earlier name, or an empty string."""
        self._settle(trainer)
        previous = self.last_model_path
        path = self._free_path(trainer, candidates, self.CHECKPOINT_NAME_LAST, replaced=previous)
        if self.save_last == "link" and self._last_checkpoint_saved and self.save_top_k != 0:
            if trainer.is_global_zero:
                link = link_checkpoint if self._background is None else self._background.link
                link(self._last_checkpoint_saved, path)
            self.last_model_path = path
            trainer.strategy.barrier("ModelCheckpoint.link")  # all ranks must reach this
        else:
            before = self._state()
            self.last_model_path = path
            self._save_or_restore(trainer, path, before)
        return "" if previous == path else previous

    def _prune(self, trainer: Trainer, path: str) -> None:
        if not path or not self._may_delete(trainer, path):
            return
        try:
            if self._background is None:
                trainer.strategy.remove_checkpoint(path)
            elif trainer.is_global_zero:
                self._background.remove(path)
        except CheckpointError as error:
            # The new file is safe: one file too many is no reason to end a run.
            rank_zero_warn(str(error))

    def _may_delete(self, trainer: Trainer, path: str) -> bool:
        place = canonical(path)
        resumed_from = {self._resumed_from, canonical(trainer.ckpt_path) if trainer.ckpt_path else ""}
        return place not in resumed_from and self.dirpath is not None and is_inside(path, self.dirpath)

    # ---- ranking --------------------------------------------------------------------------------------------------

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a file with the score `current` would be kept; all ranks must agree, and must call it."""
        if current is None:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        kth = self.best_k_models[self.kth_best_model_path]
        is_better = bool(current < kth if self.mode == "min" else current > kth)
        return bool(trainer.strategy.reduce_boolean_decision(is_better, all=True))  # all ranks must reach this

    def _rankable(self, value: Any) -> Tensor:
        """A copy on the CPU, with the worst of scores in the place of NaN."""
        score = torch.as_tensor(value).detach().cpu().clone()  # waits for the device
        return torch.full_like(score, float("inf" if self.mode == "min" else "-inf")) if score.isnan() else score

    def _candidates(self, trainer: Trainer) -> dict[str, Any]:
        """What names and ranking may use: the logged metrics, `epoch` and `step`."""
        found: dict[str, Any] = dict(trainer.callback_metrics)
        found["epoch"] = int(found.get("epoch", trainer.current_epoch))
        found["step"] = int(found.get("step", trainer.global_step))
        return found

    def _report_missing_monitor(self, trainer: Trainer) -> None:
        known = ", ".join(repr(name) for name in sorted(trainer.callback_metrics)) or "none"
        message = (
            f"ModelCheckpoint(monitor={self.monitor!r}) found no metric of this name. Logged so far: {known}."
            f"{nearest_name(str(self.monitor), trainer.callback_metrics)} "
            f"Log it with self.log({self.monitor!r}, ...), or monitor one of those."
        )
        if self._has_validated:
            raise MisconfigurationException(message)
        if not self._has_warned_of_monitor:
            self._has_warned_of_monitor = True
            rank_zero_warn(f"{message} Nothing is saved until then.", PossibleUserWarning)

    def _tell(self, trainer: Trainer, what: str) -> None:
        if self.verbose:
            trainer.print(f"Epoch {trainer.current_epoch}, step {trainer.global_step}: {self.monitor!r} {what}")

    # ---- names ----------------------------------------------------------------------------------------------------

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The full path for `metrics`.

        Args:
            metrics: Values for the fields of the template; ``epoch`` and ``step`` among them.
            filename: Template to use in the place of the callback's own.
            ver: Version to add at the end, as in ``-v1``.
            prefix: Text to put in front, with a join character.

        Example:
            >>> ModelCheckpoint(dirpath="memory://runs").format_checkpoint_name({"epoch": 3, "step": 8})
            'memory://runs/epoch=3-step=8.ckpt'
        """
        join_char = self.CHECKPOINT_JOIN_CHAR
        template = filename or self.filename or f"{{epoch}}{join_char}{{step}}"
        name = format_name(
            template, metrics, equals=self.CHECKPOINT_EQUALS_CHAR, insert_names=self.auto_insert_metric_name
        )
        if prefix:
            name = f"{prefix}{join_char}{name}"
        if ver is not None:
            name = f"{name}{join_char}v{ver}"
        return join(self.dirpath, name + self.FILE_EXTENSION) if self.dirpath else name + self.FILE_EXTENSION

    def file_exists(self, filepath: str | os.PathLike[str], trainer: Trainer) -> bool:
        """Whether rank 0 sees a file at `filepath`; all ranks must call it."""
        found = checkpoint_exists(filepath) if trainer.is_global_zero else False
        return bool(trainer.strategy.broadcast(found))  # all ranks must reach this

    def _free_path(
        self, trainer: Trainer, candidates: dict[str, Any], template: str | None, *, replaced: str = ""
    ) -> str:
        """Rank 0's name for the next file: one that is free, or that of the file to be replaced."""
        path = ""
        if trainer.is_global_zero:
            path = self.format_checkpoint_name(candidates, template)
            version = self.STARTING_VERSION
            while self.enable_version_counter and path != replaced and checkpoint_exists(path):
                path = self.format_checkpoint_name(candidates, template, ver=version)
                version += 1
        return str(trainer.strategy.broadcast(path))  # all ranks must reach this

    def find_last_checkpoints(self, trainer: Trainer) -> list[str]:
        """Paths of the last checkpoints, of any version, in this callback's directory, for ``ckpt_path="last"``."""
        dirpath = self.dirpath or self._resolve_dirpath(trainer)
        pattern = name_pattern(
            self.CHECKPOINT_NAME_LAST, equals=self.CHECKPOINT_EQUALS_CHAR, join=self.CHECKPOINT_JOIN_CHAR
        )
        extension = self.FILE_EXTENSION
        names = [name for name in list_files(dirpath) if name.endswith(extension)]
        return [join(dirpath, name) for name in names if pattern.fullmatch(name[: -len(extension)])]

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write `best_k_models` as YAML, to ``best_k_models.yaml`` beside the checkpoints by default."""
        import fsspec
        import yaml

        target = filepath if filepath is not None else join(self.dirpath or "", "best_k_models.yaml")
        with fsspec.open(os.fspath(target), "w", encoding="utf-8") as file:
            yaml.safe_dump({path: score.item() for path, score in self.best_k_models.items()}, file)

    # ---- where ----------------------------------------------------------------------------------------------------

    def _resolve_dirpath(self, trainer: Trainer) -> str:
        if self.dirpath is not None:
            return self.dirpath
        return self.directory_of(trainer, trainer.loggers[0].version if trainer.loggers else None)

    def directory_of(self, trainer: Trainer, version: int | str | None) -> str:
        """Where files go without `dirpath`, while the first logger has this version."""
        if not trainer.loggers:
            return canonical(join(trainer.default_root_dir, "checkpoints"))
        logger = trainer.loggers[0]
        parts = (
            str(logger.name) if logger.name else "",
            version if isinstance(version, str) else f"version_{version}",
            "checkpoints",
        )
        directory = os.fspath(logger.save_dir or trainer.default_root_dir)
        for part in filter(None, parts):
            directory = join(directory, part)
        return canonical(directory)

    def _warn_of_files(self, trainer: Trainer) -> None:
        is_continued = bool(trainer.ckpt_path) or bool(self._last_checkpoint_saved)
        if self.save_top_k == 0 or is_continued or self.dirpath is None or not list_files(self.dirpath):
            return
        rank_zero_warn(
            f"The checkpoint directory {self.dirpath!r} is not empty. Its files are kept, and new ones may get names "
            "with a version. To continue from them, pass ckpt_path to fit; otherwise choose another dirpath.",
            PossibleUserWarning,
        )


class _IntervalClock:
    """Tells when the interval since the last save is over, the same on all ranks without asking them at each batch.

    One process looks at its clock. Several ask rank 0 at batches they know in advance: half of the time that is left
    lies between one question and the next, as the pace so far has it.
    """

    __slots__ = ("ask_at", "batches", "interval_s", "started_at")

    def __init__(self, interval: timedelta | None) -> None:
        self.interval_s = float("inf") if interval is None else interval.total_seconds()
        self.restart()

    def restart(self) -> None:
        self.started_at = monotonic()
        self.batches = 0
        self.ask_at = 1

    def is_due(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return monotonic() - self.started_at >= self.interval_s
        self.batches += 1
        if self.batches < self.ask_at:
            return False
        passed = monotonic() - self.started_at
        left = (self.interval_s - passed) / max(passed, 1e-9) * self.batches / 2
        answer = (passed >= self.interval_s, self.batches + max(1, int(left)))
        is_due, self.ask_at = trainer.strategy.broadcast(answer)  # all ranks must reach this
        return bool(is_due)


def _has_validation(trainer: Trainer) -> bool:
    return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether validation runs right after this training batch, as far as can be told from outside."""
    every_n_epochs, every_n_batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or every_n_epochs is None or (trainer.current_epoch + 1) % every_n_epochs:
        return False
    if not isinstance(every_n_batches, int):
        return bool(trainer.is_last_batch)
    return (batch_idx + 1) % every_n_batches == 0
