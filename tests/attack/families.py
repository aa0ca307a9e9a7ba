"""The grammars of the API families, written from the contract and not from bearerd's code: which paths may pass."""

import re

TABLE = rb"[A-Za-z0-9_]{1,80}"
SYS_ID = rb"[A-Za-z0-9_-]{1,32}"
CONNECTION = rb"[A-Za-z0-9_-]{1,63}"
VERSION = rb"(?:/v[12])?"
# Of a family that is opened by its prefix alone: nothing that is encoded, and no dot at an end.
SEGMENT = rb"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"

NAMED = {
    "table": rb"/api/now%b/table/%b(?:/%b)?" % (VERSION, TABLE, SYS_ID),
    "stats": rb"/api/now%b/stats/%b" % (VERSION, TABLE),
    "attachment": rb"/api/now%b/attachment(?:/file|/upload|/%b(?:/file)?)?" % (VERSION, SYS_ID),
    "import": rb"/api/now%b/import/%b(?:/insertMultiple|/%b)?" % (VERSION, TABLE, SYS_ID),
}


def grammar(name):
    """`now/NAME` is a prefix under /api/now, another name a scope."""
    if name in NAMED:
        return NAMED[name]
    if name.startswith("now/"):
        return rb"/api/now%b/%b(?:/%b)*" % (VERSION, name.removeprefix("now/").encode(), SEGMENT)
    return rb"/api/%b(?:/%b)*" % (name.encode(), SEGMENT)


def opened(names):
    """Two tests of a path: as callers may send it, and as the instance may receive it."""
    at_instance = b"|".join(b"(?:" + grammar(name) + b")" for name in names)
    sent = re.compile(rb"(?:/c/%b)?(?:%b)" % (CONNECTION, at_instance))
    received = re.compile(at_instance)
    return (lambda path: sent.fullmatch(path) is not None), (lambda path: received.fullmatch(path) is not None)


def at_instance(target):
    """What a caller's target is at the instance: without the connection."""
    return re.sub(rb"^/c/%b(?=/)" % CONNECTION, b"", target)
