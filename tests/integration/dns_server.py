"""A name server on loopback that has just the TXT records it is given."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer(asyncio.DatagramProtocol):
    """`texts`: by name, the records as zone files write them. Silent where `silent` is set."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        self.silent = False
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(name)
        if self.silent:
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        texts = self.texts.get(name, [])
        if texts and question.rdtype == dns.rdatatype.TXT:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", *texts))
        elif not texts:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(answer.to_wire(), address)


@asynccontextmanager
async def name_server() -> AsyncIterator[tuple[NameServer, str]]:
    """The server, and its address as the setting has it."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    try:
        yield server, f"127.0.0.1#{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()
