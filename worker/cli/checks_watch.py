"""What `doctor` asks of the watching: the admin address, where metrics are counted, and where spans go."""

import socket
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import httpx

from config.settings import Settings
from worker import meter_folder
from worker.cli.finding import Finding, ok, warning, wrong

_CALL_S: Final = 2.0
_RUN: Final = "molecule-worker run"
_ELSEWHERE: Final = "end it, or set MOLECULE_WORKER_ADMIN_ADDR"
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PORTS: Final = {"http": 80, "https": 443}


def findings(own: Settings) -> Iterator[Finding]:
    """Everything that this machine can answer."""
    yield _admin(own.admin_addr)
    yield _metrics(own)
    yield _tracing(own)


def _admin(address: str) -> Finding:
    # What listens on all interfaces listens on this one, too.
    near = address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104  because nothing is bound here
    try:
        answer = httpx.get(f"http://{near}/readyz", timeout=_CALL_S, trust_env=False)
    except httpx.ConnectError:
        return warning("admin", f"nothing listens at {address}", _RUN)
    except httpx.HTTPError:
        return wrong("admin", f"what listens at {address} does not speak HTTP, or not in time", _ELSEWHERE)
    checks = _checks_of(answer)
    if checks is None:
        return wrong("admin", f"another program answers at {address}", _ELSEWHERE)
    faults = [f"{name}: {said}" for name, said in checks.items() if said != "ok"]
    if faults:
        return warning("admin", f"{address} answers that this host is not ready: {'; '.join(faults)}", "see the lines above")
    return ok("admin", f"ready at {address}")


def _checks_of(answer: httpx.Response) -> dict[str, str] | None:
    """What `/readyz` says, None for what is not ours."""
    try:
        found = answer.json()["checks"]
    except (ValueError, KeyError, TypeError):
        return None
    return {str(name): str(said) for name, said in found.items()} if isinstance(found, dict) else None


def _metrics(own: Settings) -> Finding:
    base = meter_folder.base_of(own.state_dir)
    try:
        daemons = meter_folder.in_use(own.state_dir)
    except OSError:
        said = f"{base} may not be read, so they are counted in a temporary folder"
        return warning("metrics", said, "point MOLECULE_WORKER_STATE_DIR at a folder of this user")
    return ok("metrics", f"counted in {base} by {daemons} daemon{'s' if daemons != 1 else ''}" if daemons else f"{base} is free")


def _tracing(own: Settings) -> Finding:
    """By its host and port alone: the rest of the address may hold a key."""
    if own.otlp_endpoint is None:
        return ok("tracing", "off: no OTEL_EXPORTER_OTLP_ENDPOINT is set")
    try:
        url = urlsplit(own.otlp_endpoint.get_secret_value())
        host, port = url.hostname, url.port or _PORTS[url.scheme]
    except (ValueError, KeyError):
        host, port = None, 0
    if host is None:
        return wrong("tracing", f"{_ENDPOINT} is not the URL of an OTLP/HTTP collector", "e.g. http://127.0.0.1:4318")
    try:
        socket.create_connection((host, port), timeout=_CALL_S).close()
    except OSError:
        return warning("tracing", f"nothing answers at {host}:{port}: spans are dropped, jobs go on", "start the collector")
    return ok("tracing", f"spans go to {host}:{port}")
