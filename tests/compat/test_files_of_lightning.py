"""Training goes on from checkpoints that Lightning has written, with all that they hold."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur
from fulgur.checkpoint.load import load_checkpoint
from fulgur.errors import CheckpointError

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(path.name for path in DATA.iterdir() if path.is_dir())
BEFORE_1_5 = ("1.0.8", "1.2.10", "1.4.9")
FILES = sorted(f"{path.parent.name}/{path.stem}" for path in DATA.glob("*/*.ckpt") if path.stem != "weights")


@pytest.fixture(scope="module")
def resumed(workload: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run has, begun from the file ``<version>/<name>``: each is run once."""
    results: dict[str, Any] = {}

    def get(file: str) -> Any:
        if file not in results:
            run = workload.FILES[Path(file).name][0]
            results[file] = workload.resume(fulgur, run, DATA / f"{file}.ckpt", tmp_path_factory.mktemp("run"))
        return results[file]

    return get


def holds_position(file: str) -> bool:
    """Whether files of this version tell the place in the epoch: before 1.6 they name the next epoch instead."""
    return not file.startswith((*BEFORE_1_5, "1.5."))


@pytest.fixture
def expected(workload: Any) -> Any:
    """What Lightning restored from a file, and what it had at the end of the run."""

    def get(file: str) -> tuple[Any, Any]:
        version, name = file.split("/")
        known = torch.load(DATA / version / "expected.pt", weights_only=True)
        # Lightning repeats the first batches of an epoch it resumes: the end to reach is the unbroken run's.
        end = known["ends"][workload.FILES[name][0]] if holds_position(file) else known["files"][name]["end"]
        return known["files"][name]["start"], end

    return get


