"""What the programs have in common: arguments, the origin, waiting until the way is open, and the report."""

import argparse
import asyncio
import json
import resource
import sys
import time

import h2
import tls
from caller import Caller
from families import opened
from judge import Judge
from origin import Origin


def arguments(description, **defaults):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--proxy", required=True, metavar="HOST:PORT", help="bearerd's proxy door")
    parser.add_argument("--origin", required=True, metavar="HOST:PORT", help="where to listen as the instance")
    parser.add_argument("--key", required=True, help="a caller key that may do everything in the opened families")
    parser.add_argument("--token", required=True, help="the access token that bearerd lends")
    parser.add_argument("--tls-authority", metavar="FILE", help="the proxy door speaks TLS, with a certificate of this authority")
    parser.add_argument("--families", default="table", help="the opened families: a list parted by commas")
    for name, (default, text) in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=text)
    given = parser.parse_args()
    given.door = given.proxy = given.proxy_h2 = address(given.proxy)
    given.origin = address(given.origin)
    given.families = given.families.split(",")
    return given


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


async def find_door(given):
    """Over TLS, HTTP/1.1 and HTTP/2 are agreed on in the handshake: each is a way of its own to the door."""
    if given.tls_authority:
        given.proxy = await tls.Way(given.door, given.tls_authority, "http/1.1").start()
        given.proxy_h2 = await tls.Way(given.door, given.tls_authority, "h2").start()


async def start(given):
    """An origin that listens, a judge of what happens, and a way between them that is open."""
    await find_door(given)
    origin = Origin(given.token.encode())
    judge = Judge(origin, given.key.encode(), *opened(given.families))
    host, port = await origin.start(*given.origin)
    judge.origin_host = f"{host}:{port}".encode()
    await until_open(given.proxy, given.key)
    judge.counts.clear()
    judge.findings.clear()
    return judge


async def until_open(proxy, key, prefix=""):
    """The connections are put in by whoever started this, once the origin listens."""
    deadline = time.monotonic() + 60
    probe = b"GET %b/api/now/table/sys_user HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer %b\r\nConnection: close\r\n\r\n"
    while True:
        answer = None
        try:
            caller = await Caller.connect(proxy)
            await caller.send([probe % (prefix.encode(), key.encode())])
            answer = await caller.take(b"GET", 5)
            caller.close()
        except (OSError, TimeoutError):
            pass
        if answer is not None and answer.status == 200:
            return
        if time.monotonic() > deadline:
            sys.exit(f"the way to the origin did not open: {answer}")
        await asyncio.sleep(0.05)


async def speaks_h2(given):
    """HTTP/2: with prior knowledge in clear text, agreed on over TLS."""
    connection = await h2.Connection.open(given.proxy_h2)
    spoken = await connection.until(lambda: connection.spoke_h2 or connection.ended, 5) and connection.spoke_h2
    connection.close()
    return spoken


def report(judge, begun, **more):
    """Prints the summary; the smallest finding with its exact bytes. Exits 1 if there is one."""
    by_kind = {}
    for finding in judge.findings:
        kind = f"{finding.what}: {finding.rule}" if finding.rule else finding.what
        kept = by_kind.get(kind)
        if kept is None or len(finding.stream) < len(kept.stream):
            by_kind[kind] = finding
    summary = {
        **more,
        "counts": dict(sorted(judge.counts.items())),
        "findings": {
            kind: {"stream": repr(finding.stream), "seen": finding.seen} for kind, finding in by_kind.items()
        },
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(summary))
    if by_kind:
        smallest = min(by_kind.values(), key=lambda finding: len(finding.stream))
        print(f"smallest finding: {smallest.what}\n{smallest.stream!r}\n{smallest.seen}", file=sys.stderr)
        sys.exit(1)


def run(main):
    """Runs a program, with as many sockets as it may have."""
    sys.stdout.reconfigure(line_buffering=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main)
