"""From the Trainer's arguments to the parts of a run. Functions without state.

`read_arguments` runs, in this order: `name_positionals` (``Trainer("cpu")``), `apply_environment` (defaults from
``PL_TRAINER_*``), `translate_legacy` (arguments of 1.x), `build_arguments` (unknown names are errors) and
`check_arguments` (ranges and combinations; every default filled in). Then each ``resolve_`` function makes one part.
"""

from fulgur.resolve.arguments import Arguments, Settings, apply_environment, build_arguments, name_positionals
from fulgur.resolve.callbacks import merge_module_callbacks, order_callbacks, resolve_callbacks
from fulgur.resolve.check import check_arguments
from fulgur.resolve.legacy import LegacySettings, translate_legacy
from fulgur.resolve.parts import (
    apply_determinism,
    determinism,
    resolve_checkpoint_io,
    resolve_layer_sync,
    resolve_loggers,
    resolve_precision,
    resolve_profiler,
)
from fulgur.resolve.processes import Processes, resolve_processes, resolve_strategy
from fulgur.resolve.read import read_arguments

__all__ = [
    "Arguments",
    "LegacySettings",
    "Processes",
    "Settings",
    "apply_determinism",
    "apply_environment",
    "build_arguments",
    "check_arguments",
    "determinism",
    "merge_module_callbacks",
    "name_positionals",
    "order_callbacks",
    "read_arguments",
    "resolve_callbacks",
    "resolve_checkpoint_io",
    "resolve_layer_sync",
    "resolve_loggers",
    "resolve_precision",
    "resolve_processes",
    "resolve_profiler",
    "resolve_strategy",
    "translate_legacy",
]
