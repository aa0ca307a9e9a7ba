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
        refused = ours.installation.open_attachments()
        if refused is not None:
            raise BenchError(refused)
        upload_and_be_refused(ours.proxy)


def upload_and_be_refused(proxy: Proxy) -> None:
    """Fails if an upload does not arrive, or if a table is open that no policy opens."""
    upload = f"/api/now/attachment/file?table_name=incident&table_sys_id={'b' * 32}&file_name=x"
    with load.Caller(proxy) as caller:
        proxy.process.wait_for(lambda: caller.post(upload, 1).status == 201, "taking an attachment")
        for _ in range(UPLOADS):
            expect(proxy, caller.post(upload, UPLOAD_BYTES), 201)
        for _ in range(REFUSALS):
            expect(proxy, caller.get("/api/now/table/sys_user"), 403)


def expect(proxy: Proxy, answer: load.Answer, status: int) -> None:
    if answer.status != status:
        raise BenchError(f"{proxy.name} answered {answer.status}, not {status}: {answer.head!r}")
