"""What training_step may return, what hooks then get, and which arguments a step may leave out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur.errors import MisconfigurationException

LEAN_AND_FULL = pytest.mark.parametrize("base", ["Plain", "Module"])
"""`Plain` overrides no hook of the step, `Module` all of them: two ways through the loop, one result."""


def returning(base: Any, make: Any) -> Any:
    """A subclass of `base` whose training_step returns ``make(module, batch, batch_idx)``."""

    class Returning(base):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.tape.add("M.training_step")
            return make(self, batch, batch_idx)

    return Returning


def outputs_of(tape: Any) -> list[Any]:
    return [args[2] for event, args, _ in tape.calls if event == "C.on_train_batch_end"]


def loss(module: Any, batch: Any) -> Any:
    return module.layer(batch[0]).sum()


@LEAN_AND_FULL
def test_tensor(build: Any, tape: Any, kit: Any, base: str) -> None:
    build().fit(returning(getattr(kit, base), lambda m, b, i: loss(m, b))(tape), n_train=1, n_val=0)
    [outputs] = outputs_of(tape)
    assert list(outputs) == ["loss"]
    assert not outputs["loss"].requires_grad


@LEAN_AND_FULL
def test_dict_passes_other_keys_through_unchanged(build: Any, tape: Any, kit: Any, base: str) -> None:
    extra = {"anything": object()}
    kept = []

    def make(module: Any, batch: Any, batch_idx: int) -> Any:
        kept.append(module.layer(batch[0]))
        return {"loss": kept[0].sum(), "hidden": kept[0], "extra": extra}

    build().fit(returning(getattr(kit, base), make)(tape), n_train=1, n_val=0)
    [outputs] = outputs_of(tape)
    assert not outputs["loss"].requires_grad
    assert outputs["hidden"] is kept[0]  # not detached
    assert outputs["extra"] is extra


@LEAN_AND_FULL
def test_outputs_hold_the_loss_divided_by_the_window(build: Any, tape: Any, kit: Any, base: str) -> None:
    constant = returning(getattr(kit, base), lambda m, b, i: loss(m, b) * 0 + 6)
    build(accumulate_grad_batches=2).fit(constant(tape), n_train=3, n_val=0)
    assert [float(outputs["loss"]) for outputs in outputs_of(tape)] == [3.0, 3.0, 6.0]  # D1: the true length


class TestNone:
    """D10: a batch whose step returns None is skipped."""

    @LEAN_AND_FULL
    @pytest.mark.filterwarnings("ignore:training_step returned None for all")
    def test_skips_backward_optimizer_step_and_clock(self, build: Any, tape: Any, kit: Any, base: str) -> None:
        stepped = []

        class Optimizer(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                result = closure() if closure is not None else None
                stepped.append(1)
                return result

        class Module(returning(getattr(kit, base), lambda m, b, i: None)):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                return Optimizer(self.parameters(), lr=0.01)

        run = build()
        with pytest.warns(match="returned None for all 2 batches"):
            run.fit(Module(tape), n_train=2, n_val=0)
        assert stepped == []
        assert run.trainer.global_step == 0
        assert outputs_of(tape) == [{}, {}]
        never = ["backward", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
        assert tape.only(*(f"{who}.{hook}" for who in "CM" for hook in never)) == []
        assert tape.only("M.configure_gradient_clipping") == []
        assert tape.only("C.on_train_batch_end") == ["C.on_train_batch_end"] * 2

    def test_sequence(self, build: Any, tape: Any, kit: Any) -> None:
        module = returning(kit.Module, lambda m, b, i: None if i == 0 else loss(m, b))(tape)
        run = build(logger=False)
        run.fit(module, n_train=2, n_val=0)
        assert tape.between("C.on_train_epoch_start", "M.on_train_epoch_end") == kit.golden(
            """
            EPOCH_START
              TRANSFER C.on_train_batch_start M.on_train_batch_start
              M.optimizer_step M.training_step C.on_before_zero_grad M.on_before_zero_grad M.optimizer_zero_grad
              BATCH_END
              TRAIN_STEP BATCH_END
            EPOCH_END
            """
        )
        assert run.trainer.global_step == 1

    @LEAN_AND_FULL
    def test_in_a_window_steps_with_what_the_others_gave(self, build: Any, tape: Any, kit: Any, base: str) -> None:
        seen = []

        class Callback(kit.Callback):
            def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                seen.append(pl_module.layer.bias.grad.item())

        module = returning(getattr(kit, base), lambda m, b, i: None if i == 1 else m.layer(b[0]).sum())(tape)
        run = build(callbacks=[Callback(tape)], accumulate_grad_batches=2)
        run.fit(module, n_train=4, n_val=0)
        # two samples a batch: the bias gets 2 from each loss, and a window is averaged over the losses it has
        assert seen == [2.0, 2.0]
        assert run.trainer.global_step == 2

    @LEAN_AND_FULL
    def test_step_schedulers_stand_still(self, build: Any, tape: Any, kit: Any, base: str) -> None:
        class Module(returning(getattr(kit, base), lambda m, b, i: None if i else loss(m, b))):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
                return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        run = build()
        run.fit(Module(tape), n_train=3, n_val=0)
        assert run.trainer.optimizers[0].param_groups[0]["lr"] == 0.5


@LEAN_AND_FULL
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "returned 0.5 of type float"),
        ([1], r"returned \[1\] of type list"),
        ("loss", "returned 'loss' of type str"),
        ({"other": 1}, r"without 'loss'; its keys are \['other'\]"),
        ({"loss": None}, "None under 'loss'"),
        ({"loss": 0.5}, "0.5 of type float under 'loss'"),
        (torch.zeros(2, requires_grad=True), r"shape \(2,\)"),
        (torch.tensor(1.0), "has no gradient"),
    ],
    ids=str,
)
def test_unusable(build: Any, tape: Any, kit: Any, base: str, value: Any, message: str) -> None:
    module = returning(kit.Plain, lambda m, b, i: value)(tape)
    if base == "Module":
        module = returning(kit.Module, lambda m, b, i: value)(tape)
    with pytest.raises(MisconfigurationException, match=message):
        build().fit(module, n_val=0)


class TestManualOptimization:
    def outputs(self, build: Any, tape: Any, kit: Any, make: Any) -> Any:
        module = returning(kit.Plain, make)(tape)
        module.automatic_optimization = False
        build().fit(module, n_train=1, n_val=0)
        [outputs] = outputs_of(tape)
        return outputs

    def test_tensor(self, build: Any, tape: Any, kit: Any) -> None:
        outputs = self.outputs(build, tape, kit, lambda m, b, i: loss(m, b))
        assert list(outputs) == ["loss"]
        assert not outputs["loss"].requires_grad

    def test_dict_is_copied(self, build: Any, tape: Any, kit: Any) -> None:
        given: dict[str, Any] = {}

        def make(module: Any, batch: Any, batch_idx: int) -> Any:
            given.update(loss=loss(module, batch), extra=1)
            return given

        outputs = self.outputs(build, tape, kit, make)
        assert outputs is not given
        assert given["loss"].requires_grad
        assert not outputs["loss"].requires_grad
        assert outputs["extra"] == 1

    def test_dict_without_loss(self, build: Any, tape: Any, kit: Any) -> None:
        assert self.outputs(build, tape, kit, lambda m, b, i: {"extra": 1}) == {"extra": 1}

    def test_none(self, build: Any, tape: Any, kit: Any) -> None:
        assert self.outputs(build, tape, kit, lambda m, b, i: None) == {}

    def test_anything_else_is_an_error(self, build: Any, tape: Any, kit: Any) -> None:
        with pytest.raises(MisconfigurationException, match=r"returned float 0\.5"):
            self.outputs(build, tape, kit, lambda m, b, i: 0.5)

    def test_anything_else_is_an_error_without_listeners_too(self, build: Any, tape: Any, kit: Any) -> None:
        module = returning(kit.Plain, lambda m, b, i: 0.5)(tape)
        module.automatic_optimization = False
        with pytest.raises(MisconfigurationException, match=r"returned float 0\.5"):
            build(callbacks=[]).fit(module, n_train=1, n_val=0)


# ------------------------------------------------------------------------------------------- optional arguments


def stepping(kit: Any, step: Any, name: str = "training_step") -> Any:
    return type("Stepping", (kit.Plain,), {name: step})


def noting(key: str) -> Any:
    """The step that `key` names; it takes the arguments in its signature, and notes them."""

    def batch_only(self: Any, batch: Any) -> Any:
        self.tape.add("step", batch)
        return loss(self, batch)

    def batch_and_index(self: Any, batch: Any, batch_idx: int) -> Any:
        self.tape.add("step", batch, batch_idx)
        return loss(self, batch)

    def other_names(self: Any, data: Any, n: int) -> Any:
        self.tape.add("step", data, n)
        return loss(self, data)

    def keyword_only(self: Any, batch: Any, *, batch_idx: int) -> Any:
        self.tape.add("step", batch, batch_idx)
        return loss(self, batch)

    def any_number(self: Any, *args: Any) -> Any:
        self.tape.add("step", *args)
        return loss(self, args[0])

    return locals()[key]


@pytest.mark.parametrize(
    ("form", "indices"),
    [
        ("batch_only", [(), ()]),
        ("batch_and_index", [(0,), (1,)]),
        ("other_names", [(0,), (1,)]),
        ("keyword_only", [(0,), (1,)]),
        ("any_number", [(0,), (1,)]),
    ],
)
@pytest.mark.parametrize("name", ["training_step", "validation_step", "predict_step"])
def test_batch_idx_is_passed_if_the_signature_has_a_place_for_it(
    build: Any, tape: Any, kit: Any, form: str, indices: Any, name: str
) -> None:
    module, run = stepping(kit, noting(form), name)(tape), build(logger=False)
    if name == "training_step":
        run.fit(module, n_train=2, n_val=0)
    elif name == "validation_step":
        run.trainer.validate(module, kit.loader(2))
    else:
        run.trainer.predict(module, kit.loader(2))
    assert [args[1:] for event, args, _ in tape.calls if event == "step"] == indices


@pytest.mark.parametrize("name", ["validation_step", "test_step", "predict_step"])
def test_several_loaders_need_a_dataloader_idx(build: Any, tape: Any, kit: Any, name: str) -> None:
    module = stepping(kit, noting("batch_and_index"), name)(tape)
    entry = {"validation_step": "validate"}.get(name, name.removesuffix("_step"))
    with pytest.raises(RuntimeError, match=f"{name}.*dataloader_idx"):
        getattr(build(logger=False).trainer, entry)(module, [kit.loader(1), kit.loader(1)])


def test_several_loaders_pass_the_index_by_its_name(build: Any, tape: Any, kit: Any) -> None:
    def step(self: Any, batch: Any, batch_idx: int, *, dataloader_idx: int) -> None:
        self.tape.add("step", batch_idx, dataloader_idx)

    module = stepping(kit, step, "validation_step")(tape)
    build(logger=False).trainer.validate(module, [kit.loader(1), kit.loader(2)])
    assert [args for event, args, _ in tape.calls if event == "step"] == [(0, 0), (0, 1), (1, 1)]


def test_several_loaders_and_no_batch_idx(build: Any, tape: Any, kit: Any) -> None:
    def step(self: Any, batch: Any, dataloader_idx: int) -> None:
        self.tape.add("step", dataloader_idx)

    module = stepping(kit, step, "validation_step")(tape)
    build(logger=False).trainer.validate(module, [kit.loader(1), kit.loader(1)])
    assert [args for event, args, _ in tape.calls if event == "step"] == [(0,), (1,)]


def test_hook_without_dataloader_idx_is_an_error_with_several_loaders(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None: ...

        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

    with pytest.raises(RuntimeError, match=r"on_validation_batch_end.*dataloader_idx"):
        build(logger=False).trainer.validate(Module(tape), [kit.loader(1), kit.loader(1)])


def test_dataloader_iter_gets_an_iterator_and_no_transfer_hooks(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.recording(kit.Plain, "M", ["on_before_batch_transfer", "on_after_batch_transfer"])):
        def training_step(self, dataloader_iter: Any) -> Any:
            batch, batch_idx, dataloader_idx = next(dataloader_iter)
            self.tape.add("step", batch_idx, dataloader_idx)
            return loss(self, batch)

    run = build()
    run.fit(Module(tape), n_train=3, n_val=0)
    assert [args for event, args, _ in tape.calls if event == "step"] == [(0, 0), (1, 0), (2, 0)]
    assert tape.only("M.on_before_batch_transfer", "M.on_after_batch_transfer") == []
    assert run.trainer.global_step == 3


# ---------------------------------------------------------------------------------------- hooks on the instance


def test_hooks_assigned_on_the_instance_are_called(build: Any, tape: Any, kit: Any) -> None:
    module, callback = kit.Plain(tape), kit.Stateful(tape)
    names = ["on_train_start", "on_train_batch_start", "on_train_batch_end", "on_validation_epoch_end"]
    names += ["on_train_epoch_end", "on_before_optimizer_step", "setup", "teardown"]
    for who, owner in (("M", module), ("C", callback)):
        for name in names:
            setattr(owner, name, lambda *args, event=f"{who}.{name}", **kwargs: tape.add(event))
    build(callbacks=[callback], logger=False).fit(module, n_train=1)
    assert tape.events == [
        "C.setup",
        "M.setup",
        "C.on_train_start",
        "M.on_train_start",
        "C.on_train_batch_start",
        "M.on_train_batch_start",
        "C.on_before_optimizer_step",
        "M.on_before_optimizer_step",
        "C.on_train_batch_end",
        "M.on_train_batch_end",
        "C.on_validation_epoch_end",
        "M.on_validation_epoch_end",
        "C.on_train_epoch_end",
        "M.on_train_epoch_end",
        "C.teardown",
        "M.teardown",
    ]


def test_steps_and_loaders_assigned_on_the_instance_are_used(build: Any, tape: Any, kit: Any) -> None:
    import fulgur

    module = fulgur.LightningModule()
    module.layer = torch.nn.Linear(2, 1)

    def training_step(batch: Any, batch_idx: int) -> Any:
        tape.add("training_step")
        return loss(module, batch)

    module.training_step = training_step
    module.validation_step = lambda batch, batch_idx: tape.add("validation_step")
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    module.train_dataloader = module.val_dataloader = lambda: kit.loader(1)
    build(callbacks=[], logger=False).trainer.fit(module)
    assert tape.events == ["training_step", "validation_step"]


def test_wrapper_around_the_base_method_is_no_override(build: Any, tape: Any, kit: Any) -> None:
    import functools

    import fulgur

    class Module(kit.Plain):
        @functools.wraps(fulgur.LightningModule.prepare_data)
        def prepare_data(self) -> None:
            self.tape.add("never")

    build().fit(Module(tape))
    assert tape.only("never") == []
