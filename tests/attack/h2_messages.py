"""HTTP/2 messages and frames that must be refused (P-04, P-15, P-16): a reset stream, a 4xx or a closed connection,
and nothing at the origin. Good ones among them must pass, or a door that refuses everything would pass all.
"""

import time

import h2
import program

TARGET = b"/api/now/table/incident?n=TAG"
GOOD, MAY = "good", "may"  # must pass; may pass or not, but as one clean request
PSEUDO = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"b.example"), (b":path", TARGET)]
KEY = (b"authorization", b"Bearer KEY")
CASES = []


def case(name, rule, fields, *data, trailers=None):
    """`data`: DATA frames; the last frame of all ends the stream."""
    CASES.append((name, rule, fields, data, trailers))


def get(*fields):
    return [*PSEUDO, KEY, *fields]


def post(*fields, method=b"POST"):
    return [(b":method", method), *PSEUDO[1:], KEY, *fields]


def without(name):
    return [field for field in get() if field[0] != name]


def instead(name, value):
    return [(held, value if held == name else kept) for held, kept in get()]


case("get", GOOD, get())
case("head", GOOD, instead(b":method", b"HEAD"))
case("post", GOOD, post(), b"abc")
case("post in pieces with its length", GOOD, post((b"content-length", b"6")), b"abc", b"", b"def")
case("post of nothing", GOOD, post())
case("empty data ends it", GOOD, post(), b"abc", b"")
case("trailers", GOOD, post(), b"abc", trailers=[(b"x-t", b"1"), (b"authorization", b"Bearer no")])
case("cookie crumbs", GOOD, get((b"cookie", b"a=b"), (b"cookie", b"c=d")))
case("te: trailers", GOOD, get((b"te", b"trailers")))
case("x-forwarded and others", GOOD, get((b"x-forwarded-host", b"evil"), (b"x-http-method-override", b"DELETE"), (b"sec-fetch-site", b"none")))
case("obs-text in a value", MAY, get((b"x-a", b"caf\xe9")))
case("authority and the same host", MAY, get((b"host", b"b.example")))
case("host in place of authority", MAY, [*without(b":authority"), (b"host", b"b.example")])
case("scheme https on clear text", MAY, instead(b":scheme", b"https"))

for title, name in {
    "capitals": b"X-A", "one capital": b"x-A", "capital in authorization": b"Authorization", "empty": b"", "space": b"x a", "trailing space": b"x-a ", "colon": b"x:a", "leading colon": b":x-a", "CR": b"x\ra", "LF": b"x\na", "CR LF": b"x: b\r\ny",
    "NUL": b"x\x00a", "tab": b"x\ta", "delete": b"x\x7fa", "obs-text": b"x\xe9", "underscore": b"x_a", "length with underscore": b"content_length", "parenthesis": b"x(a", "smuggled request": b"a: b\r\n\r\nget /x http/1.1\r\nx",
    "colon behind": b"transfer-encoding:", "connection-like": b"connection ",
}.items():
    case(f"name: {title}", "field-name", get((name, b"v")))
for title, value in {
    "CR": b"a\rb", "LF": b"a\nb", "CR LF": b"a\r\nb", "injected field": b"a\r\nTransfer-Encoding: chunked", "injected request": b"a\r\n\r\nGET /x HTTP/1.1\r\nHost: b", "NUL": b"a\x00b", "leading space": b" a", "trailing space": b"a ", "leading tab": b"\ta", "trailing CR": b"a\r",
    "LF alone": b"\n", "control": b"a\x01b", "delete": b"a\x7fb", "escape": b"a\x1bb", "vertical tab": b"a\x0bb",
}.items():
    case(f"value: {title}", "field-value", get((b"x-a", value)))
