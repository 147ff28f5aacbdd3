"""torch's profiler over the steps of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerAction, schedule

from fulgur import Trainer
from fulgur.errors import MisconfigurationException
from fulgur.profilers import PyTorchProfiler, build_profiler
from fulgur.testing import BoringModel, run_ranks

QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
    "logger": False,
    "max_epochs": 1,
    "limit_val_batches": 0,
}
GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1}


def traces(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The events of each trace, by the beginning of the file's name."""
    return {
        path.name.partition(".")[0]: json.loads(path.read_text())["traceEvents"]
        for path in sorted(folder.glob("*.pt.trace.json"))
    }


def count(events: list[dict[str, Any]], name: str) -> int:
    return sum(event.get("name") == name and event.get("cat") == "user_annotation" for event in events)


def test_the_default_schedule_records_three_steps_of_five(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, "ops")
    Trainer(profiler=profiler, limit_train_batches=6, **QUIET).fit(BoringModel())
    (events,) = traces(tmp_path).values()
    assert count(events, "[Strategy]SingleDeviceStrategy.training_step") == 3
    assert count(events, "[LightningModule]BoringModel.optimizer_step") == 3
    assert count(events, "[module]Linear: layer") == 3
    assert any(event.get("name") == "aten::linear" for event in events)


def test_each_round_of_the_schedule_has_a_trace(tmp_path: Path) -> None:
    Trainer(profiler=PyTorchProfiler(tmp_path, "ops"), limit_train_batches=6, **(QUIET | {"max_epochs": 2})).fit(
        BoringModel()
    )
    found = [json.loads(path.read_text())["traceEvents"] for path in tmp_path.glob("*.pt.trace.json")]
    assert [count(events, "[Strategy]SingleDeviceStrategy.training_step") for events in found] == [3, 3]


def test_a_stage_of_fewer_steps_is_recorded_whole(tmp_path: Path) -> None:
    Trainer(profiler=PyTorchProfiler(tmp_path, "ops"), limit_train_batches=4, **QUIET).fit(BoringModel())
    assert count(traces(tmp_path)["fit-ops"], "[Strategy]SingleDeviceStrategy.training_step") == 4


def test_a_step_ends_where_the_next_batch_is_asked_for(tmp_path: Path) -> None:
    """Two steps are recorded: each with its own hooks, backward and update."""
    profiler = PyTorchProfiler(tmp_path, "ops", schedule=schedule(wait=1, warmup=1, active=2, repeat=1))
    Trainer(profiler=profiler, limit_train_batches=8, **QUIET).fit(BoringModel())
    events = traces(tmp_path)["fit-ops"]
    names = ("[Strategy]SingleDeviceStrategy.training_step", "[Strategy]SingleDeviceStrategy.backward")
    assert [count(events, name) for name in (*names, "[LightningModule]BoringModel.optimizer_step")] == [2, 2, 2]
    assert count(events, "[_TrainingEpochLoop].train_dataloader_next") == 2


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_are_recorded_too(stage: str, tmp_path: Path) -> None:
    limit = {f"limit_{name}_batches": 2 for name in ("val", "test", "predict")}
    trainer = Trainer(profiler=PyTorchProfiler(tmp_path, "ops"), **(QUIET | limit))
    getattr(trainer, stage)(BoringModel())
    name = {"validate": "validation"}.get(stage, stage)
    assert count(traces(tmp_path)[f"{stage}-ops"], f"[Strategy]SingleDeviceStrategy.{name}_step") == 2


def test_report_of_the_stage(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, "ops", row_limit=-1, sort_by_key="count", export_to_chrome=False)
    Trainer(profiler=profiler, limit_train_batches=2, **QUIET).fit(BoringModel())
    assert [path.name for path in tmp_path.iterdir()] == ["fit-ops.txt"]
    report = (tmp_path / "fit-ops.txt").read_text()
    assert report.startswith("FIT Profiler Report\n")
    assert "aten::linear" in report
    assert "[module]Linear: layer" in report


def test_modules_are_not_marked_when_off(tmp_path: Path) -> None:
    model = BoringModel()
    profiler = PyTorchProfiler(tmp_path, "ops", record_module_names=False)
    Trainer(profiler=profiler, limit_train_batches=2, **QUIET).fit(model)
    assert count(traces(tmp_path)["fit-ops"], "[module]Linear: layer") == 0


def test_modules_are_left_as_they_were(tmp_path: Path) -> None:
    model = BoringModel()
    Trainer(profiler=PyTorchProfiler(tmp_path), limit_train_batches=2, **QUIET).fit(model)
    assert not model.layer._forward_pre_hooks
    assert not model.layer._forward_hooks


