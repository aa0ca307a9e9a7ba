"""What only a TLS door can be asked (P-01, P-04, P-24): the protocol that was agreed on is the one that is spoken. HTTP/2
is agreed on or not spoken, what is spoken otherwise is refused, and nothing of it reaches the origin.
"""

import asyncio
import ssl
import time

import exchange
import h2
import program
import tls
from caller import Caller

TARGET = b"/api/now/table/incident?n=%d"
END_S = 20  # longer than the door waits for a request's head


def get(number, key):
    return b"GET %b HTTP/1.1\r\nHost: b.example\r\nAuthorization: Bearer %b\r\n\r\n" % (TARGET % number, key)


def get_h2(number, key, scheme=b"https"):
    fields = [(b":method", b"GET"), (b":scheme", scheme), (b":authority", b"b.example"), (b":path", TARGET % number), (b"authorization", b"Bearer " + key)]
    return fields, h2.settings() + h2.frame(h2.HEADERS, 5, 1, h2.block(fields))


# What is offered in the handshake, and what is sent then: must pass over HTTP/1.1, over HTTP/2, or must be refused.
PASSES = [
    ("http/1.1 agreed", ["http/1.1"], "http/1.1"),
    ("http/1.1 without an offer", [], "http/1.1"),
    ("h2 agreed", ["h2"], "h2"),
    ("h2 of both", ["http/1.1", "h2"], "h2"),
    ("http/1.1 beside an unknown one", ["spdy/3", "http/1.1"], "http/1.1"),
]
REFUSED = [
    ("h2 preface where http/1.1 is agreed", ["http/1.1"], lambda n, key: [h2.PREFACE + get_h2(n, key)[1]]),
    ("h2 preface without an offer", [], lambda n, key: [h2.PREFACE + get_h2(n, key)[1]]),
    ("h2 preface in two records, http/1.1 agreed", ["http/1.1"], lambda n, key: [h2.PREFACE[:7], h2.PREFACE[7:] + get_h2(n, key)[1]]),
    ("h2 preface byte by byte, no offer", [], lambda n, key: exchange.every_byte(h2.PREFACE + get_h2(n, key)[1])),
    ("h2 frames without a preface, http/1.1 agreed", ["http/1.1"], lambda n, key: [get_h2(n, key)[1]]),
    ("h2 frames without a preface, h2 agreed", ["h2"], lambda n, key: [get_h2(n, key)[1]]),
    ("http/1.1 where h2 is agreed", ["h2"], lambda n, key: [get(n, key)]),
    ("http/1.1 in two records, h2 agreed", ["h2"], lambda n, key: [get(n, key)[:9], get(n, key)[9:]]),
    ("http/1.1 where h2 of both is agreed", ["h2", "http/1.1"], lambda n, key: [get(n, key)]),
    ("half a preface, then http/1.1, h2 agreed", ["h2"], lambda n, key: [h2.PREFACE[:18] + get(n, key)]),
    ("preface and http/1.1 behind it, h2 agreed", ["h2"], lambda n, key: [h2.PREFACE + h2.settings() + get(n, key)]),
    ("upgrade to h2c", ["http/1.1"], lambda n, key: [get(n, key)[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + h2.PREFACE]),
    ("TLS in TLS", ["http/1.1"], lambda n, key: [hello()]),
    ("PROXY header inside TLS", ["http/1.1"], lambda n, key: [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + get(n, key)]),
]
# In clear text, to the door itself.
CLEAR = [
    ("clear http/1.1", lambda n, key: [get(n, key)]),
    ("clear h2 preface", lambda n, key: [h2.PREFACE + get_h2(n, key, b"http")[1]]),
    ("PROXY header before TLS", lambda n, key: [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + hello()]),
    ("nothing of TLS", lambda n, key: [bytes(600)]),
    ("a record of the largest size", lambda n, key: [b"\x16\x03\x01\xff\xff" + bytes(65_535)]),
]
# Offers without any protocol that the door speaks: RFC 7301 §3.2 ends the handshake.
STRANGE = [["h2c"], ["spdy/3"], ["http/1.0"], ["h3"], ["acme-tls/1"], ["H2"], ["HTTP/1.1"], ["http/0.9", "h2-14"]]


def hello():
    """A client's first message."""
    outgoing = ssl.MemoryBIO()
    handshake = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="b.example")
    try:
        handshake.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


