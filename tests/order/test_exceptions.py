"""What is called after an exception, and after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur.callbacks import ModelCheckpoint


class Broken(Exception):
    """What the hooks of these tests raise."""


def breaking(base: Any, hook: str, error: BaseException) -> Any:
    """A subclass of `base` whose `hook` raises `error` after it has been noted."""

    def method(self: Any, *args: Any, **kwargs: Any) -> None:
        getattr(super(made, self), hook)(*args, **kwargs)
        raise error

    made: Any = type(f"Breaking{base.__name__}", (base,), {hook: method})
    return made


AFTER = ["C.on_exception", "D.on_exception", "D.teardown(fit)", "C.teardown(fit)", "M.teardown(fit)"]
NEVER = ["C.on_train_end", "M.on_train_end", "C.on_fit_end", "M.on_fit_end"]


@pytest.mark.parametrize("error", [Broken("on purpose"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_exception_in_a_step(build: Any, tape: Any, kit: Any, error: BaseException) -> None:
    run = build()
    module = breaking(kit.ModuleBesideData, "training_step", error)(tape)
    with pytest.raises(type(error)) as raised:
        run.trainer.fit(module, datamodule=kit.Data(tape))
    assert raised.value is error
    assert raised.value.__cause__ is None
    assert tape.between("M.training_step", "L.finalize(failed)") == ["M.training_step", *AFTER, "L.finalize(failed)"]
    assert tape.only(*NEVER) == []
    assert next(args[2] for event, args, _ in tape.calls if event == "C.on_exception") is error
    assert run.trainer.interrupted
    assert run.trainer.state.stage is None


@pytest.mark.parametrize(
    "hook",
    [
        "setup",
        "configure_model",
        "configure_optimizers",
        "on_fit_start",
        "on_train_start",
        "on_train_batch_end",
        "backward",
        "validation_step",
        "on_validation_end",
        "on_save_checkpoint",
        "on_train_end",
        "on_fit_end",
    ],
)
def test_everyone_is_told_and_torn_down_wherever_it_happens(build: Any, tape: Any, kit: Any, hook: str) -> None:
    error = Broken(hook)
    run = build(callbacks=[kit.Callback(tape), ModelCheckpoint()])
    module = breaking(kit.ModuleBesideData, hook, error)(tape)
    with pytest.raises(Broken) as raised:
        run.trainer.fit(module, datamodule=kit.Data(tape))
    assert raised.value is error
    assert tape.events[-6:] == [*AFTER, "L.finalize(failed)"]


def test_exception_before_set_up_tears_nothing_down(build: Any, tape: Any, kit: Any) -> None:
    module = breaking(kit.ModuleBesideData, "prepare_data", Broken())(tape)
    with pytest.raises(Broken):
        build().trainer.fit(module, datamodule=kit.Data(tape))
    assert tape.events[-3:] == ["C.on_exception", "D.on_exception", "L.finalize(failed)"]
    assert tape.only(*AFTER[2:]) == []


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_exception_in_an_evaluation(build: Any, tape: Any, kit: Any, stage: str) -> None:
    step = {"validate": "validation"}.get(stage, stage) + "_step"
    module = breaking(kit.Module, step, Broken())(tape)
    with pytest.raises(Broken):
        getattr(build().trainer, stage)(module, kit.loader(1))
    assert tape.between(f"M.{step}", "L.finalize(failed)") == [
        f"M.{step}",
        "C.on_exception",
        f"C.teardown({stage})",
        f"M.teardown({stage})",
        "L.finalize(failed)",
    ]


def test_gradients_and_generators_are_as_before_after_an_exception(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.rand(1)
            raise Broken

    run, module = build(num_sanity_val_steps=1), Module(tape)
    before = torch.get_rng_state()
    with pytest.raises(Broken):
        run.fit(module)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_second_exception_does_not_hide_the_first(build: Any, tape: Any, kit: Any) -> None:
    class Callback(kit.Callback):
        def on_exception(self, *args: Any) -> None:
            super().on_exception(*args)
            raise RuntimeError("second")

    class Module(breaking(kit.Module, "training_step", Broken("first"))):  # type: ignore[misc]
        def teardown(self, stage: str) -> None:
            self.tape.add("M.teardown(fit)")
            raise RuntimeError("third")

    run = build(callbacks=[Callback(tape), kit.Callback(tape)])
    with pytest.raises(Broken, match="first"), pytest.warns(match="another exception") as warned:
        run.fit(Module(tape))
    assert [text for w in warned for text in ("second", "third") if text in str(w.message)] == ["second", "third"]
    assert tape.only("C.on_exception", "C.teardown(fit)", "M.teardown(fit)", "L.finalize(failed)") == [
        *["C.on_exception"] * 2,
        *["C.teardown(fit)"] * 2,
        "M.teardown(fit)",
        "L.finalize(failed)",
    ]


def test_exception_in_teardown_of_a_good_run_is_raised_and_told(build: Any, tape: Any, kit: Any) -> None:
    error = Broken("in teardown")
    with pytest.raises(Broken) as raised:
        build().fit(breaking(kit.Module, "teardown", error)(tape))
    assert raised.value is error
    assert tape.only("C.teardown(fit)", "M.teardown(fit)", "C.on_exception") == [
        "C.teardown(fit)",
        "M.teardown(fit)",
        "C.on_exception",
    ]
    assert tape.events[-1] == "L.finalize(failed)"


def test_trainer_can_be_used_again_after_an_exception(build: Any, tape: Any, kit: Any) -> None:
    run = build()
    with pytest.raises(Broken):
        run.fit(breaking(kit.Module, "setup", Broken())(tape))
    tape.clear()
    run.fit(kit.Module(tape))
    assert tape.events[-1] == "L.finalize(success)"
    assert not run.trainer.interrupted


def test_checkpoint_on_exception_is_saved_before_teardown(build: Any, tape: Any, kit: Any) -> None:
    checkpoint = ModelCheckpoint(save_on_exception=True, every_n_train_steps=100)
    run = build(callbacks=[kit.Callback(tape), checkpoint])

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                raise Broken
            return super().training_step(batch, batch_idx)

    with pytest.raises(Broken):
        run.fit(Module(tape))
    assert tape.only("C.on_exception", "M.on_save_checkpoint", "C.teardown(fit)", "L.finalize(failed)") == [
        "C.on_exception",
        "M.on_save_checkpoint",
        "C.teardown(fit)",
        "L.finalize(failed)",
    ]
    [path] = Path(str(checkpoint.dirpath)).glob("*.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 1


# -------------------------------------------------------------------------------------------------------- Ctrl-C


def test_handler_of_the_user_stays(build: Any, tape: Any, kit: Any) -> None:
    def own(signum: int, frame: Any) -> None: ...

    seen = []

    class Module(kit.Plain):
        def on_train_start(self) -> None:
            seen.append(signal.getsignal(signal.SIGINT))

    previous = signal.signal(signal.SIGINT, own)
    try:
        build().fit(Module(tape))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == [own]


def test_default_handler_is_back_after_the_run(build: Any, tape: Any, kit: Any) -> None:
    build().fit(kit.Plain(tape))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_signal_is_raised_at_once(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return super().training_step(batch, batch_idx)

    run = build(accumulate_grad_batches=2)
    with pytest.raises(KeyboardInterrupt):
        run.fit(Module(tape), n_train=4)
    # the first comes in the first batch of a window, the second in the other one, before its step is noted
    assert tape.only("M.training_step", "M.on_train_batch_end") == ["M.training_step", "M.on_train_batch_end"]


@pytest.mark.parametrize("hook", ["training_step", "on_train_batch_start", "on_before_optimizer_step"])
def test_interrupted_window_is_finished_first(build: Any, tape: Any, kit: Any, hook: str) -> None:
    def interrupting(self: Any, *args: Any) -> Any:
        if not self.is_interrupted:
            self.is_interrupted = True
            os.kill(os.getpid(), signal.SIGINT)
        return getattr(super(interrupting_class, self), hook)(*args)

    interrupting_class: Any = type("Interrupting", (kit.Module,), {hook: interrupting, "is_interrupted": False})
    run = build(accumulate_grad_batches=2)
    with pytest.raises(KeyboardInterrupt):
        run.fit(interrupting_class(tape), n_train=4)
    assert run.trainer.global_step == 1
    assert tape.events[-3:] == ["C.teardown(fit)", "M.teardown(fit)", "L.finalize(failed)"]
    assert tape.only("M.on_train_batch_end", "M.validation_step") == ["M.on_train_batch_end"] * 2


PROGRAM = """
    import os, signal, sys
    import torch, fulgur
    from fulgur.callbacks import ModelCheckpoint

    class Model(fulgur.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step >= 3:
                os.kill(os.getpid(), signal.SIGINT)
                print("still in the step", flush=True)
            return self.layer(batch).sum()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
        def on_train_batch_end(self, outputs, batch, batch_idx):
            print("end of batch", batch_idx, flush=True)
        def teardown(self, stage):
            print("teardown", flush=True)

    trainer = fulgur.Trainer(
        accelerator="cpu", logger=False, max_epochs=-1, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath="saved", save_on_exception=True, every_n_train_steps=1000)],
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(5, 1)))
    print("not reached", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="exit codes of signals")
def test_ctrl_c_stops_at_the_step_boundary_saves_tears_down_and_exits_as_interrupted(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "end of batch 0",
        "end of batch 1",
        "end of batch 2",
        "still in the step",
        "end of batch 3",
        "teardown",
    ]
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert [path.name for path in tmp_path.glob("saved/*.ckpt")] == ["epoch=0-step=4.ckpt"]
