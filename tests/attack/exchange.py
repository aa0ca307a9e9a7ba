"""Sends one stream over one connection and has each answer judged."""

import asyncio
import re

from caller import BadAnswer, Caller

# Longer than anything but a fault takes on a busy machine.
PATIENCE_S = 15
# For bearerd to close by itself what it cannot read on; then the caller ends its side.
SELF_CLOSE_S = 0.2
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Stale(Exception):
    """A kept connection was closed before it was used again, as it may be at any time."""


async def exchange(judge, address, stream, pieces, connection=None):
    """Gives the connection back if it can be used for another stream, else None."""
    since = len(judge.findings)
    reading, expectations = judge.read(stream)
    while True:
        is_reused = connection is not None
        if not is_reused:
            connection = await Caller.connect(address)
        usable = False
        try:
            usable = await talk(judge, connection, stream, pieces, reading, expectations, is_reused)
        except Stale:
            judge.counts["stale"] += 1
            connection.close()
            connection = None
            continue
        except BadAnswer as bad:
            if not stream.lstrip(b"\r\n").startswith(H2_PREFACE):
                judge.find("no HTTP/1.1 answer came back", stream, str(bad))
        except TimeoutError:
            judge.find("neither an answer nor the end came", stream, repr(connection.held[:200]))
        judge.forget(expectations)
        judge.name_rule(stream, reading, since)
        if usable and not connection.ended:
            return connection
        connection.close()
        return None


async def talk(judge, connection, stream, pieces, reading, expectations, is_reused):
    await connection.send(pieces)
    for index, (request, expected) in enumerate(zip(reading.requests, expectations)):
        answer = await connection.take(request.method, PATIENCE_S)
        if answer is None:
            if is_reused and index == 0 and (expected is None or expected.marker is None):
                raise Stale
            if all(one is not None for one in expectations[: index + 1]):
                judge.find("a good request got no answer", stream, f"request {index}")
            elif reading.ends == "fault" and not is_reused and all(one is not None for one in expectations[:index]):
                judge.find("refused without a word", stream, f"request {index}")
            return False
        judge.answered(stream, expected, answer)
        if answer.is_last:
            return await leave(judge, connection, stream)
    if reading.ends == "clean" and not (reading.requests and reading.requests[-1].is_last):
        return True
    if reading.ends == "incomplete":
        connection.finish_sending()
    return await leave(judge, connection, stream)


async def leave(judge, connection, stream):
    """Only refusals, or nothing, may follow. To which methods they would answer is not known, and so not where their
    bodies are: they are looked at as bytes."""
    rest = await connection.take_rest(SELF_CLOSE_S)
    if rest is None:
        judge.counts["not closed by itself"] += 1
        connection.finish_sending()
        rest = await connection.take_rest(PATIENCE_S)
        if rest is None:
            raise TimeoutError
    for status in re.findall(rb"HTTP/1\.[01] ([2-9][0-9]{2}) ", rest):
        kind = {b"4": "refused", b"5": "refused"}.get(status[:1], "accepted wrongly:")
        judge.counts[f"{kind} {status.decode()}"] += 1
        if status >= b"5":
            judge.find(f"a hostile request was answered {status.decode()}", stream, repr(rest[:300]))
        elif status < b"4":
            judge.find("accepted what must be refused", stream, repr(rest[:300]))
    if rest.count(b"\r\nbearerd-error: ") < len(re.findall(rb"HTTP/1\.[01] [45][0-9]{2} ", rest)):
        judge.find("an error that is not bearerd's", stream, repr(rest[:300]))
    if rest and not rest.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")):
        raise BadAnswer(repr(rest[:200]))
    return False


def cut(stream, random, places):
    """The stream in pieces, cut at so many random places."""
    if places <= 0 or len(stream) < 2:
        return [stream]
    at = sorted({random.randrange(1, len(stream)) for _ in range(places)})
    return [stream[begin:end] for begin, end in zip([0, *at], [*at, len(stream)])]


def every_byte(stream):
    return [stream[at : at + 1] for at in range(len(stream))]


async def in_turn(count, work):
    """Runs `work(worker)` for so many workers at once, to the end of all."""
    await asyncio.gather(*(work(worker) for worker in range(count)))
