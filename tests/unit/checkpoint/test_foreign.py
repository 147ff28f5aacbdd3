"""What files are that are no checkpoints, and what pickles ask for."""

from __future__ import annotations

import bz2
import fractions
import gzip
import io
import lzma
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fulgur.checkpoint.foreign import find_globals, identify
from fulgur.checkpoint.load import load_checkpoint
from fulgur.errors import CheckpointError


class Hostile:
    """Creates a folder named ``ran`` when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


CONTENT = {"epoch": 1, "a": Hostile(), "b": [fractions.Fraction(1, 2), Hostile()], "state_dict": {"w": torch.ones(2)}}


def tar_of(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


class TestFindGlobals:
    @pytest.mark.parametrize("protocol", range(6))
    def test_every_protocol(self, protocol: int) -> None:
        found = find_globals(pickle.dumps(CONTENT, protocol=protocol))
        assert found is not None
        assert {"fractions.Fraction", "posix.mkdir"} <= set(found)
        assert not Path("ran").exists()

    def test_name_that_comes_from_the_memo(self) -> None:
        # `mkdir` is a value first; the global takes it from there
        content = b"\x80\x04\x8c\x05mkdir\x940\x8c\x05posixh\x00\x93."
        assert find_globals(content) == ["posix.mkdir"]
        assert pickle.loads(content) is os.mkdir

    def test_weights_ask_for_nothing_unusual(self) -> None:
        assert find_globals(pickle.dumps({"w": 1, "x": [1.0, "text", None]})) == []
        file = io.BytesIO()
        torch.save({"w": torch.ones(2)}, file)
        with zipfile.ZipFile(file) as archive:
            assert find_globals(archive.read("archive/data.pkl")) == []

    def test_pickled_tensor_asks_for_a_function_that_unpickles(self) -> None:
        assert find_globals(pickle.dumps({"w": torch.ones(2)})) == ["torch.storage._load_from_bytes"]

    @pytest.mark.parametrize(
        "content", [b"", b"text\n" * 300, b"comma,separated\n1,2\n", b".hidden", b"N.", b"c1,c2\n3,4\n"]
    )
    def test_text_is_no_pickle(self, content: bytes) -> None:
        assert find_globals(content) is None

    def test_what_is_cut_short_tells_what_it_asked_for_until_then(self) -> None:
        content = pickle.dumps(CONTENT)
        assert find_globals(content[: content.index(b"Fraction")]) == ["posix.mkdir"]


@pytest.mark.parametrize(
    ("content", "is_a", "way_out"),
    [
        (pickle.dumps({"epoch": 1}), "a plain pickle, which torch.save does not write", "torch.save(pickle.load("),
        (gzip.compress(b"text", mtime=0), "compressed with gzip", "`gunzip`"),
        (gzip.compress(b"text", mtime=0)[:12], "compressed with gzip", "`gunzip`"),
        (bz2.compress(b"text"), "compressed with bzip2", "`bunzip2`"),
        (lzma.compress(b"text"), "compressed with xz", "`unxz`"),
        (tar_of(notes=b"x"), "a tar archive of something else", "Unpack it"),
        (
            tar_of(pickle=b"\x80\x02}.", storages=b"", tensors=b""),
            "in torch's tar format of before 2017",
            "torch.load(",
        ),
        (save({"w": torch.ones(2)}), "weights in safetensors", "fulgur checkpoint convert"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras writes", "Use another checkpoint."),
    ],
)
def test_file_is_named_and_so_is_the_way_out(content: bytes, is_a: str, way_out: str, tmp_path: Path) -> None:
    found = identify(io.BytesIO(content))
    assert found is not None
    assert found.is_a == is_a
    assert way_out in found.way_out
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert str(caught.value) == f"{str(tmp_path / 'a.ckpt')!r} is no checkpoint: it is {is_a}. {found.way_out}"


def test_more_than_a_few_wants_are_counted() -> None:
    many = [os.mkdir, os.rmdir, os.remove, os.rename, os.link, os.stat, os.chmod]
    found = identify(io.BytesIO(pickle.dumps(many)))
    assert found is not None
    assert found.is_a.endswith("it wants posix.chmod, posix.link, posix.mkdir, posix.remove, posix.rename and 2 more")


def test_bomb_is_unfolded_only_as_far_as_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulgur.checkpoint.foreign._LOOKED_AT_SIZE", 1000)
    seen: list[int] = []

    def look(content: bytes) -> Any:
        seen.append(len(content))

    monkeypatch.setattr("fulgur.checkpoint.foreign.find_globals", look)
    identify(io.BytesIO(gzip.compress(bytes(1 << 20))))
    assert seen == [1000]


@pytest.mark.filterwarnings("ignore:Python 3.14:DeprecationWarning")  # of torch, where it unpacks a tar
def test_ways_out_work(tmp_path: Path) -> None:
    """What the messages tell to do makes a checkpoint that opens."""
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"state_dict": {"w": 1.0}}))
    with open(tmp_path / "plain.pkl", "rb") as file:
        torch.save(pickle.load(file), tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt") == {"state_dict": {"w": 1.0}}
    empty, views = pickle.dumps(0, protocol=2), pickle.dumps([], protocol=2)
    (tmp_path / "old.tar").write_bytes(
        tar_of(
            sys_info=pickle.dumps({}),
            pickle=pickle.dumps({"epoch": 3}, protocol=2),
            storages=empty + views,
            tensors=empty,
        )
    )
    torch.save(torch.load(tmp_path / "old.tar", weights_only=False), tmp_path / "b.ckpt")
    assert load_checkpoint(tmp_path / "b.ckpt") == {"epoch": 3}
