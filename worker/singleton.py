"""What an installation needs once: the clock, the relay of doorbells and the receiver that faces workspaces.

A second one is harmless. Two clocks and two relays share the slots and the bells, because the database hands each out once;
a second receiver on a host finds the address taken and stands by until it is free.
"""

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

import structlog
import uvicorn
from starlette.types import ASGIApp

from worker.engine.clock import Schedule, Slots, keep_time
from worker.engine.doorbell import Bell, Ring, relay

log = structlog.get_logger()

#: Seconds between two looks for an address that is taken or not there yet.
_AGAIN_S = 2.0


def start_relay(open_bell: Callable[[], Bell], publish: Callable[[Ring], bool], stop: Event) -> Thread:
    """Ring for due jobs in a thread until `stop`."""
    thread = Thread(target=relay, args=(open_bell, publish, stop), name="relay", daemon=True)
    thread.start()
    return thread


def start_clock(schedules: Sequence[Schedule], slots: Slots, world: object, stop: Event) -> Thread:
    """Do what comes round in a thread until `stop`."""
    thread = Thread(target=keep_time, args=(schedules, slots, world, stop), name="clock", daemon=True)
    thread.start()
    return thread


def bind(address: str) -> socket.socket | None:
    """A listening socket, or None while the address is taken or not on this machine yet."""
    host, _, port = address.rpartition(":")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except OSError as error:
        listener.close()
        # A name that is not known yet: in a container it is the network's, and comes with it.
        if isinstance(error, socket.gaierror) or error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL}:
            return None
        raise
    listener.listen(128)
    listener.set_inheritable(False)
    return listener


class Listeners:
    """Serves one application on several addresses, each as soon as it can be bound."""

    def __init__(
        self, application: ASGIApp, addresses: Sequence[Callable[[], str | None]], stop: Event, *, name: str = "receiver"
    ) -> None:
        self._name, self._listens, self._stands_by = name, f"{name} listens", f"{name} stands by"
        self._application = application
        self._addresses = addresses
        self._stop = stop
        self._threads: list[Thread] = []

    def start(self) -> None:
        """One thread for each address. An address may answer None for "not known yet"."""
        for number, address in enumerate(self._addresses):
            thread = Thread(target=self._serve, args=(address,), name=f"{self._name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self, seconds: float) -> None:
        """Wait for the threads to end after `stop`."""
        for thread in self._threads:
            thread.join(seconds)

    def _serve(self, address: Callable[[], str | None]) -> None:
        listener = self._wait_for(address)
        if listener is None:
            return
        host, port = listener.getsockname()[:2]
        log.info(self._listens, address=f"{host}:{port}")
        config = uvicorn.Config(
            self._application,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            limit_concurrency=512,
            lifespan="off",
        )
        server = _Server(config)
        Thread(target=self._end, args=(server,), daemon=True).start()
        with listener:
            server.run(sockets=[listener])

    def _end(self, server: uvicorn.Server) -> None:
        self._stop.wait()
        server.should_exit = True

    def _wait_for(self, address: Callable[[], str | None]) -> socket.socket | None:
        told = False
        while not self._stop.is_set():
            wanted = address()
            if wanted is not None:
                if (listener := bind(wanted)) is not None:
                    return listener
                if not told:
                    log.info(self._stands_by, address=wanted, reason="the address is taken")
                    told = True
            self._stop.wait(_AGAIN_S)
        return None


class _Server(uvicorn.Server):
    """Without uvicorn's own signal handlers: the process's main thread decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: see above."""
        yield
