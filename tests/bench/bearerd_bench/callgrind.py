"""What callgrind writes down: instructions by function, a file for each thread."""

import collections
import dataclasses
import pathlib
import re

from . import BenchError

#: `fn=(12) name` gives a name to a number, `fn=(12)` means that name; `cfn=` is the function that is called.
FUNCTION = re.compile(r"(c?)fn=\((\d+)\)(?: (.*))?")
TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Thread:
    number: int
    #: Instructions of each function, without what it called.
    by_function: collections.Counter[str]

    def total(self) -> int:
        return self.by_function.total()


def read(folder: pathlib.Path, prefix: str) -> list[Thread]:
    """Every thread's counts, in the order of their start. They are there once the program has ended."""
    files = sorted(folder.glob(f"{prefix}.*-*"))
    if not files:
        raise BenchError(f"callgrind left no counts in {folder}")
    return [Thread(int(file.name.rsplit("-", 1)[1]), parse(file.read_text(errors="replace"))) for file in files]


def parse(text: str) -> collections.Counter[str]:
    """Adds up the cost lines; the one after `calls=` is the called function's and already counted there.

    The sum must be what the file itself says."""
    names: dict[str, str] = {}
    counts: collections.Counter[str] = collections.Counter()
    current, of_callee = "", False
    for line in text.splitlines():
        if found := FUNCTION.match(line):
            called, number, name = found.groups()
            if name:
                names[number] = name
            if not called:
                current = names[number]
        elif line.startswith("calls="):
            of_callee = True
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            if not of_callee:
                counts[current] += int(line.split()[1])
            of_callee = False
    totals = TOTALS.search(text)
    said = int(totals[1]) if totals else None
    if said != counts.total():
        raise BenchError(f"the functions have {counts.total()} instructions, but callgrind says {said}")
    return counts
