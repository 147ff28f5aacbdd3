"""Sharded checkpoints: every layout of processes reads what every other has written; nothing is lost when one fails."""

from __future__ import annotations

import json
import os
import pickle
import signal
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer
from fulgur.callbacks import ModelCheckpoint
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.location import META_FILE, is_sharded
from fulgur.checkpoint.newest import find_newest
from fulgur.checkpoint.sharded import INDEX_FILE, SHARDS_KEY
from fulgur.checkpoint.sharded_read import load_index
from fulgur.checkpoint.tools.commands import main
from fulgur.checkpoint.verify import verify_checkpoint
from fulgur.checkpoint.write import write_checkpoint
from fulgur.errors import CheckpointError, CheckpointRefusedError
from fulgur.strategies import FSDPStrategy
from fulgur.testing import run_ranks

Weights = dict[str, Tensor]
STRATEGIES: dict[str, Any] = {
    "one": lambda: "auto",
    "ddp": lambda: "ddp",
    "full": lambda: FSDPStrategy(),
    "sharded": lambda: FSDPStrategy(state_dict_type="sharded", auto_wrap_policy={nn.Linear}),
    "hybrid": lambda: FSDPStrategy(state_dict_type="sharded", device_mesh=(2, 2)),
}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
        self.scale = nn.Parameter(torch.ones(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = mse_loss(self.layers.eval()(x) * self.scale, y)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)}


def trainer(kind: str, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 3, "devices": "auto", "enable_checkpointing": False, "precision": "64-true"}
    return Trainer(accelerator="cpu", strategy=STRATEGIES[kind](), **quiet, **(defaults | arguments))


def loader() -> DataLoader[Any]:
    torch.manual_seed(7)
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8 // size(), shuffle=True)


def size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def weights_of(module: nn.Module) -> Weights:
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in module.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in whole.items()}


