"""Hostile HTTP/1.1 requests, written by hand (P-01 … P-03, P-15, P-16, P-20, P-23).

Each shape names the rule of `strict.py` that it breaks, or says that it is good and must pass. It is sent whole, byte
by byte, behind a good request, and with a good request behind it.
"""

import time

import exchange
import program
import strict

KEY = b"KEY"  # stands for the caller key
TARGET = b"/api/now/table/incident?n=TAG"  # TAG: another one in each stream
GOOD = None


def message(*lines, body=b""):
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def head(*fields, start=b"GET " + TARGET + b" HTTP/1.1", host=b"Host: b.example", key=b"Authorization: Bearer KEY"):
    return [line for line in (start, host, key, *fields) if line is not None]


def get(*fields, body=b"", **parts):
    return message(*head(*fields, **parts), body=body)


def post(*fields, body=b"", method=b"POST", version=b"HTTP/1.1", **parts):
    return message(*head(*fields, start=method + b" " + TARGET + b" " + version, **parts), body=body)


def start(line, **parts):
    return get(start=line, **parts)


CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"


def chunked(body, *fields):
    return post(CHUNKED, *fields, body=body)


SHAPES = []


def shape(name, rule, stream):
    SHAPES.append((name, rule, stream))


def shapes(kind, rule, streams):
    for name, stream in streams.items():
        shape(f"{kind}: {name}", rule, stream)


