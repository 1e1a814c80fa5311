"""The network that workspaces share with the receiver, because an engine happily makes two of one name and then starts nothing."""

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv4Network, ip_interface, ip_network
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError

from worker.backends.docker_errors import is_conflict, is_gone, translated
from worker.errors import Misconfigured


def oldest(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """The one that every process agrees on: made first, then the smaller id."""
    return min(networks, key=lambda network: (network["Created"], network["Id"]))


def ensure_network(client: APIClient, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The engine's network of that name, made with `labels` when there is none.

    Younger ones of the same name and labels are removed: engines before API 1.44 make them without a word, and then start
    no container on any of them, for even an attachment by id is looked up by name again at the start.
    """
    with translated("ensure network"):
        found = _named(client, name) or _made(client, name, labels)
        chosen = oldest(found)
        for network in found:
            if network["Id"] != chosen["Id"] and labels.items() <= (network.get("Labels") or {}).items():
                _remove_unused(client, network["Id"])
    return chosen


def found_network(client: APIClient, name: str) -> dict[str, Any] | None:
    """The network of that name as it is now; nothing is made."""
    with translated("list networks"):
        found = _named(client, name)
    return oldest(found) if found else None


def _named(client: APIClient, name: str) -> list[dict[str, Any]]:
    """Exactly of that name: the engine's own filter takes a part of it."""
    return [network for network in client.networks(filters={"name": name}) if network["Name"] == name]


def _made(client: APIClient, name: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """All of that name after one more was made: another process may have been as quick."""
    try:
        client.create_network(name, driver="bridge", labels=dict(labels), check_duplicate=True)
    except APIError as error:
        # Refused because another process was first.
        if not is_conflict(error):
            raise
    return _named(client, name)


def _remove_unused(client: APIClient, network_id: str) -> None:
    try:
        client.remove_network(network_id)
    except APIError as error:
        # Somebody else removed it, or has containers on it: then it goes when they have gone.
        if not is_gone(error) and error.status_code != requests.codes.forbidden:
            raise


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


def subnets_of(network: dict[str, Any]) -> list[str]:
    """Every address range on that network."""
    return [settings["Subnet"] for settings in (network.get("IPAM") or {}).get("Config") or [] if settings.get("Subnet")]
