"""Connections to an instance that many calls share (P-28): callers that leave break no one else's call, and calls that
come at once open a few connections, not one each.

The instance does not hear resets, as where the way between is long: answers to callers that have left arrive all the same.
"""

import asyncio
import struct
import time

import h2
import origin_h2
import program
from caller import Caller
from judge import Judge
from origin import Origin

LEFT = 1500
AT_ONCE = 100  # calls of one caller, and streams that the instance admits
CALLERS = 4
ANSWER_S, LONG_S = 0.1, 8
# Of two workers; with one for each call it would be 400, and with one for each call that cannot wait for SETTINGS, 40.
CONNECTIONS_MAX = 8


class Deaf(origin_h2.Http2OriginConnection):
    resets_late = 0

    def take(self, kind, flags, number, payload):
        if kind != h2.RST_STREAM:
            return super().take(kind, flags, number, payload)
        if number in self.streams and self.streams[number].is_late:
            Deaf.resets_late += 1

    def serve(self, stream):
        if b"after=" not in stream.request.target:
            return super().serve(stream)
        seconds = LONG_S if stream.request.target.endswith(b"long") else ANSWER_S
        asyncio.get_running_loop().call_later(seconds, self.send, stream, [(b"content-type", b"application/json"), (b"content-length", b"2")], b"{}")


def fields(key, after):
    path = b"/c/hr-prod/api/now/table/incident?after=" + after
    return [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"b"), (b":path", path), (b"authorization", b"Bearer " + key)]


async def ask(connection, key):
    """As many calls as a connection takes."""
    streams = [connection.stream() for _ in range(AT_ONCE)]
    block = h2.block(fields(key, b"short"))
    await connection.send(b"".join(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, block) for stream in streams))
    return streams


async def at_once(given, judge, origin):
    """Every call is answered."""
    before = origin.connections
    callers = [await h2.Connection.open(given.proxy) for _ in range(CALLERS)]
    asked = [await ask(caller, given.key.encode()) for caller in callers]
    for caller, streams in zip(callers, asked):
        await caller.until(lambda: caller.ended or all(caller.is_over(stream) for stream in streams), 30)
        statuses = [caller.status(stream) for stream in streams]
        judge.counts["answered"] += statuses.count(200)
        caller.close()
    if judge.counts["answered"] != CALLERS * AT_ONCE:
        judge.find("a call that nothing befell was not answered", b"", repr(judge.counts["answered"]))
    if Deaf.resets_late:
        # Servers count resets against their callers.
        judge.find("an answer was reset that lacked nothing but its end", b"", f"{Deaf.resets_late} of them")
    opened = origin.connections - before
    judge.counts["connections"] = opened
    if opened > CONNECTIONS_MAX:
        judge.find("calls at once opened a connection each", b"", f"{opened} connections for {CALLERS * AT_ONCE} calls")


async def leave(given, judge):
    """Another's call, on the connections that the others leave."""
    key = given.key.encode()
    good = await Caller.connect(given.proxy)
    request = b"GET /c/hr-prod/api/now/table/incident?after=long HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer %b\r\n\r\n" % key
    await good.send([request])
    while judge.counts["left"] < LEFT and not good.ended:
        caller = await h2.Connection.open(given.proxy)
        streams = await ask(caller, key)
        await asyncio.sleep(ANSWER_S / 2)
        await caller.send(b"".join(h2.frame(h2.RST_STREAM, 0, stream, struct.pack(">I", 8)) for stream in streams))
        judge.counts["left"] += len(streams)
        await asyncio.sleep(ANSWER_S)
        caller.close()
    answer = await good.take(b"GET", LONG_S + 10)
    if answer is None or answer.status != 200:
        judge.find("callers that left broke another's call", request, repr(answer)[:300])
    good.close()


async def main():
    given = program.arguments(__doc__, instance_http2=(1, "as the integration has it"))
    begun = time.monotonic()
    origin_h2.STREAMS_MAX = AT_ONCE
    origin = Origin(given.token.encode())
    origin.kind = Deaf
    judge = Judge(origin, given.key.encode(), lambda _: True, lambda _: True)
    origin.on_cut, origin.on_fault, origin.on_record = (lambda _: None), judge.fault, (lambda _: None)
    await program.find_door(given)
    await origin.start(*given.origin)
    await program.until_open(given.proxy, given.key)
    judge.counts.clear()
    await at_once(given, judge, origin)
    await leave(given, judge)
    program.report(judge, begun)


if __name__ == "__main__":
    program.run(main())
