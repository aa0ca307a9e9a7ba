"""The cross-talk soak (P-17, P-18, P-28, I-4, I-11): a thousand callers' connections, three connections of three users
at two instances, calls that interleave, callers that leave at any moment, instances that reset, delay and cut off.

Each answer says which call and which user it is for: none may reach another caller. No write is executed twice, no
cookie passes either way, and a call that nothing befell is answered.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter, defaultdict

import program
from caller import Answer, BadAnswer, Caller
from judge import Judge
from origin import Origin, OriginConnection

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

    def answer(self, user):
        filler = chr(65 + self.marker % 26) * self.size
        return json.dumps({"marker": self.marker, "user": user, "filler": filler}).encode()


class Instance:
    """What an origin of the soak saw: by marker, how often each call was executed."""

    def __init__(self, seed, users, name):
        self.seed, self.users, self.name = seed, users, name
        self.executed = Counter()
        self.wrong = defaultdict(int)


class SoakConnection(OriginConnection):
    instance = None

    def answer(self, request, raw):
        found = MARKER.search(request.target)
        if not found:
            return super().answer(request, raw)
        instance = self.origin.instance
        call = Call(instance.seed, int(found[1]))
        bearers = [value.removeprefix(b"Bearer ").decode() for value in request.values(b"authorization")]
        user = instance.users.get(bearers[0]) if len(bearers) == 1 else None
        wrong = {
            "a call came without exactly one known token": user is None,
            "a call came with another connection's token": user is not None and user != call.connection,
            "a cookie came to the instance": bool(request.values(b"cookie") + request.values(b"cookie2")),
            "the body is another call's": request.body != call.body,
            "the method is another call's": request.method != call.method,
        }
        for what, is_so in wrong.items():
            instance.wrong[what] += is_so
        if call.mishap == "reset before":
            return self.transport.abort()
        instance.executed[call.marker] += 1
        if call.mishap == "reset after":
            return self.transport.abort()
        body = call.answer(user)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Sim-Marker: %d\r\nX-Sim-User: %b\r\nSet-Cookie: JSESSIONID=%d\r\nContent-Length: %d\r\n%b\r\n" % (
            call.marker, str(user).encode(), call.marker, len(body), b"Connection: close\r\n" if call.mishap == "last" else b"",
        )
        data = head if request.method == b"HEAD" else head + body
        if call.mishap == "cut":
            self.transport.write(data[: len(head) + len(body) // 2] if request.method != b"HEAD" else head[: len(head) // 2])
            return self.transport.close()
        if call.mishap == "delay":
            asyncio.get_running_loop().call_later(call.delay_s, self.late, data)
            return None
        self.transport.write(data)
        if call.mishap == "last":
            self.transport.close()

    def late(self, data):
        if not self.transport.is_closing():
            self.transport.write(data)


class Soak:
    def __init__(self, given, judge, users):
        self.given, self.judge = given, judge
        self.keys = dict(zip(CONNECTIONS, [given.key, given.second_key, given.third_key]))
        self.next = iter(range(given.first, given.first + given.count))
        self.counts = Counter()
        self.users = users
        self.left = set()

    async def caller(self):
        """One connection of a caller at a time, call after call."""
        connection = None
        for marker in self.next:
            call = Call(self.given.seed, marker)
            try:
                if connection is None:
                    connection = await Caller.connect(self.given.proxy)
                answer = await self.exchange(connection, call)
            except (BadAnswer, TimeoutError, OSError) as error:
                self.failed(call, repr(error)[:200])
                answer = None
            if answer is None or answer.is_last or connection.ended:
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def request(self, call):
        named = {"path": b"/c/%b" % call.connection.encode()}.get(call.named_by, b"")
        by_key = self.keys[call.connection] if call.named_by == "key" else self.given.key
        fields = [
            b"%b %b/api/now/table/incident?marker=%d HTTP/1.1" % (call.method, named, call.marker),
            b"Host: bearerd.example",
            b"Authorization: Bearer %b" % by_key.encode(),
            b"Cookie: JSESSIONID=caller-%d" % call.marker,
        ]
        if call.named_by == "header" or (call.named_by == "key" and call.connection == "hr-prod"):
            fields.append(b"Connection-Id: %b" % call.connection.encode())
        if call.body and call.marker % 2:
            fields.append(b"Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(call.body), call.body)
        else:
            fields.append(b"Content-Length: %d" % len(call.body))
            body = call.body
        return b"\r\n".join(fields) + b"\r\n\r\n", body

    async def exchange(self, connection, call):
        head, body = self.request(call)
        if call.leaves == "in the body" and body:
            await connection.send([head + body[: len(body) // 2]])
            return self.leave(call)
        await connection.send([head + body])
        if call.leaves == "at some time":
            await asyncio.sleep(call.leaves_after_s)
            return self.leave(call)
        if call.leaves == "in the answer":
            while not connection.held and not connection.ended:
                if not await connection.more(PATIENCE_S):
                    raise TimeoutError
            self.look(call, connection.held)
            return self.leave(call)
        answer = await connection.take(call.method, PATIENCE_S)
        if answer is None:
            self.failed(call, "no answer")
            return None
        self.judge_answer(call, answer)
        return answer

    def leave(self, call):
        self.counts["left"] += 1
        self.left.add(call.marker)

    def look(self, call, held):
        """The beginning of an answer, as far as it came."""
        found = re.search(rb"x-sim-marker: ([0-9]+)\r\n", held.lower())
        if found and int(found[1]) != call.marker:
            self.judge.find("an answer reached another caller", self.request(call)[0], repr(held[:300]))

    def judge_answer(self, call, answer: Answer):
        shown = self.request(call)[0]
        if b"set-cookie" in answer.fields:
            self.judge.find("a cookie came back", shown, repr(answer.fields))
        if b"bearerd-error" in answer.fields:
            self.counts[f"answered {answer.status}"] += 1
            if call.mishap not in ("reset before", "reset after", "cut"):
                self.judge.find(f"a call that nothing befell was answered {answer.status}", shown, repr(answer.body[:300]))
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
            self.judge.find("a call that nothing befell was broken off", self.request(call)[0], f"{call.mishap}: {why}")

    def settle(self, instances):
        """Once all is over: what was executed how often, by what was answered."""
        executed = Counter()
        for instance in instances:
            executed.update(instance.executed)
            for what, times in instance.wrong.items():
                if times:
                    self.judge.find(what, b"", f"{times} times at {instance.name}")
        for marker, times in executed.items():
            call = Call(self.given.seed, marker)
            if times > 1 and call.method not in (b"GET", b"HEAD"):
                self.judge.find("a write was executed twice", self.request(call)[0], f"{times} times, {call.mishap}")
        writes = sum(1 for marker in executed if Call(self.given.seed, marker).method not in (b"GET", b"HEAD"))
        self.counts.update({"executed": sum(executed.values()), "writes executed": writes})


async def main():
    given = program.arguments(
        __doc__,
        count=(20_000, "calls"),
        first=(1, "the first call's number"),
        seed=(1, "what the calls are made from"),
        callers=(1000, "callers' connections at once"),
        second_key=("", "a caller key that opens hr-second alone"),
        third_key=("", "a caller key that opens hr-third alone"),
        second_token=("", "the access token of hr-second, at the same instance"),
        third_token=("", "the access token of hr-third, at the other instance"),
        other_origin=("", "HOST:PORT where to listen as the other instance"),
    )
    begun = time.monotonic()
    users = {given.token: "hr-prod", given.second_token: "hr-second", given.third_token: "hr-third"}
    here = {given.token: "hr-prod", given.second_token: "hr-second"}
    there = {given.third_token: "hr-third"}
    instances = [Instance(given.seed, here, "the instance"), Instance(given.seed, there, "the other instance")]
    first, other = Origin(given.token.encode()), Origin(given.third_token.encode())
    for origin, instance in zip([first, other], instances):
        origin.instance, origin.kind = instance, SoakConnection
    judge = Judge(first, given.key.encode(), lambda _: True, lambda _: True)
    # Callers leave in the middle of what they send, so that a cut request is no finding here; an unreadable one is.
    for origin in (first, other):
        origin.on_cut, origin.on_fault, origin.on_record = (lambda _: None), judge.fault, (lambda _: None)
    # The other one first: whoever started this waits for the first.
    await other.start(*program.address(given.other_origin))
    await first.start(*given.origin)
    keys = [(given.key, "/c/hr-prod"), (given.second_key, ""), (given.third_key, "")]
    for key, prefix in keys:
        await program.until_open(given.proxy, key, prefix)
    soak = Soak(given, judge, users)
    await asyncio.gather(*(soak.caller() for _ in range(given.callers)))
    await asyncio.sleep(0.5)  # what was on its way when the last caller left
    soak.settle(instances)
    judge.counts.update(soak.counts)
    program.report(judge, begun, calls=given.count, upstream_connections=first.connections + other.connections, calls_per_second=round(given.count / (time.monotonic() - begun)))


if __name__ == "__main__":
    program.run(main())
