"""Set weights to zero while training, with the methods of `torch.nn.utils.prune`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fulgur.callbacks.weight_averaging import require_whole_weights
from fulgur.errors import MisconfigurationException, PossibleUserWarning, nearest_name
from fulgur.hooks import Callback
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

log = logging.getLogger(__name__)

_METHODS: dict[str, type[prune.BasePruningMethod]] = {
    "l1_unstructured": prune.L1Unstructured,
    "random_unstructured": prune.RandomUnstructured,
    "ln_structured": prune.LnStructured,
    "random_structured": prune.RandomStructured,
}
_Place = tuple[nn.Module, str]


class ModelPruning(Callback):
    """Prune parameters at the end of each epoch: each time `amount` of what is left.

    While training a pruned parameter is ``<name>_orig`` times the buffer ``<name>_mask``, as torch does it; checkpoints
    hold the product under the parameter's own name, and what a resumed run needs in the callback's state. On several
    ranks all take the masks of rank 0. Nothing is pruned where a limit cuts an epoch short, nor in a validation that is
    there only because the run stops: a resumed run goes on with that epoch, and prunes at its end.

    Args:
        pruning_fn: "l1_unstructured", "random_unstructured", "ln_structured", "random_structured", or a subclass of
            `torch.nn.utils.prune.BasePruningMethod`.
        parameters_to_prune: Pairs of a module and the name of its parameter. Empty takes `parameter_names` of all.
        parameter_names: Names to look for in every module; None is ("weight", "bias").
        use_global_unstructured: Compare all parameters with each other, rather than each with itself.
        amount: A fraction from 0 to 1, a number of elements, or a function of the epoch that gives one.
        apply_pruning: Whether to prune; or a function of the epoch that says so.
        make_pruning_permanent: Put the products in the place of the parameters when training ends.
        use_lottery_ticket_hypothesis: Set what is left back to its first values after each pruning; or a function of
            the epoch that says so.
        resample_parameters: Draw new first values each time, with the modules' ``reset_parameters``.
        pruning_dim, pruning_norm: Dimension and order of the norm of structured methods.
        verbose: 1 logs how much is pruned in all, 2 for each parameter too.
        prune_on_train_epoch_end: Prune at the end of epochs; False prunes at the end of validations.

    Raises:
        MisconfigurationException: Arguments that are unknown, out of range, or do not go together; or, when a fit
            begins, parameters that are not there.

    Source:
        Frankle and Carbin, arXiv:1803.03635, for the lottery ticket hypothesis.

    Example:
        >>> trainer = Trainer(callbacks=[ModelPruning("l1_unstructured", amount=0.3)])
    """

    PARAMETER_NAMES = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: Callable[..., Any] | str,
        parameters_to_prune: Sequence[_Place] = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        self._method = _resolve_method(pruning_fn)
        self._given, self._names = list(parameters_to_prune or ()), tuple(parameter_names or self.PARAMETER_NAMES)
        self._is_global, self._arguments = (
            use_global_unstructured,
            _method_arguments(self._method, pruning_dim, pruning_norm),
        )
        if use_global_unstructured and getattr(self._method, "PRUNING_TYPE", None) != "unstructured":
            raise MisconfigurationException(
                f"{self._method.__name__} is no unstructured method, and use_global_unstructured=True. Pass False."
            )
        if not callable(amount):
            _check_amount(amount)
        if verbose not in (0, 1, 2):
            raise MisconfigurationException(f"ModelPruning(verbose={verbose!r}): use 0, 1 or 2.")
        self.amount, self._applies, self._sets_back = amount, apply_pruning, use_lottery_ticket_hypothesis
        self._make_permanent, self._resamples = make_pruning_permanent, resample_parameters
        self._verbose, self._on_train_epoch_end = verbose, prune_on_train_epoch_end
        self._places: dict[str, _Place] = {}
        self._first: dict[str, Tensor] = {}
        self._restored: dict[str, Any] | None = None
        self._left: dict[str, Any] | None = None
        self._was_cut = False

    def state_dict(self) -> dict[str, Any]:
        if self._left is not None:
            return self._left
        pruned = {key: place for key, place in self._places.items() if hasattr(place[0], f"{place[1]}_mask")}
        return {
            "masks": {key: getattr(module, f"{name}_mask") for key, (module, name) in pruned.items()},
            "originals": {key: getattr(module, f"{name}_orig").detach() for key, (module, name) in pruned.items()},
            "first": dict(self._first),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    # --------------------------------------------------------------------------------------------------- the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_weights(trainer, type(self).__name__)
        self._restored = self._left = None
        self._was_cut = False
        self._places = self._find_places(pl_module)
        self._first = {}
        if self._sets_back and not self._resamples:
            self._first = {key: _parameter(place).detach().clone() for key, place in self._places.items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        self._first = dict(state["first"])
        for key, mask in state["masks"].items():
            place = self._places[key]
            prune.custom_from_mask(*place, mask.to(_parameter(place).device))
            with torch.no_grad():
                _parameter(place).copy_(state["originals"][key])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.is_epoch_cut:
            self._was_cut = True
        elif self._on_train_epoch_end:
            self._prune(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._on_train_epoch_end or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if not trainer.fit_loop.validates_only_to_stop:
            self._prune(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = self.state_dict()
        if self._was_cut and not state["masks"]:
            rank_zero_warn(
                "ModelPruning has pruned nothing: it prunes at the end of epochs, and the training ended within its "
                "first. Give the Trainer max_epochs, or more steps or time.",
                PossibleUserWarning,
            )
        if self._make_permanent:
            self._left = state  # a file saved from now on can still be resumed from
            for module, name in self._places.values():
                if hasattr(module, f"{name}_mask"):
                    prune.remove(module, name)

    def weights_to_deploy(self, weights: dict[str, Any]) -> dict[str, Any]:
        """What a file of weights alone holds: without masks, as a checkpoint does.

        Args:
            weights: Those of the module.
        """
        return _permanent(weights) if self._make_permanent else weights

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.weights_to_deploy(checkpoint["state_dict"])

    # ------------------------------------------------------------------------------------------------- one pruning

    def _prune(self, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        if not amount or not _decide(self._applies, epoch):
            return
        _check_amount(amount)
        self.apply_pruning(amount)
        if trainer.world_size > 1:
            for module, name in self._places.values():
                mask = getattr(module, f"{name}_mask")
                mask.copy_(trainer.strategy.broadcast(mask.cpu()))  # all ranks must reach this
        if _decide(self._sets_back, epoch):
            self.apply_lottery_ticket_hypothesis()
            if trainer.world_size > 1 and self._resamples:
                for place in self._places.values():
                    value = trainer.strategy.broadcast(_parameter(place).detach().cpu())  # all ranks must reach this
                    _parameter(place).data.copy_(value)
        if self._verbose:
            self._report(amount)

    def apply_pruning(self, amount: int | float) -> None:
        """Prune `amount` of what is left: a fraction, or a number of elements."""
        places = list(self._places.values())
        if self._is_global:
            prune.global_unstructured(places, pruning_method=self._method, amount=amount)
            return
        for module, name in places:
            self._method.apply(module, name, amount=amount, **self._arguments)

    @torch.no_grad()
    def apply_lottery_ticket_hypothesis(self) -> None:
        """Set what is left back to its first values, or to new ones."""
        resampled: dict[int, nn.Module] = {}
        for key, place in self._places.items():
            module, name = place
            if not self._resamples:
                _parameter(place).copy_(self._first[key])
            elif hasattr(module, "reset_parameters"):
                if id(module) not in resampled:
                    resampled[id(module)] = _fresh_copy(module)
                _parameter(place).copy_(getattr(resampled[id(module)], name))

    def _find_places(self, root: nn.Module) -> dict[str, _Place]:
        """By the parameter's name in `root`."""
        prefixes = {id(module): prefix for prefix, module in root.named_modules()}
        given = self._given or [
            (module, name)
            for module in root.modules()
            if module is not root
            for name in self._names
            if isinstance(getattr(module, name, None), nn.Parameter)
        ]
        if not given:
            raise MisconfigurationException(
                f"ModelPruning: no module of {type(root).__name__} has a parameter named {' or '.join(self._names)}. "
                "Pass parameters_to_prune or parameter_names."
            )
        for module, name in given:
            if id(module) not in prefixes or not isinstance(getattr(module, name, None), nn.Parameter):
                raise MisconfigurationException(
                    f"ModelPruning(parameters_to_prune=…): {name!r} of {type(module).__name__} is no parameter of "
                    f"{type(root).__name__}."
                )
        return {f"{prefixes[id(module)]}.{name}".lstrip("."): (module, name) for module, name in given}

    def _report(self, amount: int | float) -> None:
        masks = {key: getattr(module, f"{name}_mask") for key, (module, name) in self._places.items()}
        counts = {key: (int((mask == 0).sum()), mask.numel()) for key, mask in masks.items()}  # waits for the device
        zeros, total = (sum(values) for values in zip(*counts.values(), strict=True))
        log.info(f"{self._method.__name__}, amount={amount}: {zeros} of {total} elements are pruned.")
        if self._verbose > 1:
            for key, (n, size) in counts.items():
                log.info(f"{key}: {n} of {size} elements are pruned.")


