"""Profilers measure actions and report on them."""

from __future__ import annotations

import pstats
from pathlib import Path

import pytest

from fulgur.errors import MisconfigurationException
from fulgur.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler, build_profiler


@pytest.mark.parametrize("profiler", [SimpleProfiler(), AdvancedProfiler()])
def test_report_names_the_stage_and_the_actions(profiler: Profiler) -> None:
    profiler.setup("fit")
    for _ in range(2):
        with profiler.profile("load batch"):
            sum(range(10))
    report = profiler.summary()
    assert "FIT Profiler Report" in report
    assert "load batch" in report


def test_simple_counts_calls() -> None:
    profiler = SimpleProfiler()
    for _ in range(3):
        with profiler.profile("step"):
            pass
    assert len(profiler.recorded_durations["step"]) == 3


def test_simple_has_all_columns_only_when_extended() -> None:
    assert "Num calls" in SimpleProfiler().summary()
    assert "Num calls" not in SimpleProfiler(extended=False).summary()


def test_simple_measures_an_action_that_fails() -> None:
    profiler = SimpleProfiler()
    with pytest.raises(KeyError), profiler.profile("step"):
        raise KeyError
    assert len(profiler.recorded_durations["step"]) == 1


def test_simple_refuses_to_start_twice() -> None:
    profiler = SimpleProfiler()
    profiler.start("step")
    with pytest.raises(ValueError, match="action_name='step' is running already"):
        profiler.start("step")


@pytest.mark.parametrize("profiler", [SimpleProfiler(), AdvancedProfiler()])
def test_stopping_what_does_not_run_is_an_error(profiler: Profiler) -> None:
    with pytest.raises(ValueError, match="action_name='step' is not running"):
        profiler.stop("step")


def test_advanced_counts_an_action_within_another_for_itself() -> None:
    def first() -> None: ...

    def second() -> None: ...

    def third() -> None: ...

    profiler = AdvancedProfiler()
    with profiler.profile("outer"):
        first()
        with profiler.profile("inner"):
            second()
        third()
    called = {name: {f[2] for f in pstats.Stats(p).stats} for name, p in profiler.profiled_actions.items()}  # type: ignore[attr-defined]
    names = {"first", "second", "third"}
    assert {name: of & names for name, of in called.items()} == {"outer": {"first", "third"}, "inner": {"second"}}


def test_report_goes_to_a_file_named_after_stage_and_rank(tmp_path: Path) -> None:
    profiler = SimpleProfiler(tmp_path / "reports", "perf")
    profiler.setup("fit", local_rank=1)
    profiler.describe()
    assert "FIT Profiler Report" in (tmp_path / "reports" / "fit-perf-1.txt").read_text()


def test_report_file_lies_in_the_log_dir_by_default(tmp_path: Path) -> None:
    profiler = SimpleProfiler(filename="a/b c")
    profiler.setup("test", local_rank=0, log_dir=str(tmp_path))
    profiler.describe()
    assert (tmp_path / "test-a_b_c.txt").exists()


def test_advanced_dumps_a_file_for_each_action(tmp_path: Path) -> None:
    profiler = AdvancedProfiler(tmp_path, dump_stats=True)
    profiler.setup("fit")
    with profiler.profile("step"):
        pass
    profiler.summary()
    assert (tmp_path / "fit-step.prof").exists()


def test_pass_through_reports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    profiler = PassThroughProfiler()
    with profiler.profile("step"):
        pass
    profiler.describe()
    assert capsys.readouterr() == ("", "")


def test_names_are_known_in_any_case() -> None:
    assert type(build_profiler("Simple")) is SimpleProfiler
    assert type(build_profiler("advanced")) is AdvancedProfiler


def test_unknown_name_is_an_error_that_tells_the_nearest() -> None:
    with pytest.raises(MisconfigurationException, match=r"profiler='simpl' is unknown\. Did you mean 'simple'"):
        build_profiler("simpl")


def test_simple_leaves_the_arguments_of_callbacks_out_of_its_table() -> None:
    profiler = SimpleProfiler()
    long = (
        "[Callback]ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min', 'every_n_train_steps': 0}.on_train_epoch_end"
    )
    for name in (long, "[Strategy]DDPStrategy.training_step"):
        with profiler.profile(name):
            pass
    lines = profiler.summary().splitlines()
    assert any(line.startswith("[Callback]ModelCheckpoint.on_train_epoch_end  ") for line in lines)
    assert max(map(len, lines)) <= 110
    assert set(profiler.recorded_durations) == {long, "[Strategy]DDPStrategy.training_step"}


def test_simple_keeps_the_arguments_that_tell_two_callbacks_apart() -> None:
    profiler = SimpleProfiler()
    for monitor in ("a", "b"):
        with profiler.profile(f"[Callback]Stop{{'monitor': '{monitor}'}}.check"):
            pass
    report = profiler.summary()
    assert "[Callback]Stop{'monitor': 'a'}.check" in report
    assert "[Callback]Stop{'monitor': 'b'}.check" in report
