"""Files made to run code when they are opened: nothing in them runs, and each is refused with what it wanted."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import enum
import gzip
import importlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fulgur
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.plain import TAG, from_plain
from fulgur.errors import CheckpointError, CheckpointRefusedError

RAN = "ran"  # a folder that code from a file would make in the folder of the test


class Calls:
    """Unpickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Net(fulgur.LightningModule):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, width)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch[0])

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


class Data(fulgur.LightningDataModule):
    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path) -> Any:
    yield
    assert not (tmp_path / RAN).exists(), "code from the file has run"


def trainer() -> fulgur.Trainer:
    return fulgur.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader() -> Any:
    return DataLoader(TensorDataset(torch.ones(2, 1)))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint of a run, for the corpus to be made of."""
    run = fulgur.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path_factory.mktemp("root"),
    )
    run.fit(Net(), loader())
    path = tmp_path_factory.mktemp("good") / "good.ckpt"
    run.save_checkpoint(path)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def open_file(path: Path) -> Any:
    with path.open("rb") as file:
        return load_checkpoint(file)


def open_file_in_the_middle(path: Path) -> Any:
    with (path.parent / "longer.bin").open("w+b") as file:
        file.write(b"header" + path.read_bytes())
        file.seek(len(b"header"))
        return load_checkpoint(file)


def module_from_file(path: Path) -> Any:
    with path.open("rb") as file:
        return Net.load_from_checkpoint(file)


def datamodule_from_file(path: Path) -> Any:
    with path.open("rb") as file:
        return Data.load_from_checkpoint(file)


WAYS_IN: dict[str, Callable[[Path], Any]] = {
    "load_checkpoint": load_checkpoint,
    "load_checkpoint, open file": open_file,
    "load_checkpoint, open file in the middle": open_file_in_the_middle,
    "load_checkpoint, mmap": lambda path: load_checkpoint(path, mmap=True),
    "fit": lambda path: trainer().fit(Net(), loader(), ckpt_path=path),
    "validate": lambda path: trainer().validate(Net(), loader(), ckpt_path=path),
    "test": lambda path: trainer().test(Net(), loader(), ckpt_path=path),
    "predict": lambda path: trainer().predict(Net(), loader(), ckpt_path=path),
    "module": Net.load_from_checkpoint,
    "module, open file": module_from_file,
    "datamodule": Data.load_from_checkpoint,
    "datamodule, open file": datamodule_from_file,
}
every_way = pytest.mark.parametrize("way", WAYS_IN.values(), ids=WAYS_IN)


def put(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of `content` with `value` at `place`."""
    copied = torch.load(io.BytesIO(_saved(content)), weights_only=True)
    inner = copied
    for key in place[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    inner[place[-1]] = value
    return copied


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


PLACES: dict[str, tuple[Any, ...]] = {
    "top level": ("extra",),
    "weights": ("state_dict", "layer.weight"),
    "hyperparameters": ("hyper_parameters", "width"),
    "datamodule's hyperparameters": ("datamodule_hyper_parameters", "size"),
    "callback's state": ("callbacks", "EarlyStopping", "wait_count"),
    "optimizer's state": ("optimizer_states", 0, "state", 0, "step"),
    "optimizer's group": ("optimizer_states", 0, "param_groups", 0, "lr"),
    "scheduler": ("lr_schedulers",),
    "loops": ("loops", "fit_loop", "state_dict"),
    "fulgur": ("fulgur", "progress", "epoch"),
    "a key": (Calls(os.mkdir, RAN),),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@every_way
def test_call_is_refused_wherever_it_stands(
    tmp_path: Path, good: dict[str, Any], way: Callable[[Path], Any], place: tuple[Any, ...]
) -> None:
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(_saved(put(good, place, Calls(os.mkdir, RAN))))
    with pytest.raises(CheckpointRefusedError, match=r"it wants posix\.mkdir.*weights_only=False"):
        way(path)


COMMAND = f"mkdir {RAN}"
WANTS: dict[str, tuple[Any, str]] = {
    "os.system": (Calls(os.system, COMMAND), "posix.system"),
    "eval": (Calls(eval, f"__import__('os').mkdir({RAN!r})"), "builtins.eval"),
    "exec": (Calls(exec, f"import os; os.mkdir({RAN!r})"), "builtins.exec"),
    "getattr": (Calls(getattr, Calls(importlib.import_module, "os"), "mkdir"), "builtins.getattr"),
    "__import__": (Calls(builtins.__import__, "os"), "builtins.__import__"),
    "importlib": (Calls(importlib.import_module, "os"), "importlib.import_module"),
    "subprocess": (Calls(subprocess.Popen, ["mkdir", RAN]), ".Popen"),  # by the name of its module in Python 2
    "shutil": (Calls(shutil.copytree, ".", RAN), "shutil.copytree"),
    "open": (Calls(open, RAN, "w"), "io.open"),
    "pickle": (Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, RAN))), "pickle.loads"),
    "torch.load": (Calls(torch.load, "x"), "torch.serialization.load"),
    "torch.hub": (Calls(torch.hub.load, "x", "y"), "torch.hub.load"),
    "a class of the program": (Net(), "test_hostile_files.Net"),
}


