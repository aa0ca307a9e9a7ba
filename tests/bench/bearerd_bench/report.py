"""Tables of what was measured, as text or as Markdown."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from .deployment import PAIR

YARDSTICK, AGAIN = PAIR
#: With fewer there is no interval that holds the median with 95 %.
LAPS_MIN = 6
KIB = 1024
MIB = 1024 * KIB


@dataclasses.dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [f"| {' | '.join(self.columns)} |", f"|---{'|---:' * (len(self.columns) - 1)}|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return f"**{self.title}**\n\n" + "\n".join(lines)

    def text(self) -> str:
        widths = [max(len(row[index]) for row in [self.columns, *self.rows]) for index in range(len(self.columns))]

        def line(row: Sequence[str]) -> str:
            first, *others = (
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            return "  ".join([first, *others]).rstrip()

        return "\n".join([self.title, *(line(row) for row in [self.columns, *self.rows])])


def tables(results: dict) -> list[Table]:
    """Everything that a run measured."""
    made = []
    for measured in results.get("turns", []):
        made += turns_tables(measured)
    for cell in results.get("cells", []):
        made += rounds_tables(cell["title"], cell, cell["peak_rss_mib"])
    if rate := results.get("rate"):
        title = f"1 KiB at a fixed rate of {rate['rate']} requests/s, {rate['connections']} connections"
        made += rounds_tables(title, rate, None)
    if workers := results.get("workers"):
        made.append(workers_table(workers))
    if idle := results.get("idle_connection_bytes"):
        rows = [[name, f"{value / KIB:.1f}"] for name, value in idle.items()]
        made.append(Table("Resident memory per idle caller connection, at 1,000", ["proxy", "KiB"], rows))
    if (attachments := results.get("attachments")) and "skipped" not in attachments:
        rows = [[way, f"{attachments[f'{way}_bytes'] / MIB:.1f}"] for way in ("download", "upload")]
        made.append(Table("What an attachment of 1 GiB adds to resident memory at most", ["direction", "MiB"], rows))
    return made


def turns_tables(measured: dict) -> list[Table]:
    """CPU per request, and how sure the ratios are."""
    turns = measured["turns"]
    laps = len(turns[YARDSTICK])
    title = f"{measured['title']}; {laps} turns of {measured['turn_s'] * 1000:.0f} ms each"
    rows = [
        [name, str(sum(turn["requests"] for turn in seen)), f"{_median(seen, 'cpu_us'):.1f}"]
        + [f"{measured['system_us'][name]:.1f}"]
        for name, seen in turns.items()
    ]
    compared = [
        [f"{YARDSTICK} / {name}" if name != AGAIN else f"{YARDSTICK} / {AGAIN} (noise)", *_certainty(turns, name)]
        for name in turns
        if name != YARDSTICK
    ]
    return [
        Table(f"CPU, {title}", ["proxy", "requests", "CPU µs/request", "of it kernel"], rows),
        Table(
            f"CPU, {title}: ratios of each lap, over 1: it costs less than {YARDSTICK}",
            ["ratio", "median", "95 % interval of the median", "middle half of the laps"],
            compared,
        ),
    ]


def _certainty(turns: dict, name: str) -> list[str]:
    ratios = sorted(a["cpu_us"] / b["cpu_us"] for a, b in zip(turns[YARDSTICK], turns[name], strict=True))
    low, high = median_interval(ratios)
    quarters = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [
        f"{statistics.median(ratios):.3f}",
        f"{low:.3f}–{high:.3f}" if len(ratios) >= LAPS_MIN else "-",
        f"{quarters[0]:.2f}–{quarters[2]:.2f}",
    ]


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Between which of the values, in order, the median lies with 95 %: by ranks, whatever their distribution."""
    count = len(ordered)
    off = 1.96 * math.sqrt(count) / 2
    high = math.ceil(count / 2 + off)
    low = count - 1 - high
    return ordered[max(low, 0)], ordered[min(high, count - 1)]


def rounds_tables(title: str, measured: dict, peaks: dict | None) -> list[Table]:
    """Medians, and the ratios to HAProxy of each round."""
    rounds = measured["rounds"]
    title = f"{title}; {_turns(measured)}"
    columns = ["proxy", "requests/s", "p50 µs", "p99 µs", "CPU µs/request", "of it kernel"]
    columns += ["peak RSS MiB"] if peaks else []
    rows = []
    for name, seen in rounds.items():
        row = [name, f"{_median(seen, 'rps'):.0f}", f"{_median(seen, 'p50_us'):.0f}", f"{_median(seen, 'p99_us'):.0f}"]
        row += [f"{_median(seen, 'cpu_us'):.1f}", f"{_median(seen, 'system_us'):.1f}"]
        rows.append(row + ([f"{peaks[name]:.1f}"] if peaks else []))
    ratios = [
        [f"{YARDSTICK} / {name}" if name != AGAIN else f"{YARDSTICK} / {AGAIN} (noise)"]
        + [_spread(rounds[YARDSTICK], seen, field) for field in ("p50_us", "p99_us", "cpu_us")]
        for name, seen in rounds.items()
        if name != YARDSTICK
    ]
    return [
        Table(f"{title}: medians", columns, rows),
        Table(
            f"{title}: median (least–greatest) of the rounds' ratios, over 1: it costs less than {YARDSTICK}",
            ["ratio", "p50", "p99", "CPU/request"],
            ratios,
        ),
    ]


def workers_table(workers: dict) -> Table:
    one, two = workers["rounds"]["one worker"], workers["rounds"]["two workers"]
    rows = [
        [name, f"{_median(seen, 'cpu_us'):.1f}", f"{_median(seen, 'p99_us'):.0f}"]
        for name, seen in workers["rounds"].items()
    ]
    rows.append(["two / one", _spread(two, one, "cpu_us"), _spread(two, one, "p99_us")])
    title = f"bearerd's workers at {workers['rate']} requests/s; {_turns(workers)}"
    return Table(title, ["workers", "CPU µs/request", "p99 µs"], rows)


def heading(results: dict) -> str:
    """What the figures depend on."""
    machine = results["machine"]
    records = "access records to a file" if results["keeps_records"] else "no access records (this binary has none)"
    return (
        f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}; "
        f"nginx {machine['nginx']}, HAProxy {machine['haproxy']}, {results['version']}; {records}"
    )


def document(results: dict, markdown: bool) -> str:
    """The whole report."""
    style: Callable[[Table], str] = Table.markdown if markdown else Table.text
    command = f"`{results['command']}`" if markdown else results["command"]
    parts: Iterable[str] = [f"{heading(results)}\n{command}", *(style(table) for table in tables(results))]
    notes = [f"Not measured: {note}" for note in results["skipped"]]
    return "\n\n".join([*parts, *notes])


def _turns(measured: dict) -> str:
    count = len(next(iter(measured["rounds"].values())))
    return f"{count} round{'s' if count > 1 else ''} of {measured['seconds']} s"


def _median(seen: Sequence[dict], field: str) -> float:
    return statistics.median(each[field] for each in seen)


def _spread(over: Sequence[dict], under: Sequence[dict], field: str) -> str:
    ratios = [a[field] / b[field] for a, b in zip(over, under, strict=True) if b[field]]
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
