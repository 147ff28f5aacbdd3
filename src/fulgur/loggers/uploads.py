"""Which files of checkpoint callbacks a logger uploads, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fulgur.errors import MisconfigurationException

LogModel = Literal["all"] | bool


@dataclass(frozen=True)
class SavedFile:
    """A checkpoint that lies on this machine: a file, or the directory of a sharded one.

    Attributes:
        path: Where.
        score: Of the metric that the callback monitors; None where it monitors none.
        aliases: ``"latest"``, and ``"best"`` for the callback's best file.
    """

    path: str
    score: float | None
    aliases: list[str]


@dataclass
class Uploads:
    """The checkpoints of a run that a logger has not uploaded yet.

    Args:
        log_model: True uploads what is there when a run has ended well, ``"all"`` each file as it is saved, False
            nothing. A callback that keeps every file (``save_top_k=-1``) is uploaded as it saves with True too.

    Raises:
        MisconfigurationException: `log_model` is something else.
    """

    log_model: LogModel
    _callbacks: list[Any] = field(default_factory=list)
    _uploaded: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.log_model not in (True, False, "all"):
            raise MisconfigurationException(
                f"log_model={self.log_model!r}: use True (at the end of the run), 'all' (each file as it is saved) or "
                "False."
            )

    def after_save(self, callback: Any) -> Iterator[tuple[Any, SavedFile]]:
        """After `callback` has saved: what is to be uploaded now, with the callback, oldest first."""
        if not self.log_model:
            return
        if self.log_model == "all" or getattr(callback, "save_top_k", None) == -1:
            yield from self._new_of(callback)
        elif not any(known is callback for known in self._callbacks):
            self._callbacks.append(callback)

    def at_end(self) -> Iterator[tuple[Any, SavedFile]]:
        """After a run that ended well: what is left to be uploaded."""
        for callback in self._callbacks:
            yield from self._new_of(callback)

    def _new_of(self, callback: Any) -> Iterator[tuple[Any, SavedFile]]:
        for changed, file in find_saved(callback):
            if self._uploaded.get(file.path) != changed:
                yield callback, file
                self._uploaded[file.path] = changed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_callbacks": [], "_uploaded": {}}


def find_saved(callback: Any) -> list[tuple[int, SavedFile]]:
    """The files of a checkpoint callback that are there, each with the time of its last change (ns), oldest first."""
    scores: dict[str, Any] = dict(getattr(callback, "best_k_models", {}))
    best = getattr(callback, "best_model_path", "")
    for path in (getattr(callback, "last_model_path", ""), getattr(callback, "ckpt_path", "")):
        if path and os.path.realpath(path) not in map(os.path.realpath, scores):  # a link to one of the best
            scores.setdefault(path, getattr(callback, "current_score", None))
    if best:
        scores.setdefault(best, getattr(callback, "best_model_score", None))
    found = [
        (os.stat(path).st_mtime_ns, SavedFile(path, _number(score), ["latest", "best"] if path == best else ["latest"]))
        for path, score in scores.items()
        if os.path.exists(path)
    ]
    return sorted(found, key=lambda item: item[0])


def describe_callback(callback: Any, file: SavedFile) -> dict[str, Any]:
    """What is kept beside an uploaded checkpoint: its score and name, and how it was chosen."""
    names = ("monitor", "mode", "save_last", "save_top_k", "save_weights_only", "_every_n_train_steps")
    settings = {name.lstrip("_"): getattr(callback, name) for name in names if hasattr(callback, name)}
    return {
        "score": file.score,
        "original_filename": os.path.basename(file.path),
        type(callback).__name__: settings,
    }


def _number(score: Any) -> float | None:
    return None if score is None else float(score)