@pytest.mark.parametrize(("value", "name"), WANTS.values(), ids=WANTS)
def test_refusal_names_what_was_wanted(tmp_path: Path, value: Any, name: str) -> None:
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(_saved({"state_dict": {}, "x": value}))
    with pytest.raises(CheckpointRefusedError, match=re.escape(name)):
        load_checkpoint(path)


def test_allowed_types_open_no_door(tmp_path: Path) -> None:
    """Making a Namespace with another function's result still asks for that function."""
    import argparse

    path = tmp_path / "hostile.ckpt"
    path.write_bytes(_saved({"x": argparse.Namespace(y=Calls(os.mkdir, RAN))}))
    with pytest.raises(CheckpointRefusedError, match=r"wants posix\.mkdir"):
        load_checkpoint(path)


def pickle_naming(name: str, *, call: bool) -> bytes:
    """``{"callbacks": {<name>: {}}}``, with the class, or with what a call of it returns, as the key."""
    module, _, short = name.rpartition(".")
    head = b"\x80\x02}X\x09\x00\x00\x00callbacks}c" + f"{module}\n{short}\n".encode()
    return head + (b")R" if call else b"") + b"}ss."


def with_pickle(content: bytes) -> bytes:
    """A checkpoint file whose ``data.pkl`` is `content`."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved({}))) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            target.writestr(entry.filename, content if is_pickle else source.read(entry))
    return file.getvalue()


def test_class_of_a_callback_as_a_key_is_a_name_only(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(
        with_pickle(pickle_naming("pytorch_lightning.callbacks.early_stopping.EarlyStopping", call=False))
    )
    (key,) = load_checkpoint(tmp_path / "old.ckpt")["callbacks"]
    assert key.names_callback == "EarlyStopping"
    with pytest.raises(TypeError, match="only named"):
        key()


def test_class_of_a_callback_cannot_be_called(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(
        with_pickle(pickle_naming("pytorch_lightning.callbacks.early_stopping.EarlyStopping", call=True))
    )
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "old.ckpt")


# ------------------------------------------------------------------------------------------------ formats of files


def legacy(content: Any) -> bytes:
    return _saved(content, _use_new_zipfile_serialization=False)


def plain_pickle(content: Any) -> bytes:
    return pickle.dumps(content)


def pickle_of_python_2(content: Any) -> bytes:
    return pickle.dumps(content, protocol=0)


def gzipped(content: Any) -> bytes:
    return gzip.compress(_saved(content))


def gzipped_pickle(content: Any) -> bytes:
    return gzip.compress(pickle.dumps(content))


def tar(content: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("pickle", "storages", "tensors", f"../{RAN}"):
            data = pickle.dumps(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def compressed(content: Any) -> bytes:
    return _repacked(_saved(content), zipfile.ZIP_DEFLATED)


def _repacked(archive: bytes, compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(file, "w", compression) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return file.getvalue()


def torchscript(content: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    return _repacked(file.getvalue(), zipfile.ZIP_STORED)


FORMATS: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "torch of before 1.6": (legacy, r"wants posix\.mkdir"),
    "plain pickle": (plain_pickle, r"is no checkpoint: it is a plain pickle.*; it wants posix\.mkdir\."),
    "plain pickle of Python 2": (pickle_of_python_2, r"is a plain pickle.*; it wants .*posix\.mkdir"),
    "tar": (tar, r"is no checkpoint: it is in torch's tar format of before 2017; it wants posix\.mkdir\."),
    "gzip": (gzipped, r"is no checkpoint: it is compressed with gzip, and a zip archive inside"),
    "pickle in gzip": (gzipped_pickle, r"is compressed with gzip, and a plain pickle inside; it wants posix\.mkdir\."),
    "compressed zip": (compressed, "compressed archive"),
    "TorchScript": (torchscript, "TorchScript archive"),
}


@pytest.mark.parametrize(("build", "message"), FORMATS.values(), ids=FORMATS)
@every_way
def test_other_formats_are_no_way_around(
    tmp_path: Path, way: Callable[[Path], Any], build: Callable[[Any], bytes], message: str
) -> None:
    path = tmp_path / "inner" / "hostile.ckpt"
    path.parent.mkdir()
    path.write_bytes(build({"state_dict": {}, "x": Calls(os.mkdir, RAN)}))
    with pytest.raises(CheckpointError, match=message):
        way(path)


def test_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A gigabyte of zeros in a file of a megabyte."""
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(256):
                entry.write(bytes(1 << 22))
    before = _peak_memory()
    with pytest.raises(CheckpointError, match="compressed"):
        load_checkpoint(path)
    assert _peak_memory() - before < 1 << 28


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_names_in_the_archive_lead_nowhere(tmp_path: Path) -> None:
    content = _saved({"state_dict": {"w": torch.ones(1)}})
    path = tmp_path / "inner" / "a.ckpt"
    path.parent.mkdir()
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"../{RAN}", "x")
        archive.writestr(f"/{tmp_path}/{RAN}", "x")
    with contextlib.suppress(CheckpointError):
        load_checkpoint(path)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["a.ckpt", "inner"]


