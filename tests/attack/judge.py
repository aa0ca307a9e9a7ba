"""The invariant: what bearerd accepts, the written list and h11 accept; and for each accepted request the origin gets
exactly one well-formed request that says the same, and not a byte more.
"""

import base64
import re
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

import outside
import strict
from families import at_instance


def listed(title):
    """The names in the first cells of a table of docs/headers.md: all that may pass, in one direction."""
    text = (Path(__file__).parents[2] / "docs/headers.md").read_text()
    section = next(section for section in text.split("\n## ") if section.startswith(title))
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name.lower().encode() for cell in cells for name in re.findall("`([^`]+)`", cell)}


TO_INSTANCE = listed("To the instance")
# And what bearerd adds, HTTP/1.1 needs, and the programs have asked for by settings.
TO_CALLER = listed("To the caller") | {b":status", b"x-request-id", b"connection", b"transfer-encoding", b"x-marker", b"x-sim-marker", b"x-sim-user"}
# bearerd's own words at the origin, whatever the caller said.
OWN = {b"host", b"authorization", b"content-length", b"transfer-encoding"}
TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

# And what bearerd's own refusals say besides.
OF_REFUSALS = {b"bearerd-error", b"www-authenticate"}


def key_test(expected):
    """The test that a request carries `expected`, and no other key, in one of the places that there are."""

    def carries(request):
        found = set(request.values(b"x-api-key") + request.values(b"x-sn-apikey"))
        for value in request.values(b"authorization"):
            scheme, _, rest = value.partition(b" ")
            rest = rest.strip(b" \t")
            if scheme.lower() == b"basic":
                try:
                    rest = base64.b64decode(rest, validate=True).partition(b":")[2]
                except ValueError:
                    return False
            elif scheme.lower() != b"bearer":
                return False
            found.add(rest)
        return found == {expected}

    return carries


@dataclass(slots=True)
class Finding:
    what: str
    stream: bytes
    seen: str = ""
    rule: str = ""  # of the written list, where the stream breaks one


@dataclass(slots=True, eq=False)
class Expected:
    """A request that may be accepted: at the origin at most once, and with one answer."""

    stream: bytes
    request: strict.Request
    marker: int | None = None
    answered: bool = False


