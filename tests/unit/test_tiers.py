"""Tiers change flags and sizes and nothing else: what each has of the host, in the engine's words."""

from dataclasses import replace
from typing import Any

import pytest

from tests.specs import ID, SHAPE, SPEC
from worker.backends.docker_shape import Shape, container_config
from worker.backends.names import planned_things
from worker.backends.tiers import Reach, Size, reach_of, refuse_tier, sizes_of
from worker.errors import Blame, Refused

SOCKET = {"Type": "bind", "Source": "/var/run/docker.sock", "Target": "/var/run/docker.sock"}


def config(tier: int, shape: Shape = SHAPE, cores: int = 8) -> dict[str, Any]:
    return container_config(replace(SPEC, tier=tier), shape, network_id="net-id", sessions=True, cores=cores)


def limits(host: dict[str, Any]) -> tuple[int, int, int]:
    return host["Memory"], host["MemorySwap"], host["NanoCpus"]


def test_tier_3_is_privileged_among_the_host_s_processes_and_stays_on_the_workspaces_network() -> None:
    found, plain = config(3), config(2)
    host = found["HostConfig"]
    assert (host["Privileged"], host["PidMode"]) == (True, "host")
    assert limits(host) == (2048 << 20, 2048 << 20, 2_000_000_000)
    for key in ("NetworkMode", "PortBindings", "Mounts"):
        assert host[key] == plain["HostConfig"][key]
    assert found["NetworkingConfig"] == plain["NetworkingConfig"]


def test_tier_4_has_the_whole_host_and_sends_neither_ports_nor_a_network() -> None:
    found = config(4)
    host = found["HostConfig"]
    assert (host["Privileged"], host["PidMode"], host["NetworkMode"]) == (True, "host", "host")
    assert limits(host) == (4096 << 20, 4096 << 20, 4_000_000_000)
    assert "PortBindings" not in host
    assert "NetworkingConfig" not in found
    # A mount and not a bind of the old kind, which would make a folder where the socket is missing.
    assert host["Mounts"] == [*config(2)["HostConfig"]["Mounts"], SOCKET]
    assert "Binds" not in host


@pytest.mark.parametrize("tier", [3, 4])
def test_nothing_is_taken_from_the_privileged(tier: int) -> None:
    assert not {"CapDrop", "CapAdd", "SecurityOpt", "PidsLimit", "ReadonlyRootfs"} & config(tier)["HostConfig"].keys()


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_only_tier_4_is_given_the_engine(tier: int) -> None:
    assert SOCKET not in config(tier)["HostConfig"]["Mounts"]


@pytest.mark.parametrize("tier", [3, 4])
def test_tiers_never_change_behaviour(tier: int) -> None:
    found, plain = config(tier), config(2)
    for key in ("Image", "Hostname", "Env", "Labels", "ExposedPorts", "StopTimeout"):
        assert found[key] == plain[key]
    for key in ("RestartPolicy", "Init", "LogConfig"):
        assert found["HostConfig"][key] == plain["HostConfig"][key]
    things = planned_things(ID, tier=tier, sessions=True)
    assert things == planned_things(ID, tier=2, sessions=True)


@pytest.mark.parametrize("tier", [0, 5, -1])
def test_what_is_no_tier_is_standard(tier: int) -> None:
    assert config(tier) == config(2)


@pytest.mark.parametrize(("tier", "memory", "cores"), [(3, 1024, 512), (4, 6144, 8192)])
def test_sizes_of_the_privileged_are_the_operator_s_to_change(tier: int, memory: int, cores: int) -> None:
    sizes = sizes_of({f"TIER{tier}_MEMORY_MB": str(memory), f"TIER{tier}_CPU_SHARES": str(cores)})
    assert sizes[tier] == Size(memory, cores)
    host = config(tier, replace(SHAPE, sizes=sizes))["HostConfig"]
    assert limits(host) == (memory << 20, memory << 20, cores * 1_000_000_000 // 1024)


@pytest.mark.parametrize(
    ("cores", "quota"), [(0, 1_000_000_000), (1, 1_000_000_000), (2, 2_000_000_000), (4, 4_000_000_000), (64, 4_000_000_000)]
)
def test_a_small_host_gives_a_large_tier_all_its_cores(cores: int, quota: int) -> None:
    assert config(4, cores=cores)["HostConfig"]["NanoCpus"] == quota


@pytest.mark.parametrize("tier", [3, 4])
def test_whoever_is_root_on_the_host_is_refused_where_tenants_share_it(tier: int) -> None:
    with pytest.raises(Refused) as refusal:
        refuse_tier("create workspace", tier, saas=True)
    assert refusal.value.message == (f"create workspace: tier {tier} is root on the host, which tenants share on this installation")
    assert (refusal.value.code, refusal.value.blame) == ("tier_refused", Blame.TENANT)
    refuse_tier("create workspace", tier, saas=False)


@pytest.mark.parametrize("tier", [0, 1, 2, 5])
def test_whoever_has_nothing_of_the_host_is_welcome_everywhere(tier: int) -> None:
    assert reach_of(tier) == Reach()
    refuse_tier("create workspace", tier, saas=True)
