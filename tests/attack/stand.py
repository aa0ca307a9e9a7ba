"""Starts a bearerd of its own and runs one program of this folder against it: for trying without the test harness.

    tests/.venv/bin/python3 tests/attack/stand.py [--tls] BINARY h1_shapes.py [ARGUMENTS…]

With --tls the proxy door speaks TLS, with a certificate that openssl makes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

TOKEN = "origin-access-token"


def free_port(host):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Admin:
    def __init__(self, origin, key):
        self.origin, self.key = origin, key

    def send(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.origin + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")


def main():
    _, *given = sys.argv
    is_tls = given[:1] == ["--tls"]
    binary, name, *words = given[is_tls:]
    host = "127.%d.%d.1" % (1 + os.getpid() // 254 % 254, os.getpid() % 254)
    with tempfile.TemporaryDirectory(prefix="bearerd-attack-") as folder:
        init = subprocess.run([binary, "init", "--dir", f"{folder}/d"], capture_output=True, text=True, check=True)
        admin_key = next(word for word in init.stdout.split() if word.startswith("bda_"))
        doors = {door: f"{host}:{free_port(host)}" for door in ("proxy", "connect", "admin")}
        environment = {f"BEARERD__{door.upper()}__LISTEN": where for door, where in doors.items()}
        environment["BEARERD__PROXY__PASS_ANSWER_HEADERS"] = "x-marker,x-sim-marker,x-sim-user"
        if is_tls:
            certificate, key = certify(folder, host)
            environment |= {"BEARERD__PROXY__TLS__CERTIFICATE_FILE": certificate, "BEARERD__PROXY__TLS__KEY_FILE": key}
            words += ["--tls-authority", certificate]
        extra = {name: value for name, value in os.environ.items() if name.startswith("BEARERD__")}
        log = open(os.environ.get("BEARERD_LOG", f"{folder}/log"), "w+")
        daemon = subprocess.Popen(
            [binary, "serve", "--config", f"{folder}/d/bearerd.toml"], env=environment | extra, stdout=log, stderr=log
        )
        try:
            sys.exit(attack(doors, admin_key, host, daemon, name, words))
        finally:
            if daemon.poll() is not None:
                log.seek(0)
                print(f"bearerd ended with {daemon.returncode}:\n{log.read()[-4000:]}", file=sys.stderr)
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()


def certify(folder, host):
    certificate, key = f"{folder}/door.pem", f"{folder}/door.key"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=attack", "-addext", f"subjectAltName=IP:{host}", "-out", certificate, "-keyout", key]
    subprocess.run(words, check=True, capture_output=True)
    return certificate, key


def attack(doors, admin_key, host, daemon, name_of_program, words):
    admin = Admin("http://" + doors["admin"], admin_key)
    while True:
        try:
            urllib.request.urlopen(admin.origin + "/readyz", timeout=1).close()
            break
        except OSError:
            if daemon.poll() is not None:
                return 2
            time.sleep(0.02)
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    keys = {}
    for name, connections in {"open": "all", "second": {"ids": ["hr-second"]}, "third": {"ids": ["hr-third"]}}.items():
        rule = {"connections": connections, "tables": "all", "methods": methods}
        if "--families" in words:
            rule["families"] = words[words.index("--families") + 1].split(",")
        admin.send("PUT", f"/v1/policies/{name}", {"rules": [rule]})
        keys[name] = admin.send("POST", "/v1/keys", {"description": "attack", "policies": [name]})["caller_key"]
    origin, other = (f"{host}:{free_port(host)}" for _ in range(2))
    program = Path(__file__).parent / name_of_program
    arguments = ["--proxy", doors["proxy"], "--origin", origin, "--key", keys["open"], "--token", TOKEN]
    if name_of_program == "h2_floods.py":
        arguments += ["--pid", str(daemon.pid)]
    if name_of_program == "crosstalk.py":
        arguments += ["--second-key", keys["second"], "--third-key", keys["third"], "--other-origin", other]
        arguments += ["--second-token", f"{TOKEN}-2", "--third-token", f"{TOKEN}-3"]
    running = subprocess.Popen([sys.executable, program, *arguments, *words])
    while running.poll() is None:
        try:
            where = origin.rsplit(":", 1)
            socket.create_connection((where[0], int(where[1])), timeout=1).close()
            break
        except OSError:
            time.sleep(0.02)
    http2 = "--instance-http2" in words and words[words.index("--instance-http2") + 1] == "1"
    if running.poll() is None:
        connect(admin, "hr", origin, "hr-prod", TOKEN, http2)
        if name_of_program == "crosstalk.py":
            connect(admin, "hr", origin, "hr-second", f"{TOKEN}-2", http2)
            connect(admin, "other", other, "hr-third", f"{TOKEN}-3", http2)
    return running.wait()


def connect(admin, integration, instance, connection, token, http2):
    registered = {"instance": f"http://{instance}", "client_id": "c", "client_secret": "s", "http2": http2}
    admin.send("PUT", f"/v1/integrations/{integration}", registered)
    tokens = {"access_token": token, "expires_in": 86400}
    admin.send("PUT", f"/v1/connections/{connection}", {"integration": integration, "import": tokens})


if __name__ == "__main__":
    main()
