"""LISTEN for announcements, and ask which jobs are due."""

import select
from collections.abc import Sequence
from contextlib import suppress

import psycopg2

from worker.domain import Secret
from worker.engine.doorbell import Ring
from worker.errors import Unreachable
from worker.store import connect


class ListeningBell:
    """One connection that listens and asks; implements `worker.engine.doorbell.Bell`."""

    def __init__(self, url: Secret, *, name: str) -> None:
        """Raise Unreachable where the database does not answer."""
        self._connection = connect.open_raw(url, name=f"bell {name}")
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("LISTEN worker_jobs")
        except psycopg2.Error as error:
            self.close()
            raise Unreachable("listen for jobs: the database did not answer") from error

    def wait(self, seconds: float) -> bool:
        """Whether a notification came within `seconds`. Raises Unreachable."""
        try:
            select.select([self._connection], [], [], seconds)
            self._connection.poll()
        except (psycopg2.Error, OSError) as error:
            raise Unreachable("listen for jobs: the database did not answer") from error
        heard = bool(self._connection.notifies)
        self._connection.notifies.clear()
        return heard

    def due(self, most: int, again_ms: int) -> Sequence[Ring]:
        """`worker.to_ring`. Raises Unreachable."""
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT id::text, kind, queue, lost FROM worker.to_ring(%s, %s)", (most, again_ms))
                return [Ring(*row) for row in cursor.fetchall()]
        except psycopg2.Error as error:
            raise Unreachable("ask for due jobs: the database did not answer") from error

    def close(self) -> None:
        """Close the connection; one that is broken already is closed all the same."""
        with suppress(psycopg2.Error):
            self._connection.close()
