"""The grammars of the API families, written from the contract and not from bearerd's code: which paths may pass."""

import re

TABLE = rb"[A-Za-z0-9_]{1,80}"
SYS_ID = rb"[A-Za-z0-9_-]{1,32}"
CONNECTION = rb"[A-Za-z0-9_-]{1,63}"
VERSION = rb"(?:/v[12])?"

FAMILIES = {
    "table": rb"/api/now%b/table/%b(?:/%b)?" % (VERSION, TABLE, SYS_ID),
}


def opened(names):
    """Two tests of a path: as callers may send it, and as the instance may receive it."""
    at_instance = b"|".join(b"(?:" + FAMILIES[name] + b")" for name in names)
    sent = re.compile(rb"(?:/c/%b)?(?:%b)" % (CONNECTION, at_instance))
    received = re.compile(at_instance)
    return (lambda path: sent.fullmatch(path) is not None), (lambda path: received.fullmatch(path) is not None)


def at_instance(target):
    """What a caller's target is at the instance: without the connection."""
    return re.sub(rb"^/c/%b(?=/)" % CONNECTION, b"", target)
