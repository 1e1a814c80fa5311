"""Whether an address that a workspace gives for itself may be kept: others will call it from inside (SSRF).

Pure but for the lookup that is passed in. A host name is judged by every address behind it right now; who calls it later looks
it up anew and must judge again, because a name may point elsewhere by then.
"""

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Thread
from typing import Final
from urllib.parse import SplitResult, urlsplit

from worker.domain import container_name
from worker.errors import Refused

#: Host name → its addresses as text; empty where there are none or no answer came in time.
Lookup = Callable[[str], Sequence[str]]

_LIMIT: Final = 2048
_PORTS: Final = range(1, 65536)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
#: A last label like this makes the whole host an IPv4 number to some reader: decimal, octal, hexadecimal.
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\Z")

#: Not for a tenant under any circumstances (IANA's special-purpose registries): this network, carrier space with its metadata
#: services, loopback, link-local with AWS's metadata service, protocol and documentation ranges, relays, multicast, reserved.
_NEVER_4: Final = tuple(
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
_PRIVATE_4: Final = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_GLOBAL_6: Final = IPv6Network("2000::/3")
_PRIVATE_6: Final = IPv6Network("fc00::/7")
#: Inside the two above: AWS's metadata service, protocol assignments with Teredo, documentation, 6to4.
_NEVER_6: Final = tuple(
    IPv6Network(text) for text in ("fd00:ec2::/32", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16")
)
#: An IPv4 address in its last 32 bits: mapped, compatible (with ::1 and ::), translated.
_CARRIES_4: Final = tuple(IPv6Network(text) for text in ("::ffff:0:0/96", "::/96", "64:ff9b::/96", "::ffff:0:0:0/96"))


@dataclass(frozen=True, slots=True)
class AgentUrl:
    """An address in its parts, well-formed and not yet judged."""

    text: str
    host: str  #: lower case
    address: IPv4Address | IPv6Address | None  #: None where `host` is a name


def check(url: str, workspace_id: str, *, saas: bool, lookup: Lookup) -> str:
    """`url` as it may be stored. Raises Refused. May wait for `lookup`, so call it outside of a transaction."""
    parsed = parse(url)
    if not saas and parsed.host == container_name(workspace_id):
        return url  # because only the containers' own network knows this name
    refuse_name(parsed)
    addresses = [str(parsed.address)] if parsed.address else lookup(parsed.host)
    if not addresses:
        raise _refused("its host name leads nowhere")
    for address in addresses:
        refuse_address(address, saas=saas)
    return url


def parse(url: str) -> AgentUrl:
    """Pure: the parts, if every reader would find the same ones. Raises Refused."""
    if len(url) > _LIMIT:
        raise _refused(f"it is longer than {_LIMIT} characters")
    # Before splitting, because urlsplit drops tabs and line breaks, and browsers read a backslash as a slash.
    if "\\" in url or any(not "!" <= character <= "~" for character in url):
        raise _refused("it holds a character that no address has")
    parts = _split(url)
    if parts.scheme not in {"http", "https"}:
        raise _refused("it is neither http nor https")
    if "@" in parts.netloc:
        raise _refused("it carries a user name")
    host = parts.hostname or ""
    return AgentUrl(url, host, _address(host, bracketed="[" in parts.netloc))


def refuse_name(url: AgentUrl) -> None:
    """Pure: raise Refused for a name that means this very machine, whatever it resolves to."""
    if url.host == "localhost" or url.host.endswith(".localhost"):
        raise _refused("its host is this machine itself")


def refuse_address(text: str, *, saas: bool) -> None:
    """Pure: raise Refused for an address that a tenant may not name. Private networks are a cloud's own, hence `saas`."""
    address = ip_address(text.partition("%")[0])
    address = _carried(address)
    if isinstance(address, IPv4Address):
        never, private = any(address in n for n in _NEVER_4), any(address in n for n in _PRIVATE_4)
    else:
        private = address in _PRIVATE_6
        never = any(address in n for n in _NEVER_6) or not (private or address in _GLOBAL_6)
    if never:
        raise _refused("its host is a loopback, link-local, metadata or reserved address")
    if private and not saas:
        raise _refused("its host is a private address")


def resolve(host: str, *, deadline: float = 2.0) -> Sequence[str]:
    """A `Lookup` by the machine's own resolver; empty after `deadline` seconds.

    The resolver cannot be interrupted, so it runs in a thread that nobody waits for, and only so many at once.
    """
    if not _LOOKUPS.acquire(timeout=deadline):
        return ()
    answers: SimpleQueue[Sequence[str]] = SimpleQueue()
    Thread(target=_ask, args=(host, answers), name="lookup", daemon=True).start()
    try:
        return answers.get(timeout=deadline)
    except Empty:
        return ()


_LOOKUPS: Final = BoundedSemaphore(8)


def _ask(host: str, answers: SimpleQueue[Sequence[str]]) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        answers.put([str(entry[4][0]) for entry in found])
    except (OSError, UnicodeError):
        answers.put(())
    finally:
        _LOOKUPS.release()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused("it is not well-formed") from error
    if (port is None and parts.netloc.endswith(":")) or (port is not None and port not in _PORTS):
        raise _refused("its port is not 1 to 65535")
    return parts


def _address(host: str, *, bracketed: bool) -> IPv4Address | IPv6Address | None:
    labels = host.split(".")
    if not bracketed and not _NUMBER.match(labels[-1]):
        if len(host) > 253 or not all(_LABEL.match(label) for label in labels):  # noqa: PLR2004  the limit of DNS itself
            raise _refused("its host is neither a plain name nor an address")
        return None
    try:
        # Only the one spelling that everybody reads alike: no octal, no hexadecimal, no short form, no zone.
        return IPv6Address("" if "%" in host else host) if bracketed else IPv4Address(host)
    except ValueError as error:
        raise _refused("its host is not an address in its usual spelling") from error


def _carried(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv6Address) and any(address in network for network in _CARRIES_4):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _refused(reason: str) -> Refused:
    return Refused(
        f"register url: {reason}", hint="give the address at which the platform reaches this workspace", code="url_refused"
    )
