"""The origin over HTTP/2, by prior knowledge: reads frames and messages as strictly as RFC 9113 does. A connection that
does not begin with the preface is served over HTTP/1.1.
"""

import asyncio
import struct
from dataclasses import dataclass, field

import h2
import hpack
import strict
from origin import USER, WHO, OriginConnection

STREAMS_MAX = 60  # at once; fewer than bearerd would like
FRAME_BYTES_MAX = 16_384
WINDOW_BYTES = 65_535  # of each stream and of the connection, until told otherwise
STREAM_ID_MAX = (1 << 31) - 1
GOING_AWAY = b"go away!"
# From the answer to the ping behind a first GOAWAY to the second: what was queued before it was read has come by then.
SECOND_GOAWAY_AFTER_S = 0.1
# What may lie between an answer's last byte and its end.
END_AFTER_S = 0.005
PSEUDO = [b":authority", b":method", b":path", b":scheme"]
ONE_HOPS = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}


@dataclass(slots=True, eq=False)
class Stream:
    number: int
    request: strict.Request
    window: int
    body: bytearray = field(default_factory=bytearray)
    is_whole: bool = False
    out: bytes = b""  # of the answer's body, what waits for a window
    ending: bytes = b""  # the frame behind it, where it ends otherwise than with its last byte
    is_late: bool = False  # all has been sent but the end, which has a frame of its own


