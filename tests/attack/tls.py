"""A way through TLS: a listener in clear text, whose connections go on to bearerd's TLS door, each with the same offer of
protocols (ALPN). What comes in pieces goes out in records of their own; either side's end is passed on as it came.
"""

import asyncio
import socket
import ssl
import struct
from collections import Counter

BACKLOG = 1024
READ_BYTES = 1 << 16
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
HANDSHAKE_S = 10


class Way:
    def __init__(self, door, authority, *offered):
        self.door, self.offered = door, offered
        self.context = ssl.create_default_context(cafile=authority)
        if offered:
            self.context.set_alpn_protocols(list(offered))
        self.agreed = Counter()  # how often which protocol; None: none was
        self.refused = []  # of failed handshakes, what the door said
        self.carrying = set()

    async def start(self):
        """Gives the address in clear text."""
        listener = socket.create_server((self.door[0], 0), backlog=BACKLOG)
        listener.setblocking(False)
        self.accepting = asyncio.ensure_future(self.accept(listener))
        return listener.getsockname()[:2]

    async def accept(self, listener):
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(listener)
            carrying = asyncio.ensure_future(self.carry(near))
            self.carrying.add(carrying)
            carrying.add_done_callback(self.carrying.discard)

    async def carry(self, near):
        with near, socket.socket() as far:
            for end in (near, far):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await asyncio.get_running_loop().sock_connect(far, self.door)
                tunnel = Tunnel(near, far, self.context, self.door[0])
                self.agreed[await asyncio.wait_for(tunnel.handshake(), HANDSHAKE_S)] += 1
                await tunnel.run()
            except ssl.SSLError as error:
                self.refused.append(str(error))
            except OSError:
                for end in (near, far):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


class Tunnel:
    def __init__(self, near, far, context, host):
        self.near, self.far, self.loop = near, far, asyncio.get_running_loop()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        self.flushing = asyncio.Lock()

    async def handshake(self):
        """Gives the agreed protocol."""
        while True:
            try:
                self.tls.do_handshake()
                await self.flush()
                return self.tls.selected_alpn_protocol()
            except ssl.SSLWantReadError:
                await self.flush()
                await self.receive()

    async def flush(self):
        async with self.flushing:
            if data := self.outgoing.read():
                await self.loop.sock_sendall(self.far, data)

    async def receive(self):
        data = await self.loop.sock_recv(self.far, READ_BYTES)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    async def run(self):
        """Until both sides have ended. Raises OSError where the near one has broken off."""
        inward = asyncio.ensure_future(self.inward())
        try:
            await self.outward()
            await inward
        finally:
            inward.cancel()

    async def outward(self):
        while data := await self.loop.sock_recv(self.near, READ_BYTES):
            try:
                self.tls.write(data)
                await self.flush()
            except (ssl.SSLError, OSError):
                pass  # the door takes no more; what the caller still sends is nobody's
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass  # close_notify is written; that of the door is still to come
        try:
            await self.flush()
        except OSError:
            pass

    async def inward(self):
        try:
            while data := await self.read():
                await self.loop.sock_sendall(self.near, data)
        except OSError:
            pass  # either side has closed; to the caller it is the end
        try:
            self.near.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    async def read(self):
        while True:
            try:
                return self.tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                await self.receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
