"""The pure part of the Docker backend: what a workspace is in the engine's words."""

import io
import tarfile
from dataclasses import replace
from typing import Any

import pytest
import requests
from docker.errors import APIError, DockerException

from tests.specs import ID, SHAPE, SPEC
from worker.backends.docker_errors import error_of, is_gone
from worker.backends.docker_network import gateway_of, oldest
from worker.backends.docker_shape import CAPABILITIES, Shape, container_config, environment_list, restart_policy_of
from worker.backends.docker_state import observation_of, url_of
from worker.backends.mounts import Bind, Volume, refuse_directory, workspace_mount
from worker.backends.names import Owner, owner_of, planned_things, volume_names
from worker.backends.tar import archive
from worker.backends.tiers import Size, sizes_of
from worker.domain import Presence, Secret
from worker.errors import BackendBusy, Fatal, Misconfigured, Refused, Retryable, Unreachable, WorkerError


def config(sessions: bool = False, shape: Shape = SHAPE, **changes: Any) -> dict[str, Any]:
    return container_config(replace(SPEC, **changes), shape, network_id="net-id", sessions=sessions, cores=8)


def targets(found: dict[str, Any]) -> dict[str, str]:
    return {mount["Target"]: mount["Source"] for mount in found["HostConfig"]["Mounts"]}


# ---- names and labels


def test_names_are_the_platform_s() -> None:
    assert volume_names(ID) == ("ws-0a1b2c3d-4e5-configs", f"ws-{ID}-workspace", "ws-0a1b2c3d-4e5-claude-sessions")
    assert [thing.name for thing in planned_things(ID, tier=2, sessions=False)] == [
        "ws-0a1b2c3d-4e5-configs",
        f"ws-{ID}-workspace",
        "ws-0a1b2c3d-4e5",
    ]
    assert [thing.name for thing in planned_things(ID, tier=1, sessions=True)] == ["ws-0a1b2c3d-4e5-configs", "ws-0a1b2c3d-4e5"]


def test_everything_bears_the_same_labels() -> None:
    labels = {
        "molecule.platform.managed": "true",
        "molecule.platform.installation": "here",
        "molecule.platform.workspace": ID,
        "molecule.platform.job": SPEC.job_id,
        "molecule.platform.org": "acme",
    }
    found = config(sessions=True)
    assert found["Labels"] == labels
    assert [mount["VolumeOptions"]["Labels"] for mount in found["HostConfig"]["Mounts"]] == [labels] * 3


OURS = {"molecule.platform.installation": "here", "molecule.platform.workspace": ID}


@pytest.mark.parametrize(
    ("name", "labels", "owner"),
    [
        ("ws-0a1b2c3d-4e5", OURS, Owner.OURS),
        ("ws-0a1b2c3d-4e5", OURS | {"molecule.platform.workspace": ID[:13] + "x"}, Owner.SIBLING),
        ("ws-0a1b2c3d-4e5", OURS | {"molecule.platform.installation": "there"}, Owner.FOREIGN),
        ("ws-0a1b2c3d-4e5", {"molecule.platform.managed": "true"}, Owner.FOREIGN),
        ("ws-0a1b2c3d-4e5", {}, Owner.FOREIGN),
        ("ws-0a1b2c3d-4e5-configs", None, Owner.FOREIGN),
        (f"ws-{ID}-workspace", None, Owner.NAMELESS),
        (f"ws-{ID}-workspace", {"anything": "else"}, Owner.FOREIGN),
    ],
)
def test_whose_a_thing_is_stands_in_its_labels(name: str, labels: dict[str, str] | None, owner: Owner) -> None:
    assert owner_of(name, labels, installation="here", workspace_id=ID) is owner


# ---- tiers


def test_tier_1_is_read_only_and_unlimited() -> None:
    found = config(tier=1, sessions=True)
    host = found["HostConfig"]
    assert targets(found) == {"/configs": "ws-0a1b2c3d-4e5-configs"}
    assert host["ReadonlyRootfs"] is True
    assert host["Tmpfs"] == {"/tmp": "rw,noexec,nosuid,size=64m"}
    assert not {"Memory", "MemorySwap", "NanoCpus"} & host.keys()


