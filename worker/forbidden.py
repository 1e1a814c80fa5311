"""What never enters a workspace: the operator's own keys, names that a shell would lose, values that no process can hold.

Asked when a secret is stored and again when it is injected, because other programs write the same rows.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Final

from worker.domain import Secret
from worker.errors import Misconfigured, Refused

LONGEST_NAME: Final = 128
#: Bytes of `NAME=value` and its NUL. Linux starts no process with a longer string (MAX_ARG_STRLEN), whatever the image.
LARGEST: Final = 131_072
_NAME: Final = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{LONGEST_NAME - 1}}}")

#: Open the operator's own house: refused whoever stored them.
_OPERATOR: Final = frozenset(
    {
        "ADMIN_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "CP_ADMIN_API_TOKEN",
        "CP_ADMIN_TOKEN",
        "CP_PROMOTE_PROD_API_TOKEN",
        "GHCR_PULL_TOKEN",
        "MOLECULE_ADMIN_TOKEN",
        "MOLECULE_CP_SHARED_SECRET",
        # Because it reads the private template repositories, as MOLECULE_TEMPLATE_REPO_TOKEN does.
        "MOLECULE_GITEA_TOKEN",
        "MOLECULE_TEMPLATE_REPO_TOKEN",
        "PROVISION_SHARED_SECRET",
        "SECRETS_ENCRYPTION_KEY",
    }
)
_OPERATOR_PREFIXES: Final = ("HETZNER_", "INFISICAL_", "MOLECULE_OPERATOR_", "RAILWAY_")
#: GITHUB_TOKEN, GITHUB_PERSONAL_ACCESS_TOKEN, GH_ENTERPRISE_TOKEN …, and not GLOBAL_TOKEN.
_SOURCE_CONTROL: Final = re.compile(r"(?:GITEA|GITHUB|GH|GITLAB|GL|BITBUCKET)_(?:[A-Za-z0-9_]*_)?TOKEN")

_NAME_HINT: Final = f"letters, digits and underscores, not a digit first, at most {LONGEST_NAME}"
_OPERATOR_HINT: Final = "it is a key of the platform's operator; store the value under a name of your own"
_LARGE_HINT: Final = f"with its name it holds at most {LARGEST - 2:,} bytes; keep it where the workspace can fetch it"
_GLOBAL_HINT: Final = "a source control token is stored for one workspace, by its owner: --workspace ID"


class Scope(StrEnum):
    """Where a secret comes from."""

    #: every workspace of the installation receives it
    GLOBAL = "global"
    #: one workspace has it, and it wins over a global one of the same name
    WORKSPACE = "workspace"


def is_name(text: str) -> bool:
    """Whether `text` names an environment variable: `/bin/sh` drops any other silently, and `A=B` would set another one."""
    return _NAME.fullmatch(text) is not None


def refuse_name(name: str, scope: Scope) -> None:
    """Raise Refused for a name that may not be stored in that scope. What is no name is not repeated: people paste values."""
    if not is_name(name):
        raise Refused("store secret: the name is not that of an environment variable", hint=_NAME_HINT, code="bad_name")
    if hint := _objection(name, own=scope is Scope.WORKSPACE):
        raise Refused(f"store secret: {name} is forbidden", hint=hint, code="forbidden_name")


def refuse_forbidden(names: Iterable[str], *, own: Collection[str] = ()) -> None:
    """Raise for the first of `names` that may not be injected; `own` are those whose value the workspace's owner stored.

    Refused for an own one, Misconfigured for any other, because then the operator has to take it away.
    """
    for name in names:
        fault = Refused if name in own else Misconfigured
        if not is_name(name):
            raise fault("inject variable: a name is not that of an environment variable", hint=_NAME_HINT, code="bad_name")
        if hint := _objection(name, own=name in own):
            raise fault(f"inject variable: {name} is forbidden in a workspace", hint=hint, code="forbidden_name")


def refuse_large(name: str, value: Secret) -> None:
    """Raise Refused for a value that no process can find in its environment."""
    if _size(name, value) > LARGEST:
        raise Refused(f"store secret: {name} is larger than a variable can be", hint=_LARGE_HINT, code="too_large")


def refuse_unbearable(values: Mapping[str, Secret], *, own: Collection[str] = ()) -> None:
    """Raise for the first of `values` that is too large to be injected, as `refuse_forbidden` does: no container would start."""
    for name, value in values.items():
        if _size(name, value) > LARGEST:
            fault = Refused if name in own else Misconfigured
            raise fault(f"inject variable: {name} is larger than a variable can be", hint=_LARGE_HINT, code="too_large")


def _size(name: str, value: Secret) -> int:
    # surrogatepass, because a text that cannot be encoded is another's to refuse, and an UnicodeEncodeError would carry it.
    return len(name) + 1 + len(value.reveal().encode(errors="surrogatepass")) + 1


def _objection(name: str, *, own: bool) -> str:
    """Say what to do instead; empty when the name is allowed. Case counts, because tools read exactly these names."""
    if name in _OPERATOR or name.startswith(_OPERATOR_PREFIXES):
        return _OPERATOR_HINT
    return _GLOBAL_HINT if not own and _SOURCE_CONTROL.fullmatch(name) else ""
