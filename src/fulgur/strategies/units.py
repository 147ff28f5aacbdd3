"""Which modules of a model are sharded, or computed again in the backward pass, as units of their own.

A unit's parameters are gathered together just before it runs and given up after it. What belongs to no unit is gathered
for the whole step.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from fulgur.errors import MisconfigurationException
from fulgur.strategies.distributed_state import load_whole, share_initial_state

Policy = Any
"""A set of classes, torch's ``ModuleWrapPolicy`` or ``CustomPolicy``, or a function: of a module, or of ``(module,
recurse, nonwrapped_numel)`` as torch's ``size_based_auto_wrap_policy``."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def find_units(module: nn.Module, policy: Policy = None) -> list[nn.Module]:
    """The units within `module`, inner ones first; `module` itself is not among them.

    Args:
        module: The whole model.
        policy: Says which. ``None``: the blocks of which a list or sequence within the model holds several of one
            class; not those within other blocks, for they need not run on all ranks, and not those that share
            parameters with something outside of them.

    Raises:
        TypeError: `policy` is of no known kind.
    """
    if policy is None:
        return _repeated_blocks(module)
    classes = classes_of(policy)
    if classes is not None:
        return [inner for inner in _inner_first(module) if isinstance(inner, classes)]
    function = getattr(policy, "_lambda_fn", policy)  # of torch's CustomPolicy
    if not callable(function):
        raise TypeError(
            f"auto_wrap_policy={policy!r:.80} is no policy. Use a set of module classes, or a function of a module "
            "that says whether it is a unit."
        )
    if _asks_for_sizes(function):
        return _by_size(module, function)
    return [inner for inner in _inner_first(module) if function(inner)]


def classes_of(policy: Policy) -> tuple[type[nn.Module], ...] | None:
    """The classes that a policy names; None for one of another kind."""
    named = getattr(policy, "_module_classes", policy)  # of torch's ModuleWrapPolicy
    if isinstance(named, type):
        named = (named,)
    if isinstance(named, (set, frozenset, list, tuple)) and all(isinstance(cls, type) for cls in named):
        return tuple(named)
    return None


def select(module: nn.Module, policy: Policy, argument: str) -> list[nn.Module]:
    """The modules that `policy` names, inner ones first.

    Raises:
        TypeError: `policy` is neither classes nor a function; the message names `argument`.
    """
    classes = classes_of(policy)
    if classes is not None:
        return [inner for inner in _inner_first(module) if isinstance(inner, classes)]
    function = getattr(policy, "_lambda_fn", policy)
    if not callable(function):
        raise TypeError(f"{argument}={policy!r:.80} is no policy. Use a set of module classes, or a function.")
    return [inner for inner in _inner_first(module) if function(inner)]


def callable_children(module: nn.Module) -> Iterator[nn.Module]:
    """Children with parameters that have a forward pass of their own; of containers that have none, theirs."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from callable_children(child)
        elif next(child.parameters(), None) is not None:
            yield child


def recompute_in_backward(modules: Iterable[nn.Module]) -> None:
    """Let modules keep only their inputs, and run their forward pass again in the backward pass.

    Their names and states do not change.
    """
    from torch.utils.checkpoint import checkpoint

    for module in modules:
        if "forward" not in module.__dict__:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def _inner_first(module: nn.Module) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}

    def visit(inner: nn.Module) -> None:
        for child in inner.children():
            if id(child) not in found:
                visit(child)
                found[id(child)] = child

    visit(module)
    return list(found.values())


def _repeated_blocks(module: nn.Module) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for child in module.children():
        own = _blocks_of(child) if isinstance(child, _CONTAINERS) else []
        blocks += own
        known = {id(block) for block in own}
        rest = child.children() if known else (child,)
        for inner in rest:
            if id(inner) not in known:
                blocks += _repeated_blocks(inner)
    distinct = list({id(block): block for block in blocks}.values())
    return [block for block in distinct if not _shares_parameters(block, module)]


def _blocks_of(container: nn.Module) -> list[nn.Module]:
    children = list(container.children())
    kinds = Counter(type(child) for child in children)
    return [child for child in children if kinds[type(child)] > 1 and _is_block(child)]


def _is_block(module: nn.Module) -> bool:
    """Whether it is made of other modules, and has parameters."""
    return next(module.children(), None) is not None and next(module.parameters(), None) is not None


def _shares_parameters(block: nn.Module, module: nn.Module) -> bool:
    inside = {id(inner) for inner in block.modules()}
    own = {id(parameter) for parameter in block.parameters()}
    outside = (inner for inner in module.modules() if id(inner) not in inside)
    return any(id(p) in own for inner in outside for p in inner._parameters.values() if p is not None)


def _asks_for_sizes(function: Callable[..., Any]) -> bool:
    return "nonwrapped_numel" in inspect.signature(function).parameters


def _by_size(module: nn.Module, policy: Callable[..., bool]) -> list[nn.Module]:
    """Units by a function that is asked first whether to look within a module, then whether what is left is a unit."""
    units: list[nn.Module] = []

    def visit(inner: nn.Module, *, is_root: bool) -> int:
        """Returns the number of elements that belong to a unit."""
        numel = sum(parameter.numel() for parameter in inner.parameters())
        wrapped = 0
        if policy(module=inner, recurse=True, nonwrapped_numel=numel):
            wrapped = sum(visit(child, is_root=False) for child in inner.children())
        is_unit = not is_root and policy(module=inner, recurse=False, nonwrapped_numel=numel - wrapped)
        if is_unit and not isinstance(inner, (nn.ModuleList, nn.ModuleDict)):
            units.append(inner)
            return numel
        return wrapped

    visit(module, is_root=True)
    return units


def materialize(module: nn.Module, device: Any, *, draws_on: torch.device) -> None:
    """Give parameters and buffers on the meta device memory, and initial values by ``reset_parameters``.

    The values are those of rank 0, which draws them as it would alone, one module after the other; each is whole for a
    moment. All ranks must reach this.

    Args:
        module: Sharded already.
        device: Where the parts go.
        draws_on: Where values are drawn.

    Raises:
        MisconfigurationException: A module with such tensors has no ``reset_parameters``.
    """
    waiting = [inner for inner in module.modules() if _is_meta(inner)]
    for inner in waiting:
        if not callable(getattr(inner, "reset_parameters", None)):
            raise MisconfigurationException(
                f"{type(inner).__name__} was made on the meta device and has no reset_parameters, so nothing says what "
                "its values are. Give it one, or make it on the CPU."
            )
    for inner in waiting:
        inner.to_empty(device=device, recurse=False)
        _draw(inner, draws_on)


def _draw(module: Any, device: torch.device) -> None:
    parts = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    for name, part in parts.items():
        whole = torch.empty(part.shape, dtype=part.dtype, device=device)
        module._parameters[name] = nn.Parameter(whole, requires_grad=part.requires_grad)
    module.reset_parameters()
    share_initial_state(module, device, recurses=False)
    for name, part in parts.items():
        load_whole(part, module._parameters[name].detach())
        module._parameters[name] = part


def _is_meta(module: nn.Module) -> bool:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(tensor.is_meta for tensor in tensors)
