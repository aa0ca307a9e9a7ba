"""Closed-loop rounds: each proxy in turn under as much load as it takes, in an order that rotates."""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from . import daemon, load, origin
from .deployment import Bench, all_proxies
from .origin import SIZE_NAMES, SIZES
from .proxy import Proxy

MIB = 1024 * 1024
#: 1,000 answers of 10 MiB take longer than a round of few seconds: such a cell gets rounds so many times as long.
LONG_ROUND = 8
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
        return f"{SIZE_NAMES[self.size]}, callers in {callers}, {self.connections} connection{'s' if self.connections > 1 else ''}"


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
    before = proxy.process.cpu_s()
    seen = one()
    return seen | {"cpu_us": (proxy.process.cpu_s() - before) * 1e6 / seen["requests"]}


def run(bench: Bench, cell: Cell, rounds: int, seconds: int) -> dict:
    """All rounds of one cell."""
    path = origin.path(cell.size)
    if cell.size == "10m" and cell.connections > 100:
        seconds *= LONG_ROUND
    with all_proxies(bench, cell.tls) as deployment:
        proxies = deployment.proxies
        answers = {proxy.name: load.check(proxy, path, SIZES[cell.size]) for proxy in proxies}

        def once(proxy: Proxy, seconds: int) -> dict:
            return load.closed_loop(proxy, path, cell.size, answers[proxy.name], cell.connections, seconds)

        warm = {proxy.name: once(proxy, min(seconds, 1) if seconds < 8 else seconds // 4) for proxy in proxies}
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
