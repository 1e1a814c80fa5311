"""A checked tree becomes an image through the engine's API.

The builder is the classic one, `POST /build` without a version, for these reasons:

- BuildKit over the same call (`version=2`) cannot pull a base image that is not on the host yet: without a client session
  even a public registry ends in "no active sessions" (measured on engine 20.10.24 with a registry that hands out anonymous
  tokens; the classic builder fetched the token and went on). Templates begin with such a base.
- A session would mean a gRPC server inside the worker, and `docker buildx` a program on every host, whose tail is harder to
  cancel: here closing one connection ends the build.
- Every engine has it, and its log is text.

The price: syntax that only BuildKit knows (`RUN --mount`, here-documents) is refused, in words that say so. BUILDER is part of
the cache's key, so that a change of builder rebuilds. The classic builder takes a local base of another platform without a
word, hence `verify`.

A build whose job is asked to stop is cancelled by closing the stream and not left running: what it makes has its tag only
from us, so a build that nobody waits for would end as an image without a name. Nothing is lost by it, because the engine
keeps the layers of the steps that were finished, and the next attempt continues there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound

from worker.errors import BackendBusy, Misconfigured, Retryable, Unreachable, WorkerError
from worker.images.faults import TemplateFault
from worker.images.patience import Patience
from worker.images.stream import BuildStream, Outcome
from worker.images.tail import Tail

BUILDER: Final = "classic-1"

_SEE_LOG = "the build's log has the details: molecule-worker images list"
_busy = partial(BackendBusy, "build image: the engine's disk is full", hint="molecule-worker images prune", code="disk_full")
_throttled = partial(
    BackendBusy, "build image: the base image's registry throttles", hint="it passes by itself", code="base_throttled", after=60.0
)
_unreachable = partial(
    Unreachable, "build image: the base image could not be fetched", hint="is its registry reachable from the engine?"
)
_leaving = partial(Retryable, "build image: the engine cancelled it", hint="was the engine restarted?", code="build_cancelled")
_needs_buildkit = partial(
    TemplateFault,
    "build image: the template uses syntax that only BuildKit knows",
    hint="write the Dockerfile without RUN --mount and here-documents",
    code="build_failed",
)
_no_base = partial(
    TemplateFault,
    "build image: the base image does not exist or may not be read",
    hint="check FROM in the template's Dockerfile",
    code="build_failed",
)

#: What the engine says (lower case) → what it means. The first that fits counts; anything else is the template's own failure.
_MEANINGS: tuple[tuple[str, Callable[[], WorkerError]], ...] = (
    ("no space left on device", _busy),
    ("disk quota exceeded", _busy),
    ("toomanyrequests", _throttled),
    ("too many requests", _throttled),
    ("--mount option requires buildkit", _needs_buildkit),
    ("requires buildkit", _needs_buildkit),
    ("pull access denied", _no_base),
    ("manifest unknown", _no_base),
    ("manifest for", _no_base),
    ("no matching manifest", _no_base),
    ("no such host", _unreachable),
    ("i/o timeout", _unreachable),
    ("tls handshake timeout", _unreachable),
    ("connection refused", _unreachable),
    ("connection reset", _unreachable),
    ("network is unreachable", _unreachable),
    ("server misbehaving", _unreachable),
    ("client.timeout exceeded", _unreachable),
    ("deadline exceeded", _unreachable),
    ("unexpected eof", _unreachable),
    ("context canceled", _leaving),
    ("operation was canceled", _leaving),
    ("shutting down", _leaving),
)


@dataclass(frozen=True, slots=True)
class Order:
    """What to build. `platform` as `os/arch`, empty when the engine may choose; labels hold no secret."""

    platform: str
    labels: Mapping[str, str]


def built(client: APIClient, context: IO[bytes], order: Order, patience: Patience, tail: Tail) -> str:
    """Build without a tag; the image's id. Raises TemplateFault, or, Retryable for what may pass."""
    params = {"dockerfile": "Dockerfile", "rm": "1", "forcerm": "1", "labels": json.dumps(dict(order.labels))}
    if order.platform:
        params["platform"] = order.platform
    outcome = BuildStream(client, context, params, patience, tail).wait()
    return image_of(outcome)


def image_of(outcome: Outcome) -> str:
    """The id of a finished build, or the error that the outcome is. Only a stream that closed properly is a success."""
    if outcome.error is not None:
        raise _failure(outcome)
    if outcome.broken is not None or outcome.status is None:
        raise Unreachable("build image: the connection to the engine broke", hint="is Docker running?") from outcome.broken
    if not outcome.image or not outcome.done or not outcome.image.removeprefix("sha256:").startswith(outcome.done):
        raise Retryable(
            "build image: the engine ended without saying that it is built", hint="was it restarted?", code="build_unfinished"
        )
    return outcome.image


def _failure(outcome: Outcome) -> WorkerError:
    at = f" in step {outcome.step}" if outcome.step else ""
    if outcome.exit_code:  # a command of the template failed; its text may hold any word of the table
        return TemplateFault(
            f"build image: a command failed{at} (exit code {outcome.exit_code})", hint=_SEE_LOG, code="build_failed"
        )
    said = (outcome.error or "").lower()
    for words, error in _MEANINGS:
        if words in said:
            return error()
    if outcome.status is not None and outcome.status >= requests.codes.server_error:
        return Retryable("build image: the engine failed", hint=_SEE_LOG, code="engine_failed")
    return TemplateFault(f"build image: the template does not build{at}", hint=_SEE_LOG, code="build_failed")


def verify(client: APIClient, image_id: str, order: Order) -> None:
    """Look at what was built. Raises Misconfigured for another platform, Retryable when it is not there."""
    found = inspected(client, image_id)
    if found is None:
        raise Retryable(
            "inspect image: the engine does not have what it built", hint="was it pruned meanwhile?", code="image_vanished"
        )
    made = f"{found.get('Os')}/{found.get('Architecture')}"
    if order.platform and made != "/".join(order.platform.split("/")[:2]):
        raise Misconfigured(
            f"inspect image: it is for {made} and not for {order.platform}",
            hint="remove the base image of the other platform from the host, or set MOLECULE_IMAGE_PLATFORM",
            code="image_platform",
        )
    labels = labels_of(found)
    if any(labels.get(key) != value for key, value in order.labels.items()):
        raise Retryable(
            "inspect image: it does not carry our labels", hint="does a proxy change the engine's API?", code="image_labels"
        )


def inspected(client: APIClient, reference: str) -> dict[str, Any] | None:
    """The engine's record of an image, None when it has none. Raises Unreachable when it cannot be had."""
    try:
        return dict(client.inspect_image(reference))  # type: ignore[no-untyped-call]  # the stubs left it out
    except ImageNotFound:
        return None
    except (APIError, DockerException, requests.RequestException) as error:
        raise Unreachable("inspect image: the engine did not answer", hint="is Docker running?") from error


def labels_of(found: Mapping[str, Any]) -> dict[str, str]:
    """The labels of an inspected image."""
    return dict((found.get("Config") or {}).get("Labels") or {})


def tag(client: APIClient, image_id: str, reference: str) -> None:
    """Give the image its name: the last act, so that a name never stands for half a build."""
    repository, _, version = reference.rpartition(":")
    try:
        client.tag(image_id, repository, version)
    except (APIError, DockerException, requests.RequestException) as error:
        raise Unreachable("tag image: the engine did not answer", hint="is Docker running?") from error
