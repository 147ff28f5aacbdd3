"""The progress bars: what is shown, and when something is drawn. The clock is the test's."""

from __future__ import annotations

import copy
import re
import sys
from io import StringIO
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks import displays, progress
from fulgur.callbacks.displays import PlainDisplay, RichDisplay, RichProgressBarTheme, Task, format_metrics
from fulgur.callbacks.progress import PlainProgressBar, ProgressBar, RichProgressBar
from fulgur.callbacks.tqdm_progress import TQDMProgressBar
from fulgur.errors import MissingExtraError, PossibleUserWarning


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    monkeypatch.setattr(displays, "monotonic", clock)
    return clock


class Run:
    """As much of a Trainer as a bar asks for."""

    def __init__(self, bar: ProgressBar, **settings: Any) -> None:
        self.bar = bar
        self.metric_reads = 0
        self.flushed_progress_bar_metrics: dict[str, float] = {"loss": 0.5}
        self.final_metrics: dict[str, float] = {"loss": 0.25}
        self.loggers: list[Any] = [SimpleNamespace(version=7)]
        self.state = SimpleNamespace(fn="fit")
        self.current_epoch = 0
        self.max_epochs: int | None = 2
        self.num_training_batches: float = 4
        self.num_val_batches: list[float] = [2]
        self.num_sanity_val_batches = self.num_test_batches = self.num_predict_batches = [2]
        self.check_val_every_n_epoch = 1
        self.enable_validation = self.is_global_zero = True
        self.sanity_checking = self.should_stop = self.is_last_batch = False
        self.lightning_module = SimpleNamespace()
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        self.metric_reads += 1
        return self.final_metrics

    def call(self, hook: str, **kwargs: Any) -> None:
        getattr(self.bar, hook)(self, self.lightning_module, **kwargs)

    def start(self) -> Run:
        self.call("setup", stage="fit")
        self.call("on_train_start")
        return self

    def train_epoch(self, clock: Clock, seconds_a_batch: float = 1.0, batches: int = 4) -> Run:
        self.call("on_train_epoch_start")
        for index in range(batches):
            clock.now += seconds_a_batch
            self.is_last_batch = index == batches - 1
            self.call("on_train_batch_end", outputs=None, batch=None, batch_idx=index)
        self.call("on_train_epoch_end")
        self.current_epoch += 1
        return self

    def evaluate(self, stage: str, clock: Clock, batches: tuple[int, ...] = (2,), seconds_a_batch: float = 1.0) -> Run:
        self.call(f"on_{stage}_start")
        for loader, count in enumerate(batches):
            for index in range(count):
                clock.now += seconds_a_batch
                self.call(f"on_{stage}_batch_end", outputs=None, batch=None, batch_idx=index, dataloader_idx=loader)
        self.call(f"on_{stage}_end")
        return self

    def end(self) -> Run:
        self.call("on_train_end")
        self.call("teardown", stage="fit")
        return self


def build_rich(width: int = 160, **kwargs: Any) -> tuple[RichProgressBar, StringIO]:
    out = StringIO()
    console = {"file": out, "force_terminal": True, "width": width, "color_system": None, "_environ": {}}
    return RichProgressBar(console_kwargs=console, **kwargs), out


def text_of(out: StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())


# ---- the base ---------------------------------------------------------------------------------------------------


def test_metrics_are_the_logged_ones_and_the_version() -> None:
    run = Run(bar := ProgressBar())
    assert bar.get_metrics(run, run.lightning_module) == {"v_num": 7, "loss": 0.25}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([], None),
        ([None], None),
        ([""], None),  # of a logger that writes nothing, under fast_dev_run
        (["run-abcdef"], "cdef"),
        ([0, 1], "0_1"),
    ],
)
def test_version_is_short(versions: list[Any], expected: Any) -> None:
    run = Run(bar := ProgressBar(), loggers=[SimpleNamespace(version=version) for version in versions])
    assert bar.get_metrics(run, run.lightning_module).get("v_num") == expected  # type: ignore[arg-type]


