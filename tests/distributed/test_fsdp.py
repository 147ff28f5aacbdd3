"""FSDP2 through the Trainer: the bits of a hand-written loop, the numbers of one process."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulgur import Callback, LightningModule, Trainer
from fulgur.errors import MisconfigurationException
from fulgur.precision import Precision
from fulgur.strategies import FSDPStrategy
from fulgur.testing import run_ranks

N_SAMPLES = 16
Weights = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.linear(x)))


class Net(LightningModule):
    """Blocks, which are units, between layers that are not, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale.sum()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        x, y = batch
        loss = mse_loss(Net.forward(self, x), y)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val", mse_loss(self(x), y))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return Net.forward(self, batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def build_net(cls: type[Net] = Net, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return cls().to(dtype)


def loader(batch_size: int, n_samples: int = N_SAMPLES, dtype: torch.dtype = torch.float32) -> DataLoader[Any]:
    x = torch.randn(n_samples, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=batch_size)


def trainer(strategy: Any, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 2, "devices": "auto", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", strategy=strategy, **quiet, **(defaults | arguments))


def weights_of(module: nn.Module) -> Weights:
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in module.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in whole.items()}


def largest_difference(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def fit(strategy: dict[str, Any], arguments: dict[str, Any], dtype: torch.dtype = torch.float32) -> Weights:
    net = build_net(dtype=dtype)
    batch_size = 4 if dtype == torch.float32 else 8 // dist_size()
    trainer(FSDPStrategy(**strategy), **arguments).fit(net, loader(batch_size, dtype=dtype))
    return weights_of(net)


def dist_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


# ------------------------------------------------------------------------------------------------ a hand-written loop


def fit_by_hand(
    *,
    accumulate: int = 1,
    clip: float | None = None,
    reshard: bool | None = None,
    policy: dict[str, Any] | None = None,
    autocast: bool = False,
) -> Weights:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    net, rank, size = build_net(), dist.get_rank(), dist.get_world_size()
    options: dict[str, Any] = {} if reshard is None else {"reshard_after_forward": reshard}
    for block in net.blocks:
        fully_shard(block, mp_policy=MixedPrecisionPolicy(**(policy or {})), **options)
    fully_shard(net, mp_policy=MixedPrecisionPolicy(**(policy or {}), cast_forward_inputs=False), **options)
    optimizer = net.configure_optimizers()
    batches = list(loader(4))[rank::size]
    for _ in range(2):
        for index, (x, y) in enumerate(batches):
            updates = (index + 1) % accumulate == 0
            net.set_requires_gradient_sync(updates)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = mse_loss(net(x), y)
            (loss / accumulate).backward()
            if updates:
                if clip is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return weights_of(net)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "accumulation": ({}, {"accumulate_grad_batches": 2}, {"accumulate": 2}),
    "clipping": ({}, {"gradient_clip_val": 0.1}, {"clip": 0.1}),
    "gathered until backward": ({"sharding_strategy": "SHARD_GRAD_OP"}, {}, {"reshard": False}),
    "recomputation": ({"activation_checkpointing_policy": {Block}}, {}, {}),
    "bf16-mixed": (
        {},
        {"precision": "bf16-mixed"},
        {"policy": {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}, "autocast": True},
    ),
}


def fit_both_ways() -> dict[str, bool]:
    equal = {}
    for name, (strategy, arguments, by_hand) in CASES.items():
        ours, theirs = fit(strategy, arguments), fit_by_hand(**by_hand)
        equal[name] = all(torch.equal(ours[key], theirs[key]) for key in theirs)
    return equal


@pytest.mark.world_size(2)
def test_parameters_equal_a_hand_written_loop_bit_for_bit() -> None:
    assert run_ranks(fit_both_ways, 2) == [dict.fromkeys(CASES, True)] * 2


# ------------------------------------------------------------------------------------------------------ one process


