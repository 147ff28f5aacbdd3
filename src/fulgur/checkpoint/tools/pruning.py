"""``prune``: delete old checkpoints of a directory."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.location import canonical, is_remote, is_sharded, join, list_files, local_path, modified_at
from fulgur.checkpoint.seal import describe
from fulgur.checkpoint.tools.command import Command, Outcome, Table
from fulgur.checkpoint.tools.show import format_size
from fulgur.checkpoint.tools.source import is_directory, open_file, size_of
from fulgur.checkpoint.tools.verification import EXTENSION
from fulgur.checkpoint.verify import Verdict, verify_checkpoint
from fulgur.checkpoint.write import remove_checkpoint
from fulgur.errors import CheckpointError

Mode = Literal["min", "max"]
_LAST = re.compile(rf"last(-v\d+)?{re.escape(EXTENSION)}")


@dataclass(slots=True)
class Entry:
    """A checkpoint, and what is to become of it.

    Attributes:
        path: Where it is.
        size_bytes: Its size.
        modified: When it was written, in seconds since 1970.
        kept_for: Why it stays; empty if it goes.
        is_damaged: Whether it has been found damaged.
        is_full: Whether training can resume from it.
        rank: Steps, batches, and when it was written. Larger is newer; -1 is unknown.
        crc32: Checksum that its seal tells; None without one.
    """

    path: str
    size_bytes: int
    modified: float
    kept_for: str = ""
    is_damaged: bool = False
    is_full: bool = False
    rank: tuple[int, int, float] = (-1, -1, 0.0)
    crc32: int | None = None

    def set_aside(self, verdict: Verdict) -> None:
        """Keep it, for it is damaged."""
        self.is_damaged = True
        self.kept_for = f"{verdict.kind}, to be looked at: it {verdict.reason}"

    def is_twin(self, other: Entry) -> bool:
        """Whether both hold the same moment: a copy, or the ``last.ckpt`` that was saved beside another file."""
        is_same_moment = self.rank[:2] == other.rank[:2] and self.rank[0] >= 0 and self.is_full == other.is_full
        is_copy = self.crc32 is not None and (self.crc32, self.size_bytes) == (other.crc32, other.size_bytes)
        return is_same_moment and (is_copy or any(_LAST.fullmatch(_name(entry.path)) for entry in (self, other)))


def plan(directory: str, *, keep_last: int, best: tuple[str, Mode] | None = None, trust: bool = False) -> list[Entry]:
    """What to keep and what to delete among the files ``*.ckpt`` of `directory`, the newest first.

    The newest is what ``ckpt_path="auto"`` takes it to be: the one with the most steps, then batches, then the latest.
    Reads as many of them as it takes to find `keep_last` that are whole, and one among them from which training can
    resume. A ``last.ckpt`` beside the file of the same moment counts with it as one. Damaged ones do not count, and
    stay: whoever wants them gone has to look at them first. So do links, and what they lead to.

    Args:
        directory: A path or a URL. Directories in it are left alone, unless they are sharded checkpoints.
        keep_last: How many whole files to keep. >= 1.
        best: Also keep the best file by this metric, of which ``"min"`` or ``"max"`` is best.
        trust: Open files that hold more than plain data, for `best`.

    Raises:
        ValueError: `keep_last` is less than 1.
        CheckpointError: No file is whole, or no file tells how `best` ranks them.
    """
    if keep_last < 1:
        raise ValueError(_too_few(keep_last))
    entries, links = _list_entries(directory)
    whole = _keep_newest(entries, keep_last)
    if not whole:
        raise CheckpointError(
            f"None of the {len(entries)} files *{EXTENSION} in {directory!r} is whole: nothing is deleted."
            if entries
            else f"There are no files *{EXTENSION} in {directory!r}."
        )
    if best is not None:
        _keep_best(entries, directory, *best, trust=trust)
    for link, target in links.items():
        for entry in entries:
            if canonical(entry.path) == target:
                entry.kept_for = _joined(entry.kept_for, f"{_name(link)} leads to it")
    return entries


def _list_entries(directory: str) -> tuple[list[Entry], dict[str, str]]:
    """The files of `directory`, the newest first, and where its links lead."""
    if not is_directory(directory):
        raise FileNotFoundError(f"There is no directory {directory!r}.")
    paths = [join(directory, name) for name in list_files(directory) if name.endswith(EXTENSION)]
    links = {path: canonical(path) for path in paths if not is_remote(path) and os.path.islink(local_path(path))}
    files = [path for path in paths if path not in links and (not is_directory(path) or is_sharded(path))]
    return sorted((_look_at(path) for path in files), key=lambda entry: entry.rank, reverse=True), links


def _look_at(path: str) -> Entry:
    """What can be told from the ends of a file."""
    verdict = verify_checkpoint(path, reads_all=False)
    entry = Entry(path, size_of(path), modified_at(path))
    if not verdict.is_usable:
        entry.set_aside(verdict)
        return entry
    if (seal := verdict.seal) is not None:
        steps, batches, entry.is_full, entry.crc32 = seal.global_step, seal.batches_total, seal.is_full, seal.crc32
    else:
        steps, batches, entry.is_full = _read_counters(path)
    entry.rank = (-1 if steps is None else steps, -1 if batches is None else batches, entry.modified)
    return entry


def _read_counters(path: str) -> tuple[int | None, int | None, bool]:
    """What a seal would say of a file that has none; nothing for one that wants more than plain data."""
    try:
        content = describe(load_checkpoint(path, map_location="meta", mmap=True))
    except CheckpointError:
        return None, None, False
    return content.get("global_step"), content.get("batches_total"), content["is_full"]


def _keep_newest(entries: Sequence[Entry], keep_last: int) -> int:
    """Mark those to keep, setting damaged ones aside. Returns how many are whole, a file and its twin being one."""
    kept: list[Entry] = []
    has_full = False
    for entry in entries:
        twin = next(filter(entry.is_twin, kept), None)
        is_wanted = len(kept) < keep_last or twin is not None or (entry.is_full and not has_full)
        if entry.is_damaged or not is_wanted:
            continue
        verdict = verify_checkpoint(entry.path)
        if not verdict.is_usable:
            entry.set_aside(verdict)
        elif twin is not None:
            entry.kept_for = f"of the same moment as {_name(twin.path)}"
        else:
            is_resumable = entry.is_full and not has_full
            entry.kept_for = "the newest to resume from" if is_resumable else f"one of the {keep_last} newest"
            kept.append(entry)
            has_full |= entry.is_full
    return len(kept)


def _keep_best(entries: Sequence[Entry], directory: str, metric: str, mode: Mode, *, trust: bool) -> None:
    scores = _find_scores(entries, directory, metric, mode, trust=trust)
    choose = min if mode == "min" else max
    name = choose(scores, key=scores.__getitem__)
    for entry in entries:
        if _name(entry.path) == name:
            entry.kept_for = _joined(entry.kept_for, f"best {metric}: {scores[name]:.6g}")


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _find_scores(entries: Sequence[Entry], directory: str, metric: str, mode: Mode, *, trust: bool) -> dict[str, float]:
    """Score by file name, as the newest whole file that ranks by `metric` tells it."""
    present, known = {_name(entry.path) for entry in entries}, set()
    for entry in entries:
        if not entry.kept_for and not (verdict := verify_checkpoint(entry.path)).is_usable:
            entry.set_aside(verdict)
        if entry.is_damaged:
            continue
        for key, state in _rankings(open_file(entry.path, trust=trust, is_verified=True).content):
            known.add(str(state["monitor"]))
            if state["monitor"] != metric:
                continue
            _require_mode(key, metric, mode, entry.path)
            ranked = {_name(path): float(score) for path, score in state["best_k_models"].items()}
            found = {name: score for name, score in ranked.items() if name in present}
            if found:
                return found
    raise CheckpointError(
        f"No file in {directory!r} tells which one is best by {metric!r}: no ModelCheckpoint(monitor={metric!r}) has "
        f"ranked them. Ranked there: {', '.join(sorted(known)) or 'nothing'}."
    )


def _rankings(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, state in (content.get("callbacks") or {}).items():
        if isinstance(state, Mapping) and state.get("best_k_models") and state.get("monitor"):
            yield str(key), state


def _require_mode(key: str, metric: str, mode: Mode, path: str) -> None:
    other = "max" if mode == "min" else "min"
    if f"'mode': '{other}'" in key:
        raise CheckpointError(
            f"--keep-best {metric}:{mode} contradicts {path!r}, whose ModelCheckpoint has mode={other!r}. Use "
            f"{metric}:{other}."
        )


def _name(path: str) -> str:
    """The last part of a path; files may have moved to another directory since they were ranked."""
    return path.replace("\\", "/").rpartition("/")[2]


# --------------------------------------------------------------------------------------------------------- command


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="directory with files *.ckpt; a path or a URL")
    parser.add_argument(
        "--keep-last", type=_count, required=True, metavar="N", help="keep the N newest that are whole; 1 or more"
    )
    parser.add_argument(
        "--keep-best", type=_metric, metavar="METRIC:min|max", help="also keep the best, as a ModelCheckpoint ranked it"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no number of files. Use 1 or more.")
    if int(text) < 1:
        raise ArgumentTypeError(_too_few(int(text)))
    return int(text)


def _too_few(keep_last: int) -> str:
    return (
        f"{keep_last} would leave nothing to resume from. Use 1 or more; to be rid of all files, delete the directory."
    )


def _metric(text: str) -> tuple[str, Mode]:
    metric, _, mode = text.rpartition(":")
    if not metric or mode not in ("min", "max"):
        raise ArgumentTypeError(f"{text!r} is no metric and mode. Use METRIC:min or METRIC:max, as in val_loss:min.")
    return metric, "min" if mode == "min" else "max"


def _run(arguments: Namespace) -> Outcome:
    entries = plan(arguments.directory, keep_last=arguments.keep_last, best=arguments.keep_best, trust=arguments.trust)
    gone = [entry for entry in entries if not entry.kept_for]
    if not arguments.dry_run:
        for entry in reversed(gone):  # the oldest first, if it should break off
            remove_checkpoint(entry.path)
    freed = sum(entry.size_bytes for entry in gone)
    data = {
        "directory": arguments.directory,
        "dry_run": arguments.dry_run,
        "freed_bytes": freed,
        "files": [_data_of(entry) for entry in entries],
    }
    verb = "would be deleted" if arguments.dry_run else "deleted"
    line = f"{len(gone)} of {len(entries)} files {verb}, {format_size(freed)}."
    return Outcome(data, (_table(entries, "would go" if arguments.dry_run else "deleted"), line))


def _data_of(entry: Entry) -> dict[str, Any]:
    return {
        "path": entry.path,
        "size_bytes": entry.size_bytes,
        "modified": entry.modified,
        "action": "keep" if entry.kept_for else "delete",
        "reason": entry.kept_for,
    }


def _table(entries: Sequence[Entry], gone: str) -> Table:
    rows = [
        (
            _name(entry.path),
            format_size(entry.size_bytes),
            datetime.fromtimestamp(entry.modified).isoformat(" ", "seconds"),
            "kept" if entry.kept_for else gone,
            entry.kept_for,
        )
        for entry in entries
    ]
    return Table("", ("file", ">size", "written", "", "because"), rows)


COMMAND = Command("prune", "delete old checkpoints of a directory", _add_arguments, _run)
