"""Freeze a part of a network, and let it learn later on."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fulgur.callbacks.own_engine import has_own_engine
from fulgur.callbacks.weight_averaging import require_whole_weights
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.hooks import Callback
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

log = logging.getLogger(__name__)

Modules = nn.Module | Iterable["nn.Module | Iterable[Any]"]


def multiplicative(epoch: int) -> float:
    """The factor 2, in each epoch."""
    return 2.0


class BaseFinetuning(Callback):
    """Freezes modules before a fit and unfreezes them at epochs of your choice.

    Override `freeze_before_training` and `finetune_function`. What learns, and the parameter groups that were added,
    are in checkpoints by the parameters' names, so that a resumed run goes on with them. On several ranks gradients of
    what was unfrozen are averaged like all others.

    Raises:
        MisconfigurationException: When a fit begins: the strategy splits the weights over ranks; or the groups of a
            checkpoint name parameters that the module has not.
        NotImplementedError: When a fit begins: the strategy is DeepSpeed's.

    Example:
        >>> class UnfreezeAtTen(BaseFinetuning):
        ...     def freeze_before_training(self, pl_module):
        ...         self.freeze(pl_module.encoder)
        ...     def finetune_function(self, pl_module, epoch, optimizer):
        ...         if epoch == 10:
        ...             self.unfreeze_and_add_param_group(pl_module.encoder, optimizer)
    """

    def __init__(self) -> None:
        self._internal_optimizer_metadata: dict[int, list[dict[str, Any]]] = {}
        self._learning: list[str] | None = None
        self._is_restored = False

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what is not to learn at first. Called in `setup` of a fit, before the optimizers are made."""
        raise NotImplementedError(f"{type(self).__name__} needs freeze_before_training(self, pl_module). Define it.")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze what is to learn from `epoch` on. Called at the start of each epoch, for each optimizer."""
        raise NotImplementedError(
            f"{type(self).__name__} needs finetune_function(self, pl_module, epoch, optimizer). Define it."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"internal_optimizer_metadata": self._internal_optimizer_metadata, "learning": self._learning}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._internal_optimizer_metadata = dict(state_dict["internal_optimizer_metadata"])
        self._learning = state_dict.get("learning")
        self._is_restored = True

    # --------------------------------------------------------------------------------------------------- the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            if has_own_engine(trainer.strategy):
                raise NotImplementedError(
                    f"{type(self).__name__} adds parameters to the optimizer while training, and DeepSpeed's engine "
                    "takes none after its start. Use strategy='ddp', or freeze parameters in the module's __init__."
                )
            require_whole_weights(trainer, type(self).__name__)
            self._internal_optimizer_metadata, self._learning, self._is_restored = {}, None, False
            self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_restored:  # order matters: the states of the optimizers are loaded into these groups
            named = dict(pl_module.named_parameters())
            for index, optimizer in enumerate(trainer.optimizers):
                if index in self._internal_optimizer_metadata:
                    groups = self._internal_optimizer_metadata[index]
                    optimizer.param_groups = self._apply_mapping_to_param_groups(groups, named)
            self._let_learn(pl_module)
            self._is_restored = False
        else:
            self._learning = _learning(pl_module)
            for index, optimizer in enumerate(trainer.optimizers):
                self._note(index, optimizer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        takes_index = len(inspect.signature(self.finetune_function).parameters) > 3  # as in 1.x
        for index, optimizer in enumerate(trainer.optimizers):
            n_groups = len(optimizer.param_groups)
            more = (index,) if takes_index else ()
            self.finetune_function(pl_module, trainer.current_epoch, optimizer, *more)
            if len(optimizer.param_groups) != n_groups:
                self._note(index, optimizer, pl_module)
        learning = _learning(pl_module)
        if learning != self._learning:
            self._learning = learning
            trainer.strategy.follow_trainable(pl_module)  # all ranks must reach this

    def _note(self, index: int, optimizer: Optimizer, module: nn.Module) -> None:
        names = {parameter: name for name, parameter in module.named_parameters()}
        groups = self._apply_mapping_to_param_groups(optimizer.param_groups, names)
        self._internal_optimizer_metadata[index] = groups

    def _let_learn(self, module: nn.Module) -> None:
        if self._learning is None:  # a file that fulgur did not write: what the groups hold learns
            groups = [g for groups in self._internal_optimizer_metadata.values() for g in groups]
            self._learning = sorted({*_learning(module), *(name for group in groups for name in group["params"])})
        learning = set(self._learning)
        for name, parameter in module.named_parameters():
            parameter.requires_grad = name in learning
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and norm.affine:
                norm.track_running_stats = any(p.requires_grad for p in norm.parameters())

    @staticmethod
    def _apply_mapping_to_param_groups(
        param_groups: list[dict[str, Any]], mapping: Mapping[Any, Any]
    ) -> list[dict[str, Any]]:
        """Copies of `param_groups` in which each of ``"params"`` is what `mapping` has for it."""
        missing = [key for group in param_groups for key in group["params"] if key not in mapping]
        if missing:
            raise MisconfigurationException(
                f"{len(missing)} parameters of an optimizer are not in the module, {missing[0]!r:.80} among them. "
                "Give the optimizer parameters of the module, and resume with the module that the file was saved with."
            )
        return [{**group, "params": [mapping[key] for key in group["params"]]} for group in param_groups]

    # ------------------------------------------------------------------------------------- for use in the two methods

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """All modules within `modules` that have parameters of their own, or no children."""
        if isinstance(modules, nn.ModuleDict):
            modules = modules.values()
        if isinstance(modules, nn.Module):
            found = list(modules.modules())
        else:
            found = [inner for module in modules for inner in BaseFinetuning.flatten_modules(module)]
        return [m for m in found if not list(m.children()) or any(p is not None for p in m._parameters.values())]

    @staticmethod
    def filter_params(modules: Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[nn.Parameter]:
        """Parameters within `modules` that learn, or that do not.

        Args:
            modules: Where to look.
            train_bn: False leaves batch norm layers out.
            requires_grad: Whether the parameters learn.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and not train_bn:
                continue
            yield from (p for p in module.parameters(recurse=False) if p.requires_grad == requires_grad)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Let nothing that `module` itself has learn, and batch norm keep its statistics."""
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Let nothing within `modules` learn, batch norm layers excepted if `train_bn`."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and train_bn:
                BaseFinetuning.make_trainable(module)
            else:
                BaseFinetuning.freeze_module(module)

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Let everything within `modules` learn."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm):
                module.track_running_stats = True
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = True

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of `params` that `optimizer` does not have yet; says how many it has."""
        params = list(params)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        new = [parameter for parameter in params if id(parameter) not in known]
        if len(new) < len(params):
            rank_zero_warn(
                f"{len(params) - len(new)} parameters to be unfrozen are in the optimizer already and stay in their "
                "group. Give it only what learns at first: [p for p in self.parameters() if p.requires_grad].",
                PossibleUserWarning,
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Let `modules` learn, as a new parameter group of `optimizer`.

        Args:
            modules: What to unfreeze.
            optimizer: Gets the group.
            lr: Learning rate of the group. None is that of the first group, divided by `initial_denom_lr`.
            initial_denom_lr: See `lr`.
            train_bn: False leaves batch norm layers out of the group.
        """
        before = {id(p) for p in BaseFinetuning.filter_params(modules)}
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        BaseFinetuning.make_trainable(modules)
        rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else lr
        params = [p for p in BaseFinetuning.filter_params(modules, train_bn) if id(p) not in before & known]
        new = BaseFinetuning.filter_on_optimizer(optimizer, params)
        if new:
            optimizer.add_param_group({"params": new, "lr": rate})


class BackboneFinetuning(BaseFinetuning):
    """Freezes ``pl_module.backbone``, unfreezes it at an epoch, and raises its learning rate from epoch to epoch.

    Args:
        unfreeze_backbone_at_epoch: Epoch at whose start the backbone begins to learn.
        lambda_func: Takes the epoch, from 1 on, and gives the factor by which the backbone's rate grows. A factor of 2
            unless given.
        backbone_initial_ratio_lr: The backbone's first rate, as a fraction of that of the first group.
        backbone_initial_lr: The backbone's first rate itself; None takes the fraction.
        should_align: Whether the rate grows no further than that of the first group.
        initial_denom_lr: Accepted for compatibility: an explicit rate is not divided, and here it always is explicit.
        train_bn: Whether batch norm layers learn all the time.
        verbose: Log both rates at each epoch.
        rounding: Decimals of the rates logged.

    Raises:
        MisconfigurationException: The module has no ``backbone``.

    Example:
        >>> trainer = Trainer(callbacks=[BackboneFinetuning(5, lambda epoch: 1.5)])
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr, self.backbone_initial_lr = backbone_initial_ratio_lr, backbone_initial_lr
        self.should_align, self.initial_denom_lr, self.train_bn = should_align, initial_denom_lr, train_bn
        self.verbose, self.rounding = verbose, rounding
        self.previous_backbone_lr: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise MisconfigurationException(
                f"BackboneFinetuning freezes pl_module.backbone, and {type(pl_module).__name__} has no such module. "
                "Name it so, or write a BaseFinetuning."
            )
        self.freeze(pl_module.backbone, train_bn=self.train_bn)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        first, start = optimizer.param_groups[0]["lr"], self.unfreeze_backbone_at_epoch
        if epoch < start:
            return
        if epoch == start:
            given = self.backbone_initial_lr
            rate = first * self.backbone_initial_ratio_lr if given is None else given
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, rate, train_bn=self.train_bn)
        else:
            assert self.previous_backbone_lr is not None
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            rate = first if self.should_align and rate > first else rate
            optimizer.param_groups[-1]["lr"] = rate
        self.previous_backbone_lr = rate
        if self.verbose:
            log.info(f"lr: {round(float(first), self.rounding)}, backbone lr: {round(float(rate), self.rounding)}")


def _learning(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]
