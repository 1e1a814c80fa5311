"""Celery's knobs as plain data. Celery carries doorbells and nothing else: no results, no retries, no ETA."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from config.settings import Settings

Transport = Literal["redis", "amqp", "other"]

#: Where a producer's own message goes when it names no queue.
DEFAULT_QUEUE = "jobs"
#: Nothing leaves the process.
NO_BROKER = "memory://localhost/"

_TRANSPORTS: Final[Mapping[Transport, Mapping[str, Any]]] = {
    "redis": {
        "global_keyprefix": "molecule-worker:",
        "socket_connect_timeout": 2.0,
        "socket_timeout": 5.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "visibility_timeout": 60,
    },
    "amqp": {"connect_timeout": 2.0, "read_timeout": 5.0, "write_timeout": 5.0},
    "other": {},
}
_BOUNDS: Final[Mapping[Transport, Sequence[str]]] = {
    "redis": ("socket_connect_timeout", "socket_timeout"),
    "amqp": ("connect_timeout", "read_timeout", "write_timeout"),
    "other": (),
}
#: One more try at once and then no more, where kombu by itself would try for ever; and confirmed, because what is written
#: to an AMQP connection that just broke would otherwise count as sent.
_TRIES: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
_BRIEF: Final[Mapping[Transport, Mapping[str, Any]]] = {
    "redis": _TRIES,
    "amqp": {**_TRIES, "confirm_publish": True},
    "other": {},
}


def conf(settings: Settings) -> dict[str, Any]:
    """The configuration of this process's Celery app. Without a broker address nothing leaves the process."""
    broker = settings.broker_url
    return {
        "broker_url": broker.get_secret_value() if broker is not None else NO_BROKER,
        "imports": ("tasks.catalogue",),
        "task_default_queue": DEFAULT_QUEUE,
        # Because a queue that nobody serves would keep its bells for ever: a wrong name is refused.
        "task_create_missing_queues": False,
        # A bell that outlives its broker's restart is late anyway, and one that is not written to a disk is confirmed sooner.
        "task_default_delivery_mode": "transient",
        "task_ignore_result": True,
        # Nothing else is ever unpacked, so nobody who reaches the broker can make a worker run code.
        "accept_content": ["json"],
        # On receipt, because the row and not the message is what must not be lost.
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        # Most of the work is waiting; and a forked child would share its parent's connections and identity.
        "worker_pool": "threads",
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
        # A broker may be away for days: the worker polls its own database meanwhile.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A Redis without memory refuses what a consumer writes, too: wait for it, as for one that is away, instead of leaving.
        "broker_channel_error_retry": True,
        "broker_connection_timeout": 2.0,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_proc_alive_timeout": 30.0,
        # Seconds between two signs of life on an AMQP connection: a broker that is frozen is noticed after two of them.
        "broker_heartbeat": 10,
        "broker_transport_options": _TRANSPORTS[_transport(settings)],
    }


def within(settings: Settings, seconds: float) -> dict[str, Any]:
    """Transport options under which no single exchange with the broker takes longer than `seconds`."""
    kind = _transport(settings)
    return {**_TRANSPORTS[kind], **dict.fromkeys(_BOUNDS[kind], seconds), **_BRIEF[kind]}


def _transport(settings: Settings) -> Transport:
    """Which client speaks to the broker: what bounds its calls has other names in each."""
    url = settings.broker_url.get_secret_value() if settings.broker_url is not None else ""
    scheme = url.partition(":")[0].lower()
    if scheme in {"redis", "rediss", "sentinel"}:
        return "redis"
    return "amqp" if scheme in {"amqp", "amqps", "pyamqp"} else "other"
