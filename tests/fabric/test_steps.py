"""What a loop calls on `Fabric` in its steps, and around them."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from fulgur import Fabric
from fulgur.fabric.values import to_scalar
from fulgur.loggers import CSVLogger, TensorBoardLogger
from fulgur.precision import Precision


def one(**arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **arguments)


def with_gradients(*values: float) -> tuple[Any, Any, Fabric]:
    fabric = one()
    net = nn.Linear(len(values), 1, bias=False)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=1.0))
    net.weight.grad = torch.tensor([values])
    return model, optimizer, fabric


# ------------------------------------------------------------------------------------------------ backward and clipping


def test_backward_passes_its_arguments_on() -> None:
    x = torch.ones(2, requires_grad=True)
    one().backward(x * 2, torch.tensor([1.0, 3.0]), retain_graph=True)
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 6.0]


def test_clipping_by_norm_returns_the_norm_before() -> None:
    model, optimizer, fabric = with_gradients(3.0, 4.0)
    assert fabric.clip_gradients(model, optimizer, max_norm=1.0).item() == 5.0
    assert model.weight.grad.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_clipping_by_another_norm() -> None:
    model, optimizer, fabric = with_gradients(3.0, -4.0)
    assert fabric.clip_gradients(model, optimizer, max_norm=2.0, norm_type=float("inf")).item() == 4.0
    assert model.weight.grad.tolist() == [[pytest.approx(1.5), pytest.approx(-2.0)]]


def test_clipping_by_value_returns_nothing() -> None:
    model, optimizer, fabric = with_gradients(3.0, -0.25)
    assert fabric.clip_gradients(model, optimizer, clip_val=1.0) is None
    assert model.weight.grad.tolist() == [[1.0, -0.25]]


def test_a_norm_that_is_not_finite_is_an_error_unless_told_otherwise() -> None:
    model, optimizer, fabric = with_gradients(float("nan"), 1.0)
    with pytest.raises(RuntimeError, match="non-finite"):
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
    norm = fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
    assert norm.isnan()


@pytest.mark.parametrize("bounds", [{}, {"clip_val": 1.0, "max_norm": 1.0}])
def test_exactly_one_bound_is_needed(bounds: Any) -> None:
    model, optimizer, fabric = with_gradients(1.0)
    with pytest.raises(ValueError, match="Give exactly one"):
        fabric.clip_gradients(model, optimizer, **bounds)


class Scaled(Precision):
    """As 16-mixed, on the CPU."""

    name = "16-mixed"

    def __init__(self, growth_interval: int = 2000) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=growth_interval)

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def step_context(self) -> None:
        return None

    def init_context(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def scaled() -> tuple[Any, Any, Fabric]:
    fabric = one(plugins=Scaled())
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.zero_()
    return *fabric.setup(net, torch.optim.SGD(net.parameters(), lr=1.0)), fabric


def test_a_scaled_loss_gives_the_step_of_an_unscaled_one() -> None:
    model, optimizer, fabric = scaled()
    fabric.backward(model(torch.ones(1, 2)).sum())
    assert model.weight.grad.tolist() == [[8.0, 8.0]]
    optimizer.step()
    assert model.weight.tolist() == [[-1.0, -1.0]]


def test_clipping_takes_the_scale_off_once() -> None:
    model, optimizer, fabric = scaled()
    fabric.backward(model(torch.tensor([[3.0, 4.0]])).sum())
    assert fabric.clip_gradients(model, optimizer, max_norm=1.0).item() == pytest.approx(5.0)
    optimizer.step()
    assert model.weight.tolist() == [[pytest.approx(-0.6), pytest.approx(-0.8)]]


def test_optimizers_that_step_after_one_backward_share_its_scale() -> None:
    fabric = one(plugins=Scaled(growth_interval=1))
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    model, *optimizers = fabric.setup(net, *(torch.optim.SGD([p], lr=1.0) for p in net.parameters()))
    for _ in range(2):
        fabric.backward(model(torch.ones(1, 2)).sum())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert (model.weight.tolist(), model.bias.tolist()) == ([[-2.0, -2.0]], [-2.0])
    assert fabric._precision.scaler.get_scale() == 16.0  # type: ignore[union-attr]


def test_a_step_with_infinite_gradients_is_left_out_and_lowers_the_scale() -> None:
    model, optimizer, fabric = scaled()
    fabric.backward(model(torch.full((1, 2), float("inf"))).sum())
    optimizer.step()
    assert model.weight.tolist() == [[0.0, 0.0]]
    fabric.backward(model(torch.ones(1, 2)).sum())
    assert fabric._precision.scaler.get_scale() == 4.0  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------- one process is a world


def test_one_process_is_a_world() -> None:
    fabric = one()
    assert (fabric.world_size, fabric.global_rank, fabric.local_rank, fabric.node_rank) == (1, 0, 0, 0)
    assert fabric.is_global_zero
    assert (fabric.num_devices, fabric.num_nodes) == (1, 1)
    assert fabric.device == torch.device("cpu")
    assert fabric.accelerator.name == "cpu"
    assert fabric.broadcast({"a": 1}) == {"a": 1}
    assert fabric.all_gather({"a": 2, "b": [torch.ones(2)]})["b"][0].tolist() == [1.0, 1.0]
    assert fabric.all_reduce(3).item() == 3
    fabric.barrier("here")
    with fabric.rank_zero_first(local=True), fabric.no_backward_sync(fabric.setup(nn.Linear(1, 1))):
        pass


def test_named_tuples_keep_their_kind() -> None:
    from typing import NamedTuple

    class Pair(NamedTuple):
        a: int
        b: str

    gathered = one().all_gather(Pair(1, "text"))
    assert (type(gathered), gathered.a.item(), gathered.b) == (Pair, 1, "text")


def test_launch_calls_the_function_with_fabric() -> None:
    fabric = one()
    assert fabric.launch(lambda given, a, b: (given is fabric, a, b), 1, b=2) == (True, 1, 2)
    assert fabric.launch() is None


def test_launch_refuses_what_it_cannot_call() -> None:
    with pytest.raises(TypeError, match="takes no argument"):
        one().launch(lambda: None)
    with pytest.raises(TypeError, match="pass a function"):
        one().launch(3)  # type: ignore[arg-type]


def test_a_subclass_runs_by_its_run() -> None:
    class Program(Fabric):
        def run(self, a: int, b: int = 0) -> Any:
            return self._is_launched, a, b

    assert Program(accelerator="cpu", devices=1).run(1, b=2) == (True, 1, 2)


# ------------------------------------------------------------------------------------------------ making and moving


def test_to_device_takes_modules_and_nestings() -> None:
    fabric, net, batch = one(), nn.Linear(1, 1), {"a": [torch.ones(1)]}
    assert fabric.to_device(net) is net
    assert fabric.to_device(batch) is batch


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_modules_and_tensors_are_made_with_the_dtype(precision: str, dtype: torch.dtype) -> None:
    fabric = one(precision=precision)
    with fabric.init_module():
        net = nn.Linear(2, 2)
    with fabric.init_tensor():
        tensor = torch.ones(1)
    with fabric.sharded_model():
        pass
    assert (net.weight.dtype, tensor.dtype, torch.ones(1).dtype) == (dtype, dtype, torch.float32)


def test_an_empty_module_draws_nothing() -> None:
    state = torch.get_rng_state()
    with one().init_module(empty_init=True):
        nn.Linear(2, 2)
    assert torch.equal(state, torch.get_rng_state())


# ------------------------------------------------------------------------------------------ callbacks, loggers, words


def test_call_calls_each_callback_that_has_the_method() -> None:
    class First:
        def on_batch(self, *args: Any, **kwargs: Any) -> None:
            called.append((args, kwargs))

    called: list[Any] = []
    fabric = one(callbacks=[First(), object(), First()])
    fabric.call("on_batch", 1, a=2)
    fabric.call("on_nothing")
    assert called == [((1,), {"a": 2})] * 2


def test_call_passes_over_what_cannot_be_called() -> None:
    class Wrong:
        on_batch = 3

    with pytest.warns(UserWarning, match=r"Wrong.on_batch is 3, which cannot be called"):
        one(callbacks=Wrong()).call("on_batch")


def test_numbers_go_to_all_loggers() -> None:
    loggers = [CSVLogger("logs", name=name) for name in ("a", "b")]
    fabric = one(loggers=loggers)
    fabric.log("loss", torch.tensor(0.5), step=1)
    fabric.log_dict({"loss": 0.25, "acc": 1}, step=2)
    assert (fabric.logger, fabric.loggers) == (loggers[0], loggers)
    for logger in loggers:
        logger.save()
        with open(f"{logger.log_dir}/metrics.csv") as file:
            assert file.read().splitlines() == ["acc,loss,step", ",0.5,1", "1,0.25,2"]


def test_without_loggers_nothing_is_read_from_the_device() -> None:
    fabric = one()
    fabric.log("loss", torch.ones(2))
    with pytest.raises(IndexError):
        _ = fabric.logger


def test_a_tensor_of_several_elements_cannot_be_logged() -> None:
    with pytest.raises(ValueError, match=r"log\('a', ...\) got a tensor of shape \(2,\)"):
        to_scalar("a", torch.ones(2))


def test_print_prints(capsys: pytest.CaptureFixture[str]) -> None:
    one().print("a", 1, sep="-")
    assert capsys.readouterr().out == "a-1\n"


def test_seed_everything_seeds() -> None:
    assert Fabric.seed_everything(11, verbose=False) == 11
    first = torch.rand(1)
    Fabric.seed_everything(11, verbose=False)
    assert torch.equal(first, torch.rand(1))


# -------------------------------------------------------------------------------------------------- the command line


def test_arguments_of_the_command_line_stand_for_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLI_USED": "1", "ACCELERATOR": "cpu", "DEVICES": "1", "PRECISION": "64-true"}.items():
        monkeypatch.setenv(f"LT_{name}", value)
    fabric = Fabric()
    assert (fabric.accelerator.name, fabric.world_size, fabric._precision.name) == ("cpu", 1, "64-true")
    assert fabric._is_launched
    with pytest.raises(ValueError, match=r"Fabric\(devices=2\) contradicts --devices=1"):
        Fabric(devices=2)


def test_the_environment_alone_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_PRECISION", "64-true")
    assert one()._precision.name == "32-true"


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_loggers_take_the_name_that_lightnings_fabric_has_for_their_folder(kind: Any) -> None:
    logger = kind(root_dir="logs", name="run", version=1)
    assert (logger.save_dir, logger.log_dir) == ("logs", os.path.join("logs", "run", "version_1"))
    with pytest.raises(TypeError, match="Give one: save_dir"):
        kind()
    with pytest.raises(TypeError, match="Give one: save_dir"):
        kind("logs", root_dir="logs")
