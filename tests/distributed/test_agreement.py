"""What one rank wants, all do after the same batch: stopping, signals, time limits, validations and saves by time."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fulgur import LightningModule, Trainer
from fulgur.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from fulgur.errors import SIGTERMException
from fulgur.testing import run_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "strategy": "ddp",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "max_epochs": 3,
}


def rank() -> int:
    return int(os.environ["RANK"])


class Net(LightningModule):
    """Trains on ten batches a rank and epoch, and notes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(2, 2)
        self.n_steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.n_steps += 1
        return F.mse_loss(self.layer(batch), batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.layer(batch).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.randn(40, 2), batch_size=2)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.randn(12, 2), batch_size=2)


class Manual(Net):
    """Never goes backward: nothing holds the ranks together."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.n_steps += 1


def stopping(kind: str, hook: str, ranks: tuple[int, ...], arguments: dict[str, Any]) -> tuple[int, int, bool]:
    class Stop(Callback):
        pass

    def stop(self: Any, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if rank() in ranks and (len(args) < 3 or args[-1] == (1 if "validation" in hook else 4)):
            trainer.should_stop = True

    setattr(Stop, hook, stop)
    net = Manual() if kind == "manual" else Net()
    trainer = Trainer(devices=2, callbacks=[Stop()], **{**QUIET, **arguments})
    trainer.fit(net)
    return net.n_steps, trainer.current_epoch, trainer.should_stop


CASES: dict[str, tuple[str, str, tuple[int, ...], dict[str, Any], set[int]]] = {
    # name: the module, the hook, the ranks that want it, arguments, and after how many batches all stop
    "all at a batch's end": ("plain", "on_train_batch_end", (0, 1), {}, {5}),
    "rank 0 at a batch's end": ("plain", "on_train_batch_end", (0,), {}, {5, 6}),
    "rank 1 at a batch's end": ("plain", "on_train_batch_end", (1,), {}, {5, 6}),
    "rank 1 within a window": ("plain", "on_train_batch_end", (1,), {"accumulate_grad_batches": 4}, {8}),
    "rank 1 where nothing is reduced": ("manual", "on_train_batch_end", (1,), {}, set(range(5, 31))),
    "all before the first batch": ("plain", "on_train_start", (0, 1), {}, {0}),
    "all before the loops": ("plain", "on_fit_start", (0, 1), {}, {0}),
    "rank 1 before the first batch": ("plain", "on_train_start", (1,), {}, {0, 1}),
    "all at an epoch's end": ("plain", "on_train_epoch_end", (0, 1), {}, {10}),
    "rank 0 at an epoch's end": ("plain", "on_train_epoch_end", (0,), {}, {10, 11}),
    "all at a validation's end": ("plain", "on_validation_end", (0, 1), {"val_check_interval": 4}, {4}),
    "rank 1 at a validation's end": ("plain", "on_validation_end", (1,), {"val_check_interval": 4}, {4, 5}),
    "all in a validation": ("plain", "on_validation_batch_end", (0, 1), {"val_check_interval": 4}, {4}),
    "all, with min_epochs": ("plain", "on_train_batch_end", (0, 1), {"min_epochs": 2}, {20}),
}


def stop_in_each_case() -> dict[str, Any]:
    sanity = {"num_sanity_val_steps": 0}
    return {name: stopping(*case[:3], {**sanity, **case[3]}) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def stops() -> list[dict[str, Any]]:
    return run_ranks(stop_in_each_case, 2, timeout_s=150)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("name", CASES)
def test_ranks_stop_together(stops: list[dict[str, Any]], name: str) -> None:
    (n_steps, epoch, is_set), other = (result[name] for result in stops)
    assert (n_steps, epoch, is_set) == other
    assert n_steps in CASES[name][4]
    assert is_set


# ---------------------------------------------------------------------------------------------------------- signals


class KillAt(Callback):
    def __init__(self, signum: int, ranks: tuple[int, ...]) -> None:
        self.signum, self.ranks = signum, ranks

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if rank() in self.ranks and args[-1] == 4:
            os.kill(os.getpid(), self.signum)


class KillInValidation(KillAt):
    on_train_batch_end = Callback.on_train_batch_end  # type: ignore[assignment]

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if rank() in self.ranks and args[2] == 1:
            os.kill(os.getpid(), self.signum)


class KillAtTheEnd(KillAt):
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if rank() in self.ranks and args[-1] == 9:
            os.kill(os.getpid(), self.signum)


def killed(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, callback, arguments in (
        ("one", KillAt(signal.SIGTERM, (1,)), {}),
        ("group", KillAt(signal.SIGTERM, (0, 1)), {}),
        ("in validation", KillInValidation(signal.SIGTERM, (1,)), {"limit_train_batches": 2}),
        ("after the last batch", KillAtTheEnd(signal.SIGTERM, (1,)), {"max_epochs": 1}),
        ("ctrl-c", KillAt(signal.SIGINT, (0, 1)), {}),
    ):
        net, save = Net(), ModelCheckpoint(dirpath=Path(folder, name), save_last=False)
        more = {"num_sanity_val_steps": 0, "enable_checkpointing": True, "default_root_dir": folder}
        trainer = Trainer(devices=2, callbacks=[callback, save], **{**QUIET, **more, **arguments})
        try:
            trainer.fit(net)
            left = "nothing"
        except (SIGTERMException, KeyboardInterrupt) as error:
            left = type(error).__name__
        files = sorted(path.name for path in Path(folder, name).glob("interrupted*"))
        found[name] = left, net.n_steps, trainer.received_sigterm, files
    return found


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(killed, 2, str(tmp_path_factory.mktemp("signals")), timeout_s=100)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("name", ["one", "group", "in validation", "after the last batch"])
def test_sigterm_to_any_rank_saves_once_and_ends_all(signals: list[dict[str, Any]], name: str) -> None:
    (left, n_steps, received, files), other = (result[name] for result in signals)
    assert (left, n_steps, received, files) == other
    assert (left, received, len(files)) == ("SIGTERMException", True, 1)
    expected = {"in validation": {2}, "after the last batch": {10}}.get(name, {5, 6})
    assert n_steps in expected


@pytest.mark.world_size(2)
def test_ctrl_c_on_all_ranks_stops_them_after_the_same_batch(signals: list[dict[str, Any]]) -> None:
    first, second = (result["ctrl-c"] for result in signals)
    assert first == second
    assert (first[0], first[1] in (5, 6), first[3]) == ("KeyboardInterrupt", True, [])


# ------------------------------------------------------------------------------------------------------------- time


class Validations(Callback):
    def __init__(self) -> None:
        self.at: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.at.append(trainer.global_step)


def by_time(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    no_sanity = {"num_sanity_val_steps": 0, "max_epochs": 2}
    validations = Validations()
    more = {"val_check_interval": timedelta(seconds=0), "check_val_every_n_epoch": None, **no_sanity}
    Trainer(devices=2, callbacks=[validations], **{**QUIET, **more}).fit(Net())
    found["validations"] = validations.at

    timer = Timer(timedelta(seconds=0 if rank() else 3600))
    trainer = Trainer(devices=2, callbacks=[timer], **{**QUIET, **no_sanity})
    trainer.fit(net := Net())
    found["timer of rank 1"] = net.n_steps, trainer.should_stop

    saves = ModelCheckpoint(dirpath=folder, train_time_interval=timedelta(seconds=0), save_top_k=-1, filename="{step}")
    Trainer(devices=2, callbacks=[saves], **{**QUIET, **no_sanity, "enable_checkpointing": True}).fit(Net())
    found["saves"] = saves.best_model_path, saves.dirpath
    return found


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("times")
    return run_ranks(by_time, 2, str(folder), timeout_s=100), folder


@pytest.mark.world_size(2)
def test_validations_by_time_come_after_the_same_batches(times: tuple[list[dict[str, Any]], Path]) -> None:
    first, second = (result["validations"] for result in times[0])
    assert first == second
    assert len(first) >= 5


@pytest.mark.world_size(2)
def test_a_time_limit_that_one_rank_reaches_ends_all(times: tuple[list[dict[str, Any]], Path]) -> None:
    first, second = (result["timer of rank 1"] for result in times[0])
    assert first == second
    assert first[1]
    assert first[0] <= 2


@pytest.mark.world_size(2)
def test_saves_by_time_are_made_once_by_all_together(times: tuple[list[dict[str, Any]], Path]) -> None:
    first, second = (result["saves"] for result in times[0])
    assert first == second
    assert len(list(times[1].glob("step=*.ckpt"))) >= 5


# --------------------------------------------------------------------------------------- decisions that are shared


class LogsOwn(Net):
    """What is monitored differs from rank to rank."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        value = float(self.trainer.current_epoch) if rank() == 0 else -float(self.trainer.current_epoch)
        self.log("own", value, sync_dist=False)


def decide(folder: str) -> tuple[int, str, float]:
    class Plateau(LogsOwn):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "own"}}

    stop = EarlyStopping("own", patience=1)
    save = ModelCheckpoint(dirpath=folder, monitor="own", filename="{epoch}-{own}")
    more = {"enable_checkpointing": True, "max_epochs": 6, "num_sanity_val_steps": 0}
    trainer = Trainer(devices=2, callbacks=[stop, save], **{**QUIET, **more})
    trainer.fit(Plateau())
    return trainer.current_epoch, save.best_model_path, trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.world_size(2)
def test_decisions_on_values_that_differ_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    first, second = run_ranks(decide, 2, str(tmp_path))
    assert first == second
    assert first[0] == 2  # rank 0 sees its value rise at the end of epoch 1
    assert first[2] == 0.5
    assert Path(first[1]).name == "epoch=0-own=0.0.ckpt"
