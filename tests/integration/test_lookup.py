from time import monotonic

import pytest

from worker import agent_url
from worker.errors import Refused


def test_the_machines_own_resolver_is_asked() -> None:
    assert "127.0.0.1" in agent_url.resolve("localhost")
    assert agent_url.resolve("nobody.invalid", deadline=10) == ()


def test_a_lookup_does_not_outlive_its_deadline() -> None:
    begun = monotonic()
    assert agent_url.resolve("nobody.invalid", deadline=0) == ()
    assert monotonic() - begun < 1


def test_a_name_for_this_machine_is_refused_by_what_it_leads_to() -> None:
    with pytest.raises(Refused, match="loopback"):
        agent_url.check(
            "http://me.example", "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3", saas=True, lookup=lambda _: agent_url.resolve("localhost")
        )
