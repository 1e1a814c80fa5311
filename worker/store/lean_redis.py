"""redis-py, without the metrics SDK of OpenTelemetry that it loads wherever one is installed: 2.4 MiB in each process, unused.

Whoever wants redis-py takes it from here; the SDK itself can be loaded afterwards as ever.
"""

import sys
from typing import Final

_UNWANTED: Final = "opentelemetry.sdk.metrics"
_before = sys.modules.get(_UNWANTED)
# None is Python's own sign for "not to be found", and redis-py goes on without.
sys.modules[_UNWANTED] = _before  # type: ignore[assignment]
try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.client import Pipeline
    from redis.exceptions import RedisError
    from redis.retry import Retry
finally:
    if _before is None:
        del sys.modules[_UNWANTED]

__all__ = ["NoBackoff", "Pipeline", "Redis", "RedisError", "Retry"]
