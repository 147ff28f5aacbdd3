"""What is called in fit, in which order: with everything overridden, and with only some of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def test_fit_with_datamodule_scheduler_sanity_check_and_checkpoint(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.ModuleBesideData):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    run = build(num_sanity_val_steps=1, enable_checkpointing=True)
    run.trainer.fit(Module(tape), datamodule=kit.Data(tape, n_train=2, n_val=1))

    assert tape.events == kit.golden(
        """
        M.configure_callbacks
        D.prepare_data M.prepare_data
        L.experiment
        D.setup(fit) C.setup(fit) M.setup(fit)
        M.configure_model
        M.configure_optimizers
        C.on_fit_start M.on_fit_start
        L.log_graph L.save
        C.on_sanity_check_start
          D.val_dataloader
          EVAL_BEGIN EVAL_BATCH EVAL_EPOCH_END EVAL_END
        C.on_sanity_check_end
        D.train_dataloader
        C.on_train_start M.on_train_start
        EPOCH_START
          TRAIN_STEP BATCH_END
          L.log_metrics(0) L.save
          TRAIN_STEP M.lr_scheduler_step BATCH_END
          L.log_metrics(1) L.save
          M.on_validation_model_zero_grad
          EVAL_BEGIN EVAL_BATCH EVAL_EPOCH_END L.log_metrics(1) L.save EVAL_END
        EPOCH_END
          M.state_dict C.state_dict D.state_dict C.on_save_checkpoint M.on_save_checkpoint L.after_save_checkpoint
        C.on_train_end M.on_train_end
        C.on_fit_end M.on_fit_end
        D.teardown(fit) C.teardown(fit) M.teardown(fit)
        L.finalize(success)
        """,
        data="D",
    )


def test_fit_with_loaders_of_the_module(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.recording(kit.Module, "M", ["train_dataloader", "val_dataloader"])):
        def train_dataloader(self) -> Any:
            self.tape.add("M.train_dataloader")
            return kit.loader(1)

        def val_dataloader(self) -> Any:
            self.tape.add("M.val_dataloader")
            return kit.loader(1)

    build(logger=False).trainer.fit(Module(tape))

    # without a sanity check the validation loader is asked for before training starts, not within the first epoch
    assert tape.events == kit.golden(
        """
        M.configure_callbacks
        M.prepare_data
        C.setup(fit) M.setup(fit)
        M.configure_model
        M.configure_optimizers
        C.on_fit_start M.on_fit_start
        M.train_dataloader M.val_dataloader
        C.on_train_start M.on_train_start
        EPOCH_START
          TRAIN_STEP BATCH_END
          M.on_validation_model_zero_grad
          EVAL_BEGIN EVAL_BATCH EVAL_EPOCH_END EVAL_END
        EPOCH_END
        C.on_train_end M.on_train_end
        C.on_fit_end M.on_fit_end
        C.teardown(fit) M.teardown(fit)
        """
    )


def test_validation_loader_is_asked_for_late_if_the_first_epoch_does_not_validate(
    build: Any, tape: Any, kit: Any
) -> None:
    run = build(max_epochs=2, check_val_every_n_epoch=2)
    run.trainer.fit(kit.ModuleBesideData(tape), datamodule=kit.Data(tape, n_train=1))
    assert tape.only("D.train_dataloader", "D.val_dataloader", "M.training_step", "M.validation_step") == [
        "D.train_dataloader",
        "M.training_step",
        "M.training_step",
        "D.val_dataloader",
        "M.validation_step",
    ]


def test_hyperparameters_of_module_and_datamodule_reach_the_loggers_before_the_graph(
    build: Any, tape: Any, kit: Any
) -> None:
    class Module(kit.ModuleBesideData):
        def __init__(self, tape: Any, width: int = 3) -> None:
            super().__init__(tape)
            self.save_hyperparameters(ignore="tape")

    class Data(kit.Data):
        def __init__(self, tape: Any, folds: int = 5) -> None:
            super().__init__(tape)
            self.save_hyperparameters(ignore="tape")

    build().trainer.fit(Module(tape), datamodule=Data(tape))
    assert [e for e in tape.events if e.startswith("L.")][:4] == [
        "L.experiment",
        "L.log_hyperparams",
        "L.log_graph",
        "L.save",
    ]
    sent = next(args[0] for event, args, _ in tape.calls if event == "L.log_hyperparams")
    assert sent == {"width": 3, "folds": 5}


def test_accumulation_steps_at_each_window_and_at_the_last_batch(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    run = build(accumulate_grad_batches=2)
    run.fit(Module(tape), n_train=3, n_val=0)

    assert tape.between("C.on_train_epoch_start", "M.on_train_epoch_end") == kit.golden(
        """
        EPOCH_START
          TRANSFER C.on_train_batch_start M.on_train_batch_start
            M.training_step
            C.on_before_zero_grad M.on_before_zero_grad M.optimizer_zero_grad
            C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
          BATCH_END

          TRANSFER C.on_train_batch_start M.on_train_batch_start
          M.optimizer_step
            M.training_step
            C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
            C.on_before_optimizer_step M.on_before_optimizer_step M.configure_gradient_clipping
          BATCH_END
          L.log_metrics(0) L.save

          TRAIN_STEP M.lr_scheduler_step BATCH_END
          L.log_metrics(1) L.save
        EPOCH_END
        """
    )
    assert run.trainer.global_step == 2


def test_validation_in_the_middle_of_a_window_keeps_the_gradients(build: Any, tape: Any, kit: Any) -> None:
    build(accumulate_grad_batches=2, val_check_interval=1).fit(kit.Module(tape), n_train=2)
    assert tape.only("M.training_step", "M.on_validation_model_zero_grad", "M.validation_step") == [
        "M.training_step",
        "M.validation_step",
        "M.training_step",
        "M.on_validation_model_zero_grad",
        "M.validation_step",
    ]


class TestManualOptimization:
    def test_two_optimizers(self, build: Any, tape: Any, kit: Any) -> None:
        class Module(kit.Module):
            def __init__(self, tape: Any) -> None:
                super().__init__(tape)
                self.automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = None
                self.tape.add("M.training_step")
                for optimizer in self.optimizers():
                    loss = self.loss_of(batch, "loss")
                    optimizer.zero_grad()
                    self.manual_backward(loss)
                    self.clip_gradients(optimizer, 1.0)
                    optimizer.step()
                return loss

            def configure_optimizers(self) -> Any:
                self.tape.add("M.configure_optimizers")
                optimizers = [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(2)]
                return optimizers, [torch.optim.lr_scheduler.StepLR(o, 1) for o in optimizers]

        run = build()
        run.fit(Module(tape), n_val=0)

        assert tape.between("C.on_train_epoch_start", "M.on_train_epoch_end") == kit.golden(
            """
            EPOCH_START
              TRANSFER C.on_train_batch_start M.on_train_batch_start
              M.training_step
                C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
                C.on_before_optimizer_step M.on_before_optimizer_step
                C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
                C.on_before_optimizer_step M.on_before_optimizer_step
              BATCH_END
              L.log_metrics(0) L.save

              TRANSFER C.on_train_batch_start M.on_train_batch_start
              M.training_step
                C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
                C.on_before_optimizer_step M.on_before_optimizer_step
                C.on_before_backward M.on_before_backward M.backward C.on_after_backward M.on_after_backward
                C.on_before_optimizer_step M.on_before_optimizer_step
              BATCH_END
              L.log_metrics(1) L.save
            EPOCH_END
            """
        )
        assert run.trainer.global_step == 2  # D4: batches that updated, not optimizer steps

    def test_clock_stands_still_in_a_batch_that_steps_nothing(self, build: Any, tape: Any, kit: Any) -> None:
        class Module(kit.Plain):
            def __init__(self, tape: Any) -> None:
                super().__init__(tape)
                self.automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> None:
                self.manual_backward(self.loss_of(batch, "loss"))
                if batch_idx % 2:
                    self.optimizers().step()
                    self.optimizers().zero_grad()

        run = build()
        run.fit(Module(tape), n_train=4, n_val=0)
        assert run.trainer.global_step == 2
        assert tape.only("L.log_metrics(0)", "L.log_metrics(1)") == ["L.log_metrics(0)", "L.log_metrics(1)"]


# ------------------------------------------------------------------------------------------- plateau schedulers


def plateau(kit: Any, **config: Any) -> Any:
    class Module(kit.Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"} | config}

    return Module


def test_plateau_scheduler_steps_after_the_hooks_of_the_epochs_end_and_before_the_checkpoint(
    build: Any, tape: Any, kit: Any
) -> None:
    """Before the save, on purpose: a checkpoint of an epoch's end holds the learning rate of the next epoch."""
    run = build(enable_checkpointing=True, max_epochs=2)
    run.fit(plateau(kit)(tape), n_train=1)
    epoch = ["M.on_validation_end", "C.on_train_epoch_end", "M.on_train_epoch_end"]
    epoch += ["M.lr_scheduler_step", "M.on_save_checkpoint"]
    assert tape.only(*epoch) == epoch * 2
    steps = [args for event, args, _ in tape.calls if event == "M.lr_scheduler_step"]
    assert [type(scheduler).__name__ for scheduler, _ in steps] == ["ReduceLROnPlateau"] * 2
    assert float(steps[-1][1]) == float(run.trainer.callback_metrics["val_loss"])


