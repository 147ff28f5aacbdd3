"""ModelCheckpoint: when to save, under which name, and which of the saved files to keep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from fulgur.callbacks.checkpoint import Checkpoint
from fulgur.callbacks.checkpoint_arguments import check_link, check_retention, check_saving, check_triggers
from fulgur.callbacks.checkpoint_places import directory_of_run, find_obstacle, warn_of_files
from fulgur.callbacks.checkpoint_ranking import find_best_and_worst, is_better, missing_metric, rankable
from fulgur.callbacks.checkpoint_saves import Saves
from fulgur.callbacks.checkpoint_schedule import (
    IntervalClock,
    has_validation,
    is_epoch_due,
    not_counted_as_override,
    saves_on_train_epoch_end,
    validation_follows,
)
from fulgur.checkpoint.location import canonical, join, list_files
from fulgur.checkpoint.names import format_name, name_pattern
from fulgur.checkpoint.write import checkpoint_exists
from fulgur.errors import CheckpointError, MisconfigurationException, PossibleUserWarning
from fulgur.hooks import Callback, ignores_outputs
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

_STATE_OF_THE_DIRECTORY = ("best_model_score", "best_k_models", "kth_best_model_path", "kth_value", "last_model_path")


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
        self._saves = Saves(self)
        self._clock = IntervalClock(train_time_interval)

        check_retention(save_top_k=save_top_k, monitor=monitor, mode=mode)
        check_saving(save_last=save_last, on_save_error=on_save_error)
        check_link(save_last, self.dirpath)
        check_triggers(
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=train_time_interval,
        )
        if self._every_n_train_steps or train_time_interval is not None:
            self.__dict__["on_train_batch_end"] = self.on_train_batch_end

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

    @property
    def saves_on_exception(self) -> bool:
        """Whether an exception that ends fit makes it save."""
        return self.save_on_exception

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
        dirpath = self._resolve_dirpath(trainer) if trainer.is_global_zero else ""
        obstacle = find_obstacle(dirpath) if dirpath and stage == "fit" else None
        self.dirpath, obstacle = trainer.strategy.broadcast((dirpath, obstacle))  # all ranks must reach this
        check_link(self.save_last, self.dirpath)
        if obstacle is not None:
            raise MisconfigurationException(
                f"ModelCheckpoint(dirpath={self.dirpath!r}): {obstacle!r} is a file, so that there can be no directory "
                "for checkpoints. Choose another dirpath, or move the file."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saves.begin(trainer)
        is_continued = bool(trainer.ckpt_path) or bool(self._last_checkpoint_saved)
        if trainer.is_global_zero and not trainer.fast_dev_run and self.save_top_k != 0 and not is_continued:
            warn_of_files(self.dirpath)  # not before it is known whether the run goes on from one of them

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.restart()

    @ignores_outputs
    @not_counted_as_override(Callback.on_train_batch_end)
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a step or time trigger is due. The loop calls it only where such a trigger is set."""
        step = trainer.global_step
        every = self._every_n_train_steps
        if every:
            if step % every or step == self._last_step_triggered:
                return
        elif self._train_time_interval is None or not self._clock.is_due(trainer, self.state_key):
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
        is_due = is_epoch_due(trainer, self._every_n_epochs) and saves_on_train_epoch_end(
            trainer, self._save_on_train_epoch_end
        )
        is_overdue = self._has_deferred_save and not self._awaits_first_validation(trainer)
        if (is_due or is_overdue) and not self._should_skip(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._has_validated = True
        is_due = is_epoch_due(trainer, self._every_n_epochs) and not saves_on_train_epoch_end(
            trainer, self._save_on_train_epoch_end
        )
        if (is_due or self._has_deferred_save) and not self._should_skip(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.save_last and not self._last_checkpoint_saved and not self._should_skip(trainer):
            with self._saves.errors_as_told():
                self._saves.prune(trainer, self._save_last(trainer, self._candidates(trainer)))
        self._saves.settle(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._saves.settle(trainer)
            if self.save_on_exception and not self._should_skip(trainer):
                self._save_on_exception(trainer)
        except CheckpointError as error:
            # The exception that ended the run is the one to be seen.
            rank_zero_warn(f"No checkpoint was saved on {type(exception).__name__}: {error}")

    def _save_on_exception(self, trainer: Trainer) -> None:
        candidates = self._candidates(trainer)
        with self._saves.together():
            path = self._free_path(trainer, candidates, self.filename)
            self._saves.save(trainer, path, self._saves.noted())
            if self.save_last:
                self._saves.prune(trainer, self._save_last(trainer, candidates))
        self._saves.settle(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._saves.end(trainer)

    def _should_skip(self, trainer: Trainer) -> bool:
        return bool(
            trainer.fast_dev_run
            or trainer.state.fn != "fit"
            or trainer.sanity_checking
            or trainer.global_step == self._last_global_step_saved
        )

    def _awaits_first_validation(self, trainer: Trainer) -> bool:
        is_missing = self.monitor is not None and not self._knows_monitored(trainer)
        return is_missing and not self._has_validated and has_validation(trainer)

    def _knows_monitored(self, trainer: Trainer) -> bool:
        return self.monitor in ("epoch", "step") or self.monitor in trainer.callback_metrics

    def _should_wait_for_validation(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether a better moment to save is near: the metric is not there yet, or will be renewed after this batch."""
        if self.monitor is not None and not self._knows_monitored(trainer):
            return True
        needs_validation = self.monitor is not None or not saves_on_train_epoch_end(
            trainer, self._save_on_train_epoch_end
        )
        return needs_validation and validation_follows(trainer, batch_idx)

    # ---- what -----------------------------------------------------------------------------------------------------

    def _save(self, trainer: Trainer) -> None:
        """One save in full: the ranked file, the last one, then the files that have to go."""
        self._has_deferred_save = False
        candidates = self._candidates(trainer)
        with self._saves.errors_as_told(), self._saves.together():
            obsolete = self._save_top_k(trainer, candidates)
            obsolete_last = ""
            if self._should_refresh_last(trainer):
                obsolete_last = self._save_last(trainer, candidates)
            # order matters: nothing is deleted before all that replaces it is on the disk
            self._saves.prune(trainer, obsolete)
            self._saves.prune(trainer, obsolete_last)

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
        self.current_score = rankable(candidates[self.monitor], self.mode)
        if self.check_monitor_top_k(trainer, self.current_score):
            return self._save_ranked(trainer, candidates, self.current_score)
        self._tell(trainer, f"was not in top {self.save_top_k}")
        return ""

    def _save_newest(self, trainer: Trainer, candidates: dict[str, Any]) -> str:
        self._saves.settle(trainer)  # order matters: a name whose file is on its way is not free
        previous = self.best_model_path if self.save_top_k == 1 else ""
        path = self._free_path(trainer, candidates, self.filename, replaced=previous)
        before = self._saves.noted()
        self.best_model_path = path
        self._saves.save(trainer, path, before)
        return "" if previous == path else previous

    def _save_ranked(self, trainer: Trainer, candidates: dict[str, Any], score: Tensor) -> str:
        self._saves.settle(trainer)
        is_full = len(self.best_k_models) == self.save_top_k
        replaced = self.kth_best_model_path if is_full else ""
        path = self._free_path(trainer, candidates, self.filename, replaced=replaced)
        before = self._saves.noted()
        self.best_k_models = {p: s for p, s in self.best_k_models.items() if p != replaced}
        self.best_k_models[path] = score
        self._update_ranking()
        self._tell(trainer, f"reached {score.item():.5f}, saving {path!r} as one of top {self.save_top_k}")
        self._saves.save(trainer, path, before)
        return "" if replaced == path else replaced

    def _update_ranking(self) -> None:
        self.best_model_path, self.kth_best_model_path = find_best_and_worst(self.best_k_models, self.mode)
        self.best_model_score = self.best_k_models[self.best_model_path]
        self.kth_value = self.best_k_models[self.kth_best_model_path]

    def _save_last(self, trainer: Trainer, candidates: dict[str, Any]) -> str:
        """Renew the last checkpoint. Returns the one under an earlier name, or an empty string."""
        self._saves.settle(trainer)
        previous = self.last_model_path
        path = self._free_path(trainer, candidates, self.CHECKPOINT_NAME_LAST, replaced=previous)
        if self.save_last == "link" and self._last_checkpoint_saved and self.save_top_k != 0:
            self._saves.link(trainer, self._last_checkpoint_saved, path)
            self.last_model_path = path
            trainer.strategy.barrier("ModelCheckpoint.link")  # all ranks must reach this
        else:
            before = self._saves.noted()
            self.last_model_path = path
            self._saves.save(trainer, path, before)
        return "" if previous == path else previous

    # ---- ranking --------------------------------------------------------------------------------------------------

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a file with the score `current` would be kept; all ranks must agree, and must call it."""
        if current is None:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        kth = self.best_k_models[self.kth_best_model_path]
        decision = is_better(current, kth, self.mode)
        return bool(trainer.strategy.reduce_boolean_decision(decision, all=True))  # all ranks must reach this

    def _candidates(self, trainer: Trainer) -> dict[str, Any]:
        """What names and ranking may use: the logged metrics, `epoch` and `step`."""
        found: dict[str, Any] = dict(trainer.callback_metrics)
        found["epoch"] = int(found.get("epoch", trainer.current_epoch))
        found["step"] = int(found.get("step", trainer.global_step))
        return found

    def _report_missing_monitor(self, trainer: Trainer) -> None:
        message = missing_metric(str(self.monitor), trainer.callback_metrics)
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
        return directory_of_run(trainer, version)