class Http2OriginConnection(asyncio.Protocol):
    """Calls `serve(stream)` for each whole request."""

    http1 = OriginConnection

    def __init__(self, origin):
        self.origin, self.transport = origin, None
        self.held, self.has_begun = b"", False
        self.decoder = hpack.Decoder()
        self.streams = {}
        self.newest, self.block = 0, None
        self.window, self.stream_window = WINDOW_BYTES, WINDOW_BYTES
        self.is_going, self.last_taken = False, STREAM_ID_MAX  # by our GOAWAY
        self.streams_max = STREAM_ID_MAX  # until bearerd has taken note of ours

    def connection_made(self, transport):
        self.transport = transport
        self.origin.connections += 1

    def data_received(self, data):
        self.held += data
        if not self.has_begun:
            if len(self.held) < len(h2.PREFACE) and h2.PREFACE.startswith(self.held):
                return
            if not self.held.startswith(h2.PREFACE):
                return self.speak_http1()
            self.has_begun, self.held = True, self.held[len(h2.PREFACE) :]
            self.transport.write(h2.settings((h2.MAX_CONCURRENT_STREAMS, STREAMS_MAX)))
        at = 0
        while len(self.held) - at >= 9 and not self.transport.is_closing():
            size = int.from_bytes(self.held[at : at + 3], "big")
            if size > FRAME_BYTES_MAX:
                return self.fault("a frame larger than allowed")
            if len(self.held) - at < 9 + size:
                break
            kind, flags, number = self.held[at + 3], self.held[at + 4], int.from_bytes(self.held[at + 5 : at + 9], "big")
            payload, at = self.held[at + 9 : at + 9 + size], at + 9 + size
            try:
                self.take(kind, flags, number, payload)
            except strict.Fault as fault:
                return self.fault(f"unreadable over HTTP/2: {fault.rule}")
        self.held = self.held[at:]

    def speak_http1(self):
        protocol = self.http1(self.origin)
        self.origin.connections -= 1  # counts itself
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(self.held)

    def fault(self, what):
        self.origin.on_fault(what, self.held)
        self.transport.abort()

    def connection_lost(self, _error):
        self.streams.clear()

    def take(self, kind, flags, number, payload):
        if self.block is not None and (kind != h2.CONTINUATION or number != self.block[0]):
            raise strict.Fault("a frame inside a header block", "frames")
        if kind == h2.HEADERS:
            if number % 2 == 0 or flags & (h2.PADDED | 0x20):
                raise strict.Fault("headers that bearerd has no reason to send", "frames")
            self.block = number, flags, payload
            self.take_block(flags)
        elif kind == h2.CONTINUATION:
            self.block = number, self.block[1], self.block[2] + payload
            self.take_block(flags)
        elif kind == h2.DATA:
            self.take_data(flags, number, payload)
        elif kind == h2.RST_STREAM:
            self.streams.pop(number, None)
        elif kind == h2.WINDOW_UPDATE:
            self.widen(number, int.from_bytes(payload, "big"))
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == h2.INITIAL_WINDOW_SIZE:
                    for stream in self.streams.values():
                        stream.window += value - self.stream_window
                    self.stream_window = value
            self.transport.write(h2.frame(h2.SETTINGS, h2.ACK, 0))
            self.pump()
        elif kind == h2.SETTINGS:
            self.streams_max = STREAMS_MAX
        elif kind == h2.PING and not flags & h2.ACK:
            self.transport.write(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif kind == h2.PING and payload == GOING_AWAY:
            asyncio.get_running_loop().call_later(SECOND_GOAWAY_AFTER_S, self.go_away_at_last)

    def take_block(self, flags):
        if not flags & h2.END_HEADERS:
            return
        number, first_flags, encoded = self.block
        self.block = None
        fields = self.decoder.decode(encoded, raw=True)
        if number <= self.newest:
            raise strict.Fault("trailers, or headers of a lower stream", "frames")
        self.newest = number
        stream = Stream(number, read_head(fields), self.stream_window)
        if number > self.last_taken or len(self.streams) >= self.streams_max:
            return self.refuse(stream)
        self.streams[number] = stream
        if first_flags & h2.END_STREAM:
            self.take_whole(stream)

    def take_data(self, flags, number, payload):
        if flags & h2.PADDED or number > self.newest:
            raise strict.Fault("data that bearerd has no reason to send", "frames")
        stream = self.streams.get(number)
        if payload:
            wider = struct.pack(">I", len(payload))
            self.transport.write(h2.frame(h2.WINDOW_UPDATE, 0, 0, wider))
            if stream is not None and not flags & h2.END_STREAM:
                self.transport.write(h2.frame(h2.WINDOW_UPDATE, 0, number, wider))
        if stream is None:
            return
        if stream.is_whole:
            raise strict.Fault("data behind the end", "frames")
        stream.body += payload
        if flags & h2.END_STREAM:
            self.take_whole(stream)

    def take_whole(self, stream):
        stream.is_whole = True
        stream.request.body = bytes(stream.body)
        for length in stream.request.values(b"content-length"):
            if int(length) != len(stream.body):
                raise strict.Fault("length", "body")
        self.serve(stream)

    def refuse(self, stream):
        """RFC 9113 §8.7: it was not processed, and may be sent again."""
        self.transport.write(h2.frame(h2.RST_STREAM, 0, stream.number, struct.pack(">I", 7)))

    # --- answers ---

    def serve(self, stream):
        body = USER if stream.request.path == WHO else b'{"result":[]}'
        self.send(stream, [(b"content-type", b"application/json")], body)

    def send(self, stream, fields, body, reset=False):
        """`reset`: instead of an end."""
        if self.streams.get(stream.number) is not stream or self.transport.is_closing():
            return
        empty = stream.request.method == b"HEAD"
        flags = h2.END_HEADERS | (h2.END_STREAM if empty else 0)
        self.transport.write(h2.frame(h2.HEADERS, flags, stream.number, h2.block([(b":status", b"200"), *fields])))
        if empty:
            return self.over(stream)
        stream.out, stream.ending = body, reset_frame(stream) if reset else b""
        self.pump()

    def reset(self, stream):
        if self.streams.get(stream.number) is stream:
            self.transport.write(reset_frame(stream))
            self.over(stream)

    def widen(self, number, by):
        if number == 0:
            self.window += by
        elif number in self.streams:
            self.streams[number].window += by
        self.pump()

    def pump(self):
        """Sends of each answer as much as there is room for."""
        for stream in list(self.streams.values()):
            while stream.out and (room := min(self.window, stream.window, FRAME_BYTES_MAX)) > 0:
                piece, stream.out = stream.out[:room], stream.out[room:]
                self.window -= len(piece)
                stream.window -= len(piece)
                stream.is_late = not stream.out and not stream.ending and stream.number % 8 == 3
                ends = h2.END_STREAM if not stream.out and not stream.ending and not stream.is_late else 0
                self.transport.write(h2.frame(h2.DATA, ends, stream.number, piece))
                if stream.is_late:
                    asyncio.get_running_loop().call_later(END_AFTER_S, self.end_late, stream)
                elif not stream.out:
                    self.transport.write(stream.ending)
                    self.over(stream)

    def end_late(self, stream):
        if self.streams.get(stream.number) is stream and not self.transport.is_closing():
            self.transport.write(h2.frame(h2.DATA, h2.END_STREAM, stream.number))
            self.over(stream)

    def over(self, stream):
        self.streams.pop(stream.number, None)
        self.close_if_done()

    # --- the end ---

    def go_away(self):
        """RFC 9113 §6.8: no stream is lost. The caller learns that no more are taken, and only then which was the last."""
        if self.is_going:
            return
        self.is_going = True
        self.transport.write(goaway(STREAM_ID_MAX) + h2.frame(h2.PING, 0, 0, GOING_AWAY))

    def go_away_at_last(self):
        if not self.transport.is_closing():
            self.last_taken = self.newest
            self.transport.write(goaway(self.newest))
            self.close_if_done()

    def close_if_done(self):
        if self.last_taken != STREAM_ID_MAX and not self.streams:
            self.transport.close()


def reset_frame(stream):
    """With INTERNAL_ERROR, or with NO_ERROR, which alone makes no answer whole."""
    return h2.frame(h2.RST_STREAM, 0, stream.number, struct.pack(">I", 2 if stream.number % 4 == 1 else 0))


def goaway(last):
    return h2.frame(h2.GOAWAY, 0, 0, struct.pack(">II", last, 0))


def read_head(fields):
    """As the HTTP/1.1 request that it stands for. Raises the rule that it breaks (RFC 9113 §8.2, §8.3)."""
    pseudo = [name for name, _ in fields if name.startswith(b":")]
    if sorted(pseudo) != PSEUDO or any(name.startswith(b":") for name, _ in fields[4:]):
        raise strict.Fault("pseudo-header fields", "head")
    said = dict(fields[:4])
    if said[b":method"] not in strict.METHODS:
        raise strict.Fault("method", "head")
    if not said[b":path"].startswith(b"/") or not strict.TARGET.fullmatch(said[b":path"]):
        raise strict.Fault("target-bytes", "head")
    for name, value in fields[4:]:
        if name != name.lower() or name in ONE_HOPS or not strict.FIELD_LINE.fullmatch(name + b": " + value):
            raise strict.Fault("field-name", "head")
    return strict.Request(said[b":method"], said[b":path"], (1, 1), [(b"host", said[b":authority"]), *fields[4:]])
