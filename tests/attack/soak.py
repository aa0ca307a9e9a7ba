"""The calls of the cross-talk soak, what becomes of each, and the judgement: the same over HTTP/1.1 and HTTP/2.

Each answer says which call and which user it is for: none may reach another caller. No write is executed twice, no
cookie passes either way, and a call that nothing befell is answered.
"""

import json
import random
import re
from collections import Counter, defaultdict

from caller import Answer

MARKER = re.compile(rb"[?&]marker=([0-9]+)")
# How the three connections are called, and how a call names one.
CONNECTIONS = ["hr-prod", "hr-second", "hr-third"]
PATIENCE_S = 30
METHODS = [b"GET", b"GET", b"GET", b"POST", b"POST", b"PATCH", b"DELETE", b"HEAD"]


class Call:
    """Everything about a call follows from its number and the seed: both ends know it."""

    def __init__(self, seed, marker):
        dice = random.Random(seed << 32 | marker)
        self.marker = marker
        self.method = dice.choice(METHODS)
        self.connection = dice.choice(CONNECTIONS)
        self.named_by = dice.choice(["path", "header", "key"])
        self.mishap = dice.choices(["none", "reset before", "reset after", "cut", "delay", "last"], [90, 2, 2, 2, 3, 1])[0]
        self.delay_s = dice.uniform(0.01, 0.3)
        self.size = dice.choice([0, 10, 1000, 1000, 20_000, 200_000 if dice.random() < 0.1 else 100])
        self.leaves = dice.choices(["no", "at some time", "in the answer", "in the body"], [85, 8, 4, 3])[0]
        self.leaves_after_s = dice.uniform(0, 0.05)
        self.body = b"" if self.method in (b"GET", b"HEAD", b"DELETE") else b"%d:" % marker + bytes([97 + marker % 26]) * self.size
        # Over HTTP/2, where a connection is that of many calls: who leaves with all of them, caller or instance.
        self.takes_all_along = dice.choices([None, "the caller", "the instance"], [996, 3, 1])[0]

    @property
    def is_write(self):
        return self.method not in (b"GET", b"HEAD")

    def answer(self, user):
        filler = chr(65 + self.marker % 26) * self.size
        return json.dumps({"marker": self.marker, "user": user, "filler": filler}).encode()

    def answer_fields(self, user, body):
        return [
            (b"content-type", b"application/json"),
            (b"x-sim-marker", b"%d" % self.marker),
            (b"x-sim-user", str(user).encode()),
            (b"set-cookie", b"JSESSIONID=%d" % self.marker),
            (b"content-length", b"%d" % len(body)),
        ]


class Instance:
    """What an origin of the soak saw: by marker, how often each call was executed."""

    def __init__(self, seed, users, name):
        self.seed, self.users, self.name = seed, users, name
        self.executed = Counter()
        self.wrong = defaultdict(int)
        # Calls that were under way when their connection broke or was not for them, and how often one broke.
        self.lost, self.losses = set(), 0

    def meets(self, request):
        """A call has come whole: notes what is wrong with it, and gives it and whose token it has; None for a request
        that is no call."""
        found = MARKER.search(request.target)
        if not found:
            return None
        call = Call(self.seed, int(found[1]))
        bearers = [value.removeprefix(b"Bearer ").decode() for value in request.values(b"authorization")]
        user = self.users.get(bearers[0]) if len(bearers) == 1 else None
        wrong = {
            "a call came without exactly one known token": user is None,
            "a call came with another connection's token": user is not None and user != call.connection,
            "a cookie came to the instance": bool(request.values(b"cookie") + request.values(b"cookie2")),
            "the body is another call's": request.body != call.body,
            "the method is another call's": request.method != call.method,
        }
        for what, is_so in wrong.items():
            self.wrong[what] += is_so
        return call, user

    def lose(self, requests):
        """Something befell these calls, whatever they are."""
        self.lost.update(int(found[1]) for found in (MARKER.search(request.target) for request in requests) if found)


