"""Metrics and hyperparameters to Comet."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from fulgur.errors import MisconfigurationException, MissingExtraError
from fulgur.loggers.hparams import to_dict, to_plain
from fulgur.loggers.logger import Logger, rank_zero_experiment
from fulgur.rank import rank_zero_deprecation, rank_zero_only

if TYPE_CHECKING:
    from torch import nn


class CometLogger(Logger):
    """Log to an experiment of Comet, over the network or, with ``online=False``, into an archive.

    Needs the package ``comet_ml``. The experiment begins with the first use of `experiment`, on rank 0, and goes on
    until the program ends or calls ``experiment.end()``. An archive is sent later with ``comet upload``.

    Args:
        api_key: Key of an account. None is ``COMET_API_KEY`` of the environment, or of Comet's own configuration.
        workspace: Of the account. None is its default.
        project: Name of the project. None is Comet's default.
        experiment_key: Key of the experiment, 32 to 50 letters and digits. What is done with one that is there
            already, `mode` says.
        mode: ``"get"`` goes on with an experiment, ``"create"`` begins one, ``"get_or_create"``, the default of
            Comet, does what fits.
        online: False writes an archive and talks to nobody. None is online.
        prefix: Put before the name of each metric, joined with ``_``.
        experiment_name: Older form of ``name``.
        project_name: Older form of `project`.
        offline: Older form of `online`, turned round.
        save_dir: Older form of ``offline_directory``, the directory of archives.
        **kwargs: For ``comet_ml.ExperimentConfig``, among others ``name``, ``tags`` and ``offline_directory``.

    Raises:
        MissingExtraError: ``comet_ml`` is not installed.
        MisconfigurationException: `mode` is not one of those above.

    Example:
        >>> logger = CometLogger(project="digits", online=False, offline_directory="comet")
        >>> trainer = Trainer(logger=logger)
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        experiment_name: str | None = None,
        project_name: str | None = None,
        offline: bool | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if find_spec("comet_ml") is None:
            raise MissingExtraError("CometLogger", "comet_ml", "comet")
        if mode not in (None, "get_or_create", "get", "create"):
            raise MisconfigurationException(f"mode={mode!r}: use 'get_or_create', 'get' or 'create'.")
        self._api_key, self._workspace, self._mode = api_key, workspace, mode
        self._project: str | None = _renamed("project_name", project_name, "project", project)
        self._key = experiment_key
        self._online = _renamed("offline", None if offline is None else not offline, "online", online)
        self._prefix = prefix
        kwargs["name"] = _renamed("experiment_name", experiment_name, "name", kwargs.get("name"))
        directory = None if save_dir is None else os.fspath(save_dir)
        kwargs["offline_directory"] = _renamed(
            "save_dir", directory, "offline_directory", kwargs.get("offline_directory")
        )
        self._kwargs = {name: value for name, value in kwargs.items() if value is not None}
        self._experiment: Any = None

    @property
    def name(self) -> str | None:
        """Name of the project; None for Comet's default."""
        return self._project

    @property
    def version(self) -> str | None:
        """Key of the experiment; None before there is one."""
        return self._key

    @property
    def save_dir(self) -> str | None:
        """Directory of archives, and of checkpoints; None if none was chosen."""
        directory = self._kwargs.get("offline_directory")
        return None if directory is None else str(directory)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``CometExperiment``. Its first use begins it.

        Example:
            >>> self.logger.experiment.log_image(image, name="input", step=self.global_step)
        """
        if self._experiment is None:
            if self._online is False:
                os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "false")  # its own errors go to its makers
            import comet_ml

            self._experiment = comet_ml.start(
                api_key=self._api_key,
                workspace=self._workspace,
                project=self._project,
                experiment_key=self._key,
                mode=self._mode,
                online=self._online,
                experiment_config=comet_ml.ExperimentConfig(**self._kwargs),
            )
            self._key = self._experiment.get_key()
            self._project = self._project or getattr(self._experiment, "project_name", None)
            self._experiment.log_other("Created from", "fulgur")
        return self._experiment

    def find_versions(self) -> list[int | str]:
        """The experiment that was chosen, if one was."""
        return [] if self._key is None else [self._key]

    def position(self) -> dict[str, Any]:
        """The key of the experiment."""
        return {} if self._experiment is None else {"version": self._key}

    def resume_at(self, position: dict[str, Any], step: int) -> None:
        """Go on with an earlier experiment. Comet keeps what came after the checkpoint: those points come twice."""
        if self._key is None:
            self._key = position["version"]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send one set of values; ``epoch`` among them goes to Comet's own axis of epochs."""
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        self.experiment.log_metrics(values, epoch=epoch, step=step, prefix=self._prefix)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None) -> None:
        """Send hyperparameters; nested ones are kept apart by Comet."""
        self.experiment.log_parameters(to_plain(to_dict(params)), nested_support=True)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Send the text of the model's modules; nothing unless the experiment was asked to with ``log_graph=True``."""
        if self._kwargs.get("log_graph"):
            self.experiment.set_model_graph(str(model), overwrite=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is pending. The experiment stays open, until the program ends."""
        if self._experiment is not None:
            self._experiment.flush()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_experiment": None}


def _renamed(old: str, value: Any, new: str, chosen: Any) -> Any:
    """The value of an argument that once had another name."""
    if value is None:
        return chosen
    rank_zero_deprecation(f"CometLogger({old}=...) is now {new}=... Write that.")
    return value if chosen is None else chosen