def test_tier_2_is_half_a_gibibyte_and_one_core_without_swap() -> None:
    host = config()["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (512 << 20, 512 << 20, 1_000_000_000)
    assert "ReadonlyRootfs" not in host


@pytest.mark.parametrize("junk", ["", "lots", "0", "-1", "1.5", " 7", "1e3", "٣", "9" * 40])
def test_a_size_that_is_no_positive_number_means_the_default(junk: str) -> None:
    assert sizes_of({"TIER2_MEMORY_MB": junk, "TIER2_CPU_SHARES": junk})[2] == Size(512, 1024)


def test_sizes_are_the_operator_s_to_change() -> None:
    sizes = sizes_of({"TIER2_MEMORY_MB": "768", "TIER2_CPU_SHARES": "1536", "TIER4_MEMORY_MB": "8192"})
    assert sizes == {2: Size(768, 1536), 3: Size(2048, 2048), 4: Size(8192, 4096)}
    host = config(shape=replace(SHAPE, sizes=sizes))["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (768 << 20, 1_500_000_000)


# ---- hardening, network, policy


@pytest.mark.parametrize("tier", [1, 2])
def test_the_tenant_gets_no_more_than_its_entry_point_needs(tier: int) -> None:
    host = config(tier=tier)["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert set(host["CapAdd"]) == set(CAPABILITIES) == {"CHOWN", "SETUID", "SETGID", "DAC_OVERRIDE", "FOWNER", "KILL"}
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["PidsLimit"] > 0
    assert host["Init"] is True
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert not {"Privileged", "PidMode", "Binds", "Devices"} & host.keys()


def test_the_port_is_published_on_loopback_only_and_the_network_attached_by_id() -> None:
    found = config()
    assert found["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert found["ExposedPorts"] == {"8000/tcp": {}}
    assert found["HostConfig"]["NetworkMode"] == "net-id"
    assert found["NetworkingConfig"] == {"EndpointsConfig": {"net-id": {"Aliases": ["ws-0a1b2c3d-4e5"]}}}


def test_a_restart_policy_that_is_not_known_means_the_default() -> None:
    assert [restart_policy_of(text) for text in ("no", "on-failure", "Always", "")] == ["no", "on-failure"] + ["unless-stopped"] * 2


def test_the_environment_is_the_spec_s_and_nothing_else() -> None:
    assert config(environment={"A": Secret("x=y\n'\"$"), "B": Secret("")})["Env"] == ["A=x=y\n'\"$", "B="]


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("A=B", "x"), ("A", "x\0hidden"), ("A", "\ud800hidden")])
def test_a_variable_that_no_process_can_receive_is_refused_without_showing_it(name: str, value: str) -> None:
    with pytest.raises(Refused) as refusal:
        environment_list({name: Secret(value)})
    assert "hidden" not in f"{refusal.value.message}{refusal.value.hint}"
    assert refusal.value.__suppress_context__


# ---- mounts

OWN = Volume(f"ws-{ID}-workspace")


@pytest.mark.parametrize(
    ("directory", "access", "mount"),
    [
        (None, "none", OWN),
        (None, "", OWN),
        (None, "read_only", OWN),
        ("", "read_write", OWN),
        ("/home/me", "none", OWN),
        ("/home/me", "read_only", Bind("/home/me", read_only=True)),
        ("/home/me", "", Bind("/home/me", read_only=False)),
        ("/home/me", "read_write", Bind("/home/me", read_only=False)),
    ],
)
def test_what_lies_at_workspace(directory: str | None, access: str, mount: Volume | Bind) -> None:
    spec = replace(SPEC, workspace_dir=directory, workspace_access=access)
    assert workspace_mount(spec) == mount
    assert workspace_mount(replace(spec, tier=1)) is None


def test_a_bound_directory_must_exist_and_is_never_made_by_the_engine() -> None:
    found = config(workspace_dir="/home/me", workspace_access="read_only")
    assert found["HostConfig"]["Mounts"][1] == {"Type": "bind", "Source": "/home/me", "Target": "/workspace", "ReadOnly": True}


@pytest.mark.parametrize(
    "path",
    [
        "relative",
        "",
        "/",
        "//etc",
        "/etc",
        "/etc/",
        "/etc/ssh",
        "/root",
        "/root/work",
        "/./etc",
        "/var/run",
        "/run/docker.sock",
        "/home/../etc",
        "/usr",
        "/a\0b",
    ],
)
def test_a_directory_of_the_system_is_refused(path: str) -> None:
    with pytest.raises(Refused):
        refuse_directory(path)


@pytest.mark.parametrize("path", ["/home/me", "/srv/etc", "/etcetera", "/opt/usr", "/Users/me"])
def test_a_directory_of_a_person_is_allowed(path: str) -> None:
    refuse_directory(path)


def test_an_unknown_access_is_refused() -> None:
    with pytest.raises(Refused):
        workspace_mount(replace(SPEC, workspace_access="all"))


# ---- files


def test_an_archive_belongs_to_root_and_hides_the_token_from_others() -> None:
    content = archive({".auth_token": "t", "a/b.txt": "é\r\n", "sub/.auth_token": "x"}, now=1234.5)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        entries = {entry.name: entry for entry in tar.getmembers()}
        read = tar.extractfile("a/b.txt")
        assert read is not None
        assert read.read() == "é\r\n".encode()
    assert {name: oct(entry.mode) for name, entry in entries.items()} == {
        "a": "0o755",
        "sub": "0o755",
        ".auth_token": "0o600",
        "a/b.txt": "0o644",
        "sub/.auth_token": "0o644",
    }
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, 1234)}
    assert all(entry.isfile() or entry.isdir() for entry in entries.values())


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../x", "a/..", "", ".", "./a", "a//b", "a/", "a\0b"])
def test_an_archive_refuses_names_that_lead_out(path: str) -> None:
    with pytest.raises(Refused):
        archive({path: "x"}, now=0)


