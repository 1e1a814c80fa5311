from pathlib import Path

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


@pytest.mark.parametrize("name", settings.secret_names())
def test_every_secret_may_be_in_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2 \n")
    field = next(field for field, how in settings.Settings.model_fields.items() if how.alias == name)

    assert getattr(settings.load({f"{name}_FILE": str(file)}), field).get_secret_value() == "hunter2 "


def test_whatever_holds_a_password_is_a_secret() -> None:
    assert set(settings.secret_names()) == {
        *("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "SECRETS_ENCRYPTION_KEY"),
        *("MOLECULE_GITEA_TOKEN", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    }


def test_a_secret_that_is_said_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql:///a")

    with pytest.raises(settings.BadSecretFile, match="DATABASE_URL and DATABASE_URL_FILE are both set"):
        settings.load({"DATABASE_URL": "postgresql:///b", "DATABASE_URL_FILE": str(tmp_path / "url")})


def test_an_empty_variable_names_no_file_and_hides_none(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://host")

    assert settings.load({"REDIS_URL": "redis://host", "REDIS_URL_FILE": ""}).redis_url is not None
    assert settings.load({"REDIS_URL": "", "REDIS_URL_FILE": str(tmp_path / "url")}).redis_url is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"\xff\xfe", "is not text"), (b"x" * 70_000, "is too long for a secret")],
)
def test_a_file_that_can_hold_no_secret_is_refused_and_not_shown(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "canary").write_bytes(content)

    with pytest.raises(settings.BadSecretFile, match=said) as refused:
        settings.load({"DATABASE_URL_FILE": str(tmp_path / "canary")})

    assert str(refused.value).startswith("read settings: the file of DATABASE_URL_FILE")
    assert "canary" not in str(refused.value)


def test_every_runtime_has_a_model_and_a_deadline() -> None:
    table = settings.runtimes()

    assert all(table.model_of(name) and table.deadline_of(name) > 0 for name in table.runtimes)
