"""The caller's side of a connection: sends bytes as they are, and takes answers apart."""

import asyncio
import socket
from dataclasses import dataclass


class BadAnswer(Exception):
    """What came back is no HTTP/1.1 answer."""


@dataclass(slots=True)
class Answer:
    status: int
    fields: dict  # name in lower case: list of values
    body: bytes

    def value(self, name):
        return self.fields.get(name, [b""])[0]

    @property
    def is_last(self):
        return self.value(b"connection").lower() == b"close"


class Caller:
    """One connection. `take` gives the next answer, or None once the connection has ended without another.

    A socket of its own, since asyncio's transports forget what came in once they cannot write any more.
    """

    def __init__(self, channel):
        self.channel, self.loop = channel, asyncio.get_running_loop()
        self.held, self.ended, self.waiting = b"", False, None
        self.loop.add_reader(channel, self.readable)

    @classmethod
    async def connect(cls, address):
        channel = socket.socket()
        channel.setblocking(False)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(channel, address)
        except OSError:
            channel.close()
            raise
        return cls(channel)

    def readable(self):
        try:
            data = self.channel.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.held += data
        if not data:
            self.ended = True
            self.loop.remove_reader(self.channel)
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)

    async def more(self, seconds):
        """Waits for bytes or the end; False once `seconds` have passed in vain."""
        self.waiting = self.loop.create_future()
        timer = self.loop.call_later(seconds, self.waiting.cancel)
        try:
            await self.waiting
        except asyncio.CancelledError:
            if not self.waiting.cancelled() or asyncio.current_task().cancelling():
                raise
            return False
        finally:
            timer.cancel()
        return True

    async def send(self, pieces):
        """Each piece on its way before the next one: the far side may see them as packets."""
        try:
            for index, piece in enumerate(pieces):
                if index:
                    await asyncio.sleep(0)
                await self.loop.sock_sendall(self.channel, piece)
        except OSError:
            pass  # the far side has closed; what it said before is still to be read

    async def take(self, method, seconds):
        """Raises TimeoutError if neither an answer nor the end comes."""
        while True:
            answer, self.held = parse(self.held, method, self.ended)
            if answer is not None:
                return answer
            if self.ended:
                if self.held:
                    raise BadAnswer(f"cut off: {self.held[:200]!r}")
                return None
            if not await self.more(seconds):
                raise TimeoutError

    async def take_rest(self, seconds):
        """All bytes up to the end; None if it does not come."""
        while not self.ended:
            if not await self.more(seconds):
                return None
        rest, self.held = self.held, b""
        return rest

    def finish_sending(self):
        try:
            self.channel.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.loop.remove_reader(self.channel)
        self.channel.close()


def parse(held, method, ended):
    """The answer at the beginning, and what is behind it; interim answers (1xx) are passed over."""
    while True:
        end = held.find(b"\r\n\r\n")
        if end < 0:
            return None, held
        status_line, *lines = held[:end].split(b"\r\n")
        if not status_line.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or not status_line[9:12].isdigit():
            raise BadAnswer(f"{held[:200]!r}")
        status, fields = int(status_line[9:12]), {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise BadAnswer(f"{line!r}")
            fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
        at = end + 4
        if status >= 200:
            break
        if status == 101:
            raise BadAnswer("the protocol was switched")
        held = held[at:]
    if method == b"HEAD" or status in (204, 304):
        return Answer(status, fields, b""), held[at:]
    if b"content-length" in fields:
        size = int(fields[b"content-length"][0])
        if len(held) < at + size:
            return None, held
        return Answer(status, fields, held[at : at + size]), held[at + size :]
    if b"transfer-encoding" in fields:
        return chunked(held, at, status, fields)
    return (Answer(status, fields, held[at:]), b"") if ended else (None, held)


def chunked(held, at, status, fields):
    body = []
    while True:
        end = held.find(b"\r\n", at)
        if end < 0:
            return None, held
        size = int(held[at:end].partition(b";")[0], 16)
        begin, at = end + 2, end + 2 + size + 2
        if len(held) < at:
            return None, held
        if size == 0:
            return Answer(status, fields, b"".join(body)), held[at:]
        body.append(held[begin : begin + size])
