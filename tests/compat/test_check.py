"""`python -m fulgur.compat --check`: findings in the text of a program, each with file, line and way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgur.compat.check import check_source, report
from fulgur.compat.program import main

EXAMPLES = Path(__file__).parents[2] / "examples" / "compat"


def missing(source: str) -> list[tuple[int, str]]:
    return [(f.line, f.text) for f in check_source(source) if f.kind == "missing"]


def differing(source: str) -> list[tuple[int, str]]:
    """Lines, and the numbers of the differences."""
    found = [f for f in check_source(source) if f.kind == "differs"]
    return [(f.line, f.text.rpartition(", ")[2].rstrip(").")) for f in found]


def test_a_right_program_has_no_findings() -> None:
    assert check_source((EXAMPLES / "autoencoder.py").read_text()) == []
    assert missing((EXAMPLES / "one_x.py").read_text()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import lightning.pytorch.nonsense",
        "from lightning.pytorch import nonsense",
        "from pytorch_lightning.callbacks import nonsense as sense",
        "import pytorch_lightning as pl; pl.callbacks.nonsense()",
        "import lightning; lightning.pytorch.callbacks.nonsense",
        "from lightning.pytorch import callbacks; callbacks.nonsense",
    ],
)
def test_names_that_are_not_there(statement: str) -> None:
    ((line, text),) = missing(f"import os\n{statement}")
    assert line == 2
    assert text.startswith("fulgur has no 'nonsense' to import from '")


def test_a_missing_name_comes_with_the_nearest() -> None:
    ((_, text),) = missing("from lightning.pytorch.callbacks import EarlyStoping")
    assert text.endswith("The nearest there is lightning.pytorch.callbacks.EarlyStopping.")


def test_what_is_gone_comes_with_the_way_out() -> None:
    ((_, text),) = missing("from pytorch_lightning.metrics import Accuracy")
    assert "pip install torchmetrics" in text


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("max_epoch=3", "Trainer has no argument 'max_epoch'. Did you mean 'max_epochs'?"),
        ("val_percent_check=0.1", "Use limit_val_batches=0.1."),
        ("truncated_bptt_steps=4", "truncated_bptt_steps=4 is no longer there."),
        ("strategy='xla'", "strategy='xla' is unknown."),
        ("accelerator='tpu'", "fulgur does not drive it."),
        ("distributed_backend='dp'", "Use strategy='ddp' instead."),
    ],
)
def test_arguments_of_the_trainer(argument: str, text: str) -> None:
    ((line, found),) = missing(f"import lightning as L\nL.Trainer(\n    {argument},\n)")
    assert line == 3
    assert text in found


@pytest.mark.parametrize("argument", ["gpus=2", "max_epochs=n", "checkpoint_callback=True", "strategy=choose()"])
def test_arguments_that_are_there_or_cannot_be_known(argument: str) -> None:
    assert missing(f"from pytorch_lightning import Trainer\nTrainer({argument})") == []


def test_attributes_of_a_trainer() -> None:
    source = "\n".join(
        [
            "trainer.curent_epoch",
            "self.trainer.fit_loop.epoch_loop.batch_progress.current.redy",
            "trainer._checkpoint_connector.nonsense()",
            "trainer.strategy.barrier(), trainer.strategy.root_device, trainer.strategy.model",
            "trainer.callback_metrics.nonsense, trainer.logger.experiment.nonsense",
            "self.trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.fit_loop.max_epochs",
            "trainer.my_own = 1; trainer.my_own",
        ]
    )
    assert [(line, text.partition(".")[0] if line == 1 else text) for line, text in missing(source)] == [
        (1, "trainer has no attribute 'curent_epoch'"),
        (
            2,
            "trainer.fit_loop.epoch_loop.batch_progress.current has no attribute 'redy'. Did you mean 'ready'?",
        ),
        (3, "trainer._checkpoint_connector has no attribute 'nonsense'."),
    ]


MODULE = """
class Net(LightningModule):
    def training_step(self, batch, batch_idx):
        {body}
"""


@pytest.mark.parametrize(
    ("source", "numbers"),
    [
        ("import lightning as L\nL.Trainer(accumulate_grad_batches=4)", ["D1"]),
        ("import lightning as L\nL.Trainer(accumulate_grad_batches=1)", []),
        ("import lightning as L\nL.Trainer(devices=2)", ["D2", "D3"]),
        ("import lightning as L\nL.Trainer(strategy='ddp')", ["D2", "D3"]),
        (MODULE.format(body="a, b = self.optimizers()"), ["D4"]),
        (MODULE.format(body="a = self.optimizers()"), []),
        (MODULE.format(body="if batch is None: return\n        return self.loss(batch)"), ["D10"]),
        (MODULE.format(body="return self.loss(batch)"), []),
        ("try:\n    trainer.fit(model)\nexcept (SystemExit, ValueError):\n    pass", ["D14"]),
    ],
)
def test_differences_that_the_text_shows(source: str, numbers: list[str]) -> None:
    assert [number for _, number in differing(source)] == numbers


def test_a_folder_is_read_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("from lightning.pytorch import nonsense")
    (tmp_path / "package" / "b.py").write_text("raise SystemError('must not run')")
    (tmp_path / "package" / "c.py").write_text("def broken(:")
    assert main(["--check", str(tmp_path / "package")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"{tmp_path}/package/a.py:1",
        f"{tmp_path}/package/c.py:1",
        "3 files",
    ]
    assert lines[-1] == "3 files: 2 missing, 0 different"


def test_nothing_found_is_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text("import lightning")
    assert report([str(tmp_path / "a.py")]) == 0
    assert capsys.readouterr().out == "1 file: 0 missing, 0 different\n"


def test_a_path_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["nowhere.py"]) == 2
    assert capsys.readouterr().err == "There is no 'nowhere.py'.\n"


OTHER_PARTS = """
import lightning as L
import pytorch_lightning as pl
from lightning.fabric import Fabric
from lightning.fabric.plugins.collectives import TorchCollective
from lightning.fabric.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, NeptuneLogger, WandbLogger
from lightning.pytorch.plugins import FSDPPrecision, LayerSync, TorchSyncBatchNorm
from lightning.pytorch.tuner import Tuner
from pytorch_lightning.tuner.tuning import Tuner as SameTuner
from pytorch_lightning.utilities.cli import MODEL_REGISTRY

fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed", loggers=[])
fabric.launch()
model, optimizer = fabric.setup(model, optimizer)
fabric.backward(loss)
fabric.strategy.barrier()

class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.width", "model.width")

cli = CLI(Model, Data, save_config_kwargs={"overwrite": True}, run=False)
cli.trainer.fit(cli.model)
trainer = pl.Trainer(max_epochs=1, logger=MLFlowLogger(experiment_name="x"), plugins=[TorchSyncBatchNorm()])
Tuner(trainer).lr_find(model).suggestion()
trainer.tuner.scale_batch_size(model)
trainer.tune(model)
trainer.logger.run_id
trainer.strategy.all_reduce(x), trainer.strategy.batch_to_device(x), trainer.strategy._ddp_kwargs
trainer.precision_plugin.forward_context(), trainer.precision_plugin.convert_input(x)
trainer.running_sanity_check, trainer.train_loop.epoch_loop
"""


def test_fabric_the_command_line_the_tuner_and_loggers_are_no_findings() -> None:
    assert check_source(OTHER_PARTS) == []
