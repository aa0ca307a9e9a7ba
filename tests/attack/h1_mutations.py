"""Seeded mutations of good and hostile HTTP/1.1 streams (P-01): bytes, lines, numbers, line ends, whole requests behind
each other, cut into packets anywhere. The same seed gives the same streams; each stream has a seed of its own, so that
`--first SEED --count 1` sends one again.
"""

import random
import time

import exchange
import program
from h1_shapes import GOOD, SHAPES, SMALL, filled

# What a mutation puts in: bytes and lines that parsers differ on.
BYTES = [bytes([byte]) for byte in b"\x00\x01\t\n\x0b\x0c\r \"#%&'(),-./0:;<=?@[\\]_{}\x7f\x80\xa0\xff"] + [b"\r\n", b"\n\n", b"\r\r", b"\n\r", b"\r\n ", "é".encode(), b"0", b"A"]
LINES = [
    b"Content-Length: 0", b"Content-Length: 3", b"Content-Length: 5", b"content-length:3", b"Content-Length: +3", b"Content-Length: 0x3", b"Content-Length : 3",
    b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding : chunked", b"Transfer-Encoding: gzip, chunked",
    b" Transfer-Encoding: chunked", b"X-A: b", b" folded", b"\tfolded", b"Host: b.example", b"Host: evil.example", b"Connection: close", b"Connection: keep-alive",
    b"Connection: authorization, host", b"Cookie: a=b", b"X-API-Key: other", b"Expect: 100-continue", b"Upgrade: h2c", b"TE: trailers", b"Trailer: X-T", b"X-Forwarded-Host: evil",
    b"X_A: b", b"GET /x HTTP/1.1", b"0", b"3", b"", b"abc", b"X-T: t",
]
NUMBERS = [b"0", b"1", b"3", b"-1", b"+3", b"00003", b"0x3", b"3;a", b"3 ", b" 3", b"3,3", b"2147483648", b"4294967299", b"9223372036854775808", b"18446744073709551619", b"fffffffffffffff3", b"3.0"]
WORDS = [b"GET", b"HEAD", b"POST", b"PUT", b"get", b"TRACE", b"CONNECT", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"*", b"/", b"//", b"http://b.example/", b"chunked", b"identity", b"close"]


def mutate(stream, dice, streams):
    """Changes one thing."""
    kind = dice.randrange(10)
    if kind == 0:  # a byte is put in
        at = dice.randrange(len(stream) + 1)
        return stream[:at] + dice.choice(BYTES) + stream[at:]
    if kind == 1 and stream:  # a byte becomes another
        at = dice.randrange(len(stream))
        return stream[:at] + dice.choice(BYTES) + stream[at + 1 :]
    if kind == 2 and stream:  # a bit flips
        at = dice.randrange(len(stream))
        return stream[:at] + bytes([stream[at] ^ 1 << dice.randrange(8)]) + stream[at + 1 :]
    if kind == 3 and stream:  # bytes are missing
        at = dice.randrange(len(stream))
        return stream[:at] + stream[at + dice.choice([1, 1, 2, 4, 16]) :]
    if kind == 4:  # a line is put in
        lines = stream.split(b"\r\n")
        lines.insert(dice.randrange(len(lines) + 1), dice.choice(LINES))
        return b"\r\n".join(lines)
    if kind == 5:  # a line is missing, comes twice, or elsewhere
        lines = stream.split(b"\r\n")
        line = lines.pop(dice.randrange(len(lines)))
        for _ in range(dice.randrange(3)):
            lines.insert(dice.randrange(len(lines) + 1), line)
        return b"\r\n".join(lines)
    if kind == 6:  # a number changes
        return replace_match(stream, dice, lambda part: part.isdigit(), NUMBERS)
    if kind == 7:  # a word changes
        return replace_match(stream, dice, bool, WORDS)
    if kind == 8:  # a line ends otherwise
        places = [at for at in range(len(stream) - 1) if stream[at : at + 2] == b"\r\n"]
        if places:
            at = dice.choice(places)
            return stream[:at] + dice.choice([b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n", b"\r\n\r\n", b"", b"\x00\r\n", b"\r\n "]) + stream[at + 2 :]
    other = dice.choice(streams)  # another stream comes before or behind, or goes on from the middle
    return [stream + other, other + stream, stream[: dice.randrange(len(stream) + 1)] + other[dice.randrange(len(other)) :]][dice.randrange(3)]


def replace_match(stream, dice, wanted, choices):
    parts = stream.split(b" ")
    lines = [index for index, part in enumerate(parts) if wanted(part.strip(b"\r\n"))]
    if lines:
        parts[dice.choice(lines)] = dice.choice(choices)
    return b" ".join(parts)


def made(seed, goods, streams):
    """The stream of a seed, in the pieces that it is sent in."""
    dice = random.Random(seed)
    stream = dice.choice(goods if dice.randrange(2) else streams)
    for _ in range(dice.choice([0, 1, 1, 1, 2, 2, 3, 5])):
        stream = mutate(stream, dice, streams)
    return stream, dice


async def main():
    given = program.arguments(
        __doc__,
        count=(20_000, "streams to send"),
        first=(1, "the first seed"),
        workers=(48, "streams at once"),
        seconds=(0, "stop after this time (0: never)"),
    )
    begun = time.monotonic()
    judge = await program.start(given)
    streams = [stream for _, _, stream in SHAPES if len(stream) <= SMALL]
    goods = [stream for _, rule, stream in SHAPES if rule is GOOD]
    goods += [first + second for first in goods[:12] for second in goods[:12]]
    seeds = iter(range(given.first, given.first + given.count))
    key, sent, reused = given.key.encode(), 0, 0

    async def work(_):
        nonlocal sent, reused
        connection = None
        for seed in seeds:
            if given.seconds and time.monotonic() - begun > given.seconds:
                break
            stream, dice = made(seed, goods, streams)
            [stream] = filled([stream], b"%d" % seed, key)
            if connection is not None:
                reused += 1
            before, sent = judge.counts["findings"], sent + 1
            pieces = exchange.cut(stream, dice, dice.choice([0, 0, 0, 1, 2, 5]))
            connection = await exchange.exchange(judge, given.proxy, stream, pieces, connection)
            if judge.counts["findings"] > before:
                for finding in judge.findings[-20:]:
                    if finding.stream == stream and not finding.seen.startswith("seed"):
                        finding.seen = f"seed {seed}: {finding.seen}"
        if connection is not None:
            connection.close()

    await exchange.in_turn(given.workers, work)
    program.report(judge, begun, streams=sent, reused=reused, first=given.first, streams_per_second=round(sent / (time.monotonic() - begun)))


if __name__ == "__main__":
    program.run(main())
