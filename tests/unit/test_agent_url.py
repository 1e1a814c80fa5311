from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import agent_url
from worker.errors import Refused

WORKSPACE = "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"
OWN = "ws-0f3c9a52-7d1"
PUBLIC = "93.184.216.34"


def leads_to(*addresses: str) -> agent_url.Lookup:
    return lambda _: addresses


def unasked(host: str) -> Sequence[str]:
    raise AssertionError(f"looked up {host}")


def refused(url: str, *, saas: bool, lookup: agent_url.Lookup = unasked) -> str:
    with pytest.raises(Refused) as caught:
        agent_url.check(url, WORKSPACE, saas=saas, lookup=lookup)
    assert caught.value.code == "url_refused"
    assert url not in caught.value.message or not url
    return caught.value.message


NEVER = [
    *(
        "http://127.0.0.1:8000",
        "http://127.0.0.1",
        "http://127.1.2.3/",
        "http://127.0.0.1.",
    ),
    *(
        "http://127.1",
        "http://127.0.1",
        "http://2130706433",
        "http://0x7f000001",
    ),
    *(
        "http://0x7f.0.0.1",
        "http://0177.0.0.1",
        "http://017700000001",
        "http://127.0.0.0x1",
    ),
    *(
        "http://0x7f.1",
        "http://00000177.1",
        "http://0",
        "http://0.0.0.0",
    ),
    *(
        "http://0x",
        "http://0.1.2.3",
        "http://localhost",
        "http://LOCALHOST:8000",
    ),
    *(
        "http://localhost.",
        "http://a.localhost",
        "http://foo.LocalHost/",
        "http://169.254.169.254/latest/meta-data",
    ),
    *(
        "http://169.254.170.2",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://169.254.169.254.",
    ),
    *(
        "http://0251.0376.0251.0376",
        "http://[::1]",
        "http://[0:0:0:0:0:0:0:1]:8000",
        "http://[::]",
    ),
    *(
        "http://[::ffff:127.0.0.1]",
        "http://[::ffff:7f00:1]",
        "http://[::ffff:169.254.169.254]",
        "http://[::ffff:0:127.0.0.1]",
    ),
    *(
        "http://[::127.0.0.1]",
        "http://[64:ff9b::7f00:1]",
        "http://[64:ff9b::169.254.169.254]",
        "http://[64:ff9b:1::7f00:1]",
    ),
    *(
        "http://[2002:7f00:1::]",
        "http://[2001:0:53aa::1]",
        "http://[fe80::1]",
        "http://[fe80::1%25eth0]",
    ),
    *(
        "http://[fe80::1%eth0]",
        "http://[febf::1]",
        "http://[fec0::1]",
        "http://[fd00:ec2::254]",
    ),
    *(
        "http://[ff02::1]",
        "http://[2001:db8::1]",
        "http://[100::1]",
        "http://[5f00::1]",
    ),
    *(
        "http://[3fff::1]",
        "http://224.0.0.1",
        "http://239.255.255.250",
        "http://240.0.0.1",
    ),
    *(
        "http://255.255.255.255",
        "http://100.64.0.1",
        "http://100.100.100.200",
        "http://192.0.0.192",
    ),
    *(
        "http://192.0.2.7",
        "http://198.18.0.1",
        "http://198.51.100.9",
        "http://203.0.113.7",
    ),
    *("http://192.88.99.1",),
]

MALFORMED = [
    *("", "http://", "http:///path", "ws-0f3c9a52-7d1:8000", "//93.184.216.34", "93.184.216.34:8000", "http:93.184.216.34"),
    *("ftp://93.184.216.34", "file:///etc/passwd", "gopher://93.184.216.34", "javascript:alert(1)", "unix:///run/docker.sock"),
    *("http://a@93.184.216.34", "http://a:b@93.184.216.34", "http://@93.184.216.34", f"http://{OWN}@93.184.216.34"),
    *("http://93.184.216.34:0", "http://93.184.216.34:65536", "http://93.184.216.34:", "http://93.184.216.34:x", "http://h:-1"),
    *("http://93.184.216.34 ", " http://93.184.216.34", "http://93.184.\t216.34", "http://93.184.216.34\r\nX: y", "http://a\0b"),
    *(
        "http:\\\\93.184.216.34",
        "http://93.184.216.34\\@127.0.0.1",
        "http://%31%32%37.0.0.1",
        "http://127。0。0。1",
        "http://\uff11\uff12\uff17.0.0.1",
    ),
    *(
        "http://a..b",
        "http://.a",
        "http://a.",
        "http://-a",
        "http://a-",
        "http://a*b",
        "http://" + "a" * 64,
        "http://" + "a." * 127 + "aa",
    ),
    *(
        "http://[",
        "http://[]",
        "http://[1.2.3.4]",
        "http://[v1.x]",
        "http://[::1",
        "http://::1",
        "http://1.2.3",
        "http://1.2.3.4.5",
    ),
    *("http://256.1.1.1", "http://1.2.3.04", "http://a/" + "a" * 2048, "http://é.example"),
]


