"""What DNS says, asked with the resolver of the settings."""

from typing import Final

import dns.asyncresolver
import dns.exception
import dns.resolver

from core.errors import Unavailable

ANSWER_WITHIN: Final = 5.0


async def texts_of(name: str, nameserver: str | None) -> list[str]:
    """Of the TXT records of a name, each with its strings put together. Raises Unavailable where nobody answers."""
    try:
        answer = await _resolver(nameserver).resolve(f"{name}.", "TXT", lifetime=ANSWER_WITHIN)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError) as error:
        raise Unavailable("dns", str(error)) from error
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]


def _resolver(nameserver: str | None) -> dns.asyncresolver.Resolver:
    """Without a cache: who has just published a record wants to see it."""
    if nameserver is None:
        return dns.asyncresolver.Resolver()
    resolver = dns.asyncresolver.Resolver(configure=False)
    address, _, port = nameserver.partition("#")
    resolver.nameservers = [address]
    resolver.port = int(port or 53)
    return resolver
