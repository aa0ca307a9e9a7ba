"""The command `tests/bench/run`."""

import argparse
import json
import pathlib
import shlex
import sys

from . import BenchError, deployment, machine, memory, promises, rates, report, rounds, turns
from .deployment import Bench
from .load import COUNTED_BY_BYTES
from .origin import SIZES
from .rounds import Cell

PARTS = ("cpu", "matrix", "rate", "workers", "memory")
CALLERS = ("clear", "tls")
CONNECTIONS = (1, 64, 1000)
#: The yardstick of the project: what is measured when nothing is chosen.
HEADLINE = Cell("1k", "clear", 64)


def main() -> int:
    arguments = parse()
    try:
        with machine.scratch() as scratch:
            machine.need("nginx", "haproxy", "wrk", "openssl")
            results = measure(arguments, deployment.prepare(machine.binary(arguments.binary), scratch))
    except BenchError as error:
        print(f"tests/bench/run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as signal:
        print(f"tests/bench/run: stopped {signal}".rstrip(), file=sys.stderr)
        return 130
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report.document(results, arguments.markdown))
    judgements = promises.judged(results)
    if judgements:
        made = promises.table(judgements)
        print("\n" + (made.markdown() if arguments.markdown else made.text()))
    if arguments.judge and not all(each.holds for each in judgements):
        print("tests/bench/run: a promise is broken, and --judge was given", file=sys.stderr)
        return 1
    if arguments.require_all and results["skipped"]:
        print("tests/bench/run: not everything could be measured, and --require-all was given", file=sys.stderr)
        return 1
    return 0


def measure(arguments: argparse.Namespace, bench: Bench) -> dict:
    """All that was chosen, in the shape of the JSON file."""
    results: dict = {
        "command": shlex.join(["tests/bench/run", *shown(sys.argv[1:])]),
        "machine": machine.description(),
        "version": f"bearerd {machine.version(str(bench.binary), '--version')}",
        "keeps_records": bench.keeps_records,
        "skipped": [],
    }
    if not bench.keeps_records:
        results["skipped"].append("access records: this binary has no settings [access]")
    chosen = cells(arguments)
    if "cpu" in arguments.parts:
        small = [cell for cell in chosen if SIZES[cell.size] < COUNTED_BY_BYTES]
        results["turns"] = [turns.run(bench, cell, arguments.laps) for cell in small]
    if "matrix" in arguments.parts:
        results["cells"] = [rounds.run(bench, cell, arguments.rounds, arguments.seconds) for cell in chosen]
    if {"rate", "workers"} & set(arguments.parts):
        rate = arguments.rate or half_capacity(arguments, bench, results)
        if "rate" in arguments.parts:
            results["rate"] = rates.latencies(bench, rate, arguments.rounds, arguments.seconds)
        if "workers" in arguments.parts:
            results["workers"] = rates.workers(bench, rate, arguments.rounds, arguments.seconds)
    if "memory" in arguments.parts:
        print("memory", file=sys.stderr, flush=True)
        results["idle_connection_bytes"] = memory.idle_connections(bench)
        results["attachments"] = memory.attachments(bench)
        if "skipped" in results["attachments"]:
            results["skipped"].append(f"attachments: {results['attachments']['skipped']}")
    return results


def half_capacity(arguments: argparse.Namespace, bench: Bench, results: dict) -> int:
    """Half of what the slowest proxy does at the headline, measured first where it was not."""
    measured = [cell for cell in results.get("cells", []) if cell["title"] == HEADLINE.title()]
    cell = measured[0] if measured else rounds.run(bench, HEADLINE, 1, arguments.seconds)
    return int(rounds.capacity(cell) * rates.LOAD_SHARE)


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """The chosen part of the matrix."""
    if arguments.all:
        sizes, callers, connections = tuple(SIZES), CALLERS, CONNECTIONS
    else:
        sizes, callers, connections = arguments.size, arguments.callers, arguments.connections
    return [Cell(size, caller, count) for size in sizes for caller in callers for count in connections]


def shown(arguments: list[str]) -> list[str]:
    """The command line without folders, which say nothing to whoever reads it elsewhere."""
    return [pathlib.Path(each).name if "/" in each else each for each in arguments]


def listed(kind, allowed):
    """A type for argparse: names parted by commas."""

    def parse(text: str) -> tuple:
        try:
            values = tuple(kind(each) for each in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        unknown = [str(value) for value in values if allowed and value not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(map(str, allowed))}")
        return values

    return parse


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run",
        description="Measures bearerd beside nginx and HAProxy, which do the same work, on this machine. Without a "
        "choice: 1 KiB, callers in clear text, 64 connections: CPU in short turns, rounds; then latency at a fixed rate, two workers, and memory.",
        epilog="docs/performance.md says what each figure means. Leave the machine alone while it runs.",
    )
    parser.add_argument("--binary", default="target/dist/bearerd", help="what to measure (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=4, help="length of a proxy's turn (default: %(default)s)")
    parser.add_argument("--laps", type=positive, default=300, help="short turns for CPU (default: %(default)s)")
    parser.add_argument("--size", type=listed(str, tuple(SIZES)), default=("1k",), help="answers: 1k,64k,10m")
    parser.add_argument("--callers", type=listed(str, CALLERS), default=("clear",), help="clear,tls")
    parser.add_argument("--connections", type=listed(positive, ()), default=(64,), help="such as 1,64,1000")
    parser.add_argument("--all", action="store_true", help="every size, callers and connections: more than an hour")
    parser.add_argument("--parts", type=listed(str, PARTS), default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rate", type=positive, help="requests/s there (default: half the slowest's capacity)")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it work, no figures")
    parser.add_argument("--require-all", action="store_true", help="fail where the binary lacks what is measured")
    parser.add_argument("--judge", action="store_true", help="fail where a promise is broken that was measured")
    parser.add_argument("--markdown", action="store_true", help="tables for docs/performance.md")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="every round's figures")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = arguments.seconds = 1
        arguments.laps = 5
    return arguments
