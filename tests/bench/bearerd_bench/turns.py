"""CPU per request in short turns: what a machine whose mood changes can still tell apart.

A virtual machine's processors are up to a half slower in one second than in another. A turn is a tenth of a second, the
proxies' turns follow one another in a random order, and ratios are taken between turns of one lap. The load of each
proxy is a wrk of its own, whose connections stay open all the time and which is stopped but for its turns. A proxy is
charged for all it does from one of its turns to its next, so that nothing is free that it puts off."""

import contextlib
import http.client
import random
import signal
import subprocess
import time
from collections.abc import Iterator

from . import BenchError, daemon, load, origin
from .deployment import Bench, Deployment, all_proxies
from .origin import SIZES
from .proxy import Proxy
from .rounds import Cell, Progress

TURN_S = 0.1
#: What was asked before a stop is answered when the origin's count stands still for so long.
SETTLE_S = 0.01
SETTLE_MAX_S = 30
#: After the last turns: what was put off.
REST_S = 0.5
WARM_UP_S = 1.0
SEED = 1


def run(bench: Bench, cell: Cell, laps: int) -> dict:
    """`laps` turns for everyone."""
    path = origin.path(cell.size)
    with contextlib.ExitStack() as held:
        deployment = held.enter_context(all_proxies(bench, cell.tls))
        proxies = deployment.proxies
        for proxy in proxies:
            load.check(proxy, path, SIZES[cell.size])
        callers = {proxy.name: held.enter_context(_calling(proxy, path, cell, laps)) for proxy in proxies}
        system_s = {proxy.name: proxy.process.system_s() for proxy in proxies}
        before = daemon.calls(deployment.bearerd)
        begun_s: dict[str, list[float]] = {proxy.name: [] for proxy in proxies}
        requests: dict[str, list[int]] = {proxy.name: [] for proxy in proxies}
        progress, order = Progress(laps), random.Random(SEED)
        for lap in range(laps):
            for proxy in order.sample(proxies, len(proxies)):
                begun_s[proxy.name].append(proxy.process.cpu_s())
                requests[proxy.name].append(_turn(deployment, proxy, callers[proxy.name]))
            if lap % 50 == 49:
                progress.done = lap
                progress.step(f"{cell.title()}, in turns")
        time.sleep(REST_S)
        for proxy in proxies:
            begun_s[proxy.name].append(proxy.process.cpu_s())
        total = {name: sum(each) for name, each in requests.items()}
        system_us = {
            proxy.name: (proxy.process.system_s() - system_s[proxy.name]) * 1e6 / total[proxy.name]
            for proxy in proxies
        }
        counted = daemon.calls(deployment.bearerd) - before
        if counted != total["bearerd"]:
            raise BenchError(f"the origin answered {total['bearerd']} calls of bearerd, but its metrics show {counted}")
        daemon.check_counts(deployment.bearerd, total["bearerd"])
    turns = {
        name: [
            {"requests": count, "cpu_us": (after_s - at_s) * 1e6 / count}
            for count, at_s, after_s in zip(requests[name], begun_s[name], begun_s[name][1:], strict=False)
        ]
        for name in requests
    }
    return {"title": cell.title(), "turn_s": TURN_S, "turns": turns, "system_us": system_us}


def _turn(deployment: Deployment, proxy: Proxy, caller: subprocess.Popen) -> int:
    """Requests of one turn, the last of them answered."""
    served = _served(deployment)
    caller.send_signal(signal.SIGCONT)
    time.sleep(TURN_S)
    caller.send_signal(signal.SIGSTOP)
    # Each look is a request too.
    looks, now = 1, _served(deployment)
    earlier = 0
    while now != earlier + 1:
        if looks * SETTLE_S > SETTLE_MAX_S:
            raise BenchError(f"{proxy.name}: calls go on after its turn")
        time.sleep(SETTLE_S)
        earlier, now = now, _served(deployment)
        looks += 1
    proxy.process.check()
    requests = now - served - looks
    if caller.poll() is not None or requests < 1:
        raise BenchError(f"{proxy.name}: no answer within a turn")
    return requests


def _served(deployment: Deployment) -> int:
    """Requests that the origin has answered, this one included."""
    asking = http.client.HTTPConnection("127.0.0.1", deployment.origin.status_port, timeout=60)
    with contextlib.closing(asking):
        asking.request("GET", "/")
        return int(asking.getresponse().read().split()[9])


def _ended(caller: subprocess.Popen) -> str:
    """Ends wrk, and gives what it said. A signal ends the one of its threads that gets it."""
    for _ in range(60):
        caller.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = caller.communicate(timeout=1)
            return said
    raise BenchError("wrk does not end")


@contextlib.contextmanager
def _calling(proxy: Proxy, path: str, cell: Cell, laps: int) -> Iterator[subprocess.Popen]:
    """The load of one proxy, warm and stopped; at the end of the block it must have seen no error."""
    wall_max_s = 600 + laps
    command = load.wrk(proxy, path, cell.connections, wall_max_s)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as caller:
        try:
            time.sleep(WARM_UP_S)
            caller.send_signal(signal.SIGSTOP)
            time.sleep(REST_S)
            yield caller
            caller.send_signal(signal.SIGCONT)
            load.check_errors(proxy, load.counts(_ended(caller)))
        finally:
            caller.kill()

