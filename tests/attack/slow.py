"""slowhttptest in its three modes with 1,000 sockets (P-19): slow heads, slow bodies, slow reading. Good callers, who
come at a steady rate from a process of their own, are all served, and their p99 stays under twice what it was right
before. Other work on the machine can only lengthen it, so a mode has three rounds to show that.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time

import program
from caller import Caller

SOCKETS, RATE_PER_S = 1000, 500
PROBES_PER_S = 100
PROBE_S_MAX = 5
BASELINE_S, ATTACK_S = 5, 13
ROUNDS_MAX = 3
BIG = 300_000  # bytes of an answer that is read slowly: more than buffers hold


def modes(url, key):
    """The words of each mode. The key rides in a field that slowhttptest lets its user choose."""
    credentials = f"application/json\r\nAuthorization: Bearer {key}"
    rest = ["-c", str(SOCKETS), "-r", str(RATE_PER_S), "-l", str(ATTACK_S), "-p", str(PROBE_S_MAX)]
    return {
        "slow heads": ["-H", "-i", "10", "-x", "24", "-t", "GET", "-u", url, *rest],
        "slow bodies": ["-B", "-i", "10", "-s", "8192", "-x", "10", "-t", "POST", "-m", credentials, "-u", url, *rest],
        "slow reading": ["-X", "-w", "256", "-y", "512", "-n", "5", "-z", "32", "-k", "1", "-m", credentials, "-u", f"{url}?big={BIG}", *rest],
    }


async def probe(given, seconds):
    """Good calls at a steady rate, each over a new connection: how long each took, and those that failed."""
    took, bad = [], []
    request = b"GET /api/now/table/probe HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer %b\r\n\r\n" % given.key.encode()

    async def call():
        begun = time.monotonic()
        try:
            caller = await Caller.connect(given.proxy)
            await caller.send([request])
            answer = await caller.take(b"GET", PROBE_S_MAX)
            caller.close()
        except (OSError, TimeoutError) as error:
            bad.append(repr(error))
            return
        took.append(time.monotonic() - begun)
        if answer is None or answer.status != 200:
            bad.append(repr(answer))

    begun, calls = time.monotonic(), []
    for number in range(seconds * PROBES_PER_S):
        await asyncio.sleep(max(0, begun + number / PROBES_PER_S - time.monotonic()))
        calls.append(asyncio.ensure_future(call()))
    await asyncio.gather(*calls)
    took.sort()
    p99 = took[len(took) * 99 // 100] if took else None
    print(json.dumps({"calls": len(calls), "bad": bad[:5], "failed": len(bad), "p50_ms": took[len(took) // 2] * 1000, "p99_ms": p99 * 1000}))


async def probed(seconds):
    """The same from a process of its own."""
    words = [sys.executable, "-B", __file__, *sys.argv[1:], "--probe", str(seconds)]
    running = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    out, _ = await running.communicate()
    return json.loads(out)


async def round_of(words):
    """Good traffic alone, then beside the attack."""
    before = await probed(BASELINE_S)
    with tempfile.TemporaryDirectory() as folder:
        # It polls its sockets without a pause. An attacker is on another machine, so the processor is not its to take.
        attack = await asyncio.create_subprocess_exec("nice", "-n", "19", "slowhttptest", *words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        reading = asyncio.ensure_future(attack.communicate())
        try:
            await asyncio.sleep(SOCKETS / RATE_PER_S)  # until all its sockets are there
            during = await probed(ATTACK_S - SOCKETS // RATE_PER_S - 1)
            out, _ = await asyncio.wait_for(reading, ATTACK_S + 30)
        finally:
            if attack.returncode is None:
                attack.kill()
    return before, during, out.decode(errors="replace")


def most(output, name):
    """The greatest figure that slowhttptest printed behind `name`, such as `connected:`."""
    words = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", " ", output).split()
    return max((int(after) for word, after in zip(words, words[1:]) if word == name and after.isdigit()), default=0)


async def main():
    given = program.arguments(__doc__, probe=(0, "only good traffic, for so many seconds"), rounds=(ROUNDS_MAX, "rounds a mode has at most"))
    if given.probe:
        return await probe(given, given.probe)
    begun = time.monotonic()
    judge = await program.start(given)
    judge.flooded = lambda path: path.startswith(b"/api/now/table/")
    if not shutil.which("slowhttptest"):
        sys.exit("slowhttptest is missing: tests/run installs it")
    url = f"http://{given.proxy[0]}:{given.proxy[1]}/api/now/table/slow"
    rows = []
    for name, words in modes(url, given.key).items():
        for _ in range(given.rounds):
            before, during, output = await round_of(words)
            row = {"mode": name, "connected": most(output, "connected:"), "before": before, "during": during}
            rows.append(row)
            if during["failed"] or before["failed"]:
                judge.find(f"{name}: a good caller was not served", b"", repr(row))
            if row["connected"] + most(output, "closed:") < SOCKETS * 9 // 10:
                judge.find(f"{name}: slowhttptest did not open its sockets", b"", output[-1500:])
            if during["p99_ms"] < 2 * before["p99_ms"]:
                break
        else:
            judge.find(f"{name}: p99 of good traffic is not under twice the baseline", b"", repr(rows[-given.rounds :]))
    program.report(judge, begun, modes=rows)


if __name__ == "__main__":
    program.run(main())
