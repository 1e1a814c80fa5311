"""Celery's knobs as plain data. Celery carries doorbells and nothing else: no results, no retries, no ETA."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from config.settings import Settings

Transport = Literal["redis", "amqp", "other"]

#: Where a producer's own message goes when it names no queue.
DEFAULT_QUEUE = "jobs"

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


def conf(settings: Settings) -> dict[str, Any]:
    """The configuration of this process's Celery app. Without a broker address nothing leaves the process."""
    broker = settings.broker_url
    return {
        "broker_url": broker.get_secret_value() if broker is not None else "memory://localhost/",
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
        "broker_connection_timeout": 2.0,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_proc_alive_timeout": 30.0,
        # Seconds between two signs of life on an AMQP connection: a broker that is frozen is noticed after two of them.
        "broker_heartbeat": 10,
        "broker_transport_options": _TRANSPORTS[transport(broker.get_secret_value())] if broker is not None else {},
    }


def transport(url: str) -> Transport:
    """Which client speaks to the broker at `url`: what bounds its calls has other names in each."""
    scheme = url.partition(":")[0].lower()
    if scheme in {"redis", "rediss", "sentinel"}:
        return "redis"
    return "amqp" if scheme in {"amqp", "amqps", "pyamqp"} else "other"


def budget(settings: Settings, seconds: float) -> dict[str, Any]:
    """Transport options under which no single exchange with the broker takes longer than `seconds`."""
    broker = settings.broker_url
    match transport(broker.get_secret_value()) if broker is not None else "other":
        case "redis":
            return {"socket_connect_timeout": seconds, "socket_timeout": seconds}
        case "amqp":
            # Confirmed, because what is written to a connection that just broke would otherwise count as sent.
            return {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds, "confirm_publish": True}
        case _:
            return {}