class Rebuilt:
    """A tensor of another size than its storage."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.size, self.stride, self.offset = size, stride, offset

    def __reduce__(self) -> Any:
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (storage, self.offset, self.size, self.stride, False, {})


@pytest.mark.parametrize(
    "tensor",
    [Rebuilt((1 << 40,), (1,)), Rebuilt((1 << 62, 4), (4, 1)), Rebuilt((4,), (1,), 1 << 40), Rebuilt((4,), (1,), -8)],
    ids=["huge", "overflowing", "far behind", "before"],
)
def test_tensor_beyond_its_storage_is_refused(tmp_path: Path, tensor: Rebuilt) -> None:
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(_saved({"state_dict": {"w": tensor}}))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_deep_nesting_is_an_error_and_no_crash(tmp_path: Path) -> None:
    depth = 100_000
    (tmp_path / "deep.ckpt").write_bytes(with_pickle(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "deep.ckpt")


# ------------------------------------------------------------------------------------------ hyperparameters, plainly


@pytest.mark.parametrize(
    "text",
    [
        f"width: !!python/object/apply:os.mkdir [{RAN}]",
        f"!!python/object/apply:os.system ['mkdir {RAN}']",
        "width: !!python/name:os.system",
        "width: !!python/module:os",
        "width: !!python/object/new:subprocess.Popen [[mkdir, ran]]",
    ],
)
def test_hparams_file_with_python_tags_is_refused(tmp_path: Path, good: dict[str, Any], text: str) -> None:
    (tmp_path / "hparams.yaml").write_text(text)
    torch.save(good, tmp_path / "good.ckpt")
    for cls in (Net, Data):
        with pytest.raises(ValueError, match=r"hparams\.yaml.*python/"):
            cls.load_from_checkpoint(tmp_path / "good.ckpt", hparams_file=tmp_path / "hparams.yaml")


def test_hparams_file_in_csv_holds_literals_only(tmp_path: Path, good: dict[str, Any]) -> None:
    (tmp_path / "hparams.csv").write_text(f"key,value\nwidth,__import__('os').mkdir('{RAN}')\n")
    torch.save(good, tmp_path / "good.ckpt")
    with pytest.raises(TypeError):  # the text is no width
        Net.load_from_checkpoint(tmp_path / "good.ckpt", hparams_file=tmp_path / "hparams.csv")


events: list[str] = []


@dataclasses.dataclass
class WithHooks:
    command: str = ""

    def __init__(self, command: str) -> None:
        events.append("init")

    def __post_init__(self) -> None:
        events.append("post_init")

    def __setattr__(self, name: str, value: Any) -> None:
        events.append("setattr")

    def __setstate__(self, state: Any) -> None:
        events.append("setstate")


@dataclasses.dataclass
class WithEnd:
    command: str = ""

    def __del__(self) -> None:
        events.append("del")


@dataclasses.dataclass
class WithProperty:
    command: str = ""


def _set_command(self: WithProperty, value: str) -> None:
    events.append("property")


WithProperty.command = property(lambda self: "", _set_command)  # type: ignore[assignment]


class WithMissing(enum.Flag):
    A = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        events.append("missing")
        return super()._missing_(value)


def tagged(kind: str, cls: type, **content: Any) -> dict[str, Any]:
    return {TAG: kind, "module": cls.__module__, "class": cls.__qualname__, **content}


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of this file, where a file's names find them."""
    module = types.ModuleType(WithHooks.__module__)
    vars(module).update({cls.__name__: cls for cls in (WithHooks, WithEnd, WithProperty, WithMissing)})
    monkeypatch.setitem(sys.modules, WithHooks.__module__, module)
    events.clear()


