"""Generators that loaders, samplers and datasets hold as attributes: finding them, their states, seeding them."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def find_generators(loader: Any) -> list[Any]:
    """Generators that the loader draws from in this process, besides the global ones; each once, in fixed order."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found: dict[int, Any] = {}
    for holder in holders:
        for generator in held_generators(holder):
            found[id(generator)] = generator
    if getattr(loader, "num_workers", 0) == 0:
        for generator in held_generators(getattr(loader, "dataset", None)):
            found[id(generator)] = generator
    return list(found.values())


def held_generators(holder: Any) -> list[Any]:
    """Generators among the attributes of an object."""
    if holder is None:
        return []
    numpy = sys.modules.get("numpy")
    kinds: tuple[Any, ...] = (torch.Generator, random.Random)
    if numpy is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
    try:
        values = vars(holder).values()
    except TypeError:
        return []
    return [value for value in values if isinstance(value, kinds)]


def get_generator(generator: Any) -> Any:
    from fulgur.checkpoint.plain import to_plain

    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return to_plain(generator.bit_generator.state, where="state of a generator")
    return to_plain(generator.get_state(legacy=False), where="state of a generator")


def set_generator(generator: Any, state: Any) -> None:
    from fulgur.checkpoint.plain import from_plain

    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = from_plain(state)
    else:
        generator.set_state(from_plain(state))


def seed_generator(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed & 0xFFFFFFFF)
