"""Memory: what an idle caller costs, and what a large body adds."""

import contextlib

from . import BenchError, load, origin
from .deployment import Bench, all_proxies, bearerd_alone
from .machine import free_ports
from .origin import ATTACHMENT_BYTES, ATTACHMENT_ID, SIZES
from .proxy import Proxy

SIZE = "1k"
CONNECTIONS = 1000
WARM_UP_CALLS = 100
UPLOAD = "/api/now/attachment/file?table_name=incident&table_sys_id=" + "b" * 32 + "&file_name=zeros.bin"
DOWNLOAD = f"/api/now/attachment/{ATTACHMENT_ID}/file"


def idle_connections(bench: Bench) -> dict[str, float]:
    """Bytes resident per caller connection that made one call and then waits, for each proxy."""
    with all_proxies(bench) as deployment:
        return {proxy.name: _idle_connections(proxy) for proxy in deployment.proxies}


def _idle_connections(proxy: Proxy) -> float:
    path = origin.path(SIZE)
    load.check(proxy, path, SIZES[SIZE])
    with load.Caller(proxy) as caller:
        for _ in range(WARM_UP_CALLS):
            caller.get(path)
    before = proxy.process.rss_bytes()
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS):
            answer = held.enter_context(load.Caller(proxy)).get(path)
            if answer.status != 200:
                raise BenchError(f"{proxy.name} answered {answer.status}")
        return (proxy.process.rss_bytes() - before) / CONNECTIONS


def attachments(bench: Bench) -> dict:
    """What 1 GiB in each direction adds to the resident memory at most; or why this binary carries none."""
    [uploads_port] = free_ports(1)
    with contextlib.ExitStack() as held:
        held.enter_context(origin.reading_uploads(uploads_port))
        far, ours = held.enter_context(bearerd_alone(bench, uploads_port=uploads_port))
        refused = ours.installation.open_attachments()
        if refused is not None:
            return {"skipped": f"this binary does not open the attachment family: {refused}"}
        origin.write_attachment(far.site)
        proxy = ours.proxy
        load.check(proxy, origin.path(SIZE), SIZES[SIZE])
        return {"download_bytes": _download(proxy), "upload_bytes": _upload(proxy)}


def _download(proxy: Proxy) -> int:
    with load.Caller(proxy) as caller:
        before = _begin(proxy)
        answer = caller.get(DOWNLOAD)
        if (answer.status, answer.body_bytes) != (200, ATTACHMENT_BYTES):
            raise BenchError(f"an attachment was answered {answer.status}, {answer.body_bytes} bytes")
        return proxy.process.peak_rss_bytes() - before


def _upload(proxy: Proxy) -> int:
    with load.Caller(proxy) as caller:
        before = _begin(proxy)
        answer = caller.post(UPLOAD, ATTACHMENT_BYTES)
        if answer.status != 201:
            raise BenchError(f"an attachment that was posted was answered {answer.status}")
        return proxy.process.peak_rss_bytes() - before


def _begin(proxy: Proxy) -> int:
    proxy.process.forget_peak()
    return proxy.process.rss_bytes()
