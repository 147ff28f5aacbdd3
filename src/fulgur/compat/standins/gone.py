"""Names of 0.9 and 1.0 whose meaning is lost. A program can import them; using them says what to write today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fulgur.errors import MisconfigurationException


class Result:
    """What a step returned in 0.9. Cannot be made.

    Raises:
        MisconfigurationException: Always; the text names what to write today.
    """

    def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise MisconfigurationException(
            f"{cls.__name__} is of 0.9. Return the loss from training_step, and call self.log(name, value) where "
            f"result.log(name, value) was called; checkpoint_on and early_stop_on are today's "
            "ModelCheckpoint(monitor=...) and EarlyStopping(monitor=...)."
        )


class TrainResult(Result):
    """What `training_step` returned in 0.9. Cannot be made."""


class EvalResult(Result):
    """What `validation_step` and `test_step` returned in 0.9. Cannot be made."""


def auto_move_data(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of 1.x: moves the arguments of a module's method to the module's device."""
    import functools

    from fulgur.data.transfer import move_to_device

    @functools.wraps(function)
    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *move_to_device(args, self.device), **move_to_device(kwargs, self.device))

    return moved
