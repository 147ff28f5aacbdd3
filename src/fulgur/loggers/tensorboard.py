"""Metrics, hyperparameters and graphs as TensorBoard event files."""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from fulgur.errors import MissingExtraError
from fulgur.loggers.hparams import HPARAMS_FILE, flatten, to_dict, write_hparams
from fulgur.loggers.logger import Logger, rank_zero_experiment, with_prefix
from fulgur.loggers.run_dir import (
    choose_save_dir,
    claim_version,
    exists,
    expand_path,
    find_next_version,
    find_versions,
    is_remote,
    join_path,
    make_dir,
    version_dir,
)
from fulgur.rank import rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter


def is_tensorboard_available() -> bool:
    """Whether the package ``tensorboard`` is installed. Does not import it."""
    return find_spec("tensorboard") is not None


class TensorBoardLogger(Logger):
    """Write event files to ``save_dir/name/version_N``, and hyperparameters to ``hparams.yaml`` beside them.

    Needs the package ``tensorboard``. Read the files with ``tensorboard --logdir <save_dir>``.

    Args:
        save_dir: Directory, or fsspec URL, of all experiments. ``~`` and environment variables are replaced.
        name: Directory of this experiment in `save_dir`. None or an empty string drops the level.
        version: Directory of this run: an int N is ``version_N``, a string is taken as it is. None is one more than
            the highest version there is, decided when it is first asked for.
        log_graph: Whether `log_graph` does anything.
        default_hp_metric: Whether hyperparameters logged without metrics come with the metric ``hp_metric`` at -1;
            TensorBoard lists no hyperparameters without a metric.
        prefix: Put before the name of each metric, joined with ``-``.
        sub_dir: Directory in the version's, for the event files.
        root_dir: The name of `save_dir` in the loggers of Lightning's Fabric.
        **kwargs: Passed to ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        MissingExtraError: ``tensorboard`` is not installed.

    Example:
        >>> logger = TensorBoardLogger("logs", name="digits")
        >>> logger.log_metrics({"loss": 0.5}, step=0)
        >>> logger.finalize("success")
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] | None = None,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        *,
        root_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if not is_tensorboard_available():
            raise MissingExtraError("TensorBoardLogger", "tensorboard", "tensorboard")
        self._save_dir = expand_path(choose_save_dir(type(self), save_dir, root_dir))
        self._name = name or ""
        self._version = version
        self._sub_dir = "" if sub_dir is None else expand_path(sub_dir)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._prefix = prefix
        self._writer_kwargs = kwargs
        self._experiment: SummaryWriter | None = None
        self._hparams_with_default_metric: dict[str, Any] | None = None
        self._hparams_written = False
        self._resumed_after: int | None = None
        self._purges = False
        self._max_step = -1
        self.hparams: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name of the experiment; an empty string if it has none."""
        return self._name

    @property
    def version(self) -> int | str:
        """Version of this run."""
        if self._version is None:
            self._version = find_next_version(self.root_dir)
        return self._version

    @property
    def save_dir(self) -> str:
        """Directory of all experiments."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """Directory of all versions: ``save_dir/name``."""
        return join_path(self.save_dir, self.name)

    @property
    def log_dir(self) -> str:
        """Directory of this run: ``save_dir/name/version_N/sub_dir``. It is created with `experiment`."""
        return join_path(self.root_dir, version_dir(self.version), self._sub_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The ``SummaryWriter``. Its first use creates `log_dir` and an event file.

        Example:
            >>> self.logger.experiment.add_image("input", image, global_step=self.global_step)
        """
        if self._experiment is None:
            from torch.utils.tensorboard import SummaryWriter

            if self._version is None:
                self._version = claim_version(self.root_dir)
            if not is_remote(self.log_dir):
                make_dir(self.log_dir)
            kwargs = self._writer_kwargs
            if self._resumed_after is not None and self._purges:
                kwargs = {"purge_step": self._resumed_after + 1} | kwargs
            self._experiment = SummaryWriter(log_dir=self.log_dir, **kwargs)
        return self._experiment

    def find_versions(self) -> list[int | str]:
        """The versions on the disk, newest first; only this one where it was chosen already."""
        return [self._version] if self._version is not None else [*find_versions(self.root_dir)]

    def position(self) -> dict[str, Any]:
        """This version, and how far its event files have come. What was recorded is on the disk."""
        self.save()
        if self._experiment is None:
            return {}
        sizes = {os.path.relpath(path, self.log_dir): os.path.getsize(path) for path in self._event_files()}
        return {"version": self.version, "sizes": sizes, "max_step": self._max_step}

    def _event_files(self) -> list[str]:
        """Event files of this version, those of charts with several curves too; none where they lie behind a URL."""
        if is_remote(self.log_dir):
            return []
        found = (os.path.join(folder, name) for folder, _, names in os.walk(self.log_dir) for name in names)
        return [path for path in found if "tfevents" in os.path.basename(path)]

    @rank_zero_only
    def resume_at(self, position: dict[str, Any], step: int) -> None:
        """Go on with an earlier version, whose event files are cut to where they were. Nothing if another was chosen.

        Files behind a URL cannot be cut: there TensorBoard drops the points after `step`, and one that follows the
        checkpoint at `step` itself, of a validation, comes a second time with the same value.
        """
        if self._version not in (None, position["version"]):
            return
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None
        self._version, self._resumed_after = position["version"], step
        self._max_step = position.get("max_step", -1)
        # Points of evaluation batches have an axis of their own, and may lie beyond the step: those are to stay.
        self._purges = self._max_step <= step
        if position.get("sizes"):
            self._cut(position["sizes"])

    def _cut(self, sizes: Mapping[str, int]) -> None:
        for path in self._event_files():
            size = sizes.get(os.path.relpath(path, self.log_dir))
            if size is None:
                os.remove(path)
            elif os.path.getsize(path) > size:
                os.truncate(path, size)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a point to the curve of each metric.

        Args:
            metrics: Numbers or one-element tensors by name (a tensor waits for its device). A dict of them makes one
                chart with several curves.
            step: Place on the horizontal axis.

        Raises:
            ValueError: A value is no scalar.
        """
        experiment = self.experiment
        self._max_step = max(self._max_step, step or 0)
        scalars: dict[str, float] = {}
        for name, value in with_prefix(metrics, self._prefix).items():
            if isinstance(value, Mapping):
                curves = {str(curve): _to_float(f"{name}/{curve}", point) for curve, point in value.items()}
                experiment.add_scalars(name, curves, step)
            else:
                scalars[name] = _to_float(name, value)
        if scalars:
            _add_event(experiment, scalars, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace | None,
        metrics: dict[str, Any] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Add to the hyperparameters, write them all to ``hparams.yaml`` and show them in TensorBoard.

        Args:
            params: Hyperparameters. For TensorBoard, nested names are joined with ``/`` and what is no scalar becomes
                a string.
            metrics: Metrics to show beside them, with their first values. A number stands for ``hp_metric``. None is
                ``hp_metric`` at -1, or nothing at all if `default_hp_metric` is off.
            step: Step of these values. None is 0.
        """
        params = to_dict(params)
        self.hparams.update(params)
        self._write_hparams_file()
        if metrics is None:
            # A run that repeats them (test after fit) must not put -1 over a metric logged in between.
            if self._resumed_after is not None:
                return  # the version has it already
            if not self._default_hp_metric or self._hparams_with_default_metric == (flat := flatten(params)):
                return
            self._hparams_with_default_metric = flat
            metrics = -1
        if not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        if metrics:
            self.log_metrics(metrics, step or 0)
            self._add_hparams_summaries(flatten(params), metrics)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Trace `model` and add its graph, if the logger was made with ``log_graph=True``.

        Args:
            model: Traced in evaluation mode.
            input_array: Example input. None is the model's ``example_input_array``; without either there is a
                warning and no graph.
        """
        if not self._log_graph:
            return
        example = getattr(model, "example_input_array", None) if input_array is None else input_array
        if example is None:
            rank_zero_warn(
                "log_graph=True, but there is no input to trace the model with. "
                "Set `self.example_input_array` in the module, or pass `input_array`."
            )
            return
        with warnings.catch_warnings():
            # torch's own way to a graph warns that torch should not do it this way.
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
            self.experiment.add_graph(model, _on_device_of(model, example))

    @rank_zero_only
    def save(self) -> None:
        """Write all events to disk, and ``hparams.yaml`` if it is not there yet."""
        if self._experiment is not None:
            self._experiment.flush()
            if not self._hparams_written and not exists(self._hparams_path):
                self._write_hparams_file()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write all events and close the event file; more events begin another one in the same directory."""
        if self._experiment is not None:
            self.save()
            self._experiment.close()

    @property
    def _hparams_path(self) -> str:
        return join_path(self.log_dir, HPARAMS_FILE)

    def _write_hparams_file(self) -> None:
        # order matters: the experiment creates the directory
        _ = self.experiment
        write_hparams(self._hparams_path, self.hparams)
        self._hparams_written = True

    def _add_hparams_summaries(self, params: dict[str, Any], metrics: dict[str, Any]) -> None:
        from torch.utils.tensorboard import summary

        # `SummaryWriter.add_hparams` would put them into a directory of their own.
        build_summaries: Any = summary.hparams
        file_writer = _file_writer_of(self.experiment)
        for part in build_summaries(params, metrics):
            file_writer.add_summary(part)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_experiment": None}


def _add_event(experiment: SummaryWriter, scalars: dict[str, float], step: int | None) -> None:
    """Add all values as one event: six of them cost a fifth of six calls of ``add_scalar``."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
    _file_writer_of(experiment).add_summary(Summary(value=values), step)


def _file_writer_of(experiment: SummaryWriter) -> Any:
    return cast(Any, experiment)._get_file_writer()


def _to_float(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"metric {name!r} has the value {value!r}, which is no scalar. "
            "Log a number, a tensor with one element, or a dict of these."
        ) from error


def _on_device_of(model: Any, example: Any) -> Any:
    """`example` as `model` would get it from a loader; unchanged for a plain ``nn.Module``."""
    if not hasattr(model, "transfer_batch_to_device"):
        return example
    example = model.on_before_batch_transfer(example, 0)
    example = model.transfer_batch_to_device(example, model.device, 0)
    return model.on_after_batch_transfer(example, 0)
