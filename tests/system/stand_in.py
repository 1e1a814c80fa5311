"""One Debian image in the place of Python's, Postgres' and Redis' official ones, because no registry can be reached.

It is made once and kept by a tag that names what it was made from. The image of the worker that is built on it is kept as well:
the engine's cache of its layers is what makes a second run quick.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from docker import APIClient

from tests.conftest import missing

ROOT: Final = Path(__file__).parent.parent.parent
_ENTRY: Final = Path(__file__).with_name("stand_in.sh")
_SUITE: Final = "bookworm"
_MIRROR: Final = "http://deb.debian.org/debian"
_PACKAGES: Final = ("python3", "python3-venv", "git", "ca-certificates", "postgresql-15", "redis-server")
#: The disk need not be asked after each file, and nobody reads manuals in it; without its provider Postgres compiles no query.
_DPKG: Final = """force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/lib/postgresql/*/lib/llvmjit.so
path-exclude=/usr/lib/*/libLLVM*
path-exclude=/usr/lib/llvm-*
"""
#: What the official images have: folders of the server's own user, whose owner and mode a volume or a tmpfs there inherits.
_PREPARED: Final = "install -d -o postgres -g postgres /var/lib/postgresql/data && chmod 3777 /run/postgresql"
#: Whoever stands between this machine and a package registry is trusted by name here, and then has to be there, too.
_TRUSTED: Final = Path("/etc/ssl/certs/ca-certificates.crt")
#: Bytes that the folder takes, twice over.
_ENOUGH: Final = 2 * 1024**3
#: The worker's image as the tests last built it.
WORKER: Final = "molecule-worker-tests:image"


def base(client: APIClient) -> str:
    """The reference of the image; made where it is not there yet, which takes about a minute."""
    recipe = "\n".join((_SUITE, *_PACKAGES, _DPKG, _PREPARED, _ENTRY.read_text()))
    tag = f"molecule-worker-tests-base:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not client.images(name=tag):
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            missing("debootstrap, as root (sudo make docker-engine)")
        with _folder() as folder:
            _bootstrap(folder)
            _import(folder, tag)
    return tag


def worker(client: APIClient, base_image: str) -> str:
    """The worker's own image as `make image` builds it; the one of the run before goes."""
    before = [image["Id"] for image in client.images(name=WORKER)]
    subprocess.run(
        ["make", "image", f"BASE={base_image}", f"IMAGE={WORKER}", "BUILD=--quiet --network host"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    now = [image["Id"] for image in client.images(name=WORKER)]
    for image in set(before) - set(now):
        client.remove_image(image)
    return WORKER


@contextmanager
def _folder() -> Iterator[Path]:
    """In memory where there is room: most of what debootstrap does is to write small files."""
    memory = Path("/dev/shm")
    quick = (
        memory.is_dir()
        and shutil.disk_usage(memory).free > _ENOUGH
        and not os.statvfs(memory).f_flag & (os.ST_NODEV | os.ST_NOEXEC)
    )
    folder = Path(tempfile.mkdtemp(prefix="molecule-worker-base-", dir=memory if quick else "/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bootstrap(folder: Path) -> None:
    settings = folder / "etc" / "dpkg" / "dpkg.cfg.d" / "stand-in"
    settings.parent.mkdir(parents=True)
    settings.write_text(_DPKG)
    folder.chmod(0o755)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(folder), _MIRROR],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    shutil.copyfile(_ENTRY, folder / "usr" / "local" / "bin" / "stand-in")
    (folder / "usr" / "local" / "bin" / "stand-in").chmod(0o755)
    if _TRUSTED.exists():
        shutil.copyfile(_TRUSTED, folder / _TRUSTED.relative_to("/"))
    subprocess.run(["chroot", str(folder), "sh", "-c", _PREPARED], check=True)


def _import(folder: Path, tag: str) -> None:
    packed = ["tar", "-C", str(folder), "--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*", "-c", "."]
    changes = ['ENTRYPOINT ["/usr/local/bin/stand-in"]', "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    options = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(packed, stdout=subprocess.PIPE) as tar:
        subprocess.run(["docker", "import", *options, "-", tag], stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL)
    assert tar.returncode == 0
