"""The machine: what must be installed, free ports, limits, and what it is called in a report."""

import contextlib
import datetime
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator

from . import BenchError

# Debian's package for each command.
PACKAGES = {
    "haproxy": "haproxy",
    "nginx": "nginx-light",
    "openssl": "openssl",
    "strace": "strace",
    "valgrind": "valgrind",
    "wrk": "wrk",
}
# Two proxies' sides of 1,000 connections, and what they keep idle, fit in here.
OPEN_FILES_MIN = 4096


def need(*commands: str) -> None:
    """Ends with the line that installs what is missing."""
    # Debian keeps daemons where a user's PATH does not look.
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    missing = sorted({PACKAGES[command] for command in commands if shutil.which(command) is None})
    if missing:
        raise BenchError(f"this needs what is not installed: apt-get install {' '.join(missing)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES_MIN:
        raise BenchError(f"a process may open {hard} files here, {OPEN_FILES_MIN} are needed: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def binary(path: str) -> pathlib.Path:
    """The bearerd to measure."""
    found = pathlib.Path(path).resolve()
    if not found.is_file() or not os.access(found, os.X_OK):
        raise BenchError(f"{path} is no program; build one: cargo build --locked --profile dist --package bearerd")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    """A folder that is gone afterwards, also when the run is ended by a signal."""

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    with tempfile.TemporaryDirectory(prefix="bearerd-bench-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # workers of nginx may run as another user
        yield pathlib.Path(folder)


def description() -> dict:
    """What a figure depends on, for whoever reads it later."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cpu": model[1].strip() if model else os.uname().machine,
        "cores": cores,
        "kernel": os.uname().release,
        "nginx": version("nginx", "-v"),
        "haproxy": version("haproxy", "-v"),
    }


def version(*command: str) -> str:
    """The first number with dots that a program says of itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "not installed"
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else "unknown"
