"""What ranks say to each other through the strategy, what only rank 0 does, and how errors reach everyone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import LightningModule, Trainer
from fulgur.callbacks import Callback, ModelCheckpoint
from fulgur.errors import CheckpointError
from fulgur.loggers import CSVLogger
from fulgur.strategies import DDPStrategy, StrategyRegistry
from fulgur.testing import run_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "strategy": "ddp",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "max_epochs": 1,
    "num_sanity_val_steps": 0,
}


def rank() -> int:
    return int(os.environ["RANK"])


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(2, 2)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val", self.layer(batch).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)


class Talk(Callback):
    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        strategy, own = trainer.strategy, torch.tensor([1.0, 2.0]) * (rank() + 1)
        for name in ("mean", "sum", "min", "max", "product"):
            self.found[name] = strategy.reduce(own, reduce_op=name).tolist()
        self.found["own is unchanged"] = own.tolist() == [rank() + 1.0, 2.0 * (rank() + 1)]
        self.found["whole numbers"] = strategy.reduce(torch.tensor(rank()), reduce_op="mean").item()
        self.found["not a tensor"] = strategy.reduce("text")
        group = torch.distributed.new_group([0, 1])
        self.found["group"] = strategy.reduce(own, group, "sum").tolist()
        self.found["ReduceOp"] = strategy.reduce(own, reduce_op=torch.distributed.ReduceOp.MAX).tolist()
        self.found["gathered"] = pl_module.all_gather({"a": own, "b": [own, "text"]})["b"][0].tolist()
        self.found["objects"] = strategy.all_gather_object({"rank": rank()})
        self.found["on zero"] = strategy.gather_object(rank())
        self.found["broadcast"] = [strategy.broadcast(f"from {rank()}", src=source) for source in (0, 1)]
        self.found["any"] = strategy.reduce_boolean_decision(rank() == 1, all=False)
        self.found["all"] = strategy.reduce_boolean_decision(rank() == 1, all=True)
        strategy.barrier("here")
        variable = torch.ones(2, requires_grad=True)
        gathered = pl_module.all_gather(variable * (rank() + 1), sync_grads=True)
        (gathered * torch.tensor([[1.0], [10.0]])).sum().backward()
        self.found["gradient"] = variable.grad.tolist()  # type: ignore[union-attr]
        self.found["without gradient"] = pl_module.all_gather(variable).requires_grad
        store = strategy.open_store("test")
        store.set(f"{rank()}", str(rank()))
        self.found["store"] = store.get(f"{1 - rank()}").decode()
        again = strategy.open_store("test")
        self.found["another store"] = again.check(["0"])
        self.found["ranks"] = (strategy.world_size, strategy.global_rank, strategy.data_size, strategy.data_rank)
        self.found["sampler"] = trainer.distributed_sampler_kwargs

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        try:
            trainer.strategy.reduce(torch.ones(1), reduce_op="median")
        except ValueError as error:
            self.found["unknown"] = str(error)


def talk() -> dict[str, Any]:
    callback = Talk()
    Trainer(devices=2, callbacks=[callback], **QUIET).fit(Net())
    return callback.found


@pytest.mark.world_size(2)
def test_what_ranks_exchange() -> None:
    first, second = run_ranks(talk, 2)
    for found in (first, second):
        assert found["mean"] == [1.5, 3.0]
        assert found["sum"] == found["group"] == [3.0, 6.0]
        assert (found["min"], found["max"], found["product"]) == ([1.0, 2.0], [2.0, 4.0], [2.0, 8.0])
        assert found["ReduceOp"] == [2.0, 4.0]
        assert (found["own is unchanged"], found["whole numbers"], found["not a tensor"]) == (True, 0.5, "text")
        assert found["gathered"] == [[1.0, 2.0], [2.0, 4.0]]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        assert found["broadcast"] == ["from 0", "from 1"]
        assert (found["any"], found["all"]) == (True, False)
        assert found["without gradient"] is False
        assert found["another store"] is False
        assert "'median' is unknown" in found["unknown"]
    assert (first["on zero"], second["on zero"]) == ([0, 1], None)
    assert (first["gradient"], second["gradient"]) == (
        [2.0, 2.0],
        [40.0, 40.0],
    )  # both ranks' gradients, times rank + 1
    assert (first["store"], second["store"]) == ("1", "0")
    assert (first["ranks"], second["ranks"]) == ((2, 0, 2, 0), (2, 1, 2, 1))
    assert (first["sampler"], second["sampler"]) == (
        {"num_replicas": 2, "rank": 0},
        {"num_replicas": 2, "rank": 1},
    )


# ------------------------------------------------------------------------------------------------ what rank 0 does


def write_everything(folder: str) -> dict[str, Any]:
    lines: list[str] = []

    class Printing(Net):
        def on_train_end(self) -> None:
            self.print(f"from rank {rank()}")

    import contextlib
    import io

    save, shown = ModelCheckpoint(monitor="val", save_last=True), io.StringIO()
    more = {"logger": CSVLogger(folder), "enable_checkpointing": True, "enable_progress_bar": True}
    trainer = Trainer(devices=2, callbacks=[save], **{**QUIET, **more, "enable_model_summary": True})
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        trainer.fit(Printing())
        lines = shown.getvalue().splitlines()
        (result,) = trainer.validate(ckpt_path="best", verbose=True)
        table = shown.getvalue().splitlines()[len(lines) :]
    return {
        "log_dir": trainer.log_dir,
        "best": save.best_model_path,
        "last": save.last_model_path,
        "score": float(save.best_model_score),  # type: ignore[arg-type]
        "shown": bool(lines),
        "printed": [line for line in lines if "from rank" in line],
        "table": bool(table),
        "result": result,
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("written")
    return run_ranks(write_everything, 2, str(folder)), folder


@pytest.mark.world_size(2)
def test_paths_and_results_are_the_same_on_all_ranks(written: tuple[list[dict[str, Any]], Path]) -> None:
    first, second = written[0]
    for name in ("log_dir", "best", "last", "score", "result"):
        assert first[name] == second[name]
    assert Path(first["best"]).is_file()


@pytest.mark.world_size(2)
def test_one_version_and_one_set_of_files_is_written(written: tuple[list[dict[str, Any]], Path]) -> None:
    files = sorted(path.name for path in written[1].rglob("*") if path.is_file())
    assert len([name for name in files if name.endswith(".ckpt")]) == 2
    assert files.count("metrics.csv") == 1
    assert [path.name for path in (written[1] / "lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.world_size(2)
def test_only_rank_zero_prints(written: tuple[list[dict[str, Any]], Path]) -> None:
    first, second = written[0]
    assert (first["shown"], first["table"], len(first["printed"])) == (True, True, 1)
    assert (second["shown"], second["table"], second["printed"]) == (False, False, [])


def save_where_nothing_can_be(path: str) -> str:
    trainer = Trainer(devices=2, **QUIET)
    trainer.fit(Net())
    try:
        trainer.save_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return "saved"


@pytest.mark.world_size(2)
def test_a_failed_save_of_rank_zero_raises_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    first, second = run_ranks(save_where_nothing_can_be, 2, str(tmp_path / "file" / "model.ckpt"))
    assert first == second
    assert first != "saved"


def fit_twice() -> tuple[int, int, list[float]]:
    trainer, net = Trainer(devices=2, **QUIET), Net()
    trainer.fit(net)
    steps = trainer.global_step
    trainer.fit_loop.max_epochs = 3
    trainer.fit(net)
    results = trainer.validate(net, verbose=False)
    Trainer(devices=2, **QUIET).fit(net)
    return steps, trainer.global_step, [results[0]["val"], net.layer.weight.sum().item()]


@pytest.mark.world_size(2)
def test_a_program_can_fit_again_and_evaluate() -> None:
    first, second = run_ranks(fit_twice, 2)
    assert first == second
    assert first[:2] == (2, 6)


class FailsOn(Net):
    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def fail(self, *args: Any, **kwargs: Any) -> None:
        if rank() == 1:
            raise ValueError(f"rank 1 fails in {self.hook}")


def fail_in(hook: str) -> None:
    class Failing(FailsOn):
        pass

    setattr(Failing, hook, Failing.fail)
    Trainer(devices=2, **QUIET).fit(Failing(hook))


@pytest.mark.world_size(2)
@pytest.mark.parametrize("hook", ["setup", "on_train_batch_end", "validation_step", "on_train_epoch_end"])
def test_an_error_of_one_rank_ends_all_and_is_the_one_that_is_told(hook: str) -> None:
    with pytest.raises(ValueError, match=f"rank 1 fails in {hook}"):
        run_ranks(fail_in, 2, hook, timeout_s=40)


# ------------------------------------------------------------------------------------------------------- the registry


def test_names_of_ddp_say_how_processes_start_and_whether_unused_parameters_are_looked_for() -> None:
    for start, method in {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}.items():
        for suffix, arguments in {
            "": {},
            "_find_unused_parameters_true": {"find_unused_parameters": True},
            "_find_unused_parameters_false": {"find_unused_parameters": False},
        }.items():
            strategy = StrategyRegistry.get(start + suffix)
            assert isinstance(strategy, DDPStrategy)
            assert (strategy.start_method, strategy.ddp_kwargs) == (method, arguments)


def test_a_strategy_of_ones_own_has_a_name() -> None:
    class Own(DDPStrategy):
        pass

    StrategyRegistry.register("own", Own, "mine", bucket_cap_mb=1)
    try:
        strategy = StrategyRegistry.get("own")
        assert (type(strategy), strategy.ddp_kwargs) == (Own, {"bucket_cap_mb": 1})
        assert "own" in StrategyRegistry.available_strategies()
        with pytest.raises(Exception, match="registered already"):
            StrategyRegistry.register("own", Own)
    finally:
        StrategyRegistry.remove("own")
    with pytest.raises(KeyError, match="'own' is unknown"):
        StrategyRegistry.get("own")
