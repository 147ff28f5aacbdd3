"""DeepSpeed's settings from the arguments of the strategy and of the Trainer; nothing here needs the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fulgur.errors import MisconfigurationException, MissingExtraError
from fulgur.strategies import DeepSpeedStrategy, StrategyRegistry
from fulgur.strategies.deepspeed_config import add_precision, build_zero, read_config, require, stage_of

OFFLOAD: dict[str, Any] = {
    "offload_optimizer": False,
    "offload_optimizer_device": "cpu",
    "offload_parameters": False,
    "offload_params_device": "cpu",
    "nvme_path": "/disk",
    "optimizer_buffer_count": 4,
    "params_buffer_count": 5,
    "params_buffer_size": 10,
    "max_in_cpu": 20,
    "pin_memory": False,
    "sub_group_size": 30,
}


@pytest.mark.parametrize(
    ("name", "instead"),
    [("deepspeed", "SHARD_GRAD_OP"), ("deepspeed_stage_3_offload", r"FULL_SHARD', cpu_offload=True\)")],
)
def test_without_the_package_the_error_says_how_to_install_it_and_what_does_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str, instead: str
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingExtraError, match=instead):
        StrategyRegistry.get(name)
    with pytest.raises(MissingExtraError, match=r"pip install 'fulgur\[deepspeed\]'"):
        DeepSpeedStrategy()


def test_all_names_are_known() -> None:
    names = [f"deepspeed{suffix}" for suffix in ("", "_stage_1", "_stage_2", "_stage_3", "_stage_2_offload")]
    names += ["deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme"]
    assert all(name in StrategyRegistry for name in names)


def test_config_is_read_from_dict_path_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"zero_optimization": {"stage": 1}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert read_config(None) is None
    assert read_config(config) == read_config(path) == read_config(str(path)) == config
    monkeypatch.setenv("PL_DEEPSPEED_CONFIG_PATH", str(path))
    assert read_config(None) == config


def test_config_of_the_user_is_not_changed() -> None:
    given: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    found = read_config(given)
    assert found is not None
    found["zero_optimization"]["stage"] = 3
    assert given == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no such file"), ("{", "is no JSON"), ("[1]", "holds a list")]
)
def test_config_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MisconfigurationException, match=message):
        read_config(path)


@pytest.mark.parametrize("config", [{}, {"zero_optimization": {"stage": 0}}, {"zero_optimization": {"stage": 4}}])
def test_stages_that_share_nothing_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match="Use stage=1, 2 or 3"):
        stage_of(config)


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        (2, {"offload_parameters": True}, "offload_parameters=True with stage=2"),
        (2, {"offload_optimizer": True, "offload_optimizer_device": "nvme"}, "Use stage=3"),
        (3, {"offload_params_device": "gpu"}, "offload_params_device='gpu' is unknown"),
    ],
)
def test_offloading_that_a_stage_has_not_is_refused(stage: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        build_zero(stage, **{**OFFLOAD, **arguments})


def test_offloading_is_put_into_sections_of_its_own() -> None:
    zero = build_zero(3, **{**OFFLOAD, "offload_optimizer": True, "offload_parameters": True}, overlap_comm=True)
    assert (zero["stage"], zero["sub_group_size"], zero["overlap_comm"]) == (3, 30, True)
    assert zero["offload_optimizer"]["buffer_count"] == 4
    assert zero["offload_param"] == {
        "device": "cpu",
        "nvme_path": "/disk",
        "buffer_count": 5,
        "buffer_size": 10,
        "max_in_cpu": 20,
        "pin_memory": False,
    }


def test_settings_of_the_trainer_take_the_place_of_auto_and_contradict_others() -> None:
    config: dict[str, Any] = {"gradient_clipping": "auto"}
    require(config, "gradient_clipping", 0.5, argument="gradient_clip_val=0.5")
    assert config == {"gradient_clipping": 0.5}
    with pytest.raises(
        MisconfigurationException, match=r"gradient_clipping=0.5, and the Trainer gradient_clip_val=1.0"
    ):
        require(config, "gradient_clipping", 1.0, argument="gradient_clip_val=1.0")


@pytest.mark.parametrize(
    ("precision", "section"), [("bf16-mixed", "bf16"), ("bf16-true", "bf16"), ("16-mixed", "fp16"), ("16-true", "fp16")]
)
def test_precision_becomes_a_section(precision: str, section: str) -> None:
    config: dict[str, Any] = {}
    add_precision(config, precision, scaling={"hysteresis": 3})
    assert config == {section: {"enabled": True, **({"hysteresis": 3} if section == "fp16" else {})}}


def test_full_precision_needs_no_section() -> None:
    config: dict[str, Any] = {}
    add_precision(config, "32-true", scaling={})
    assert config == {}


@pytest.mark.parametrize(
    ("precision", "config", "message"),
    [
        ("64-true", {}, "precision='64-true' does not go with DeepSpeed"),
        ("32-true", {"bf16": {"enabled": True}}, r"bf16.enabled=True, and the Trainer precision='32-true'"),
        ("bf16-mixed", {"bf16": {"enabled": False}}, r"bf16.enabled=False"),
    ],
)
def test_precision_that_contradicts_is_refused(precision: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        add_precision(config, precision, scaling={})