def test_plateau_scheduler_per_step_steps_after_the_validation_of_its_batch(build: Any, tape: Any, kit: Any) -> None:
    build(val_check_interval=1).fit(plateau(kit, interval="step")(tape), n_train=2)
    batch = ["M.on_train_batch_end", "M.on_validation_end", "M.lr_scheduler_step"]
    assert tape.only(*batch, "M.on_train_epoch_end") == [*batch, *batch, "M.on_train_epoch_end"]


def test_step_scheduler_steps_before_on_train_batch_end_of_every_updating_batch(
    build: Any, tape: Any, kit: Any
) -> None:
    class Module(kit.Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    build(accumulate_grad_batches=2).fit(Module(tape), n_train=3, n_val=0)
    assert tape.only("M.training_step", "M.lr_scheduler_step", "C.on_train_batch_end") == [
        "M.training_step",
        "C.on_train_batch_end",
        "M.training_step",
        "M.lr_scheduler_step",
        "C.on_train_batch_end",
        "M.training_step",
        "M.lr_scheduler_step",
        "C.on_train_batch_end",
    ]
    assert next(args for event, args, _ in tape.calls if event == "M.lr_scheduler_step")[1] is None


# ------------------------------------------------------------------------------- -1 from on_train_batch_start


def test_minus_one_from_on_train_batch_start_ends_the_epoch_without_validation(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Module):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            super().on_train_batch_start(batch, batch_idx)
            return -1 if batch_idx == 1 else None

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    run = build(max_epochs=2, logger=False)
    run.fit(Module(tape), n_train=3)
    epoch = kit.golden(
        """
        EPOCH_START
          TRAIN_STEP BATCH_END
          TRANSFER C.on_train_batch_start M.on_train_batch_start
          M.lr_scheduler_step
        EPOCH_END
        """
    )
    assert tape.between("C.on_train_epoch_start", "M.on_train_epoch_end") == epoch * 2
    assert (run.trainer.current_epoch, run.trainer.global_step) == (2, 2)


def test_minus_one_from_a_callbacks_on_train_batch_start_is_ignored(build: Any, tape: Any, kit: Any) -> None:
    class Refusing(kit.Callback):
        def on_train_batch_start(self, *args: Any) -> int:
            return -1

    build(callbacks=[Refusing(tape)]).fit(kit.Module(tape), n_train=3, n_val=0)
    assert tape.only("M.training_step") == ["M.training_step"] * 3


# ------------------------------------------------------------------------------------ only some of it overridden

PARTS = [
    ["on_before_zero_grad"],
    ["optimizer_zero_grad"],
    ["on_before_backward", "on_after_backward"],
    ["backward", "on_after_backward"],
    ["on_before_optimizer_step"],
    ["configure_gradient_clipping", "on_before_optimizer_step"],
    ["on_train_batch_start", "on_train_batch_end"],
    ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"],
    ["optimizer_step"],
    ["lr_scheduler_step", "on_train_batch_end"],
    ["transfer_batch_to_device", "on_train_batch_start"],
    ["on_after_batch_transfer", "on_train_batch_start"],
    ["on_validation_model_eval", "on_validation_start", "on_validation_end"],
]


@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_hooks_overridden_alone_come_in_the_order_they_have_among_all(
    build: Any, tape: Any, kit: Any, parts: list[str], accumulate: int
) -> None:
    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def fitted(hooks: list[str]) -> list[str]:
        tape.clear()
        module_class: Any = kit.recording(kit.Plain, "M", hooks)
        module_class.configure_optimizers = configure_optimizers
        callback: Any = kit.recording(kit.Stateful, "C", [h for h in hooks if h in kit.CALLBACK_HOOKS])
        run = build(callbacks=[callback(tape)], accumulate_grad_batches=accumulate, logger=False, max_epochs=2)
        run.fit(module_class(tape), n_train=3)
        return list(tape.events)

    hooks = [h for h in kit.MODULE_HOOKS if h not in ("state_dict", "load_state_dict", "configure_optimizers")]
    parts = [*parts, "training_step", "validation_step"]
    expected = [event for event in fitted(hooks) if event[2:] in parts]
    assert fitted(parts) == expected