# What must pass: a door that refuses everything would pass all else.
shapes("good", GOOD, {
    "get": get(),
    "head": get(start=b"HEAD " + TARGET + b" HTTP/1.1"),
    "post with a length": post(b"Content-Length: 3", body=b"abc"),
    "post of nothing": post(b"Content-Length: 0"),
    "post without a length": post(),
    "post in chunks": chunked(CHUNKS),
    "chunk sizes in both cases": chunked(b"a\r\n0123456789\r\nB\r\n0123456789a\r\n00\r\n\r\n"),
    "chunk extensions": chunked(b'3;a;b=c;d="e;\\"f"\r\nabc\r\n0;x\r\n\r\n'),
    "trailers": chunked(b"3\r\nabc\r\n0\r\nX-Trailer: t\r\nDigest: y\r\n\r\n"),
    "trailers that would route or authorize": chunked(b"3\r\nabc\r\n0\r\nHost: c\r\nAuthorization: Bearer no\r\nCookie: a=b\r\n\r\n"),
    "put": post(b"Content-Length: 1", method=b"PUT", body=b"x"),
    "patch": post(b"Content-Length: 1", method=b"PATCH", body=b"x"),
    "delete": get(start=b"DELETE " + TARGET + b" HTTP/1.1"),
    "http/1.0": start(b"GET " + TARGET + b" HTTP/1.0"),
    "http/1.0 kept": start(b"GET " + TARGET + b" HTTP/1.0", host=b"Host: b\r\nConnection: keep-alive"),
    "empty line before": b"\r\n" + get(),
    "tabs and spaces around values": get(b"X-A:\t  v \t", b"X-B:", b"X-C:   "),
    "obs-text in a value": get(b"X-A: caf\xe9 \xff"),
    "names of odd tokens": get(b"!#$%&'*+-.^`|~0: v"),
    "a length with zeros before": post(b"Content-Length: 003", body=b"abc"),
    "chunked in capitals": post(b"TRANSFER-ENCODING:\tCHUNKED ", body=CHUNKS),
    "expect": post(b"Expect: 100-continue", b"Content-Length: 3", body=b"abc"),
    "host with port": get(host=b"Host: [::1]:8080"),
    "encoded query of servicenow": start(b"GET /api/now/table/incident?n=TAG&sysparm_query=active=true^numberSTARTSWITHa%5EORDERBYx HTTP/1.1"),
    "query that repeats and is odd": start(b"GET /api/now/table/incident?n=TAG&a&a=&=a&a=1&a=2&%zz&?&/..//../ HTTP/1.1"),
    "64 fields": get(*(b"X-%d: v" % n for n in range(64))),
    "close": get(b"Connection: close"),
    "key as x-api-key": get(key=b"X-API-Key: KEY"),
    "key as x-sn-apikey": get(key=b"x-sn-apikey: KEY"),
    "same key twice": get(b"X-API-Key: KEY"),
})
# What must pass, and lose what it carries on the way.
shapes("stripped", GOOD, {
    "cookies": get(b"Cookie: JSESSIONID=x", b"Cookie2: y"),
    "user token": get(b"X-UserToken: z"),
    "proxy headers": get(b"Proxy-Authorization: Basic eDp5", b"Proxy-Connection: keep-alive", b"Proxy: http://evil"),
    "credentials of others": get(b"X-Auth-Token: t", b"Api-Key: k", b"X-Authorization: Bearer t", b"DPoP: p", b"X-Remote-User: admin", b"X-SSL-Client-Cert: c", b"X-CSRF-Token: t", b"X-Session-Id: s"),
    "forwarding": get(b"Forwarded: for=1.2.3.4;host=evil", b"X-Forwarded-For: 1", b"X-Forwarded-Host: evil", b"X-Forwarded-Proto: https", b"X-Real-IP: 1", b"Via: 1.1 evil"),
    "method override": post(b"X-HTTP-Method-Override: DELETE", b"X-HTTP-Method: DELETE", b"X-Method-Override: DELETE", b"Content-Length: 0"),
    "path override": get(b"X-Original-URL: /login.do", b"X-Rewrite-URL: /login.do"),
    "te": get(b"TE: trailers, chunked", b"Connection: TE"),
    "trailer announced": post(CHUNKED, b"Trailer: X-T", body=b"0\r\nX-T: 1\r\n\r\n"),
    "keep-alive": get(b"Keep-Alive: timeout=99", b"Connection: keep-alive"),
    "connection lists authorization": get(b"Connection: authorization"),
    "connection lists host": get(b"Connection: Host, content-length"),
    "connection lists a header": get(b"Connection: close-not, X-A ,, x-b", b"X-A: 1", b"X-B: 2"),
    "connection twice": get(b"Connection: x-a", b"Connection: x-b", b"X-A: 1", b"X-B: 2"),
    "connection lists the length": post(b"Connection: content-length", b"Content-Length: 3", body=b"abc"),
    "connection lists the coding": post(b"Connection: transfer-encoding", CHUNKED, body=CHUNKS),
    "connection id": get(b"Connection: connection-id"),
    "http2-settings": get(b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    "traceparent with junk": get(b"traceparent: 00-evil\tx-1-2"),
    "request id with junk": get(b'X-Request-Id: a" b=c\tevil'),
    "fetch metadata": get(b"Sec-Fetch-Site: none", b"Sec-Fetch-Mode: cors", b"Origin: null"),
})

shapes("CL and TE", "length-or-coding", {
    "length first": post(b"Content-Length: 4", CHUNKED, body=b"1\r\nZ\r\nQ"),
    "coding first": post(CHUNKED, b"Content-Length: 6", body=b"0\r\n\r\nX"),
    "apart": post(CHUNKED, b"X-A: b", b"content-length: 0", body=b"0\r\n\r\n"),
    "zero length": post(b"Content-Length: 0", CHUNKED, body=b"0\r\n\r\n"),
    "on get": get(b"Content-Length: 0", CHUNKED, body=b"0\r\n\r\n"),
    "odd coding": post(b"Content-Length: 3", b"Transfer-Encoding: identity", body=b"abc"),
    "smuggled request behind": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + get()),
    "odd length": post(b"Content-Length: x", CHUNKED, body=CHUNKS),
    "odd length behind": post(CHUNKED, b"Content-Length: x", body=CHUNKS),
    "negative length behind": post(CHUNKED, b"Content-Length: -1", body=CHUNKS),
    "empty length behind": post(CHUNKED, b"Content-Length:", body=CHUNKS),
    "huge length behind": post(CHUNKED, b"Content-Length: 99999999999999999999", body=CHUNKS),
    "list of lengths behind": post(CHUNKED, b"Content-Length: 3, 3", body=CHUNKS),
    "length with underscore behind": post(CHUNKED, b"Content-Length: 0_3", body=CHUNKS),
})
shapes("length twice", "length-once", {
    "same": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "different": post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
    "list of the same": post(b"Content-Length: 3, 3", body=b"abc"),
    "list of different": post(b"Content-Length: 3,4", body=b"abcd"),
    "trailing comma": post(b"Content-Length: 3,", body=b"abc"),
    "leading comma": post(b"Content-Length: ,3", body=b"abc"),
    "zero and more": post(b"Content-Length: 0", b"Content-Length: 44", body=get()),
    "apart, other case": post(b"CONTENT-LENGTH: 3", b"X-A: b", b"content-length:3", body=b"abc"),
    "empty and whole": post(b"Content-Length:", b"Content-Length: 3", body=b"abc"),
})
shapes("bad length", "length", {
    name: post(b"Content-Length: " + value, body=b"abc") for name, value in {
        "plus": b"+3", "minus": b"-3", "minus zero": b"-0", "hex": b"0x3", "float": b"3.0", "exponent": b"3e0", "underscore": b"0_3",
        "space inside": b"3 3", "empty": b"", "word": b"three", "quoted": b'"3"', "semicolon": b"3;x", "obs-text": b"3\xa0",
        "arabic digit": "٣".encode(), "fullwidth digit": "３".encode(), "too large": b"9223372036854775808", "2^64": b"18446744073709551616",
        "2^64 + 3": b"18446744073709551619", "huge": b"9" * 400, "parameter": b"3 bytes",
    }.items()
})
shapes("bad coding", "coding", {
    name: post(b"Transfer-Encoding: " + value, body=CHUNKS) for name, value in {
        "identity": b"identity", "gzip": b"gzip", "gzip, chunked": b"gzip, chunked", "chunked, gzip": b"chunked, gzip", "chunked twice": b"chunked, chunked",
        "x-chunked": b"xchunked", "chunked with parameter": b"chunked;q=1", "empty": b"", "trailing comma": b"chunked,", "leading comma": b",chunked",
        "quoted": b'"chunked"', "obs-text": b"chunked\xa0", "cow": b"cow", "identity, chunked": b"identity, chunked", "dotless": "chun\u212aed".encode(),
        "spaced": b"chun ked",
    }.items()
})
shapes("bad coding", "coding", {
    "two fields": post(CHUNKED, CHUNKED, body=CHUNKS),
    "two fields, first odd": post(b"Transfer-Encoding: cow", CHUNKED, body=CHUNKS),
    "two fields, last odd": post(CHUNKED, b"Transfer-Encoding: cow", body=CHUNKS),
    "two fields, last empty": post(CHUNKED, b"Transfer-Encoding:", body=CHUNKS),
})
shape("coding with 1.0", "coding-1.0", post(CHUNKED, version=b"HTTP/1.0", body=CHUNKS))
shape("coding with 1.0, kept", "coding-1.0", post(CHUNKED, b"Connection: keep-alive", version=b"HTTP/1.0", body=CHUNKS))
shapes("bad coding", "field-value", {
    "vertical tab": post(b"Transfer-Encoding:\x0bchunked", body=CHUNKS),
    "form feed behind": post(b"Transfer-Encoding: chunked\x0c", body=CHUNKS),
    "NUL behind": post(b"Transfer-Encoding: chunked\x00", body=CHUNKS),
})