async def way(given, offered):
    way = tls.Way(given.door, given.tls_authority, *offered)
    return way, await way.start()


async def passes(judge, given, number, name, offered, protocol):
    through, address = await way(given, offered)
    key, before = given.key.encode(), judge.counts["accepted"]
    if protocol == "h2":
        connection = await h2.Connection.open(address)
        fields, _ = get_h2(number, key)
        expected = h2.expect(judge, name.encode(), fields)
        await h2.exchange(judge, connection, name.encode(), expected, [(h2.HEADERS, 5, h2.block(fields))])
        connection.close()
    else:
        stream = get(number, key)
        connection = await exchange.exchange(judge, address, stream, [stream])
        if connection is not None:
            connection.close()
    agreed = list(through.agreed)
    if agreed != [protocol if offered else None]:
        judge.find(f"another protocol was agreed on [{name}]", repr(offered).encode(), repr(agreed))
    if judge.counts["accepted"] != before + 1:
        judge.find(f"a good request did not pass [{name}]", repr(offered).encode())


async def refused(judge, address, name, pieces):
    """Closed, with no good answer before; that the origin got nothing is for the judge to see."""
    stream = b"".join(pieces)
    caller = await Caller.connect(address)
    await caller.send(pieces)
    rest = await caller.take_rest(END_S)
    if rest is None:
        judge.find(f"the connection was kept [{name}]", stream, repr(caller.held[:200]))
        rest = caller.held
    if b"HTTP/1.1 2" in rest or b"HTTP/1.1 101" in rest:
        judge.find(f"accepted what must be refused [{name}]", stream, repr(rest[:300]))
    judge.counts["refused"] += 1
    caller.close()


async def strange(judge, given, offered):
    through, address = await way(given, offered)
    caller = await Caller.connect(address)
    await caller.take_rest(END_S)
    if through.agreed or not through.refused:
        judge.find("a handshake without a common protocol succeeded", repr(offered).encode(), repr(through.agreed))
    judge.counts["handshakes refused"] += 1
    caller.close()


async def cut_off(judge, given, number):
    """A body that ends with the connection and without TLS's own end is not whole (RFC 8446 §6.1)."""
    context = ssl.create_default_context(cafile=given.tls_authority)
    _, writer = await asyncio.open_connection(*given.door, ssl=context)
    head = b"POST %b HTTP/1.1\r\nHost: b.example\r\nAuthorization: Bearer %b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    stream = head % (TARGET % number, given.key.encode())
    judge.read(stream)
    writer.write(stream)
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.transport.abort()
    judge.counts["cut off"] += 1


async def main():
    given = program.arguments(__doc__)
    begun = time.monotonic()
    if not given.tls_authority:
        raise SystemExit("this program is for a TLS door: --tls-authority")
    judge = await program.start(given)
    key = given.key.encode()
    for number, one in enumerate(PASSES):
        await passes(judge, given, number, *one)
    came = judge.counts["at the origin"]
    refusals = []
    for number, (name, offered, make) in enumerate(REFUSED):
        _, address = await way(given, offered)
        refusals.append(refused(judge, address, name, make(100 + number, key)))
    for number, (name, make) in enumerate(CLEAR):
        refusals.append(refused(judge, given.door, name, make(200 + number, key)))
    refusals += [strange(judge, given, offered) for offered in STRANGE]
    await asyncio.gather(*refusals)
    if judge.counts["at the origin"] != came:
        judge.find("what must be refused came to the origin", b"", f"{judge.counts['at the origin'] - came} requests")
    await cut_off(judge, given, 300)
    program.report(judge, begun, passes=len(PASSES), refusals=len(refusals) + 1)


if __name__ == "__main__":
    program.run(main())
