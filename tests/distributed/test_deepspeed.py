"""DeepSpeed's engine under the Trainer, on processes of the CPU: against loops written by hand, and its files."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulgur import LightningModule, Trainer
from fulgur.callbacks import ModelCheckpoint
from fulgur.errors import CheckpointError, CheckpointRefusedError, MisconfigurationException
from fulgur.strategies import DeepSpeedStrategy
from fulgur.testing import run_ranks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed; `make deepspeed` installs it"
)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
}
ENV = {"DS_ACCELERATOR": "cpu"}
N_SAMPLES = 64


def world() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def ranks(function: Callable[..., Any], *args: Any, n: int = 2) -> list[Any]:
    return run_ranks(function, n, *args, env=ENV, timeout_s=150.0)


def samples() -> torch.Tensor:
    return torch.randn(N_SAMPLES, 8, generator=torch.Generator().manual_seed(5))


def loader(*, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(TensorDataset(samples()), batch_size=4, shuffle=shuffle)


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=0.01)


class Net(LightningModule):
    """A network with dropout on request, that schedules its learning rate by steps and logs."""

    def __init__(self, optimizer: Callable[..., Any] = adam, *, dropout: float = 0.0, schedules: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 8))
        self.optimizer, self.schedules = optimizer, schedules
        self.losses: list[float] = []

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.body(x).float(), x.float())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch[0])
        self.losses.append(loss.item())
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.loss(batch[0]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test", self.loss(batch[0]))

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.body(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if not self.schedules:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trainer(stage: int = 2, *, strategy: Any = None, **arguments: Any) -> Trainer:
    strategy = strategy or DeepSpeedStrategy(stage=stage)
    return Trainer(devices=world()[1], strategy=strategy, **{**QUIET, **arguments})


def whole(module: nn.Module) -> list[torch.Tensor]:
    import deepspeed

    parted = [p for p in module.parameters() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(parted):
        return [value.detach().clone() for value in module.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------------------------------------------------------- steps


class ByHand(nn.Module):
    """What the engine wraps in the loop written by hand: its forward pass is the loss."""

    def __init__(self, net: Net, precision: str) -> None:
        super().__init__()
        self.net, self.precision = net, precision

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return self.net.loss(x.bfloat16() if self.precision == "bf16-true" else x)


def by_hand(stage: int, optimizer: Any, *, accumulate: int, clip: float, precision: str) -> Any:
    import deepspeed

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision != "32-true"},
    }
    net = Net(optimizer)
    net = net.bfloat16() if precision == "bf16-true" else net
    engine, *_ = deepspeed.initialize(
        model=ByHand(net, precision), optimizer=net.configure_optimizers(), config=config, dist_init_required=False
    )
    rank, size = world()
    for _ in range(2):
        for (batch,) in list(loader())[rank::size]:
            engine.backward(engine(batch))
            engine.step()
    return whole(net)


def compare(stage: int, optimizer: Any, accumulate: int, clip: float, precision: str) -> bool:
    net = Net(optimizer)
    run = trainer(stage, accumulate_grad_batches=accumulate, gradient_clip_val=clip or None, precision=precision)
    run.fit(net, loader())
    assert run.global_step == 16 // accumulate
    return same(whole(net), by_hand(stage, optimizer, accumulate=accumulate, clip=clip, precision=precision))


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ("stage", "optimizer", "accumulate", "clip", "precision"),
    [
        (1, sgd, 1, 0.0, "32-true"),
        (1, adam, 2, 0.05, "32-true"),
        (2, sgd, 4, 0.05, "32-true"),
        (2, adam, 2, 0.0, "bf16-mixed"),
        (3, sgd, 1, 0.05, "32-true"),
        (3, adam, 2, 0.05, "32-true"),
        (3, adam, 2, 0.05, "bf16-true"),
    ],
)
def test_parameters_are_those_of_a_loop_by_hand(
    stage: int, optimizer: Any, accumulate: int, clip: float, precision: str
) -> None:
    assert ranks(compare, stage, optimizer, accumulate, clip, precision) == [True, True]


def trained(stage: int, **arguments: Any) -> dict[str, Any]:
    """What a run leaves behind: by DeepSpeed, or by DDP for stage 0."""
    net = Net(schedules=True)
    run = trainer(stage, strategy="ddp" if stage == 0 else None, **arguments)
    run.fit(net, loader(), loader())
    rates = [group["lr"] for group in run.optimizers[0].param_groups]
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    return {"losses": net.losses, "step": run.global_step, "rates": rates, "metrics": metrics}


def against_ddp(stage: int, accumulate: int) -> None:
    arguments = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.05}
    found, expected = trained(stage, **arguments), trained(0, **arguments)
    assert (found["step"], found["rates"]) == (expected["step"], expected["rates"])
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)


@pytest.mark.world_size(2)
@pytest.mark.parametrize(("stage", "accumulate"), [(1, 3), (2, 3), (3, 3)])  # the last window of an epoch is shorter
def test_losses_steps_rates_and_metrics_are_those_of_ddp(stage: int, accumulate: int) -> None:
    ranks(against_ddp, stage, accumulate)


class Knotty(Net):
    """With parameters of its own, shared and frozen ones, groups, hooks, and a forward pass that steps call."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.one, self.other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.other.weight = self.one.weight
        self.scale = nn.Parameter(torch.ones(8))
        self.seen: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.one(self.frozen(self.body(x)))) * self.scale

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self(x) * self.scale, x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "out": self(batch[0])}

    def on_after_backward(self) -> None:
        self.seen.append("backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen.append("before")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.seen.append("step")
        optimizer.step(closure=optimizer_closure)

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.body.parameters(), "lr": 0.02}, {"params": [self.one.weight, self.scale]}]
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def knotty(stage: int, folder: str) -> None:
    found = []
    for strategy in (DeepSpeedStrategy(stage=stage), "ddp"):
        net = Knotty()
        run = trainer(strategy=strategy, accumulate_grad_batches=2)
        run.fit(net, loader(), loader())
        found.append((net, run))
    (net, run), (expected, by_ddp) = found
    assert net.seen == expected.seen
    assert net.losses == pytest.approx(expected.losses, rel=1e-5)
    assert float(run.callback_metrics["val"]) == pytest.approx(float(by_ddp.callback_metrics["val"]), rel=1e-5)
    run.save_checkpoint(f"{folder}/full.ckpt")
    for name, value in Knotty.load_from_checkpoint(f"{folder}/full.ckpt").state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_parameters_of_all_kinds_and_hooks_are_as_under_ddp(tmp_path: Path, stage: int) -> None:
    ranks(knotty, stage, str(tmp_path))


