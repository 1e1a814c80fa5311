"""Docker's HEALTHCHECK: is this container's daemon ready, and does each further address (`host:port/path`) answer 200."""

import http.client
import os
import sys

_LIMIT_S = 4.0  # shorter than Docker's own, so that the reason is seen


def main(further: list[str]) -> int:
    """Ask all of them; a line and 1 for the first that does not answer well."""
    admin = os.environ.get("MOLECULE_WORKER_ADMIN_ADDR") or "127.0.0.1:8701"
    for target in (f"{admin}/readyz", *further):
        address, _, path = target.partition("/")
        try:
            asked = http.client.HTTPConnection(address, timeout=_LIMIT_S)
            asked.request("GET", f"/{path}")
            answer = asked.getresponse()
            said = answer.read(1000).decode(errors="replace")
        except OSError as error:
            answer, said = None, str(error)
        if answer is None or answer.status != http.client.OK:
            sys.stdout.write(f"{target}: {said}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
