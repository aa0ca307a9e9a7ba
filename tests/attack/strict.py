"""A strict reading of what a caller sends: the written list of rules, and a reader that applies it.

The list is RFC 9112 and RFC 9110 without their leniencies, plus what bearerd promises beyond them (docs and issue ids
`P-…`). It shares no code with bearerd and none with h11, which judges beside it (`outside.py`).
"""

import re
from dataclasses import dataclass, field

# Name of the rule, where it comes from, what it says. A request that breaks a rule must not be accepted.
RULES = {
    # The request line.
    "line-end": ("RFC 9112 §2.2 (bare LF: MAY accept; P-02 refuses)", "a line of the head ends in CR LF, and holds no other CR or LF"),
    "request-line": ("RFC 9112 §3", "method SP request-target SP HTTP-version, single spaces, nothing else"),
    "method": ("RFC 9110 §9.1, P-16", "the method is GET, HEAD, POST, PUT, PATCH or DELETE, in this case"),
    "origin-form": ("RFC 9112 §3.2.1, P-02, P-15", "the target is a path with an optional query; no absolute, authority or asterisk form"),
    "target-bytes": ("RFC 9112 §3.2, RFC 3986 §2", "the target holds visible ASCII only, and no fragment"),
    "target-size": ("RFC 9112 §3, P-20", "the target has at most 8 KiB"),
    "version": ("RFC 9112 §2.3", "the version is HTTP/1.1 or HTTP/1.0"),
    # Field lines.
    "field-name": ("RFC 9112 §5.1, RFC 9110 §5.1", "a field line begins with a token and a colon, with no white space before it"),
    "obs-fold": ("RFC 9112 §5.2", "no line of the head begins with white space"),
    "field-value": ("RFC 9110 §5.5", "a value holds no control but the tab"),
    "underscore": ("P-07", "no name holds an underscore: CGI servers read it as a dash"),
    "field-sizes": ("RFC 9110 §5.4, P-20", "at most 100 field lines, and 64 KiB of names and values"),
    # Host.
    "host-once": ("RFC 9112 §3.2", "there is exactly one Host"),
    "host": ("RFC 9110 §7.2, RFC 3986 §3.2.2, P-02", "Host is a name or address with an optional port; no user, list or path"),
    # Framing.
    "length-or-coding": ("RFC 9112 §6.3 item 3, P-02", "there is not both Content-Length and Transfer-Encoding"),
    "length-once": ("RFC 9112 §6.3 item 5 (equal ones: MAY accept; P-02 refuses)", "there is at most one Content-Length, and it is no list"),
    "length": ("RFC 9110 §8.6", "Content-Length is digits, of a number that fits"),
    "coding": ("RFC 9112 §6.1, §7, P-02", "Transfer-Encoding is one field and says chunked alone"),
    "coding-1.0": ("RFC 9112 §6.1", "no Transfer-Encoding comes with HTTP/1.0"),
    "safe-body": ("RFC 9110 §9.3.1, P-02", "GET and HEAD carry no body"),
    "body-size": ("P-20", "the body of a table call has at most 10 MiB"),
    "chunk-size": ("RFC 9112 §7.1", "a chunk size is hex digits, of a number that fits"),
    "chunk-extension": ("RFC 9112 §7.1.1", "chunk extensions are ;name or ;name=value, value a token or quoted"),
    "chunk-end": ("RFC 9112 §7.1", "CR LF follows the data of a chunk, and ends its size line"),
    "chunk-extension-size": ("RFC 9112 §7.1.1", "the extensions of one body have at most 64 KiB"),
    "trailer": ("RFC 9112 §7.1.2, §5", "trailers are field lines like others"),
    "trailer-framing": ("RFC 9110 §6.5.1", "no trailer says how the message is framed"),
    "trailer-size": ("P-20", "the trailers of one body have at most 64 KiB"),
    # What a head asks for.
    "expect": ("RFC 9110 §10.1.1, P-16", "Expect is 100-continue or absent"),
    "upgrade": ("RFC 9110 §7.8, P-16", "no upgrade is asked for"),
    "cross-site": ("P-25", "no page of another site makes the call"),
    # Not of the wire: what policy opens.
    "path": ("P-10, P-11", "the path is one of an opened family's grammar"),
    "key": ("product §3", "the request carries the caller key, and no other"),
}

METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"}
TARGET_BYTES_MAX = 8 * 1024
FIELD_BYTES_MAX = 64 * 1024
FIELD_LINES_MAX = 100
BODY_BYTES_MAX = 10 * 1024 * 1024

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*?"
REQUEST_LINE = re.compile(rb"(%b) ([^ ]+) HTTP/([0-9])\.([0-9])" % TOKEN, re.S)
TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")  # visible, but for the number sign
FIELD_LINE = re.compile(rb"(%b):[ \t]*(%b)[ \t]*" % (TOKEN, VALUE))
FIELD_NAME = re.compile(rb"%b:" % TOKEN)
HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]+)((?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*)" % (TOKEN, TOKEN, QUOTED)
)
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+(?=[ \t]*(?:;|$))")


class Fault(Exception):
    """A rule is broken and the stream cannot be followed any further."""

    def __init__(self, rule, where):
        super().__init__(rule)
        self.rule, self.where = rule, where


class Incomplete(Exception):
    """More bytes are needed; `need` is the least length at which another look is worth it."""

    def __init__(self, need):
        super().__init__(need)
        self.need = need


@dataclass(slots=True)
class Request:
    method: bytes
    target: bytes
    version: tuple
    fields: list  # (name in lower case, value)
    body: bytes = b""
    trailers: list = field(default_factory=list)
    refused: str | None = None  # the first rule that it breaks though the stream can be followed
    begin: int = 0
    end: int = 0

    def values(self, name):
        return [value for held, value in self.fields if held == name]

    @property
    def path(self):
        return self.target.partition(b"?")[0]

    def options(self):
        """What Connection lists, in lower case."""
        listed = b",".join(self.values(b"connection")).lower().split(b",")
        return {name.strip(b" \t") for name in listed} - {b""}

    @property
    def is_last(self):
        """The connection ends after it (RFC 9112 §9.3)."""
        options = self.options()
        return b"close" in options or (self.version == (1, 0) and b"keep-alive" not in options)


@dataclass(slots=True)
class Reading:
    """What a stream holds: its requests, and how it ends: `clean`, `incomplete`, `fault`, or `closed` after a last one."""

    requests: list
    ends: str
    rule: str | None = None
    where: str | None = None  # of a fault: `head` or `body`
    partial: Request | None = None  # its head is whole, its body is not


def read(data, paths=None, keys=None):
    """Reads a caller's whole stream. `paths` says which paths are opened, `keys` which key there must be."""
    requests, at = [], 0
    while True:
        while data.startswith(b"\r\n", at):  # RFC 9112 §2.2: a server ignores empty lines before a request line
            at += 2
        if at == len(data):
            return Reading(requests, "clean")
        head = None
        try:
            head, after = read_head(data, at)
            body, trailers, at = read_body(data, head, after)
        except Fault as fault:
            return Reading(requests, "fault", fault.rule, fault.where, head)
        except Incomplete:
            return Reading(requests, "incomplete", partial=head)
        head.body, head.trailers, head.end = body, trailers, at
        head.refused = head.refused or judge(head, paths, keys)
        requests.append(head)
        if head.is_last:
            return Reading(requests, "closed" if at < len(data) else "clean")


def read_head(data, at):
    """The head at `at` and where it ends. Raises what is wrong with it as a message; the rest is `judge`'s."""
    lines, begin = [], at
    while True:
        end = data.find(b"\n", at)
        if end < 0:
            raise Incomplete(len(data) + 1)
        if end == at or data[end - 1] != 0x0D:
            raise Fault("line-end", "head")
        line = data[at : end - 1]
        at = end + 1
        if not line:
            break
        if b"\r" in line:
            raise Fault("line-end", "head")
        lines.append(line)
    matched = REQUEST_LINE.fullmatch(lines[0])
    if not matched:
        raise Fault("request-line", "head")
    method, target, major, minor = matched.groups()
    if not TARGET.fullmatch(target):
        raise Fault("target-bytes", "head")
    version = (int(major), int(minor))
    if version not in ((1, 0), (1, 1)):
        raise Fault("version", "head")
    fields = [read_field(line) for line in lines[1:]]
    request = Request(method, target, version, fields, begin=begin)
    framing(request)
    return request, at


