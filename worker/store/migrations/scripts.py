"""The SQL beside this file. Tables change by revisions; functions are written anew, all of them, by each revision that changes one.

So there is one text of each function, and what a database holds is what this release's files say. A function whose result
changes its shape is dropped by its revision first, because `CREATE OR REPLACE` refuses that.
"""

from importlib import resources

from sqlalchemy import Connection


def run(connection: Connection, name: str) -> None:
    """Run one file of `sql/`, e.g. `0001_engine.sql`."""
    script = resources.files("worker.store.migrations").joinpath("sql", name).read_text()
    connection.exec_driver_sql(script.replace("%", "%%"))


def write_functions(connection: Connection) -> None:
    """Write all functions and views, in the order of their files' numbers."""
    folder = resources.files("worker.store.migrations").joinpath("sql", "functions")
    for name in sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql")):
        run(connection, f"functions/{name}")
