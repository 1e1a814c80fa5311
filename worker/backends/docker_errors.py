"""What a Docker engine's answers mean, in one table, because the same refusal arrives as many codes and texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import requests
import urllib3
from docker.errors import APIError, DockerException

from worker.backends.docker_shape import ENGINE_SOCKET
from worker.errors import BackendBusy, Misconfigured, Refused, Retryable, Unreachable, WorkerError

#: Everything that the client library lets through.
CLIENT_ERRORS: Final = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)

_START_ENGINE: Final = "start the engine (`sudo make docker-engine`) or set DOCKER_HOST"
_LOOK: Final = "read the engine's own log"
_UNMAP: Final = "run the engine without userns-remap, or choose tier 1 or 2"


@dataclass(frozen=True, slots=True)
class Meaning:
    """One kind of answer: matched by status (None: any) and a part of the text in lower case; first match wins."""

    status: int | None
    text: str
    error: type[WorkerError]
    code: str
    reason: str
    hint: str


#: The engine's own text is never passed on: it may quote paths and commands of a tenant.
MEANINGS: Final = (
    Meaning(
        None, "does not match the specified platform", Misconfigured, "image_platform",
        "the image was built for another platform", "set MOLECULE_IMAGE_PLATFORM to the host's, then retry the job",
    ),
    Meaning(
        404, "no such image", Misconfigured, "image_missing",
        "the image is not on this host any more", "retry the job: its first step brings the image back",
    ),
    Meaning(404, "network", Retryable, "network_missing", "the network vanished", "it is made again by itself"),
    Meaning(404, "no such container", Retryable, "container_vanished", "somebody removed the container meanwhile", _LOOK),
    Meaning(
        400, "is ambiguous", Retryable, "network_ambiguous",
        "two networks of the host bear the same name", "remove the younger one of the workspace network's name on the host",
    ),
    Meaning(
        400, f"bind source path does not exist: {ENGINE_SOCKET}", Misconfigured, "engine_socket",
        f"the host has no {ENGINE_SOCKET}, which tier 4 is given", "have the engine listen there too, or choose another tier",
    ),
    Meaning(
        None, "apply caps: operation not permitted", Misconfigured, "privileges_refused",
        "the engine cannot give a container more privileges than it has itself",
        "run the engine with all of root's capabilities (CAP_SYS_RESOURCE is often missing), or choose tier 1 or 2",
    ),
    Meaning(
        None, "incompatible with user namespaces", Misconfigured, "privileges_refused",
        "the engine maps the users of containers, so none may be privileged", _UNMAP,
    ),
    Meaning(
        None, "namespace when user namespaces are enabled", Misconfigured, "privileges_refused",
        "the engine maps the users of containers, so none may join the host", _UNMAP,
    ),
    Meaning(
        400, "bind source path does not exist", Refused, "workspace_dir",
        "the workspace directory does not exist on the host", "make the directory, then retry the job",
    ),
    Meaning(
        None, "docker-init", Misconfigured, "engine_incomplete",
        "the engine lacks its init program", "install docker-init (Debian: tini) beside the engine",
    ),
    Meaning(
        None, "unable to find user", Misconfigured, "image_broken",
        "the image names a user that it does not have", "mend the template, then retry the job",
    ),
    Meaning(
        None, "executable file not found", Misconfigured, "image_broken",
        "the image's entry point cannot be started", "mend the template, then retry the job",
    ),
    Meaning(
        None, "no command specified", Misconfigured, "image_broken",
        "the image names no entry point", "mend the template, then retry the job",
    ),
    Meaning(409, "is already in use by container", Retryable, "name_taken", "the name is taken for the moment", _LOOK),
    Meaning(409, "already in progress", Retryable, "removal_in_progress", "a removal is under way", "it ends by itself"),
    Meaning(None, "port is already allocated", BackendBusy, "port_taken", "the port is taken", "another one is tried by itself"),
    Meaning(None, "no space left on device", BackendBusy, "host_full", "the host's disk is full", "make room on the host"),
    Meaning(None, "cannot allocate memory", BackendBusy, "host_full", "the host's memory is full", "make room on the host"),
    Meaning(429, "", BackendBusy, "backend_busy", "the engine is busy", "it is tried again by itself"),
    Meaning(503, "", BackendBusy, "backend_busy", "the engine is busy", "it is tried again by itself"),
    Meaning(401, "", Misconfigured, "engine_forbidden", "the engine refuses this client", "check DOCKER_HOST and its certificates"),
    Meaning(403, "", Misconfigured, "engine_forbidden", "the engine refuses this client", "check DOCKER_HOST and its certificates"),
    Meaning(404, "", Retryable, "not_found", "the engine does not find it", _LOOK),
    Meaning(409, "", Retryable, "conflict", "the engine is at something else with it", _LOOK),
    Meaning(400, "", Misconfigured, "engine_refused", "the engine refuses the request as it stands", _LOOK),
)  # fmt: skip


def error_of(action: str, error: BaseException) -> WorkerError:
    """Our error for one of the client library's. `action` reads "verb noun" and begins the message."""
    if isinstance(error, APIError) and error.status_code is not None:
        return _answered(action, error.status_code, str(error.explanation or ""))
    if any(isinstance(link, PermissionError) for link in _chain(error)):
        hint = "let this user into the engine's group, or run as root"
        return Misconfigured(f"{action}: this user may not open the engine's socket", hint=hint, code="engine_forbidden")
    if any(isinstance(link, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError) for link in _chain(error)):
        return Unreachable(f"{action}: the Docker engine did not answer in time", hint=_LOOK, code="engine_silent")
    return Unreachable(f"{action}: no Docker engine answers", hint=_START_ENGINE)


def _answered(action: str, status: int, text: str) -> WorkerError:
    lowered = text.lower()
    for meaning in MEANINGS:
        if meaning.status in (None, status) and meaning.text in lowered:
            return meaning.error(f"{action}: {meaning.reason}", hint=meaning.hint, code=meaning.code)
    return Retryable(f"{action}: the Docker engine answered {status}", hint=_LOOK, code="engine_error")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of: the client library wraps the socket's own words several times."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        link = waiting.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
        waiting += [part for part in inner if isinstance(part, BaseException)]


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Run a call to the engine; what the client library raises leaves as one of our errors."""
    try:
        yield
    except CLIENT_ERRORS as error:
        raise error_of(action, error) from error


def is_gone(error: BaseException | None) -> bool:
    """The engine says that the thing does not exist: the only proof of absence."""
    return isinstance(error, APIError) and error.status_code == requests.codes.not_found


def is_conflict(error: BaseException | None) -> bool:
    """The engine says that the thing is held, or being removed."""
    return isinstance(error, APIError) and error.status_code == requests.codes.conflict
