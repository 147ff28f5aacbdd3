"""Where a module or datamodule keeps a value that is being looked for, such as its learning rate."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Attribute:
    """A value under one name, in all the places that have it.

    Attributes:
        name: Its name.
        value: What the first of them has.
        setters: One for each place.
    """

    name: str
    value: Any
    setters: list[Callable[[Any], None]]

    def set(self, value: Any) -> None:
        """Give it to all places."""
        for setter in self.setters:
            setter(value)


def find_attribute(names: Sequence[str], owners: Sequence[Any]) -> Attribute | None:
    """The first of `names` that any of `owners` has, as attribute or hyperparameter; None where none has any.

    Args:
        names: Names in order of preference.
        owners: Module and datamodule; None among them is left out.
    """
    for name in names:
        found = [place for owner in owners if owner is not None for place in _places(owner, name)]
        if found:
            return Attribute(name, found[0][0], [setter for _, setter in found])
    return None


def _places(owner: Any, name: str) -> list[tuple[Any, Callable[[Any], None]]]:
    places: list[tuple[Any, Callable[[Any], None]]] = []
    if hasattr(owner, name):
        places.append((getattr(owner, name), lambda value: setattr(owner, name, value)))
    hparams = getattr(owner, "hparams", None)
    if isinstance(hparams, MutableMapping) and name in hparams:
        places.append((hparams[name], lambda value: hparams.__setitem__(name, value)))
    elif hparams is not None and not isinstance(hparams, MutableMapping) and hasattr(hparams, name):
        places.append((getattr(hparams, name), lambda value: setattr(hparams, name, value)))
    return places
