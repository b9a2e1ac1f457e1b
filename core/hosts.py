"""Which hosts a user's relay may be at: none of our own network's."""

import ipaddress
from typing import Final

_OURS: Final = ("localhost", "local", "internal", "intranet", "lan", "home.arpa")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether everybody on the Internet means the same by this IP address. Addresses that carry another one inside are judged
    by that. False for what is no address.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def may_be_public(host: str) -> bool:
    """Of a host as it is written: False for addresses that are not public, and for names that nobody else has. What a name
    resolves to is judged when it is connected to.
    """
    name = host.strip("[]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        labels = name.split(".")
        # 127.1, 0x7f000001: no resolver asks anybody about these.
        if labels[-1].isdigit() or labels[-1].startswith("0x"):
            return False
        return len(labels) > 1 and not any(name.endswith(f".{ours}") for ours in _OURS)
    return is_public(name)