@pytest.mark.usefixtures("imported")
def test_dataclass_comes_back_without_its_own_code() -> None:
    restored = from_plain(tagged("dataclass", WithHooks, value={"command": "x"}))
    assert type(restored) is WithHooks
    assert restored.command == "x"
    assert events == []


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("cls", [WithEnd, WithProperty])
def test_dataclass_that_could_not_stay_silent_comes_back_as_a_dict(cls: type) -> None:
    assert from_plain(tagged("dataclass", cls, value={"command": "x"})) == {"command": "x"}
    assert events == []


@pytest.mark.usefixtures("imported")
def test_own_missing_of_an_enum_is_not_asked() -> None:
    assert from_plain(tagged("Enum", WithMissing, name="B", value=6)) == 6
    assert events == []


def test_class_that_is_not_imported_stays_so() -> None:
    assert "antigravity" not in sys.modules
    plain = {TAG: "dataclass", "module": "antigravity", "class": "X", "value": {"a": 1}}
    assert from_plain(plain) == {"a": 1}
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("torch.device", "nonsense"),
        ("torch.dtype", "load"),
        ("numpy.ndarray", "os"),
        ("bytes", 1 << 50),
        ("range", "x"),
        ("timedelta", [1 << 70]),
        ("Namespace", [1]),
        ("datetime", 3),
    ],
)
def test_tag_with_content_that_does_not_fit_is_harmless(kind: str, value: Any) -> None:
    assert from_plain({TAG: kind, "value": value}) in ({TAG: kind, "value": value}, b"")


# -------------------------------------------------------------------------------------------------- trusted on purpose


def test_weights_only_false_opens_on_purpose(tmp_path: Path, good: dict[str, Any]) -> None:
    path = tmp_path / "trusted.ckpt"
    path.write_bytes(_saved(put(good, ("extra",), Calls(os.mkdir, "asked for"))))
    load_checkpoint(path, weights_only=False)
    assert (tmp_path / "asked for").is_dir()
    (tmp_path / "asked for").rmdir()
    trainer().validate(Net(), loader(), ckpt_path=path, weights_only=False)
    assert (tmp_path / "asked for").is_dir()