for name, value in [
    (b"connection", b"close"), (b"connection", b"x-a"), (b"keep-alive", b"timeout=5"), (b"proxy-connection", b"keep-alive"), (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity"), (b"upgrade", b"h2c"), (b"upgrade", b"websocket"),
    (b"te", b"gzip"), (b"te", b"trailers, deflate"), (b"te", b""), (b"te", b"chunked"),
]:
    case(f"connection-specific: {name.decode()}: {value.decode()}", "RFC 9113 §8.2.2", get((name, value)))
case("transfer-encoding with data", "RFC 9113 §8.2.2", post((b"transfer-encoding", b"chunked")), b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n")
for name, value in PSEUDO:
    case(f"pseudo: {name.decode()} twice", "RFC 9113 §8.3", [*PSEUDO, (name, value), KEY])
    case(f"pseudo: {name.decode()} twice, different", "RFC 9113 §8.3", [*PSEUDO, (name, value + b"x"), KEY])
    case(f"pseudo: {name.decode()} behind a field", "RFC 9113 §8.3", [*[field for field in PSEUDO if field[0] != name], KEY, (name, value)])
    case(f"pseudo: {name.decode()} in trailers", "RFC 9113 §8.1", post(), b"abc", trailers=[(name, value)])
    case(f"pseudo: {name.decode()} in capitals", "field-name", [*[field for field in PSEUDO if field[0] != name], (name.upper(), value), KEY])
for name in [b":method", b":scheme", b":path"]:
    case(f"pseudo: no {name.decode()}", "RFC 9113 §8.3.1", without(name))
case("pseudo: neither authority nor host", "host-once", without(b":authority"))
case("pseudo: none at all", "RFC 9113 §8.3.1", [KEY])
for name in [b":status", b":foo", b":", b":protocol", b":Path"]:
    case(f"pseudo: {name.decode()}", "RFC 9113 §8.3", [*PSEUDO, (name, b"200"), KEY])
for title, path in {
    "empty": b"", "no slash": b"api/now/table/incident", "asterisk": b"*", "absolute": b"http://b.example" + TARGET, "other host": b"http://evil" + TARGET, "space": TARGET + b" x", "smuggled": TARGET + b" HTTP/1.1\r\nHost: evil\r\n\r\n", "CR LF": TARGET + b"\r\nX: y", "LF": TARGET + b"\nX: y", "NUL": TARGET + b"\x00",
    "fragment": TARGET + b"#f", "tab": TARGET + b"\tx", "high byte": TARGET + b"\xff", "utf-8 in the query": TARGET + "&q=é".encode(), "delete": TARGET + b"\x7f", "double slash": b"/" + TARGET, "up": b"/api/now/table/../../../login.do", "encoded up": b"/api/now/table/%2e%2e/login.do",
    "backslash": b"\\api\\now\\table\\incident", "login": b"/login.do", "query alone": b"?n=TAG", "long": TARGET + b"&" + b"a" * 9000, "scheme": b"javascript:alert(1)", "at": b"@evil" + TARGET,
}.items():
    case(f"path: {title}", "path", instead(b":path", path))
for title, method in {
    "lower case": b"get", "space": b"GET /x", "smuggled": b"GET /x HTTP/1.1\r\nX: y\r\n\r\nGET", "CR LF": b"GET\r\n", "NUL": b"GET\x00", "empty": b"", "TRACE": b"TRACE", "OPTIONS": b"OPTIONS", "PRI": b"PRI", "TRACK": b"TRACK", "colon": b"GE:T", "obs-text": b"G\xe9T", "leading space": b" GET",
    "PROPFIND": b"PROPFIND", "long": b"G" * 3000,
}.items():
    case(f"method: {title}", "method", instead(b":method", method))
case("connect", "method", [(b":method", b"CONNECT"), (b":authority", b"b.example:443"), KEY])
case("connect with path", "method", instead(b":method", b"CONNECT"))
case("connect with data", "method", [(b":method", b"CONNECT"), (b":authority", b"b.example:443"), KEY], b"GET / HTTP/1.1\r\n\r\n")
case("extended connect", "method", [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *PSEUDO[1:], KEY])
case("extended connect on get", "upgrade", [*PSEUDO, (b":protocol", b"websocket"), KEY])
for title, scheme in {"empty": b"", "ftp": b"ftp", "javascript": b"javascript", "CR LF": b"http\r\nx: y", "with host": b"http://evil/?", "space": b"http x", "slash": b"http/", "NUL": b"http\x00", "number": b"1", "capitals": b"HT TP"}.items():
    case(f"scheme: {title}", "RFC 9113 §8.3.1", instead(b":scheme", scheme))
for title, authority in {
    "empty": b"", "user": b"u@b.example", "user and password": b"u:p@b.example", "space": b"b.example c", "path": b"b.example/x", "CR LF": b"b.example\r\nx: y", "NUL": b"b\x00", "list": b"a,b", "port of letters": b"b:http", "query": b"b?x", "fragment": b"b#x", "obs-text": b"b\xe9", "open bracket": b"[::1", "backslash": b"b\\c",
    "scheme": b"http://b.example", "percent": b"b%2e", "empty port": b"b:",
}.items():
    case(f"authority: {title}", "host", instead(b":authority", authority))
case("authority and another host", "RFC 9113 §8.3.1", get((b"host", b"evil.example")))
case("authority and an empty host", "RFC 9113 §8.3.1", get((b"host", b"")))
case("authority and two hosts", "host-once", get((b"host", b"b.example"), (b"host", b"b.example")))
case("two hosts, no authority", "host-once", [*without(b":authority"), (b"host", b"b.example"), (b"host", b"evil.example")])
case("length: more than there is", "RFC 9113 §8.1.1", post((b"content-length", b"10")), b"abc")
case("length: less than there is", "RFC 9113 §8.1.1", post((b"content-length", b"2")), b"abc")
case("length: zero with data", "RFC 9113 §8.1.1", post((b"content-length", b"0")), b"GET / HTTP/1.1\r\n\r\n")
case("length: some without data", "RFC 9113 §8.1.1", post((b"content-length", b"3")))
case("length: some without data on get", "RFC 9113 §8.1.1", get((b"content-length", b"3")))
case("length: twice", "length-once", post((b"content-length", b"3"), (b"content-length", b"3")), b"abc")
case("length: twice, different", "length-once", post((b"content-length", b"3"), (b"content-length", b"4")), b"abc")
for value in [b"+3", b"-3", b"0x3", b"3,3", b"", b"x", b"3 3", b"18446744073709551619", b"3;x"]:
    case(f"length: {value.decode()!r}", "length", post((b"content-length", value)), b"abc")
case("get with data", "safe-body", get(), b"abc")
case("head with data", "safe-body", instead(b":method", b"HEAD"), b"abc")
case("expect: other", "expect", post((b"expect", b"200-ok")), b"abc")
case("http2-settings", MAY, get((b"http2-settings", b"AAMAAABkAAQAAP__")))
case("cross-site", "cross-site", get((b"sec-fetch-site", b"cross-site")))
case("no key", "key", PSEUDO)
case("other key", "key", [*PSEUDO, (b"authorization", b"Bearer other")])
case("two keys", "key", get((b"x-api-key", b"other")))
case("trailers with capitals", "field-name", post(), b"abc", trailers=[(b"X-T", b"1")])
case("trailers with CR LF", "field-value", post(), b"abc", trailers=[(b"x-t", b"a\r\nb: c")])
case("trailers that frame", "trailer-framing", post(), b"abc", trailers=[(b"transfer-encoding", b"chunked")])
case("101 fields", "field-sizes", get(*((b"x-%d" % n, b"v") for n in range(101))))
case("fields of 70 KiB", "field-sizes", get(*((b"x-%d" % n, b"v" * 1000) for n in range(70))))

# What the HTTP/2 library takes away without a word: the request may come to the origin, but clean of it.
TAKEN_AWAY = {"path: fragment", "length: zero with data"} | {f"pseudo: {name.decode()} in trailers" for name, _ in PSEUDO}
# The head is right and what follows it is not, which a proxy that streams learns too late: the origin may get the head, and
# must see the request end before its end.
SEEN_LATE = {"length: less than there is", "length: more than there is", "trailers that frame", "trailers with capitals", "trailers with CR LF"}
CUT = b"\x00"  # a header block that cannot be decoded


def faults():
    """Sequences of frames that RFC 9113 calls errors: bytes to send behind the preface on a new connection. The first
    request in each is on stream 1 and is not finished unless said so."""
    open_post = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.block(post()))
    whole_get = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, h2.block(get()))
    opened = h2.frame(h2.HEADERS, h2.END_STREAM, 1, h2.block(get()))
    return {
        "data on stream 0": h2.frame(h2.DATA, 0, 0, b"x"),
        "headers on stream 0": h2.frame(h2.HEADERS, 5, 0, h2.block(get())),
        "headers on an even stream": h2.frame(h2.HEADERS, 5, 2, h2.block(get())),
        "data on an idle stream": h2.frame(h2.DATA, 0, 5, b"x"),
        "reset of an idle stream": h2.frame(h2.RST_STREAM, 0, 5, bytes(4)),
        "window update of an idle stream": h2.frame(h2.WINDOW_UPDATE, 0, 5, b"\0\0\0\1"),
        "continuation alone": h2.frame(h2.CONTINUATION, 4, 1, h2.block(get())),
        "another frame inside a header block": opened + h2.frame(h2.PING, 0, 0, bytes(8)),
        "another stream inside a header block": opened + h2.frame(h2.CONTINUATION, 4, 3, b""),
        "push promise from a client": open_post + h2.frame(h2.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + h2.block(get())),
        "settings on a stream": h2.frame(h2.SETTINGS, 0, 1),
        "settings of 5 bytes": h2.frame(h2.SETTINGS, 0, 0, bytes(5)),
        "settings ack with content": h2.frame(h2.SETTINGS, 1, 0, bytes(6)),
        "push enabled with 2": h2.settings((h2.ENABLE_PUSH, 2)),
        "window beyond 2^31": h2.settings((h2.INITIAL_WINDOW_SIZE, 1 << 31)),
        "frame size too small": h2.settings((h2.MAX_FRAME_SIZE, 100)),
        "frame size too large": h2.settings((h2.MAX_FRAME_SIZE, 1 << 24)),
        "ping of 7 bytes": h2.frame(h2.PING, 0, 0, bytes(7)),
        "ping on a stream": h2.frame(h2.PING, 0, 1, bytes(8)),
        "goaway on a stream": h2.frame(h2.GOAWAY, 0, 1, bytes(8)),
        "window update of zero on the connection": h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(4)),
        "window update of zero on a stream": open_post + h2.frame(h2.WINDOW_UPDATE, 0, 1, bytes(4)),
        "window overflow on the connection": h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
        "window overflow on a stream": open_post + h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2,
        "window update of 3 bytes": h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(3)),
        "reset of 3 bytes": open_post + h2.frame(h2.RST_STREAM, 0, 1, bytes(3)),
        "priority of 4 bytes": open_post + h2.frame(h2.PRIORITY, 0, 1, bytes(4)),
        "frame larger than allowed": open_post + h2.frame(h2.DATA, 0, 1, bytes(16_385)),
        "padding longer than the frame": open_post + h2.frame(h2.DATA, h2.PADDED, 1, b"\xff\0\0"),
        "headers padding longer than the frame": h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, b"\xff" + h2.block(get())),
        "undecodable header block": h2.frame(h2.HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        "header block cut off": h2.frame(h2.HEADERS, 5, 1, h2.block(get()) + CUT),
        "index 0": h2.frame(h2.HEADERS, 5, 1, b"\x80" + h2.block(get())),
        "index beyond the table": h2.frame(h2.HEADERS, 5, 1, b"\xff\x80\x01" + h2.block(get())),
        "table size beyond the limit": h2.frame(h2.HEADERS, 5, 1, h2.integer(1 << 20, 5, 0x20) + h2.block(get())),
        "bad huffman": h2.frame(h2.HEADERS, 5, 1, h2.block(get()) + b"\x00\x84\xff\xff\xff\xff\x01a"),
        "lower stream after a higher one": h2.frame(h2.HEADERS, 4, 5, h2.block(post())) + h2.frame(h2.HEADERS, 5, 3, h2.block(get())),
        "second headers without end": open_post + h2.frame(h2.HEADERS, 4, 1, h2.block([(b"x-t", b"1")])),
        "data behind the end": whole_get + h2.frame(h2.DATA, 1, 1, b"abc"),
        "stream depends on itself": h2.frame(h2.HEADERS, 0x25, 1, b"\0\0\0\1\0" + h2.block(get())),
    }