shapes("chunk size", "chunk-size", {
    name: chunked(size + b"\r\nabc\r\n0\r\n\r\n") for name, size in {
        "plus": b"+3", "minus": b"-3", "0x": b"0x3", "underscore": b"0_3", "leading space": b" 3", "leading tab": b"\t3", "empty": b"",
        "no hex": b"g", "h behind": b"3h", "overflow": b"10000000000000003", "large overflow": b"f" * 17, "2^63": b"8000000000000000", "32-bit wrap": b"100000000000000000003",
        "comma": b"3,3", "dot": b"3.0", "NUL": b"3\x00", "quoted": b'"3"', "obs-text": b"3\xa0", "equals": b"3=a", "fullwidth": "３".encode(),
        "space inside": b"0 3",
    }.items()
})
shapes("chunk size", "chunk-extension", {
    "space behind": chunked(b"3 \r\nabc\r\n0\r\n\r\n"),
    "tab behind": chunked(b"3\t\r\nabc\r\n0\r\n\r\n"),
    "zero with a space": chunked(b"3\r\nabc\r\n0 \r\n\r\n"),
})
shapes("chunk extension", "chunk-extension", {
    name: chunked(b"3" + extension + b"\r\nabc\r\n0\r\n\r\n") for name, extension in {
        "empty": b";", "no name": b";=a", "no value": b";a=", "space in a name": b";a b", "open quote": b';a="b', "quote inside": b';a=b"c', "NUL": b";a=\x00",
        "control": b";a=\x08", "two semicolons": b";;a", "obs-text": b";\xe9", "comma": b";a,b", "delete": b";a\x7f",
    }.items()
})
shapes("chunk line", "chunk-end", {
    "bare LF": chunked(b"3\nabc\r\n0\r\n\r\n"),
    "bare LF behind extension": chunked(b"3;a\nabc\r\n0\r\n\r\n"),
    "bare CR": chunked(b"3\rabc\r\n0\r\n\r\n"),
    "bare CR in an extension": chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "two CR": chunked(b"3\r\r\nabc\r\n0\r\n\r\n"),
    "LF in a quoted extension": chunked(b'3;a="\n"\r\nabc\r\n0\r\n\r\n'),
    "data without CR LF": chunked(b"3\r\nabc0\r\n\r\n"),
    "data with LF": chunked(b"3\r\nabc\n0\r\n\r\n"),
    "data with CR": chunked(b"3\r\nabc\r0\r\n\r\n"),
    "data with two other bytes": chunked(b"3\r\nabcXX0\r\n\r\n"),
    "data longer than said": chunked(b"2\r\nabc\r\n0\r\n\r\n"),
    "data shorter than said": chunked(b"4\r\nabc\r\n0\r\n\r\n"),
    "LF after the last": chunked(b"3\r\nabc\r\n0\n\r\n"),
})
shapes("chunk trailer", "trailer", {
    "end with LF": chunked(b"3\r\nabc\r\n0\r\n\n"),
    "trailer with LF": chunked(b"3\r\nabc\r\n0\r\nX-T: 1\n\r\n"),
    "trailer without colon": chunked(b"3\r\nabc\r\n0\r\nX-T\r\n\r\n"),
    "space before the colon": chunked(b"3\r\nabc\r\n0\r\nX-T : 1\r\n\r\n"),
    "folded": chunked(b"3\r\nabc\r\n0\r\nX-T: 1\r\n more\r\n\r\n"),
    "NUL": chunked(b"3\r\nabc\r\n0\r\nX-T: \x00\r\n\r\n"),
    "bare CR": chunked(b"3\r\nabc\r\n0\r\nX-T: a\rb\r\n\r\n"),
    "a request as trailer": chunked(b"3\r\nabc\r\n0\r\nGET / HTTP/1.1\r\n\r\n"),
    "empty name": chunked(b"3\r\nabc\r\n0\r\n: 1\r\n\r\n"),
})

