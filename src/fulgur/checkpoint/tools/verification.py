"""``verify``: whether files are whole."""

from __future__ import annotations

import os
import posixpath
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fulgur.checkpoint.location import is_remote, is_sharded, join, local_path, open_filesystem
from fulgur.checkpoint.tools.command import Command, Outcome, Table
from fulgur.checkpoint.tools.source import is_directory
from fulgur.checkpoint.verify import verify_checkpoint
from fulgur.checkpoint.write import checkpoint_exists

EXTENSION = ".ckpt"


def find_checkpoints(directory: str) -> list[str]:
    """Paths of the checkpoints in `directory` and below it, sorted."""
    if not is_remote(directory):
        return sorted(_find_local(local_path(directory)))
    filesystem, top = open_filesystem(directory)
    names = (posixpath.relpath(path, top) for path in filesystem.find(top))
    return sorted(join(directory, name) for name in names if name.endswith(EXTENSION))


def _find_local(directory: str) -> Iterator[str]:
    for top, directories, names in os.walk(directory):
        shards = [name for name in directories if is_sharded(os.path.join(top, name))]
        directories[:] = [name for name in directories if name not in shards]
        yield from (os.path.join(top, name) for name in (*shards, *names) if name.endswith(EXTENSION))


def _files_of(path: str) -> list[str]:
    if not checkpoint_exists(path):
        raise FileNotFoundError(f"There is no file or directory at {path!r}.")
    if not is_directory(path) or is_sharded(path):
        return [path]
    files = find_checkpoints(path)
    if not files:
        raise FileNotFoundError(f"There are no files *{EXTENSION} in {path!r} or below it.")
    return files


def _verify(path: str) -> dict[str, Any]:
    verdict = verify_checkpoint(path)
    found = {"path": path, "is_usable": verdict.is_usable, "verdict": verdict.kind, "reason": verdict.reason}
    return found | ({"global_step": verdict.seal.global_step} if verdict.seal is not None else {})


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE|DIR", nargs="+", help="files, or directories that are searched for *.ckpt; or URLs"
    )


def _run(arguments: Namespace) -> Outcome:
    results = [_verify(path) for given in arguments.files for path in _files_of(given)]
    counts = Counter("good" if result["is_usable"] else "bad" for result in results)
    rows = [(r["path"], r["verdict"], str(r.get("global_step", "")), f"it {r['reason']}") for r in results]
    table = Table("", ("file", "verdict", ">step", "reason"), rows)
    line = f"{counts['good']} of {len(results)} can be used."
    data = {"n_files": len(results), "n_bad": counts["bad"], "files": results}
    return Outcome(data, (table, line), exit_code=1 if counts["bad"] else 0)


COMMAND = Command("verify", "tell whether files are whole", _add_arguments, _run)