# These say nothing wrong about the first request, or only after it was whole: it may have come to the origin.
MAY_COME = {"data behind the end", "stream depends on itself"}


async def main():
    given = program.arguments(__doc__, only=("", "only cases whose name holds this"))
    begun = time.monotonic()
    judge = await program.start(given)
    if not await program.speaks_h2(given):
        judge.find("the proxy door does not speak HTTP/2 by prior knowledge", h2.PREFACE)
        return program.report(judge, begun)
    chosen = [one for one in CASES if given.only in one[0]]
    for number, (name, rule, fields, data, trailers) in enumerate(chosen):
        filled = [fill(field, number, given.key) for field in fields]
        await message(judge, given, name, rule, filled, data, trailers)
    for name, sent in faults().items():
        if given.only in name:
            # With `KEY` as it stands, which is no key: nothing of a broken sequence can pass.
            await sequence(judge, given, name, sent)
    program.report(judge, begun, messages=len(chosen), sequences=len(faults()))


def fill(field, number, key):
    return field[0], field[1].replace(b"TAG", b"h2x%d" % number).replace(b"KEY", key.encode())


async def message(judge, given, name, rule, fields, data, trailers):
    """One request on a connection of its own."""
    shown = repr((fields, data, trailers))[:3000].encode()
    since = len(judge.findings)
    connection = await h2.Connection.open(given.proxy_h2)
    expected = h2.expect(judge, shown, fields, b"".join(data)) if rule in (GOOD, MAY) else None
    sent = dict(fields)
    if name in TAKEN_AWAY:
        clean = [(held, value.split(b"#")[0] if held == b":path" else value) for held, value in fields]
        body = b"" if sent.get(b"content-length") == b"0" else b"".join(data)
        expected = h2.expect(judge, shown, clean, body)
    if name in SEEN_LATE:
        judge.heads[(sent[b":method"], sent[b":path"])] += 1
    status = await h2.exchange(judge, connection, shown, expected, frames(fields, data, trailers))
    if rule == GOOD and (status is None or status >= 400):
        judge.find("a good message did not pass", shown, f"{status} {connection.resets} {connection.goaway}")
    for finding in judge.findings[since:]:
        finding.rule = f"{name} ({rule})"
    connection.close()