class Stream(IterableDataset[Any]):
    """Samples without a length."""

    def __iter__(self) -> Any:
        return iter(samples())


def fit_stream(stage: int, offloads: bool) -> None:
    found = []
    for strategy in (DeepSpeedStrategy(stage=stage, offload_optimizer=offloads), "ddp"):
        net = Net(sgd)
        net.training_step = lambda batch, batch_idx, net=net: net.loss(batch)  # type: ignore[method-assign]
        run = trainer(strategy=strategy, accumulate_grad_batches=3, gradient_clip_val=0.05)
        run.fit(net, DataLoader(Stream(), batch_size=4))
        assert run.global_step == 6
        found.append(whole(net))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.world_size(2)
@pytest.mark.filterwarnings("ignore:.*reads everything")
@pytest.mark.parametrize(("stage", "offloads"), [(1, False), (2, False), (2, True), (3, False), (3, True)])
def test_window_that_a_loader_ends_early_is_a_mean_over_its_batches(stage: int, offloads: bool) -> None:
    ranks(fit_stream, stage, offloads)


# ------------------------------------------------------------------------------------------------------------- files


def resume(folder: str, stage: int, precision: str, accumulate: int) -> None:
    arguments = {"accumulate_grad_batches": accumulate, "precision": precision, "gradient_clip_val": 0.05}
    torch.manual_seed(1)
    net = Net(dropout=0.2, schedules=True)
    saves = ModelCheckpoint(dirpath=folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    run = trainer(stage, **{**arguments, "enable_checkpointing": True}, callbacks=[saves])
    run.fit(net, loader(shuffle=True), loader())
    torch.manual_seed(77)
    other = Net(dropout=0.2, schedules=True)
    again = trainer(stage, **arguments)
    again.fit(other, loader(shuffle=True), loader(), ckpt_path=f"{folder}/step=3.ckpt")
    assert same(whole(net), whole(other))
    assert again.global_step == run.global_step
    assert again.callback_metrics == run.callback_metrics
    assert len(other.losses) == len(net.losses) - 3 * accumulate
    assert other.losses == net.losses[3 * accumulate :]


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ("stage", "precision", "accumulate"),
    [(1, "32-true", 2), (2, "bf16-mixed", 1), (3, "32-true", 2), (3, "bf16-true", 1)],
)
def test_resumed_run_ends_with_the_bits_of_the_undisturbed_one(
    tmp_path: Path, stage: int, precision: str, accumulate: int
) -> None:
    ranks(resume, str(tmp_path), stage, precision, accumulate)
    first = tmp_path / "step=3.ckpt"
    assert {"meta.pt", "latest", "zero_to_fp32.py", "checkpoint"} <= {path.name for path in first.iterdir()}
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("step=")] == []