shapes("trailer framing", "trailer-framing", {
    "length": chunked(b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "coding": chunked(b"3\r\nabc\r\n0\r\nTransfer-Encoding: gzip\r\n\r\n"),
})
shapes("chunk sizes", "chunk-extension-size", {
    "extension of 1 MiB": chunked(b"3;" + b"a" * 1048576 + b"\r\nabc\r\n0\r\n\r\n"),
    "extensions of 1 MiB together": chunked(b"".join(b"1;%b\r\nx\r\n" % (b"a" * 1024) for _ in range(1024)) + b"0\r\n\r\n"),
})
shapes("chunk sizes", "trailer-size", {
    "trailer of 1 MiB": chunked(b"3\r\nabc\r\n0\r\nX-T: " + b"a" * 1048576 + b"\r\n\r\n"),
    "trailers of 1 MiB together": chunked(b"3\r\nabc\r\n0\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"a" * 1024) for n in range(1024)) + b"\r\n"),
})

shapes("line end", "line-end", {
    "all LF": get().replace(b"\r\n", b"\n"),
    "request line LF": get().replace(b"\r\n", b"\n", 1),
    "one field LF": get().replace(b"example\r\n", b"example\n"),
    "end LF": get()[:-2] + b"\n",
    "end LF LF": get()[:-4] + b"\n\n",
    "LF CR": get().replace(b"\r\n", b"\n\r"),
    "CR CR LF": get().replace(b"example\r\n", b"example\r\r\n"),
    "LF before": b"\n" + get(),
    "bare CR in a value": get(b"X-A: a\rb"),
    "bare CR before a value": get(b"X-A:\ra"),
    "bare CR in a name": get(b"X-\rA: b"),
    "bare CR in the target": start(b"GET /api/now/table/incident?\rn=TAG HTTP/1.1"),
    "bare CR before the version": start(b"GET /api/now/table/incident?n=TAG\rHTTP/1.1"),
    "bare CR splits a field": get(b"X-A: a\rTransfer-Encoding: chunked"),
    "bare CR ends the head": get(b"X-A: a\r\r"),
    "CR before the line": get(b"\rX-A: a"),
    "LF splits a field": get(b"X-A: a\nTransfer-Encoding: chunked"),
    "LF LF splits a request": get(b"X-A: a\n\n" + get()[:-4]),
})
shapes("fold", "obs-fold", {
    "space": get(b"X-A: a\r\n b"),
    "tab": get(b"X-A: a\r\n\tb"),
    "folded length": post(b"Content-Length:\r\n 3", body=b"abc"),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked", body=CHUNKS),
    "folded host": get(host=b"Host:\r\n b.example"),
    "first field": start(b"GET " + TARGET + b" HTTP/1.1\r\n X-A: b"),
    "white line": get(b" "),
    "hidden length": post(b"X-A: a\r\n Content-Length: 3", body=b""),
})
shapes("control", "field-value", {
    name: get(b"X-A: a" + byte + b"b") for name, byte in {
        "NUL": b"\x00", "backspace": b"\x08", "vertical tab": b"\x0b", "form feed": b"\x0c", "escape": b"\x1b", "delete": b"\x7f", "0x01": b"\x01", "0x1f": b"\x1f",
    }.items()
})
shapes("name", "field-name", {
    "space before colon": get(b"X-A : b"),
    "space before colon, head": get(b"X-A : b", start=b"HEAD " + TARGET + b" HTTP/1.1"),
    "tab before colon": get(b"X-A\t: b"),
    "length, space before colon": post(b"Content-Length : 3", body=b"abc"),
    "coding, space before colon": post(b"Transfer-Encoding : chunked", body=CHUNKS),
    "coding, vertical tab before colon": post(b"Transfer-Encoding\x0b: chunked", body=CHUNKS),
    "host, space before colon": get(host=b"Host : b.example"),
    "space inside": get(b"X A: b"),
    "empty": get(b": b"),
    "no colon": get(b"X-A"),
    "NUL": get(b"X\x00A: b"),
    "control": get(b"X\x01A: b"),
    "obs-text": get(b"X\xe9A: b"),
    "parenthesis": get(b"X(A): b"),
    "quotes": get(b'"X-A": b'),
    "at sign": get(b"X@A: b"),
    "bracket": get(b"X[A]: b"),
    "slash": get(b"X/A: b"),
    "backslash": get(b"X\\A: b"),
    "braces": get(b"{X}: b"),
    "comma": get(b"X,A: b"),
    "delete": get(b"X\x7fA: b"),
    "a request line as field": get(b"GET /x HTTP/1.1"),
    "coding with NUL before": post(b"\x00Transfer-Encoding: chunked", body=CHUNKS),
})
shapes("underscore", "underscore", {
    "length": post(b"Content_Length: 3", body=b""),
    "coding": post(b"Transfer_Encoding: chunked", body=b""),
    "key": get(b"X_API_Key: other"),
    "leading": get(b"_X: a"),
})

shapes("host", "host-once", {
    "none": get(host=None),
    "none with 1.0": start(b"GET " + TARGET + b" HTTP/1.0", host=None),
    "twice": get(b"Host: b.example"),
    "twice, different": get(b"Host: evil.example"),
    "thrice": get(b"host: b.example", b"HOST: b.example"),
})
shapes("host", "host", {
    name: get(host=b"Host: " + value) for name, value in {
        "empty": b"", "space": b"b.example c", "user": b"u@b.example", "user and password": b"u:p@b.example", "list": b"a, b", "path": b"b.example/x", "query": b"b?x", "fragment": b"b#x",
        "scheme": b"http://b.example", "port of letters": b"b:http", "empty port": b"b:", "huge port": b"b:123456", "two ports": b"b:1:2", "open bracket": b"[::1", "no brackets": b"::1", "backslash": b"b\\c", "percent": b"b%2ec",
        "obs-text": b"b\xe9", "quotes": b'"b"', "semicolon": b"b;c", "tab": b"a\tb", "angle": b"<b>", "star": b"*", "negative port": b"b:-1",
    }.items()
})

shapes("form", "origin-form", {
    "head of an authority": start(b"HEAD b.example HTTP/1.1"),
    "absolute": start(b"GET http://b.example/api/now/table/incident?n=TAG HTTP/1.1"),
    "absolute, other host": start(b"GET http://evil.example/api/now/table/incident?n=TAG HTTP/1.1"),
    "absolute https": start(b"GET https://b.example/api/now/table/incident HTTP/1.1"),
    "absolute, capitals": start(b"GET HTTP://b.example/api/now/table/incident HTTP/1.1"),
    "absolute, other scheme": start(b"GET gopher://b.example/ HTTP/1.1"),
    "absolute without path": start(b"GET http://b.example HTTP/1.1"),
    "absolute with user": start(b"GET http://u:p@b.example/api/now/table/incident HTTP/1.1"),
    "absolute, post": start(b"POST http://b.example/api/now/table/incident HTTP/1.1\r\nContent-Length: 0"),
    "authority on get": start(b"GET b.example:80 HTTP/1.1"),
    "asterisk on get": start(b"GET * HTTP/1.1"),
    "relative": start(b"GET api/now/table/incident HTTP/1.1"),
    "query alone": start(b"GET ?n=TAG HTTP/1.1"),
    "data": start(b"GET data:x HTTP/1.1"),
    "dot": start(b"GET ./api/now/table/incident HTTP/1.1"),
    "backslash": start(b"GET \\api\\now\\table\\incident HTTP/1.1"),
})
shapes("path", "path", {
    "double slash": start(b"GET //api/now/table/incident HTTP/1.1"),
    "host in path": start(b"GET //evil.example/api/now/table/incident HTTP/1.1"),
    "dots": start(b"GET /api/now/table/../../../login.do HTTP/1.1"),
    "encoded dots": start(b"GET /api/now/table/%2e%2e/%2e%2e/login.do HTTP/1.1"),
    "at": start(b"GET /@evil.example/api/now/table/incident HTTP/1.1"),
    "absolute as path": start(b"GET /http://evil.example/ HTTP/1.1"),
    "root": start(b"GET / HTTP/1.1"),
    "asterisk path": start(b"GET /* HTTP/1.1"),
})
shapes("target", "target-bytes", {
    "fragment": start(b"GET " + TARGET + b"#f HTTP/1.1"),
    "fragment in path": start(b"GET /api/now/table/incident#/../login.do HTTP/1.1"),
    "fragment alone": start(b"GET # HTTP/1.1"),
    "NUL": start(b"GET " + TARGET + b"\x00 HTTP/1.1"),
    "tab": start(b"GET " + TARGET + b"\tx HTTP/1.1"),
    "vertical tab": start(b"GET " + TARGET + b"\x0bx HTTP/1.1"),
    "delete": start(b"GET " + TARGET + b"\x7f HTTP/1.1"),
    "high byte": start(b"GET " + TARGET + b"\xff HTTP/1.1"),
    "utf-8 in query": start("GET /api/now/table/incident?n=TAG&q=é HTTP/1.1".encode()),
    "utf-8 in path": start("GET /api/now/table/incidént?n=TAG HTTP/1.1".encode()),
    "escape": start(b"GET " + TARGET + b"\x1b[31m HTTP/1.1"),
})
shapes("request line", "request-line", {
    "two spaces": start(b"GET  " + TARGET + b" HTTP/1.1"),
    "two spaces before the version": start(b"GET " + TARGET + b"  HTTP/1.1"),
    "tab for a space": start(b"GET\t" + TARGET + b" HTTP/1.1"),
    "tab before the version": start(b"GET " + TARGET + b"\tHTTP/1.1"),
    "space before": start(b" GET " + TARGET + b" HTTP/1.1"),
    "space behind": start(b"GET " + TARGET + b" HTTP/1.1 "),
    "words behind": start(b"GET " + TARGET + b" HTTP/1.1 HTTP/1.0"),
    "space in the target": start(b"GET " + TARGET + b" x HTTP/1.1"),
    "no version": start(b"GET " + TARGET),
    "no target": start(b"GET HTTP/1.1"),
    "method alone": start(b"GET"),
    "NUL before": start(b"\x00GET " + TARGET + b" HTTP/1.1"),
    "method with a control": start(b"G\x01ET " + TARGET + b" HTTP/1.1"),
    "method with a colon": start(b"GET: " + TARGET + b" HTTP/1.1"),
    "method in quotes": start(b'"GET" ' + TARGET + b" HTTP/1.1"),
    "vertical tab": start(b"GET\x0b" + TARGET + b" HTTP/1.1"),
    "http/0.9": b"GET " + TARGET + b"\r\n\r\n",
    "byte order mark": b"\xef\xbb\xbf" + get(),
    "version 1": start(b"GET " + TARGET + b" HTTP/1"),
    "version 1.10": start(b"GET " + TARGET + b" HTTP/1.10"),
    "version 01.1": start(b"GET " + TARGET + b" HTTP/01.1"),
    "version lower": start(b"GET " + TARGET + b" http/1.1"),
    "version of letters": start(b"GET " + TARGET + b" HTTP/x.y"),
    "version with plus": start(b"GET " + TARGET + b" HTTP/+1.1"),
    "other protocol": start(b"GET " + TARGET + b" ICY/1.1"),
    "version with space": start(b"GET " + TARGET + b" HTTP /1.1"),
    "status line": start(b"HTTP/1.1 200 OK"),
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
    "PROXY protocol": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n" + get(),
    "RTSP": start(b"DESCRIBE rtsp://x RTSP/1.0"),
})
shapes("version", "version", {
    name: start(b"GET " + TARGET + b" HTTP/" + version) for name, version in {"1.2": b"1.2", "2.0": b"2.0", "0.9": b"0.9", "1.9": b"1.9", "9.9": b"9.9"}.items()
})
shape("version: http/2 preface without its end", "version", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
shapes("method", "method", {
    name: start(name.encode() + b" " + TARGET + b" HTTP/1.1")
    for name in ["TRACE", "TRACK", "OPTIONS", "get", "Get", "PROPFIND", "DEBUG", "PRI", "GETX", "G", "M-SEARCH", "PURGE", "LINK", "QUERY", "post", "CONNECT", "SEARCH", "ACL"]
})
shapes("method", "method", {
    "CONNECT authority": start(b"CONNECT b.example:443 HTTP/1.1"),
    "CONNECT with a tunnel behind": start(b"CONNECT b.example:443 HTTP/1.1", body=get()),
    "OPTIONS asterisk": start(b"OPTIONS * HTTP/1.1"),
    "long": start(b"G" * 300 + b" " + TARGET + b" HTTP/1.1"),
    "TRACE with a body": start(b"TRACE " + TARGET + b" HTTP/1.1\r\nContent-Length: 3", body=b"abc"),
})

shapes("upgrade", "upgrade", {
    "h2c": get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    "h2c without connection": get(b"Upgrade: h2c"),
    "h2c with preface behind": get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__", body=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "websocket": get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13"),
    "TLS": get(b"Connection: Upgrade", b"Upgrade: TLS/1.0"),
    "on post": post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc"),
    "empty": get(b"Upgrade:"),
    "HTTP/1.1": get(b"Upgrade: HTTP/1.1"),
})
shapes("expect", "expect", {
    "other": post(b"Expect: 200-ok", b"Content-Length: 3", body=b"abc"),
    "list": post(b"Expect: 100-continue, x", b"Content-Length: 3", body=b"abc"),
    "empty": post(b"Expect:", b"Content-Length: 3", body=b"abc"),
    "second field": post(b"Expect: 100-continue", b"Expect: y", b"Content-Length: 3", body=b"abc"),
    "parameter": post(b"Expect: 100-continue;a=b", b"Content-Length: 3", body=b"abc"),
})
shape("cross-site", "cross-site", get(b"Sec-Fetch-Site: cross-site"))
shapes("body", "safe-body", {
    "get with a length": get(b"Content-Length: 3", body=b"abc"),
    "get in chunks": get(CHUNKED, body=CHUNKS),
    "head with a length": start(b"HEAD " + TARGET + b" HTTP/1.1\r\nContent-Length: 3", body=b"abc"),
    "get whose body is a request": get(b"Content-Length: %d" % len(get()), body=get()),
})
shapes("size", "target-size", {
    "target": start(b"GET " + TARGET + b"&" + b"a" * 8200 + b" HTTP/1.1"),
    "path": start(b"GET /api/now/table/" + b"a" * 9000 + b" HTTP/1.1"),
    "target of 128 KiB": start(b"GET " + TARGET + b"&" + b"a" * 131072 + b" HTTP/1.1"),
})
shapes("size", "field-sizes", {
    "101 fields": get(*(b"X-%d: v" % n for n in range(101))),
    "1,000 fields": get(*(b"X-%d: v" % n for n in range(1000))),
    "one value of 66 KiB": get(b"X-A: " + b"a" * 67584),
    "one value of 1 MiB": get(b"X-A: " + b"a" * 1048576),
    "one name of 66 KiB": get(b"X" * 67584 + b": a"),
    "90 values of 1 KiB": get(*(b"X-%d: %b" % (n, b"v" * 1024) for n in range(90))),
})
shape("size: body", "body-size", post(b"Content-Length: 10485761", body=b"x" * 10485761))
shapes("key", "key", {
    "none": get(key=None),
    "other": get(key=b"Authorization: Bearer other"),
    "two": get(b"X-API-Key: other"),
    "as cookie": get(b"Cookie: key=KEY", key=None),
    "in the query": start(b"GET " + TARGET + b"&api_key=KEY HTTP/1.1", key=None),
    "as trailer": post(CHUNKED, key=None, body=b"0\r\nAuthorization: Bearer KEY\r\n\r\n"),
    "digest": get(key=b"Authorization: Digest KEY"),
    "without scheme": get(key=b"Authorization: KEY"),
    "proxy-authorization": get(key=b"Proxy-Authorization: Bearer KEY"),
})
# Never whole: no answer may be a good one, and the origin gets no whole request.
INCOMPLETE = "incomplete"
shapes("early end", INCOMPLETE, {
    "in the request line": b"GET /api/now/ta",
    "in a field": get()[:-12],
    "before the last LF": get()[:-1],
    "in the body": post(b"Content-Length: 10", body=b"abc"),
    "in a chunk": chunked(b"a\r\nabc"),
    "in a chunk size": chunked(b"3"),
    "before the last chunk": chunked(b"3\r\nabc\r\n"),
    "in the trailers": chunked(b"3\r\nabc\r\n0\r\nX-T: 1\r\n"),
    "before the end of the trailers": chunked(b"3\r\nabc\r\n0\r\n"),
    "chunk of almost 2^63": chunked(b"7fffffffffffffff\r\nabc"),
    "length of almost 2^63": post(b"Content-Length: 9223372036854775807", body=b"abc"),
    "body that looks like a request": post(b"Content-Length: 100000", body=get()),
})

SMALL = 4096


def variants(rule, stream):
    good = get()
    yield "whole", [stream]
    if len(stream) <= SMALL:
        yield "byte by byte", exchange.every_byte(stream)
    yield "behind a good one", [good + stream]
    if rule is not INCOMPLETE:  # what follows would be its rest
        yield "before a good one", [stream + good]
    if len(stream) > SMALL:
        yield "in two packets", [stream[: len(stream) // 2], stream[len(stream) // 2 :]]


def first_fault(judge, stream):
    """The rule that the list says the stream breaks first."""
    reading = strict.read(stream, judge.sent_paths, judge.has_key)
    refused = [request.refused for request in reading.requests if request.refused]
    if refused:
        return refused[0]
    return reading.rule if reading.ends == "fault" else INCOMPLETE if reading.ends == "incomplete" else GOOD


async def main():
    given = program.arguments(__doc__, workers=(16, "streams at once"), only=("", "only shapes whose name holds this"), every=(1, "send every so manieth shape, and all good ones"))
    begun = time.monotonic()
    judge = await program.start(given)
    queue = [
        (index, name, rule, variant, pieces)
        for index, (name, rule, stream) in enumerate(SHAPES)
        if given.only in name and (rule is GOOD or index % given.every == 0)
        for variant, pieces in variants(rule, stream)
    ]
    queue.reverse()
    sent, chosen = len(queue), list(queue)

    async def work(_):
        while queue:
            index, name, rule, variant, pieces = queue.pop()
            tag = b"%d%c" % (index, 97 + len(queue) % 26)
            pieces = filled(pieces, tag, given.key.encode())
            stream = b"".join(pieces)
            found = first_fault(judge, stream)
            if found != rule:
                judge.find("the shape and the list disagree", stream, f"{name}: {rule}, list: {found}")
            before = len(judge.findings)
            await exchange.exchange(judge, given.proxy, stream, pieces)
            for finding in judge.findings[before:]:
                if finding.stream == stream:
                    finding.what = f"{finding.what} [{name}, {variant}]"

    await exchange.in_turn(given.workers, work)
    await must_pass(judge, given)
    program.report(judge, begun, shapes=len({index for index, *_ in chosen}), streams=sent, rules=len(strict.RULES))


async def must_pass(judge, given):
    """Each good shape, alone: answered by the origin."""
    for index, (name, rule, stream) in enumerate(SHAPES):
        if rule is GOOD and given.only in name:
            before = judge.counts["accepted"]
            [stream] = filled([stream], b"%dz" % index, given.key.encode())
            await exchange.exchange(judge, given.proxy, stream, [stream])
            if judge.counts["accepted"] == before:
                judge.find(f"a good request did not pass [{name}]", stream)


def filled(pieces, tag, key):
    """With the placeholders replaced, and cut where it was cut."""
    stream = b"".join(pieces)
    whole = stream.replace(b"TAG", tag).replace(KEY, key)
    if len(pieces) == len(stream):
        return exchange.every_byte(whole)
    if len(pieces) == 1:
        return [whole]
    return [whole[: len(whole) // 2], whole[len(whole) // 2 :]]


if __name__ == "__main__":
    program.run(main())
