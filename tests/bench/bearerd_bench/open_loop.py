"""Requests at a fixed rate, whatever the answers do.

    open_loop.py PORT PATH RATE CONNECTIONS SECONDS < caller key

Request number i is due at start + i / RATE. It goes out on a free connection, or waits for one; its latency counts from
when it was due, so a proxy that stalls is charged for all that it kept waiting, not only for what was under way
(coordinated omission). Prints JSON; ends with 1 on any error. Runs as a program of its own: one thread, no garbage
collection while it measures.
"""

import collections
import contextlib
import ctypes
import gc
import json
import os
import re
import select
import socket
import sys
import time

#: Connections are opened, and the proxy's to the origin, before anything counts.
WARM_UP_S = 0.5
#: After the last request was due: how long answers may take.
DRAIN_MAX_S = 10.0
READ_BYTES = 262144
CLOCK_MONOTONIC = 1
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)\r\n", re.IGNORECASE)


class OpenLoopError(Exception):
    """Why the run does not count."""


class TimeSpec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class TimerSpec(ctypes.Structure):
    _fields_ = [("interval", TimeSpec), ("first", TimeSpec)]


def ticking(interval_s: float) -> int:
    """A descriptor that is readable at each tick: epoll's own time-out is too coarse (timerfd_create(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK)
    every = TimeSpec(int(interval_s), int(interval_s % 1 * 1e9))
    if timer < 0 or libc.timerfd_settime(timer, 0, ctypes.byref(TimerSpec(every, every)), None) != 0:
        raise OpenLoopError(f"no timer: {os.strerror(ctypes.get_errno())}")
    return timer


class Connection:
    """One keep-alive connection and what it waits for."""

    __slots__ = ("due", "left", "read", "socket")

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due = 0.0
        self.left = 0
        self.read = b""

    def take(self, chunk: bytes) -> bool:
        """Whether the answer is whole."""
        if self.left:
            self.left -= len(chunk)
            return self.left == 0
        self.read += chunk
        head_end = self.read.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        length = CONTENT_LENGTH.search(self.read, 0, head_end + 4)
        if not self.read.startswith(b"HTTP/1.1 200") or length is None:
            raise OpenLoopError(f"answered {self.read[: head_end + 4]!r}")
        self.left = head_end + 4 + int(length[1]) - len(self.read)
        self.read = b""
        return self.left == 0


def run(port: int, request: bytes, rate: float, connections_max: int, seconds: float) -> dict:
    """Sends `rate` × (warm-up + `seconds`) requests and awaits their answers."""
    with contextlib.ExitStack() as held:
        connections = [Connection(port) for _ in range(connections_max)]
        for connection in connections:
            held.enter_context(connection.socket)
        return drive(connections, request, rate, seconds)


def drive(connections: list[Connection], request: bytes, rate: float, seconds: float) -> dict:
    """The same over connections that are there."""
    waiting = {connection.socket.fileno(): connection for connection in connections}
    free = collections.deque(connections)
    poll = select.epoll(len(connections) + 1)
    for descriptor in waiting:
        poll.register(descriptor, select.EPOLLIN)
    timer = ticking(1 / rate)
    poll.register(timer, select.EPOLLIN)

    clock = time.monotonic
    latencies: list[float] = []
    lateness: list[float] = []
    sent = answered = 0
    warm_up = int(WARM_UP_S * rate)
    total = warm_up + int(seconds * rate)
    gc.disable()
    start = clock()
    last_due = start + total / rate
    due = start
    while answered < total:
        for descriptor, _ in poll.poll(1):
            if descriptor == timer:
                with contextlib.suppress(BlockingIOError):
                    os.read(timer, 8)
                continue
            connection = waiting[descriptor]
            chunk = connection.socket.recv(READ_BYTES)
            if not chunk:
                raise OpenLoopError("the proxy closed a connection")
            if connection.take(chunk):
                answered += 1
                if connection.due >= start + WARM_UP_S:
                    latencies.append(clock() - connection.due)
                free.append(connection)
        now = clock()
        while sent < total and due <= now and free:
            connection = free.popleft()
            connection.due = due
            if connection.socket.send(request) != len(request):
                raise OpenLoopError("a request did not fit into a socket")
            lateness.append(now - due)
            sent += 1
            due = start + sent / rate
        if now > last_due + DRAIN_MAX_S:
            raise OpenLoopError(f"{total - answered} of {total} requests were not answered in time")
    ended = clock()
    return {
        "requests": total,
        "measured": len(latencies),
        "rps": total / (ended - start),
        "p50_us": percentile(latencies, 0.50),
        "p99_us": percentile(latencies, 0.99),
        "p999_us": percentile(latencies, 0.999),
        # This program's own lateness, and the wait for a free connection.
        "sent_late_p99_us": percentile(lateness, 0.99),
    }


def percentile(values: list[float], share: float) -> float:
    """In microseconds."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6, 1)


def main() -> int:
    port, path, rate, connections, seconds = sys.argv[1:]
    key = sys.stdin.read().strip()
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-API-Key: {key}\r\n\r\n".encode()
    try:
        print(json.dumps(run(int(port), request, float(rate), int(connections), float(seconds))))
    except (OpenLoopError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