def _resolve_method(given: Any) -> type[prune.BasePruningMethod]:
    if isinstance(given, str):
        if given not in _METHODS:
            raise MisconfigurationException(
                f"pruning_fn={given!r} is unknown.{nearest_name(given, _METHODS)} Use one of {', '.join(_METHODS)}, or "
                "a subclass of torch.nn.utils.prune.BasePruningMethod."
            )
        return _METHODS[given]
    if isinstance(given, type) and issubclass(given, prune.BasePruningMethod):
        return given
    raise MisconfigurationException(
        f"pruning_fn={given!r:.80} is neither a name nor a subclass of torch.nn.utils.prune.BasePruningMethod."
    )


def _method_arguments(method: type, dim: int | None, norm: int | None) -> dict[str, Any]:
    """What a structured method takes besides the amount."""
    if method not in (prune.LnStructured, prune.RandomStructured):
        return {}
    if dim is None:
        raise MisconfigurationException(f"{method.__name__} removes slices along a dimension. Pass pruning_dim.")
    if method is prune.RandomStructured:
        return {"dim": dim}
    if norm is None:
        raise MisconfigurationException("LnStructured compares slices by their norm. Pass pruning_norm.")
    return {"dim": dim, "n": norm}


def _check_amount(amount: Any) -> None:
    is_fraction = isinstance(amount, float) and 0 <= amount <= 1
    is_number = isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0
    if not (is_fraction or is_number):
        raise MisconfigurationException(
            f"ModelPruning(amount={amount!r}): use a float from 0 to 1, an int of 0 or more, or a function of epochs."
        )


