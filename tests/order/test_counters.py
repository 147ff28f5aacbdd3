"""What hooks read from the Trainer: counters, stage, last batch."""

from __future__ import annotations

from typing import Any

import pytest

from fulgur.callbacks import ModelCheckpoint


def reading(kit: Any, read: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """A callback class that notes ``read(trainer)`` in every hook, and the list of notes."""
    notes: list[tuple[Any, ...]] = []

    def make(hook: str) -> Any:
        def method(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
            notes.append((hook, *read(trainer)))

        return method

    hooks = [h for h in kit.CALLBACK_HOOKS if h not in ("state_dict", "load_state_dict")]
    return type("Reading", (kit.Stateful,), {hook: make(hook) for hook in hooks}), notes


def test_counters_in_an_epoch_of_three_batches_in_windows_of_two(build: Any, tape: Any, kit: Any) -> None:
    callback, notes = reading(kit, lambda t: (t.global_step, t.current_epoch, t.is_last_batch))
    run = build(callbacks=[callback(tape), ModelCheckpoint()], accumulate_grad_batches=2, logger=False)
    run.fit(kit.Plain(tape), n_train=3)
    assert notes == [
        ("setup", 0, 0, False),
        ("on_fit_start", 0, 0, False),
        ("on_train_start", 0, 0, False),
        ("on_train_epoch_start", 0, 0, False),
        ("on_train_batch_start", 0, 0, False),
        ("on_before_zero_grad", 0, 0, False),
        ("on_before_backward", 0, 0, False),
        ("on_after_backward", 0, 0, False),
        ("on_train_batch_end", 0, 0, False),
        ("on_train_batch_start", 0, 0, False),
        ("on_before_backward", 0, 0, False),
        ("on_after_backward", 0, 0, False),
        ("on_before_optimizer_step", 0, 0, False),
        ("on_train_batch_end", 1, 0, False),
        ("on_train_batch_start", 1, 0, True),
        ("on_before_zero_grad", 1, 0, True),
        ("on_before_backward", 1, 0, True),
        ("on_after_backward", 1, 0, True),
        ("on_before_optimizer_step", 1, 0, True),
        ("on_train_batch_end", 2, 0, True),
        ("on_validation_start", 2, 0, True),
        ("on_validation_epoch_start", 2, 0, True),
        ("on_validation_batch_start", 2, 0, True),
        ("on_validation_batch_end", 2, 0, True),
        ("on_validation_epoch_end", 2, 0, True),
        ("on_validation_end", 2, 0, True),
        ("on_train_epoch_end", 2, 0, True),
        ("on_save_checkpoint", 2, 0, True),
        ("on_train_end", 2, 1, True),
        ("on_fit_end", 2, 1, True),
        ("teardown", 2, 1, True),
    ]


def test_stage_in_fit(build: Any, tape: Any, kit: Any) -> None:
    callback, notes = reading(kit, lambda t: (str(t.state.fn), t.state.stage and str(t.state.stage.value)))
    build(callbacks=[callback(tape)], num_sanity_val_steps=1).fit(kit.Plain(tape), n_train=1)
    stages = {}
    for hook, fn, stage in notes:
        assert fn == "fit"
        stages.setdefault(hook, []).append(stage)
    assert {hook: found for hook, found in stages.items() if found != ["train"]} == {
        "on_sanity_check_start": ["sanity_check"],
        "on_sanity_check_end": ["sanity_check"],
        "on_validation_start": ["sanity_check", "validate"],
        "on_validation_epoch_start": ["sanity_check", "validate"],
        "on_validation_batch_start": ["sanity_check", "validate"],
        "on_validation_batch_end": ["sanity_check", "validate"],
        "on_validation_epoch_end": ["sanity_check", "validate"],
        "on_validation_end": ["sanity_check", "validate"],
    }


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_stage_in_an_evaluation(build: Any, tape: Any, kit: Any, stage: str) -> None:
    callback, notes = reading(kit, lambda t: (str(t.state.fn), t.state.stage and str(t.state.stage.value)))
    run = build(callbacks=[callback(tape)], logger=False)
    getattr(run.trainer, stage)(kit.Plain(tape), kit.loader(1))
    assert {note[1:] for note in notes} == {(stage, stage)}
    assert run.trainer.state.stage is None


def test_stage_argument_is_the_name_of_the_entry_point(build: Any, tape: Any, kit: Any) -> None:
    seen = []

    class Module(kit.Plain):
        def setup(self, stage: str) -> None:
            seen.append((stage == "fit", stage, f"{stage}"))

    build().fit(Module(tape))
    assert seen == [(True, "fit", "fit")]


def test_axis_of_the_loggers_is_the_clock_before_the_batch(build: Any, tape: Any, kit: Any) -> None:
    build(accumulate_grad_batches=2, log_every_n_steps=2).fit(kit.Module(tape), n_train=8, n_val=0)
    assert [event for event in tape.events if "log_metrics" in event] == ["L.log_metrics(1)", "L.log_metrics(3)"]


def test_log_step_is_the_same_in_all_hooks_of_a_batch(build: Any, tape: Any, kit: Any) -> None:
    callback, notes = reading(kit, lambda t: (t.log_step,))
    build(callbacks=[callback(tape)]).fit(kit.Plain(tape), n_train=2)
    of = {hook: [note[1] for note in notes if note[0] == hook] for hook, _ in notes}
    assert of["on_train_batch_start"] == of["on_after_backward"] == of["on_train_batch_end"] == [0, 1]
    assert of["on_validation_end"] == of["on_train_epoch_end"] == of["on_train_end"] == [1]


def test_counters_go_on_in_the_second_epoch(build: Any, tape: Any, kit: Any) -> None:
    callback, notes = reading(kit, lambda t: (t.global_step, t.current_epoch, t.is_last_batch))
    build(callbacks=[callback(tape)], max_epochs=2).fit(kit.Plain(tape), n_train=1, n_val=0)
    assert [note for note in notes if note[0] in ("on_train_epoch_start", "on_train_epoch_end")] == [
        ("on_train_epoch_start", 0, 0, False),
        ("on_train_epoch_end", 1, 0, True),
        ("on_train_epoch_start", 1, 1, True),
        ("on_train_epoch_end", 2, 1, True),
    ]