def fit_like_one(strategy: dict[str, Any]) -> Weights:
    net = build_net(dtype=torch.float64)
    run = trainer(FSDPStrategy(**strategy), gradient_clip_val=0.5, accumulate_grad_batches=2)
    run.fit(net, loader(8 // dist_size(), dtype=torch.float64), loader(4, n_samples=6, dtype=torch.float64))
    return weights_of(net) | {name: run.callback_metrics[name] for name in ("loss", "val")}


@pytest.fixture(scope="module")
def of_one_process() -> Weights:
    return run_ranks(fit_like_one, 1, {})[0]


@pytest.mark.parametrize(
    ("n_ranks", "strategy"),
    [
        pytest.param(2, {}, marks=pytest.mark.world_size(2)),
        pytest.param(2, {"auto_wrap_policy": {nn.Linear}}, marks=pytest.mark.world_size(2)),
        pytest.param(4, {"device_mesh": (2, 2)}, marks=pytest.mark.world_size(4)),
        pytest.param(4, {"sharding_strategy": "SHARD_GRAD_OP"}, marks=pytest.mark.world_size(4)),
    ],
)
def test_same_global_batch_gives_the_numbers_of_one_process(
    n_ranks: int, strategy: dict[str, Any], of_one_process: Weights
) -> None:
    for found in run_ranks(fit_like_one, n_ranks, strategy):
        assert largest_difference(found, of_one_process) < 1e-12


# --------------------------------------------------------------------------------------------------- the collectives


def count_collectives() -> dict[str, list[str]]:
    """What torch.distributed is asked for in the last optimizer step, by name."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: list[str] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "c10d":
                calls.append(func._opname)
            return func(*args, **(kwargs or {}))

    class Watch(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx % trainer.accumulate_grad_batches == 0:
                calls.clear()

    found = {}
    for name, accumulate in (("every batch", 1), ("second batch", 2)):
        run = trainer(FSDPStrategy(), callbacks=[Watch()], max_epochs=1, accumulate_grad_batches=accumulate)
        kept: list[str] = []

        class Keep(Callback):
            def on_train_batch_end(self, *args: Any, kept: list[str] = kept) -> None:
                kept[:] = calls

        run.callbacks.append(Keep())
        with Recorded():
            run.fit(build_net(), loader(4))
        found[name] = sorted(kept)
    return found


@pytest.mark.world_size(2)
def test_only_the_collectives_of_fsdp_run_in_a_step() -> None:
    # forward: the root and three blocks; backward: the blocks again, while the root is still gathered
    gathers, reductions = ["_allgather_base_"] * 7, ["_reduce_scatter_base_"] * 4
    expected = {"every batch": [*gathers, *reductions], "second batch": [*gathers, *gathers, *reductions]}
    assert run_ranks(count_collectives, 2) == [expected] * 2


# ---------------------------------------------------------------------------------------------- batches without a loss


class Choosy(Net):
    """Returns None on one rank, in a given batch, at a given place of the step."""

    place, at, ranks = "", 0, (1,)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        skips = batch_idx == self.at and self.trainer.global_rank in self.ranks
        if skips and self.place == "before":
            return None
        x, y = batch
        if skips and self.place == "nan":
            x = x * float("nan")
        x = self.embedding(x)
        for index, block in enumerate(self.blocks):
            if skips and self.place == "amid" and index == 1:
                return None
            x = block(x)
        loss = mse_loss(self.head(x) * self.scale.sum(), y)
        return None if skips else loss


def fit_with_gaps(place: str, at: int, ranks: tuple[int, ...], arguments: dict[str, Any]) -> tuple[Weights, int]:
    net = build_net(Choosy)
    assert isinstance(net, Choosy)
    net.place, net.at, net.ranks = place, at, ranks
    run = trainer(FSDPStrategy(**arguments.pop("strategy", {})), max_epochs=1, **arguments)
    run.fit(net, loader(4))
    return weights_of(net), run.global_step


def fit_without_skipped(at: int, accumulate: int) -> Weights:
    """One process, the batches of both ranks; of batch `at` only that of rank 0."""
    net, batches = build_net(), list(loader(4))
    optimizer = net.configure_optimizers()
    for start in range(0, 2, accumulate):
        parts = [
            batches[2 * index + rank]
            for index in range(start, start + accumulate)
            for rank in (0, 1)
            if index != at or rank == 0
        ]
        loss = sum(mse_loss(net(x), y) for x, y in parts) / len(parts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(net)


GAPS = [(place, at, n) for place in ("before", "amid", "after", "nan") for at, n in ((0, 1), (1, 1), (0, 2), (1, 2))]


def fit_with_all_gaps() -> list[tuple[Weights, int]]:
    return [fit_with_gaps(place, at, (1,), {"accumulate_grad_batches": n}) for place, at, n in GAPS]


@pytest.mark.world_size(2)
def test_rank_that_returns_none_leaves_the_mean_to_the_others() -> None:
    for found in run_ranks(fit_with_all_gaps, 2, timeout_s=100):
        for (_, at, accumulate), (weights, steps) in zip(GAPS, found, strict=True):
            assert steps == 2 // accumulate
            assert largest_difference(weights, fit_without_skipped(at, accumulate)) < 2e-6


def fit_with_gap_on_all_ranks() -> list[tuple[Weights, int]]:
    return [fit_with_gaps("before", 1, (0, 1), {}), fit_with_gaps("", -1, (), {"limit_train_batches": 1})]


@pytest.mark.world_size(2)
def test_batch_without_a_loss_on_all_ranks_is_no_step() -> None:
    for (weights, steps), (expected, _) in run_ranks(fit_with_gap_on_all_ranks, 2):
        assert steps == 1
        assert largest_difference(weights, expected) == 0


# ------------------------------------------------------------------------------------------------------- all the rest


def fit_after_validate() -> list[Any]:
    """Calls of the Trainer one after the other, on a module that is sharded by the first of them."""
    net = build_net()
    first = trainer(FSDPStrategy())
    before = first.validate(net, loader(4, n_samples=7), verbose=False)
    first.fit(net, loader(4), loader(4, n_samples=5))
    after = trainer(FSDPStrategy()).validate(net, loader(4, n_samples=7), verbose=False)
    predictions = trainer(FSDPStrategy()).predict(net, loader(4, n_samples=3))
    assert predictions is not None
    return [before[0]["val"], after[0]["val"], sum(len(part) for part in predictions), weights_of(net)]


@pytest.mark.world_size(2)
def test_module_is_evaluated_before_and_after_training() -> None:
    first, second = run_ranks(fit_after_validate, 2)
    assert first[:2] == second[:2]
    assert first[1] < first[0]
    assert first[2] + second[2] == 3
    fitted, _ = run_ranks(fit, 2, {}, {})
    assert largest_difference(first[3], fitted) == 0


def fit_from_different_weights() -> list[Weights]:
    torch.manual_seed(int(os.environ["RANK"]))
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trainer(FSDPStrategy(), max_epochs=0).fit(net, loader(4))
    return [before, weights_of(net)]


@pytest.mark.world_size(2)
def test_all_ranks_begin_with_the_weights_of_rank_zero() -> None:
    (first, shared), (other, _) = run_ranks(fit_from_different_weights, 2)
    assert largest_difference(first, other) > 0
    assert largest_difference(first, shared) == 0


class Disturbed(Callback):
    """Uses the model between steps, so that its parameters are gathered at the wrong moment."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        with torch.no_grad():
            pl_module(torch.ones(1, 4))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        with torch.no_grad():
            pl_module(torch.ones(1, 4))


def fit_disturbed() -> tuple[Weights, Weights]:
    return fit({}, {"callbacks": [Disturbed()]}), fit({}, {})


@pytest.mark.world_size(2)
def test_callback_that_calls_the_model_changes_nothing() -> None:
    for disturbed, undisturbed in run_ranks(fit_disturbed, 2):
        assert largest_difference(disturbed, undisturbed) == 0


class OnMeta(Net):
    def __init__(self) -> None:
        LightningModule.__init__(self)

    def configure_model(self) -> None:
        if hasattr(self, "head"):
            return
        with torch.device("meta"):
            self.embedding = nn.Linear(4, 8)
            self.blocks = nn.ModuleList(Block() for _ in range(3))
            self.head = nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.ones(3))


def fit_on_meta() -> Weights:
    torch.manual_seed(0)
    net = OnMeta()
    trainer(FSDPStrategy(), max_epochs=0).fit(net, loader(4))
    return weights_of(net)


def draw_on_meta() -> Weights:
    """What one process draws for the modules, in their order."""
    net = build_net()
    torch.manual_seed(0)
    for module in (net.embedding, *(part for block in net.blocks for part in block.children()), net.head):
        module.reset_parameters()  # type: ignore[operator]
    return weights_of(net)


@pytest.mark.world_size(2)
def test_module_made_on_meta_gets_the_values_that_one_process_draws() -> None:
    expected = draw_on_meta()
    for found in run_ranks(fit_on_meta, 2):
        assert largest_difference(found, expected) == 0


class Gan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.judges = nn.ModuleList([nn.Linear(4, 1)])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        made = self.generator(batch[0])
        loss = -self.judges[0](made).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.zero_grad()
        judged = self.judges[0](self.generator(batch[0]).detach()).mean() - self.judges[0](batch[0]).mean()
        self.manual_backward(judged)
        second.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.generator, self.judges)]


