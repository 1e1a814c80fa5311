"""The broker as it is used: bells go out within a budget, and what is wrong is said in one sentence without its password."""

import socket
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from amqp.exceptions import AccessRefused, NotAllowed
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, ResponseError

from config import celery as knobs
from config.settings import Settings
from worker.app import app, broker_errors, queue_named
from worker.engine.doorbell import Ring
from worker.errors import Misconfigured

log = structlog.get_logger()

#: Seconds that each exchange with the broker may take; a slower one counts as absent.
_BUDGET_S: Final = 0.2
#: Seconds for which a broker that was absent is not asked again.
_QUIET_S: Final = 1.0


_URLS: Final = "CELERY_BROKER_URL or REDIS_URL"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why no bell can be sent, and how to mend it."""

    said: str
    mend: str


#: By what the clients raise. The words are ours, because theirs may hold an address. The first that fits counts.
_FAULTS: Final = (
    ((AuthenticationError, AuthorizationError), Fault("it refuses the password", f"mend {_URLS}")),
    (AccessRefused, Fault("it refuses the user or the password", "mend CELERY_BROKER_URL")),
    (NotAllowed, Fault("it has no such virtual host, or its user may not enter it", "rabbitmqctl add_vhost, set_permissions")),
    (NoPermissionError, Fault("its user may not do what is needed", "allow it every command on keys molecule-worker:*")),
    (ResponseError, Fault("it refuses that database", "mend the number at the end of CELERY_BROKER_URL")),
    (socket.gaierror, Fault("its host's name has no address", f"mend {_URLS}")),
    (ConnectionRefusedError, Fault("nothing listens at its host and port", f"start it, or mend {_URLS}")),
    (ConnectionResetError, Fault("what listens there does not speak its protocol", f"mend {_URLS}")),
    (TimeoutError, Fault(f"no answer within {_BUDGET_S * 1000:.0f} ms", f"see what it is busy with, or mend {_URLS}")),
)


class Publisher:
    """Sends doorbells within a budget, and says once when the broker goes away and once when it is back."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened yet. Raises Misconfigured for an address that is none."""
        self._settings = settings
        self._errors = errors_of(settings)
        self._connection: Any = None
        self._away_until = 0.0
        self._away = False

    def __call__(self, ring: Ring) -> bool:
        """Publish one bell. False when the broker is away; then nothing is tried again for a second."""
        if monotonic() < self._away_until:
            return False
        try:
            self._send(ring)
        except self._errors as error:
            self._away_until = monotonic() + _QUIET_S
            if not self._away:
                log.warning("broker away", reason=type(error).__name__, effect="jobs start up to a second later")
            self._away = True
            return False
        if self._away:
            log.info("broker back")
            self._away = False
        return True

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect(socket_timeout=_BUDGET_S)

    def _send(self, ring: Ring) -> None:
        connection, self._connection = self._connection or _opened(self._settings), None
        try:
            app.send_task(
                ring.kind,
                kwargs={"job": ring.job_id},
                queue=queue_named(ring.queue),  # type: ignore[arg-type]  # the stubs know names only
                connection=connection,
                retry=False,
                confirm_timeout=_BUDGET_S,
            )
        except BaseException:
            connection.collect(socket_timeout=_BUDGET_S)
            raise
        # Kept only now, because whatever a broken one is asked for would first be tried again and again.
        self._connection = connection


def fault(settings: Settings) -> Fault | None:
    """Whether a bell could be sent right now; the question of `doctor`. Raises Misconfigured for an address that is none."""
    errors = errors_of(settings)
    try:
        with _opened(settings) as connection:
            connection.default_channel  # noqa: B018  because only opening it shows what the broker refuses
    except errors as error:
        return _explained(error)
    return None


def errors_of(settings: Settings) -> tuple[type[BaseException], ...]:
    """What its client raises when it is away, full, or refuses. Raises Misconfigured for an address that is none."""
    try:
        errors = broker_errors(_url(settings))
        for address in map(urlsplit, _url(settings).split(";")):
            # Asked here, because a worker process would learn it only from its first call, and die of it each time.
            address.port  # noqa: B018
            int(address.path.strip("/") or 0) if address.scheme in {"redis", "rediss"} else 0
    except (KeyError, ValueError, ImportError) as error:
        raise Misconfigured("read CELERY_BROKER_URL: it is not a broker's URL", hint="redis://… or amqp://…") from error
    return errors


def _url(settings: Settings) -> str:
    return settings.broker_url.get_secret_value() if settings.broker_url is not None else knobs.NO_BROKER


def _opened(settings: Settings) -> Any:
    """A connection within the budget; the caller ends it."""
    connection: Any = app.connection_for_write(_url(settings), transport_options=knobs.within(settings, _BUDGET_S))
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=_BUDGET_S)
    except BaseException:
        connection.collect(socket_timeout=_BUDGET_S)
        raise
    return connection


def _explained(error: BaseException) -> Fault:
    """The first link of the chain of causes that tells."""
    link: BaseException | None = error
    while link is not None:
        for kinds, found in _FAULTS:
            if isinstance(link, kinds):
                return found
        link = link.__cause__ or link.__context__
    return Fault("it does not answer", "start it, or mend CELERY_BROKER_URL")
