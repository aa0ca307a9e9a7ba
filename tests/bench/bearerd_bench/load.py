"""Requests: one at a time from here, in a closed loop from wrk, at a fixed rate from `open_loop`."""

import dataclasses
import json
import pathlib
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Sequence

from . import BenchError
from .origin import SIZES
from .proxy import Proxy

HERE = pathlib.Path(__file__).parent
#: wrk gives up on an answer after this long: enough for 10 MiB on each of 1,000 connections.
ANSWER_WAIT_S = 60
ERRORS = ("connect_errors", "read_errors", "write_errors", "timeouts", "bad_statuses")
#: Answers from this size on are counted by bytes: the end of a round cuts many of them in two.
COUNTED_BY_BYTES = 64 * 1024
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)\r\n", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    head: bytes
    body_bytes: int

    @property
    def total_bytes(self) -> int:
        return len(self.head) + self.body_bytes


class Caller:
    """A keep-alive connection that waits for each answer."""

    def __init__(self, proxy: Proxy, caller_key: str | None = None):
        self._head = f"Host: 127.0.0.1:{proxy.port}\r\nX-API-Key: {caller_key or proxy.caller_key}\r\n"
        self._socket = socket.create_connection(("127.0.0.1", proxy.port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy.tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # who is at the other end is no question here
            self._socket = context.wrap_socket(self._socket)

    def get(self, path: str) -> Answer:
        return self._exchange(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode())

    def post(self, path: str, body_bytes: int) -> Answer:
        """Posts so many zeros."""
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Type: application/octet-stream\r\n"
        self._socket.sendall(f"{head}Content-Length: {body_bytes}\r\n\r\n".encode())
        block = bytes(65536)
        for _ in range(body_bytes // len(block)):
            self._socket.sendall(block)
        return self._exchange(bytes(body_bytes % len(block)))

    def _exchange(self, request: bytes) -> Answer:
        self._socket.sendall(request)
        read = b""
        while (head_end := read.find(b"\r\n\r\n")) < 0:
            read += self._receive()
        head = read[: head_end + 4]
        length = CONTENT_LENGTH.search(head)
        if length is None:
            raise BenchError(f"an answer has no Content-Length: {head!r}")
        body_bytes = len(read) - len(head)
        while body_bytes < int(length[1]):
            body_bytes += len(self._receive())
        return Answer(int(head.split(b" ", 2)[1]), head, body_bytes)

    def _receive(self) -> bytes:
        chunk = self._socket.recv(262144)
        if not chunk:
            raise BenchError("the proxy closed the connection inside an answer")
        return chunk

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check(proxy: Proxy, path: str, body_bytes: int) -> Answer:
    """The proxy does the work: the right answer with the key, 401 without it."""

    def opened() -> bool:
        with Caller(proxy) as caller:
            return caller.get(path).status == 200

    proxy.process.wait_for(opened, "answering 200")  # a new key is in force a moment later
    with Caller(proxy) as caller:
        answer = caller.get(path)
    if answer.status != 200 or answer.body_bytes != body_bytes:
        raise BenchError(f"{proxy.name} answered {answer.status} with {answer.body_bytes} bytes: {answer.head!r}")
    with Caller(proxy, "another-key") as caller:
        refused = caller.get(path)
    if refused.status != 401:
        raise BenchError(f"{proxy.name} answered {refused.status} to a wrong key")
    return answer


def closed_loop(proxy: Proxy, path: str, size: str, answer: Answer, connections: int, seconds: int) -> dict:
    """What wrk saw: each connection asks again as soon as it is answered. Fails on any error."""
    done = _run(wrk(proxy, path, connections, seconds), seconds + ANSWER_WAIT_S)
    proxy.process.check()
    seen = counts(done)
    check_errors(proxy, seen)
    requests = seen["requests"]
    # The end of the run cuts at most one answer of each connection.
    at_least, at_most = requests * answer.total_bytes, (requests + connections) * answer.total_bytes
    if not at_least * 0.98 <= seen["bytes"] <= at_most * 1.02:
        raise BenchError(f"{proxy.name}: {requests} answers have {seen['bytes']} bytes, not {at_least} to {at_most}")
    if SIZES[size] >= COUNTED_BY_BYTES:
        requests = seen["bytes"] / answer.total_bytes
    return {
        "requests": requests,
        "answers": seen["requests"],
        "rps": requests * 1e6 / seen["duration_us"],
        "p50_us": seen["p50_us"],
        "p99_us": seen["p99_us"],
    }


def wrk(proxy: Proxy, path: str, connections: int, seconds: int) -> list[str]:
    """The command whose last line [`counts`] reads."""
    return [
        "wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s",
        "--timeout", f"{ANSWER_WAIT_S}s", "--header", f"X-API-Key: {proxy.caller_key}",
        "--script", str(HERE / "closed_loop.lua"), proxy.url(path),
    ]  # fmt: skip


def counts(said: str) -> dict:
    """What wrk counted."""
    return json.loads(said.splitlines()[-1])


def check_errors(proxy: Proxy, seen: dict) -> None:
    """Every request was answered, and with 200."""
    errors = {name: seen[name] for name in ERRORS if seen[name]}
    if errors:
        raise BenchError(f"{proxy.name}: {errors} beside {seen['requests']} answers")


def fixed_rate(proxy: Proxy, path: str, rate: int, connections: int, seconds: int) -> dict:
    """What `open_loop` saw, in a process of its own. Fails on any error."""
    command = [
        sys.executable, str(HERE / "open_loop.py"), str(proxy.port), path, str(rate), str(connections), str(seconds),
    ]  # fmt: skip
    done = _run(command, seconds + ANSWER_WAIT_S, proxy.caller_key)
    proxy.process.check()
    return json.loads(done)


def _run(command: Sequence[str], wait_max_s: float, to_stdin: str = "") -> str:
    try:
        done = subprocess.run(command, input=to_stdin, capture_output=True, text=True, check=False, timeout=wait_max_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} did not end within {wait_max_s:.0f} s") from error
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command[:2])} failed: {done.stdout}{done.stderr}")
    return done.stdout
