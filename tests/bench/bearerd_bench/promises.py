"""What docs/performance.md promises, judged by the figures of one run. What a run did not measure is not judged."""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from .deployment import PAIR
from .report import KIB, MIB, Table, median_interval

YARDSTICK, AGAIN = PAIR
OURS = "bearerd"
#: HAProxy's CPU per request over bearerd's, at 1 KiB in turns; and the goal.
CHEAPER_BY, GOAL = 1.05, 1.15
#: bearerd's CPU per request over the better peer's, for larger answers.
LARGE_AT_MOST = 1.10
#: bearerd's p99 over HAProxy's at a fixed rate; what the pair of HAProxies differs by comes on top.
P99_AT_MOST = 1.2
#: CPU per request of two workers over that of one.
WORKERS_AT_MOST = 1.1
IDLE_KIB, ATTACHMENT_MIB = 64, 8


@dataclasses.dataclass(frozen=True)
class Judged:
    promise: str
    bound: str
    seen: str
    holds: bool


def judged(results: dict) -> list[Judged]:
    return [*_turns(results), *_large(results), *_rate(results), *_workers(results), *_memory(results)]


def table(judgements: Sequence[Judged]) -> Table:
    rows = [[each.promise, each.bound, each.seen, "holds" if each.holds else "BROKEN"] for each in judgements]
    return Table("Promises", ["promise", "bound", "seen", ""], rows)


def _turns(results: dict) -> Iterator[Judged]:
    for measured in results.get("turns", []):
        turns = measured["turns"]
        ratios, noise = (
            sorted(a["cpu_us"] / b["cpu_us"] for a, b in zip(turns[YARDSTICK], turns[name], strict=True))
            for name in (OURS, AGAIN)
        )
        ratio, (low, high), (_, pair) = statistics.median(ratios), median_interval(ratios), median_interval(noise)
        yield Judged(
            f"CPU, {measured['title']}: HAProxy / bearerd",
            f"≥ {CHEAPER_BY:.2f} (goal {GOAL:.2f}), and above the pair's {pair:.3f}",
            f"{ratio:.3f} ({low:.3f}–{high:.3f})",
            ratio >= CHEAPER_BY and low > pair,
        )


def _large(results: dict) -> Iterator[Judged]:
    for cell in results.get("cells", []):
        if cell["size"] == "1k":
            continue
        rounds = cell["rounds"]
        peers = [name for name in rounds if name not in (OURS, AGAIN)]
        best = min(peers, key=lambda name: statistics.median(each["cpu_us"] for each in rounds[name]))
        ratios = [a["cpu_us"] / b["cpu_us"] for a, b in zip(rounds[OURS], rounds[best], strict=True)]
        ratio = statistics.median(ratios)
        yield Judged(
            f"CPU, {cell['title']}: bearerd / {best}",
            f"≤ {LARGE_AT_MOST:.2f}",
            f"{ratio:.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
            ratio <= LARGE_AT_MOST,
        )


def _rate(results: dict) -> Iterator[Judged]:
    if not (rate := results.get("rate")):
        return
    p99 = {name: [each["p99_us"] for each in seen] for name, seen in rate["rounds"].items()}
    spread = statistics.median(abs(a - b) for a, b in zip(p99[YARDSTICK], p99[AGAIN], strict=True))
    bound = P99_AT_MOST * statistics.median(p99[YARDSTICK]) + spread
    seen = statistics.median(p99[OURS])
    yield Judged(f"p99 at {rate['rate']} requests/s", f"≤ {bound:.0f} µs", f"{seen:.0f} µs", seen <= bound)


def _workers(results: dict) -> Iterator[Judged]:
    if not (workers := results.get("workers")):
        return
    pairs = zip(workers["rounds"]["two workers"], workers["rounds"]["one worker"], strict=True)
    ratios = [two["cpu_us"] / one["cpu_us"] for two, one in pairs]
    ratio = statistics.median(ratios)
    seen = f"{ratio:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    yield Judged("CPU: two workers / one", f"≤ {WORKERS_AT_MOST}", seen, ratio <= WORKERS_AT_MOST)


def _memory(results: dict) -> Iterator[Judged]:
    if idle := results.get("idle_connection_bytes"):
        kib = idle[OURS] / KIB
        yield Judged("memory of an idle caller connection", f"≤ {IDLE_KIB} KiB", f"{kib:.1f} KiB", kib <= IDLE_KIB)
    if (attachments := results.get("attachments")) and "skipped" not in attachments:
        for way in ("download", "upload"):
            mib = attachments[f"{way}_bytes"] / MIB
            yield Judged(f"memory of 1 GiB, {way}", f"≤ {ATTACHMENT_MIB} MiB", f"{mib:.1f} MiB", mib <= ATTACHMENT_MIB)
