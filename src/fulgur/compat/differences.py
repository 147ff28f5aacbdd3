"""Where fulgur differs on purpose, as far as the text of a program shows that it may notice.

`docs/coming-from-lightning.md` tells of all of them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

_PAGE = "docs/coming-from-lightning.md"

_ACCUMULATION = (
    "accumulate_grad_batches: where an epoch's batches do not fill the last window, it is averaged over the batches it "
    f"has, not over the nominal number ({_PAGE}, D1)."
)
_MEANS = (
    "several devices: what self.log keeps for an epoch is the mean over all ranks' samples; sync_dist=False keeps it "
    f"local ({_PAGE}, D2)."
)
_SAMPLES = (
    "several devices: validation, test and prediction see each sample once, so their numbers are those of one device "
    f"({_PAGE}, D3)."
)
_CLOCK = (
    "several optimizers: global_step, max_steps and every_n_train_steps count a batch once, however many optimizers it "
    f"steps ({_PAGE}, D4)."
)
_SKIPPED = (
    "training_step may return None: that batch updates nothing, and global_step and logger stay where they are "
    f"({_PAGE}, D10)."
)
_CTRL_C = (
    f"SystemExit is caught: Ctrl-C ends fit with KeyboardInterrupt, at the next step and after teardown ({_PAGE}, D14)."
)


def find_differences(tree: ast.AST, trainer_calls: Sequence[ast.Call]) -> Iterator[tuple[int, str]]:
    """Lines of a program where a difference may be noticed, and which.

    Args:
        tree: The program.
        trainer_calls: Where it makes a Trainer.
    """
    for call in trainer_calls:
        yield from _in_trainer_call(call)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "training_step":
            yield from ((line, _SKIPPED) for line in _returns_of_none(node))
        elif isinstance(node, ast.Assign) and _unpacks_optimizers(node):
            yield node.lineno, _CLOCK
        elif isinstance(node, ast.ExceptHandler) and _catches(node, "SystemExit"):
            yield node.lineno, _CTRL_C


def _in_trainer_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    accumulate = given.get("accumulate_grad_batches")
    if accumulate is not None and _literal(accumulate) != 1:
        yield accumulate.lineno, _ACCUMULATION
    if _has_several_devices(given):
        yield call.lineno, _MEANS
        yield call.lineno, _SAMPLES


def _has_several_devices(given: dict[str, ast.expr]) -> bool:
    strategy = _literal(given.get("strategy"))
    if isinstance(strategy, str) and strategy not in ("auto", "single_device"):
        return True
    counts = [_literal(given.get(name)) for name in ("devices", "num_nodes", "gpus", "num_processes")]
    return any((isinstance(n, int) and n > 1) or (isinstance(n, list) and len(n) > 1) for n in counts)


def _literal(node: ast.expr | None) -> object:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return ...


def _returns_of_none(function: ast.FunctionDef) -> Iterator[int]:
    """Lines with a ``return`` of nothing, beside one of something: without the latter it is manual optimization."""
    returns = [node for node in _own_nodes(function) if isinstance(node, ast.Return)]
    empty = [node.lineno for node in returns if node.value is None or _literal(node.value) is None]
    return iter(empty if len(empty) < len(returns) else ())


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What is in a function, without the functions in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(node))


def _unpacks_optimizers(node: ast.Assign) -> bool:
    value = node.value
    is_call = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "optimizers"
    return is_call and isinstance(node.targets[0], (ast.Tuple, ast.List)) and len(node.targets[0].elts) > 1


def _catches(node: ast.ExceptHandler, name: str) -> bool:
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(isinstance(kind, ast.Name) and kind.id == name for kind in kinds)
