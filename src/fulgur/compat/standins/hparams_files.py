"""Hyperparameters in files of their own."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from typing import Any

from fulgur.hparams import AttributeDict, read_hparams_file
from fulgur.loggers.hparams import to_dict, to_plain


class ModelIO:
    """Base class of modules in the first years. Nothing is left of it."""


def load_hparams_from_yaml(config_yaml: str, use_omegaconf: bool = True) -> dict[str, Any]:
    """Hyperparameters of a ``.yaml`` file; {} where there is none.

    Args:
        config_yaml: The file.
        use_omegaconf: Without effect.
    """
    return read_hparams_file(config_yaml) if os.path.exists(config_yaml) else {}


def save_hparams_to_yaml(config_yaml: str, hparams: dict[str, Any] | Namespace, use_omegaconf: bool = True) -> None:
    """Write hyperparameters into a ``.yaml`` file, in plain form.

    Raises:
        RuntimeError: The folder is not there.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(config_yaml))):
        raise RuntimeError(f"There is no folder for {config_yaml!r}. Create it first.")
    import yaml

    with open(config_yaml, "w") as file:
        yaml.safe_dump(to_plain(to_dict(hparams)), file)


def load_hparams_from_tags_csv(tags_csv: str) -> dict[str, Any]:
    """Hyperparameters of a ``.csv`` file with the columns key and value; {} where there is none."""
    if not os.path.exists(tags_csv):
        return {}
    with open(tags_csv, newline="") as file:
        return {row["key"]: convert(row["value"]) for row in csv.DictReader(file)}


def save_hparams_to_tags_csv(tags_csv: str, hparams: dict[str, Any] | Namespace) -> None:
    """Write hyperparameters into a ``.csv`` file with the columns key and value.

    Raises:
        RuntimeError: The folder is not there.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(tags_csv))):
        raise RuntimeError(f"There is no folder for {tags_csv!r}. Create it first.")
    with open(tags_csv, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "value"])
        writer.writerows(to_dict(hparams).items())


def update_hparams(hparams: dict[str, Any], updates: dict[str, Any]) -> None:
    """Overwrite `hparams` with `updates`, dict by dict, in place."""
    for key, value in updates.items():
        if isinstance(value, dict) and isinstance(hparams.get(key), dict):
            update_hparams(hparams[key], value)
        else:
            hparams[key] = AttributeDict(value) if isinstance(value, AttributeDict) else value


def convert(val: str) -> Any:
    """The Python literal in a text, or the text."""
    import ast

    try:
        return ast.literal_eval(val)
    except (ValueError, SyntaxError):
        return val
