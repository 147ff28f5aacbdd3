"""Metrics as one CSV file: a row for each call, a column for each name."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
import time
import weakref
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fulgur.loggers.hparams import HPARAMS_FILE, to_dict, write_hparams
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
    move_aside,
    split_url,
    version_dir,
)
from fulgur.rank import rank_zero_only, rank_zero_warn

METRICS_FILE = "metrics.csv"
UPLOAD_INTERVAL_S = 30.0

Row = dict[str, Any]


class CSVLogger(Logger):
    """Write metrics to ``save_dir/name/version_N/metrics.csv`` and hyperparameters to ``hparams.yaml`` beside it.

    Each call of `log_metrics` makes one row; the columns are ``step`` and every metric seen so far, sorted. Rows are
    appended and what was saved survives the death of the process at any instant. A new name widens the file, which is
    then written anew and swapped in whole. In memory there are only the rows since the last `save`.

    With a URL as `save_dir`, the file is kept locally and uploaded every 30 seconds and at the end of a run.

    Args:
        save_dir: Directory, or fsspec URL, of all experiments. ``~`` and environment variables are replaced.
        name: Directory of this experiment in `save_dir`. None or an empty string drops the level.
        version: Directory of this run: an int N is ``version_N``, a string is taken as it is. None is one more than
            the highest version there is, decided when it is first asked for.
        prefix: Put before the name of each metric, joined with ``-``.
        flush_logs_every_n_steps: Rows are saved at the latest after this many, if nobody calls `save` (the Trainer
            does). > 0.
        root_dir: The name of `save_dir` in the loggers of Lightning's Fabric.

    Example:
        >>> logger = CSVLogger("logs", name="digits")
        >>> logger.log_metrics({"loss": 0.5}, step=0)
        >>> logger.save()
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] | None = None,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
        *,
        root_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if flush_logs_every_n_steps < 1:
            raise ValueError(f"flush_logs_every_n_steps={flush_logs_every_n_steps} must be at least 1.")
        self._save_dir = expand_path(choose_save_dir(type(self), save_dir, root_dir))
        self._name = name or ""
        self._version = version
        self._prefix = prefix
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        self._experiment: ExperimentWriter | None = None

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
        """Directory of this run: ``save_dir/name/version_N``. It is created with `experiment`."""
        return join_path(self.root_dir, version_dir(self.version))

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the files. Its first use creates `log_dir`."""
        if self._experiment is None:
            if self._version is None:
                self._version = claim_version(self.root_dir)
            self._experiment = ExperimentWriter(self.log_dir)
        return self._experiment

    def find_versions(self) -> list[int | str]:
        """The versions on the disk, newest first; only this one where it was chosen already."""
        return [self._version] if self._version is not None else [*find_versions(self.root_dir)]

    def position(self) -> dict[str, Any]:
        """This version, and the number of its rows."""
        if self._experiment is None:
            return {}
        return {"version": self.version, "n_rows": self._experiment.settle()}

    @rank_zero_only
    def resume_at(self, position: dict[str, Any], step: int) -> None:
        """Go on with an earlier version; later rows are dropped from its file. Nothing if another one was chosen."""
        if self._version not in (None, position["version"]):
            return
        self._version = position["version"]
        if self._experiment is not None:
            self._experiment.close()
        self._experiment = ExperimentWriter(self.log_dir, keep_until=(position.get("n_rows"), step))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Add one row. It is on disk after the next `save`.

        Args:
            metrics: Values by name; a tensor must have one element, and waits for its device.
            step: Value of the column ``step``. None is the number of rows so far.
        """
        experiment = self.experiment
        experiment.log_metrics(with_prefix(metrics, self._prefix), step)
        full = len(experiment.metrics) >= self._flush_logs_every_n_steps
        if full or (step is not None and (step + 1) % self._flush_logs_every_n_steps == 0):
            self.save()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Add to the hyperparameters and write them all to ``hparams.yaml``, as plain data."""
        self.experiment.log_hparams(to_dict(params))

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are pending."""
        if self._experiment is not None:
            self._experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are pending and close the file; more rows open it again."""
        if self._experiment is not None:
            self._experiment.close()


class ExperimentWriter:
    """The files of one run.

    Metrics that an earlier run left in the same directory are moved aside, not deleted.

    Attributes:
        log_dir: Directory, or URL, of the files. Created here.
        metrics_file_path: Where the metrics end up.
        metrics: Rows that are not written yet.
        hparams: Hyperparameters so far.

    Args:
        log_dir: Where to.
        keep_until: Go on with the metrics that are there, up to this number of rows; up to this step where the number
            is None.
    """

    def __init__(self, log_dir: str, keep_until: tuple[int | None, int] | None = None) -> None:
        self.log_dir = log_dir
        self.metrics_file_path = join_path(log_dir, METRICS_FILE)
        self.metrics: list[Row] = []
        self.hparams: dict[str, Any] = {}
        self._n_rows = 0
        make_dir(log_dir)
        is_there = exists(self.metrics_file_path)
        if is_there and keep_until is None:
            moved = move_aside(self.metrics_file_path)
            rank_zero_warn(
                f"{self.metrics_file_path} holds the metrics of an earlier run. They were moved to {moved}. "
                "Leave out `version` to get a directory for each run.",
            )
        spooled = is_remote(log_dir)
        self._table = _SpooledTable(self.metrics_file_path) if spooled else _Table(self.metrics_file_path)
        if is_there and keep_until is not None:
            self._n_rows = self._table.cut(*keep_until)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Add to the hyperparameters and write them all."""
        self.hparams.update(params)
        write_hparams(join_path(self.log_dir, HPARAMS_FILE), self.hparams)

    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Add one row; `save` writes it."""
        row: Row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = self._n_rows if step is None else step
        self._n_rows += 1
        self.metrics.append(row)

    def save(self) -> None:
        """Write the rows that are pending."""
        if self.metrics:
            self._table.append(self.metrics)
            self.metrics.clear()

    def settle(self) -> int:
        """Bring all rows to where `log_dir` is, and return their number."""
        self.save()
        self._table.settle()
        return self._n_rows

    def close(self) -> None:
        """Write the rows that are pending and close the file; more rows open it again."""
        self.save()
        self._table.close()

    def __getstate__(self) -> dict[str, Any]:
        # A copy must not write the same rows again.
        self.save()
        return self.__dict__.copy()


class _Table:
    """A local CSV file that grows by rows and, seldom, by columns."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._columns: list[str] = []
        self._file: io.FileIO | None = None
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")

    def append(self, rows: Sequence[Row]) -> None:
        """Write `rows` at the end of the file in one go; after a kill they are there or not, never cut in two."""
        file = self._file or self._open()
        names = set(self._columns).union(*rows)
        if len(names) > len(self._columns):
            file = self._widen(sorted(names))
        self._writer.writerows([row.get(column, "") for column in self._columns] for row in rows)
        self._write(file)

    def settle(self) -> None:
        """All rows are in the file already."""

    def cut(self, n_rows: int | None, step: int) -> int:
        """Drop all but the first `n_rows`, or those beyond `step`; whole, or not at all. Returns how many there are."""
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or ())
        kept = rows[:n_rows] if n_rows is not None else [row for row in rows if int(row["step"]) <= step]
        if len(kept) < len(rows):
            self._rewrite(columns, kept)
        return len(kept)

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.FileIO:
        if os.path.exists(self.path):
            # A copy of this logger, in this process or another, may have added columns.
            with open(self.path, newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), [])
        # Unbuffered: what is written lies with the kernel and survives a kill of the process.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # kept open from save to save
        return self._file

    def _write(self, file: io.FileIO) -> None:
        data = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        while data:
            data = data[file.write(data) :]

    def _widen(self, columns: list[str]) -> io.FileIO:
        if not self._columns:
            self._columns = columns
            self._writer.writerow(columns)
            return self._file or self._open()
        with open(self.path, newline="", encoding="utf-8") as old:
            self._rewrite(columns, csv.DictReader(old))
        return self._open()

    def _rewrite(self, columns: Sequence[str], rows: Iterable[Row]) -> None:
        self.close()
        temporary = f"{self.path}.tmp"
        with open(temporary, "w", newline="", encoding="utf-8") as new:
            writer = csv.DictWriter(new, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            new.flush()
            # order matters: the new file must be on disk before it takes the old one's name
            os.fsync(new.fileno())
        os.replace(temporary, self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __del__(self) -> None:
        self.close()


class _SpooledTable:
    """A CSV file behind a URL: most stores cannot append, so it grows in a local copy that is uploaded."""

    def __init__(self, url: str) -> None:
        self.url = url
        folder = tempfile.mkdtemp(prefix="fulgur-metrics-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._table = _Table(os.path.join(folder, METRICS_FILE))
        self._uploaded_at_s = -UPLOAD_INTERVAL_S
        if exists(url):
            fs, path = split_url(url)
            fs.get_file(path, self._table.path)

    def append(self, rows: Sequence[Row]) -> None:
        """Add `rows`; upload if the last upload is long ago."""
        self._table.append(rows)
        if time.monotonic() - self._uploaded_at_s >= UPLOAD_INTERVAL_S:
            self._upload()

    def settle(self) -> None:
        """Upload all rows."""
        if os.path.exists(self._table.path):
            self._upload()

    def cut(self, n_rows: int | None, step: int) -> int:
        """As of the local file; the next upload brings it to the store."""
        return self._table.cut(n_rows, step)

    def close(self) -> None:
        """Upload all rows."""
        self._table.close()
        if os.path.exists(self._table.path):
            self._upload()

    def _upload(self) -> None:
        fs, path = split_url(self.url)
        fs.put_file(self._table.path, path)
        self._uploaded_at_s = time.monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        self.close()
        return type(self), (self.url,)
