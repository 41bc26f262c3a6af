"""Which addresses backends may be at: never those where a cloud keeps its machines' secrets."""

import ipaddress
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from uia_lab.domain.errors import BadRequest, NotAllowed

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

SCHEMES = ("http", "https", "ws", "wss")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Metadata services outside the link-local ranges: AWS over IPv6, Alibaba, Azure's host agent.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96")))
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})


class EndpointPolicy:
    """Says which endpoints may be called.

    Link-local addresses and those of metadata services give out the credentials of a machine to whoever can
    make it send a request, so they are refused, by name and by what a name stands for, unless an
    administrator allowed the host by name.

    Args:
        allowed: Hosts that are called all the same.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(host.strip("[]").lower().rstrip(".") for host in allowed)

    def check(self, endpoint: str) -> str:
        """The endpoint in one form: no credentials, query, fragment or slash at its end.

        Raises:
            BadRequest: It is no address of a server, or holds credentials.
            NotAllowed: It is a link-local or metadata address.
        """
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            parts = urlsplit("")
        if parts.scheme not in SCHEMES or not host or port == 0:
            raise BadRequest(
                f"endpoint must be like http://host:port/path ({', '.join(SCHEMES)})", param="endpoint"
            )
        if parts.username is not None or parts.password is not None or parts.query:
            # Not repeated: it may be the key itself.
            raise BadRequest(
                "an endpoint holds no credentials and no query; put the key into an environment variable "
                "and name that in api_key_env",
                param="endpoint",
            )
        self.check_host(host)
        return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))

    def check_host(self, host: str) -> None:
        """Passes when a host may be called.

        Raises:
            NotAllowed: It is a link-local or metadata address, however written.
        """
        name = host.lower().rstrip(".")
        if name in self._allowed:
            return
        address = _literal(name)
        if name in _METADATA_NAMES or (address is not None and is_forbidden(address)):
            raise NotAllowed(
                f"{host} is a link-local or metadata address, which may give out this machine's credentials; "
                "an administrator can allow it with InferenceServiceConfig.allowed_endpoint_hosts"
            )

    def resolver(self) -> "AbstractResolver":
        """A resolver for aiohttp that refuses names which stand for a forbidden address."""
        from aiohttp.abc import AbstractResolver
        from aiohttp.resolver import ThreadedResolver

        policy = self

        class Guarded(AbstractResolver):
            def __init__(self) -> None:
                self._resolver = ThreadedResolver()

            async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
                found = await self._resolver.resolve(host, port, family)
                if host.lower().rstrip(".") not in policy._allowed:
                    for item in found:
                        policy.check_host(item["host"])
                return found

            async def close(self) -> None:
                await self._resolver.close()

        return Guarded()


def is_forbidden(address: _Address) -> bool:
    """Whether an address is link-local, a metadata service's, or no single host's."""
    if isinstance(address, ipaddress.IPv6Address):
        address = _embedded(address) or address
    return address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint is on this machine; a name other than ``localhost`` counts as elsewhere."""
    host = (urlsplit(endpoint).hostname or "").rstrip(".")
    address = _literal(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, compatible, 6to4 or translated (NAT64)."""
    found = address.ipv4_mapped or address.sixtofour
    if found is None and any(address in network for network in _TRANSLATED) and int(address) > 1:
        found = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return found


def _literal(host: str) -> _Address | None:
    """The address a host is written as, also in the short and numeric forms that resolvers take."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None
