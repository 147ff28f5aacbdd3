"""ModelCheckpoint: when it saves, under which name, what it keeps. The Trainer is a stand-in that really saves."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
import yaml

from fulgur.callbacks import checkpoint_schedule
from fulgur.callbacks.model_checkpoint import ModelCheckpoint
from fulgur.checkpoint.io import TorchCheckpointIO
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.write import remove_checkpoint, write_checkpoint
from fulgur.errors import CheckpointError, MisconfigurationException, PossibleUserWarning
from fulgur.hooks import Callback, overrides


class Strategy:
    checkpoint_io = TorchCheckpointIO()

    def __init__(self) -> None:
        self.broadcasts = 0

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        self.broadcasts += 1
        return obj

    def barrier(self, name: str | None = None) -> None:
        pass

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    def remove_checkpoint(self, path: str) -> None:
        remove_checkpoint(path)


class Run:
    """As much of a Trainer as the callback asks for, with a loop of `batches` training batches and a validation."""

    def __init__(self, callback: ModelCheckpoint, *, batches: int = 2, **settings: Any) -> None:
        self.callback = callback
        self.batches = batches
        self.saved: list[str] = []
        self.fails = False
        self.callback_metrics: dict[str, Any] = {}
        self.printed: list[str] = []
        self.asked: list[bool] = []
        self.global_step = self.current_epoch = 0
        self.default_root_dir = os.getcwd()
        self.loggers: list[Any] = []
        self.strategy = Strategy()
        self.state = SimpleNamespace(fn="fit")
        self.fast_dev_run = self.sanity_checking = self.is_last_batch = False
        self.is_global_zero = self.enable_validation = True
        self.world_size = 1
        self.ckpt_path: str | None = None
        self.val_check_interval: Any = 1.0
        self.check_val_every_n_epoch: int | None = 1
        self.num_val_batches = [1]
        self.val_check_batch: Any = batches
        for name, value in settings.items():
            setattr(self, name, value)

    def save_checkpoint(self, path: str, weights_only: bool | None = None) -> None:
        if self.fails:
            raise CheckpointError("disk full")
        state = self.callback.state_dict()
        write_checkpoint({"step": self.global_step, "weights_only": weights_only, "callback": state}, path)
        self.saved.append(Path(path).name)

    def agree(self, name: str, is_wanted: bool) -> bool:
        self.asked.append(is_wanted)
        return is_wanted

    def print(self, *args: Any) -> None:
        self.printed.append(" ".join(map(str, args)))

    def start(self) -> Run:
        self.call("setup", stage="fit")
        self.call("on_fit_start")
        self.call("on_train_start")
        return self

    def epochs(self, count: int, values: list[float] | None = None) -> Run:
        """Run epochs; `values` are what validation logs as ``vl``, one after the other."""
        logged = iter(values or [])
        for _ in range(count):
            for index in range(self.batches):
                self.is_last_batch = index == self.batches - 1
                self.global_step += 1
                self.batch(index)
                if self._validates(index):
                    value = next(logged, None)
                    if value is not None:
                        self.callback_metrics["vl"] = torch.tensor(value)
                    self.call("on_validation_end")
            self.call("on_train_epoch_end")
            self.current_epoch += 1
        return self

    def end(self) -> Run:
        self.call("on_train_end")
        return self

    def batch(self, index: int) -> None:
        if overrides(self.callback, "on_train_batch_end", Callback):
            self.call("on_train_batch_end", outputs=None, batch=None, batch_idx=index)

    def call(self, hook: str, **kwargs: Any) -> None:
        getattr(self.callback, hook)(self, SimpleNamespace(), **kwargs)

    def _validates(self, index: int) -> bool:
        every = self.check_val_every_n_epoch
        if not self.enable_validation or (every and (self.current_epoch + 1) % every):
            return False
        return (index + 1) % self.val_check_batch == 0


def files(directory: str | Path = "checkpoints") -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def store() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    yield "memory://runs"
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


# ---- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_top_k": -2}, "save_top_k=-2"),
        ({"save_top_k": 2}, "monitor is None"),
        ({"mode": "best"}, "mode='best'"),
        ({"every_n_train_steps": -1}, "every_n_train_steps=-1"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1"),
        ({"every_n_epochs": 1, "every_n_train_steps": 1}, "exclude each other"),
        ({"every_n_epochs": 1, "train_time_interval": timedelta(0)}, "exclude each other"),
        ({"save_last": "Link"}, "save_last='Link'"),
    ],
)
def test_arguments_that_contradict_each_other_are_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ModelCheckpoint(**arguments)


def test_links_on_a_remote_store_are_an_error() -> None:
    with pytest.raises(ValueError, match="save_last='link'"):
        ModelCheckpoint(dirpath="s3://bucket/run", save_last="link")


def test_state_key_is_the_one_known_from_lightning() -> None:
    assert ModelCheckpoint(monitor="vl").state_key == (
        "ModelCheckpoint{'monitor': 'vl', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
        "'train_time_interval': None}"
    )


def test_a_trigger_turns_the_epoch_trigger_off() -> None:
    assert ModelCheckpoint().every_n_epochs == 1
    assert ModelCheckpoint(every_n_train_steps=5).every_n_epochs == 0


# ---- what a batch costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"every_n_epochs": 2}, {"every_n_train_steps": 0}])
def test_batch_hook_does_not_exist_for_the_loop_without_a_step_trigger(arguments: dict[str, Any]) -> None:
    assert not overrides(ModelCheckpoint(**arguments), "on_train_batch_end", Callback)


@pytest.mark.parametrize("arguments", [{"every_n_train_steps": 2}, {"train_time_interval": timedelta(0)}])
def test_batch_hook_exists_with_a_step_trigger(arguments: dict[str, Any]) -> None:
    assert overrides(ModelCheckpoint(**arguments), "on_train_batch_end", Callback)


def test_subclass_may_override_the_batch_hook_and_call_super() -> None:
    class Counting(ModelCheckpoint):
        count = 0

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            self.count += 1
            super().on_train_batch_end(*args, **kwargs)

    with_trigger, without = Counting(every_n_train_steps=2), Counting()
    saved = Run(with_trigger).start().epochs(1).saved
    Run(without, default_root_dir="other").start().epochs(1)
    assert saved == ["epoch=0-step=2.ckpt"]
    assert (with_trigger.count, without.count) == (2, 2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_saves_for_itself(duplicate: Any) -> None:
    copied = duplicate(ModelCheckpoint(every_n_train_steps=2))
    Run(copied).start().epochs(1)
    assert copied.best_model_path.endswith("epoch=0-step=2.ckpt")


# ---- directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "expected"), [(3, "version_3"), ("mine", "mine")])
def test_directory_follows_the_first_logger(version: Any, expected: str, tmp_path: Path) -> None:
    logger = SimpleNamespace(save_dir=str(tmp_path / "logs"), name="exp", version=version)
    callback = ModelCheckpoint()
    Run(callback, loggers=[logger, object()]).start()
    assert callback.dirpath == str(tmp_path / "logs" / "exp" / expected / "checkpoints")


def test_directory_without_logger_is_in_the_root_directory(tmp_path: Path) -> None:
    callback = ModelCheckpoint()
    Run(callback).start()
    assert callback.dirpath == str(tmp_path / "checkpoints")


def test_directory_that_is_not_empty_is_announced() -> None:
    write_checkpoint({}, "mine/old.ckpt")
    with pytest.warns(PossibleUserWarning, match="not empty"):
        Run(ModelCheckpoint(dirpath="mine")).start()


def test_directory_that_is_resumed_in_is_not_announced() -> None:
    write_checkpoint({}, "mine/old.ckpt")
    Run(ModelCheckpoint(dirpath="mine"), ckpt_path="mine/old.ckpt").start()


def test_fast_dev_run_saves_nothing() -> None:
    assert Run(ModelCheckpoint(save_last=True), fast_dev_run=True).start().epochs(2).end().saved == []


# ---- names ------------------------------------------------------------------------------------------------------


def test_default_name_has_epoch_index_and_step() -> None:
    Run(ModelCheckpoint()).start().epochs(4)
    assert files() == ["epoch=3-step=8.ckpt"]


def test_name_with_metrics() -> None:
    Run(ModelCheckpoint(filename="x-{epoch:02d}-{vl:.2f}", monitor="vl")).start().epochs(2, [2.0, 1.0])
    assert files() == ["x-epoch=01-vl=1.00.ckpt"]


def test_logged_epoch_and_step_win() -> None:
    run = Run(ModelCheckpoint(), callback_metrics={"step": torch.tensor(99.0)}).start().epochs(1)
    assert run.saved == ["epoch=0-step=99.ckpt"]


def test_slash_in_a_metric_makes_a_subdirectory() -> None:
    run = Run(ModelCheckpoint(filename="{epoch}-{a/b}"), callback_metrics={"a/b": torch.tensor(0.0)})
    run.start().epochs(1)
    assert files("checkpoints/epoch=0-a") == ["b=0.0.ckpt"]


def test_name_that_is_taken_gets_a_version() -> None:
    Run(ModelCheckpoint(filename="const", monitor="vl", save_top_k=3)).start().epochs(3, [3.0, 2.0, 1.0])
    assert files() == ["const-v1.ckpt", "const-v2.ckpt", "const.ckpt"]


def test_newest_under_a_constant_name_is_overwritten_in_place() -> None:
    Run(ModelCheckpoint(filename="const")).start().epochs(3)
    assert files() == ["const.ckpt"]
    assert load_checkpoint("checkpoints/const.ckpt")["step"] == 6


def test_all_under_a_constant_name_are_kept() -> None:
    Run(ModelCheckpoint(filename="const", save_top_k=-1)).start().epochs(2)
    assert files() == ["const-v1.ckpt", "const.ckpt"]


def test_without_version_counter_there_is_one_file() -> None:
    callback = ModelCheckpoint(filename="const", monitor="vl", save_top_k=3, enable_version_counter=False)
    Run(callback).start().epochs(3, [3.0, 2.0, 1.0])
    assert files() == ["const.ckpt"]
    assert len(callback.best_k_models) == 1


def test_format_checkpoint_name_takes_version_and_prefix() -> None:
    callback = ModelCheckpoint(dirpath="memory://r")
    assert callback.format_checkpoint_name({"a": 1}, "{a}", ver=2, prefix="p") == "memory://r/p-a=1-v2.ckpt"


# ---- when -------------------------------------------------------------------------------------------------------


def test_every_second_epoch() -> None:
    run = Run(ModelCheckpoint(every_n_epochs=2, save_top_k=-1)).start().epochs(4)
    assert run.saved == ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt"]


def test_every_third_step() -> None:
    run = Run(ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)).start().epochs(3)
    assert run.saved == ["epoch=1-step=3.ckpt", "epoch=2-step=6.ckpt"]


def test_a_step_of_many_batches_is_saved_once() -> None:
    run = Run(ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)).start()
    for step in (0, 0, 1, 1, 2, 2):
        run.global_step = step
        run.batch(0)
    assert run.saved == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"]


def test_validation_twice_an_epoch_saves_after_each() -> None:
    run = Run(ModelCheckpoint(save_top_k=-1), val_check_interval=0.5, val_check_batch=1).start().epochs(2)
    assert run.saved == [f"epoch={s // 2}-step={s + 1}.ckpt" for s in range(4)]


def test_validation_every_second_epoch_saves_after_it() -> None:
    run = Run(ModelCheckpoint(save_top_k=-1), check_val_every_n_epoch=2).start().epochs(4)
    assert run.saved == ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt"]


def test_without_validation_each_epoch_saves() -> None:
    run = Run(ModelCheckpoint(save_top_k=-1), enable_validation=False, num_val_batches=[]).start().epochs(2)
    assert len(run.saved) == 2


def test_sanity_check_saves_nothing() -> None:
    run = Run(ModelCheckpoint(save_on_train_epoch_end=False), global_step=1, sanity_checking=True)
    run.call("on_validation_end")
    assert run.saved == []


def test_step_save_waits_for_the_validation_that_renews_its_metric() -> None:
    callback = ModelCheckpoint(monitor="vl", every_n_train_steps=2, filename="{step}-{vl}", save_top_k=-1)
    run = Run(callback).start().epochs(2, [2.0, 1.0])
    assert run.saved == ["step=2-vl=2.0.ckpt", "step=4-vl=1.0.ckpt"]


def test_step_save_without_its_metric_is_made_up_for_after_validation() -> None:
    callback = ModelCheckpoint(monitor="vl", every_n_train_steps=1, filename="{step}-{vl}", save_top_k=-1)
    run = Run(callback).start().epochs(2, [2.0, 1.0])
    assert run.saved == ["step=2-vl=2.0.ckpt", "step=3-vl=2.0.ckpt", "step=4-vl=1.0.ckpt"]


def test_step_save_waits_epochs_for_the_first_validation_without_a_warning() -> None:
    callback = ModelCheckpoint(monitor="vl", every_n_train_steps=2, filename="{step}-{vl}", save_top_k=-1)
    run = Run(callback, check_val_every_n_epoch=2).start().epochs(2, [5.0])
    assert run.saved == ["step=4-vl=5.0.ckpt"]


def test_time_interval_saves_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint_schedule, "monotonic", lambda: now[0])
    run = Run(ModelCheckpoint(train_time_interval=timedelta(seconds=10), save_top_k=-1)).start()
    for step in range(1, 31):
        now[0] += 1
        run.global_step = step
        run.batch(0)
    assert run.saved == ["epoch=0-step=10.ckpt", "epoch=0-step=20.ckpt", "epoch=0-step=30.ckpt"]


def test_time_interval_of_zero_saves_at_each_batch() -> None:
    run = Run(ModelCheckpoint(train_time_interval=timedelta(0), save_top_k=-1)).start().epochs(1)
    assert len(run.saved) == 2


def test_time_interval_on_several_ranks_is_asked_of_all_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint_schedule, "monotonic", lambda: now[0])
    callback = ModelCheckpoint(train_time_interval=timedelta(seconds=125), save_top_k=-1)
    run = Run(callback, world_size=2).start()
    run.strategy.broadcasts = 0
    for step in range(1, 1001):
        now[0] += 0.125
        run.global_step = step
        run.batch(0)
    assert run.saved == ["epoch=0-step=1000.ckpt"]
    assert run.asked == [False] * 999 + [True]
    assert run.strategy.broadcasts <= 20


# ---- the monitored key ------------------------------------------------------------------------------------------


def test_missing_monitor_after_validation_is_an_error_that_lists_what_there_is() -> None:
    run = Run(ModelCheckpoint(monitor="vll"), callback_metrics={"tl": torch.tensor(1.0)}).start()
    with pytest.raises(MisconfigurationException, match=r"monitor='vll'.*'tl', 'vl'"):
        run.epochs(1, [1.0])


def test_missing_monitor_without_validation_warns_once_and_saves_nothing() -> None:
    run = Run(ModelCheckpoint(monitor="vl"), enable_validation=False, num_val_batches=[]).start()
    with pytest.warns(PossibleUserWarning, match="monitor='vl'") as caught:
        run.epochs(3)
    assert len(caught) == 1
    assert run.saved == []


# ---- what is kept -----------------------------------------------------------------------------------------------


def test_best_k_are_kept() -> None:
    callback = ModelCheckpoint(monitor="vl", save_top_k=2, filename="{epoch}")
    run = Run(callback).start().epochs(4, [3.0, 1.0, 2.0, 5.0])
    assert files() == ["epoch=1.ckpt", "epoch=2.ckpt"]
    assert run.saved == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"]
    assert callback.best_model_path.endswith("epoch=1.ckpt")
    assert callback.best_model_score == 1
    assert callback.kth_best_model_path.endswith("epoch=2.ckpt")
    assert callback.kth_value == 2
    assert callback.current_score == 5


def test_equal_score_is_not_better() -> None:
    assert Run(ModelCheckpoint(monitor="vl")).start().epochs(2, [1.0, 1.0]).saved == ["epoch=0-step=2.ckpt"]


def test_mode_max_keeps_the_highest() -> None:
    Run(ModelCheckpoint(monitor="vl", mode="max")).start().epochs(3, [1.0, 3.0, 2.0])
    assert files() == ["epoch=1-step=4.ckpt"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_named_as_it_is_and_ranks_last(mode: str) -> None:
    callback = ModelCheckpoint(monitor="vl", mode=mode, filename="{epoch}-{vl}")
    run = Run(callback).start().epochs(2, [float("nan"), 1.0])
    assert run.saved == ["epoch=0-vl=nan.ckpt", "epoch=1-vl=1.0.ckpt"]
    assert files() == ["epoch=1-vl=1.0.ckpt"]


def test_newest_is_kept_without_monitor() -> None:
    callback = ModelCheckpoint()
    Run(callback).start().epochs(3)
    assert files() == ["epoch=2-step=6.ckpt"]
    assert callback.best_model_score is None


def test_score_is_a_copy() -> None:
    run = Run(callback := ModelCheckpoint(monitor="vl")).start().epochs(1, [1.0])
    run.callback_metrics["vl"].fill_(7)
    assert callback.best_model_score == 1


def test_old_file_goes_after_the_new_one_is_there() -> None:
    present: list[list[str]] = []

    class Watching(Strategy):
        def remove_checkpoint(self, path: str) -> None:
            present.append(files())
            super().remove_checkpoint(path)

    Run(ModelCheckpoint(save_last="link"), strategy=Watching()).start().epochs(2)
    assert present == [["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "last.ckpt"]]


def test_file_resumed_from_is_never_deleted() -> None:
    Run(first := ModelCheckpoint(dirpath="c", monitor="vl")).start().epochs(1, [2.0])
    second = ModelCheckpoint(dirpath="c", monitor="vl")
    run = Run(second, ckpt_path=first.best_model_path, global_step=2, current_epoch=1)
    second.load_state_dict(first.state_dict())
    run.start().epochs(2, [1.0, 0.5])
    assert files("c") == ["epoch=0-step=2.ckpt", "epoch=2-step=6.ckpt"]


def test_file_resumed_from_through_a_link_is_never_deleted() -> None:
    Run(first := ModelCheckpoint(dirpath="c", save_last="link")).start().epochs(1)
    second = ModelCheckpoint(dirpath="c", save_last="link")
    second.load_state_dict(first.state_dict() | {"last_model_path": os.path.abspath("c/last.ckpt")})
    Run(second, ckpt_path="c/last.ckpt", global_step=2, current_epoch=1).start().epochs(2)
    assert files("c") == ["epoch=0-step=2.ckpt", "epoch=2-step=6.ckpt", "last.ckpt"]


def test_file_resumed_from_is_never_deleted_on_a_remote_store(store: str) -> None:
    Run(first := ModelCheckpoint(dirpath=store)).start().epochs(1)
    second = ModelCheckpoint(dirpath=store)
    second.load_state_dict(first.state_dict())
    Run(second, ckpt_path=first.best_model_path, global_step=2, current_epoch=1).start().epochs(2)
    names = fsspec.filesystem("memory").ls("/runs", detail=False)
    assert sorted(names) == ["/runs/epoch=0-step=2.ckpt", "/runs/epoch=2-step=6.ckpt"]


def test_file_of_another_directory_is_never_deleted() -> None:
    Run(first := ModelCheckpoint(dirpath="a")).start().epochs(1)
    second = ModelCheckpoint(dirpath="b")
    second.load_state_dict(first.state_dict())
    Run(second).start().epochs(1)
    assert files("a") == ["epoch=0-step=2.ckpt"]


def test_failed_save_leaves_files_and_ranking_as_they_were() -> None:
    callback = ModelCheckpoint(monitor="vl", save_last=True)
    run = Run(callback).start().epochs(1, [2.0])
    before = callback.state_dict() | {"current_score": torch.tensor(1.0)}
    run.fails = True
    with pytest.raises(CheckpointError, match="disk full"):
        run.epochs(1, [1.0])
    assert files() == ["epoch=0-step=2.ckpt", "last.ckpt"]
    assert callback.state_dict() == before


def test_file_that_cannot_be_deleted_does_not_end_the_run() -> None:
    class Refusing(Strategy):
        def remove_checkpoint(self, path: str) -> None:
            raise CheckpointError("not yours")

    run = Run(ModelCheckpoint(), strategy=Refusing()).start()
    with pytest.warns(UserWarning, match="not yours"):
        run.epochs(2)
    assert len(files()) == 2


# ---- the last checkpoint ----------------------------------------------------------------------------------------


def test_last_is_the_last_that_was_saved() -> None:
    Run(ModelCheckpoint(monitor="vl", save_last=True)).start().epochs(4, [2.0, 1.0, 3.0, 3.0]).end()
    assert files() == ["epoch=1-step=4.ckpt", "last.ckpt"]
    assert load_checkpoint("checkpoints/last.ckpt")["step"] == 4


def test_last_holds_its_own_path() -> None:
    Run(callback := ModelCheckpoint(save_last=True)).start().epochs(1)
    assert load_checkpoint("checkpoints/last.ckpt")["callback"]["last_model_path"] == callback.last_model_path


@pytest.mark.parametrize(
    "arguments", [{"save_top_k": 0}, {"every_n_epochs": 0}, {"save_top_k": 0, "save_last": "link"}]
)
def test_last_is_saved_at_the_end_where_nothing_else_was(arguments: dict[str, Any]) -> None:
    run = Run(ModelCheckpoint(**{"save_last": True, **arguments})).start().epochs(4).end()
    assert run.saved == ["last.ckpt"]
    assert load_checkpoint("checkpoints/last.ckpt")["step"] == 8


def test_last_as_a_link_follows_the_newest_file() -> None:
    run = Run(ModelCheckpoint(save_last="link")).start().epochs(3).end()
    assert os.readlink("checkpoints/last.ckpt") == "epoch=2-step=6.ckpt"
    assert run.saved == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt"]


def test_last_of_an_earlier_run_is_kept() -> None:
    Run(ModelCheckpoint(dirpath="c", save_last=True)).start().epochs(1)
    with pytest.warns(PossibleUserWarning, match="not empty"):
        Run(ModelCheckpoint(dirpath="c", save_last=True)).start().epochs(1)
    assert files("c") == ["epoch=0-step=2-v1.ckpt", "epoch=0-step=2.ckpt", "last-v1.ckpt", "last.ckpt"]


def test_last_under_a_changing_name_replaces_its_predecessor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelCheckpoint, "CHECKPOINT_NAME_LAST", "{epoch}-last")
    Run(ModelCheckpoint(save_last=True)).start().epochs(2)
    assert files() == ["epoch=1-last.ckpt", "epoch=1-step=4.ckpt"]


def test_last_checkpoints_are_found() -> None:
    for name in ("last.ckpt", "last-v1.ckpt", "epoch=1.ckpt", "last.txt", "lasting.ckpt"):
        write_checkpoint({}, f"c/{name}")
    found = ModelCheckpoint(dirpath="c").find_last_checkpoints(Run(ModelCheckpoint()))  # type: ignore[arg-type]
    assert [Path(path).name for path in found] == ["last-v1.ckpt", "last.ckpt"]


# ---- exceptions -------------------------------------------------------------------------------------------------


def test_exception_saves_if_asked() -> None:
    callback = ModelCheckpoint(save_on_exception=True, save_last=True, every_n_epochs=5)
    run = Run(callback).start().epochs(1)
    run.call("on_exception", exception=KeyboardInterrupt())
    assert files() == ["epoch=1-step=2.ckpt", "last.ckpt"]


def test_exception_saves_nothing_unasked() -> None:
    run = Run(ModelCheckpoint(every_n_epochs=5)).start().epochs(1)
    run.call("on_exception", exception=ValueError())
    assert run.saved == []


def test_save_that_fails_on_an_exception_does_not_hide_it() -> None:
    run = Run(ModelCheckpoint(save_on_exception=True, every_n_epochs=5)).start().epochs(1)
    run.fails = True
    with pytest.warns(UserWarning, match="on ValueError: disk full"):
        run.call("on_exception", exception=ValueError())


# ---- state ------------------------------------------------------------------------------------------------------


def test_state_has_the_nine_known_keys() -> None:
    assert list(ModelCheckpoint().state_dict()) == [
        "monitor",
        "best_model_score",
        "best_model_path",
        "current_score",
        "dirpath",
        "best_k_models",
        "kth_best_model_path",
        "kth_value",
        "last_model_path",
    ]


def test_ranking_goes_on_in_the_same_directory() -> None:
    Run(first := ModelCheckpoint(dirpath="c", monitor="vl", save_top_k=2)).start().epochs(2, [1.0, 2.0])
    second = ModelCheckpoint(dirpath="c", monitor="vl", save_top_k=2)
    second.load_state_dict(load_checkpoint(first.kth_best_model_path)["callback"])
    run = Run(second, ckpt_path=first.kth_best_model_path, global_step=4, current_epoch=2)
    run.start().epochs(2, [3.0, 0.5])
    assert run.saved == ["epoch=3-step=8.ckpt"]
    assert second.best_model_score == 0.5


def test_other_directory_takes_over_the_best_path_alone() -> None:
    Run(first := ModelCheckpoint(dirpath="a", monitor="vl")).start().epochs(1, [1.0])
    second = ModelCheckpoint(dirpath="b", monitor="vl")
    second.load_state_dict(first.state_dict())
    assert second.best_model_path == first.best_model_path
    assert second.best_k_models == {}


def test_weights_only_is_passed_on() -> None:
    Run(ModelCheckpoint(save_weights_only=True)).start().epochs(1)
    assert load_checkpoint("checkpoints/epoch=0-step=2.ckpt")["weights_only"] is True


def test_loggers_are_told_of_each_save() -> None:
    told: list[str] = []
    logger = SimpleNamespace(
        save_dir=None,
        name=None,
        version=0,
        after_save_checkpoint=lambda callback: told.append(callback.best_model_path),
    )
    Run(callback := ModelCheckpoint(), loggers=[logger]).start().epochs(1)
    assert told == [callback.best_model_path]


def test_verbose_tells_what_is_saved_and_what_is_not() -> None:
    run = Run(ModelCheckpoint(monitor="vl", verbose=True)).start().epochs(2, [1.0, 2.0])
    assert "'vl' reached 1.00000, saving" in run.printed[0]
    assert "'vl' was not in top 1" in run.printed[1]


def test_ranking_is_written_as_yaml() -> None:
    Run(callback := ModelCheckpoint(monitor="vl")).start().epochs(1, [1.0])
    callback.to_yaml()
    assert yaml.safe_load(Path("checkpoints/best_k_models.yaml").read_text()) == {callback.best_model_path: 1.0}


def test_file_exists_sees_local_files() -> None:
    write_checkpoint({}, "a.ckpt")
    run = Run(callback := ModelCheckpoint())
    assert callback.file_exists("a.ckpt", run)  # type: ignore[arg-type]
    assert not callback.file_exists("b.ckpt", run)  # type: ignore[arg-type]
