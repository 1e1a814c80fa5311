"""Reads an engine's description of a container, because its `Running` alone also says yes to a crash loop."""

from collections.abc import Mapping
from typing import Any, Final

from worker.backends.docker_shape import PORT
from worker.domain import Observation, Presence

#: Nothing maps the port of a container on the host's network: the agent listens on the host itself.
_ON_HOST: Final = f"http://127.0.0.1:{PORT.partition('/')[0]}"


def on_host_network(found: Mapping[str, Any]) -> bool:
    """Whether it has no network but the host's."""
    return (found.get("HostConfig") or {}).get("NetworkMode") == "host"


def url_of(found: Mapping[str, Any]) -> str | None:
    """Where this host reaches the container's port right now; a published port's number changes at every restart."""
    if on_host_network(found):
        # Only while it runs is that port its own: the engine publishes none that would vanish with it.
        state = found.get("State") or {}
        return _ON_HOST if state.get("Running") and not state.get("Restarting") else None
    published = ((found.get("NetworkSettings") or {}).get("Ports") or {}).get(PORT) or []
    port = published[0].get("HostPort") if published else None
    return f"http://127.0.0.1:{port}" if port else None


def observation_of(found: Mapping[str, Any]) -> Observation:
    """What an inspected container of ours is doing."""
    state = found.get("State") or {}
    handle, restarts = found.get("Id"), int(found.get("RestartCount") or 0)
    if not state:
        return Observation(Presence.UNKNOWN, handle, restarts=restarts, reason="unreadable")
    reason = _reason(state)
    if state.get("Running") and reason is None:
        return Observation(Presence.RUNNING, handle, url_of(found), restarts=restarts)
    return Observation(Presence.STOPPED, handle, restarts=restarts, exit_code=state.get("ExitCode"), reason=reason)


def _reason(state: Mapping[str, Any]) -> str | None:
    """Why it is not simply running, in one word."""
    words = {"OOMKilled": "oom", "Restarting": "restarting", "Paused": "paused", "Dead": "dead"}
    running = bool(state.get("Running"))
    for key, word in words.items():
        # The engine keeps OOMKilled from an earlier life of a container that runs again.
        if state.get(key) and not (key == "OOMKilled" and running and not state.get("Restarting")):
            return word
    return None