def test_metric_named_like_the_version_wins_with_a_warning() -> None:
    run = Run(bar := ProgressBar(), final_metrics={"v_num": 3.0})
    with pytest.warns(PossibleUserWarning, match="v_num"):
        shown = bar.get_metrics(run, run.lightning_module)  # type: ignore[arg-type]
    assert shown == {"v_num": 3.0}


def test_bar_is_disabled_on_other_ranks(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    Run(bar := PlainProgressBar(), is_global_zero=False).start().train_epoch(clock).end()
    assert bar.is_disabled
    assert capsys.readouterr().out == ""


def test_trainer_before_a_run_is_an_error() -> None:
    with pytest.raises(TypeError, match="no trainer before"):
        _ = ProgressBar().trainer


def test_totals_follow_the_trainer() -> None:
    run = Run(bar := ProgressBar(), num_val_batches=[2, 3])
    run.call("setup", stage="fit")
    assert bar.has_dataloader_changed(1)
    assert not bar.has_dataloader_changed(1)
    assert (bar.total_train_batches, bar.total_val_batches) == (4, 5)
    assert bar.total_val_batches_current_dataloader == 3


def test_epoch_without_validation_has_no_validation_batches() -> None:
    run = Run(bar := ProgressBar(), check_val_every_n_epoch=2)
    run.call("setup", stage="fit")
    assert bar.total_val_batches == 0


# ---- plain lines ------------------------------------------------------------------------------------------------


def test_one_line_an_epoch(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    run = Run(PlainProgressBar()).start()
    for _ in range(2):
        run.train_epoch(clock).call("on_validation_start")
    run.end()
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 0/1: 4/4 | 0:00:04 | 1.00it/s | v_num: 7 loss: 0.250",
        "Epoch 1/1: 4/4 | 0:00:04 | 1.00it/s | v_num: 7 loss: 0.250",
    ]


def test_a_line_within_an_epoch_every_ten_seconds(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    Run(PlainProgressBar(), num_training_batches=25).start().train_epoch(clock, batches=25).end()
    assert [line.split(":")[1].split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "10/25",
        "20/25",
        "25/25",
    ]


def test_lines_within_an_epoch_show_the_last_flush(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    run = Run(PlainProgressBar(), num_training_batches=25).start()
    run.train_epoch(clock, batches=25)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("loss: ")[1] for line in lines] == ["0.500", "0.500", "0.250"]
    assert run.metric_reads == 1


def test_unsized_loader_has_no_total(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    Run(PlainProgressBar(), num_training_batches=float("inf")).start().train_epoch(clock, 3.0).end()
    assert [line.split(" |")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Epoch 0/1: 4/--",
        "Epoch 0/1: 4/--",
    ]


def test_endless_training_has_no_last_epoch(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    Run(PlainProgressBar(), max_epochs=-1).start().train_epoch(clock).end()
    assert capsys.readouterr().out.startswith("Epoch 0: 4/4")


def test_sanity_check_and_validation_at_the_end_of_an_epoch_have_no_line(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    run = Run(PlainProgressBar(), sanity_checking=True)
    run.call("setup", stage="fit")
    run.evaluate("validation", clock)
    run.sanity_checking, run.is_last_batch = False, True
    run.call("on_train_start")
    run.evaluate("validation", clock)
    assert capsys.readouterr().out == ""


def test_validation_within_an_epoch_has_a_line(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    Run(PlainProgressBar()).start().evaluate("validation", clock)
    assert capsys.readouterr().out.startswith("Validation: 2/2 | 0:00:02")


@pytest.mark.parametrize(
    ("stage", "label"), [("validation", "Validation"), ("test", "Testing"), ("predict", "Predicting")]
)
def test_evaluation_alone_has_one_line(
    stage: str, label: str, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    run = Run(PlainProgressBar(), state=SimpleNamespace(fn=stage))
    run.call("setup", stage=stage)
    run.evaluate(stage, clock).call("teardown", stage=stage)
    assert capsys.readouterr().out == f"{label}: 2/2 | 0:00:02 | 1.00it/s | v_num: 7 loss: 0.250\n"


def test_several_loaders_are_counted_together(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    run = Run(PlainProgressBar(), state=SimpleNamespace(fn="test"), num_test_batches=[2, 3])
    run.call("setup", stage="test")
    run.evaluate("test", clock, batches=(2, 3), seconds_a_batch=4.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" |")[0] for line in lines] == ["Testing DataLoader 1: 3/5", "Testing DataLoader 1: 5/5"]


def test_validation_time_does_not_slow_the_epoch_down(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    run = Run(PlainProgressBar()).start()
    run.call("on_train_epoch_start")
    clock.now += 4
    run.is_last_batch = True
    run.call("on_train_batch_end", outputs=None, batch=None, batch_idx=3)
    run.evaluate("validation", clock, seconds_a_batch=2.0)
    run.call("on_train_epoch_end")
    assert "1.00it/s" in capsys.readouterr().out


def test_epoch_resumed_midway_counts_its_speed_from_there(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    run = Run(PlainProgressBar(), num_training_batches=1100).start()
    for index in range(1000, 1100):
        clock.now += 1
        run.call("on_train_batch_end", outputs=None, batch=None, batch_idx=index)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Epoch 0/1: 1010/1100 | 0:00:00 | 0.00it/s")
    assert lines[1].startswith("Epoch 0/1: 1020/1100 | 0:00:10 | 1.00it/s")


def test_epoch_that_was_stopped_early_shows_how_far_it_came(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    run = Run(PlainProgressBar(), num_training_batches=40, should_stop=True).start()
    run.train_epoch(clock, batches=12).end()
    assert capsys.readouterr().out.splitlines()[-1].startswith("Epoch 0/1: 12/40")


# ---- what a batch costs -----------------------------------------------------------------------------------------


def test_batch_before_its_time_reads_nothing_from_the_trainer(clock: Clock) -> None:
    bar, _ = build_rich()
    run = Run(bar).start()
    bar.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    run.end()


def test_redraws_are_eight_a_second_at_most(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, _ = build_rich(refresh_rate=100)
    drawn: list[float] = []
    draw = RichDisplay.draw
    monkeypatch.setattr(RichDisplay, "draw", lambda self, tasks: (drawn.append(clock.now), draw(self, tasks)))
    run = Run(bar, num_training_batches=1000).start()
    first = len(drawn)
    run.call("on_train_epoch_start")
    for index in range(1000):
        clock.now += 1 / 256
        run.call("on_train_batch_end", outputs=None, batch=None, batch_idx=index)
    run.end()
    assert len(drawn) - first == 1 + 1000 * 8 // 256


def test_slow_terminal_takes_a_fiftieth_of_the_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, _ = build_rich()
    drawn: list[float] = []

    def draw_slowly(self: RichDisplay, tasks: Any) -> None:
        clock.now += 0.1
        drawn.append(clock.now)

    monkeypatch.setattr(RichDisplay, "draw", draw_slowly)
    run = Run(bar, num_training_batches=1000).start()
    for index in range(200):
        clock.now += 0.25
        run.call("on_train_batch_end", outputs=None, batch=None, batch_idx=index)
    run.end()
    gaps = [later - earlier for earlier, later in pairwise(drawn[:-1])]
    assert min(gaps) >= 5.0


def test_short_epochs_draw_only_now_and_then(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, _ = build_rich()
    drawn: list[float] = []
    monkeypatch.setattr(RichDisplay, "draw", lambda self, tasks: drawn.append(clock.now))
    run = Run(bar, num_training_batches=1).start()
    for _ in range(64):
        run.train_epoch(clock, seconds_a_batch=1 / 64, batches=1)
        run.evaluate("validation", clock, seconds_a_batch=0.0)
    assert len(drawn) <= 1 + 8
    run.end()


def test_no_thread_is_started(clock: Clock) -> None:
    import threading

    before = threading.active_count()
    bar, _ = build_rich()
    run = Run(bar).start()
    assert threading.active_count() == before
    run.end()


def test_disabled_bar_draws_nothing(clock: Clock) -> None:
    bar, out = build_rich(refresh_rate=0)
    Run(bar).start().train_epoch(clock).evaluate("validation", clock).end()
    assert out.getvalue() == ""


# ---- rich -------------------------------------------------------------------------------------------------------


def test_terminal_shows_the_bar_and_metrics(clock: Clock) -> None:
    bar, out = build_rich()
    Run(bar).start().train_epoch(clock).end()
    last = [line for line in text_of(out).splitlines() if line.strip()][-1]
    assert re.match(r"Epoch 0/1 ━+ +4/4 +0:00:04 • 0:00:00 +1\.00it/s +v_num: 7 loss: 0\.250", last)


def test_metrics_go_below_the_bar_where_the_terminal_is_narrow(clock: Clock) -> None:
    bar, out = build_rich(width=80)
    Run(bar).start().train_epoch(clock).end()
    above, below = [line.rstrip() for line in text_of(out).splitlines() if line.strip()][-2:]
    assert re.fullmatch(r"Epoch 0/1 ━+ 4/4 0:00:04 • 0:00:00 1\.00it/s", above)
    assert below == "v_num: 7 loss: 0.250"


def test_bar_in_between_shows_the_last_flush(clock: Clock) -> None:
    bar, out = build_rich()
    run = Run(bar).start()
    run.call("on_train_epoch_start")
    clock.now += 1
    run.call("on_train_batch_end", outputs=None, batch=None, batch_idx=0)
    assert "1/4" in text_of(out)
    assert "loss: 0.500" in text_of(out)
    assert run.metric_reads == 0
    run.end()


def test_validation_has_a_row_of_its_own_while_it_runs(clock: Clock) -> None:
    bar, out = build_rich()
    run = Run(bar).start().evaluate("validation", clock)
    assert re.search(r"Epoch 0/1 .*\n+\s*Validation .*1/2", text_of(out))
    run.end()
    assert text_of(out).rstrip().splitlines()[-1].startswith("Epoch 0/1")


def test_sanity_check_has_a_label_of_its_own(clock: Clock) -> None:
    bar, out = build_rich()
    run = Run(bar, sanity_checking=True)
    run.call("setup", stage="fit")
    run.evaluate("validation", clock)
    assert "Sanity Checking" in text_of(out)
    run.end()


def test_leave_keeps_each_epoch(clock: Clock) -> None:
    bar, out = build_rich(leave=True)
    run = Run(bar).start()
    run.train_epoch(clock).train_epoch(clock).end()
    shown = text_of(out)
    assert re.search(r"Epoch 0/1 .*4/4", shown)
    assert re.search(r"Epoch 1/1 .*4/4", shown)


def test_evaluation_alone_leaves_its_end_and_nothing_else(clock: Clock) -> None:
    bar, out = build_rich()
    run = Run(bar, state=SimpleNamespace(fn="test"))
    run.call("setup", stage="test")
    run.evaluate("test", clock, seconds_a_batch=0.01).call("teardown", stage="test")
    at_the_end = text_of(out)[text_of(out).index("2/2") :]
    assert "0/2" not in at_the_end
    assert at_the_end.count("\n") == 1


def test_unsized_loader_pulses(clock: Clock) -> None:
    bar, out = build_rich()
    Run(bar, num_training_batches=float("inf")).start().train_epoch(clock).end()
    assert "4/--" in text_of(out)


def test_print_goes_through_the_bar(clock: Clock) -> None:
    bar, out = build_rich()
    run = Run(bar).start()
    bar.print("a [bold]line", 3)
    run.end()
    assert "a [bold]line 3" in text_of(out)


def test_print_without_a_run_is_a_plain_print(capsys: pytest.CaptureFixture[str]) -> None:
    RichProgressBar().print("a", "b", sep="-")
    assert capsys.readouterr().out == "a-b\n"


def test_terminal_gets_its_cursor_back_after_an_exception(clock: Clock) -> None:
    bar, out = build_rich()
    run = Run(bar).start()
    run.call("on_exception", exception=KeyboardInterrupt())
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
    assert sys.stdout is not None


def test_user_decides_what_is_shown(clock: Clock) -> None:
    class WithoutVersion(RichProgressBar):
        def get_metrics(self, *args: Any, **kwargs: Any) -> Any:
            metrics = super().get_metrics(*args, **kwargs)
            del metrics["v_num"]
            return metrics

    base, out = build_rich()
    Run(WithoutVersion(console_kwargs=base.console_kwargs)).start().train_epoch(clock).end()
    assert "loss" in text_of(out)
    assert "v_num" not in text_of(out)


def test_theme_formats_metrics(clock: Clock) -> None:
    bar, out = build_rich(theme=RichProgressBarTheme(metrics_format=".1e", metrics_text_delimiter=" / "))
    Run(bar).start().train_epoch(clock).end()
    assert "v_num: 7 / loss: 2.5e-01" in text_of(out)


def test_output_that_is_no_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    Run(RichProgressBar()).start().train_epoch(clock).end()
    assert capsys.readouterr().out == "Epoch 0/1: 4/4 | 0:00:04 | 1.00it/s | v_num: 7 loss: 0.250\n"


def test_console_that_is_no_terminal_gets_plain_lines(clock: Clock) -> None:
    bar = RichProgressBar(console_kwargs={"file": StringIO(), "force_terminal": False})
    assert isinstance(bar._build_display(), PlainDisplay)


def test_bar_can_be_used_for_a_second_run(clock: Clock) -> None:
    bar, out = build_rich()
    run = Run(bar).start().train_epoch(clock).end()
    run.max_epochs = 3
    run.start().train_epoch(clock).end()
    assert "Epoch 1/2" in text_of(out)


def test_bar_can_be_copied_after_a_run(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    bar = RichProgressBar()
    Run(bar).start().train_epoch(clock).end()
    bar._trainer = None
    assert copy.deepcopy(bar).refresh_rate == bar.refresh_rate


# ---- texts ------------------------------------------------------------------------------------------------------


def test_small_numbers_do_not_look_like_zero() -> None:
    metrics = {"lr": 1e-5, "zero": 0.0, "n": 3, "name": "x", "bad": float("nan"), "far": float("-inf")}
    assert format_metrics(metrics) == "lr: 1.000e-05 zero: 0.000 n: 3 name: x bad: nan far: -inf"


def test_task_before_its_first_batch_has_no_end(clock: Clock) -> None:
    assert Task("x", 3).times == "0:00:00 • -:--:--"


def test_long_times_have_hours(clock: Clock) -> None:
    task = Task("x", 4, done=1)
    clock.now += 3661
    assert task.times == "1:01:01 • 3:03:03"


# ---- tqdm -------------------------------------------------------------------------------------------------------


def test_missing_tqdm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fulgur\[tqdm\]"):
        TQDMProgressBar()


def test_tqdm_shows_epochs_and_metrics(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    pytest.importorskip("tqdm")
    run = Run(bar := TQDMProgressBar(leave=True)).start()
    bar.print("a line")
    run.train_epoch(clock).evaluate("validation", clock).end()
    captured = capsys.readouterr()
    assert "a line\n" in captured.out
    assert re.search(r"Epoch 0/1: 100%.* 4/4 .*loss=0\.25", captured.err)
    assert "Validation" in captured.err
