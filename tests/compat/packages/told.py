"""What the scripts of this folder have in common: how they are called, and how they tell their results.

``script.py train FOLDER`` trains, leaves its files in the folder, and prints the results. ``script.py load FOLDER``
reads what another run left there, and prints what the model that it read says.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def tell(train: Callable[[Path], dict[str, Any]], load: Callable[[Path], dict[str, Any]]) -> None:
    """Do what the command line asks for. The last line that is printed is the results, in JSON."""
    import torch
    import torch._dynamo  # a second or two, which some import before, and some with the first optimizer

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    task, folder = sys.argv[1], Path(sys.argv[2])
    start = time.perf_counter()
    results = {"train": train, "load": load}[task](folder)
    results["seconds"] = time.perf_counter() - start
    print(json.dumps(results, default=float))


def numbers(values: Any) -> list[float]:
    """A flat list of the numbers in a tensor or an array."""
    import numpy

    return [float(value) for value in numpy.asarray(values, dtype=float).ravel()]