def save_and_evaluate(folder: str, stage: int) -> Any:
    net = Net()
    run = trainer(stage, max_epochs=1)
    run.fit(net, loader(), loader())
    run.save_checkpoint(f"{folder}/full.ckpt")
    run.save_checkpoint(f"{folder}/weights.ckpt", weights_only=True)
    results = [run.test(net, loader(), verbose=False)]
    for name in ("full", "weights"):
        results.append(trainer(stage).test(Net(), loader(), ckpt_path=f"{folder}/{name}.ckpt", verbose=False))
    assert results[0] == results[1] == results[2]
    predicted = run.predict(net, loader())
    assert predicted is not None
    assert [tuple(batch.shape) for batch in predicted] == [(4, 8)] * 8
    return whole(net)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_directory_and_file_of_weights_hold_what_was_trained(tmp_path: Path, stage: int) -> None:
    weights, _ = ranks(save_and_evaluate, str(tmp_path), stage)
    assert (tmp_path / "weights.ckpt").is_file()
    for name in ("full.ckpt", "weights.ckpt"):
        loaded = Net.load_from_checkpoint(tmp_path / name, map_location="cpu")
        assert same(list(loaded.state_dict().values()), weights)


def save(folder: str, stage: int) -> None:
    run = trainer(stage, max_epochs=1)
    run.fit(Net(schedules=True), loader())
    run.save_checkpoint(f"{folder}/full.ckpt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two ranks in stage 2."""
    folder = tmp_path_factory.mktemp("saved")
    ranks(save, str(folder), 2)
    return folder / "full.ckpt"


def test_consolidated_file_loads_without_deepspeed(saved: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from fulgur.checkpoint.tools.consolidation import consolidate

    assert consolidate(str(saved), str(tmp_path / "one.ckpt")) == 4
    monkeypatch.setattr(importlib.util, "find_spec", lambda *args: None)
    monkeypatch.setattr("fulgur.checkpoint.engine_files.find_spec", lambda *args: None)
    Net.load_from_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ModuleNotFoundError, match=r"fulgur\[deepspeed\]"):
        Net.load_from_checkpoint(saved)


def go_on(path: str, strategy: Any, **arguments: Any) -> None:
    strategy = DeepSpeedStrategy(**strategy) if isinstance(strategy, dict) else strategy
    trainer(strategy=strategy).fit(Net(schedules=True), loader(), ckpt_path=path, **arguments)


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ("strategy", "n", "error", "message"),
    [
        ({"stage": 3}, 2, CheckpointError, "on 2 ranks in stage 2, and this run has 2 ranks and stage 3"),
        ({"stage": 2}, 1, CheckpointError, "on 2 ranks in stage 2, and this run has 1 ranks"),
        ("ddp", 2, MisconfigurationException, "does not fit AdamW"),
    ],
)
def test_run_of_another_layout_does_not_go_on_from_it(
    saved: Path, strategy: Any, n: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ranks(go_on, str(saved), strategy, n=n)


def go_on_from_file(folder: str) -> None:
    run = trainer(strategy="ddp", max_epochs=1)
    run.fit(Net(schedules=True), loader())
    run.save_checkpoint(f"{folder}/file.ckpt")
    go_on(f"{folder}/file.ckpt", {"stage": 2})


@pytest.mark.world_size(2)
def test_file_of_another_strategy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not written by DeepSpeed's engine"):
        ranks(go_on_from_file, str(tmp_path))


@pytest.mark.world_size(2)
def test_damaged_file_of_the_engine_is_noticed(saved: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(saved, tmp_path / "damaged.ckpt"))
    (part,) = path.glob("checkpoint/zero_pp_rank_1*optim_states.pt")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: checkpoint/zero_pp_rank_1"):
        ranks(go_on, str(path), {"stage": 2})


class Runs:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["RAN"],)


