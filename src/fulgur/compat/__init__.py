"""Programs written for Lightning, run on fulgur as they are.

`install` makes ``import lightning``, ``lightning.pytorch``, ``pytorch_lightning`` and ``lightning_fabric`` give
fulgur's own objects. ``python -m fulgur.compat script.py`` runs a program that way without a change to it.
"""

from __future__ import annotations

__all__ = ["DEFAULT_VERSION", "VARIABLE", "install", "installed_version", "uninstall"]

DEFAULT_VERSION = "2.6.0"
"""What ``lightning.__version__`` says unless told otherwise."""

VARIABLE = "FULGUR_COMPAT"
"""Environment variable that holds a version: ``import fulgur`` then installs it. Children inherit it."""


def install(version: str | None = None) -> None:
    """Have the old import paths give fulgur's objects, whether or not the real packages are installed.

    Modules of the real packages that are loaded already are put aside. Call it before the imports that it is for:
    names that a module has taken from the real packages stay what they are. Costs next to nothing: a module or name is
    made when it is imported. Calling it again changes the version only.

    Args:
        version: What ``lightning.__version__`` and the package metadata say, such as "1.9.5" for programs that
            expect it. None leaves it as it is, "2.6.0" at first.

    Example:
        >>> import fulgur.compat
        >>> fulgur.compat.install()
        >>> import lightning.pytorch as pl
        >>> pl.Trainer is fulgur.Trainer
        True
        >>> fulgur.compat.uninstall()
    """
    from fulgur.compat.finder import FINDER

    FINDER.install(version or installed_version() or DEFAULT_VERSION)


def uninstall() -> None:
    """Take `install` back: the real packages, if any, can be imported again. Does nothing if it was not called."""
    from fulgur.compat.finder import FINDER

    FINDER.uninstall()


def installed_version() -> str | None:
    """The version that `install` pretends to, or None where it is not in force."""
    import sys

    finder = sys.modules.get("fulgur.compat.finder")
    return finder.FINDER.version if finder is not None else None
