"""``consolidate``: one file from a directory of shards."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fulgur.checkpoint.location import is_sharded
from fulgur.checkpoint.tools.command import Command, Outcome
from fulgur.checkpoint.tools.conversion import metadata_of
from fulgur.checkpoint.tools.safetensors_file import SAFETENSORS
from fulgur.checkpoint.tools.show import format_size
from fulgur.checkpoint.tools.source import is_directory, open_file, size_of, write_file
from fulgur.errors import CheckpointError


def consolidate(directory: str, output: str, *, trust: bool = False) -> int:
    """Write the sharded checkpoint in `directory` as one file, from which everything can go on as from the shards.

    All of it is in the host's memory meanwhile.

    Args:
        directory: A local path.
        output: Path or URL; a name that ends in ``.safetensors`` gets the weights only.
        trust: Run what ``meta.pt`` says, where it holds more than plain data.

    Returns:
        The number of tensors in the weights.

    Raises:
        CheckpointError: `directory` is no sharded checkpoint, or is damaged, or the file could not be written.
    """
    if not is_sharded(directory):
        what = "a directory without a meta.pt" if is_directory(directory) else "no directory"
        raise CheckpointError(f"{directory!r} is no sharded checkpoint but {what}. Name the directory itself.")
    file = open_file(directory, trust=trust)
    write_file(file.content, output, metadata_of(file.content)[0] if output.endswith(SAFETENSORS) else {})
    return len(file.content.get("state_dict", {}))


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a sharded checkpoint")
    parser.add_argument("output", metavar="FILE", help="where to write; a path or a URL")


def _run(arguments: Namespace) -> Outcome:
    n_tensors = consolidate(arguments.directory, arguments.output, trust=arguments.trust)
    size = size_of(arguments.output)
    data = {"directory": arguments.directory, "output": arguments.output, "tensors": n_tensors, "size_bytes": size}
    return Outcome(data, (f"{arguments.output}: {n_tensors} weights, {format_size(size)} in all.",))


COMMAND = Command("consolidate", "make one file of a sharded checkpoint", _add_arguments, _run)
