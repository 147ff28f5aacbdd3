"""Each environment reads what its launcher sets, and contradictions are errors that name both sides."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from fulgur.errors import LayoutError, MisconfigurationException
from fulgur.launch.environments import (
    ClusterEnvironment,
    KubeflowEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
    find_environment,
)
from fulgur.launch.family import Layout

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "gpu[07-08]",
    "SLURM_STEP_ID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29501",
}
_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "LSB_", "JSM_", "TORCHELASTIC_", "MV2_", "FULGUR_", "GROUP_")
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in (*_NAMES, "STANDALONE_PORT", "KUBERNETES_PORT") or name.startswith(_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", "0")  # remembered, so that a port written by the code goes away again
    monkeypatch.delenv("MASTER_PORT")


def _set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], **changes: str | None) -> None:
    for name, value in {**variables, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def _place(environment: ClusterEnvironment) -> tuple[Any, ...]:
    return (
        environment.global_rank(),
        environment.world_size(),
        environment.local_rank(),
        environment.node_rank(),
        environment.local_world_size(),
        environment.num_nodes(),
    )


# Detection


def test_without_a_launcher_processes_are_started_here() -> None:
    environment = find_environment()
    assert type(environment) is LightningEnvironment
    assert not environment.creates_processes_externally


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        (TORCHRUN, TorchElasticEnvironment),
        (SLURM, SLURMEnvironment),
        (OPEN_MPI, MPIEnvironment),
        ({**SLURM, **TORCHRUN}, TorchElasticEnvironment),
        ({**SLURM, **OPEN_MPI}, SLURMEnvironment),
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, LightningEnvironment),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, LightningEnvironment),
        ({"KUBERNETES_PORT": "x", "RANK": "0", "WORLD_SIZE": "2"}, LightningEnvironment),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"}, LightningEnvironment),
    ],
)
def test_launcher_is_found_by_its_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], kind: type[ClusterEnvironment]
) -> None:
    _set(monkeypatch, variables)
    assert type(find_environment()) is kind


def test_environment_among_the_plugins_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN)
    own = LightningEnvironment()
    assert find_environment([own]) is own


def test_two_environments_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="2 cluster environments"):
        find_environment([LightningEnvironment(), SLURMEnvironment()])


def test_program_started_by_a_rank_is_no_rank_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "FULGUR_FAMILY": "2 1 1"})
    assert not find_environment().creates_processes_externally
    assert "WORLD_SIZE" not in os.environ


def test_rank_of_an_own_world_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {"LOCAL_RANK": "1", "FULGUR_FAMILY": Layout(2, 1).marker(os.getpid())})
    environment = find_environment()
    assert environment.creates_processes_externally
    assert environment.local_rank() == 1


# torchrun


def test_torchrun_says_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN)
    environment = TorchElasticEnvironment()
    assert _place(environment) == (3, 4, 1, 1, 2, 2)
    assert (environment.main_address, environment.main_port) == ("node-a", 29500)
    environment.set_world_size(9)
    environment.set_global_rank(9)
    assert _place(environment)[:2] == (3, 4)


def test_torchelastic_without_address_uses_this_machine_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN, RANK="0", MASTER_ADDR=None, MASTER_PORT=None)
    with pytest.warns(UserWarning, match="MASTER_ADDR is not set"):
        assert TorchElasticEnvironment().main_address == "127.0.0.1"
    with pytest.warns(UserWarning, match="MASTER_PORT is not set"):
        assert TorchElasticEnvironment().main_port == 12910


def test_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN, RANK=None)
    with pytest.raises(MisconfigurationException, match="RANK is not set"):
        TorchElasticEnvironment().global_rank()


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (4, 2)])
def test_contradiction_with_torchrun_names_both(monkeypatch: pytest.MonkeyPatch, layout: tuple[int, int]) -> None:
    _set(monkeypatch, TORCHRUN)
    with pytest.raises(LayoutError, match=rf"devices={layout[0]} .*WORLD_SIZE=4.*Use devices=2"):
        TorchElasticEnvironment().validate_settings(*layout)


def test_contradiction_is_a_value_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TORCHRUN)
    with pytest.raises(ValueError, match="WORLD_SIZE=4"):
        TorchElasticEnvironment().validate_settings(3, 1)


# SLURM


def test_slurm_says_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, SLURM)
    environment = SLURMEnvironment()
    assert _place(environment) == (3, 4, 1, 1, 2, 2)
    assert (environment.main_address, environment.main_port) == ("gpu07", 18456)
    environment.validate_settings(2, 2)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("alpha", "alpha"),
        ("alpha,beta", "alpha"),
        ("alpha beta", "alpha"),
        ("gpu[07-08]", "gpu07"),
        ("gpu[3,7-9],other", "gpu3"),
        ("rack[1-2]-node[007-010]", "rack1-node007"),
        ("gpu[5-6]-ib", "gpu5-ib"),
    ],
)
def test_first_host_of_a_list_of_slurm(nodes: str, first: str) -> None:
    assert SLURMEnvironment.resolve_root_node_address(nodes) == first


@pytest.mark.parametrize(
    ("changes", "port"),
    [({"MASTER_PORT": "4000"}, 4000), ({"SLURM_JOB_ID": "77"}, 15077), ({"SLURM_JOB_ID": None}, 12910)],
)
def test_port_of_slurm(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], port: int) -> None:
    _set(monkeypatch, SLURM, **changes)
    assert SLURMEnvironment().main_port == port


def test_address_given_by_hand_wins_over_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, SLURM, MASTER_ADDR="other")
    assert SLURMEnvironment().main_address == "other"


def test_devices_that_contradict_tasks_per_node_name_both(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, SLURM)
    with pytest.raises(LayoutError, match=r"devices=4 .*SLURM_NTASKS_PER_NODE=2"):
        SLURMEnvironment().validate_settings(4, 2)


def test_nodes_that_contradict_the_job_name_both(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, SLURM)
    with pytest.raises(LayoutError, match=r"num_nodes=1 .*SLURM_NNODES=2"):
        SLURMEnvironment().validate_settings(2, 1)


def test_tasks_without_their_number_on_each_node_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, SLURM, SLURM_NTASKS_PER_NODE=None)
    with pytest.raises(RuntimeError, match="ntasks-per-node=2"):
        SLURMEnvironment().validate_settings(2, 2)


def test_tasks_of_each_node_may_come_from_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, SLURM, SLURM_NTASKS_PER_NODE=None, SLURM_STEP_TASKS_PER_NODE="2(x2)")
    assert SLURMEnvironment().local_world_size() == 2


def test_job_that_forgot_srun_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, SLURM, SLURM_STEP_ID=None, SLURM_PROCID="0")
    with pytest.warns(UserWarning, match="Start it with `srun python"):
        SLURMEnvironment().validate_settings(2, 2)


# LSF


def test_lsf_says_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = tmp_path / "rankfile"
    hosts.write_text("batch\nfirst\nfirst\nsecond\nsecond\n")
    monkeypatch.setattr(socket, "gethostname", lambda: "second")
    _set(
        monkeypatch,
        {
            "LSB_JOBID": "54321",
            "LSB_DJOB_RANKFILE": str(hosts),
            "JSM_NAMESPACE_LOCAL_RANK": "1",
            "JSM_NAMESPACE_SIZE": "4",
            "JSM_NAMESPACE_RANK": "3",
        },
    )
    environment = find_environment()
    assert type(environment) is LSFEnvironment
    assert _place(environment) == (3, 4, 1, 1, None, 2)
    assert (environment.main_address, environment.main_port) == ("first", 10321)


def test_host_that_lsf_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = tmp_path / "rankfile"
    hosts.write_text("batch\nfirst\n")
    monkeypatch.setattr(socket, "gethostname", lambda: "stranger")
    _set(monkeypatch, {"LSB_DJOB_RANKFILE": str(hosts)})
    with pytest.raises(MisconfigurationException, match="stranger"):
        LSFEnvironment().node_rank()


# MPI and Kubeflow


def test_open_mpi_says_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, OPEN_MPI)
    monkeypatch.setattr("fulgur.launch.environments.mpi.find_spec", lambda name: None)
    environment = MPIEnvironment()
    assert _place(environment) == (2, 4, 0, 1, 2, 2)
    assert (environment.main_address, environment.main_port) == ("node-a", 29501)


def test_mpi_without_a_place_to_meet_tells_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, OPEN_MPI, MASTER_ADDR=None)
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(MisconfigurationException, match=r"mpi4py.*MASTER_ADDR"):
        _ = MPIEnvironment().main_address


def test_kubeflow_has_one_process_in_each_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "master", "MASTER_PORT": "23456"})
    environment = KubeflowEnvironment()
    assert _place(environment) == (1, 3, 0, 1, 1, 3)
    assert (environment.main_address, environment.main_port) == ("master", 23456)
    with pytest.raises(LayoutError, match="Kubeflow has started 3"):
        environment.validate_settings(1, 1)


# Nobody, or somebody by hand


def test_port_is_free_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = LightningEnvironment()
    port = environment.main_port
    assert port > 1000
    assert environment.main_port == port
    assert environment.main_address == "127.0.0.1"


def test_standalone_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDALONE_PORT", "4242")
    assert LightningEnvironment().main_port == 4242


@pytest.mark.parametrize(
    ("variables", "layout", "message"),
    [
        ({"WORLD_SIZE": "4"}, (1, 1), "WORLD_SIZE=4"),
        ({"LOCAL_RANK": "2"}, (2, 1), "LOCAL_RANK=2 contradicts devices=2"),
        ({"NODE_RANK": "1"}, (2, 1), "NODE_RANK=1 contradicts num_nodes=1"),
        ({"LOCAL_RANK": "1", "RANK": "5", "MASTER_PORT": "1"}, (2, 1), "RANK=5 contradicts"),
    ],
)
def test_variables_set_by_hand_that_contradict_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], layout: tuple[int, int], message: str
) -> None:
    _set(monkeypatch, variables)
    with pytest.raises(LayoutError, match=message):
        LightningEnvironment().validate_settings(*layout)


@pytest.mark.parametrize(
    ("variables", "layout", "missing"),
    [
        ({"NODE_RANK": "1"}, (2, 2), "MASTER_ADDR and MASTER_PORT"),
        ({"LOCAL_RANK": "1"}, (2, 1), "MASTER_PORT"),
    ],
)
def test_processes_started_apart_must_know_where_to_meet(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], layout: tuple[int, int], missing: str
) -> None:
    _set(monkeypatch, variables)
    with pytest.raises(MisconfigurationException, match=f"{missing} not set"):
        LightningEnvironment().validate_settings(*layout)


def test_world_size_is_forgotten_after_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {"LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    LightningEnvironment().teardown()
    assert "WORLD_SIZE" not in os.environ
