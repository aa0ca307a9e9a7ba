"""What every nginx here has in common."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from .processes import Process, running

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextlib.contextmanager
def serving(name: str, folder: pathlib.Path, port: int, http: str, workers: int = 1) -> Iterator[Process]:
    """An nginx with this `http` block, for the time of the block."""
    own = folder / name
    own.mkdir()
    settings = own / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    paths = " ".join(f"{kind}_temp_path {own}/{kind};" for kind in TEMPORARY)
    settings.write_text(f"""{user}
worker_processes {workers}; pid {own}/pid; error_log {own}/error.log; daemon off;
events {{ worker_connections 8192; }}
http {{
  access_log off; default_type application/json; keepalive_requests 1000000000; keepalive_timeout 300s; {paths}
{http}
}}
""")
    with running(name, ["nginx", "-p", str(own), "-e", f"{own}/error.log", "-c", str(settings)], folder) as process:
        process.wait_listening(port)
        yield process
