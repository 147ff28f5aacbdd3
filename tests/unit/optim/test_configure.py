"""Every form of what configure_optimizers returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.optim import LRSchedulerConfig, OptimizerSetup, build_optimizers


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


def build(returned: Any, automatic: bool = True, override: bool = False) -> OptimizerSetup:
    return build_optimizers(returned, automatic=automatic, has_scheduler_step_override=override)


A, B = sgd(), sgd()
STEP_A, STEP_B = StepLR(A, 1), StepLR(B, 1)


def test_nothing_is_an_empty_setup() -> None:
    assert build(None) == OptimizerSetup([], [], [])


@pytest.mark.parametrize(
    ("returned", "optimizers", "schedulers"),
    [
        (A, [A], []),
        ([A], [A], []),
        ((A,), [A], []),
        ([A, B], [A, B], []),
        ((A, B), [A, B], []),
        (([A], [STEP_A]), [A], [STEP_A]),
        (([A], STEP_A), [A], [STEP_A]),
        ([[A], [STEP_A]], [A], [STEP_A]),
        (([A], []), [A], []),
        (([A], None), [A], []),
        (([A, B], [STEP_A, STEP_B]), [A, B], [STEP_A, STEP_B]),
        (([A, B], [STEP_B]), [A, B], [STEP_B]),
        (([A], [{"scheduler": STEP_A, "interval": "step"}]), [A], [STEP_A]),
        ({"optimizer": A}, [A], []),
        ({"optimizer": A, "lr_scheduler": None}, [A], []),
        ({"optimizer": A, "lr_scheduler": STEP_A}, [A], [STEP_A]),
        ({"optimizer": A, "lr_scheduler": {"scheduler": STEP_A}}, [A], [STEP_A]),
        ([{"optimizer": A}], [A], []),
        (({"optimizer": A}, {"optimizer": B, "lr_scheduler": STEP_B}), [A, B], [STEP_B]),
    ],
)
def test_every_form_gives_its_optimizers_and_schedulers(
    returned: Any, optimizers: list[Any], schedulers: list[Any]
) -> None:
    setup = build(returned)
    assert setup.optimizers == optimizers
    assert [config.scheduler for config in setup.schedulers] == schedulers
    assert setup.frequencies == []


def test_plain_scheduler_gets_the_defaults() -> None:
    assert build(([A], [STEP_A])).schedulers == [LRSchedulerConfig(STEP_A)]


def test_settings_of_a_scheduler_are_kept() -> None:
    plateau = ReduceLROnPlateau(A)
    config = {
        "scheduler": plateau,
        "interval": "step",
        "frequency": 3,
        "monitor": "loss",
        "strict": False,
        "name": "rate",
        "reduce_on_plateau": True,
    }
    expected = LRSchedulerConfig(plateau, "rate", "step", 3, True, "loss", False, 0)
    assert build({"optimizer": A, "lr_scheduler": config}).schedulers == [expected]


def test_scheduler_knows_the_index_of_its_optimizer() -> None:
    assert [config.opt_idx for config in build(([A, B], [STEP_B, STEP_A])).schedulers] == [1, 0]


def test_plateau_takes_the_monitor_beside_its_optimizer() -> None:
    (config,) = build({"optimizer": A, "lr_scheduler": ReduceLROnPlateau(A), "monitor": "loss"}).schedulers
    assert (config.monitor, config.reduce_on_plateau) == ("loss", True)


def test_monitor_of_the_scheduler_wins_over_the_one_beside() -> None:
    scheduler = {"scheduler": ReduceLROnPlateau(A), "monitor": "inner"}
    (config,) = build({"optimizer": A, "lr_scheduler": scheduler, "monitor": "outer"}).schedulers
    assert config.monitor == "inner"


def test_frequencies_are_one_for_each_optimizer() -> None:
    setup = build(({"optimizer": A, "frequency": 5}, {"optimizer": B, "frequency": 1}))
    assert setup.frequencies == [5, 1]


def test_frequency_of_a_single_optimizer_has_no_effect() -> None:
    assert build({"optimizer": A, "frequency": 5}).frequencies == []


def test_frequency_for_some_optimizers_only_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match=r"some have none: \[5, None\]"):
        build(({"optimizer": A, "frequency": 5}, {"optimizer": B}))


def test_optimizer_that_is_none_of_torchs_is_taken() -> None:
    class Own:
        param_groups: list[Any] = []  # noqa: RUF012
        state: dict[str, Any] = {}  # noqa: RUF012

        def step(self) -> None: ...
        def state_dict(self) -> dict[str, Any]: ...
        def load_state_dict(self, state: Any) -> None: ...

    own = Own()
    assert build(own).optimizers == [own]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("adam", "returned 'adam'"),
        (3, "returned 3"),
        (torch.optim.SGD, "Return an optimizer"),
        ((A, STEP_A), r"With schedulers, return two lists: \[optimizer\], \[scheduler\]"),
        ([A, STEP_A], "return two lists"),
        ([torch.optim.SGD], "Did you forget to call it"),
        ([A, "x"], "returned 'x' where an optimizer belongs"),
        ({"lr_scheduler": STEP_A}, r"keys \['lr_scheduler'\] and no 'optimizer'"),
        ({"optimizer": A, "lr_scheduler": {"interval": "step"}}, "no 'scheduler'"),
        (([A], [{"scheduler": STEP_A, "interval": "batch"}]), "interval='batch' of StepLR is unknown"),
        (([A], [{"scheduler": STEP_A, "frequency": 0}]), "frequency=0 of StepLR"),
        (([A], [STEP_B]), r"StepLR belongs to an optimizer \(SGD\) that configure_optimizers did not return"),
        (([A], [ReduceLROnPlateau(A)]), "no 'monitor' says on which"),
        (({"optimizer": A, "frequency": 0}, {"optimizer": B, "frequency": 1}), "frequency=0 of an optimizer"),
    ],
)
def test_other_forms_are_errors_that_tell_the_way_out(returned: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        build(returned)


def test_thing_without_state_is_no_scheduler() -> None:
    with pytest.raises(TypeError, match="no state_dict and no load_state_dict"):
        build(([A], [object()]))


class OwnScheduler:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_own_scheduler_needs_lr_scheduler_step() -> None:
    with pytest.raises(MisconfigurationException, match=r"OwnScheduler.*Override lr_scheduler_step"):
        build(([A], [OwnScheduler()]))


def test_own_scheduler_with_lr_scheduler_step_is_taken() -> None:
    assert build(([A], [OwnScheduler()]), override=True).schedulers[0].opt_idx == 0


def test_manual_optimization_does_not_need_what_only_the_loop_reads() -> None:
    plateau, own = ReduceLROnPlateau(A), OwnScheduler()
    assert len(build(([A], [plateau, own]), automatic=False).schedulers) == 2


def test_unknown_key_of_an_optimizer_warns_with_the_nearest() -> None:
    with pytest.warns(PossibleUserWarning, match="'lr_schedular', which has no effect. Did you mean 'lr_scheduler'"):
        build({"optimizer": A, "lr_schedular": STEP_A})


def test_unknown_key_of_a_scheduler_warns() -> None:
    with pytest.warns(PossibleUserWarning, match="key 'intervall'"):
        build(([A], [{"scheduler": STEP_A, "intervall": "step"}]))


def test_one_cycle_by_epoch_warns_unless_it_is_said() -> None:
    scheduler = OneCycleLR(A, max_lr=1.0, total_steps=10)
    with pytest.warns(PossibleUserWarning, match="OneCycleLR is stepped once an epoch"):
        build(([A], [scheduler]))
    build(([A], [{"scheduler": scheduler, "interval": "epoch"}]))
    build(([A], [{"scheduler": scheduler, "interval": "step"}]))
