"""What worker processes say of themselves besides being alive."""

from sqlalchemy import Connection, func, update

from worker.store.tables import processes


def serve(connection: Connection, process_id: int, queue: str, *, there: bool) -> None:
    """Record whether this process can work on that queue right now, so that `jobs show` can say what a job waits for."""
    others = func.array_remove(processes.c.queues, queue)
    now = func.array_append(others, queue) if there else others
    connection.execute(update(processes).where(processes.c.id == process_id).values(queues=now))
