"""`make scan`: no secret and no address of a machine in the files that git tracks."""

import json
import re
import subprocess
import sys
from pathlib import Path

#: A machine's own paths and addresses: they say where somebody sat and help nobody else.
_ADDRESSES = {
    "a path of somebody's machine": re.compile(r"/(?:home|Users)/[a-z][\w.-]*/"),
    "a private address outside of tests": re.compile(r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b"),
    "a package index": re.compile(r"(?:--(?:extra-)?index-url|--find-links)\s*[= ]\s*\S*://"),
}
#: What may look like either: hostile inputs are made of them, and one list is of the addresses that are refused.
_INPUTS = re.compile(r"tests/|worker/agent_url\.py")


def main() -> int:
    """Print a line for each finding; 1 when there is one."""
    files = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    tracked = [Path(name) for name in files if name and Path(name).is_file()]
    findings = [finding for path in tracked for finding in _addresses(path)]
    findings += _secrets([path for path in tracked if path.suffix != ".lock" and "vectors" not in path.parts])
    for finding in findings:
        print(finding)  # noqa: T201  because it is a command
    return 1 if findings else 0


def _addresses(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        return []
    return [
        f"{path}:{number}: {what}"
        for number, line in enumerate(lines, start=1)
        for what, pattern in _ADDRESSES.items()
        if pattern.search(line) and not _INPUTS.match(str(path))
    ]


def _secrets(paths: list[Path]) -> list[str]:
    """What detect-secrets finds; a line that only looks like one says so with `pragma: allowlist secret`."""
    told = subprocess.run(
        [sys.executable, "-m", "detect_secrets", "scan", "--exclude-files", r"^tests/", *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stdout)["results"]
    return [f"{name}:{hit['line_number']}: looks like a secret ({hit['type']})" for name, hits in found.items() for hit in hits]


if __name__ == "__main__":
    sys.exit(main())
