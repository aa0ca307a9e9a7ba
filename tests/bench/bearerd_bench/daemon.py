"""bearerd as an operator sets it up, with everything on that a production daemon has on."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from . import BenchError
from .certificates import Certificates
from .machine import free_ports
from .origin import ACCESS_TOKEN, CONNECT_MAX_S, POOL_IDLE_MAX, TABLES, Origin
from .processes import Process, running
from .proxy import Proxy

NAME = "bench"
#: The imported access token outlives every run, so that no refresh comes in between.
EXPIRES_IN_S = 7 * 24 * 3600
#: Under valgrind a start takes half a minute where the machine is busy.
START_WAIT_S = 120.0
#: Settings that older binaries do not have: a section, and the limit of calls under way at one instance.
ACCESS = "access"
INSTANCE_CALLS = "proxy.instance_calls_max"
SINCE_LATER = (ACCESS, INSTANCE_CALLS)
TABLE_RULE = {"connections": {"ids": [NAME]}, "tables": {"named": sorted(TABLES.values())}, "methods": ["GET"]}
ATTACHMENT_RULE = {
    "connections": {"ids": [NAME]}, "families": ["attachment"], "tables": "all", "methods": ["GET", "POST"],
}  # fmt: skip


class Refused(BenchError):
    """The admin API did not do it."""


@dataclasses.dataclass(frozen=True)
class Installation:
    """What `bearerd init` made, and where the doors will be."""

    binary: pathlib.Path
    folder: pathlib.Path
    admin_key: str
    proxy_port: int
    connect_port: int
    admin_port: int

    @property
    def records(self) -> pathlib.Path:
        """Where access records are written."""
        return self.folder / "access.jsonl"

    def api(self, method: str, target: str, body: object = None) -> dict:
        """One call of the admin API."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=60)
        headers = {"Authorization": f"Bearer {self.admin_key}", "Content-Type": "application/json"}
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status // 100 != 2:
            raise Refused(f"{method} {target} was answered {answer.status}: {_detail(text)}")
        return json.loads(text) if text else {}

    def metrics(self) -> dict[str, float]:
        """Every series of /metrics, labels included in its name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=60)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        series = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in series}

    def set_up(self, origin: Origin, certificates: Certificates) -> str:
        """Integration, connection with an imported access token, policy, and a caller key, which is answered."""
        integration = {
            "instance": f"https://127.0.0.1:{origin.port}",
            "client_id": "bench-client",
            "client_secret": "bench-client-secret",
            "ca_file": str(certificates.authority),
        }
        self.api("PUT", f"/v1/integrations/{NAME}", integration)
        tokens = {"access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": EXPIRES_IN_S}
        self.api("PUT", f"/v1/connections/{NAME}", {"integration": NAME, "import": tokens})
        self.api("PUT", f"/v1/policies/{NAME}", {"description": "what the benchmark reads", "rules": [TABLE_RULE]})
        key = self.api("POST", "/v1/keys", {"description": "benchmark", "policies": [NAME]})
        state = self.api("GET", f"/v1/connections/{NAME}")["state"]
        if state["name"] != "active":
            raise BenchError(f"the imported connection is {state['name']}: {state['reason']}")
        return key["caller_key"]

    def open_attachments(self) -> str | None:
        """Opens the attachment family to the caller; answers why not, where this binary has none."""
        rules = [TABLE_RULE, ATTACHMENT_RULE]
        try:
            self.api("PUT", f"/v1/policies/{NAME}", {"description": "with attachments", "rules": rules})
        except Refused as refused:
            return str(refused)
        return None


@dataclasses.dataclass(frozen=True)
class Bearerd:
    """A bearerd that serves."""

    proxy: Proxy
    installation: Installation
    #: Whether the binary writes access records, and so did.
    keeps_records: bool


def install(binary: pathlib.Path, folder: pathlib.Path) -> Installation:
    """`bearerd init`."""
    done = subprocess.run([binary, "init", "--dir", folder], capture_output=True, text=True, check=False)
    key = re.search(r"bda_\w+", done.stdout)
    if done.returncode != 0 or key is None:
        raise BenchError(f"`bearerd init` failed: {done.stdout}{done.stderr}")
    return Installation(binary, folder, key[0], *free_ports(3))


def settings(
    installation: Installation, workers: int, tls: Certificates | None, known: frozenset[str]
) -> dict[str, str]:
    """What differs from the defaults, as environment variables."""
    chosen = {
        "PROXY__LISTEN": f"127.0.0.1:{installation.proxy_port}",
        "PROXY__WORKERS": str(workers),
        "PROXY__POOL_IDLE_MAX": str(POOL_IDLE_MAX),
        "EGRESS__CONNECT_TIMEOUT_S": str(CONNECT_MAX_S),
        "CONNECT__LISTEN": f"127.0.0.1:{installation.connect_port}",
        "CONNECT__PUBLIC_URL": f"http://127.0.0.1:{installation.connect_port}",
        # The operator imports the connection: nobody else needs to confirm it.
        "CONNECT__CONFIRM": "false",
        "ADMIN__LISTEN": f"127.0.0.1:{installation.admin_port}",
        "PROCESS__DRAIN_S": "2",
    }
    if tls is not None:
        chosen["PROXY__TLS__CERTIFICATE_FILE"] = str(tls.certificate)
        chosen["PROXY__TLS__KEY_FILE"] = str(tls.key)
    if INSTANCE_CALLS in known:
        chosen["PROXY__INSTANCE_CALLS_MAX"] = str(POOL_IDLE_MAX)
    if ACCESS in known:
        chosen["ACCESS__SINK"] = "file"
        chosen["ACCESS__PATH"] = str(installation.records)
        chosen["ACCESS__FILE_BYTES_MAX"] = "0"  # not rolled, so that the records can be counted
    return {f"BEARERD__{name}": value for name, value in chosen.items()}


def environment(chosen: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what another bearerd or another way out was told."""
    lower = {"https_proxy", "no_proxy"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("BEARERD") and k.lower() not in lower}
    return inherited | dict(chosen)