def test_shapes_tell_calls_apart(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, group_by_input_shapes=True, row_limit=-1)
    with profiler.profile("two"):
        torch.ones(2, 3) @ torch.ones(3, 4)
        torch.ones(5, 3) @ torch.ones(3, 4)
    report = profiler.summary()
    assert "[[2, 3], [3, 4]]" in report
    assert "[[5, 3], [3, 4]]" in report


def test_a_region_of_ones_own_without_a_trainer(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, export_to_chrome=False)
    with profiler.profile("mine"):
        torch.ones(2).add_(1)
    assert "mine" in profiler.summary()
    profiler.teardown()
    assert list(tmp_path.iterdir()) == []


def test_a_handler_of_ones_own_takes_the_place_of_traces(tmp_path: Path) -> None:
    ready: list[bool] = []
    profiler = PyTorchProfiler(tmp_path, on_trace_ready=lambda p: ready.append(len(p.events()) > 0))
    Trainer(profiler=profiler, limit_train_batches=2, **QUIET).fit(BoringModel())
    assert ready == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_ends_the_profile(tmp_path: Path) -> None:
    class Failing(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyError("x")

    model = Failing()
    trainer = Trainer(profiler=PyTorchProfiler(tmp_path), limit_train_batches=2, **QUIET)
    with pytest.raises(KeyError):
        trainer.fit(model)
    assert not model.layer._forward_hooks
    with torch.profiler.profile() as after:  # torch has one at a time
        torch.ones(1).add_(1)
    assert len(after.events()) > 0


def test_a_schedule_that_never_records_is_told(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, schedule=schedule(wait=50, warmup=1, active=1))
    with pytest.warns(UserWarning, match="PyTorchProfiler has recorded nothing: the stage ended before"):
        Trainer(profiler=profiler, limit_train_batches=2, **QUIET).fit(BoringModel())


def test_profiled_run_computes_the_same(tmp_path: Path) -> None:
    def weights(profiler: Any) -> list[Any]:
        torch.manual_seed(0)
        model = BoringModel()
        Trainer(profiler=profiler, limit_train_batches=6, **QUIET).fit(model)
        return [p.tolist() for p in model.parameters()]

    assert weights(PyTorchProfiler(tmp_path)) == weights(None)


def on_two_ranks(folder: str) -> None:
    profiler = PyTorchProfiler(folder, "ops")
    Trainer(profiler=profiler, limit_train_batches=4, devices=2, strategy="ddp", **QUIET).fit(BoringModel())


def test_each_rank_has_its_own_files(tmp_path: Path) -> None:
    run_ranks(on_two_ranks, 2, str(tmp_path))
    assert sorted(traces(tmp_path)) == ["fit-ops", "fit-ops-1"]
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["fit-ops-1.txt", "fit-ops.txt"]


def test_profiler_by_name() -> None:
    assert isinstance(build_profiler("PyTorch"), PyTorchProfiler)


def test_stopping_what_does_not_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="action_name='step' is not running"):
        PyTorchProfiler().stop("step")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sort_by_key": "cpu_tim"}, "sort_by_key='cpu_tim' is no column.*cpu_time"),
        ({"schedule": 3}, r"schedule=3: pass torch.profiler.schedule\(...\)"),
        ({"with_stak": True}, "has no argument 'with_stak'.*with_stack"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        PyTorchProfiler(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["emit_nvtx", "record_memory_history"])
def test_what_needs_a_gpu_is_refused_without_one(name: str) -> None:
    arguments: dict[str, Any] = {name: True}
    with pytest.raises(MisconfigurationException, match=rf"PyTorchProfiler\({name}=True\) needs a CUDA GPU"):
        PyTorchProfiler(**arguments)


@pytest.mark.parametrize("name", ["widthh", "sort_by"])
def test_bad_arguments_of_the_table(name: str) -> None:
    with pytest.raises(KeyError, match=f"table_kwargs has '{name}'"):
        PyTorchProfiler(table_kwargs={name: 1})


def test_a_schedule_may_be_a_function() -> None:
    assert PyTorchProfiler(schedule=lambda step: ProfilerAction.NONE).summary() == ""


@pytest.mark.gpu
def test_memory_snapshot(tmp_path: Path) -> None:
    import pickle

    profiler = PyTorchProfiler(tmp_path, "ops", record_memory_history=True)
    Trainer(profiler=profiler, limit_train_batches=2, **(QUIET | GPU)).fit(BoringModel())
    snapshot = pickle.loads((tmp_path / "fit-ops.pickle").read_bytes())
    assert any(trace for trace in snapshot["device_traces"])
    assert "cuda" in (tmp_path / "fit-ops.txt").read_text().lower()


@pytest.mark.gpu
def test_ranges_for_nsight(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, emit_nvtx=True)
    Trainer(profiler=profiler, limit_train_batches=2, **(QUIET | GPU)).fit(BoringModel())
    assert list(tmp_path.iterdir()) == []
