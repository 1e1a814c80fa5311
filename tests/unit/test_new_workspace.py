from dataclasses import replace
from typing import Any

import pytest

from worker.errors import Refused
from worker.new_workspace import NewWorkspace, refuse_unfit

GOOD = NewWorkspace(name="Ada's agent", runtime="langgraph", tier=2)
RUNTIMES = ("langgraph", "claude-code")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "n" * 255, "role": "r" * 1000, "model": "m" * 100},
        {"model": "a[b]&c!", "name": "Zoë ✓"},
        *({"tier": tier} for tier in (1, 2, 3, 4)),
        {"workspace_dir": "/home/ada/work", "workspace_access": "read_only"},
        {"workspace_dir": "/home/ada/work", "workspace_access": "read_write"},
        {"workspace_dir": "/home/ada/work", "workspace_access": "none"},
        {"workspace_dir": "/etcetera", "workspace_access": "read_only"},
        {"parent_id": "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"},
    ],
)
def test_a_proper_wish_passes(fields: dict[str, Any]) -> None:
    refuse_unfit(replace(GOOD, **fields), RUNTIMES)


@pytest.mark.parametrize(
    "fields",
    [
        *({"name": bad} for bad in ("", "  ", "n" * 256)),
        *({field: f"a{bad}b"} for field in ("name", "role") for bad in "{}[]|>*&!"),
        *({field: f"a{bad}b"} for field in ("name", "role", "model") for bad in "\n\r\t\0\x1b\x7f\x85\u2028\u2029\ud800"),
        *({"role": "r" * 1001}, {"model": "m" * 101}),
        *({"runtime": bad} for bad in ("", "Langgraph", "langgraph ", "langgraph\n", "external", "../langgraph")),
        *({"tier": bad} for bad in (0, 5, -1, True, 2.0, "2", None)),
        *({"workspace_access": bad, "workspace_dir": "/home/a"} for bad in ("", "rw", "READ_ONLY")),
        *({"workspace_access": bad} for bad in ("read_only", "read_write")),
        *({"parent_id": bad} for bad in ("", "x", "0f3c9a52")),
        *(
            {"workspace_dir": bad, "workspace_access": "read_only"}
            for bad in (
                *("relative", "~/x", "/", "//", "/.", "/home/../etc", "/home/..", "/home/a:rw", "/home/a\nb", "/" + "a" * 4096),
                *("/etc", "/etc/", "//etc", "/./etc/ssh", "/var/lib/docker", "/proc/1", "/sys", "/dev/sda", "/boot", "/sbin"),
                *("/root", "/root/work", "/bin", "/lib", "/usr/local", "/run/docker.sock", "/lib64"),
            )
        ),
    ],
)
def test_an_unfit_wish_is_refused_and_its_author_is_told_what_to_do(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="create workspace: ") as caught:
        refuse_unfit(replace(GOOD, **fields), RUNTIMES)
    assert caught.value.hint
