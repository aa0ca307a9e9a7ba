"""The command `tests/bench/instructions`: instructions per request, which do not depend on the machine's mood.

Two daemons run under callgrind; one answers a few requests, the other one many more. What the second one needed more,
divided by how many more, is the cost of one: start, set-up and the first requests fall out. Requests go one at a time
over a few connections in turn, so that nothing is batched now and then.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import platform
import re
import sys

from . import BenchError, callgrind, daemon, deployment, load, machine, origin
from .deployment import Bench
from .machine import free_ports
from .origin import SIZES, Origin
from .proxy import Proxy

HERE = pathlib.Path(__file__).parent.parent
COMMITTED = HERE / "instructions.json"
SIZE = "1k"
CONNECTIONS = 8
#: Enough for every connection, and every one to the origin, to be in its usual state.
FEW = 400
MANY = 2400
#: How far a figure may be from the committed one.
TOLERANCE = 0.03
#: The thread that starts everything; its share is no request's.
MAIN_THREAD = 1


@dataclasses.dataclass(frozen=True)
class Figure:
    """Instructions of one request."""

    worker: float
    #: Of all threads but the worker and the main one: access records, and what runs by the clock.
    elsewhere: float
    #: The worker's, by function.
    by_function: dict[str, float]


def main() -> int:
    arguments = parse()
    try:
        with machine.scratch() as scratch:
            machine.need("nginx", "openssl", "valgrind")
            bench = deployment.prepare(machine.binary(arguments.binary), scratch)
            figures = [measure(bench) for _ in range(arguments.runs)]
    except BenchError as error:
        print(f"tests/bench/instructions: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as signal:
        print(f"tests/bench/instructions: stopped {signal}".rstrip(), file=sys.stderr)
        return 130
    for figure in figures:
        print(f"instructions per request: {figure.worker:.0f} by the worker, {figure.elsewhere:.0f} by other threads")
    if arguments.by_function:
        print_groups(figures[0])
    per_request = round(min(figure.worker for figure in figures))
    if arguments.update:
        COMMITTED.write_text(json.dumps(committed(arguments.build, per_request), indent=1) + "\n")
        print(f"tests/bench/{COMMITTED.name} now says {per_request}")
        return 0
    return judge(arguments.build, per_request)


def committed(build: str, per_request: int) -> dict:
    return {"build": build, "machine": platform.machine(), "per_request": per_request}


def judge(build: str, per_request: int) -> int:
    """Compares with the committed figure, if that is of the same kind."""
    known = json.loads(COMMITTED.read_text())
    if (known["build"], known["machine"]) != (build, platform.machine()):
        print(f"not compared: the committed figure is of a {known['build']} build on {known['machine']}")
        return 0
    change = per_request / known["per_request"] - 1
    said = f"{per_request} instructions per request, {change:+.1%} against the committed {known['per_request']}"
    remedy = f"tests/bench/instructions --binary target/{build}/bearerd --update"
    if change > TOLERANCE:
        print(f"TOO MANY: {said}; {TOLERANCE:.0%} are allowed.")
        print(f"Find what grew with --by-function or, where it is worth its price, commit the new figure: {remedy}")
        return 1
    print(f"ok: {said}")
    if change < -TOLERANCE:
        print(f"It became cheaper. Keep it so: {remedy}")
    return 0


def measure(bench: Bench) -> Figure:
    """Both daemons, side by side: how fast they are does not matter."""
    with contextlib.ExitStack() as held:
        place = held.enter_context(deployment.folder(bench))
        [port] = free_ports(1)
        far = held.enter_context(origin.serving(place, bench.certificates, port))
        with concurrent.futures.ThreadPoolExecutor() as both:
            few, many = both.map(lambda requests: count(bench, far, place, requests), (FEW, MANY))
    worker_few, worker_many = busiest(few), busiest(many)
    by_function = {
        name: (worker_many.by_function[name] - worker_few.by_function[name]) / (MANY - FEW)
        for name in worker_many.by_function | worker_few.by_function
    }
    elsewhere = sum(t.total() for t in others(many)) - sum(t.total() for t in others(few))
    return Figure(
        (worker_many.total() - worker_few.total()) / (MANY - FEW), elsewhere / (MANY - FEW), by_function
    )


def count(bench: Bench, far: Origin, place: pathlib.Path, requests: int) -> list[callgrind.Thread]:
    """A daemon that is set up as usual, started again under callgrind, and asked so many times."""
    installation = daemon.install(bench.binary, place / f"after-{requests}")
    with daemon.serving(installation, known=bench.known):
        caller_key = installation.set_up(far, bench.certificates)
    under = [
        "valgrind", "--quiet", "--tool=callgrind", "--separate-threads=yes",
        f"--callgrind-out-file={installation.folder}/counts.%p",
    ]  # fmt: skip
    with daemon.serving(installation, name="under-callgrind", known=bench.known, under=under) as process:
        proxy = Proxy("bearerd", process, installation.proxy_port, caller_key)
        ask(proxy, requests)
    return callgrind.read(installation.folder, "counts")


def ask(proxy: Proxy, requests: int) -> None:
    """One at a time, over each connection in turn."""
    with contextlib.ExitStack() as held:
        callers = [held.enter_context(load.Caller(proxy)) for _ in range(CONNECTIONS)]
        for number in range(requests):
            answer = callers[number % CONNECTIONS].get(origin.path(SIZE))
            if (answer.status, answer.body_bytes) != (200, SIZES[SIZE]):
                raise BenchError(f"request {number} was answered {answer.status}: {answer.head!r}")


def busiest(threads: list[callgrind.Thread]) -> callgrind.Thread:
    """The worker: after some hundred requests no other thread but the main one has done as much."""
    return max((thread for thread in threads if thread.number != MAIN_THREAD), key=callgrind.Thread.total)


def others(threads: list[callgrind.Thread]) -> list[callgrind.Thread]:
    worker = busiest(threads).number
    return [thread for thread in threads if thread.number not in (MAIN_THREAD, worker)]


#: Who a function belongs to, by what its name begins with or holds; the first that fits.
GROUPS = (
    ("copying and filling memory", r"mem(cpy|move|set|cmp|chr)"),
    ("allocating", r"malloc|free|realloc|calloc|__rust_|__rdl|_int_|unlink_chunk|^mi_|alloc::raw_vec"),
    ("cryptography (aws-lc)", r"aws_lc|aes|gcm|ghash|sha\d|hmac|x25519|EVP_|CRYPTO_|OPENSSL"),
    ("TLS (rustls)", r"rustls"),
    ("HTTP (hyper, http, httparse, h2)", r"hyper|http::|httparse|http_body|\bh2::"),
    ("policy and keys", r"bearerd_policy"),
    ("access records", r"bearerd_audit"),
    ("the rest of bearerd", r"bearerd"),
    ("runtime (tokio, mio)", r"tokio|mio::"),
    ("bytes", r"\bbytes::"),
    ("system calls (libc's side)", r"^(writev?|readv?|recv|send|epoll_|clock_|syscall|__vdso|__errno)|pthread_|cancel"),
)


def print_groups(figure: Figure) -> None:
    """Where the instructions go. Inlined functions count where they ended up."""
    groups: collections.Counter[str] = collections.Counter()
    for name, instructions in figure.by_function.items():
        owner = next((group for group, pattern in GROUPS if re.search(pattern, name)), "others")
        groups[owner] += instructions
    print("\n| part | instructions per request | share |\n|---|---:|---:|")
    for group, instructions in groups.most_common():
        print(f"| {group} | {instructions:.0f} | {instructions / figure.worker:.0%} |")
    print("\n| function | instructions per request |\n|---|---:|")
    for name, instructions in collections.Counter(figure.by_function).most_common(40):
        print(f"| `{name[:110]}` | {instructions:.0f} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench/instructions",
        description="Counts bearerd's instructions per request under callgrind and compares them with the committed "
        f"figure: more than {TOLERANCE:.0%} above it fails.",
    )
    parser.add_argument("--binary", default="target/release/bearerd", help="what to count (default: %(default)s)")
    parser.add_argument("--build", help="profile of the binary (default: the name of its folder)")
    parser.add_argument("--runs", type=int, default=1, help="count so many times (default: %(default)s)")
    parser.add_argument("--by-function", action="store_true", help="show where they go; wants a binary with symbols")
    parser.add_argument("--update", action="store_true", help=f"write the figure to tests/bench/{COMMITTED.name}")
    arguments = parser.parse_args()
    arguments.build = arguments.build or pathlib.Path(arguments.binary).resolve().parent.name
    return arguments
