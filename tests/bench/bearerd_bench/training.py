"""The command `tests/bench/train`: what production asks of the data plane, in about its proportions."""

import argparse
import contextlib
import pathlib
import sys

from . import BenchError, deployment, load, machine, origin
from .deployment import Bench
from .origin import SIZES
from .proxy import Proxy

#: Answers by size: most are small.
SECONDS = {"1k": 6, "64k": 2, "10m": 1}
CONNECTIONS = 64
UPLOADS = 50
UPLOAD_BYTES = 256 * 1024
REFUSALS = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/train", description=__doc__)
    parser.add_argument("binary", help="an instrumented bearerd")
    arguments = parser.parse_args()
    try:
        with machine.scratch() as scratch:
            machine.need("nginx", "wrk", "openssl")
            bench = deployment.prepare(machine.binary(arguments.binary), scratch)
            for tls in (False, True):
                train(bench, tls)
    except BenchError as error:
        print(f"tests/bench/train: {error}", file=sys.stderr)
        return 1
    return 0


def train(bench: Bench, tls: bool) -> None:
    """Answers of every size, uploads, and refusals."""
    with contextlib.ExitStack() as held:
        [uploads_port] = machine.free_ports(1)
        held.enter_context(origin.reading_uploads(uploads_port))
        _, ours = held.enter_context(deployment.bearerd_alone(bench, tls=tls, uploads_port=uploads_port))
        for size, seconds in SECONDS.items():
            path = origin.path(size)
            answer = load.check(ours.proxy, path, SIZES[size])
            load.closed_loop(ours.proxy, path, size, answer, CONNECTIONS, seconds)
        without = ours.installation.open_attachments()
        if without:
            raise BenchError(without)
        small_calls(ours.proxy)


def small_calls(proxy: Proxy) -> None:
    path = f"/api/now/attachment/file?table_name=incident&table_sys_id={'b' * 32}&file_name=x"
    with load.Caller(proxy) as caller:
        proxy.process.wait_for(lambda: caller.post(path, 1).status == 201, "taking an attachment")
        for _ in range(UPLOADS):
            caller.post(path, UPLOAD_BYTES)
        for _ in range(REFUSALS):
            caller.get("/api/now/table/sys_user")


