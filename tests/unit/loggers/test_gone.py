"""Loggers whose services cannot be reached say so, with what there is."""

from __future__ import annotations

import pytest

from fulgur.loggers import LitLogger, NeptuneLogger


def test_neptune_has_ended() -> None:
    with pytest.raises(RuntimeError, match=r"neptune.ai has ended.*Use WandbLogger"):
        NeptuneLogger(project="x")


def test_lit_logger_is_of_another_package() -> None:
    with pytest.raises(RuntimeError, match=r"cloud of Lightning AI.*Use WandbLogger"):
        LitLogger()
