"""Metrics, tables, media and checkpoints to Weights & Biases."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from fulgur.errors import MisconfigurationException, MissingExtraError
from fulgur.loggers.hparams import to_dict, to_plain
from fulgur.loggers.logger import Logger, rank_zero_experiment, with_prefix
from fulgur.loggers.run_dir import expand_path
from fulgur.loggers.uploads import LogModel, SavedFile, Uploads, describe_callback
from fulgur.rank import rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    from torch import nn

    from fulgur.hooks import Callback

STEP = "trainer/global_step"
"""Name of the metric that all charts have as their horizontal axis."""


class WandbLogger(Logger):
    """Log to a run of Weights & Biases, over the network or, with ``offline=True``, into files.

    Needs the package ``wandb``. The run begins with the first use of `experiment`, on rank 0, and goes on until the
    program ends or calls ``wandb.finish()``. A run that is there already is gone on with. The whole of ``wandb`` is
    reached through `experiment`.

    Files written offline are sent later with ``wandb sync``.

    Args:
        name: Name of the run to show. None lets W&B choose one.
        save_dir: Directory of W&B's files, and of checkpoints.
        version: Id of the run. One that is known to W&B is gone on with; None is a new one.
        offline: Write files and talk to nobody.
        dir: Older name of `save_dir`; goes before it.
        id: Older name of `version`; `version` goes before it.
        anonymous: Passed on to ``wandb.init``, for versions of W&B that know it.
        project: Name of the project. None is ``WANDB_PROJECT`` of the environment, else ``"lightning_logs"``.
        log_model: Upload checkpoints as artifacts: True when a run has ended well, ``"all"`` each one as it is saved.
            The artifact has the alias ``latest``, and ``best`` if it is the best.
        experiment: A run that was begun with ``wandb.init``.
        prefix: Put before the name of each metric, joined with ``-``.
        checkpoint_name: Name of the artifact. None is ``model-<id of the run>``.
        add_file_policy: ``"mutable"`` copies an uploaded file first, ``"immutable"`` does not.
        **kwargs: Passed to ``wandb.init``.

    Raises:
        MissingExtraError: ``wandb`` is not installed.
        MisconfigurationException: `log_model` with ``offline=True``, or a value that is not one of those above.

    Example:
        >>> logger = WandbLogger(project="digits", offline=True)
        >>> trainer = Trainer(logger=logger)
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: LogModel = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **kwargs: Any,
    ) -> None:
        if find_spec("wandb") is None:
            raise MissingExtraError("WandbLogger", "wandb", "wandb")
        if offline and log_model:
            raise MisconfigurationException(
                f"WandbLogger(offline=True, log_model={log_model!r}): checkpoints cannot be uploaded offline. "
                "Leave one of the two out."
            )
        if add_file_policy not in ("mutable", "immutable"):
            raise MisconfigurationException(f"add_file_policy={add_file_policy!r}: use 'mutable' or 'immutable'.")
        self._save_dir = expand_path(save_dir if dir is None else dir)
        self._id = version or id
        self._project = project or os.environ.get("WANDB_PROJECT") or "lightning_logs"
        self._prefix = prefix
        self._checkpoint_name = checkpoint_name
        self._add_file_policy = add_file_policy
        self._uploads = Uploads(log_model)
        self._experiment = experiment
        self._has_axis = False
        self._kwargs: dict[str, Any] = {
            "name": name,
            "mode": "offline" if offline else None,
            "anonymous": None if anonymous is None else ("allow" if anonymous else None),
        } | kwargs

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """Id of the run; None before there is one."""
        return str(self._experiment.id) if self._experiment is not None else self._id

    @property
    def save_dir(self) -> str:
        """Directory of W&B's files; checkpoints lie in ``save_dir/project/id/checkpoints``."""
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``. Its first use begins it.

        Example:
            >>> self.logger.experiment.summary["note"] = "with dropout"
        """
        if self._experiment is None:
            if self._kwargs["mode"] == "offline":
                os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own errors go to its makers
            import wandb

            if wandb.run is not None:
                rank_zero_warn(
                    f"WandbLogger goes on with the run {wandb.run.id!r}, which is there already. Call wandb.finish() "
                    "first to begin another one."
                )
            self._experiment = wandb.run or self._begin(wandb)
        if not self._has_axis:
            self._experiment.define_metric(STEP)
            self._experiment.define_metric("*", step_metric=STEP, step_sync=True)
            self._has_axis = True
        return self._experiment

    def _begin(self, wandb: Any) -> Any:
        os.makedirs(self._save_dir, exist_ok=True)
        options = {"dir": self._save_dir, "project": self._project, "id": self._id} | self._kwargs
        return wandb.init(resume=options.pop("resume", "allow"), **{k: v for k, v in options.items() if v is not None})

    def find_versions(self) -> list[int | str]:
        """Ids of the runs with files in `save_dir`, newest first; only this one where it was chosen already."""
        if self.version is not None:
            return [self.version]
        root = os.path.join(self._save_dir, self._project)
        runs = [entry for entry in os.scandir(root) if entry.is_dir()] if os.path.isdir(root) else []
        return [entry.name for entry in sorted(runs, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)]

    def position(self) -> dict[str, Any]:
        """The id of the run."""
        return {} if self._experiment is None else {"version": self.version}

    def resume_at(self, position: dict[str, Any], step: int) -> None:
        """Go on with an earlier run. W&B keeps what it was sent after the checkpoint: those points come twice."""
        if self.version is None:
            self._id = position["version"]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send one set of values; with a step, also as ``trainer/global_step``, the axis of the charts."""
        self._log(dict(with_prefix(metrics, self._prefix)), step)

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        self.experiment.log(values if step is None else values | {STEP: step})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None) -> None:
        """Add to the run's config, as plain data."""
        self.experiment.config.update(to_plain(to_dict(params)), allow_val_change=True)

    @rank_zero_only
    def watch(
        self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        """Let W&B send histograms of gradients (``"gradients"``), weights (``"parameters"``) or both (``"all"``).

        Args:
            model: Whose.
            log: Which.
            log_freq: After this many batches each time.
            log_graph: Whether to send the graph too.
        """
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    @rank_zero_only
    def unwatch(self, model: nn.Module) -> None:
        """End what `watch` began."""
        self.experiment.unwatch(model)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Send a table: of `columns` and rows (`data`), or of a pandas `dataframe`. Cells may hold media."""
        import wandb

        table: Any = wandb.Table
        self._log({key: table(columns=columns, data=data, dataframe=dataframe)}, step)

    def log_text(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[str]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Send a table of texts; see `log_table`."""
        self.log_table(key, columns, data, dataframe, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Send images: tensors, arrays, PIL images, or paths.

        Args:
            key: Their name.
            images: One or more.
            step: Place on the axis.
            **kwargs: For ``wandb.Image``: for each argument a list with one value an image, such as ``caption``.

        Raises:
            TypeError: `images` is no list.
            ValueError: A list has not one value an image.
        """
        self._log_media("Image", "images", key, images, step, kwargs)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Send sounds: arrays or paths. See `log_image`; for ``wandb.Audio``, among others ``sample_rate``."""
        self._log_media("Audio", "audios", key, audios, step, kwargs)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Send films: arrays or paths. See `log_image`; for ``wandb.Video``, among others ``fps``."""
        self._log_media("Video", "videos", key, videos, step, kwargs)

    def _log_media(
        self, kind: str, argument: str, key: str, items: Any, step: int | None, options: dict[str, Any]
    ) -> None:
        import wandb

        if not isinstance(items, list):
            raise TypeError(f"log_{kind.lower()}({argument}=...) takes a list, and got a {type(items).__name__}.")
        for name, values in options.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(items):
                raise ValueError(
                    f"{name}={values!r:.80} must be a list with one value for each of the {len(items)} items."
                )
        build = getattr(wandb, kind)
        made = [build(item, **{name: values[i] for name, values in options.items()}) for i, item in enumerate(items)]
        self._log({key: made}, step)

    @rank_zero_only
    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """Note an artifact, such as ``"team/project/model-id:best"``, as an input of this run, and return it."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @staticmethod
    @rank_zero_only
    def download_artifact(
        artifact: str,
        save_dir: str | os.PathLike[str] | None = None,
        artifact_type: str | None = None,
        use_artifact: bool | None = True,
    ) -> str:
        """Fetch the files of an artifact over the network, and return their directory.

        Args:
            artifact: Its name, such as ``"team/project/model-id:best"``.
            save_dir: Where to. None lets W&B choose.
            artifact_type: Its type, if that is to be checked.
            use_artifact: Note it as an input of the run that is under way, if there is one.
        """
        import wandb

        if wandb.run is not None and use_artifact:
            found = wandb.run.use_artifact(artifact, type=artifact_type)
        else:
            found = wandb.Api().artifact(artifact, type=artifact_type)
        return str(found.download(root=None if save_dir is None else os.fspath(save_dir)))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Callback) -> None:
        """Upload what the callback has saved, if `log_model` says so."""
        for callback, file in self._uploads.after_save(checkpoint_callback):
            self._upload(callback, file)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the checkpoints that are left, after a run that ended well. The W&B run stays open."""
        if status == "success":
            for callback, file in self._uploads.at_end():
                self._upload(callback, file)

    def _upload(self, callback: Any, file: SavedFile) -> None:
        import wandb

        run = self.experiment
        artifact = wandb.Artifact(
            name=self._checkpoint_name or f"model-{run.id}", type="model", metadata=describe_callback(callback, file)
        )
        if os.path.isdir(file.path):
            artifact.add_dir(file.path, name="model.ckpt")
        else:
            artifact.add_file(file.path, name="model.ckpt", policy=self._add_file_policy)
        run.log_artifact(artifact, aliases=file.aliases)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_experiment": None, "_has_axis": False, "_id": self.version}
