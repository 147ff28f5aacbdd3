"""What importing costs, counted in modules, each in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# Modules that ``import torch`` alone leaves out, and that most programs never need.
HEAVY = (
    "jsonargparse",
    "lightning",
    "pandas",
    "rich",
    "sklearn",
    "tensorboard",
    "tensorflow",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.utils.tensorboard",
    "torchmetrics",
    "tqdm",
    "yaml",
)

PROGRAM = """
import json, sys
import torch
{first}
before = set(sys.modules)
{statements}
print(json.dumps(sorted(set(sys.modules) - before)))
"""

# An optimizer and a loader make torch itself import a thousand modules.
BY_HAND = """
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in torch.utils.data.DataLoader(torch.ones(4, 2)):
    optimizer.zero_grad()
    model(batch).mean().backward()
    optimizer.step()
"""

FIT = """
from fulgur import LightningModule, Trainer
class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("loss", loss, on_epoch=True, prog_bar=True)
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).mean())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.ones(4, 2))
off = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
trainer = Trainer(accelerator="cpu", max_epochs=1, **off)
trainer.fit(Line(), loader, loader)
"""


def modules_after(statements: str, *, first: str = "") -> list[str]:
    """Modules that `statements` load on top of ``import torch`` and `first`."""
    program = PROGRAM.format(first=first, statements=statements)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Any = json.loads(done.stdout.splitlines()[-1])
    return list(found)


def test_importing_fulgur_loads_next_to_nothing() -> None:
    assert modules_after("import fulgur") == ["fulgur"]


def test_the_names_of_every_program_stay_small_and_import_nothing_heavy() -> None:
    found = modules_after("from fulgur import LightningModule, Trainer")
    assert len(found) <= 100, f"{len(found)} modules: {found}"
    assert _heavy(found) == []


def test_packages_and_a_trainer_import_nothing_heavy() -> None:
    packages = "import fulgur, fulgur.callbacks, fulgur.loggers, fulgur.profilers, fulgur.testing"
    assert _heavy(modules_after(f"{packages}\nfulgur.Trainer(accelerator='cpu', logger=False)")) == []


def test_a_fit_with_everything_off_imports_nothing_that_a_hand_written_loop_does_not() -> None:
    found = modules_after(FIT, first=BY_HAND)
    assert [name for name in found if name.partition(".")[0] != "fulgur"] == []
    assert len(found) <= 100, f"{len(found)} modules: {found}"


def test_a_bar_and_a_csv_logger_import_nothing_heavy_where_there_is_no_terminal() -> None:
    shown = FIT.replace('"enable_progress_bar", ', "").replace('["logger", ', "[")
    program = f"import os, tempfile\nos.chdir(tempfile.mkdtemp())\nimport fulgur.loggers\n{shown}".replace(
        "Trainer(", "Trainer(logger=fulgur.loggers.CSVLogger('.'), "
    )
    assert _heavy(modules_after(program, first=BY_HAND)) == []


def _heavy(names: list[str]) -> list[str]:
    return [name for name in names if name in HEAVY or name.startswith(tuple(f"{heavy}." for heavy in HEAVY))]
