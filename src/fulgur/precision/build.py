"""From the value of the `precision` argument to a `Precision`."""

from __future__ import annotations

from typing import Literal

from fulgur.errors import MisconfigurationException, nearest_name
from fulgur.precision.full import FullPrecision
from fulgur.precision.precision import Precision

PrecisionName = Literal["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]

_NAMES: tuple[PrecisionName, ...] = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")
_MEANT: dict[str, PrecisionName] = {
    **{name: name for name in _NAMES},
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32": "32-true",
    "64": "64-true",
}
_NOT_HERE = ("transformer-engine", "transformer-engine-float16")


def build_precision(name: str | int | None, device_type: str) -> Precision:
    """The precision with this name.

    Args:
        name: ``"32-true"``, ``"64-true"``, ``"16-true"``, ``"bf16-true"``, ``"16-mixed"``, ``"bf16-mixed"``, or one
            of the short forms 64, 32, 16 and ``"bf16"``, the last two of which are mixed. None is ``"32-true"``.
        device_type: Device type that the run uses: ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Raises:
        ValueError: The name is unknown.
        MisconfigurationException: The device cannot do it.
    """
    full_name = _full_name(name)
    if full_name == "32-true":
        return FullPrecision()
    if full_name == "64-true":
        if device_type == "mps":
            raise MisconfigurationException(
                f"precision={name!r} needs float64, which the mps device lacks. Use precision='32-true', "
                "or accelerator='cpu'."
            )
        from fulgur.precision.double import DoublePrecision

        return DoublePrecision()
    if full_name == "16-true" or full_name == "bf16-true":
        from fulgur.precision.half import HalfPrecision

        return HalfPrecision(full_name)
    from fulgur.precision.mixed import MixedPrecision

    return MixedPrecision(full_name, device_type)


def _full_name(name: str | int | None) -> PrecisionName:
    if name is None:
        return "32-true"
    if isinstance(name, (str, int)) and not isinstance(name, bool):
        if str(name) in _MEANT:
            return _MEANT[str(name)]
        if name in _NOT_HERE:
            raise MisconfigurationException(
                f"precision={name!r} needs Transformer Engine, which fulgur does not drive. Use precision='bf16-mixed'."
            )
    hint = nearest_name(str(name), _NAMES)
    raise ValueError(
        f"precision={name!r} is unknown.{hint} Use one of {', '.join(map(repr, _NAMES))}, or 64, 32, 16, 'bf16'."
    )