class Soak:
    def __init__(self, given, judge):
        self.given, self.judge = given, judge
        self.keys = dict(zip(CONNECTIONS, [given.key, given.second_key, given.third_key]))
        self.next = iter(range(given.first, given.first + given.count))
        self.counts = Counter()
        self.suspects = []

    def calls(self):
        """One after the other; everybody who asks gets others."""
        for marker in self.next:
            yield Call(self.given.seed, marker)

    # --- what a caller sends ---

    def target(self, call):
        named = b"/c/%b" % call.connection.encode() if call.named_by == "path" else b""
        return b"%b/api/now/table/incident?marker=%d" % (named, call.marker)

    def fields(self, call):
        by_key = self.keys[call.connection] if call.named_by == "key" else self.given.key
        fields = [(b"authorization", b"Bearer %b" % by_key.encode()), (b"cookie", b"JSESSIONID=caller-%d" % call.marker)]
        if call.named_by == "header" or (call.named_by == "key" and call.connection == "hr-prod"):
            fields.append((b"connection-id", call.connection.encode()))
        return fields

    def shown(self, call):
        return b"%b %b %b" % (call.method, self.target(call), repr(self.fields(call)).encode())

    # --- what became of it ---

    def leave(self):
        self.counts["left"] += 1

    def look(self, call, marker, seen):
        """The beginning of an answer, as far as it came."""
        if int(marker) != call.marker:
            self.judge.find("an answer reached another caller", self.shown(call), repr(seen)[:300])

    def look_at_head(self, call, fields):
        for marker in fields.get(b"x-sim-marker", []):
            self.look(call, marker, fields)

    def judge_answer(self, call, answer: Answer):
        shown = self.shown(call)
        if b"set-cookie" in answer.fields:
            self.judge.find("a cookie came back", shown, repr(answer.fields))
        if b"bearerd-error" in answer.fields:
            self.counts[f"answered {answer.status}"] += 1
            if call.mishap not in ("reset before", "reset after", "cut"):
                self.suspects.append((call, f"a call that nothing befell was answered {answer.status}", repr(answer.body[:300])))
            return
        self.counts["answered"] += 1
        said = int(answer.value(b"x-sim-marker") or -1), answer.value(b"x-sim-user").decode()
        if said != (call.marker, call.connection):
            self.judge.find("an answer reached another caller", shown, f"{said}, expected {call.marker}, {call.connection}")
        elif call.method != b"HEAD" and answer.body != call.answer(call.connection):
            self.judge.find("an answer's body is not what was sent", shown, repr(answer.body[:200]))
        elif call.mishap in ("reset before", "reset after") or (call.mishap == "cut" and call.method != b"HEAD"):
            self.judge.find("an answer came that was never sent whole", shown)

    def failed(self, call, why):
        """No answer, or half of one: only where the instance did so."""
        self.counts["broken off"] += 1
        if call.mishap != "cut":
            self.suspects.append((call, "a call that nothing befell was broken off", f"{call.mishap}: {why}"))

    def settle(self, instances):
        """Once all is over: what was executed how often, by what was answered."""
        executed = Counter()
        for instance in instances:
            executed.update(instance.executed)
            for what, times in instance.wrong.items():
                if times:
                    self.judge.find(what, b"", f"{times} times at {instance.name}")
        self.clear_suspects(instances, executed)
        for marker, times in executed.items():
            call = Call(self.given.seed, marker)
            if times > 1 and call.is_write:
                self.judge.find("a write was executed twice", self.shown(call), f"{times} times, {call.mishap}")
        writes = sum(1 for marker in executed if Call(self.given.seed, marker).is_write)
        self.counts.update({"executed": sum(executed.values()), "writes executed": writes})

    def clear_suspects(self, instances, executed):
        """Something befell those that were under way on a connection when the instance broke it. Some of them were on
        their way to it: never more than one connection carries."""
        lost = set().union(*(instance.lost for instance in instances))
        unseen = CALLS_AT_ONCE_MAX * sum(instance.losses for instance in instances)
        for call, what, seen in self.suspects:
            if call.marker in lost:
                self.counts["lost with a connection"] += 1
            elif call.marker not in executed and unseen > 0:
                unseen -= 1
                self.counts["lost on the way to one"] += 1
            else:
                self.judge.find(what, self.shown(call), seen)


# Of bearerd, on one HTTP/2 connection to an instance.
CALLS_AT_ONCE_MAX = 100
