"""One build as the engine streams it, read in a thread of its own, because a read that blocks cannot be called off."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import IO, Any, Final

import requests
import urllib3
from docker import APIClient
from docker.errors import DockerException
from docker.types import CancellableStream

from worker.images.patience import Patience
from worker.images.tail import Tail

_LOOK_S: Final = 0.2
_CONNECT_S: Final = 10.0
_DONE = re.compile(r"^Successfully built ([0-9a-f]{12,64})$", re.MULTILINE)
_STEP = re.compile(r"^Step (\d+)/\d+ :", re.MULTILINE)


@dataclass
class Outcome:
    """What the stream said. Only `image` together with `done` is a success."""

    status: int | None = None  #: of the HTTP answer, None when none came
    image: str | None = None  #: the last id that the engine named
    done: str | None = None  #: the short id of the engine's closing line
    step: str = ""  #: number of the last step that began; our labels count as steps, so the total would mislead
    error: str | None = None  #: the engine's words: for classifying, never for showing
    exit_code: int = 0  #: of the RUN that failed, else 0
    broken: BaseException | None = None  #: why reading ended early


@dataclass
class BuildStream:
    """POST /build and its answer. `wait` ends with an outcome or raises what patience raises, and then the build is cancelled."""

    client: APIClient
    context: IO[bytes]
    params: dict[str, str]
    patience: Patience
    tail: Tail
    outcome: Outcome = field(default_factory=Outcome)
    _over: Event = field(default_factory=Event)
    _abandoned: Event = field(default_factory=Event)
    _response: requests.Response | None = None

    def wait(self) -> Outcome:
        """Run the build to its end."""
        # A daemon, because a worker that leaves must not wait for an engine that hangs.
        reader = Thread(target=self._read, name="build-stream", daemon=True)
        reader.start()
        try:
            while not self._over.wait(_LOOK_S):
                self.patience.check()
        finally:
            self._abandoned.set()
            self._cut()
            reader.join(5)
        return self.outcome

    def _read(self) -> None:
        try:
            # The engine's address straight, because docker-py's own build() sends every stored registry password along and
            # turns proxies of the user's configuration into build-args.
            with self.client.post(
                f"{self.client.base_url}/v{self.client.api_version}/build",
                params=self.params,
                data=self.context,
                headers={"Content-Type": "application/x-tar"},
                stream=True,
                timeout=(_CONNECT_S, self.patience.stall_s + _CONNECT_S),  # later than patience, which says it better
            ) as self._response:
                self._follow(self._response)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # AttributeError and ValueError too, because http.client raises them from a socket that is cut under it.
            self.outcome.broken = error
        finally:
            self._over.set()

    def _follow(self, response: requests.Response) -> None:
        self.outcome.status = response.status_code
        for line in response.iter_lines():
            if self._abandoned.is_set():
                return
            if line:
                self.patience.moved()
                self._note(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        text = str(event.get("stream") or "")
        aux, detail = event.get("aux"), event.get("errorDetail")
        error = event.get("error") or event.get("message")  # an answer with a status of its own has `message`
        if step := _STEP.search(text):
            self.outcome.step = step[1]
        if done := _DONE.search(text):
            self.outcome.done = done[1]
        if isinstance(aux, dict) and aux.get("ID"):
            self.outcome.image = str(aux["ID"])
        if error:
            self.outcome.error = str(error)
            self.outcome.exit_code = int(detail.get("code") or 0) if isinstance(detail, dict) else 0
            text = f"error: {error}\n"
        elif not text and event.get("status") and not event.get("progressDetail"):
            text = f"{event['status']}\n"
        if text:
            self.tail.write(text)

    def _cut(self) -> None:
        """End the connection: the engine takes that as the wish to cancel the build."""
        response = self._response
        if response is None:
            return
        # Shut down and not only closed, because close() would wait for the lock of the thread that is reading.
        with suppress(OSError, AttributeError, DockerException):
            CancellableStream(iter(()), response).close()
        response.close()
