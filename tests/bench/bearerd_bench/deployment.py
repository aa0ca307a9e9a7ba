"""Everything that is compared, on one machine: the origin, the peers and bearerd."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

from . import certificates, daemon, origin, peers
from .certificates import Certificates
from .daemon import Bearerd
from .machine import free_ports
from .origin import Origin
from .proxy import Proxy

#: The same program and settings twice: what differs between the two is the machine's mood.
PAIR = ("haproxy", "haproxy-again")


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all deployments of a run share."""

    binary: pathlib.Path
    scratch: pathlib.Path
    certificates: Certificates
    #: Which settings the binary has of those that not every one has.
    known: frozenset[str]

    @property
    def keeps_records(self) -> bool:
        """Whether the binary writes access records."""
        return daemon.ACCESS in self.known


@dataclasses.dataclass(frozen=True)
class Deployment:
    origin: Origin
    #: In the order of the tables.
    proxies: list[Proxy]
    bearerd: Bearerd


def prepare(binary: pathlib.Path, scratch: pathlib.Path) -> Bench:
    """Certificates, and what the binary can do."""
    return Bench(binary, scratch, certificates.make(scratch), daemon.known_settings(binary, scratch))


@contextlib.contextmanager
def folder(bench: Bench) -> Iterator[pathlib.Path]:
    """A folder for one deployment."""
    with tempfile.TemporaryDirectory(dir=bench.scratch, ignore_cleanup_errors=True) as made:
        yield pathlib.Path(made)


@contextlib.contextmanager
def all_proxies(bench: Bench, tls: bool = False) -> Iterator[Deployment]:
    """Origin, nginx, HAProxy twice, and bearerd with one worker."""
    with contextlib.ExitStack() as held:
        place = held.enter_context(folder(bench))
        origin_port, nginx_port, *haproxy_ports = free_ports(2 + len(PAIR))
        far = held.enter_context(origin.serving(place, bench.certificates, origin_port))
        proxies = [held.enter_context(peers.nginx_proxy(place, bench.certificates, far, nginx_port, tls))]
        for name, port in zip(PAIR, haproxy_ports, strict=True):
            proxies.append(held.enter_context(peers.haproxy(name, place, bench.certificates, far, port, tls)))
        ours = held.enter_context(
            daemon.bearerd(bench.binary, place, bench.certificates, far, tls=tls, known=bench.known)
        )
        yield Deployment(far, [*proxies, ours.proxy], ours)


@contextlib.contextmanager
def bearerd_alone(
    bench: Bench, workers: int = 1, uploads_port: int | None = None, tls: bool = False
) -> Iterator[tuple[Origin, Bearerd]]:
    """Origin and bearerd."""
    with contextlib.ExitStack() as held:
        place = held.enter_context(folder(bench))
        [port] = free_ports(1)
        far = held.enter_context(origin.serving(place, bench.certificates, port, uploads_port))
        ours = daemon.bearerd(
            bench.binary, place, bench.certificates, far, workers=workers, tls=tls, known=bench.known
        )
        yield far, held.enter_context(ours)
