"""A value that only a class can refuse, when it is made, is told like a wrong option; a bug keeps its traceback."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cli.samples import QUIET, CliData, CliNet

from fulgur.callbacks import Callback
from fulgur.cli import LightningCLI
from fulgur.errors import MisconfigurationException


class Strict(CliNet):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        if width < 0:
            raise MisconfigurationException(f"width={width}\nis negative.")
        if width == 0:
            raise ValueError("a bug")


class Broken(Callback):
    def __init__(self, size: int = 0) -> None:
        self.share = [1][size]


def error_of(capsys: pytest.CaptureFixture[str], *words: str, cls: Any = CliNet) -> str:
    with pytest.raises(SystemExit) as exit_:
        LightningCLI(cls, CliData, args=["fit", *words], trainer_defaults=QUIET)
    assert exit_.value.code == 2
    return next(line for line in capsys.readouterr().err.splitlines() if ": error: " in line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.accelerator=5"], "--trainer.accelerator: accelerator='5' is unknown."),
        (["--ckpt_path=gone.ckpt"], "--ckpt_path: There is no checkpoint at 'gone.ckpt'."),
        (["--trainer.max_epochs=-7"], "--trainer.max_epochs: max_epochs=-7 is not a whole number"),
        (["--trainer.profiler=simpel"], "--trainer.profiler: profiler='simpel' is unknown. Did you mean 'simple'?"),
        (["--trainer.strategy=dpp"], "--trainer.strategy: strategy='dpp' is unknown. Did you mean 'ddp'?"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.mode=low"],
            "--trainer.callbacks.mode: EarlyStopping(mode='low') is not known.",
        ),
        (
            ["--trainer.callbacks+=ModelSummary", "--trainer.callbacks.max_depth=-5"],
            "--trainer.callbacks.max_depth: ModelSummary: max_depth=-5: use -1",
        ),
    ],
)
def test_what_fulgur_refuses_is_told_with_its_option(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, *words).startswith(f"train.py fit: error: {said}")


def test_what_a_module_refuses_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "--model.width=-1", cls=Strict) == (
        "train.py fit: error: --model.width: Strict: width=-1 is negative."
    )


def test_an_exception_of_a_module_passes() -> None:
    with pytest.raises(ValueError, match="a bug"):
        LightningCLI(Strict, CliData, args=["fit", "--model.width=0"], trainer_defaults=QUIET)


def test_an_exception_of_a_callback_passes() -> None:
    name = f"{Broken.__module__}.Broken"
    with pytest.raises(Exception, match="list index out of range") as caught:
        LightningCLI(
            CliNet,
            CliData,
            args=["fit", f"--trainer.callbacks={name}", "--trainer.callbacks.size=3"],
            trainer_defaults=QUIET,
        )
    assert isinstance(caught.value.__cause__ or caught.value, IndexError)


def test_without_exit_it_is_the_exception_itself() -> None:
    with pytest.raises(MisconfigurationException, match="max_epochs=-7"):
        LightningCLI(
            CliNet,
            CliData,
            args=["--trainer.max_epochs=-7"],
            run=False,
            trainer_defaults=QUIET,
            parser_kwargs={"exit_on_error": False},
        )


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitr=x"], "Did you mean monitor?"),
        (["--trainer.callbacks=[{class_path: EarlyStopping, init_args: {patiense: 3}}]"], "Did you mean patience?"),
        (["--optimizer=SGD", "--optimizer.momentm=1"], "Did you mean momentum?"),
    ],
)
def test_a_misspelt_argument_of_a_class_names_the_nearest(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = words[-1].partition("=")[0].rpartition(".")[0] if len(words) > 1 else "--trainer.callbacks"
    said = error_of(capsys, *words)
    assert f"{key} takes no " in said
    assert near in said
    assert f"{key}.help " in said