def fit_gan(strategy: str) -> Weights:
    torch.manual_seed(0)
    net = Gan()
    trainer(FSDPStrategy() if strategy == "fsdp" else strategy).fit(net, loader(8 // dist_size()))
    return weights_of(net)


@pytest.mark.world_size(2)
def test_manual_optimization_trains_parts_in_turn() -> None:
    expected = run_ranks(fit_gan, 1, "auto")[0]
    for found in run_ranks(fit_gan, 2, "fsdp"):
        assert largest_difference(found, expected) < 1e-6


class ManualNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def fit_manual_net() -> None:
    trainer(FSDPStrategy()).fit(build_net(ManualNet), loader(4))


@pytest.mark.world_size(2)
def test_parameters_of_a_manual_module_itself_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="has parameters of its own: scale"):
        run_ranks(fit_manual_net, 2)


def fit_compiled() -> tuple[Weights, Weights]:
    """The last step is of two batches of unequal length."""
    net, plain = build_net(), build_net()
    trainer(FSDPStrategy()).fit(torch.compile(net, backend="eager"), loader(4, n_samples=14))  # type: ignore[arg-type]
    trainer(FSDPStrategy()).fit(plain, loader(4, n_samples=14))
    return weights_of(net), weights_of(plain)


@pytest.mark.world_size(2)
def test_compiled_module_trains_to_the_same_weights() -> None:
    for compiled, plain in run_ranks(fit_compiled, 2, timeout_s=120):
        assert largest_difference(compiled, plain) < 1e-6


def dtypes_in_a_step(precision: str) -> list[Any]:
    seen: list[Any] = []

    class Seen(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            loss = Net.training_step(self, batch, batch_idx)
            assert loss is not None
            seen[:] = [batch[1].dtype, self.head.weight.dtype, loss.dtype]
            return loss

    net = build_net(Seen)
    trainer(FSDPStrategy(), precision=precision).fit(net, loader(4))
    return [*seen, net.head.weight.dtype]


FORMATS = {
    "bf16-mixed": [torch.float32, torch.bfloat16, torch.float32, torch.float32],
    "bf16-true": [torch.bfloat16] * 4,
    "64-true": [torch.float64] * 4,
}


def all_dtypes() -> dict[str, list[Any]]:
    return {precision: dtypes_in_a_step(precision) for precision in FORMATS}


@pytest.mark.world_size(2)
def test_formats_of_labels_weights_and_loss() -> None:
    assert run_ranks(all_dtypes, 2) == [FORMATS] * 2


class Normed(Net):
    """With a layer that keeps running means, which each rank makes of its own batches."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.normed(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        return mse_loss(self(batch[0]), batch[1])


def fit_normed(sync: bool) -> list[Any]:
    torch.manual_seed(0)
    net = Normed()
    strategy = FSDPStrategy() if dist_size() > 1 else "auto"
    run = trainer(strategy, precision="64-true", sync_batchnorm=sync)
    run.fit(net, loader(8 // dist_size()), loader(4, n_samples=8))
    return [weights_of(net), net.normed.running_mean.tolist(), run.callback_metrics["val"]]


@pytest.mark.world_size(2)
def test_shared_batch_norm_equals_one_process() -> None:
    expected, _, val = run_ranks(fit_normed, 1, False)[0]
    for found, _, shared_val in run_ranks(fit_normed, 2, True):
        assert largest_difference(found, expected) < 1e-12
        assert abs(float(shared_val - val)) < 1e-12


@pytest.mark.world_size(2)
def test_running_means_of_rank_zero_are_evaluated_with() -> None:
    (_, first, val), (_, second, other) = run_ranks(fit_normed, 2, False)
    assert first == second
    assert val == other


class ScaledOnCpu(Precision):
    """What 16-mixed does on CUDA, on the CPU, in float32."""

    name = "32-true"

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=1000)

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def step_context(self) -> None:
        return None

    def init_context(self) -> Any:
        return nullcontext()


class Overflowing(Net):
    """One rank's loss is so large in its first batch that its gradients, once scaled, are not finite."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = mse_loss(Net.forward(self, batch[0]), batch[1])
        return loss * 1e25 if batch_idx == 0 and self.trainer.global_rank == 1 else loss


def fit_overflowing() -> tuple[Weights, Weights, float]:
    net, precision, seen = build_net(Overflowing), ScaledOnCpu(), []

    class Seen(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(weights_of(net))

    before = weights_of(net)
    run = trainer(FSDPStrategy(), plugins=[precision], callbacks=[Seen()], max_epochs=1, gradient_clip_val=1.0)
    run.fit(net, loader(4))
    assert largest_difference(seen[0], before) == 0
    return seen[0], seen[1], precision.scaler.get_scale()


@pytest.mark.world_size(2)
def test_overflow_on_one_rank_skips_the_step_on_all() -> None:
    for skipped, stepped, scale in run_ranks(fit_overflowing, 2):
        assert scale == 2.0**59
        assert 0 < largest_difference(skipped, stepped) < 0.02


class NormedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.linear(x))


class NormedBlocks(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([NormedBlock(), NormedBlock()]), nn.Linear(4, 1)
        self.seen: list[torch.dtype] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        block = self.blocks[0]
        block.linear.register_forward_hook(lambda m, *_: self.seen.append(m.weight.dtype))
        block.norm.register_forward_hook(lambda m, *_: self.seen.append(m.weight.dtype))
        x = batch[0]
        for inner in self.blocks:
            x = inner(x)
        return mse_loss(self.head(x), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_normed_blocks() -> list[torch.dtype]:
    torch.manual_seed(0)
    net = NormedBlocks()
    trainer(FSDPStrategy(), precision="bf16-mixed", max_epochs=1, limit_train_batches=1).fit(net, loader(4))
    return net.seen


@pytest.mark.world_size(2)
def test_batch_norms_stay_in_32_bits_under_mixed_precision() -> None:
    assert run_ranks(fit_normed_blocks, 2) == [[torch.bfloat16, torch.float32]] * 2


class Begun(Net):
    """Shards one block by itself."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if not hasattr(self.blocks[0], "reshard"):
            fully_shard(self.blocks[0], mesh=self.device_mesh)


def fit_begun() -> list[Weights]:
    begun = build_net(Begun)
    torch.manual_seed(int(os.environ["RANK"]))
    for parameter in begun.parameters():
        parameter.data.add_(torch.rand_like(parameter) * float(os.environ["RANK"]))  # rank 0's count
    for _ in range(2):
        trainer(FSDPStrategy(), max_epochs=1).fit(begun, loader(4))
    plain = build_net()
    for _ in range(2):
        trainer(FSDPStrategy(), max_epochs=1).fit(plain, loader(4))
    return [weights_of(begun), weights_of(plain)]


@pytest.mark.world_size(2)
def test_what_configure_model_leaves_whole_is_sharded_with_the_rest() -> None:
    for begun, plain in run_ranks(fit_begun, 2):
        assert largest_difference(begun, plain) == 0
