"""The network that workspaces share with the receiver, because an engine happily makes two of one name and then starts nothing."""

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Interface, IPv4Network, ip_interface, ip_network
from typing import Any

from docker import APIClient
from docker.errors import APIError

from worker.backends.docker_errors import is_conflict, translated
from worker.errors import Misconfigured


def oldest(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """The one that every process agrees on: made first, then the smaller id."""
    return min(networks, key=lambda network: (network["Created"], network["Id"]))


def ensure_network(client: APIClient, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The engine's network of that name, made when there is none. Attach by its `Id`, for names may be ambiguous."""
    with translated("list networks"):
        found = _named(client, name)
        return oldest(found) if found else _made(client, name, labels)


def _named(client: APIClient, name: str) -> list[dict[str, Any]]:
    """Exactly of that name: the engine's own filter takes a part of it."""
    return [network for network in client.networks(filters={"name": name}) if network["Name"] == name]


def _made(client: APIClient, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    try:
        mine = client.create_network(name, driver="bridge", labels=dict(labels), check_duplicate=True)["Id"]
    except APIError as error:
        # Newer engines refuse a second network of one name: another process was first.
        if not is_conflict(error):
            raise
        mine = None
    chosen = oldest(_named(client, name))
    if mine not in (None, chosen["Id"]):
        # Refused only when somebody has attached to it already: then it stays, and goes unused from here on.
        with suppress(APIError):
            client.remove_network(mine)
    return chosen


def gateway_of(network: dict[str, Any]) -> str:
    """The host's IPv4 address on that network."""
    for settings in (network.get("IPAM") or {}).get("Config") or []:
        gateway, subnet = settings.get("Gateway"), settings.get("Subnet")
        if gateway and isinstance(ip_interface(gateway), IPv4Interface):
            return str(ip_interface(gateway).ip)
        # Engines that chose the subnet themselves give the host its first address and do not always say so.
        if subnet and isinstance(ip_network(subnet), IPv4Network):
            return str(next(ip_network(subnet).hosts()))
    raise Misconfigured(
        "find gateway: the workspace network has no IPv4 address of its host",
        hint="name another network in MOLECULE_WORKER_NETWORK; it must be a bridge",
        code="network_shape",
    )
