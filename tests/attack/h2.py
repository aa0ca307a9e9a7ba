"""HTTP/2 in raw frames: what a library would never send. Header blocks are written here, literal by literal; only what
comes back is decoded by hpack.
"""

import asyncio
import socket
import struct

import hpack

import strict
from caller import Answer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, ACK = 0x1, 0x4, 0x8, 0x1
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(1, 7)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs):
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in pairs))


def integer(value, bits, first=0):
    """RFC 7541 §5.1."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    value -= limit
    out = bytearray([first | limit])
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name, value, first=0x00, bits=4):
    """A field as it is, not indexed; with `first=0x40, bits=6` it goes into the dynamic table."""
    return bytes([first]) + integer(len(name), 7) + name + integer(len(value), 7) + value


def block(fields):
    return b"".join(literal(name, value) for name, value in fields)


class Ended(Exception):
    """The far side has closed."""


class Connection:
    """Reads for itself: notes statuses, resets and GOAWAY, acknowledges settings and pings."""

    def __init__(self, channel):
        self.channel, self.loop = channel, asyncio.get_running_loop()
        self.held, self.ended, self.acknowledges = b"", False, True
        self.decoder = hpack.Decoder()
        self.decoder.max_allowed_table_size = 1 << 16
        self.answers, self.bodies, self.resets, self.finished = {}, {}, {}, set()
        self.goaway = None
        self.spoke_h2 = False
        self.changed = asyncio.Event()
        self.next_stream = 1
        self.loop.add_reader(channel, self.readable)

    @classmethod
    async def open(cls, address, *pairs, preface=PREFACE):
        channel = socket.socket()
        channel.setblocking(False)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(channel, address)
        connection = cls(channel)
        await connection.send(preface + settings(*pairs))
        return connection

    def readable(self):
        try:
            data = self.channel.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
            self.loop.remove_reader(self.channel)
        self.held += data
        while len(self.held) >= 9:
            size = int.from_bytes(self.held[:3], "big")
            if len(self.held) < 9 + size:
                break
            kind, flags, stream = self.held[3], self.held[4], int.from_bytes(self.held[5:9], "big")
            payload, self.held = self.held[9 : 9 + size], self.held[9 + size :]
            self.take(kind, flags, stream, payload)
        self.changed.set()

    def take(self, kind, flags, stream, payload):
        self.spoke_h2 = True
        if kind == HEADERS:
            fields = self.decoder.decode(payload, raw=True)
            self.answers.setdefault(stream, []).append(fields)
        elif kind == DATA:
            self.bodies[stream] = self.bodies.get(stream, b"") + payload
        elif kind == RST_STREAM:
            self.resets[stream] = int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind in (SETTINGS, PING) and not flags & ACK and self.acknowledges:
            self.reply(frame(kind, ACK, 0, payload if kind == PING else b""))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.finished.add(stream)

    def reply(self, data):
        try:
            self.channel.send(data)
        except OSError:
            pass

    def read_no_more(self):
        self.loop.remove_reader(self.channel)

    async def send(self, data, seconds=10):
        """Raises Ended, or TimeoutError where the far side takes no more."""
        try:
            await asyncio.wait_for(self.loop.sock_sendall(self.channel, data), seconds)
        except asyncio.TimeoutError:
            raise TimeoutError from None
        except OSError:
            raise Ended from None

    def stream(self):
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        return stream

    async def until(self, condition, seconds):
        deadline = self.loop.time() + seconds
        while not condition():
            self.changed.clear()
            left = deadline - self.loop.time()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except asyncio.TimeoutError:
                return condition()
        return True

    def is_over(self, stream=None):
        return self.ended or self.goaway is not None or stream in self.resets or stream in self.finished

    def status(self, stream):
        for fields in self.answers.get(stream, []):
            status = int(dict(fields).get(b":status", b"0"))
            if status >= 200:
                return status
        return None

    def fields(self, stream):
        """Of the answer's head, by name."""
        found = {}
        for name, value in (self.answers.get(stream) or [[]])[-1]:
            found.setdefault(name, []).append(value)
        return found

    def close(self):
        self.loop.remove_reader(self.channel)
        self.channel.close()


def expect(judge, shown, fields, body=b""):
    """A message that may come to the origin, as the HTTP/1.1 request that it stands for."""
    said = dict(fields)
    sent = [(b"host", said.get(b":authority", said.get(b"host", b"")))]
    sent += [field for field in fields if not field[0].startswith(b":")]
    return judge.expect(shown, strict.Request(said[b":method"], said[b":path"], (1, 1), sent, body))


async def exchange(judge, connection, shown, expected, frames):
    """Sends one message on a new stream and has what comes of it judged: gives the status, or None for a reset stream
    or a closed connection. `expected` is None where the message must be refused."""
    stream = connection.stream()
    try:
        for kind, flags, payload in frames:
            await connection.send(frame(kind, flags, stream, payload))
    except Ended:
        pass
    if not await connection.until(lambda: connection.is_over(stream), 10):
        judge.find("neither an answer, a reset nor the end came", shown)
    status = connection.status(stream)
    if status is None:
        judge.counts["closed" if connection.ended or connection.goaway is not None else "reset"] += 1
    else:
        judge.answered(shown, expected, Answer(status, connection.fields(stream), connection.bodies.get(stream, b"")))
    if expected is not None:
        judge.forget([expected])
    return status
