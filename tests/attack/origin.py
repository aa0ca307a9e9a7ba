"""The recording origin: an instance that keeps the bytes it receives, connection by connection, and answers each whole
request with a marker of its own.

It reads as strictly as `strict.py`; what it cannot read is what bearerd must never send.
"""

import asyncio
import json
import re
from dataclasses import dataclass

import strict


BIG = re.compile(rb"[?&]big=([0-9]{1,7})(?:&|$)")
DELAY = re.compile(rb"[?&]delay=([0-9]{1,5})(?:&|$)")
# bearerd asks whose token it holds.
WHO = b"/api/now/table/sys_user"
USER = json.dumps({"result": [{"sys_id": "6816f79cc0a8016401c5a33be04be441", "user_name": "a.user", "name": "A User"}]}).encode()


@dataclass(slots=True)
class Record:
    """One request, whole."""

    marker: int
    raw: bytes
    request: strict.Request


class Origin:
    """`on_record(record)`: a request came whole. `on_cut(raw)`: a connection ended inside one. `on_fault(what, raw)`."""

    def __init__(self, token):
        self.token = token
        self.markers = 0
        self.connections = 0
        self.on_record = self.on_cut = self.on_fault = lambda *_: None
        self.kind = OriginConnection
        self.server = None

    async def start(self, host, port):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: self.kind(self), host, port, backlog=4096)
        return self.server.sockets[0].getsockname()[:2]


class OriginConnection(asyncio.Protocol):
    def __init__(self, origin):
        self.origin, self.held, self.need, self.transport = origin, b"", 1, None

    def connection_made(self, transport):
        self.transport = transport
        self.origin.connections += 1

    def data_received(self, data):
        self.held += data
        if len(self.held) < self.need:
            return
        try:
            head, at = strict.read_head(self.held, 0)
            head.body, head.trailers, head.end = strict.read_body(self.held, head, at)
        except strict.Incomplete as more:
            self.need = more.need
            return
        except strict.Fault as fault:
            return self.fault(f"unreadable: {fault.rule}")
        if head.end < len(self.held):
            return self.fault("bytes behind the request")
        raw, self.held, self.need = self.held, b"", 1
        self.answer(head, raw)

    def fault(self, what):
        raw, self.held, self.need = self.held, b"", 1
        self.origin.on_fault(what, raw)
        self.transport.abort()

    def answer(self, request, raw):
        origin = self.origin
        if request.path == WHO:
            return self.send(request, USER, 0)
        big = BIG.search(request.target)
        if big:  # an answer of so many bytes, for callers that read slowly
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % big[1] + bytes(int(big[1])))
            return None
        delay = DELAY.search(request.target)
        if delay:  # of so many milliseconds, for callers that do not wait
            return asyncio.get_running_loop().call_later(int(delay[1]) / 1000, self.late)
        origin.markers += 1
        marker = origin.markers
        origin.on_record(Record(marker, raw, request))
        self.send(request, b'{"result":[],"marker":%d}' % marker, marker)

    def late(self):
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    def send(self, request, body, marker):
        # A cookie in each answer: none may reach a caller (P-08).
        head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"Set-Cookie: JSESSIONID=origin-session; HttpOnly\r\nX-Marker: %d\r\n\r\n" % (len(body), marker)
        )
        self.transport.write(head if request.method == b"HEAD" else head + body)

    def connection_lost(self, _error):
        if self.held:
            self.origin.on_cut(self.held)
