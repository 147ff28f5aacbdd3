"""Makes the checkpoints of Lightning that the tests of this folder load. Run by hand, never by a test.

With the environment of the benchmarks, from the root of the repository::

    make .venv-bench/.installed
    .venv-bench/bin/python tests/compat/make_lightning_files.py

Another version, in an environment of its own::

    python3 -m venv /tmp/pl && /tmp/pl/bin/pip install torch==2.13.0 pytorch-lightning==1.9.5 "setuptools<80"
    /tmp/pl/bin/python tests/compat/make_lightning_files.py

Version 1.5.10 needs ``numpy<2``, ``torchmetrics==0.11.4``, ``pyDeprecate``, ``future`` and tensorboard besides,
installed with ``--no-deps``; and, because torch has renamed a class since, this line before Lightning is imported::

    torch.optim.lr_scheduler._LRScheduler = torch.optim.lr_scheduler.LRScheduler

The versions of before 1.5 want a torch and a Python of their years. With Python 3.8, and ``--no-deps`` for Lightning::

    pip install torch==1.8.1 "numpy<1.24" PyYAML future tqdm "fsspec==2021.11.1" "tensorboard==2.4.1" "setuptools<60" \
        "protobuf<3.20" packaging "torchmetrics==0.5.1" "pyDeprecate==0.3.1" aiohttp
    pip install --no-deps pytorch-lightning==1.0.8  # likewise 1.2.10 and 1.4.9

Of these only the plain run is made: what the others vary has another form in those versions.

Files come to lie in ``data/<version>``. Beside them ``expected.pt`` holds, as plain tensors and numbers, what Lightning
itself has at the end of each run and what it restores from each file.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import workload

try:
    import lightning.pytorch as pl
except ModuleNotFoundError:
    import pytorch_lightning as pl

# Callback states hold the directory; it must not tell on which machine the files were made.
_OWN = Path(tempfile.gettempdir()) / "run"


def main() -> None:
    """Train every run to its end, then resume from each of its files."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    target = Path(__file__).parent / "data" / pl.__version__
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    expected: dict[str, Any] = {"version": pl.__version__, "ends": {}, "files": {}}
    for run in ("automatic",) if workload.is_before_1_5(pl) else workload.RUNS:
        shutil.rmtree(_OWN, ignore_errors=True)
        _OWN.mkdir()
        expected["ends"][run] = workload.train_and_save(pl, run, _OWN)
        for path in sorted(_OWN.glob("*.ckpt")):
            shutil.copy(path, target)
            if path.stem != "weights":
                expected["files"][path.stem] = workload.resume(pl, run, path, _OWN / run)
    torch.save(expected, target / "expected.pt")


if __name__ == "__main__":
    main()