def test_text_that_is_no_utf_8_is_refused_without_showing_it() -> None:
    with pytest.raises(Refused) as refusal:
        archive({"a": "hidden\ud800"}, now=0)
    assert "hidden" not in refusal.value.message
    assert refusal.value.__suppress_context__


# ---- answers of the engine


def answer(status: int, text: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError("failed", response=response, explanation=text)


#: How an engine begins to tell what its runtime could not do.
RUNC = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process"


@pytest.mark.parametrize(
    ("status", "text", "kind", "code"),
    [
        (404, "No such image: demo:1", Misconfigured, "image_missing"),
        (
            404,
            "image x was found but does not match the specified platform: wanted",
            Misconfigured,
            "image_platform",
        ),
        (404, "network abc not found", Retryable, "network_missing"),
        (404, "No such container: x", Retryable, "container_vanished"),
        (400, "network x is ambiguous (2 matches found on name)", Retryable, "network_ambiguous"),
        (400, "invalid mount config: bind source path does not exist: /home/me", Refused, "workspace_dir"),
        (400, "bind source path does not exist: /var/run/docker.sock", Misconfigured, "engine_socket"),
        (500, f"{RUNC}: unable to apply caps: operation not permitted: unknown", Misconfigured, "privileges_refused"),
        (500, 'process caused "apply caps: operation not permitted": unknown', Misconfigured, "privileges_refused"),
        (400, "privileged mode is incompatible with user namespaces.  You must", Misconfigured, "privileges_refused"),
        (400, "cannot share the host PID namespace when user namespaces are enabled", Misconfigured, "privileges_refused"),
        (400, "unable to find user x: no matching entries in passwd file", Misconfigured, "image_broken"),
        (409, 'Conflict. The name "/x" is already in use by container "y"', Retryable, "name_taken"),
        (409, "removal of container x is already in progress", Retryable, "removal_in_progress"),
        (500, "driver failed: Bind for 127.0.0.1:80 failed: port is already allocated", BackendBusy, "port_taken"),
        (500, "write /var: no space left on device", BackendBusy, "host_full"),
        (503, "", BackendBusy, "backend_busy"),
        (403, "", Misconfigured, "engine_forbidden"),
        (400, "something else", Misconfigured, "engine_refused"),
        (500, "something else", Retryable, "engine_error"),
    ],
)
def test_each_answer_of_the_engine_means_one_thing(status: int, text: str, kind: type[WorkerError], code: str) -> None:
    error = error_of("start container", answer(status, text))
    assert type(error) is kind
    assert error.code == code
    assert error.message.startswith("start container: ")
    assert error.hint
    assert "/home/me" not in error.message + error.hint


def test_no_answer_may_pass_and_a_forbidden_socket_will_not() -> None:
    wrapped = requests.ConnectionError(OSError("aborted", PermissionError(13, "denied")))
    assert isinstance(error_of("ask engine", wrapped), Misconfigured)
    for lost in (requests.ReadTimeout(), ConnectionRefusedError(), FileNotFoundError(), DockerException("x")):
        error = error_of("ask engine", lost)
        assert type(error) is Unreachable
        assert not isinstance(error, Fatal)
    assert error_of("ask engine", requests.ReadTimeout()).code == "engine_silent"


def test_only_the_engine_s_own_404_is_gone() -> None:
    assert is_gone(answer(404, "No such container"))
    assert not any(is_gone(error) for error in (answer(500, "No such container"), OSError(), requests.ReadTimeout(), None))


# ---- state


@pytest.mark.parametrize(
    ("state", "presence", "reason"),
    [
        ({"Running": True}, Presence.RUNNING, None),
        ({"Running": True, "OOMKilled": True}, Presence.RUNNING, None),
        ({"Running": True, "Restarting": True, "ExitCode": 1}, Presence.STOPPED, "restarting"),
        ({"Running": True, "Restarting": True, "OOMKilled": True, "ExitCode": 137}, Presence.STOPPED, "oom"),
        ({"Running": False, "OOMKilled": True, "ExitCode": 137}, Presence.STOPPED, "oom"),
        ({"Running": True, "Paused": True}, Presence.STOPPED, "paused"),
        ({"Running": False, "Status": "created"}, Presence.STOPPED, None),
        ({"Running": False, "Dead": True}, Presence.STOPPED, "dead"),
        ({}, Presence.UNKNOWN, "unreadable"),
    ],
)
def test_running_means_running_and_not_in_a_loop(state: dict[str, Any], presence: Presence, reason: str | None) -> None:
    seen = observation_of({"Id": "x", "State": state, "RestartCount": 4})
    assert (seen.presence, seen.reason, seen.handle, seen.restarts) == (presence, reason, "x", 4)


def test_the_address_is_read_when_it_is_needed_and_may_be_missing() -> None:
    def seen(ports: Any) -> str | None:
        return observation_of({"Id": "x", "State": {"Running": True}, "NetworkSettings": {"Ports": ports}}).url

    assert seen({"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}]}) == "http://127.0.0.1:32768"
    empty: list[Any] = [None, {}, {"8000/tcp": None}, {"8000/tcp": []}]
    assert [seen(ports) for ports in empty] == [None] * 4


def test_on_the_host_s_network_the_address_is_the_host_s_own_while_it_runs() -> None:
    def seen(**state: Any) -> str | None:
        return url_of({"Id": "x", "State": state, "HostConfig": {"NetworkMode": "host"}, "NetworkSettings": {"Ports": {}}})

    assert seen(Running=True) == "http://127.0.0.1:8000"
    assert [seen(Running=True, Restarting=True), seen(Running=False), seen()] == [None] * 3


# ---- networks


def test_everybody_chooses_the_oldest_network_of_a_name() -> None:
    twins = [{"Id": "b", "Created": "2026-01-01"}, {"Id": "a", "Created": "2026-01-01"}, {"Id": "0", "Created": "2026-01-02"}]
    assert oldest(twins)["Id"] == "a"


@pytest.mark.parametrize(
    ("settings", "gateway"),
    [
        ([{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}], "172.18.0.1"),
        ([{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.9/16"}], "172.18.0.9"),
        ([{"Subnet": "fd00::/64", "Gateway": "fd00::1"}, {"Subnet": "10.1.0.0/24"}], "10.1.0.1"),
    ],
)
def test_the_gateway_is_the_host_s_address_on_the_network(settings: list[dict[str, str]], gateway: str) -> None:
    assert gateway_of({"IPAM": {"Config": settings}}) == gateway


def test_a_network_without_a_gateway_is_the_operator_s_to_mend() -> None:
    with pytest.raises(Misconfigured):
        gateway_of({"IPAM": {"Config": None}})