def _decide(answer: bool | Callable[[int], bool], epoch: int) -> bool:
    return bool(answer(epoch)) if callable(answer) else answer


def _parameter(place: _Place) -> nn.Parameter:
    """The parameter that is trained: the one before its mask, if it has one."""
    module, name = place
    parameter: nn.Parameter = module._parameters[f"{name}_orig" if f"{name}_orig" in module._parameters else name]  # type: ignore[assignment]
    return parameter


def _fresh_copy(module: nn.Module) -> nn.Module:
    copy = deepcopy(module)
    for name in [n.removesuffix("_mask") for n, _ in module.named_buffers(recurse=False) if n.endswith("_mask")]:
        prune.remove(copy, name)
    copy.reset_parameters()  # type: ignore[operator]
    return copy


def _permanent(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with the product of each parameter and its mask under the parameter's own name, on the host."""
    masked = {key.removesuffix("_mask") for key in state if key.endswith("_mask") and f"{key[:-5]}_orig" in state}
    kept: dict[str, Any] = {}
    for key, value in state.items():
        name = key.removesuffix("_orig")
        if name in masked:
            kept[name] = (value * state[f"{name}_mask"]).cpu()  # waits for the device
        elif key.removesuffix("_mask") not in masked:
            kept[key] = value
    return kept
