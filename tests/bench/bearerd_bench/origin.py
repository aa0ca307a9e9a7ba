"""The far side: an nginx that answers as an instance does, over TLS 1.3."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

from . import nginx
from .certificates import Certificates
from .machine import free_ports
from .processes import Process

#: What every proxy puts into `Authorization`; any other is answered 401.
ACCESS_TOKEN = "bench-token"
SIZES = {"1k": 1024, "64k": 64 * 1024, "10m": 10 * 1024 * 1024}
SIZE_NAMES = {"1k": "1 KiB", "64k": "64 KiB", "10m": "10 MiB"}
#: Each size is a table of its own.
TABLES = {"1k": "incident", "64k": "problem", "10m": "change_request"}
#: Connections that each proxy may keep idle: one for each caller. With fewer, 1,000 callers measure TLS handshakes.
POOL_IDLE_MAX = 2048
#: How long a proxy tries to connect: nginx's default. A thousand at once, on a machine that is full, take long.
CONNECT_MAX_S = 60
USER = {"sys_id": "a" * 32, "user_name": "svc.bench", "name": "Bench"}
ATTACHMENT_ID = hashlib.md5(b"attachment", usedforsecurity=False).hexdigest()
ATTACHMENT_BYTES = 1024**3


@dataclasses.dataclass(frozen=True)
class Origin:
    process: Process
    port: int
    #: Where it says how much it has answered, in clear text.
    status_port: int
    #: Folder of what it serves.
    site: pathlib.Path


def path(size: str) -> str:
    """Where the answer of this size is."""
    return f"/api/now/table/{TABLES[size]}"


@contextlib.contextmanager
def serving(
    folder: pathlib.Path, certificates: Certificates, port: int, uploads_port: int | None = None
) -> Iterator[Origin]:
    """The origin for the time of the block; takes attachments if somebody reads them at `uploads_port`."""
    site = folder / "site"
    for size in SIZES:
        write_answer(site, size)
    [status_port] = free_ports(1)
    http = http_block(site, certificates, port, uploads_port) + status_block(status_port)
    with nginx.serving("origin", folder, port, http) as process:
        yield Origin(process, port, status_port, site)


def write_answer(site: pathlib.Path, size: str) -> None:
    """A list of one record, padded to the size."""
    record = {"sys_id": "b" * 32, "number": "INC0010001", "pad": ""}
    pad = SIZES[size] - len(json.dumps({"result": [record]}))
    file = site / path(size).lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"result": [record | {"pad": "x" * pad}]}))


def write_attachment(site: pathlib.Path) -> None:
    """A file with a hole for contents: it takes no room."""
    file = site / f"api/now/attachment/{ATTACHMENT_ID}/file"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as written:
        written.truncate(ATTACHMENT_BYTES)


def http_block(site: pathlib.Path, certificates: Certificates, port: int, uploads_port: int | None) -> str:
    user = json.dumps({"result": [USER]})
    uploads = ""
    if uploads_port is not None:
        uploads = f"""
    location = /api/now/attachment/file {{
      client_max_body_size 0; proxy_request_buffering off; proxy_http_version 1.1;
      proxy_pass http://127.0.0.1:{uploads_port};
    }}"""
    return f"""
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {certificates.certificate}; ssl_certificate_key {certificates.key}; ssl_protocols TLSv1.3;
    root {site};
    if ($http_authorization != "Bearer {ACCESS_TOKEN}") {{ return 401; }}
    location = /api/now/table/sys_user {{ return 200 '{user}'; }}
    location /api/now/ {{ }}{uploads}
  }}"""


def status_block(port: int) -> str:
    return f"""
  server {{ listen 127.0.0.1:{port}; location / {{ stub_status; }} }}"""


@contextlib.contextmanager
def reading_uploads(port: int) -> Iterator[None]:
    """Reads what is posted to the end and says how much it was, for the time of the block."""

    class Reader(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            left = int(self.headers["Content-Length"])
            read = 0
            while read < left and (chunk := self.rfile.read(min(65536, left - read))):
                read += len(chunk)
            body = json.dumps({"result": {"sys_id": ATTACHMENT_ID, "size_bytes": str(read)}}).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Reader)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
