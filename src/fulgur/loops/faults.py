"""What a step can get wrong, and how that is said. Called only on the way to an error, or for a dict of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fulgur.errors import MisconfigurationException

_FORMS = "Return the loss as a scalar tensor, a dict with the loss under 'loss', or None to skip the batch."


def unusable_output(outputs: Any) -> Tensor:
    """The loss in a dict of outputs.

    Raises:
        MisconfigurationException: There is none, or `outputs` is nothing that could hold one.
    """
    if not isinstance(outputs, Mapping):
        raise MisconfigurationException(f"training_step returned {_described(outputs)}. {_FORMS}")
    loss = outputs.get("loss")
    if not isinstance(loss, Tensor):
        raise MisconfigurationException(
            f"training_step returned a dict with keys {list(outputs)} and {_described(loss)} under 'loss'. {_FORMS}"
            if "loss" in outputs
            else f"training_step returned a dict without 'loss'; its keys are {list(outputs)}. {_FORMS}"
        )
    return loss


def explain_backward(error: RuntimeError, loss: Tensor) -> Exception:
    """`error` of ``backward``, or a plainer one where the loss itself is at fault."""
    if loss.numel() != 1:
        return MisconfigurationException(
            f"The loss that training_step returned has shape {tuple(loss.shape)}; a gradient needs a scalar. "
            "Reduce it, for example with loss.mean()."
        )
    if not loss.requires_grad:
        return MisconfigurationException(
            "The loss that training_step returned has no gradient: it does not depend on a parameter that requires "
            "one. Look for .detach(), .item(), torch.no_grad() or torch.tensor(loss) on its way, or frozen parameters."
        )
    return error


def closure_not_run(optimizer_step: Any) -> Exception:
    """For an ``optimizer_step`` that left out the closure, and with it forward and backward."""
    return MisconfigurationException(
        f"{getattr(optimizer_step, '__qualname__', 'optimizer_step')} did not run its optimizer_closure, so that "
        "training_step and backward were never called. Pass it on: optimizer.step(closure=optimizer_closure)."
    )


def _described(value: Any) -> str:
    return "None" if value is None else f"{value!r:.80} of type {type(value).__name__}"
