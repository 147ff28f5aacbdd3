"""Metrics, parameters and checkpoints to an MLflow server or a local store."""

from __future__ import annotations

import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fulgur.errors import MissingExtraError
from fulgur.loggers.hparams import flatten, to_dict
from fulgur.loggers.logger import Logger, rank_zero_experiment, with_prefix
from fulgur.loggers.run_dir import expand_path
from fulgur.loggers.uploads import LogModel, SavedFile, Uploads, describe_callback
from fulgur.rank import rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    from fulgur.hooks import Callback

_FILE = "file:"
_N_PARAMS_A_CALL = 100
_PARAM_LENGTH = 250
_STATUS = {"success": "FINISHED", "failed": "FAILED", "finished": "FINISHED"}


def is_mlflow_available() -> bool:
    """Whether the package ``mlflow``, or ``mlflow-skinny``, is installed. Does not import it."""
    return find_spec("mlflow") is not None


class MLFlowLogger(Logger):
    """Log to a run of MLflow.

    Needs the package ``mlflow``; ``mlflow-skinny`` is enough for a server, and for a local store together with
    ``sqlalchemy`` and ``alembic``. The run begins with the first use of `experiment`, on rank 0.
    MLflow's own telemetry is off, unless ``MLFLOW_DISABLE_TELEMETRY`` says otherwise or the program has imported
    ``mlflow`` before.

    Args:
        experiment_name: Name of the experiment, created where there is none.
        run_name: Name of the run to show. None lets MLflow choose one.
        tracking_uri: Address of the store. None is ``MLFLOW_TRACKING_URI`` of the environment, else a store in
            `save_dir`: the file store that lies there, or the database ``mlflow.db``, for MLflow 3 makes no new file
            stores.
        tags: Of the run.
        save_dir: Directory of a local store. Checkpoints lie there too.
        log_model: Upload checkpoints as artifacts: True when a run has ended well, ``"all"`` each one as it is saved.
        prefix: Put before the name of each metric, joined with ``-``.
        artifact_location: Where the artifacts of a new experiment lie. None leaves it to the store; a database in
            `save_dir` has them there.
        run_id: A run to go on with; `experiment_name` and `run_name` are not used then.
        synchronous: Whether each call waits for the store. None leaves it to MLflow.

    Raises:
        MissingExtraError: ``mlflow`` is not installed.
        MisconfigurationException: `log_model` is not one of those above.

    Example:
        >>> logger = MLFlowLogger("digits", tracking_uri="http://127.0.0.1:5000")
        >>> trainer = Trainer(logger=logger)
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: LogModel = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        if not is_mlflow_available():
            raise MissingExtraError("MLFlowLogger", "mlflow", "mlflow")
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._prefix = prefix
        self._uploads = Uploads(log_model)
        self._artifact_location = artifact_location
        self._run_id = run_id
        self._options = {} if synchronous is None else {"synchronous": synchronous}
        self._client: Any = None
        self._experiment_id: str | None = None
        self._is_running = False
        self._renamed: set[str] = set()
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._save_dir: str | None = None
        if self._tracking_uri is None:
            self._use_directory(os.path.abspath(expand_path(save_dir or "./mlruns")))
        elif self._tracking_uri.startswith(_FILE):
            self._save_dir = re.sub(f"^{_FILE}(//)?", "", self._tracking_uri)

    def _use_directory(self, directory: str) -> None:
        self._save_dir = directory
        if any(os.path.isfile(os.path.join(directory, name, "meta.yaml")) for name in _names_in(directory)):
            self._tracking_uri = f"{_FILE}{directory}"
            return
        self._tracking_uri = f"sqlite:///{os.path.join(directory, 'mlflow.db')}"
        self._artifact_location = self._artifact_location or os.path.join(directory, "artifacts")

    @property
    def name(self) -> str | None:
        """Id of the experiment, which is created where there is none; None on ranks other than 0."""
        return self._find_experiment_id()

    @property
    def version(self) -> str | None:
        """Id of the run; None before there is one."""
        return self._run_id

    @property
    def run_id(self) -> str | None:
        """Id of the run, which is begun if it has not been."""
        _ = self.experiment
        return self._run_id

    @property
    def save_dir(self) -> str | None:
        """Directory of a local store; None for a server or another database."""
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``MlflowClient``. Its first use begins the run.

        Example:
            >>> self.logger.experiment.log_text(self.logger.run_id, "done", "note.txt")
        """
        client = self._connect()
        if not self._is_running:
            self._is_running = True
            if self._run_id is None:
                self._run_id = self._begin(client)
            else:
                self._experiment_id = client.get_run(self._run_id).info.experiment_id
                client.update_run(self._run_id, "RUNNING")
        return client

    def _connect(self) -> Any:
        if self._client is None:
            if "mlflow" not in sys.modules:
                os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it calls its makers as it is imported
            from mlflow.tracking import MlflowClient

            if self._save_dir is not None:
                os.makedirs(self._save_dir, exist_ok=True)
            self._client = MlflowClient(self._tracking_uri)
        return self._client

    def _begin(self, client: Any) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        tags = self._tags if self._run_name is None else self._tags | {"mlflow.runName": self._run_name}
        return str(client.create_run(self._find_experiment_id(), tags=resolve_tags(tags)).info.run_id)

    @rank_zero_only
    def _find_experiment_id(self) -> str | None:
        client = self._connect()
        if self._experiment_id is None and self._run_id is not None:
            self._experiment_id = client.get_run(self._run_id).info.experiment_id
        if self._experiment_id is None:
            known = client.get_experiment_by_name(self._experiment_name)
            self._experiment_id = (
                client.create_experiment(self._experiment_name, artifact_location=self._artifact_location)
                if known is None
                else known.experiment_id
            )
        return self._experiment_id

    def find_versions(self) -> list[int | str]:
        """Ids of the experiment's last hundred runs, newest first; only this one where it was chosen already."""
        if self._run_id is not None:
            return [self._run_id]
        experiment = self._find_experiment_id()
        if experiment is None:
            return []
        runs = self._connect().search_runs([experiment], max_results=100, order_by=["attributes.start_time DESC"])
        return [run.info.run_id for run in runs]

    def position(self) -> dict[str, Any]:
        """The id of the run."""
        return {"version": self._run_id} if self._is_running else {}

    def resume_at(self, position: dict[str, Any], step: int) -> None:
        """Go on with an earlier run. MLflow keeps what it was sent after the checkpoint: those points come twice."""
        if self._run_id is None:
            self._run_id = position["version"]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send one set of values. Characters that MLflow has not got in names are left out, with a warning."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        values = with_prefix(metrics, self._prefix).items()
        sent = [Metric(self._name_there(name), float(value), now_ms, step or 0) for name, value in values]
        client = self.experiment
        client.log_batch(run_id=self._run_id, metrics=sent, **self._options)

    def _name_there(self, name: str) -> str:
        kept = re.sub(r"[^\w/. -]+", "", name, flags=re.ASCII)
        if kept != name and name not in self._renamed:
            self._renamed.add(name)
            rank_zero_warn(f"MLflow has only letters, digits and '_-./ ' in names: {name!r} is logged as {kept!r}.")
        return kept

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None) -> None:
        """Send hyperparameters as texts of at most 250 characters, nested names joined with ``/``.

        A parameter of a run cannot change: where the run has another value, it stays, with a warning.
        """
        from mlflow.entities import Param

        client = self.experiment
        known = client.get_run(self._run_id).data.params
        texts = {name: str(value)[:_PARAM_LENGTH] for name, value in flatten(to_dict(params)).items()}
        changed = {name: text for name, text in texts.items() if known.get(name, text) != text}
        if changed:
            had = {name: known[name] for name in changed}
            rank_zero_warn(
                f"The run {self._run_id} was logged with {had}, which MLflow does not change to {changed}. "
                "Begin another run to have them logged."
            )
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        for start in range(0, len(new), _N_PARAMS_A_CALL):
            client.log_batch(run_id=self._run_id, params=new[start : start + _N_PARAMS_A_CALL], **self._options)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Callback) -> None:
        """Upload what the callback has saved, if `log_model` says so."""
        self._upload(self._uploads.after_save(checkpoint_callback))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the checkpoints that are left, after a run that ended well, and note how the run has ended."""
        if not self._is_running:
            return
        if status == "success":
            self._upload(self._uploads.at_end())
        self._connect().set_terminated(self._run_id, _STATUS.get(status, "FINISHED"))

    def _upload(self, files: Iterator[tuple[Any, SavedFile]]) -> None:
        for callback, file in files:
            client = self.experiment
            folder = f"model/checkpoints/{os.path.splitext(os.path.basename(file.path))[0]}"
            if os.path.isdir(file.path):
                client.log_artifacts(self._run_id, file.path, f"{folder}/{os.path.basename(file.path)}")
            else:
                client.log_artifact(self._run_id, file.path, folder)
            client.log_dict(self._run_id, describe_callback(callback, file), f"{folder}/metadata.yaml")
            client.log_text(self._run_id, str(file.aliases), f"{folder}/aliases.txt")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None, "_is_running": False}


def _names_in(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []
