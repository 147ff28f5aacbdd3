"""What is called in validate, test and predict, in which order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulgur


def evaluated(run: Any, stage: str, *args: Any, **kwargs: Any) -> Any:
    if stage == "predict":
        return run.trainer.predict(*args, **kwargs)
    return getattr(run.trainer, stage)(*args, verbose=False, **kwargs)


@pytest.mark.parametrize(("stage", "prefix", "name"), [("validate", "validation", "val"), ("test", "test", "test")])
def test_validate_and_test(build: Any, tape: Any, kit: Any, stage: str, prefix: str, name: str) -> None:
    class Module(kit.Module):
        pass

    def dataloader(self: Any) -> Any:
        self.tape.add(f"M.{name}_dataloader")
        return kit.loader(2)

    setattr(Module, f"{name}_dataloader", dataloader)
    evaluated(build(), stage, Module(tape))

    assert tape.events == kit.golden(
        f"""
        M.configure_callbacks
        M.prepare_data
        L.experiment
        C.setup({stage}) M.setup({stage})
        M.configure_model
        L.log_graph L.save
        M.{name}_dataloader
        EVAL_BEGIN
          EVAL_BATCH
          EVAL_BATCH
        EVAL_EPOCH_END
        L.log_metrics(0) L.save
        EVAL_END
        C.teardown({stage}) M.teardown({stage})
        L.finalize(success)
        """,
        stage=prefix,
    )


def test_predict(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Module):
        def predict_dataloader(self) -> Any:
            self.tape.add("M.predict_dataloader")
            return kit.loader(2)

    build().trainer.predict(Module(tape))

    assert tape.events == kit.golden(
        """
        M.configure_callbacks
        M.prepare_data
        L.experiment
        C.setup(predict) M.setup(predict)
        M.configure_model
        L.log_graph L.save
        M.predict_dataloader
        EVAL_BEGIN
          EVAL_BATCH
          EVAL_BATCH
        EVAL_EPOCH_END
        EVAL_END
        C.teardown(predict) M.teardown(predict)
        L.finalize(success)
        """,
        stage="predict",
    )


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_datamodule_is_set_up_first_and_moves_the_batches(build: Any, tape: Any, kit: Any, stage: str) -> None:
    evaluated(build(logger=False), stage, kit.ModuleBesideData(tape), datamodule=kit.Data(tape))
    name = {"validate": "val"}.get(stage, stage)
    assert [event for event in tape.events if event.startswith("D.")] == kit.golden(
        f"D.prepare_data D.setup({stage}) D.{name}_dataloader TRANSFER D.teardown({stage})", data="D"
    )
    assert tape.only(f"D.setup({stage})", f"C.setup({stage})", f"M.setup({stage})") == [
        f"D.setup({stage})",
        f"C.setup({stage})",
        f"M.setup({stage})",
    ]


@pytest.mark.parametrize(("stage", "prefix"), [("validate", "validation"), ("test", "test")])
def test_model_train_hook_is_called_after_the_end_if_overridden(
    build: Any, tape: Any, kit: Any, stage: str, prefix: str
) -> None:
    hook = f"on_{prefix}_model_train"
    module = kit.recording(kit.Module, "M", [hook])(tape)
    evaluated(build(), stage, module, kit.loader(1))
    order = [f"M.on_{prefix}_model_eval", f"C.on_{prefix}_end", f"M.on_{prefix}_end", f"M.{hook}"]
    assert tape.only(*order) == order


def test_validation_in_fit_calls_the_overridden_model_train_hook_too(build: Any, tape: Any, kit: Any) -> None:
    module = kit.recording(kit.Module, "M", ["on_validation_model_train"])(tape)
    build(num_sanity_val_steps=1).fit(module)
    assert (
        tape.only("M.on_validation_end", "M.on_validation_model_train")
        == [
            "M.on_validation_end",
            "M.on_validation_model_train",
        ]
        * 2
    )


def test_modes_of_submodules_come_back_as_they_were(build: Any, tape: Any, kit: Any) -> None:
    seen = []

    class Module(kit.Plain):
        def __init__(self, tape: Any) -> None:
            super().__init__(tape)
            self.frozen, self.dropout = torch.nn.Dropout().eval(), torch.nn.Dropout()

        def modes(self, where: str) -> None:
            seen.append((where, self.training, self.frozen.training, self.dropout.training))

        def on_train_batch_start(self, *args: Any) -> None:
            self.modes("train")

        def on_validation_start(self) -> None:
            self.modes("validation")

        def on_validation_end(self) -> None:
            self.modes("validation_end")

        def on_train_epoch_end(self) -> None:
            self.modes("epoch_end")

    build().fit(Module(tape), n_train=1)
    assert seen == [
        ("train", True, False, True),
        ("validation", False, False, False),
        ("validation_end", False, False, False),
        ("epoch_end", True, False, True),
    ]


def test_gradients_are_off_in_every_hook_of_an_evaluation_and_inference_mode_only_outside_of_fit(
    build: Any, tape: Any, kit: Any
) -> None:
    seen = set()

    class Module(kit.Plain):
        def note(self, *args: Any) -> None:
            seen.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

        on_validation_start = on_validation_epoch_start = on_validation_batch_start = note
        on_validation_batch_end = on_validation_epoch_end = on_validation_end = validation_step = note

    run = build(num_sanity_val_steps=1)
    run.fit(Module(tape))
    assert seen == {(False, False)}
    seen.clear()
    evaluated(run, "validate", Module(tape), kit.loader(1))
    assert seen == {(False, True)}


def test_axis_of_a_validation_after_fit_is_the_one_of_the_fit(build: Any, tape: Any, kit: Any) -> None:
    run = build()
    module = kit.Module(tape)
    run.fit(module, n_train=3, n_val=0)
    tape.clear()
    evaluated(run, "validate", module, kit.loader(1))
    assert tape.only("L.log_metrics(0)", "L.log_metrics(2)") == ["L.log_metrics(2)"]


def test_several_loaders_run_one_after_the_other_and_reach_the_loggers_in_one_call(
    build: Any, tape: Any, kit: Any
) -> None:
    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            self.tape.add("M.validation_step", batch, batch_idx, dataloader_idx)
            self.loss_of(batch, "val_loss")

    run = build()
    evaluated(run, "validate", Module(tape), [kit.loader(2), kit.loader(1)])
    hooks = ["C.on_validation_batch_start", "M.on_validation_batch_start", "M.validation_step"]
    hooks += ["C.on_validation_batch_end", "M.on_validation_batch_end"]
    assert tape.only(*hooks) == hooks * 3
    for hook in hooks:
        assert [args[-2:] for event, args, _ in tape.calls if event == hook] == [(0, 0), (1, 0), (0, 1)]
    transfers = [args[1] for event, args, _ in tape.calls if event == "M.on_after_batch_transfer"]
    assert transfers == [0, 0, 1]
    logged = [args[0] for event, args, _ in tape.calls if event == "L.log_metrics(0)"]
    assert [sorted(values) for values in logged] == [
        ["epoch", "val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"]
    ]


def test_hooks_of_a_single_loader_get_no_dataloader_idx(build: Any, tape: Any, kit: Any) -> None:
    evaluated(build(), "test", kit.Module(tape), kit.loader(1))
    calls = {event: args[1:] for event, args, _ in tape.calls}
    assert calls["M.test_step"] == (0,)
    assert calls["M.on_test_batch_start"] == (0,)
    assert calls["C.on_test_batch_start"][2:] == (0,)


def test_outputs_reach_the_batch_end_hooks_untouched(build: Any, tape: Any, kit: Any) -> None:
    output = {"anything": object()}

    class Module(kit.Module):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return output

    evaluated(build(), "test", Module(tape), kit.loader(1))
    calls = {event: args for event, args, _ in tape.calls}
    assert calls["M.on_test_batch_end"][0] is output
    assert calls["C.on_test_batch_end"][2] is output


# ------------------------------------------------------------------------------ steps that draw their batches


class Drawing(fulgur.LightningModule):
    """Steps that get an iterator; each notes what it draws, and draws two batches where there are two more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.drawn: list[Any] = []

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        raise AssertionError("the step moves what it draws")

    def draw(self, dataloader_iter: Any) -> Any:
        drawn = [(float(batch[0, 0]), *place) for batch, *place in itertools.islice(dataloader_iter, 2)]
        self.drawn.append(drawn)
        return torch.tensor([float(value) for value, *_ in drawn])

    def validation_step(self, dataloader_iter: Any) -> None:  # type: ignore[override]
        self.log("value", self.draw(dataloader_iter).sum(), batch_size=2)

    test_step = validation_step

    def predict_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return self.draw(dataloader_iter)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(torch.ones(1, 2)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Endless(torch.utils.data.IterableDataset[Any]):
    """Rows without a length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        return (torch.full((2,), float(i)) for i in range(self.n))


def rows(n: int, *, is_sized: bool) -> DataLoader[Any]:
    data: Any = torch.arange(float(n)).unsqueeze(1).expand(n, 2) if is_sized else Endless(n)
    return DataLoader(data, batch_size=1)


def of_loader(n: int, index: int) -> list[Any]:
    """What three batches, or two, come to in steps of two."""
    drawn = [(float(i), i, index) for i in range(n)]
    return [drawn[:2], drawn[2:]] if n > 2 else [drawn]


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("lengths", [(3,), (3, 2)])
def test_evaluation_steps_that_take_an_iterator_draw_their_batches_from_it(
    build: Any, stage: str, lengths: tuple[int, ...], is_sized: bool
) -> None:
    module, loaders = Drawing(), [rows(n, is_sized=is_sized) for n in lengths]
    result = evaluated(build(callbacks=[], logger=False), stage, module, loaders)
    assert module.drawn == [step for index, n in enumerate(lengths) for step in of_loader(n, index)]
    if stage == "predict":
        first = [torch.tensor([0.0, 1.0]), torch.tensor([2.0])]
        torch.testing.assert_close(result, first if len(lengths) == 1 else [first, [torch.tensor([0.0, 1.0])]])
    else:
        assert result[0] == {"value" if len(lengths) == 1 else "value/dataloader_idx_0": 1.5}


def test_limited_iterator_of_a_step_ends_at_the_limit(build: Any) -> None:
    module = Drawing()
    build(callbacks=[], logger=False, limit_val_batches=2).trainer.validate(module, rows(5, is_sized=True))
    assert module.drawn == [[(0.0, 0, 0), (1.0, 1, 0)]]


def test_validation_in_fit_gives_the_iterator_too(build: Any) -> None:
    module = Drawing()
    module.transfer_batch_to_device = lambda batch, device, dataloader_idx: batch  # type: ignore[method-assign]
    build(callbacks=[], logger=False, max_epochs=2).trainer.fit(module, rows(2, is_sized=True), rows(3, is_sized=True))
    assert module.drawn == of_loader(3, 0) * 2
