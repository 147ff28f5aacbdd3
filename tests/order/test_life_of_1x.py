"""1.x code: its hooks, where they come among those of today, and what they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fulgur

NOTED = [
    "prepare_data",
    "configure_optimizers",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "training_step",
    "training_step_end",
    "training_epoch_end",
    "validation_step",
    "validation_step_end",
    "validation_epoch_end",
    "test_step",
    "test_step_end",
    "test_epoch_end",
]


class Life1x(fulgur.LightningModule):
    """A module as it was written in 1.x, without a hook that exists today only."""

    def __init__(self, tape: Any, loader: Any) -> None:
        super().__init__()
        self.tape, self.make_loader = tape, loader
        self.layer = torch.nn.Linear(2, 1)
        tape.add("__init__")

    def prepare_data(self) -> None:
        self.tape.add("prepare_data")

    def configure_optimizers(self) -> Any:
        self.tape.add("configure_optimizers")
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        self.tape.add("train_dataloader")
        return self.make_loader(2)

    def val_dataloader(self) -> Any:
        self.tape.add("val_dataloader")
        return self.make_loader(2)

    def test_dataloader(self) -> Any:
        self.tape.add("test_dataloader")
        return self.make_loader(2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.tape.add("training_step")
        return {"loss": self.layer(batch[0]).sum(), "n": batch_idx}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.tape.add("validation_step")
        return {"val_loss": self.layer(batch[0]).sum()}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.tape.add("test_step")
        return {"test_loss": self.layer(batch[0]).sum()}

    def training_epoch_end(self, outputs: Any) -> None:
        self.tape.add("training_epoch_end", outputs)

    def validation_epoch_end(self, outputs: Any) -> None:
        self.tape.add("validation_epoch_end", outputs)
        self.log("val_loss", torch.stack([output["val_loss"] for output in outputs]).mean())

    def test_epoch_end(self, outputs: Any) -> None:
        self.tape.add("test_epoch_end", outputs)
        self.log("test_loss", torch.stack([output["test_loss"] for output in outputs]).mean())


def test_life_of_a_module(build: Any, tape: Any, kit: Any) -> None:
    run = build(callbacks=[], logger=False, num_sanity_val_steps=1, max_epochs=2)
    run.trainer.fit(Life1x(tape, kit.loader))
    epoch = ["training_step"] * 2 + ["validation_step"] * 2 + ["validation_epoch_end", "training_epoch_end"]
    assert tape.events == [
        "__init__",
        "prepare_data",
        "configure_optimizers",
        "val_dataloader",
        "validation_step",
        "validation_epoch_end",
        "train_dataloader",
        *epoch,
        *epoch,
    ]
    tape.clear()
    results = run.trainer.test(verbose=False)
    assert tape.events == ["prepare_data", "test_dataloader", "test_step", "test_step", "test_epoch_end"]
    assert list(results[0]) == ["test_loss"]


def test_step_end_hooks_follow_their_steps_and_replace_the_outputs(build: Any, tape: Any, kit: Any) -> None:
    class Module(Life1x):
        def training_step_end(self, output: Any) -> Any:
            tape.add("training_step_end")
            assert output["loss"].requires_grad
            return {"loss": output["loss"] * 2, "n": "replaced"}

        def validation_step_end(self, output: Any) -> Any:
            tape.add("validation_step_end")
            return {"val_loss": torch.tensor(7.0)}

        def test_step_end(self, output: Any) -> Any:
            tape.add("test_step_end")
            return {"test_loss": torch.tensor(8.0)}

    run = build()
    run.trainer.fit(Module(tape, kit.loader))
    batch = [
        "C.on_train_batch_start",
        "training_step",
        "training_step_end",
        "C.on_before_backward",
        "C.on_train_batch_end",
    ]
    assert tape.only(*batch) == batch * 2
    assert [args[2]["n"] for event, args, _ in tape.calls if event == "C.on_train_batch_end"] == ["replaced"] * 2
    batch = ["C.on_validation_batch_start", "validation_step", "validation_step_end", "C.on_validation_batch_end"]
    assert tape.only(*batch) == batch * 2
    assert float(run.trainer.callback_metrics["val_loss"]) == 7.0
    assert run.trainer.test(verbose=False) == [{"test_loss": 8.0}]
    batch = ["C.on_test_batch_start", "test_step", "test_step_end", "C.on_test_batch_end"]
    assert tape.only(*batch) == batch * 2


def test_epoch_ends_come_before_the_hooks_of_the_epochs_end(build: Any, tape: Any, kit: Any) -> None:
    class Module(Life1x):
        def on_validation_epoch_end(self) -> None:
            tape.add("M.on_validation_epoch_end")

        def on_train_epoch_end(self) -> None:
            tape.add("M.on_train_epoch_end")

    build().trainer.fit(Module(tape, kit.loader))
    order = ["validation_epoch_end", "C.on_validation_epoch_end", "M.on_validation_epoch_end"]
    order += ["L.log_metrics(1)", "C.on_validation_end"]
    order += ["training_epoch_end", "C.on_train_epoch_end", "M.on_train_epoch_end"]
    assert tape.only(*order) == order


# ------------------------------------------------------------------------------------------------------- outputs


def given_to(tape: Any, event: str) -> Any:
    return next(args[0] for name, args, _ in tape.calls if name == event)


def test_training_epoch_end_gets_a_list_over_batches(build: Any, tape: Any, kit: Any) -> None:
    build().trainer.fit(Life1x(tape, kit.loader))
    outputs = given_to(tape, "training_epoch_end")
    assert [(sorted(output), output["n"]) for output in outputs] == [(["loss", "n"], 0), (["loss", "n"], 1)]
    assert not any(output["loss"].requires_grad for output in outputs)


def test_training_epoch_end_gets_a_bare_tensor_as_a_dict(build: Any, tape: Any, kit: Any) -> None:
    class Module(Life1x):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0]).sum() * 0 + batch_idx

    build().trainer.fit(Module(tape, kit.loader))
    assert given_to(tape, "training_epoch_end") == [{"loss": torch.tensor(0.0)}, {"loss": torch.tensor(1.0)}]


def test_training_epoch_end_starts_anew_in_each_epoch(build: Any, tape: Any, kit: Any) -> None:
    build(max_epochs=3).trainer.fit(Life1x(tape, kit.loader))
    assert [len(args[0]) for event, args, _ in tape.calls if event == "training_epoch_end"] == [2, 2, 2]


def test_training_epoch_end_under_manual_optimization(build: Any, tape: Any, kit: Any) -> None:
    module = Life1x(tape, kit.loader)
    module.automatic_optimization = False
    build().trainer.fit(module)
    assert [output["n"] for output in given_to(tape, "training_epoch_end")] == [0, 1]


def test_validation_epoch_end_gets_raw_outputs_without_none(build: Any, tape: Any, kit: Any) -> None:
    kept = object()

    class Module(Life1x):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return kept if batch_idx else None

        def validation_epoch_end(self, outputs: Any) -> None:
            tape.add("validation_epoch_end", outputs)

    build().trainer.fit(Module(tape, kit.loader))
    assert given_to(tape, "validation_epoch_end") == [kept]


def test_epoch_end_of_several_loaders_gets_a_list_for_each(build: Any, tape: Any, kit: Any) -> None:
    class Module(Life1x):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
            return (dataloader_idx, batch_idx)

        def test_epoch_end(self, outputs: Any) -> None:
            tape.add("test_epoch_end", outputs)

    build().trainer.test(Module(tape, kit.loader), [kit.loader(2), kit.loader(1)], verbose=False)
    assert given_to(tape, "test_epoch_end") == [[(0, 0), (0, 1)], [(1, 0)]]


def test_outputs_are_kept_only_if_someone_reads_them(build: Any, tape: Any, kit: Any) -> None:
    import weakref

    alive: list[list[bool]] = []
    references: list[Any] = []

    class Module(kit.Plain):
        def step(self, batch: Any) -> Any:
            extra = torch.ones(3)
            alive.append([reference() is not None for reference in references])
            references.append(weakref.ref(extra))
            return {"loss": self.layer(batch[0]).sum(), "extra": extra}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.step(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self.step(batch)

    build(callbacks=[]).fit(Module(tape), n_train=3, n_val=3)
    assert [sum(before[:-1]) for before in alive[1:]] == [0] * 5  # the last one may still be in the loop's hands


# ------------------------------------------------------------------------------------- on_train_epoch_end(outputs)


def test_on_train_epoch_end_of_1_0_gets_outputs_by_optimizer_batch_and_part(build: Any, tape: Any, kit: Any) -> None:
    class Callback(fulgur.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any, outputs: Any) -> None:
            tape.add("C.on_train_epoch_end", outputs)

    class Module(kit.Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.layer(batch[0]).sum(), "n": batch_idx}

        def on_train_epoch_end(self, outputs: Any) -> None:
            tape.add("M.on_train_epoch_end", outputs)

    build(callbacks=[Callback()], logger=False, max_epochs=2).fit(Module(tape), n_val=0)
    assert tape.events == ["C.on_train_epoch_end", "M.on_train_epoch_end"] * 2
    for _, (outputs,), _ in tape.calls:
        assert [[[part["n"] for part in batch] for batch in of_one] for of_one in outputs] == [[[0], [1]]]
        assert not outputs[0][0][0]["loss"].requires_grad


def test_on_predict_epoch_end_of_1x_gets_the_predictions_by_loader(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Plain):
        def predict_step(self, batch: Any, batch_idx: int) -> int:
            return batch_idx

        def on_predict_epoch_end(self, results: Any) -> None:
            tape.add("M.on_predict_epoch_end", results)

    build(logger=False).trainer.predict(Module(tape), kit.loader(3))
    assert given_to(tape, "M.on_predict_epoch_end") == [[0, 1, 2]]


# ------------------------------------------------------------------------------------------- several optimizers


class TwoOptimizers(fulgur.LightningModule):
    frequencies: tuple[int, ...] = ()

    def __init__(self, tape: Any) -> None:
        super().__init__()
        self.tape = tape
        self.first, self.second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        own, other = (self.first, self.second) if optimizer_idx == 0 else (self.second, self.first)
        assert own.weight.requires_grad
        assert not other.weight.requires_grad
        self.tape.add(f"training_step({batch_idx}, {optimizer_idx})")
        return {"loss": own(batch[0]).sum(), "of": (batch_idx, optimizer_idx)}

    def training_epoch_end(self, outputs: Any) -> None:
        self.tape.add("training_epoch_end", outputs)

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.first, self.second)]
        if not self.frequencies:
            return optimizers
        return [{"optimizer": o, "frequency": n} for o, n in zip(optimizers, self.frequencies, strict=True)]


STEP_HOOKS = ["on_before_zero_grad", "optimizer_zero_grad", "on_before_backward", "backward", "on_after_backward"]
STEP_HOOKS += ["on_before_optimizer_step", "configure_gradient_clipping", "optimizer_step"]


def test_several_optimizers_take_every_batch_one_after_the_other(build: Any, tape: Any, kit: Any) -> None:
    module = kit.recording(TwoOptimizers, "M", STEP_HOOKS)(tape)
    run = build(logger=False)
    run.fit(module, n_val=0)

    def step(batch_idx: int, optimizer_idx: int) -> str:
        return f"""
            M.optimizer_step
            training_step({batch_idx},_{optimizer_idx})
            C.on_before_zero_grad M.on_before_zero_grad M.optimizer_zero_grad
            C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
            C.on_before_optimizer_step M.on_before_optimizer_step M.configure_gradient_clipping
        """

    expected = kit.golden(
        f"""
        C.on_train_epoch_start
        C.on_train_batch_start {step(0, 0)} {step(0, 1)} C.on_train_batch_end
        C.on_train_batch_start {step(1, 0)} {step(1, 1)} C.on_train_batch_end
        training_epoch_end
        C.on_train_epoch_end
        """
    )
    assert [event.replace(" ", "_") for event in tape.between("C.on_train_epoch_start", "C.on_train_epoch_end")] == (
        expected
    )
    assert run.trainer.global_step == 2  # D4: one clock, however many optimizers


def test_training_epoch_end_of_two_optimizers_gets_a_list_for_each(build: Any, tape: Any, kit: Any) -> None:
    build().fit(TwoOptimizers(tape), n_val=0)
    outputs = given_to(tape, "training_epoch_end")
    assert [[output["of"] for output in of_one] for of_one in outputs] == [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]
    batch_ends = [args[2] for event, args, _ in tape.calls if event == "C.on_train_batch_end"]
    assert [[output["of"] for output in of_batch] for of_batch in batch_ends] == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]


def test_optimizers_with_frequencies_take_turns(build: Any, tape: Any, kit: Any) -> None:
    class Module(TwoOptimizers):
        frequencies = (2, 1)

    run = build(max_epochs=2)
    run.fit(Module(tape), n_train=4, n_val=0)
    epoch = [f"training_step({batch_idx}, {index})" for batch_idx, index in enumerate([0, 0, 1, 0])]
    assert [event for event in tape.events if event.startswith("training_step")] == epoch * 2
    assert run.trainer.global_step == 8
    outputs = given_to(tape, "training_epoch_end")
    assert [[output["of"] for output in of_one] for of_one in outputs] == [[(0, 0), (1, 0), (3, 0)], [(2, 1)]]
    batch_ends = [args[2] for event, args, _ in tape.calls if event == "C.on_train_batch_end"]
    assert [output["of"] for output in batch_ends[:4]] == [(0, 0), (1, 0), (2, 1), (3, 0)]


# ----------------------------------------------------------------------------------------------- hooks that are gone

EARLIER = [
    "on_pretrain_routine_start",
    "on_pretrain_routine_end",
    "on_epoch_start",
    "on_epoch_end",
    "on_batch_start",
    "on_batch_end",
]


def earlier(base: Any, who: str, hooks: list[str]) -> Any:
    """A subclass of `base` with hooks of 1.x that note themselves."""
    return type("Earlier", (base,), {hook: lambda self, *args, e=f"{who}.{hook}": self.tape.add(e) for hook in hooks})


def test_hooks_of_1x_run_beside_those_of_today(build: Any, tape: Any, kit: Any) -> None:
    names = ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_epoch_end"]
    names += ["on_train_batch_start", "on_train_batch_end"]
    module = earlier(kit.recording(kit.Plain, "M", names), "M", EARLIER)(tape)
    callback = earlier(kit.recording(kit.Stateful, "C", names), "C", EARLIER)(tape)
    build(callbacks=[callback], logger=False).fit(module, n_train=1, n_val=0)
    assert tape.events == kit.golden(
        """
        C.on_fit_start M.on_fit_start
        C.on_pretrain_routine_start M.on_pretrain_routine_start
        C.on_pretrain_routine_end M.on_pretrain_routine_end
        C.on_train_start M.on_train_start
        C.on_epoch_start M.on_epoch_start
        C.on_train_epoch_start M.on_train_epoch_start
        C.on_batch_start M.on_batch_start
        C.on_train_batch_start M.on_train_batch_start
        C.on_batch_end M.on_batch_end
        C.on_train_batch_end M.on_train_batch_end
        C.on_epoch_end M.on_epoch_end
        C.on_train_epoch_end M.on_train_epoch_end
        """
    )


def test_hooks_of_1x_get_trainer_and_module(build: Any, tape: Any, kit: Any) -> None:
    seen = []

    class Callback(fulgur.Callback):
        def on_batch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append((trainer, pl_module))

    run, module = build(callbacks=[Callback()]), kit.Plain(tape)
    run.fit(module, n_train=1, n_val=0)
    assert seen == [(run.trainer, module)]


def test_batch_hooks_that_require_a_dataloader_idx_get_zero(build: Any, tape: Any, kit: Any) -> None:
    class Callback(fulgur.Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            tape.add("on_train_batch_start", batch_idx, dataloader_idx)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            tape.add("on_train_batch_end", batch_idx, dataloader_idx)

        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            tape.add("on_validation_batch_end", batch_idx, dataloader_idx)

    class Module(kit.Plain):
        def on_train_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int) -> int | None:
            tape.add("M.on_train_batch_start", batch_idx, dataloader_idx)
            return -1 if batch_idx == 1 else None

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            tape.add("M.validation_step", batch_idx, dataloader_idx)

    run = build(callbacks=[Callback()], logger=False)
    run.fit(Module(tape))
    run.trainer.validate(Module(tape), [kit.loader(1), kit.loader(1)], verbose=False)
    assert [(event, args) for event, args, _ in tape.calls] == [
        ("on_train_batch_start", (0, 0)),
        ("M.on_train_batch_start", (0, 0)),
        ("on_train_batch_end", (0, 0)),
        ("on_train_batch_start", (1, 0)),
        ("M.on_train_batch_start", (1, 0)),  # -1: the epoch ends
        ("M.validation_step", (0, 0)),
        ("on_validation_batch_end", (0, 0)),
        ("M.validation_step", (0, 1)),
        ("on_validation_batch_end", (0, 1)),
    ]


def test_a_method_of_the_programs_own_under_the_name_of_an_old_hook_is_left_alone(
    build: Any, tape: Any, kit: Any
) -> None:
    class Module(kit.Plain):
        def on_epoch_end(self, outputs: list[Any]) -> None:
            tape.add("on_epoch_end", outputs)

        def on_epoch_start(self) -> None:
            tape.add("on_epoch_start", None)

    build().fit(Module(tape))
    called = {event for event, _, _ in tape.calls}
    assert "on_epoch_start" in called
    assert "on_epoch_end" not in called


def test_callbacks_hear_of_the_trainers_construction_and_of_ctrl_c(build: Any, tape: Any, kit: Any) -> None:
    class Callback(fulgur.Callback):
        def on_init_start(self, trainer: Any) -> None:
            tape.add("on_init_start", trainer)

        def on_init_end(self, trainer: Any) -> None:
            tape.add("on_init_end", trainer)

        def on_keyboard_interrupt(self, trainer: Any, pl_module: Any) -> None:
            tape.add("on_keyboard_interrupt", trainer)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            tape.add("on_exception", trainer)

    class Module(kit.Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyboardInterrupt

    run = build(callbacks=[Callback()])
    with pytest.raises(KeyboardInterrupt):
        run.fit(Module(tape))
    assert [(e, args) for e, args, _ in tape.calls if not e.startswith("L.")] == [
        ("on_init_start", (run.trainer,)),
        ("on_init_end", (run.trainer,)),
        ("on_exception", (run.trainer,)),
        ("on_keyboard_interrupt", (run.trainer,)),
    ]