@pytest.mark.filterwarnings("ignore:.*directory:UserWarning")
@pytest.mark.parametrize("file", FILES)
class TestResume:
    """Of a whole run from each file, one thing after the other."""

    def test_weights_optimizer_and_rate_are_restored(self, file: str, resumed: Any, expected: Any) -> None:
        ours, theirs = resumed(file)["start"], expected(file)[0]
        assert torch.equal(ours["weights"], theirs["weights"])
        assert torch.equal(ours["optimizer"], theirs["optimizer"])
        assert (ours["lr"], ours["scheduler"]) == (theirs["lr"], theirs["scheduler"])

    def test_hyperparameters_are_restored(self, file: str, expected: Any, workload: Any) -> None:
        run = workload.FILES[Path(file).name][0]
        cls = type(workload.build_module(fulgur, run))
        module = cls.load_from_checkpoint(DATA / f"{file}.ckpt")
        assert dict(module.hparams) == {"width": 4, "lr": 0.05, "betas": (0.9, 0.99)}
        weights = torch.cat([tensor.flatten() for tensor in module.state_dict().values()])
        assert torch.equal(weights, expected(file)[0]["weights"])

    def test_callbacks_are_restored(self, file: str, resumed: Any, expected: Any) -> None:
        ours, theirs = resumed(file)["start"], expected(file)[0]
        assert ours["early_stopping"] == theirs["early_stopping"]
        # Its directory is another one here, so that the ranking stays behind.
        assert ours["model_checkpoint"][1] == theirs["model_checkpoint"][1]

    def test_goes_on_with_the_next_batch(self, file: str, resumed: Any, workload: Any) -> None:
        _, _, epoch, n_batches = workload.FILES[Path(file).name]
        if not holds_position(file):
            n_batches = workload.N_BATCHES
        every = [[e, b] for e in range(workload.MAX_EPOCHS) for b in range(workload.N_BATCHES)]
        assert resumed(file)["batches"] == every[epoch * workload.N_BATCHES + n_batches :]

    def test_counters_go_on(self, file: str, resumed: Any, expected: Any, workload: Any) -> None:
        start, end = expected(file)
        ours = resumed(file)["end"]
        assert ours["epoch"] == workload.MAX_EPOCHS
        n_steps = 2 if "accumulating" in file else 4
        assert ours["global_step"] == (end["global_step"] if holds_position(file) else start["global_step"] + n_steps)

    def test_ends_with_the_weights_of_the_run_that_was_never_stopped(
        self, file: str, resumed: Any, expected: Any
    ) -> None:
        ours, theirs = resumed(file)["end"], expected(file)[1]
        torch.testing.assert_close(ours["weights"], theirs["weights"], rtol=0, atol=1e-6)
        torch.testing.assert_close(ours["optimizer"], theirs["optimizer"], rtol=0, atol=1e-6)
        assert (ours["lr"], ours["scheduler"]) == (theirs["lr"], theirs["scheduler"])

    def test_early_stopping_ends_as_in_the_run_that_was_never_stopped(
        self, file: str, resumed: Any, expected: Any
    ) -> None:
        ours, theirs = resumed(file)["end"]["early_stopping"], expected(file)[1]["early_stopping"]
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("version", [*filter(holds_position, VERSIONS)])
def test_file_in_mid_epoch_says_how_the_position_was_found(
    version: str, workload: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        workload.resume(fulgur, "automatic", DATA / version / "mid_epoch.ckpt", tmp_path)
    said = [record.getMessage() for record in caplog.records if "position" in record.getMessage()]
    assert len(said) == 1
    assert "first 3 batches" in said[0]


@pytest.mark.parametrize("version", [*filter(holds_position, VERSIONS)])
def test_shuffled_loader_goes_on_in_a_fresh_order_without_those_already_counted(
    version: str, workload: Any, tmp_path: Path
) -> None:
    seen: list[float] = []

    class Watch(fulgur.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 1:
                seen.extend(batch[0][:, 0].tolist())

    dataset = workload.loaders()[0].dataset
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    trainer = workload.build_trainer(fulgur, "automatic", tmp_path, [Watch()])
    module = workload.build_module(fulgur, "automatic")
    trainer.fit(module, loader, workload.loaders()[1], ckpt_path=DATA / version / "mid_epoch.ckpt")
    assert len(set(seen)) == 4


class Stateful:
    """A loader that keeps its own position, counting from the end to be told from one that is stepped through."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.position = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        begin, self.position = self.position, 0
        return iter(self.batches[begin:])

    def state_dict(self) -> dict[str, int]:
        return {"left": len(self.batches) - self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = len(self.batches) - state["left"]


def test_loader_with_a_position_of_its_own_gets_it_from_the_file(workload: Any, tmp_path: Path) -> None:
    seen: list[float] = []

    class Watch(fulgur.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 1:
                seen.append(batch[0][0, 0].item())

    content = torch.load(DATA / "2.6.6" / "mid_epoch.ckpt", weights_only=True)
    content["loops"]["fit_loop"]["state_dict"] = {"combined_loader": [{"left": 2}]}
    torch.save(content, tmp_path / "stateful.ckpt")
    batches = list(workload.loaders()[0])
    trainer = workload.build_trainer(fulgur, "automatic", tmp_path / "own", [Watch()])
    module = workload.build_module(fulgur, "automatic")
    trainer.fit(module, Stateful(batches), workload.loaders()[1], ckpt_path=tmp_path / "stateful.ckpt")
    assert seen == [batches[2][0][0, 0].item()]  # one more of the epoch's four, from where the loader stood


@pytest.mark.parametrize("version", [version for version in VERSIONS if version not in BEFORE_1_5])
def test_ranking_of_checkpoints_goes_on_in_the_same_directory(
    version: str, workload: Any, tmp_path: Path, expected: Any
) -> None:
    content = torch.load(DATA / version / "mid_epoch.ckpt", weights_only=True)
    for state in content["callbacks"].values():
        if "dirpath" in state:
            state["dirpath"] = str(tmp_path)
    torch.save(content, tmp_path / "here.ckpt")
    ours = workload.resume(fulgur, "automatic", tmp_path / "here.ckpt", tmp_path)["start"]
    assert ours["model_checkpoint"] == expected(f"{version}/mid_epoch")[0]["model_checkpoint"]


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_only_file_loads_and_does_not_resume(version: str, workload: Any, tmp_path: Path) -> None:
    path = DATA / version / "weights.ckpt"
    module = workload.build_module(fulgur, "automatic")
    trainer = workload.build_trainer(fulgur, "automatic", tmp_path)
    assert trainer.validate(module, workload.loaders()[1], ckpt_path=path, verbose=False)
    assert type(module).load_from_checkpoint(path).hparams.width == 4
    with pytest.raises(KeyError, match="weights"):
        trainer.fit(module, *workload.loaders(), ckpt_path=path)


@pytest.mark.parametrize("version", BEFORE_1_5)
def test_keys_of_callbacks_are_classes_of_a_package_that_need_not_be_there(version: str) -> None:
    callbacks = load_checkpoint(DATA / version / "epoch_end.ckpt")["callbacks"]
    assert sorted(key.names_callback for key in callbacks) == ["EarlyStopping", "ModelCheckpoint"]


@pytest.mark.parametrize("version", BEFORE_1_5)
def test_missing_package_is_named_where_its_classes_are_wanted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(CheckpointError, match=r"epoch_end\.ckpt.*Install the package 'pytorch_lightning'") as caught:
        load_checkpoint(DATA / version / "epoch_end.ckpt", weights_only=False)
    assert "damaged" not in str(caught.value)
