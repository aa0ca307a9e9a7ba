"""The cross-talk soak (P-17, P-18, P-28, I-4, I-11): a thousand callers at once, three connections of three users at
two instances, calls that interleave, callers that leave at any moment, instances that reset, delay and cut off.

Over HTTP/1.1 each caller has a connection of its own; with --http2 they are the streams of fifty. With
--instance-http2 the instances speak HTTP/2 as well. `soak.py` says what must hold.
"""

import asyncio
import re
import time

import crosstalk_h2
import program
from caller import BadAnswer, Caller
from judge import Judge
from origin import Origin, OriginConnection
from soak import PATIENCE_S, Instance, Soak


class SoakConnection(OriginConnection):
    def answer(self, request, raw):
        instance = self.origin.instance
        met = instance.meets(request)
        if met is None:
            return super().answer(request, raw)
        call, user = met
        if call.mishap == "reset before":
            return self.transport.abort()
        instance.executed[call.marker] += 1
        if call.mishap == "reset after":
            return self.transport.abort()
        body = call.answer(user)
        fields = call.answer_fields(user, body) + [(b"connection", b"close")] * (call.mishap == "last")
        head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
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


async def caller(soak):
    """One connection of a caller at a time, call after call."""
    connection = None
    for call in soak.calls():
        try:
            if connection is None:
                connection = await Caller.connect(soak.given.proxy)
            answer = await exchange(soak, connection, call)
        except (BadAnswer, TimeoutError, OSError) as error:
            soak.failed(call, repr(error)[:200])
            answer = None
        if answer is None or answer.is_last or connection.ended:
            if connection is not None:
                connection.close()
            connection = None
    if connection is not None:
        connection.close()


def request(soak, call):
    fields = [(b"host", b"bearerd.example"), *soak.fields(call)]
    if call.body and call.marker % 2:
        fields.append((b"transfer-encoding", b"chunked"))
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(call.body), call.body)
    else:
        fields.append((b"content-length", b"%d" % len(call.body)))
        body = call.body
    lines = [b"%b %b HTTP/1.1" % (call.method, soak.target(call)), *(b"%b: %b" % field for field in fields)]
    return b"\r\n".join(lines) + b"\r\n\r\n", body


async def exchange(soak, connection, call):
    head, body = request(soak, call)
    if call.leaves == "in the body" and body:
        await connection.send([head + body[: len(body) // 2]])
        return soak.leave()
    await connection.send([head + body])
    if call.leaves == "at some time":
        await asyncio.sleep(call.leaves_after_s)
        return soak.leave()
    if call.leaves == "in the answer":
        while not connection.held and not connection.ended:
            if not await connection.more(PATIENCE_S):
                raise TimeoutError
        found = re.search(rb"x-sim-marker: ([0-9]+)\r\n", connection.held.lower())
        if found:
            soak.look(call, found[1], connection.held)
        return soak.leave()
    answer = await connection.take(call.method, PATIENCE_S)
    if answer is None:
        soak.failed(call, "no answer")
        return None
    soak.judge_answer(call, answer)
    return answer


async def main():
    given = program.arguments(
        __doc__,
        count=(20_000, "calls"),
        first=(1, "the first call's number"),
        seed=(1, "what the calls are made from"),
        callers=(1000, "callers at once"),
        http2=(0, "1: callers speak HTTP/2"),
        instance_http2=(0, "1: bearerd was told to call the instances over HTTP/2, and they speak it"),
        second_key=("", "a caller key that opens hr-second alone"),
        third_key=("", "a caller key that opens hr-third alone"),
        second_token=("", "the access token of hr-second, at the same instance"),
        third_token=("", "the access token of hr-third, at the other instance"),
        other_origin=("", "HOST:PORT where to listen as the other instance"),
    )
    begun = time.monotonic()
    here = {given.token: "hr-prod", given.second_token: "hr-second"}
    there = {given.third_token: "hr-third"}
    instances = [Instance(given.seed, here, "the instance"), Instance(given.seed, there, "the other instance")]
    first, other = Origin(given.token.encode()), Origin(given.third_token.encode())
    for origin, instance in zip([first, other], instances):
        origin.instance = instance
        origin.kind = crosstalk_h2.SoakConnection if given.instance_http2 else SoakConnection
    judge = Judge(first, given.key.encode(), lambda _: True, lambda _: True)
    # Callers leave in the middle of what they send, so that a cut request is no finding here; an unreadable one is.
    for origin in (first, other):
        origin.on_cut, origin.on_fault, origin.on_record = (lambda _: None), judge.fault, (lambda _: None)
    # The other one first: whoever started this waits for the first.
    await other.start(*program.address(given.other_origin))
    await first.start(*given.origin)
    await program.find_door(given)
    keys = [(given.key, "/c/hr-prod"), (given.second_key, ""), (given.third_key, "")]
    for key, prefix in keys:
        await program.until_open(given.proxy, key, prefix)
    soak = Soak(given, judge)
    if given.http2:
        callers = [crosstalk_h2.callers(soak, CALLS_AT_ONCE) for _ in range(given.callers // CALLS_AT_ONCE)]
    else:
        callers = [caller(soak) for _ in range(given.callers)]
    await asyncio.gather(*callers)
    await asyncio.sleep(0.5)  # what was on its way when the last caller left
    soak.settle(instances)
    judge.counts.update(soak.counts)
    program.report(judge, begun, calls=given.count, upstream_connections=first.connections + other.connections, calls_per_second=round(given.count / (time.monotonic() - begun)))


# Over one HTTP/2 connection of a caller.
CALLS_AT_ONCE = 20

if __name__ == "__main__":
    program.run(main())
