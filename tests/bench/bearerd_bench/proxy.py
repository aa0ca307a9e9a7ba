"""A proxy under load, whichever it is: how it is called, and how it is reached."""

import dataclasses

from .processes import Process


@dataclasses.dataclass(frozen=True)
class Proxy:
    name: str
    process: Process
    port: int
    #: What callers prove themselves with, as `X-API-Key`.
    caller_key: str
    tls: bool = False

    def url(self, path: str) -> str:
        # With TLS by name: an address is no server name (RFC 6066 §3), yet wrk would send it as one.
        return f"{'https://localhost' if self.tls else 'http://127.0.0.1'}:{self.port}{path}"
