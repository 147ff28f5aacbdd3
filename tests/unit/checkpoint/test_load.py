"""Opening checkpoints, good and bad."""

from __future__ import annotations

import argparse
import decimal
import fractions
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.write import write_checkpoint
from fulgur.errors import CheckpointError, CheckpointRefusedError


class Hostile:
    """Creates a file named ``ran`` when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_missing_file_lists_the_checkpoints_beside_it(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.ckpt", "notes.txt"):
        write_checkpoint({}, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nope\.ckpt.*holds: a\.ckpt, b\.ckpt\.$"):
        load_checkpoint(tmp_path / "nope.ckpt")


def test_missing_file_in_an_empty_place_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoints in"):
        load_checkpoint(tmp_path / "nowhere" / "a.ckpt")


def test_missing_file_on_a_remote_store_lists_what_is_there(store: str) -> None:
    write_checkpoint({}, f"{store}/a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"holds: a\.ckpt"):
        load_checkpoint(f"{store}/b.ckpt")


def test_remote_store_is_read(store: str) -> None:
    write_checkpoint({"w": torch.ones(2)}, f"{store}/a.ckpt")
    assert load_checkpoint(f"{store}/a.ckpt")["w"].tolist() == [1, 1]


def test_map_location_places_tensors(tmp_path: Path) -> None:
    write_checkpoint({"w": torch.ones(2)}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt", map_location="meta")["w"].is_meta


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_file_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save({"x": Hostile()}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointRefusedError, match=r"posix\.mkdir"):
        load_checkpoint(tmp_path / "a.ckpt")
    assert not Path("ran").exists()


def test_hostile_file_on_a_remote_store_is_refused(store: str) -> None:
    write_checkpoint({"x": Hostile()}, f"{store}/a.ckpt")
    with pytest.raises(CheckpointRefusedError, match=r"posix\.mkdir"):
        load_checkpoint(f"{store}/a.ckpt")


def test_refusal_names_all_that_was_wanted_and_the_way_out(tmp_path: Path) -> None:
    write_checkpoint({"a": fractions.Fraction(1), "b": decimal.Decimal(1)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointRefusedError, match=r"decimal\.Decimal, fractions\.Fraction.*weights_only=False"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_weights_only_false_opens_a_trusted_file(tmp_path: Path) -> None:
    write_checkpoint({"a": fractions.Fraction(1, 2)}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt", weights_only=False)["a"] == fractions.Fraction(1, 2)


@pytest.mark.parametrize("value", [argparse.Namespace(lr=1), Path("a/b"), timedelta(hours=1)])
def test_values_that_lightning_stores_as_they_are_come_back(tmp_path: Path, value: object) -> None:
    write_checkpoint({"hyper_parameters": {"x": value}}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]["x"] == value


def test_truncated_file_is_an_error_that_is_no_refusal(tmp_path: Path) -> None:
    write_checkpoint({"w": torch.ones(1000)}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cut short") as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert not isinstance(caught.value, CheckpointRefusedError)


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"just some text\n" * 20, b"PK\3\4 not a zip"])
def test_foreign_file_is_an_error_without_advice_to_open_it_unsafely(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint") as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert "False" not in str(caught.value)


def test_file_without_a_dict_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_class_of_a_missing_package_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint({"a": fractions.Fraction(1, 2)}, tmp_path / "a.ckpt")
    monkeypatch.setitem(sys.modules, "fractions", None)
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*not found here.*Install the package 'fractions'") as caught:
        load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert "damaged" not in str(caught.value)


def test_class_that_a_module_has_no_more_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint({"a": fractions.Fraction(1, 2)}, tmp_path / "a.ckpt")
    monkeypatch.delattr(fractions, "Fraction")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*Fraction.*versions of the code and the packages") as caught:
        load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert "damaged" not in str(caught.value)
