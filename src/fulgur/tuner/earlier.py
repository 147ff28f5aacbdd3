"""`trainer.tune()` of 1.x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulgur.tuner.tuning import Tuner

if TYPE_CHECKING:
    from fulgur.trainer import Trainer


def tune(
    trainer: Trainer,
    model: Any,
    data: dict[str, Any],
    *,
    auto_lr_find: bool | str,
    auto_scale_batch_size: str | bool | None,
    scale_batch_size_kwargs: dict[str, Any] | None,
    lr_find_kwargs: dict[str, Any] | None,
) -> dict[str, Any]:
    """Look for a batch size, then with it for a learning rate, as far as they are asked for.

    Args:
        trainer: Whose settings count.
        model: What to run.
        data: Loaders, datamodule and method.
        auto_lr_find: True, or the name of the attribute.
        auto_scale_batch_size: "power" or "binsearch"; True is "power".
        scale_batch_size_kwargs, lr_find_kwargs: Further arguments of the tuner's methods, which win.
    """
    results: dict[str, Any] = {}
    if auto_scale_batch_size:
        mode = "power" if auto_scale_batch_size is True else auto_scale_batch_size
        options = data | {"mode": mode} | (scale_batch_size_kwargs or {})
        results["scale_batch_size"] = Tuner(trainer).scale_batch_size(model, **options)
    if auto_lr_find:
        name = auto_lr_find if isinstance(auto_lr_find, str) else ""
        options = data | {"attr_name": name, "update_attr": True} | (lr_find_kwargs or {})
        results["lr_find"] = Tuner(trainer).lr_find(model, **options)
    return results
