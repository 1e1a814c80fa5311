"""What worker processes say of themselves besides being alive."""

from collections.abc import Sequence

from sqlalchemy import Connection, update

from worker.store.tables import processes


def serve(connection: Connection, process_id: int, queues: Sequence[str]) -> None:
    """Record which queues this process can work on right now, so that `jobs show` can say what a job waits for."""
    connection.execute(update(processes).where(processes.c.id == process_id).values(queues=list(queues)))
