"""What `Fabric` hands out: models, optimizers and loaders that stand for the user's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from fulgur import Fabric, LightningModule, Trainer
from fulgur.errors import MisconfigurationException
from fulgur.fabric import is_wrapped
from fulgur.fabric.wrappers import unwrap_nested
from fulgur.strategies import DDPStrategy


class Net(nn.Module):
    kind = "net"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        self.dtypes.append(self.layer(x).dtype)
        return self.layer(x) if scale is None else self.layer(x) * scale

    def total(self, x: Tensor) -> Tensor:
        return self(x).sum()


def one(**arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **arguments)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


# -------------------------------------------------------------------------------------------------------- the module


def test_setup_returns_what_it_was_given() -> None:
    net = Net()
    first, second = sgd(net), sgd(net)
    scheduler = torch.optim.lr_scheduler.StepLR(first, 1)
    assert one().setup(net).module is net
    assert [type(part).__name__ for part in one().setup(net, first)] == ["_FabricModule", "FabricSGD"]
    assert len(one().setup(net, first, second)) == 3
    assert one().setup(net, first, scheduler=scheduler)[2] is scheduler


def test_a_model_has_the_names_attributes_and_methods_of_the_users() -> None:
    net = Net()
    model = one().setup(net)
    assert dict(model.named_parameters()).keys() == {"layer.weight", "layer.bias"}
    assert model.state_dict().keys() == net.state_dict().keys()
    assert dict(model.named_buffers()).keys() == {"seen"}
    assert [name for name, _ in model.named_modules()] == ["", "layer"]
    assert model.layer is net.layer
    assert model.kind == "net"
    assert model.total(torch.ones(1, 2)).shape == ()
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing


def test_what_is_set_on_a_model_is_set_on_the_users() -> None:
    net = Net()
    model = one().setup(net)
    model.note = 3
    model.layer = nn.Linear(2, 1)
    model.extra = nn.Parameter(torch.ones(1))
    assert (net.note, net.layer.out_features) == (3, 1)
    assert "extra" in dict(net.named_parameters())
    assert "extra" in dict(model.named_parameters())
    del model.note
    assert not hasattr(net, "note")


def test_train_and_eval_reach_the_users_module() -> None:
    net = Net()
    model = one().setup(net)
    model.eval()
    assert (model.training, net.training, net.layer.training) == (False, False, False)
    model.train()
    assert (model.training, net.training, net.layer.training) == (True, True, True)


def test_hooks_of_a_model_run_once() -> None:
    called = []
    model = one().setup(Net())
    model.register_forward_hook(lambda module, inputs, outputs: called.append(type(module).__name__))
    model(torch.ones(1, 2))
    model.forward(torch.ones(1, 2))
    assert called == ["Net", "Net"]


def test_a_model_within_another_module_keeps_its_names() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    outer = Outer(one().setup(Net()))
    assert outer.state_dict().keys() == {"inner.layer.weight", "inner.layer.bias", "inner.seen"}
    outer.double()
    assert outer.inner.module.layer.weight.dtype == torch.float64
    outer.load_state_dict({name: torch.ones_like(value) for name, value in outer.state_dict().items()})
    assert outer.inner.module.layer.bias.tolist() == [1.0, 1.0, 1.0]


def test_a_copy_of_a_model_has_its_own_weights() -> None:
    model = one().setup(Net())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.layer.weight.zero_()
    assert copied.module.layer.weight.abs().sum().item() == 0.0
    assert model.layer.weight.abs().sum().item() > 0.0
    assert torch.equal(pickle.loads(pickle.dumps(model)).layer.weight, model.layer.weight)


@pytest.mark.parametrize(
    ("precision", "weights", "within"),
    [
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("16-true", torch.float16, torch.float16),
        ("bf16-mixed", torch.float32, torch.bfloat16),
    ],
)
def test_precisions(precision: str, weights: torch.dtype, within: torch.dtype) -> None:
    fabric = one(precision=precision)
    model = fabric.setup(Net())
    outputs = model(torch.ones(1, 2), scale=torch.ones(3))
    assert (model.layer.weight.dtype, model.dtypes[0], outputs.dtype) == (weights, within, torch.float32)
    with fabric.autocast():
        assert model.module.layer(torch.ones(1, 2, dtype=weights)).dtype == within


def test_16_mixed_is_refused_on_the_cpu() -> None:
    with pytest.raises(MisconfigurationException, match="needs CUDA; this run uses cpu"):
        one(precision="16-mixed")


def test_a_marked_method_runs_under_precision() -> None:
    model = one(precision="bf16-mixed").setup(Net())
    model.total(torch.ones(1, 2))
    model.mark_forward_method("total")
    total = model.total(torch.ones(1, 2))
    assert (model.dtypes, total.dtype) == ([torch.float32, torch.bfloat16], torch.float32)


def test_marks_that_mean_nothing_are_refused() -> None:
    model = one().setup(Net())
    with pytest.raises(ValueError, match="is one already"):
        model.mark_forward_method("forward")
    with pytest.raises(AttributeError, match="Net has no method of this name"):
        model.mark_forward_method("generate")


def test_a_compiled_model_is_compiled_again() -> None:
    compiled: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append("graph")
        return graph.forward

    net = nn.Linear(2, 3)
    model = one().setup(torch.compile(net, backend=backend))
    assert model.module is net
    assert torch.equal(model(torch.ones(1, 2)), net(torch.ones(1, 2)))
    assert compiled == ["graph"]
    plain = one().setup(torch.compile(nn.Linear(2, 3), backend=backend), _reapply_compile=False)
    plain(torch.ones(1, 2))
    assert compiled == ["graph"]


# ---------------------------------------------------------------------------------------------------- the optimizers


def test_an_optimizer_stands_for_the_users() -> None:
    net = Net()
    inner = torch.optim.Adam(net.parameters(), lr=0.5)
    optimizer = one().setup_optimizers(inner)
    optimizer.param_groups[0]["lr"] = 0.25
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.optimizer is inner
    assert inner.param_groups[0]["lr"] == 0.25
    assert optimizer.state_dict() == inner.state_dict()
    assert repr(optimizer).startswith("FabricAdam")


def test_several_optimizers_come_as_a_tuple() -> None:
    net = Net()
    assert len(one().setup_optimizers(sgd(net), sgd(net))) == 2


def test_callbacks_hear_of_a_setup_and_of_each_step() -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_after_setup(self, fabric: Any, module: Any) -> None:
            self.heard.append((fabric, module))

        def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
            self.heard.append((strategy, optimizer))

    listener = Listener()
    fabric = one(callbacks=listener)
    net = Net()
    inner = sgd(net)
    model, optimizer = fabric.setup(net, inner)
    fabric.backward(model(torch.ones(1, 2)).sum())
    assert optimizer.step(lambda: torch.tensor(2.0)).item() == 2.0
    assert listener.heard == [(fabric, model), (fabric.strategy, inner)]


# -------------------------------------------------------------------------------------------------------- the loaders


def test_a_loader_stands_for_the_users() -> None:
    loader = one().setup_dataloaders(DataLoader(torch.arange(6), batch_size=2))
    assert len(loader) == 3
    assert loader.batch_size == 2
    assert loader.device == torch.device("cpu")
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
    assert one().setup_dataloaders(DataLoader(torch.arange(6)), move_to_device=False).device is None
    assert isinstance(one().setup_dataloaders(DataLoader(torch.arange(2)), DataLoader(torch.arange(2))), list)


def test_batches_are_moved() -> None:
    loader = one().setup_dataloaders(DataLoader(torch.arange(2)))
    loader._move = lambda batch: batch + 10
    assert [batch.item() for batch in loader] == [10, 11]


def test_samplers_are_told_each_pass() -> None:
    sampler = DistributedSampler(range(4), num_replicas=2, rank=0)  # type: ignore[arg-type]
    loader = one().setup_dataloaders(DataLoader(range(4), sampler=sampler))  # type: ignore[arg-type]
    epochs = []
    for _ in range(3):
        list(loader)
        epochs.append(sampler.epoch)
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize("is_before", [True, False])
def test_an_epoch_that_the_program_sets_is_gone_on_from(is_before: bool) -> None:
    sampler = DistributedSampler(range(4), num_replicas=2, rank=0)  # type: ignore[arg-type]
    loader = one().setup_dataloaders(DataLoader(range(4), sampler=sampler))  # type: ignore[arg-type]
    if not is_before:
        list(loader)
    loader.sampler.set_epoch(5)
    epochs = []
    for _ in range(2):
        list(loader)
        epochs.append(sampler.epoch)
    assert epochs == [5, 6]


def test_workers_get_seeds_of_their_own() -> None:
    fabric = one()
    fabric.seed_everything(3, workers=True, verbose=False)
    assert fabric.setup_dataloaders(DataLoader(torch.arange(2))).worker_init_fn is not None


# ----------------------------------------------------------------------------------------------------------- refusals


def test_what_was_set_up_is_known_and_not_set_up_again() -> None:
    fabric = one()
    net = Net()
    model, optimizer = fabric.setup(net, sgd(net))
    loader = fabric.setup_dataloaders(DataLoader(torch.arange(2)))
    assert [is_wrapped(part) for part in (model, optimizer, loader)] == [True] * 3
    assert [is_wrapped(part) for part in (net, optimizer.optimizer, object())] == [False] * 3
    assert unwrap_nested({"a": [model], "b": (optimizer,)}) == {"a": [net], "b": (optimizer.optimizer,)}
    for call in (
        lambda: fabric.setup(model),
        lambda: fabric.setup(Net(), optimizer),
        lambda: fabric.setup_module(model),
        lambda: fabric.setup_optimizers(optimizer),
        lambda: fabric.setup_dataloaders(loader),
    ):
        with pytest.raises(ValueError, match="set up already"):
            call()


def test_nothing_and_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="got no optimizer"):
        one().setup_optimizers()
    with pytest.raises(ValueError, match="got no loader"):
        one().setup_dataloaders()
    with pytest.raises(TypeError, match="got a list"):
        one().setup_dataloaders([1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"no_backward_sync got a Net, which fabric.setup has not returned"):
        one().no_backward_sync(Net())


def test_processes_that_were_not_started_are_told_of() -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(start_method="spawn"))
    with pytest.raises(RuntimeError, match=r"2 process\(es\) with DDPStrategy.*fabric.launch\(\)"):
        fabric.setup(Net())
    with pytest.raises(TypeError, match="starts functions"):
        fabric.launch()


# -------------------------------------------------------------------------------------------------- Lightning modules


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).sum()
        self.log("loss", loss, on_epoch=True)
        return loss

    def manual(self, batch: Tensor) -> None:
        self.manual_backward(self.layer(batch).sum())
        self.clip_gradients(self.optimizers(), gradient_clip_val=0.5)
        self.optimizers().step()


class Kept:
    """Keeps what is logged."""

    def __new__(cls) -> Any:
        from fulgur.loggers import Logger

        class Keeping(Logger):
            name, version = "kept", 0

            def __init__(self) -> None:
                self.rows: list[Any] = []

            def log_metrics(self, metrics: Any, step: int | None = None) -> None:
                self.rows.append((dict(metrics), step))

            def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
                pass

        return Keeping()


def test_a_lightning_module_speaks_to_fabric(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Kept()
    fabric = one(loggers=logger)
    module = Module()
    model, _ = fabric.setup(module, sgd(module))
    loss = model.training_step(torch.ones(1, 2), 0)
    assert logger.rows == [({"loss": loss.item()}, None)]
    assert module.fabric is fabric
    assert module.trainer is fabric
    assert (module.global_rank, module.logger) == (0, logger)
    before = module.layer.weight.detach().clone()
    module.manual(torch.ones(1, 2))
    assert (before - module.layer.weight).norm().item() <= 0.1 * 0.5
    module.print("said")
    assert capsys.readouterr().out == "said\n"
    assert module.all_gather(torch.ones(1)).tolist() == [1.0]


def test_a_module_that_fabric_had_can_be_trained_by_a_trainer() -> None:
    module = Module()
    fabric = one()
    fabric.setup(module, sgd(module))
    module.configure_optimizers = lambda: sgd(module)  # type: ignore[method-assign]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_steps=2, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(torch.ones(4, 2)))
    assert trainer.global_step == 2
    assert module.trainer is trainer