@contextlib.contextmanager
def serving(
    installation: Installation,
    *,
    name: str = "bearerd",
    workers: int = 1,
    tls: Certificates | None = None,
    known: frozenset[str],
    under: Sequence[str] = (),
) -> Iterator[Process]:
    """`bearerd serve`, perhaps `under` another program, until the block ends."""
    command = [*under, str(installation.binary), "serve", "--config", str(installation.folder / "bearerd.toml")]
    told = environment(settings(installation, workers, tls, known))
    with running(name, command, installation.folder, told) as process:
        process.wait_listening(installation.admin_port, START_WAIT_S)
        process.wait_for(lambda: _is_ready(installation), "getting ready", START_WAIT_S)
        yield process


def known_settings(binary: pathlib.Path, folder: pathlib.Path) -> frozenset[str]:
    """Which of `SINCE_LATER` this binary has: it refuses to start with a setting that it does not know."""
    known = set(SINCE_LATER)
    while True:
        try:
            with serving(install(binary, folder / f"trial-{len(known)}"), name="trial", known=frozenset(known)):
                return frozenset(known)
        except BenchError as error:
            unknown = re.search(r"there is no setting (\S+);", str(error))
            named = {name for name in known if unknown and f"{unknown[1]}.".startswith(f"{name}.")}
            if not named:
                raise
            known -= named


@contextlib.contextmanager
def bearerd(
    binary: pathlib.Path,
    folder: pathlib.Path,
    certificates: Certificates,
    origin: Origin,
    *,
    name: str = "bearerd",
    workers: int = 1,
    tls: bool = False,
    known: frozenset[str],
) -> Iterator[Bearerd]:
    """A daemon that is set up and lends, in `folder`/`name`."""
    installation = install(binary, folder / name)
    with serving(
        installation, name=name, workers=workers, tls=certificates if tls else None, known=known
    ) as process:
        caller_key = installation.set_up(origin, certificates)
        proxy = Proxy(name, process, installation.proxy_port, caller_key, tls)
        yield Bearerd(proxy, installation, ACCESS in known)


@contextlib.contextmanager
def explaining(daemon: Bearerd) -> Iterator[None]:
    """Adds to a failure which errors bearerd made itself."""
    try:
        yield
    except BenchError as error:
        series = daemon.installation.metrics()
        made = {k: int(v) for k, v in series.items() if k.startswith("bearerd_proxy_errors_total{") and v}
        raise BenchError(f"{error}; bearerd made {made or 'no errors'}") from error


def calls(daemon: Bearerd) -> int:
    """Calls that have ended, by the metrics."""
    series = daemon.installation.metrics()
    return int(sum(v for k, v in series.items() if k.startswith("bearerd_proxy_requests_total{")))


def check_counts(daemon: Bearerd, answered: int) -> None:
    """Every answered call is in the metrics, and everything in the metrics is an access record."""

    if calls(daemon) < answered:
        raise BenchError(f"{answered} calls were answered, but the metrics show {calls(daemon)}")
    if not daemon.keeps_records:
        return

    def recorded() -> int:
        with daemon.installation.records.open("rb") as lines:
            written = sum(chunk.count(b"\n") for chunk in iter(lambda: lines.read(1 << 20), b""))
        dropped = daemon.installation.metrics().get("bearerd_access_records_dropped_total", 0)
        return written + int(dropped)

    what = "writing one access record for each call that the metrics show"
    daemon.proxy.process.wait_for(lambda: recorded() == calls(daemon), what)


def _detail(problem: str) -> str:
    """What a problem document (RFC 9457) says, if it is one."""
    try:
        return json.loads(problem)["detail"]
    except (ValueError, KeyError, TypeError):
        return problem


def _is_ready(installation: Installation) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", installation.admin_port, timeout=60)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
