"""The cross-talk soak over HTTP/2: callers that are streams of shared connections, and instances that speak it too."""

import asyncio
import struct
from collections import deque

import h2
from caller import Answer
from origin_h2 import FRAME_BYTES_MAX, WINDOW_BYTES, Http2OriginConnection
from soak import CALLS_AT_ONCE_MAX, PATIENCE_S

CANCEL, NO_ERROR = struct.pack(">I", 8), struct.pack(">I", 0)
# Every other connection opens its windows wide; the others leave them as they are, and bearerd waits for them.
WIDE_BYTES = 1 << 20
WIDE_CONNECTION_BYTES = 1 << 24


class Connection(h2.Connection):
    """A caller's connection: many calls at once, sent within the windows that bearerd opens."""

    def __init__(self, channel):
        super().__init__(channel)
        self.outgoing = b""
        self.calls, self.waiting = {}, {}
        self.window, self.stream_window, self.windows = WINDOW_BYTES, WINDOW_BYTES, {}
        self.left, self.dropped = set(), False
        self.on_head = lambda _call, _fields: None
        self.reply = self.write

    # --- out ---

    def write(self, data):
        self.outgoing += data
        self.flush()

    def flush(self):
        if self.ended:
            return
        try:
            sent = self.channel.send(self.outgoing) if self.outgoing else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader learns of the end
        self.outgoing = self.outgoing[sent:]
        if self.outgoing:
            self.loop.add_writer(self.channel, self.flush)
        else:
            self.loop.remove_writer(self.channel)

    def begin(self, call, fields):
        stream = self.stream()
        self.calls[stream], self.windows[stream] = call, self.stream_window
        flags = h2.END_HEADERS | (0 if call.body else h2.END_STREAM)
        self.write(h2.frame(h2.HEADERS, flags, stream, h2.block(fields)))
        return stream

    async def send_body(self, stream, body, ends=True):
        """Until it is sent or nobody wants it any more."""
        while body and not self.is_gone(stream):
            room = min(self.window, self.windows[stream], FRAME_BYTES_MAX)
            if room <= 0:
                await self.news(stream)
                continue
            piece, body = body[:room], body[room:]
            self.window -= len(piece)
            self.windows[stream] -= len(piece)
            self.write(h2.frame(h2.DATA, h2.END_STREAM if ends and not body else 0, stream, piece))

    def reset(self, stream):
        """Leaves one call, unless it is over. "No error" is how an early answer may end a body (RFC 9113 §8.1): as good a reason."""
        if not self.is_gone(stream):
            self.left.add(stream)
            self.write(h2.frame(h2.RST_STREAM, 0, stream, CANCEL if stream % 4 == 1 else NO_ERROR))
            self.wake(stream)

    def drop(self):
        """Leaves all calls at once, without a word."""
        if not self.ended:
            self.dropped = self.ended = True
            self.wake()

    # --- in ---

    def readable(self):
        super().readable()
        if self.ended:
            self.wake()

    def take(self, kind, flags, stream, payload):
        super().take(kind, flags, stream, payload)
        if kind == h2.HEADERS:
            self.on_head(self.calls[stream], self.fields(stream))
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == h2.INITIAL_WINDOW_SIZE:
                    self.windows = {held: window + value - self.stream_window for held, window in self.windows.items()}
                    self.stream_window = value
        elif kind == h2.WINDOW_UPDATE and stream == 0:
            self.window += int.from_bytes(payload, "big")
        elif kind == h2.WINDOW_UPDATE and stream in self.windows:
            self.windows[stream] += int.from_bytes(payload, "big")
        elif kind == h2.DATA and payload:
            wider = struct.pack(">I", len(payload))
            self.write(h2.frame(h2.WINDOW_UPDATE, 0, 0, wider))
            if not self.is_gone(stream):
                self.write(h2.frame(h2.WINDOW_UPDATE, 0, stream, wider))
        self.wake(stream or None)

    def wake(self, stream=None):
        """Of one stream or of all: something has come."""
        for held in [stream] if stream else list(self.waiting):
            waiting = self.waiting.pop(held, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    async def news(self, stream):
        waiting = self.waiting[stream] = self.loop.create_future()
        timer = self.loop.call_later(PATIENCE_S, lambda: waiting.done() or waiting.set_exception(TimeoutError()))
        try:
            await waiting
        finally:
            timer.cancel()

    def is_gone(self, stream):
        """Nothing more can come: it ended, or either side has left it."""
        return self.ended or stream in self.finished or stream in self.resets or stream in self.left

    def forget(self, stream):
        """Keeps only whose it was, for what may still come."""
        for held in (self.waiting, self.windows, self.bodies):
            held.pop(stream, None)

    def close(self):
        self.loop.remove_writer(self.channel)
        super().close()


async def callers(soak, at_once):
    """So many callers on one connection, which is made anew when it ends."""
    shared = Shared(soak)
    await asyncio.gather(*(caller(soak, shared) for _ in range(at_once)))
    if shared.connection is not None:
        shared.connection.close()


class Shared:
    def __init__(self, soak):
        self.soak, self.connection, self.opening = soak, None, asyncio.Lock()
        self.opened = 0

    async def take(self):
        async with self.opening:
            if self.connection is not None and not self.connection.ended and self.connection.goaway is None:
                return self.connection
            if self.connection is not None and self.connection.ended:
                self.connection.close()
            self.opened += 1
            wide = self.opened % 2
            self.connection = await Connection.open(self.soak.given.proxy_h2, *[(h2.INITIAL_WINDOW_SIZE, WIDE_BYTES)] * wide)
            self.connection.on_head = self.soak.look_at_head
            if wide:
                self.connection.write(h2.frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", WIDE_CONNECTION_BYTES)))
            return self.connection


async def caller(soak, shared):
    """One call at a time on the shared connection."""
    for call in soak.calls():
        connection = None
        try:
            connection = await shared.take()
            await exchange(soak, connection, call)
        except (TimeoutError, OSError) as error:
            soak.failed(call, repr(error)[:200])


def head(soak, call):
    fields = [(b":method", call.method), (b":scheme", b"http"), (b":authority", b"bearerd.example"), (b":path", soak.target(call)), *soak.fields(call)]
    if call.body and call.marker % 2 == 0:
        fields.append((b"content-length", b"%d" % len(call.body)))
    return fields


async def exchange(soak, connection, call):
    stream = connection.begin(call, head(soak, call))
    leaving = None
    if call.takes_all_along == "the caller":
        leaving = connection.loop.call_later(call.leaves_after_s, connection.drop)
    elif call.leaves == "at some time":
        leaving = connection.loop.call_later(call.leaves_after_s, connection.reset, stream)
    try:
        if call.leaves == "in the body" and call.body:
            await connection.send_body(stream, call.body[: len(call.body) // 2], ends=False)
            connection.reset(stream)
        await connection.send_body(stream, call.body)
        while not connection.is_gone(stream):
            if call.leaves == "in the answer" and connection.status(stream) is not None:
                connection.reset(stream)
            else:
                await connection.news(stream)
        judge(soak, connection, stream, call)
    finally:
        if leaving is not None and call.takes_all_along != "the caller":
            leaving.cancel()
        connection.forget(stream)


def judge(soak, connection, stream, call):
    if stream in connection.left or connection.dropped:
        soak.leave()
    elif stream in connection.finished:
        body = connection.bodies.get(stream, b"")
        soak.judge_answer(call, Answer(connection.status(stream), connection.fields(stream), body))
    else:
        soak.failed(call, f"{connection.resets.get(stream)} {connection.goaway} {connection.ended}")


class SoakConnection(Http2OriginConnection):
    """An instance: what befalls a call befalls its stream, and now and then a whole connection."""

    def __init__(self, origin):
        super().__init__(origin)
        self.newest_answered = deque(maxlen=CALLS_AT_ONCE_MAX)

    def serve(self, stream):
        instance = self.origin.instance
        met = instance.meets(stream.request)
        if met is None:
            return super().serve(stream)
        call, user = met
        if call.mishap == "reset before":
            return self.reset(stream)
        instance.executed[call.marker] += 1
        if call.takes_all_along == "the instance":
            return self.break_off(instance)
        if call.mishap == "reset after":
            return self.reset(stream)
        body = call.answer(user)
        fields = call.answer_fields(user, body)
        if call.mishap == "cut":
            if call.method == b"HEAD":
                return self.reset(stream)
            if stream.number % 8 > 4:
                fields = [(name, value) for name, value in fields if name != b"content-length"]
            return self.send(stream, fields, body[: len(body) // 2], reset=True)
        if call.mishap == "delay":
            asyncio.get_running_loop().call_later(call.delay_s, self.send, stream, fields, body)
            return None
        self.send(stream, fields, body)
        if call.mishap == "last":
            self.go_away()

    def over(self, stream):
        self.newest_answered.append(stream.request)
        super().over(stream)

    def refuse(self, stream):
        instance = self.origin.instance
        if stream.number <= self.last_taken:
            instance.wrong["more calls at once than the instance admits"] += 1
        instance.lose([stream.request])
        super().refuse(stream)

    def break_off(self, instance):
        """With it go the calls under way, and answers that bearerd has not read yet."""
        instance.losses += 1
        instance.lose(stream.request for stream in self.streams.values())
        instance.lose(self.newest_answered)
        self.streams.clear()
        self.transport.abort()