def frames(fields, data, trailers):
    """HEADERS with its CONTINUATIONs, DATA, and HEADERS of trailers: each as kind, flags and payload."""
    made = []
    encoded = h2.block(fields)
    pieces = [encoded[at : at + 16_000] for at in range(0, len(encoded), 16_000)]
    ends = h2.END_STREAM if not data and trailers is None else 0
    for index, piece in enumerate(pieces):
        last = h2.END_HEADERS if index == len(pieces) - 1 else 0
        made.append((h2.CONTINUATION, last, piece) if index else (h2.HEADERS, last | ends, piece))
    for index, piece in enumerate(data):
        ends = index == len(data) - 1 and trailers is None
        made.append((h2.DATA, h2.END_STREAM if ends else 0, piece))
    if trailers is not None:
        made.append((h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, h2.block(trailers)))
    return made


async def sequence(judge, given, name, sent):
    """Frames in error: the stream is reset or the connection closed, within seconds."""
    connection = await h2.Connection.open(given.proxy_h2)
    try:
        await connection.send(sent)
    except h2.Ended:
        pass
    refused = await connection.until(lambda: connection.ended or connection.goaway is not None or connection.resets, 3)
    answered = any(connection.status(stream) is not None for stream in connection.answers)
    if not refused and not (name in MAY_COME or answered):
        judge.find(f"an error of frames was passed over [{name}]", sent)
    if any((connection.status(stream) or 400) < 400 for stream in connection.answers):
        judge.find(f"an error of frames was answered with success [{name}]", sent)
    judge.counts["sequences refused"] += bool(refused)
    connection.close()


if __name__ == "__main__":
    program.run(main())