class Judge:
    def __init__(self, origin, key, sent_paths, received_paths):
        self.origin_host, self.token = None, origin.token
        self.sent_paths, self.received_paths, self.has_key = sent_paths, received_paths, key_test(key)
        self.expected = defaultdict(deque)  # content at the origin: Expected that has not come there
        self.heads = Counter()  # (method, target) of heads that may have come there, of requests never finished
        self.late = Counter()  # content of requests whose caller is gone, and which may come all the same
        self.by_marker = {}
        self.flooded = lambda _path: False  # paths of floods: how often they come is not judged
        self.findings = []
        self.counts = Counter()
        origin.on_record, origin.on_cut, origin.on_fault = self.record, self.cut, self.fault

    def find(self, what, stream, seen=""):
        self.counts["findings"] += 1
        self.findings.append(Finding(what, stream, seen))

    # --- before it is sent ---

    def read(self, stream):
        """Reads a stream strictly and by h11; registers what may come to the origin. Gives the reading and, request by
        request, what is expected (None: must be refused)."""
        reading = strict.read(stream, self.sent_paths, self.has_key)
        taken = outside.accepted(stream)
        expectations = []
        for index, request in enumerate(reading.requests):
            self.counts["requests"] += 1
            by_outside = index < len(taken)
            if by_outside and taken[index] != (request.method, request.target, request.body):
                self.find("the two judges read differently", stream, repr(taken[index])[:300])
            if request.refused or not by_outside:
                self.counts["must be refused"] += 1
                expectations.append(None)
                continue
            expectations.append(self.expect(stream, request))
        if reading.ends in ("fault", "incomplete"):
            self.counts["faults"] += reading.ends == "fault"
        if reading.partial is not None:
            self.heads[head_content(reading.partial)] += 1
        return reading, expectations

    def name_rule(self, stream, reading, since):
        """Says of the findings `since` which rule their stream breaks first."""
        broken = [request.refused for request in reading.requests if request.refused] + [reading.rule or "h11's alone"]
        for finding in self.findings[since:]:
            if finding.stream is stream:
                finding.rule = broken[0]

    def expect(self, stream, request):
        """A request that may come to the origin, once."""
        expected = Expected(stream, request)
        self.expected[content(request)].append(expected)
        return expected

    def forget(self, expectations):
        """No more answers will be taken. What may have been accepted and was not answered may still come, once."""
        for expected in expectations:
            if expected is None or expected.answered:
                continue
            if expected.marker is not None:
                self.counts["answers lost"] += 1
                del self.by_marker[expected.marker]
            else:
                self.withdraw(expected)
                self.late[content(expected.request)] += 1

    def withdraw(self, expected):
        waiting = self.expected[content(expected.request)]
        waiting.remove(expected)
        if not waiting:
            del self.expected[content(expected.request)]

    # --- at the origin ---

    def record(self, record):
        request = record.request
        if self.flooded(request.path):
            self.counts["of floods at the origin"] += 1
            return None
        self.counts["at the origin"] += 1
        key = (request.method, request.target, request.body)
        waiting = self.expected.get(key)
        if not waiting:
            if self.late[key] > 0:
                self.late[key] -= 1
                self.counts["answers lost"] += 1
                return None
            return self.find("the origin got a request that nobody may have sent", record.raw, repr(request.target))
        expected = waiting.popleft()
        if not waiting:
            del self.expected[key]
        expected.marker = record.marker
        self.by_marker[record.marker] = expected
        self.check_head(expected, record)
        taken = outside.accepted(record.raw)
        if taken != [(request.method, request.target, request.body)]:
            self.find("h11 does not read one request from what the origin got", expected.stream, repr(record.raw[:400]))

    def check_head(self, expected, record):
        request, sent = record.request, expected.request

        def bad(what):
            self.find(f"at the origin: {what}", expected.stream, repr(record.raw[:600]))

        if request.version != (1, 1):
            bad("not HTTP/1.1")
        if not self.received_paths(request.path):
            bad("a path outside the opened families")
        if request.values(b"host") != [self.origin_host]:
            bad("not exactly one Host, the origin's")
        if request.values(b"authorization") != [b"Bearer " + self.token]:
            bad("not exactly one Authorization, the bearer")
        if request.trailers:
            bad("trailers")
        options = sent.options()
        passed = sent.fields.copy()
        for name, value in request.fields:
            if name in OWN:
                continue
            if name not in TO_INSTANCE:
                bad(f"{name.decode()} passed")
            elif name in options:
                bad(f"{name.decode()} passed, though Connection lists it")
            elif name == b"traceparent" and not TRACEPARENT.fullmatch(value):
                bad("a malformed traceparent passed")
            elif (name, value) in passed:
                passed.remove((name, value))
            else:
                bad(f"{name.decode()} is not as it was sent")

    def cut(self, raw):
        """A request that never came whole: its head must be one that the strict reading passed, its body must lack."""
        self.counts["cut at the origin"] += 1
        try:
            head, _ = strict.read_head(raw, 0)
        except (strict.Incomplete, strict.Fault):
            return self.find("the origin got part of a head", raw)
        if self.flooded(head.path):
            return None
        if self.heads[(head.method, head.target)] > 0:
            return
        # Or one that may be accepted, whose caller left before it had sent all.
        if not any((head.method, head.target) == key[:2] for key in self.expected):
            self.find("the origin got the head of a request that nobody may have sent", raw)

    def fault(self, what, raw):
        self.find(f"the origin got {what}", raw)

    # --- what came back ---

    def answered(self, stream, expected, answer):
        """Judges one answer; `expected` is None where the request must be refused."""
        accepted = b"x-marker" in answer.fields or answer.status < 400
        self.counts["accepted" if accepted else f"refused {answer.status}"] += 1
        for name in answer.fields:
            if name not in TO_CALLER and (accepted or name not in OF_REFUSALS):
                self.find(f"{name.decode()} came back", stream, repr(answer.fields[name]))
        if expected is not None:
            expected.answered = True
        if not accepted:
            if expected is not None:
                if expected.marker is None:
                    self.withdraw(expected)
                else:
                    del self.by_marker[expected.marker]
                    self.find("the origin got a request that was answered with an error", stream, repr(answer)[:300])
                if answer.status >= 500:
                    self.find(f"a good request was answered {answer.status}", stream, repr(answer.body[:300]))
            elif answer.status >= 500:
                self.find(f"a hostile request was answered {answer.status}", stream, repr(answer.body[:300]))
            if b"bearerd-error" not in answer.fields or b"x-request-id" not in answer.fields:
                self.find("an error that is not bearerd's", stream, repr(answer)[:300])
            return
        marker = int(answer.value(b"x-marker") or -1)
        at_origin = self.by_marker.pop(marker, None)
        if expected is None:
            return self.find("accepted what must be refused", stream, f"{answer.status} {answer.body[:200]!r}")
        if at_origin is not expected and at_origin is not None and content(at_origin.request) == content(expected.request):
            # The same request twice at once: which is which cannot be told, and does not matter.
            at_origin.marker, expected.marker = expected.marker, at_origin.marker
            if at_origin.marker is not None:
                self.by_marker[at_origin.marker] = at_origin
            else:
                self.expected[content(expected.request)].append(at_origin)
                self.withdraw(expected)
            at_origin = expected
        if at_origin is not expected:
            self.find("the answer is another request's", stream, f"marker {marker}, expected {expected.marker}")
        elif expected.request.method != b"HEAD" and answer.body != b'{"result":[],"marker":%d}' % marker:
            self.find("the answer is not the origin's", stream, repr(answer.body[:200]))


def content(request):
    return request.method, at_instance(request.target), request.body


def head_content(request):
    return request.method, at_instance(request.target)
