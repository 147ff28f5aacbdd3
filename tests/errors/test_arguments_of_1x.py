"""Every Trainer argument of 1.x, with a real run: each is acted on, and none is silently ignored."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.errors.conftest import QUIET, Net, loader, net, quiet

from fulgur import LightningDataModule, Trainer
from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.errors import MisconfigurationException, UnknownArgumentError
from fulgur.loggers import CSVLogger

FORMER = {"accelerator": "cpu", "logger": False, "checkpoint_callback": False, "weights_summary": None} | {
    "progress_bar_refresh_rate": 0,
    "max_epochs": 1,
}


def test_form_of_1_0_trains(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(
        gpus=None,
        num_processes=1,
        precision=32,
        logger=False,
        checkpoint_callback=False,
        weights_summary=None,
        progress_bar_refresh_rate=0,
        max_epochs=2,
        min_epochs=1,
        max_steps=None,
        automatic_optimization=True,
        terminate_on_nan=False,
        track_grad_norm=-1,
        reload_dataloaders_every_epoch=False,
        replace_sampler_ddp=True,
        prepare_data_per_node=True,
        amp_backend="native",
        amp_level="O2",
        process_position=0,
        log_gpu_memory=None,
        resume_from_checkpoint=None,
        auto_lr_find=False,
        auto_scale_batch_size=False,
        truncated_bptt_steps=None,
        distributed_backend=None,
        tpu_cores=None,
        auto_select_gpus=False,
        sync_batchnorm=False,
        profiler=None,
        gradient_clip_val=0,
        accumulate_grad_batches=1,
        overfit_batches=0.0,
        flush_logs_every_n_steps=100,
        move_metrics_to_cpu=False,
        multiple_trainloader_mode="max_size_cycle",
        stochastic_weight_avg=False,
        weights_save_path=None,
    )
    trainer.fit(Net(), train_dataloader=loader(), val_dataloaders=loader())
    assert (trainer.global_step, trainer.current_epoch) == (8, 2)
    assert trainer.strategy.root_device.type == "cpu"
    assert trainer.precision == "32-true"
    assert (trainer.callbacks, trainer.loggers) == ([], [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("gpus", [None, 0])
def test_no_gpus_is_the_cpu(gpus: Any) -> None:
    trainer = Trainer(**{name: value for name, value in FORMER.items() if name != "accelerator"}, gpus=gpus)
    trainer.fit(Net(), loader())
    assert trainer.accelerator.name == "cpu" or gpus is None


@pytest.mark.parametrize(
    ("precision", "name"), [(32, "32-true"), ("32", "32-true"), (64, "64-true"), ("bf16", "bf16-mixed")]
)
def test_precision(precision: Any, name: str) -> None:
    trainer = Trainer(**FORMER, precision=precision)
    trainer.fit(Net(), loader())
    assert trainer.precision == name


def test_singular_names_of_loaders() -> None:
    trainer = quiet()
    trainer.fit(Net(), train_dataloader=loader())
    assert trainer.global_step == 4
    assert list(trainer.test(Net(), test_dataloaders=loader(), verbose=False)[0]) == ["test_loss"]
    assert list(trainer.validate(Net(), val_dataloaders=loader(), verbose=False)[0]) == ["val_loss"]


def test_checkpoint_callback() -> None:
    kept = {name: value for name, value in FORMER.items() if name != "checkpoint_callback"}
    Trainer(**kept, checkpoint_callback=False).fit(Net(), loader())
    assert not list(Path.cwd().rglob("*.ckpt"))
    Trainer(**kept, checkpoint_callback=True).fit(Net(), loader())
    assert [path.name for path in Path.cwd().rglob("*.ckpt")] == ["epoch=0-step=4.ckpt"]
    callback = ModelCheckpoint(dirpath="mine", filename="kept")
    Trainer(**kept, checkpoint_callback=callback).fit(Net(), loader())
    assert Path("mine/kept.ckpt").exists()


def test_early_stop_callback() -> None:
    constant = net(validation_step=lambda self, batch, batch_idx: self.log("val_loss", 1.0))
    trainer = Trainer(**FORMER | {"max_epochs": 9}, early_stop_callback=EarlyStopping("val_loss", patience=2))
    trainer.fit(constant, loader(), loader())
    assert trainer.current_epoch == 3


def test_weights_summary(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {name: value for name, value in FORMER.items() if name != "weights_summary"}
    for summary, shown in ((None, 0), ("top", 1), ("full", 2)):
        module = Net()
        module.block = torch.nn.Sequential(torch.nn.Linear(2, 2))
        Trainer(**kept, weights_summary=summary).fit(module, loader())
        printed = capsys.readouterr().out
        assert ("block" in printed, "block.0" in printed) == (shown > 0, shown > 1)


def test_resume_from_checkpoint(tmp_path: Path) -> None:
    first = Trainer(**FORMER)
    first.fit(Net(), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    second, module = Trainer(**FORMER | {"max_epochs": 3}, resume_from_checkpoint=str(tmp_path / "a.ckpt")), Net()
    second.fit(module, loader())
    assert (module.n_steps, second.global_step, second.current_epoch) == (8, 12, 3)


def test_resume_from_checkpoint_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at 'none\.ckpt'"):
        Trainer(**FORMER, resume_from_checkpoint="none.ckpt").fit(Net(), loader())


def test_accumulation_by_epoch() -> None:
    trainer = Trainer(**FORMER | {"max_epochs": 3}, accumulate_grad_batches={0: 1, 1: 2})
    trainer.fit(Net(), loader())
    assert trainer.global_step == 4 + 2 + 2


def test_reload_dataloaders_every_epoch() -> None:
    class Data(LightningDataModule):
        n_calls = 0

        def train_dataloader(self) -> Any:
            self.n_calls += 1
            return loader()

    for every_epoch, expected in ((True, 3), (False, 1)):
        data = Data()
        Trainer(**FORMER | {"max_epochs": 3}, reload_dataloaders_every_epoch=every_epoch).fit(Net(), datamodule=data)
        assert data.n_calls == expected


def test_automatic_optimization() -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()

    trainer, module = Trainer(**FORMER, automatic_optimization=False), net(training_step=training_step)
    trainer.fit(module, loader())
    assert (module.automatic_optimization, trainer.global_step) == (False, 4)


def test_weights_save_path() -> None:
    Trainer(**FORMER | {"checkpoint_callback": True}, weights_save_path="weights").fit(Net(), loader())
    assert Path("weights/epoch=0-step=4.ckpt").exists()


def test_default_save_path_and_root_dir() -> None:
    for name in ("default_save_path", "default_root_dir"):
        Trainer(**FORMER | {"checkpoint_callback": True}, **{name: name}).fit(Net(), loader())
        assert list(Path(name).rglob("*.ckpt"))


@pytest.mark.parametrize("value", [True, False])
def test_prepare_data_per_node(value: bool) -> None:
    module, data = Net(), LightningDataModule()
    data.train_dataloader = loader
    Trainer(**FORMER, prepare_data_per_node=value).fit(module, datamodule=data)
    assert (module.prepare_data_per_node, data.prepare_data_per_node) == (value, value)


@pytest.mark.parametrize(("mode", "n_steps"), [("max_size_cycle", 4), ("min_size", 2)])
def test_multiple_trainloader_mode(mode: str, n_steps: int) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.n_steps += 1
        return self.loss(batch["a"]) + self.loss(batch["b"])

    module = net(training_step=training_step)
    Trainer(**FORMER, multiple_trainloader_mode=mode).fit(module, {"a": loader(8), "b": loader(4)})
    assert module.n_steps == n_steps


def test_profiler_as_a_bool(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(**FORMER, profiler=True)
    trainer.fit(Net(), loader())
    assert type(trainer.profiler).__name__ == "SimpleProfiler"


def test_flush_logs_every_n_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    import fulgur.loggers.tensorboard

    monkeypatch.setattr(fulgur.loggers.tensorboard, "is_tensorboard_available", lambda: False)
    trainer = Trainer(**FORMER | {"logger": True}, flush_logs_every_n_steps=2)
    logger = trainer.logger
    assert isinstance(logger, CSVLogger)
    n_lines = []
    for step in range(4):
        logger.log_metrics({"a": 1.0}, step=step)
        written = list(Path.cwd().rglob("metrics.csv"))
        n_lines.append(len(written[0].read_text().splitlines()) if written else 0)
    assert n_lines == [0, 3, 3, 5]


# ------------------------------------------------------------------------------------------------- terminate_on_nan


def spoiled(value: float, at: int) -> Any:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.n_steps += 1
        return self.loss(batch) * (value if batch_idx == at else 1.0)

    return net(training_step=training_step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_terminate_on_nan_names_the_loss(value: float) -> None:
    trainer, module = Trainer(**FORMER, terminate_on_nan=True), spoiled(value, 2)
    with pytest.raises(ValueError, match=rf"epoch 0, global step 2: loss = {value}\. .*detect_anomaly=True"):
        trainer.fit(module, loader())
    assert module.n_steps == 3
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert module.torn_down == ["fit"]


def test_terminate_on_nan_names_the_parameters_before_a_checkpoint_is_saved() -> None:
    module = net(configure_optimizers=lambda self: torch.optim.SGD([self.layer.bias], lr=math.inf))
    trainer = Trainer(**FORMER | {"checkpoint_callback": True}, terminate_on_nan=True, limit_train_batches=1)
    with pytest.raises(ValueError, match=r"global step 1: parameter 'layer\.bias' = (-?inf|nan)\. "):
        trainer.fit(module, loader())
    assert not list(Path.cwd().rglob("*.ckpt"))


def test_terminate_on_nan_in_manual_optimization() -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(batch) * math.nan)

    module = net(training_step=training_step)
    with pytest.raises(ValueError, match="loss = nan"):
        Trainer(**FORMER, terminate_on_nan=True, automatic_optimization=False).fit(module, loader())


@pytest.mark.parametrize("arguments", [{}, {"terminate_on_nan": False}])
def test_without_terminate_on_nan_nothing_looks(arguments: dict[str, Any]) -> None:
    trainer, module = Trainer(**FORMER, **arguments), spoiled(math.nan, 2)
    trainer.fit(module, loader())
    assert (module.n_steps, trainer.callbacks) == (4, [])


# ------------------------------------------------------------------------------------------------- track_grad_norm


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.rglob("metrics.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("norm", [2, 1, "inf"])
def test_track_grad_norm_logs_at_logging_steps(tmp_path: Path, norm: Any) -> None:
    class Recorded(Net):
        def __init__(self) -> None:
            super().__init__()
            self.expected: list[dict[str, float]] = []

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            order = float(norm)
            norms = {
                f"grad_{order}_norm/{name}": torch.linalg.vector_norm(parameter.grad, order).item()
                for name, parameter in self.named_parameters()
            }
            total = torch.linalg.vector_norm(torch.tensor(list(norms.values())), order).item()
            self.expected.append({**norms, f"grad_{order}_norm_total": total})

    module, logger = Recorded(), CSVLogger(tmp_path)
    arguments = FORMER | {"logger": logger}
    Trainer(**arguments, track_grad_norm=norm, log_every_n_steps=2, gradient_clip_val=0.01).fit(module, loader())
    logged = rows(tmp_path)
    assert [int(row["step"]) for row in logged] == [1, 3]
    for row, expected in zip(logged, module.expected[1::2], strict=True):
        assert {key: float(value) for key, value in row.items() if key.startswith("grad_")} == pytest.approx(expected)


def test_track_grad_norm_of_no_order() -> None:
    with pytest.raises(MisconfigurationException, match="track_grad_norm='x' is no order of a norm"):
        Trainer(**FORMER, track_grad_norm="x")
    assert Trainer(**FORMER, track_grad_norm=-1).callbacks == []


# ---------------------------------------------------------------------------------------------------- what is gone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tpu_cores": 8}, "tpu_cores=8 is no longer there.*accelerator='cpu' or 'gpu'"),
        ({"ipus": 1}, "ipus=1 is no longer there"),
        ({"amp_backend": "apex"}, "amp_backend='apex'.*precision='16-mixed'"),
        ({"truncated_bptt_steps": 5}, "truncated_bptt_steps=5.*manual_backward"),
        ({"distributed_backend": "dp"}, "distributed_backend='dp' is no longer there. Use strategy='ddp'"),
        ({"distributed_backend": "horovod"}, "'horovod' is no longer there"),
        ({"early_stop_callback": True}, r"early_stop_callback=True.*EarlyStopping\(monitor='val_loss'\)"),
        ({"stochastic_weight_avg": True}, r"StochasticWeightAveraging\(swa_lrs="),
        ({"weights_summary": "deep"}, "weights_summary='deep' is unknown. Use 'top', 'full' or None"),
        ({"multiple_trainloader_mode": "longest"}, "'longest' is unknown.*'min_size'"),
        ({"auto_scale_batch_size": "cube"}, "auto_scale_batch_size='cube' is unknown"),
        (
            {"reload_dataloaders_every_epoch": True, "reload_dataloaders_every_n_epochs": 3},
            "Leave out reload_dataloaders_ev",
        ),
        ({"checkpoint_callback": True, "enable_checkpointing": False}, "Leave out checkpoint_callback"),
    ],
)
def test_what_can_no_longer_be_served(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(MisconfigurationException, match=words):
        Trainer(accelerator="cpu", logger=False, **arguments)


def test_accelerator_that_was_a_strategy_is_one_still() -> None:
    with pytest.raises(MisconfigurationException, match=r"accelerator='dp' is no longer there. Use strategy='ddp'"):
        Trainer(accelerator="dp", logger=False)


def test_names_before_1_0_tell_the_one_of_today() -> None:
    with pytest.raises(UnknownArgumentError, match=r"no argument 'max_nb_epochs'; it was renamed. Use max_epochs=3"):
        Trainer(**QUIET | {"max_epochs": None}, max_nb_epochs=3)
