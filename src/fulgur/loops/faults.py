"""What a step can get wrong, and how that is said. Called only on the way to an error, or for a dict of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.loops.earlier import log_returned
from fulgur.metrics import MetricLog
from fulgur.rank import rank_zero_warn

_FORMS = "Return the loss as a scalar tensor, a dict with the loss under 'loss', or None to skip the batch."


def unusable_output(outputs: Any, metrics: MetricLog) -> Tensor:
    """The loss in a dict of outputs; what 1.0 returned beside it to be logged goes to `metrics`.

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
    if "log" in outputs or "progress_bar" in outputs:
        log_returned(metrics, outputs)
    return loss


def explain_backward(error: Exception, loss: Any, source: str = "that training_step returned") -> None:
    """Raise a plainer error than the one of ``backward`` where the loss itself is at fault.

    Args:
        error: What ``backward`` raised.
        loss: What it was called for.
        source: Where the loss came from, for the message.

    Raises:
        MisconfigurationException: `loss` is no scalar tensor with a gradient.
    """
    if not isinstance(loss, Tensor):
        raise MisconfigurationException(
            f"The loss {source} is {_described(loss)}; a gradient needs a scalar tensor."
        ) from error
    if loss.numel() != 1:
        raise MisconfigurationException(
            f"The loss {source} has shape {tuple(loss.shape)}; a gradient needs a scalar. "
            "Reduce it, for example with loss.mean()."
        ) from error
    if not loss.requires_grad:
        raise MisconfigurationException(
            f"The loss {source} has no gradient: it does not depend on a parameter that requires "
            "one. Look for .detach(), .item(), torch.no_grad() or torch.tensor(loss) on its way, or frozen parameters."
        ) from error


def unusable_in_manual(outputs: Any) -> Exception:
    """For what a `training_step` of manual optimization cannot return."""
    return MisconfigurationException(
        f"training_step returned {type(outputs).__name__} {outputs!r:.80}. In manual optimization return a tensor, a "
        "dict or None."
    )


def warn_of_no_loss(n_batches: int) -> None:
    """For a first epoch without one loss: mostly a forgotten ``return``. Says nothing where there was no batch."""
    if n_batches:
        rank_zero_warn(
            f"training_step returned None for all {n_batches} batches of the epoch, so nothing was trained. "
            "Return the loss.",
            PossibleUserWarning,
        )


def shorter_than_its_length(n_batches: int, length: float) -> Exception:
    """For a training loader on several ranks that ended within an accumulation window."""
    return MisconfigurationException(
        f"The training loader gave {n_batches} batches on this rank, and its length promised {length}: the ranks did "
        "not know that the last of them ends an accumulation window, and have not reduced its gradients. Correct "
        "__len__ of the sampler, or set limit_train_batches to the number of batches that there are."
    )


def no_batch(epoch: int, n_seen: int) -> Exception:
    """For a training loader that ended at once.

    Args:
        epoch: Index of the epoch that got no batch.
        n_seen: Batches of the epochs before it.
    """
    if n_seen:
        return MisconfigurationException(
            f"The training loader gave no batch in epoch {epoch}, after {n_seen} in the epochs before: it can be "
            "iterated over only once, as a generator can. Give a DataLoader, a list, or an object whose __iter__ "
            "starts anew; or set max_epochs=1."
        )
    return MisconfigurationException(
        "The training loader gave no batch. Look at the length of its dataset, its sampler, and drop_last with "
        "a batch_size above it."
    )


def closure_not_run(optimizer_step: Any) -> Exception:
    """For an ``optimizer_step`` that left out the closure, and with it forward and backward."""
    return MisconfigurationException(
        f"{getattr(optimizer_step, '__qualname__', 'optimizer_step')} did not run its optimizer_closure, so that "
        "training_step and backward were never called. Pass it on: optimizer.step(closure=optimizer_closure)."
    )


def closure_run_again(optimizer: Any) -> Exception:
    """For a closure that is evaluated twice where gradients of earlier batches would be counted twice with it."""
    return MisconfigurationException(
        f"{type(optimizer).__name__} evaluated its closure more than once in a step. With accumulate_grad_batches "
        "above 1 the closure computes the last batch of a window only, so that this has no right result. Set "
        "accumulate_grad_batches=1 and use larger batches, or accumulate inside training_step."
    )


def no_evaluation_batch(stage: str, index: int) -> Exception:
    """For a validation or test loader that ended at once."""
    return MisconfigurationException(
        f"The {stage} loader {index} gave no batch. Look at the length of its dataset and at its sampler. If it can be "
        "iterated over only once, as a generator can, give a DataLoader, a list, or an object whose __iter__ starts "
        "anew."
    )


def _described(value: Any) -> str:
    return "None" if value is None else f"{value!r:.80} of type {type(value).__name__}"
