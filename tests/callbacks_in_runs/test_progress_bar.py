"""What is printed during runs: plain lines, bars on a terminal, prints above them, or nothing."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from fulgur.callbacks import RichProgressBar, displays, progress
from fulgur.loggers import DummyLogger


class Numbered(DummyLogger):
    @property
    def version(self) -> Any:
        return 3


def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
    self.log("loss", float(batch_idx), prog_bar=True)
    return self.layer(batch).mean()


def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
    self.log("v", batch.mean(), prog_bar=True)


@pytest.fixture
def make_visible(make_trainer: Any) -> Any:
    """A Trainer with a bar and without anything else that prints."""
    return lambda **arguments: make_trainer(
        **({"enable_progress_bar": True, "enable_checkpointing": False} | arguments)
    )


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still, for texts that can be compared."""
    monkeypatch.setattr(displays, "monotonic", lambda: 0.0)
    monkeypatch.setattr(progress, "monotonic", lambda: 0.0)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("frozen")
def test_fit_prints_a_line_for_each_epoch_where_there_is_no_terminal(
    tiny: Any, make_visible: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tiny(training_step=training_step, validation_step=validation_step)
    trainer = make_visible(max_epochs=2, logger=Numbered())
    trainer.fit(module, loader(3), loader(2))
    lines = lines_of(capsys)
    assert [line.split(" | ")[0] for line in lines] == ["Epoch 0/1: 3/3", "Epoch 1/1: 3/3"]
    assert [line.split(" | ")[-1] for line in lines] == ["v_num: 3 loss: 2.000 v: 0.500"] * 2


@pytest.mark.usefixtures("frozen")
def test_validation_within_an_epoch_has_a_line_of_its_own(
    tiny: Any, make_visible: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_visible(val_check_interval=2).fit(tiny(validation_step=validation_step), loader(3), loader(2))
    assert [line.split(" | ")[0] for line in lines_of(capsys)] == ["Validation: 2/2", "Epoch 0/0: 3/3"]


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    ("entry", "expected"),
    [("validate", "Validation: 3/3"), ("test", "Testing: 3/3"), ("predict", "Predicting: 3/3")],
)
def test_other_runs_print_one_line(
    entry: str, expected: str, tiny: Any, make_visible: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {} if entry == "predict" else {"verbose": False}
    getattr(make_visible(), entry)(tiny(), loader(3), **options)
    assert [line.split(" | ")[0] for line in lines_of(capsys)] == [expected]


@pytest.mark.usefixtures("frozen")
def test_loader_without_a_length_shows_none(
    tiny: Any, make_visible: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unsized:
        def __iter__(self) -> Any:
            return iter(loader(3))

    make_visible(num_sanity_val_steps=0).fit(tiny(), Unsized())
    make_visible().validate(tiny(), Unsized(), verbose=False)
    assert [line.split(" | ")[0] for line in lines_of(capsys)] == ["Epoch 0/0: 3/--", "Validation: 3/--"]


@pytest.mark.usefixtures("frozen")
def test_epoch_that_a_limit_cuts_short_shows_how_far_it_went(
    tiny: Any, make_visible: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_visible(max_steps=5, max_epochs=9).fit(tiny(), loader(3), loader(1))
    assert [line.split(" | ")[0] for line in lines_of(capsys)] == ["Epoch 0/8: 3/3", "Epoch 1/8: 2/3"]


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_bar_switched_off_prints_nothing(
    entry: str, tiny: Any, make_trainer: Any, loader: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"verbose": False} if entry in ("validate", "test") else {}
    getattr(make_trainer(enable_progress_bar=False), entry)(tiny(), loader(2), **options)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_results_are_printed_as_a_table_on_request(
    entry: str, tiny: Any, make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log("v", batch.mean())

    module = tiny(validation_step=step, test_step=step)
    getattr(make_trainer(), entry)(module, [loader(2), loader(3)])
    text = capsys.readouterr().out
    assert {"validate": "Validate metric", "test": "Test metric"}[entry] in text
    assert "DataLoader 0" in text
    assert "DataLoader 1" in text
    assert re.search(r"v\W+0\.5\W+1\b", text)
    assert "dataloader_idx" not in text


def test_fit_prints_no_table(tiny: Any, make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer().fit(tiny(validation_step=validation_step), loader(2), loader(2))
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------------------ a terminal


class Terminal:
    """A bar on a fake terminal, and what was written to it."""

    def __init__(self, **options: Any) -> None:
        self.file = io.StringIO()
        console = {"file": self.file, "force_terminal": True, "width": 160, "legacy_windows": False}
        self.bar = RichProgressBar(console_kwargs=console, **options)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue())


@pytest.fixture(autouse=True)
def _ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_fit_draws_its_epochs_and_metrics_on_a_terminal(tiny: Any, make_visible: Any, loader: Any) -> None:
    terminal = Terminal()
    module = tiny(training_step=training_step, validation_step=validation_step)
    make_visible(callbacks=terminal.bar, max_epochs=2, logger=Numbered()).fit(module, loader(3), loader(2))
    last = terminal.text.rstrip().splitlines()[-1]
    assert last.startswith("Epoch 1/1 ")
    assert " 3/3 " in last
    assert "v_num: 3 loss: 2.000 v: 0.500" in last
    assert "it/s" in last


def test_sanity_check_and_validation_are_drawn(
    tiny: Any, make_visible: Any, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def later() -> float:
        now[0] += 100.0
        return now[0]

    monkeypatch.setattr(progress, "monotonic", later)
    monkeypatch.setattr(progress, "_DRAWING_SHARE", float("inf"))
    terminal = Terminal()
    make_visible(callbacks=terminal.bar).fit(tiny(validation_step=validation_step), loader(2), loader(2))
    text = terminal.text
    assert text.index("Sanity Checking") < text.index("Epoch 0/0") < text.index("Validation")


@pytest.mark.parametrize(
    ("entry", "label"), [("validate", "Validation"), ("test", "Testing"), ("predict", "Predicting")]
)
def test_other_runs_are_drawn_on_a_terminal(entry: str, label: str, tiny: Any, make_visible: Any, loader: Any) -> None:
    terminal = Terminal()
    options = {} if entry == "predict" else {"verbose": False}
    getattr(make_visible(callbacks=terminal.bar), entry)(tiny(), loader(3), **options)
    assert terminal.text.rstrip().splitlines()[-1].startswith(label)
    assert "3/3" in terminal.text.rstrip().splitlines()[-1]


def test_epochs_stay_on_the_screen_on_request(tiny: Any, make_visible: Any, loader: Any) -> None:
    terminal = Terminal(leave=True)
    make_visible(callbacks=terminal.bar, max_epochs=2).fit(tiny(), loader(2))
    kept = [line.split()[:2] for line in terminal.text.splitlines() if "2/2" in line]
    assert ["Epoch", "0/1"] in kept
    assert ["Epoch", "1/1"] in kept


def test_bar_that_is_never_refreshed_shows_nothing(
    tiny: Any, make_visible: Any, loader: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    make_visible(callbacks=RichProgressBar(refresh_rate=0)).fit(tiny(), loader(2))
    assert capfd.readouterr() == ("", "")


def test_terminal_is_left_clean_by_a_broken_fit(tiny: Any, make_visible: Any, loader: Any) -> None:
    def breaking_step(self: Any, batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("broken")

    terminal = Terminal()
    with pytest.raises(RuntimeError, match="broken"):
        make_visible(callbacks=terminal.bar).fit(tiny(training_step=breaking_step), loader(2))
    shows_cursor, hides_cursor = "\x1b[?25h", "\x1b[?25l"
    written = terminal.file.getvalue()
    assert written.count(shows_cursor) == written.count(hides_cursor) == 1
    assert written.rindex(shows_cursor) > written.rindex(hides_cursor)


# ----------------------------------------------------------------------------------------------------------- print


def printing_step(self: Any, batch: Any, batch_idx: int) -> Any:
    self.print("by module", batch_idx, sep="-")
    self.trainer.print("by trainer", batch_idx)
    return self.layer(batch).mean()


PRINTED = ["by module-0", "by trainer 0", "by module-1", "by trainer 1"]


def test_prints_stand_above_the_bar(tiny: Any, make_visible: Any, loader: Any) -> None:
    terminal = Terminal()
    make_visible(callbacks=terminal.bar).fit(tiny(training_step=printing_step), loader(2))
    lines = [line.strip() for line in terminal.text.splitlines()]
    assert [line for line in lines if line.startswith("by ")] == PRINTED
    assert lines.index("by trainer 1") < max(i for i, line in enumerate(lines) if line.startswith("Epoch 0/0"))


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("enable_progress_bar", [False, True])
def test_prints_without_a_terminal_are_plain_lines(
    enable_progress_bar: bool, tiny: Any, make_visible: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_visible(enable_progress_bar=enable_progress_bar).fit(tiny(training_step=printing_step), loader(2))
    assert lines_of(capsys)[:4] == PRINTED


def test_module_without_a_trainer_prints(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tiny().print("alone")
    assert capsys.readouterr().out == "alone\n"
