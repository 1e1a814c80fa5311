"""`make prove`: the engine under chaos at full size, then every hostile test at full size. Says what it did; exit 0 only if all held.

python -m tests.prove [--part 0.3] [--only chaos|hostile]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final

ROOT: Final = Path(__file__).parent.parent
CHAOS: Final = ("tests/system/test_chaos.py",)
#: Everything that reads `tests.system.size`, the chaos aside, and the kills at every boundary.
HOSTILE: Final = ("tests/integration/locks", "tests/system/test_kill.py", "tests/system/test_undo_killed.py")
#: Seconds for one test; the chaos has a limit of its own.
_LIMIT_S: Final = 1800


def main(argv: Sequence[str]) -> int:
    """Both parts, however the first one ended."""
    parser = argparse.ArgumentParser(prog="make prove", description="the engine, proven at full size")
    parser.add_argument("--part", type=float, default=1.0, help="of the full chaos: 0.3 is 1,500 jobs and 30 kills")
    parser.add_argument("--only", choices=("chaos", "hostile"))
    wanted = parser.parse_args(argv)
    around = {**os.environ, "MOLECULE_TEST_SIZE": "full", "MOLECULE_TEST_PART": str(wanted.part)}
    parts = [(name, paths) for name, paths in (("chaos", CHAOS), ("hostile", hostile())) if wanted.only in {None, name}]
    failed = [name for name, paths in parts if _run(name, paths, around)]
    _say(f"prove: {'failed: ' + ', '.join(failed) if failed else 'all of it held'}")
    return 1 if failed else 0


def hostile() -> list[str]:
    """Whichever test reads the size, so that a new one is proven without a word here."""
    reading = {
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "import full" in path.read_text() and str(path.relative_to(ROOT)) not in CHAOS
    }
    return sorted({*reading, *HOSTILE})


def _run(name: str, paths: Sequence[str], around: dict[str, str]) -> bool:
    """Whether it failed. What the tests say is shown while they run, what the daemons log only when one fails."""
    _say(f"prove {name}: {', '.join(paths)}")
    began = monotonic()
    options = ["-q", "--capture=no", f"--timeout={_LIMIT_S}", "-p", "no:cacheprovider"]
    ended = subprocess.run([sys.executable, "-m", "pytest", *options, *paths], env=around, cwd=ROOT, check=False)
    _say(f"prove {name}: {'failed' if ended.returncode else 'held'} after {monotonic() - began:.0f} s")
    return ended.returncode != 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
