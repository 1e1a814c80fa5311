"""One thread that writes what all jobs of a process have ready, in one statement, and never waits for company."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

import structlog
from sqlalchemy import Engine

from worker.domain import Secret
from worker.engine.drive import Record
from worker.engine.machine import Facts
from worker.engine.walk import Reply
from worker.errors import JournalLost, Retryable
from worker.store.jobs import Applier, Locked, Transactions

log = structlog.get_logger()

#: Decisions in one statement at most, so that its row locks stay short.
_MOST = 200

_Entry = tuple[Record, "Future[Reply | None]"]


class Journal:
    """The process's writer of decisions; implements `worker.engine.drive.Journal`.

    While one batch is on its way the next one gathers by itself: that is all the batching there is, so a lonely
    decision is written at once.
    """

    def __init__(self, url: Secret, engine: Engine, *, name: str, answer_s: float = 30.0) -> None:
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._applier = Applier(url, name=name)
        self._transactions = Transactions(engine)
        self._answer_s = answer_s
        self._thread = Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def apply(self, record: Record) -> Reply | None:
        """Write one decision together with whatever else is ready. Raises JournalLost, and Retryable for one that is refused."""
        future: Future[Reply | None] = Future()
        self._queue.put((record, future))
        try:
            return future.result(self._answer_s)
        except Locked:
            # A caller that enqueued for this subject has not committed yet: wait for it in this job's own thread.
            return self._transactions.apply_with(record, lambda _: None)
        except TimeoutError as error:
            raise JournalLost("apply decision: no answer in time") from error

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """Run `rows` and write the decision in one transaction, on a connection of the pool."""
        return self._transactions.apply_with(record, rows)

    def close(self) -> None:
        """Write what is queued, then stop."""
        self._queue.put(None)
        self._thread.join(self._answer_s)
        self._applier.close()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            last = False
            while len(batch) < _MOST and not self._queue.empty():
                entry = self._queue.get()
                if entry is None:
                    last = True
                    break
                batch.append(entry)
            self._write(batch)
            if last:
                return

    def _write(self, batch: Sequence[_Entry]) -> None:
        try:
            replies = self._applier.send([record for record, _ in batch])
        except JournalLost as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001  because this thread must outlive whatever a record holds
            # One bad record must not take its neighbours along: each alone, and the bad one is told.
            if len(batch) > 1:
                for entry in batch:
                    self._write([entry])
                return
            if isinstance(error, Locked):
                _fail(batch, error)
                return
            job, step = batch[0][0]["job"], batch[0][0]["name"]
            # Without the trace, because the driver quotes the values of a statement.
            what, state = type(error).__name__, getattr(error, "pgcode", None)
            log.error("decision refused", error=what, sqlstate=state, job=job, step=step)  # noqa: TRY400
            # It was not written, for certain: the step has failed, and neither its process nor its neighbours.
            hint = "the worker's log names the SQLSTATE"
            _fail(batch, Retryable("apply decision: the database refused it", hint=hint, code="decision_refused"))
        else:
            for record, future in batch:
                future.set_result(replies.get(str(record["job"])))


def _fail(batch: Sequence[_Entry], error: Exception) -> None:
    for _, future in batch:
        future.set_exception(error)