def largest_difference(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def build() -> Net:
    torch.manual_seed(0)
    return Net()


def write_all(folder: str, kinds: list[str]) -> None:
    """A checkpoint of each kind, amid the second of three epochs of three steps."""
    for kind in kinds:
        run = trainer(kind, max_steps=4)
        run.fit(build(), loader())
        run.save_checkpoint(f"{folder}/{kind}.ckpt")


def resume_all(folder: str, kinds: list[str]) -> dict[tuple[str, str], Weights]:
    found = {}
    for kind in kinds:
        for name in sorted(os.listdir(folder)):
            module = build()
            trainer(kind).fit(module, loader(), ckpt_path=f"{folder}/{name}")
            found[kind, name] = weights_of(module)
    return found


def fit_through() -> Weights:
    module = build()
    trainer("one").fit(module, loader())
    return weights_of(module)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    run_ranks(write_all, 1, folder, ["one"])
    run_ranks(write_all, 2, folder, ["ddp", "full", "sharded"])
    run_ranks(write_all, 4, folder, ["hybrid"])
    return folder


@pytest.fixture(scope="module")
def undisturbed() -> Weights:
    return run_ranks(fit_through, 1)[0]


@pytest.mark.world_size(4)
@pytest.mark.parametrize(
    ("n_ranks", "kinds"), [(1, ["one", "sharded"]), (2, ["ddp", "full", "sharded"]), (4, ["hybrid"])]
)
def test_every_layout_goes_on_from_every_other(
    n_ranks: int, kinds: list[str], checkpoints: str, undisturbed: Weights
) -> None:
    for found in run_ranks(resume_all, n_ranks, checkpoints, kinds, timeout_s=120):
        assert len(found) == 5 * len(kinds)
        for layouts, weights in found.items():
            assert largest_difference(weights, undisturbed) < 1e-12, layouts


@pytest.mark.world_size(2)
def test_gathered_file_has_the_layout_of_one_process(checkpoints: str) -> None:
    one, gathered = (load_checkpoint(f"{checkpoints}/{name}.ckpt") for name in ("one", "full"))
    assert list(one) == list(gathered)
    assert list(one["state_dict"]) == list(gathered["state_dict"])
    states = [checkpoint["optimizer_states"][0] for checkpoint in (one, gathered)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert [list(entry) for entry in states[0]["state"].values()] == [list(e) for e in states[1]["state"].values()]
    assert all(type(value) is Tensor for value in gathered["state_dict"].values())


# ---------------------------------------------------------------------------------------------------------- the tools


def test_consolidated_file_holds_what_the_shards_hold(checkpoints: str, tmp_path: Path) -> None:
    source, target = f"{checkpoints}/hybrid.ckpt", str(tmp_path / "one.ckpt")
    assert main(["consolidate", source, target, "--json"]) == 0
    shards, file = load_checkpoint(source), load_checkpoint(target)
    assert shards.keys() == file.keys()
    assert SHARDS_KEY not in file
    assert all(torch.equal(value, file["state_dict"][name]) for name, value in shards["state_dict"].items())
    assert verify_checkpoint(target).kind == "good"


def test_inspect_tells_the_shapes_without_reading_them(checkpoints: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{checkpoints}/sharded.ckpt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shapes = {entry["name"]: entry["shape"] for entry in found["tensors"]}
    assert shapes["layers.0.weight"] == [5, 3]
    assert found["kind"] == "shards"
    assert found["resume"] == "exact, with position in the data and generators"


def test_verify_finds_directories_and_files(checkpoints: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", checkpoints, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_files"] == 5


def test_consolidate_refuses_what_is_no_sharded_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consolidate", str(tmp_path), str(tmp_path / "a.ckpt")]) == 2
    assert "is no sharded checkpoint but a directory without a meta.pt" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- damaged and hostile


@pytest.fixture
def shards(checkpoints: str, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    import shutil

    return Path(shutil.copytree(f"{checkpoints}/sharded.ckpt", tmp_path / "a.ckpt"))


@pytest.mark.parametrize("name", [META_FILE, INDEX_FILE, "__1_0.distcp"])
def test_any_changed_byte_is_found(shards: Path, name: str) -> None:
    assert verify_checkpoint(shards).kind == "good"
    content = bytearray((shards / name).read_bytes())
    content[len(content) // 2] ^= 1
    (shards / name).write_bytes(content)
    assert verify_checkpoint(shards).kind == "damaged"
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(shards)


def test_missing_file_is_found_without_reading_the_others(shards: Path) -> None:
    (shards / "__0_0.distcp").unlink()
    verdict = verify_checkpoint(shards, reads_all=False)
    assert (verdict.kind, verdict.reason) == ("truncated", "is damaged: __0_0.distcp is missing")


def test_newest_that_is_whole_is_found_beside_a_damaged_one(checkpoints: str, shards: Path) -> None:
    (shards / "__0_0.distcp").write_bytes(b"")
    write_checkpoint({"global_step": 1, "optimizer_states": [], "state_dict": {}}, shards.parent / "b.ckpt")
    assert find_newest(shards.parent) == str(shards.parent / "b.ckpt")
    assert find_newest(checkpoints) is not None


class Runs:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


def seal_again(shards: Path) -> None:
    """As somebody would who wants a changed index to be opened."""
    meta = load_checkpoint(shards / META_FILE)
    index = (shards / INDEX_FILE).read_bytes()
    meta[SHARDS_KEY]["files"][INDEX_FILE] = [len(index), zlib.crc32(index)]
    write_checkpoint(meta, shards / META_FILE)


def test_index_that_would_run_code_is_refused(shards: Path) -> None:
    (shards / INDEX_FILE).write_bytes(pickle.dumps(Runs()))
    seal_again(shards)
    with pytest.raises(CheckpointRefusedError, match=r"it wants \w+\.mkdir"):
        load_checkpoint(shards)
    assert not Path("it-ran").exists()


def test_pickled_object_in_the_place_of_a_tensor_is_refused(shards: Path) -> None:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    index = load_index(shards)
    index.state_dict_metadata["state_dict.scale"] = BytesStorageMetadata()
    (shards / INDEX_FILE).write_bytes(pickle.dumps(index))
    seal_again(shards)
    with pytest.raises(CheckpointRefusedError, match=r"'state_dict\.scale' is no tensor but a pickled object"):
        load_checkpoint(shards)


@pytest.mark.parametrize("name", ["../b.ckpt", "/etc/passwd"])
def test_index_that_leads_out_of_the_directory_is_refused(shards: Path, name: str) -> None:
    index = load_index(shards)
    for info in index.storage_data.values():
        info.relative_path = name
    (shards / INDEX_FILE).write_bytes(pickle.dumps(index))
    seal_again(shards)
    with pytest.raises(CheckpointError, match="which is not in that directory"):
        load_checkpoint(shards)


# --------------------------------------------------------------------------------------------------- saving in a run


def save_in_background(folder: str) -> list[Any]:
    kept = {}
    for name, is_async in (("at-once", False), ("in-background", True)):
        saver = ModelCheckpoint(
            f"{folder}/{name}", every_n_train_steps=2, save_top_k=1, save_last=True, async_save=is_async
        )
        run = trainer("sharded", callbacks=[saver], enable_checkpointing=True)
        run.fit(build(), loader())
        kept[name] = (os.path.basename(saver.best_model_path), os.path.basename(saver.last_model_path))
    return [kept["at-once"], kept["in-background"]]


@pytest.mark.world_size(2)
def test_saves_in_the_background_hold_the_same_and_older_ones_go(tmp_path: Path) -> None:
    for at_once, in_background in run_ranks(save_in_background, 2, str(tmp_path)):
        assert at_once == in_background == ("epoch=2-step=8.ckpt", "last.ckpt")
    folders = [tmp_path / name for name in ("at-once", "in-background")]
    assert [sorted(os.listdir(folder)) for folder in folders] == [["epoch=2-step=8.ckpt", "last.ckpt"]] * 2
    first, second = (load_checkpoint(folder / "epoch=2-step=8.ckpt") for folder in folders)
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())
    assert all(is_sharded(folder / "last.ckpt") for folder in folders)


def save_where_one_rank_fails(path: str) -> str:
    run = trainer("sharded", max_steps=1)
    run.fit(build(), loader())
    run.save_checkpoint(path)
    if run.global_rank == 1:
        import torch.distributed.checkpoint.filesystem as filesystem

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        filesystem._write_item = fail  # type: ignore[assignment]
    try:
        run.save_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return "nothing went wrong"


@pytest.mark.world_size(2)
def test_failure_of_one_rank_is_told_on_all_and_harms_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "a.ckpt")
    for message in run_ranks(save_where_one_rank_fails, 2, path):
        assert "could not be written: rank 1: OSError: [Errno 28] No space left on device" in message
    assert verify_checkpoint(path).kind == "good"
    assert os.listdir(tmp_path) == ["a.ckpt"]


def save_in_background_where_one_rank_fails(path: str) -> str:
    run = trainer("sharded", max_steps=1)
    run.fit(build(), loader())
    writer = AsyncCheckpointIO()
    run.save_checkpoint(path, checkpoint_io=writer)
    writer.wait()
    if run.global_rank == 1:
        import torch.distributed.checkpoint.filesystem as filesystem

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        filesystem._write_item = fail  # type: ignore[assignment]
    run.save_checkpoint(path, checkpoint_io=writer)
    try:
        run.save_checkpoint(path, checkpoint_io=writer)
    except CheckpointError as error:
        return str(error)
    finally:
        writer.release()
    return "nothing went wrong"


@pytest.mark.world_size(2)
def test_failure_in_the_background_is_told_at_the_next_save(tmp_path: Path) -> None:
    path = str(tmp_path / "a.ckpt")
    for message in run_ranks(save_in_background_where_one_rank_fails, 2, path):
        assert "could not be written: rank 1: OSError: [Errno 28] No space left on device" in message
    assert verify_checkpoint(path).kind == "good"
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_module_is_made_from_shards(checkpoints: str) -> None:
    module = Net.load_from_checkpoint(f"{checkpoints}/hybrid.ckpt")
    expected = load_checkpoint(f"{checkpoints}/hybrid.ckpt")["state_dict"]
    assert all(torch.equal(value, expected[name].to(value.dtype)) for name, value in module.state_dict().items())


def save_until_killed(path: str, place: str) -> None:
    run = trainer("sharded", max_steps=1)
    run.fit(build(), loader())
    run.save_checkpoint(path)
    if run.global_rank == 0:
        import fulgur.checkpoint.sharded_write as module

        def die(*args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, place, die)
    run.save_checkpoint(path)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("place", ["_write_part", "write_checkpoint", "put_in_place"])
def test_kill_during_a_save_keeps_the_previous_checkpoint(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises((ChildProcessError, RuntimeError)):  # the one that was killed, or the one that waits for it
        run_ranks(save_until_killed, 2, str(path), place)
    assert verify_checkpoint(path).kind == "good"
    (left,) = set(os.listdir(tmp_path)) - {"a.ckpt"}
    for name in (*os.listdir(tmp_path / left), "."):
        os.utime(tmp_path / left / name, (0, 0))
    write_checkpoint({}, tmp_path / "b.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt"]


def save_beside_others(folder: str) -> list[str]:
    run = trainer("sharded", max_steps=1)
    run.fit(build(), loader())
    if run.global_rank == 0:
        Path(folder, "mine").mkdir()
        Path(folder, "mine", "photo").touch()
        Path(folder, "file.ckpt").write_bytes(b"an earlier one")
    run.strategy.barrier("files are there")
    found = []
    for target in (f"{folder}/mine", "memory://a.ckpt"):
        try:
            run.save_checkpoint(target)
        except (IsADirectoryError, ValueError) as error:
            found.append(type(error).__name__)
    run.save_checkpoint(f"{folder}/file.ckpt")
    return found


@pytest.mark.world_size(2)
def test_only_checkpoints_are_replaced(tmp_path: Path) -> None:
    assert run_ranks(save_beside_others, 2, str(tmp_path)) == [["IsADirectoryError", "ValueError"]] * 2
    assert os.listdir(tmp_path / "mine") == ["photo"]
    assert verify_checkpoint(tmp_path / "file.ckpt").kind == "good"


def resume_by_auto(folder: str, epochs: int) -> tuple[Weights, int]:
    saver = ModelCheckpoint(folder, save_top_k=-1)
    run = trainer("sharded", callbacks=[saver], enable_checkpointing=True, max_epochs=epochs)
    module = build()
    run.fit(module, loader(), ckpt_path="auto")
    return weights_of(module), run.global_step


@pytest.mark.world_size(2)
def test_auto_goes_on_from_the_newest_whole_directory(tmp_path: Path, undisturbed: Weights) -> None:
    run_ranks(resume_by_auto, 2, str(tmp_path), 2)
    os.truncate(tmp_path / "epoch=1-step=6.ckpt" / "__0_0.distcp", 10)
    for weights, steps in run_ranks(resume_by_auto, 2, str(tmp_path), 3):
        assert steps == 9
        assert largest_difference(weights, undisturbed) < 1e-12
