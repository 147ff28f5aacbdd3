"""torch's own profile of a run: operators, kernels and memory, with traces to look at."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fulgur.errors import MisconfigurationException, nearest_name
from fulgur.profilers.profiler import ActionError, Profiler
from fulgur.rank import rank_zero_warn

_SORT_KEYS = (
    "cpu_time",
    "cuda_time",
    "cpu_time_total",
    "cuda_time_total",
    "cpu_memory_usage",
    "cuda_memory_usage",
    "self_cpu_memory_usage",
    "self_cuda_memory_usage",
    "count",
)
_SCHEDULE = {"wait": 1, "warmup": 1, "active": 3}
_NEXT_BATCH = "train_dataloader_next"
_STEP_ENDS = {
    "fit": ".training_step",
    "validate": ".validation_step",
    "test": ".test_step",
    "predict": ".predict_step",
}


class PyTorchProfiler(Profiler):
    """Run `torch.profiler.profile` over the steps of a stage, with each action and submodule as a named range.

    Without a `schedule` one step is left out, one warms the profiler up and three are recorded, and so on; a stage with
    fewer than five steps is recorded whole. The report is of the steps recorded last.

    Args:
        dirpath: Directory of report, traces and snapshot. None takes the Trainer's `log_dir`.
        filename: As in `Profiler`; also in the names of the other files.
        group_by_input_shapes: Tell calls of an operator apart by the shapes of its inputs.
        emit_nvtx: Mark the ranges for Nsight (``nsys profile``) in the place of a profile of torch's.
        export_to_chrome: Write a trace of each recording, ``<stage>-<filename>[-<rank>].<time>.pt.trace.json``, for
            Perfetto, Chrome or TensorBoard.
        row_limit: Number of rows of the report; -1 is all.
        sort_by_key: Column to sort by. None is the total time of the GPU where there is one, else of the CPU.
        record_module_names: Mark the forward of each submodule.
        table_kwargs: Further arguments of the table, such as ``max_name_column_width``.
        record_memory_history: Keep each allocation on the GPU from the first step on, and write the snapshot
            ``<stage>-<filename>[-<rank>].pickle`` at the end, for https://pytorch.org/memory_viz.
        **profiler_kwargs: For `torch.profiler.profile`.

    Raises:
        MisconfigurationException: An argument is unknown, or needs a GPU and there is none.
        KeyError: `table_kwargs` has what the table has not.

    Example:
        >>> profiler = PyTorchProfiler(filename="ops", schedule=torch.profiler.schedule(wait=5, warmup=2, active=4))
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        *,
        record_memory_history: bool = False,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        self._group_by_input_shapes = group_by_input_shapes
        self._emit_nvtx = emit_nvtx
        self._export_to_chrome = export_to_chrome
        self._row_limit = row_limit
        self._sort_by_key = sort_by_key or f"{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
        self._record_module_names = record_module_names
        self._record_memory_history = record_memory_history
        self._table_kwargs = dict(table_kwargs or {})
        self._profiler_kwargs = profiler_kwargs
        self._check()
        self._waits_for_steps = False
        self._forget()

    def _check(self) -> None:
        if self._sort_by_key not in _SORT_KEYS:
            raise MisconfigurationException(
                f"sort_by_key={self._sort_by_key!r} is no column.{nearest_name(self._sort_by_key, _SORT_KEYS)} "
                f"Use one of {', '.join(_SORT_KEYS)}."
            )
        for name, wanted in (
            ("emit_nvtx", self._emit_nvtx),
            ("record_memory_history", self._record_memory_history),
        ):
            if wanted and not torch.cuda.is_available():
                raise MisconfigurationException(f"PyTorchProfiler({name}=True) needs a CUDA GPU, and none is there.")
        known = set(inspect.signature(torch.profiler.profile.__init__).parameters) - {"self", "use_cuda"}
        for name in self._profiler_kwargs:
            if name not in known:
                raise MisconfigurationException(
                    f"PyTorchProfiler has no argument {name!r}, nor has torch.profiler.profile."
                    f"{nearest_name(name, known)}"
                )
        schedule = self._profiler_kwargs.get("schedule")
        if schedule is not None and not (callable(schedule) and isinstance(schedule(0), torch.profiler.ProfilerAction)):
            raise MisconfigurationException(
                f"schedule={schedule!r}: pass torch.profiler.schedule(...), or a function from a step's number to a "
                "torch.profiler.ProfilerAction."
            )
        columns = inspect.signature(torch.autograd.profiler_util.EventList.table).parameters
        for name in self._table_kwargs:
            if name in ("self", "sort_by", "row_limit") or name not in columns:
                raise KeyError(
                    f"table_kwargs has {name!r}, which is no argument of torch's table, or one that "
                    "PyTorchProfiler has of its own (sort_by_key, row_limit)."
                )

    def _forget(self) -> None:
        self._profiler: Any = None
        self._averages: Any = None
        self._ranges: list[tuple[str, AbstractContextManager[Any]]] = []
        self._module_ranges: RegisterRecordFunction | None = None
        self._has_stepped = False

    # ---------------------------------------------------------------------------------------------- a stage

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        self._waits_for_steps = True

    def prepare(self, module: nn.Module, num_steps: float) -> None:
        if self._profiler is None:
            self._begin(num_steps)
            if self._record_module_names:
                self._module_ranges = RegisterRecordFunction(module)
                self._module_ranges.__enter__()

    def start(self, action_name: str) -> None:
        """Open a range with this name."""
        if self._profiler is None and not self._waits_for_steps:
            self._begin(0)
        if self._has_stepped and action_name.endswith(_NEXT_BATCH):
            self._step()
        opened = torch.profiler.record_function(action_name)
        opened.__enter__()
        self._ranges.append((action_name, opened))

    def stop(self, action_name: str) -> None:
        """Close what `start` opened.

        Raises:
            ValueError: The action is not the one that was started last.
        """
        if not self._ranges or self._ranges[-1][0] != action_name:
            raise ActionError(action_name, is_running=False)
        self._ranges.pop()[1].__exit__(None, None, None)
        if action_name.endswith(_STEP_ENDS.get(self._stage, "\0")):
            self._has_stepped = True
            if self._stage != "fit":  # there a step goes on after the module's own part of it
                self._step()

    def _step(self) -> None:
        self._has_stepped = False
        if hasattr(self._profiler, "step"):
            with warnings.catch_warnings():  # the report is of the last recording, as it is meant to be
                warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
                self._profiler.step()

    def summary(self) -> str:
        """The table of operators and ranges. Ends the recording."""
        has_run = self._profiler is not None
        self._end()
        if self._averages is None:
            if not has_run or self._emit_nvtx:
                return ""
            rank_zero_warn(
                "PyTorchProfiler has recorded nothing: the stage ended before its schedule came to a recording. "
                "Pass schedule=torch.profiler.schedule(...) with a shorter wait and warmup."
            )
            return ""
        table = self._averages.table(sort_by=self._sort_by_key, row_limit=self._row_limit, **self._table_kwargs)
        return f"{self._stage.upper()} Profiler Report\n{table}".strip()

    def teardown(self, stage: str | None = None) -> None:
        self._end()
        self._waits_for_steps = False
        self._forget()

    # ---------------------------------------------------------------------------------------------- torch's part

    def _begin(self, num_steps: float) -> None:
        self._profiler = torch.autograd.profiler.emit_nvtx() if self._emit_nvtx else self._build(num_steps)
        if self._record_memory_history:
            torch.cuda.memory._record_memory_history()
        self._profiler.__enter__()

    def _build(self, num_steps: float) -> torch.profiler.profile:
        options: dict[str, Any] = {"record_shapes": self._group_by_input_shapes, **self._profiler_kwargs}
        if "schedule" not in options and num_steps >= sum(_SCHEDULE.values()):
            options["schedule"] = torch.profiler.schedule(**_SCHEDULE)
        handler: Callable[[Any], Any] | None = options.pop("on_trace_ready", None)
        if handler is None and self._export_to_chrome:
            folder, name = os.path.split(self._path("x")[:-2])
            handler = torch.profiler.tensorboard_trace_handler(folder, worker_name=name or None)

        def keep(profiler: torch.profiler.profile) -> None:
            self._averages = profiler.key_averages(group_by_input_shape=self._group_by_input_shapes)
            if handler is not None:
                handler(profiler)

        return torch.profiler.profile(on_trace_ready=keep, **options)

    def _end(self) -> None:
        while self._ranges:
            self._ranges.pop()[1].__exit__(None, None, None)
        if self._module_ranges is not None:
            self._module_ranges.__exit__(None, None, None)
            self._module_ranges = None
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        self._waits_for_steps = True  # what comes after the end begins no other recording
        profiler.__exit__(None, None, None)
        if self._record_memory_history:
            torch.cuda.memory._dump_snapshot(self._path("pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)


class RegisterRecordFunction:
    """While it is entered, the forward of each submodule is a range ``[module]<class>: <name>`` of torch's profilers.

    Args:
        model: Whose submodules.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1))
        >>> with torch.profiler.profile() as profiler, RegisterRecordFunction(model):
        ...     _ = model(torch.ones(1, 2))
        >>> "[module]Linear: 0" in {event.key for event in profiler.key_averages()}
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._opened: list[Any] = []
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            if name:
                self._mark(f"[module]{type(module).__name__}: {name}", module)

    def _mark(self, name: str, module: nn.Module) -> None:
        def begin(*_: Any) -> None:
            opened = torch.profiler.record_function(name)
            opened.__enter__()
            self._opened.append(opened)

        def end(*_: Any) -> None:
            self._opened.pop().__exit__(None, None, None)

        self._handles.append(module.register_forward_pre_hook(begin))
        self._handles.append(module.register_forward_hook(end, always_call=True))

    def __exit__(self, *exception: Any) -> None:
        while self._handles:
            self._handles.pop().remove()
