import pytest
from pydantic import ValidationError

from config import settings


@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1", "100000", "soon"])
def test_a_lease_is_a_number_of_seconds_that_ends(value: str) -> None:
    with pytest.raises(ValidationError):
        settings.load({"MOLECULE_WORKER_LEASE_S": value})


def test_an_unknown_name_of_ours_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(settings.UnknownSetting, match="did you mean MOLECULE_WORKER_SLOTS"):
        settings.load({"MOLECULE_WORKER_SLOT": "1"})


def test_where_none_is_near_none_is_guessed() -> None:
    with pytest.raises(settings.UnknownSetting, match="MOLECULE_WORKER_FOO is not known; the README lists"):
        settings.load({"MOLECULE_WORKER_FOO": "1"})


def test_names_of_others_are_left_alone() -> None:
    assert settings.load({"MOLECULE_WORKFLOW": "x", "HOME": "/"}).slots == 32


def test_a_refused_value_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as refused:
        settings.load({"MOLECULE_WORKER_SLOTS": "sk-canary"})

    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("redis", "broker"),
    [
        ("redis://host:6379", "redis://host:6379/1"),
        ("redis://host:6379/", "redis://host:6379/1"),
        ("redis://:pw@host/0", "redis://:pw@host/1"),
        ("rediss://host/0?ssl_cert_reqs=required", "rediss://host/1?ssl_cert_reqs=required"),
    ],
)
def test_doorbells_go_to_database_1_of_the_cache(redis: str, broker: str) -> None:
    found = settings.load({"REDIS_URL": redis}).broker_url
    assert found is not None

    assert found.get_secret_value() == broker


def test_a_broker_of_its_own_wins() -> None:
    found = settings.load({"REDIS_URL": "redis://host", "CELERY_BROKER_URL": "amqp://other"}).broker_url
    assert found is not None

    assert found.get_secret_value() == "amqp://other"


@pytest.mark.parametrize(("value", "production"), [(" Production ", True), ("prod", True), ("staging", False), ("", False)])
def test_production_is_read_as_the_platform_reads_it(value: str, production: bool) -> None:
    assert settings.load({"MOLECULE_ENV": value}).production is production


@pytest.mark.parametrize(
    ("environment", "saas"), [({}, False), ({"MOLECULE_ORG_ID": ""}, False), ({"MOLECULE_ORG_ID": "acme"}, True)]
)
def test_an_installation_is_multi_tenant_when_its_organisation_has_an_id(environment: dict[str, str], saas: bool) -> None:
    assert settings.load(environment).saas is saas


def test_every_runtime_has_a_model_and_a_deadline() -> None:
    table = settings.runtimes()

    assert all(table.model_of(name) and table.deadline_of(name) > 0 for name in table.runtimes)