@pytest.mark.parametrize("saas", [False, True])
@pytest.mark.parametrize("url", NEVER)
def test_loopback_link_local_metadata_and_reserved_addresses_are_refused_in_every_spelling(url: str, saas: bool) -> None:
    refused(url, saas=saas)


@pytest.mark.parametrize("url", MALFORMED)
def test_what_two_readers_could_read_differently_is_refused(url: str) -> None:
    refused(url, saas=True)


@pytest.mark.parametrize("host", ["10.0.0.5", "172.16.0.1", "172.31.255.254", "192.168.1.1", "[fd12:3456::1]", "[::ffff:10.0.0.5]"])
def test_private_addresses_are_a_clouds_own_and_nobody_elses(host: str) -> None:
    assert "private" in refused(f"http://{host}:8000", saas=False)
    assert agent_url.check(f"http://{host}:8000", WORKSPACE, saas=True, lookup=unasked) == f"http://{host}:8000"


@pytest.mark.parametrize(
    "host", [PUBLIC, "172.15.0.1", "172.32.0.1", "11.0.0.1", "1.1.1.1", "[2606:4700::1111]", "[64:ff9b::5db8:d822]"]
)
def test_a_public_address_is_kept_as_it_was_given(host: str) -> None:
    for url in (f"http://{host}", f"https://{host}:8443/a2a?x=1"):
        assert agent_url.check(url, WORKSPACE, saas=False, lookup=unasked) == url


def test_its_own_container_name_is_accepted_without_a_lookup() -> None:
    assert agent_url.check(f"http://{OWN}:8000", WORKSPACE, saas=False, lookup=unasked) == f"http://{OWN}:8000"


def test_a_container_name_means_nothing_in_a_cloud() -> None:
    refused(f"http://{OWN}:8000", saas=True, lookup=leads_to())


def test_another_workspaces_container_name_is_judged_like_any_name() -> None:
    refused("http://ws-1f3c9a52-7d1:8000", saas=False, lookup=leads_to("172.18.0.3"))


def test_a_name_that_leads_nowhere_is_refused() -> None:
    refused("http://agent.example", saas=True, lookup=leads_to())


def test_a_name_is_accepted_when_every_address_behind_it_is() -> None:
    lookup = leads_to(PUBLIC, "2606:4700::1111")
    assert agent_url.check("https://agent.example/x", WORKSPACE, saas=False, lookup=lookup) == "https://agent.example/x"


@pytest.mark.parametrize("inside", ["127.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "0.0.0.0"])
def test_one_forbidden_address_behind_a_name_is_enough(inside: str) -> None:
    refused("http://agent.example", saas=True, lookup=leads_to(PUBLIC, inside))


def test_a_private_address_behind_a_name_is_refused_outside_a_cloud() -> None:
    refused("http://agent.example", saas=False, lookup=leads_to("10.1.2.3"))
    agent_url.check("http://agent.example", WORKSPACE, saas=True, lookup=leads_to("10.1.2.3"))


@given(st.ip_addresses(v=4, network="127.0.0.0/8") | st.ip_addresses(v=4, network="169.254.0.0/16"))
def test_no_spelling_of_a_forbidden_number_passes(address: IPv4Address) -> None:
    a, b, c, d = address.packed
    number = int(address)
    spellings = [
        *(
            str(address),
            f"{address}.",
            str(number),
            hex(number),
            f"0{number:o}",
            f"{a}.{b}.{(c << 8) + d}",
            f"{a}.{int.from_bytes((b, c, d))}",
        ),
        *(f"0x{a:x}.{b}.{c}.{d}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a}.{b}.{c}.0x{d:X}", f"[::ffff:{address}]", f"[::{address}]"),
        *(f"[{IPv6Address((0xFFFF << 32) + number).exploded}]", f"[64:ff9b::{address}]"),
    ]
    for host in spellings:
        refused(f"http://{host}:8000", saas=True)


@given(
    st.text(st.sampled_from("htps:/.@[]%#?\\ 0127xaé\t"), max_size=60).map("http://".__add__)
    | st.text(st.characters(max_codepoint=255), max_size=40)
)
def test_any_text_is_answered_with_a_refusal_or_a_plain_address(text: str) -> None:
    try:
        found = agent_url.parse(text)
    except Refused:
        return
    assert text.lower().startswith(("http://", "https://"))
    assert found.host
