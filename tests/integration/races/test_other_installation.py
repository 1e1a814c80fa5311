from contextlib import closing

import psycopg2

from tests.conftest import Database
from tests.toys import ask, remember, toy_kind
from tests.waiting import until
from worker.store.jobs import NAMESPACE, Claims, Register

KIND = toy_kind()


def test_a_process_of_the_same_number_in_another_database_is_nobody_here(database: Database, postgres: str) -> None:
    remember(database, KIND)
    ask(database)
    dead = Register(database.url, name="dead", pid=1, lease_s=60)
    claims = Claims(database.url, process_id=dead.process_id, name="dead")
    assert claims.claim(["toy"], 1)
    claims.close()
    with closing(psycopg2.connect(postgres.format("postgres"))) as elsewhere, elsewhere.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (NAMESPACE, dead.process_id))
        dead._connection.close()
        register = Register(database.url, name="next", pid=1, lease_s=60)
        until(lambda: sum(register.reap().values()) == 1, within=3)
        register.close()
