"""The command `tests/bench/syscalls`: system calls per request of the thread that carries them, beside the peers'."""

import argparse
import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

from . import BenchError, deployment, load, machine, origin
from .origin import SIZES
from .processes import threads
from .proxy import Proxy
from .report import Table
from .rounds import Cell

#: bearerd's first worker.
WORKER = "proxy-0"
ATTACH_MAX_S = 10.0
ROW = re.compile(r"^\s*(\d+)(?:\s+(\d+))?\s+(\w+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Call:
    """How often per request, and how often in vain (nearly always EAGAIN)."""

    made: float
    failed: float

    def shown(self) -> str:
        return f"{self.made:.2f}" + (f" ({self.failed:.2f})" if self.failed >= 0.005 else "")


def main() -> int:
    arguments = parse()
    try:
        with machine.scratch() as scratch:
            machine.need("nginx", "haproxy", "wrk", "openssl", "strace")
            bench = deployment.prepare(machine.binary(arguments.binary), scratch)
            with deployment.all_proxies(bench, arguments.tls) as deployed:
                proxies = [proxy for proxy in deployed.proxies if proxy.name != deployment.PAIR[1]]
                seen = {proxy.name: count(proxy, scratch, arguments) for proxy in proxies}
    except BenchError as error:
        print(f"tests/bench/syscalls: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"tests/bench/syscalls: stopped {stopped}".rstrip(), file=sys.stderr)
        return 130
    if arguments.json:
        plain = {name: {call: dataclasses.asdict(each) for call, each in calls.items()} for name, calls in seen.items()}
        arguments.json.write_text(json.dumps(plain, indent=1) + "\n")
    made = table(seen, arguments)
    print(made.markdown() if arguments.markdown else made.text())
    return 0


def table(seen: dict[str, dict[str, Call]], arguments: argparse.Namespace) -> Table:
    """A row for each system call that is made once in a hundred requests or more."""
    made: dict[str, float] = {}
    for calls in seen.values():
        for name, call in calls.items():
            made[name] = max(made.get(name, 0), call.made)
    usual = sorted((name for name in made if made[name] >= 0.01), key=lambda name: -made[name])
    rows = [[name, *(calls[name].shown() if name in calls else "-" for calls in seen.values())] for name in usual]
    rows.append(["all", *(f"{sum(call.made for call in calls.values()):.2f}" for calls in seen.values())])
    cell = Cell(arguments.size, "tls" if arguments.tls else "clear", arguments.connections)
    title = f"System calls per request (in vain); {cell.title()}"
    return Table(title, ["call", *seen], rows)


def count(proxy: Proxy, scratch: pathlib.Path, arguments: argparse.Namespace) -> dict[str, Call]:
    """Loads the proxy while strace counts; connections are there and warm before."""
    path = origin.path(arguments.size)
    answer = load.check(proxy, path, SIZES[arguments.size])

    def closed_loop(seconds: int) -> float:
        seen = load.closed_loop(proxy, path, arguments.size, answer, arguments.connections, seconds)
        return seen["requests"]

    closed_loop(1)
    counts = scratch / f"{proxy.name}.strace"
    worker = worker_thread(proxy)
    command = ["strace", "-c", "-U", "calls,errors,name", "-o", str(counts), "-p", str(worker)]
    strace = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_attached(strace, worker)
        requests = closed_loop(arguments.seconds)
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate()
    if requests < 1:
        raise BenchError(f"{proxy.name}: no answer within {arguments.seconds} s")
    return {
        name: Call(int(made) / requests, int(failed or 0) / requests)
        for made, failed, name in ROW.findall(counts.read_text())
        if name != "total"
    }


def worker_thread(proxy: Proxy) -> int:
    """The thread that carries requests: bearerd's worker, nginx's child, HAProxy itself."""
    named = [thread for thread, name in threads(proxy.process.pid).items() if name == WORKER]
    return named[0] if named else proxy.process.pids()[-1]


def wait_attached(strace: subprocess.Popen, thread: int) -> None:
    """Until the kernel says that somebody traces the thread."""
    status = pathlib.Path(f"/proc/{thread}/status")
    deadline = time.monotonic() + ATTACH_MAX_S
    while re.search(r"^TracerPid:\s+0$", status.read_text(), re.MULTILINE):
        if strace.poll() is not None:
            raise BenchError(f"strace may need root (bearerd lets itself not be traced): {strace.stderr.read()}")
        if time.monotonic() > deadline:
            raise BenchError(f"strace did not attach within {ATTACH_MAX_S:.0f} s")
        time.sleep(0.01)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench/syscalls",
        description="Counts system calls per request with strace, for bearerd's worker, nginx and HAProxy. strace "
        "slows what it counts, so each wait finds more to do than usual: waits are seldom, other calls as usual.",
    )
    parser.add_argument("--binary", default="target/dist/bearerd", help="what to count (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="for each proxy (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="callers' (default: %(default)s)")
    parser.add_argument("--size", choices=tuple(SIZES), default="1k", help="answers (default: %(default)s)")
    parser.add_argument("--tls", action="store_true", help="callers speak TLS")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/performance.md")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="the same for programs")
    return parser.parse_args()
