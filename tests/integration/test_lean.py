import subprocess
import sys

LOADED = """
import sys, worker.daemons
from worker.cli import daemon
daemon.catalogue()
print(*sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "alembic", "tenacity"))))
"""


def test_a_daemon_that_sends_no_spans_loads_no_sdk_of_them_nor_what_only_migrations_need() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout.strip() == ""


def test_the_sdk_can_be_loaded_after_redis() -> None:
    code = "import worker.store.cache, opentelemetry.sdk.metrics as sdk; import worker.tracing; print(sdk.MeterProvider.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout.strip() == "MeterProvider"