def read_field(line):
    if line[:1] in (b" ", b"\t"):
        raise Fault("obs-fold", "head")
    matched = FIELD_LINE.fullmatch(line)
    if not matched:
        raise Fault("field-value" if FIELD_NAME.match(line) else "field-name", "head")
    return matched[1].lower(), matched[2]


def framing(request):
    lengths, codings = request.values(b"content-length"), request.values(b"transfer-encoding")
    if lengths and codings:
        raise Fault("length-or-coding", "head")
    if len(lengths) > 1 or any(b"," in length for length in lengths):
        raise Fault("length-once", "head")
    if lengths and not (re.fullmatch(rb"[0-9]+", lengths[0]) and int(lengths[0]) < 1 << 63):
        raise Fault("length", "head")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise Fault("coding", "head")
    if codings and request.version == (1, 0):
        raise Fault("coding-1.0", "head")


def read_body(data, request, at):
    lengths = request.values(b"content-length")
    if lengths:
        end = at + int(lengths[0])
        if end > len(data):
            raise Incomplete(end)
        return data[at:end], [], end
    if not request.values(b"transfer-encoding"):
        return b"", [], at
    pieces, extension_bytes = [], 0
    while True:
        line, at = body_line(data, at, "chunk-end")
        matched = CHUNK_LINE.fullmatch(line)
        if not matched:
            raise Fault("chunk-extension" if CHUNK_SIZE.match(line) else "chunk-size", "body")
        extension_bytes += len(matched[2])
        if extension_bytes > FIELD_BYTES_MAX:
            raise Fault("chunk-extension-size", "body")
        size = int(matched[1], 16)
        if size >= 1 << 63:
            raise Fault("chunk-size", "body")
        if size == 0:
            break
        if at + size + 2 > len(data):
            if data[at + size : at + size + 1] not in (b"", b"\r"):
                raise Fault("chunk-end", "body")
            raise Incomplete(at + size + 2)
        pieces.append(data[at : at + size])
        at += size
        if data[at : at + 2] != b"\r\n":
            raise Fault("chunk-end", "body")
        at += 2
    trailers, begin = [], at
    while True:
        line, at = body_line(data, at, "trailer")
        if at - begin > FIELD_BYTES_MAX:
            raise Fault("trailer-size", "body")
        if not line:
            return b"".join(pieces), trailers, at
        matched = FIELD_LINE.fullmatch(line)
        if not matched:
            raise Fault("trailer", "body")
        if matched[1].lower() in (b"content-length", b"transfer-encoding"):
            raise Fault("trailer-framing", "body")
        trailers.append((matched[1].lower(), matched[2]))


def body_line(data, at, rule):
    end = data.find(b"\n", at)
    if end < 0:
        raise Incomplete(len(data) + 1)
    line = data[at:end]
    if not line.endswith(b"\r") or b"\r" in line[:-1]:
        raise Fault(rule, "body")
    return line[:-1], end + 1


def judge(request, paths, keys):
    """The first rule that a request breaks though it can be followed; None for one that may be accepted."""
    if request.method not in METHODS:
        return "method"
    if not request.target.startswith(b"/"):
        return "origin-form"
    if len(request.target) > TARGET_BYTES_MAX:
        return "target-size"
    if len(request.fields) > FIELD_LINES_MAX:
        return "field-sizes"
    if sum(len(name) + len(value) for name, value in request.fields) > FIELD_BYTES_MAX:
        return "field-sizes"
    if any(b"_" in name for name, _ in request.fields):
        return "underscore"
    hosts = request.values(b"host")
    if len(hosts) != 1:
        return "host-once"
    if not HOST.fullmatch(hosts[0]):
        return "host"
    if any(value.lower() != b"100-continue" for value in request.values(b"expect")):
        return "expect"
    if request.values(b"upgrade"):
        return "upgrade"
    if any(value in (b"cross-site", b"same-site") for value in request.values(b"sec-fetch-site")):
        return "cross-site"
    if request.body and request.method in (b"GET", b"HEAD"):
        return "safe-body"
    if len(request.body) > BODY_BYTES_MAX:
        return "body-size"
    if paths is not None and not paths(request.path):
        return "path"
    if keys is not None and not keys(request):
        return "key"
    return None
