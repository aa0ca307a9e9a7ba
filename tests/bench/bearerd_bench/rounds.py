"""Closed-loop rounds: each proxy in turn under as much load as it takes, in an order that rotates."""

import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from . import BenchError, daemon, load, origin
from .deployment import Bench, all_proxies
from .origin import SIZE_NAMES, SIZES
from .proxy import Proxy

MIB = 1024 * 1024
#: From so many connections on, the first seconds go by before all are open: wrk opens each round's anew.
MANY_CONNECTIONS = 500
MANY_S = 4
#: A thousand handshakes alone take some seconds.
MANY_TLS_S = 12
#: So do a thousand answers of 10 MiB.
MANY_LARGE_S = 16
WARM_UP_S = 4
#: Between two loads, so that the connections that one leaves are not closed at the other's cost.
BREATH_S = 0.2


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of the matrix."""

    size: str
    callers: str
    connections: int

    @property
    def tls(self) -> bool:
        return self.callers == "tls"

    def title(self) -> str:
        callers = "TLS" if self.tls else "clear text"
        plural = "s" if self.connections > 1 else ""
        return f"{SIZE_NAMES[self.size]}, callers in {callers}, {self.connections} connection{plural}"


@dataclasses.dataclass
class Progress:
    """Says on standard error how far it is and how long it will still take."""

    steps: int
    done: int = 0
    begun: float = dataclasses.field(default_factory=time.monotonic)

    def step(self, what: str) -> None:
        self.done += 1
        left_s = (time.monotonic() - self.begun) / self.done * (self.steps - self.done)
        print(f"{what}: {self.done} of {self.steps}, {left_s:.0f} s left", file=sys.stderr, flush=True)


def rotated(proxies: Sequence[Proxy], number: int) -> Iterator[Proxy]:
    """Everyone once, each round from another one on."""
    for index in range(len(proxies)):
        yield proxies[(index + number) % len(proxies)]


def measured(proxy: Proxy, one: Callable[[], dict]) -> dict:
    """What `one` saw, and what it cost the proxy."""
    process = proxy.process
    cpu_s, system_s = process.cpu_s(), process.system_s()
    seen = one()
    if seen["requests"] < 1:
        raise BenchError(f"{proxy.name}: no answer within a turn")
    cpu_us, system_us = (
        spent_s * 1e6 / seen["requests"] for spent_s in (process.cpu_s() - cpu_s, process.system_s() - system_s)
    )
    return seen | {"cpu_us": cpu_us, "system_us": system_us}


def turn_s(cell: Cell, seconds: int) -> int:
    """How long a proxy's turn is, where so many seconds were asked for."""
    if cell.connections < MANY_CONNECTIONS:
        return seconds
    if cell.size == "10m":
        return max(seconds, MANY_LARGE_S)
    return max(seconds, MANY_TLS_S if cell.tls else MANY_S)


def run(bench: Bench, cell: Cell, rounds: int, seconds: int) -> dict:
    """All rounds of one cell."""
    path = origin.path(cell.size)
    seconds = turn_s(cell, seconds)
    with all_proxies(bench, cell.tls) as deployment:
        proxies = deployment.proxies
        answers = {proxy.name: load.check(proxy, path, SIZES[cell.size]) for proxy in proxies}

        def once(proxy: Proxy, seconds: int) -> dict:
            with daemon.explaining(deployment.bearerd) if proxy.name == "bearerd" else contextlib.nullcontext():
                return load.closed_loop(proxy, path, cell.size, answers[proxy.name], cell.connections, seconds)

        warm = {proxy.name: once(proxy, min(seconds, WARM_UP_S)) for proxy in proxies}
        seen: dict[str, list[dict]] = {proxy.name: [] for proxy in proxies}
        progress = Progress(rounds * len(proxies))
        for number in range(rounds):
            for proxy in rotated(proxies, number):
                time.sleep(BREATH_S)
                seen[proxy.name].append(measured(proxy, lambda proxy=proxy: once(proxy, seconds)))
                progress.step(f"{cell.title()}, round {number + 1}, {proxy.name}")
        ours = deployment.bearerd
        daemon.check_counts(ours, sum(each["answers"] for each in [warm["bearerd"], *seen["bearerd"]]))
        peaks = {proxy.name: proxy.process.peak_rss_bytes() / MIB for proxy in proxies}
    return dataclasses.asdict(cell) | {"title": cell.title(), "seconds": seconds, "rounds": seen, "peak_rss_mib": peaks}


def capacity(cell: dict) -> float:
    """Requests per second of the slowest proxy, half of the rounds below it."""
    return min(statistics.median(each["rps"] for each in rounds) for rounds in cell["rounds"].values())
