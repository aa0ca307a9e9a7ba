"""Processes that are measured: started, watched through /proc, and stopped whatever happens."""

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from . import BenchError

#: What clock_getcpuclockid(3) makes of a process id: /proc/PID/stat has the same time, but in steps of 10 ms.
CPU_CLOCK_OF_PROCESS = 2
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
#: A daemon under valgrind takes a while to write down what it counted.
STOP_WAIT_S = 30.0
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Process:
    """One program with all its processes and threads."""

    def __init__(self, name: str, popen: subprocess.Popen, log: pathlib.Path):
        self.name = name
        self.pid = popen.pid
        self._popen = popen
        self._log = log

    def pids(self) -> list[int]:
        """The process and all beneath it."""
        return list(_family(self.pid))

    def cpu_s(self) -> float:
        """User and system time so far, of ended threads too."""
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += time.clock_gettime(~pid << 3 | CPU_CLOCK_OF_PROCESS)
        return total

    def system_s(self) -> float:
        """The kernel's share of it, in steps of a clock tick."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                ticks += int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[12])
        return ticks / TICKS_PER_SECOND

    def rss_bytes(self) -> int:
        """Resident now."""
        return self._status("VmRSS")

    def peak_rss_bytes(self) -> int:
        """Most that was ever resident, or since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """The peak begins anew. Where this is not allowed, the old one stays: figures are too high, never too low."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _status(self, field: str) -> int:
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
                found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
                total += int(found[1]) * 1024 if found else 0
        return total

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """It still runs."""
        if self._popen.poll() is not None:
            raise BenchError(f"{self.name} ended with {self._popen.returncode}:\n{self.log()[-2000:]}")

    def wait_for(self, ready: Callable[[], bool], what: str, wait_max_s: float = 20.0) -> None:
        """Until `ready` says so; fails at once if the process ends."""
        deadline = time.monotonic() + wait_max_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name}: {what} took longer than {wait_max_s:.0f} s:\n{self.log()[-2000:]}")
            time.sleep(0.02)

    def wait_listening(self, port: int, wait_max_s: float = 20.0) -> None:
        """Until somebody accepts at the port."""
        self.wait_for(lambda: _accepts(port), f"listening on port {port}", wait_max_s)

    def stop(self, wait_max_s: float = STOP_WAIT_S) -> None:
        """SIGTERM, and SIGKILL to what is left of it."""
        pids = self.pids()
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(wait_max_s)
                return
            except subprocess.TimeoutExpired:
                pass
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if pid != self.pid or self._popen.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        self._popen.wait()


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], folder: pathlib.Path, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """The program for the time of the block; what it prints goes to a file in `folder`."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            # Ctrl-C is ours: we stop them in order.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    process = Process(name, popen, log)
    try:
        yield process
    finally:
        process.stop()


def threads(pid: int) -> dict[int, str]:
    """Names of a process's threads by their ids."""
    tasks = pathlib.Path(f"/proc/{pid}/task")
    return {int(task.name): (task / "comm").read_text().strip() for task in sorted(tasks.iterdir())}


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from _family(int(child))


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