def test_file_of_the_engine_that_would_run_code_is_refused(saved: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from fulgur.checkpoint.engine_files import read_engine_weights

    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    path = Path(shutil.copytree(saved, tmp_path / "evil.ckpt"))
    (part,) = path.glob("checkpoint/*model_states.pt")
    content = torch.load(part, weights_only=False)
    torch.save({**content, "more": Runs()}, part)
    with pytest.raises(CheckpointRefusedError, match="weights_only=False"):
        read_engine_weights(path)
    assert not (tmp_path / "ran").exists()


def fail_to_write(folder: str) -> str:
    run = trainer(max_epochs=1)
    run.fit(Net(), loader())
    path = f"{folder}/full.ckpt"
    run.save_checkpoint(path)
    strategy: Any = run.strategy
    strategy._write_engine = _failing(strategy._write_engine, run.global_rank)
    try:
        run.save_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _failing(write: Callable[[str], Any], rank: int) -> Callable[[str], Any]:
    def run(directory: str) -> Any:
        written = write(directory)
        if rank == 1:
            written.failure = "OSError: no space"
        return written

    return run


@pytest.mark.world_size(2)
def test_rank_that_cannot_write_is_an_error_on_all_and_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    found = ranks(fail_to_write, str(tmp_path))
    assert all("rank 1: OSError: no space" in message for message in found)
    assert [path.name for path in tmp_path.iterdir()] == ["full.ckpt"]
    assert len(list((tmp_path / "full.ckpt" / "checkpoint").iterdir())) == 3


# ------------------------------------------------------------------------------------------------------------ errors


class Skips(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class Two(Net):
    def configure_optimizers(self) -> Any:
        return [adam(self.body[0].parameters()), adam(self.body[3].parameters())]

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return self.loss(batch[0])


class Newton(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def fails(make: Callable[[], Net], arguments: dict[str, Any]) -> None:
    config = {"config": arguments.pop("config")} if "config" in arguments else {}
    trainer(strategy=DeepSpeedStrategy(**config), **arguments).fit(make(), loader())


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Skips, {}, "training_step returned None"),
        (Two, {}, "returned 2 optimizers"),
        (Newton, {}, "LBFGS"),
        (Manual, {}, "optimizes manually"),
        (Net, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "gradient_clip_algorithm='value'"),
        (Net, {"precision": "64-true"}, "precision='64-true'"),
        (
            Net,
            {"config": {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 4}},
            "gradient_accumulation_steps=4, and the Trainer accumulate_grad_batches=1",
        ),
    ],
)
def test_what_the_engine_cannot_do_is_an_error(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ranks(fails, make, arguments, n=1)


def save_within_window() -> None:
    run = trainer(accumulate_grad_batches=2, max_epochs=1)
    net = Net()
    net.on_train_batch_end = lambda *args: run.save_checkpoint("never.ckpt")  # type: ignore[method-assign]
    run.fit(net, loader())


def test_save_within_an_accumulation_window_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="Within an accumulation window"):
        ranks(save_within_window, n=1)


def printed(path: str) -> None:
    import contextlib

    with open(path, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        trainer(max_epochs=1).fit(Net(sgd), loader())


def test_engine_says_nothing(tmp_path: Path) -> None:
    ranks(printed, str(tmp_path / "said"), n=1)
    assert (tmp_path / "said").read_text() == ""


def find_rate() -> None:
    from fulgur.callbacks import LearningRateFinder

    net = Net()
    net.lr = 0.1  # type: ignore[assignment]
    trainer(callbacks=[LearningRateFinder(num_training_steps=4)]).fit(net, loader())


def train_with_another_trainer() -> None:
    net = Net()
    trainer().fit(net, loader())
    trainer().fit(net, loader())


def loop_of_the_users_own() -> None:
    from fulgur import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, strategy=DeepSpeedStrategy())
    fabric.launch()
    fabric.setup(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (find_rate, "Trials of learning rates"),
        (train_with_another_trainer, "another Trainer's DeepSpeed engine"),
        (loop_of_the_users_own, "Fabric does not drive DeepSpeed's engine"),
    ],
)
def test_what_would_go_past_the_engine_is_an_error(program: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ranks(program, n=1)


def train_again_and_another() -> None:
    net, run = Net(), trainer(3, max_epochs=1)
    run.fit(net, loader())
    before = whole(net)
    run.fit_loop.limits.max_epochs = 2
    run.fit(net, loader())
    assert run.global_step == 16
    assert not same(before, whole(net))
    other = Net()
    assert run.test(other, loader(), verbose=False) != run.test(net, loader(), verbose=False)


@pytest.mark.world_size(2)
def test_trainer_takes_the_same_model_again_and_another_one() -> None:
    ranks(train_again_and_another)
