"""Rounds at a fixed rate: latency below the limit, and what a second worker costs."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence

from . import load, origin
from .deployment import Bench, all_proxies, bearerd_alone
from .origin import SIZES
from .proxy import Proxy
from .rounds import BREATH_S, Progress, measured, rotated

SIZE = "1k"
CONNECTIONS = 64
#: Of what the slowest proxy can do.
LOAD_SHARE = 0.5


def latencies(bench: Bench, rate: int, rounds: int, seconds: int) -> dict:
    """Each proxy in turn at this rate."""
    with all_proxies(bench) as deployment:
        seen = _rounds(deployment.proxies, "fixed rate", rate, rounds, seconds)
    return {"rate": rate, "connections": CONNECTIONS, "seconds": seconds, "rounds": seen}


def workers(bench: Bench, rate: int, rounds: int, seconds: int) -> dict:
    """bearerd with one worker and with two, in turn at this rate."""
    with contextlib.ExitStack() as held:
        proxies = []
        for count, name in ((1, "one worker"), (2, "two workers")):
            _, ours = held.enter_context(bearerd_alone(bench, workers=count))
            proxies.append(dataclasses.replace(ours.proxy, name=name))
        seen = _rounds(proxies, "workers", rate, rounds, seconds)
    return {"rate": rate, "connections": CONNECTIONS, "seconds": seconds, "rounds": seen}


def _rounds(proxies: Sequence[Proxy], what: str, rate: int, rounds: int, seconds: int) -> dict[str, list[dict]]:
    path = origin.path(SIZE)
    for proxy in proxies:
        load.check(proxy, path, SIZES[SIZE])
    seen: dict[str, list[dict]] = {proxy.name: [] for proxy in proxies}
    progress = Progress(rounds * len(proxies))
    for number in range(rounds):
        for proxy in rotated(proxies, number):
            time.sleep(BREATH_S)
            once = measured(proxy, lambda proxy=proxy: load.fixed_rate(proxy, path, rate, CONNECTIONS, seconds))
            seen[proxy.name].append(once)
            progress.step(f"{what}, {rate} requests/s, round {number + 1}, {proxy.name}")
    return seen
