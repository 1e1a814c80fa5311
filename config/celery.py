"""Celery's knobs as plain data. Celery carries doorbells and nothing else: no results, no retries, no ETA."""

from typing import Any

from config.settings import Settings

#: Where a producer's own message goes when it names no queue.
DEFAULT_QUEUE = "jobs"


def conf(settings: Settings) -> dict[str, Any]:
    """The configuration of this process's Celery app. Without a broker address nothing leaves the process."""
    broker = settings.broker_url
    return {
        "broker_url": broker.get_secret_value() if broker is not None else "memory://localhost/",
        "imports": ("tasks.catalogue",),
        "task_default_queue": DEFAULT_QUEUE,
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
        "broker_transport_options": {
            "global_keyprefix": "molecule-worker:",
            "socket_connect_timeout": 2.0,
            "socket_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "visibility_timeout": 60,
        },
    }
