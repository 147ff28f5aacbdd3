"""Imports of the old packages: a finder that answers for them, and modules made from the table in `names.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fulgur.compat.names import ROOTS, TABLE, canonical, explain_missing, homes_in, is_module, submodules_of


class _Finder:
    """Answers for every import below `ROOTS`, before anything else is asked.

    Attributes:
        version: What the packages say they are; None while not installed.
        aside: Modules of the real packages that were loaded when it was installed.
    """

    def __init__(self) -> None:
        self.version: str | None = None
        self.aside: dict[str, ModuleType] = {}

    def install(self, version: str) -> None:
        from fulgur.compat import channel, children

        self.version = version
        if self in sys.meta_path:
            return
        self.aside = {name: sys.modules.pop(name) for name in _loaded()}
        sys.meta_path.insert(0, self)
        channel.connect()
        children.follow()

    def uninstall(self) -> None:
        if self not in sys.meta_path:
            return
        from fulgur.compat import channel, children

        sys.meta_path.remove(self)
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(self.aside)
        self.aside, self.version = {}, None
        channel.disconnect()
        children.unfollow()

    # ------------------------------------------------------------------------------- what the import system calls

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ROOTS:
            return None
        if not is_module(fullname):
            parent, _, name = fullname.rpartition(".")
            # Without a `name` in the error, `from parent import name` shows this text rather than Python's own.
            raise ModuleNotFoundError(explain_missing(parent, name))
        # `Loader` is a class to inherit from; Python asks for its methods only.
        return ModuleSpec(fullname, self, origin="fulgur.compat", is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from fulgur.compat import children

        children.follow()  # what this module's names import loads multiprocessing
        name = module.__name__
        module.__doc__ = f"The names of {name!r}, which are fulgur's."
        module.__dict__.update(
            __getattr__=_lookup(module),
            __dir__=lambda: sorted({*vars(module), *homes_in(name), *submodules_of(name)}),
            __all__=[public for public in homes_in(name) if not public.startswith("_")],
        )

    def get_code(self, fullname: str) -> Any:
        """For ``python -m``: a module of names has nothing to run."""
        return compile("", f"<{fullname}>", "exec")

    def find_distributions(self, context: Any = None) -> Iterator[Any]:
        """What ``importlib.metadata.version("lightning")`` asks."""
        from fulgur.compat.distribution import distributions

        assert self.version is not None
        return distributions(self.version, getattr(context, "name", None))

    def invalidate_caches(self) -> None:
        """Nothing is cached."""


FINDER = _Finder()


def _loaded() -> list[str]:
    """Loaded modules of the old packages, whoever they are of."""
    return [name for name in sys.modules if name.partition(".")[0] in ROOTS]


def _lookup(module: ModuleType) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module: imports a name when it is first used, and keeps it."""
    path = module.__name__

    def find(name: str) -> Any:
        home = homes_in(path).get(name)
        if name == "__version__" and home is not None:
            return FINDER.version  # may change
        if home is not None:
            value = getattr(import_module(home[0]), home[1])
        elif f"{canonical(path)}.{name}" in TABLE:
            value = import_module(f"{path}.{name}")
        else:
            raise AttributeError(explain_missing(path, name), name=name, obj=module)
        setattr(module, name, value)
        return value

    return find
