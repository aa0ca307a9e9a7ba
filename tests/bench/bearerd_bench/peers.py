"""nginx and HAProxy with the least that does the work: check a caller's key, set a static header, forward over TLS."""

import contextlib
import pathlib
from collections.abc import Iterator

from . import nginx
from .certificates import Certificates
from .origin import ACCESS_TOKEN, CONNECT_MAX_S, POOL_IDLE_MAX, Origin
from .processes import running
from .proxy import Proxy

CALLER_KEY = "bench-key"


@contextlib.contextmanager
def nginx_proxy(
    folder: pathlib.Path, certificates: Certificates, origin: Origin, port: int, tls: bool
) -> Iterator[Proxy]:
    """One worker. It buffers answers as it does by default, but not on disk."""
    listen = f"listen 127.0.0.1:{port} backlog=4096;"
    if tls:
        listen = f"""listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {certificates.certificate}; ssl_certificate_key {certificates.key}; ssl_protocols TLSv1.3;"""
    http = f"""
  map $http_x_api_key $known {{ default 0; "{CALLER_KEY}" 1; }}
  upstream origin {{
    server 127.0.0.1:{origin.port}; keepalive {POOL_IDLE_MAX}; keepalive_requests 1000000000; keepalive_timeout 300s;
  }}
  server {{
    {listen}
    location /api/now/table/ {{
      if ($known = 0) {{ return 401; }}
      proxy_pass https://origin; proxy_http_version 1.1; proxy_max_temp_file_size 0;
      proxy_connect_timeout {CONNECT_MAX_S}s;
      proxy_set_header Connection ""; proxy_set_header Host localhost;
      proxy_set_header Authorization "Bearer {ACCESS_TOKEN}"; proxy_set_header X-API-Key "";
      proxy_ssl_verify on; proxy_ssl_trusted_certificate {certificates.authority};
      proxy_ssl_name localhost; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;
    }}
  }}"""
    with nginx.serving("nginx", folder, port, http) as process:
        yield Proxy("nginx", process, port, CALLER_KEY, tls)


@contextlib.contextmanager
def haproxy(
    name: str, folder: pathlib.Path, certificates: Certificates, origin: Origin, port: int, tls: bool
) -> Iterator[Proxy]:
    """One thread. The ratios let it keep idle connections until nearly all its descriptors are in use."""
    bind_tls = f" ssl crt {certificates.bundle} ssl-min-ver TLSv1.3 alpn http/1.1" if tls else ""
    settings = folder / f"{name}.cfg"
    settings.write_text(f"""global
  nbthread 1
  maxconn 4096
  tune.pool-low-fd-ratio 80
  tune.pool-high-fd-ratio 90
defaults
  mode http
  timeout connect {CONNECT_MAX_S}s
  timeout client 60s
  timeout server 60s
frontend callers
  bind 127.0.0.1:{port} backlog 4096{bind_tls}
  http-request deny deny_status 401 unless {{ req.hdr(x-api-key) -m str {CALLER_KEY} }}
  http-request set-header Authorization "Bearer {ACCESS_TOKEN}"
  http-request del-header X-API-Key
  http-request set-header Host localhost
  default_backend origin
backend origin
  http-reuse always
  server one 127.0.0.1:{origin.port} ssl verify required ca-file {certificates.authority} sni str(localhost) \
verifyhost localhost pool-max-conn {POOL_IDLE_MAX}
""")
    with running(name, ["haproxy", "-db", "-f", str(settings)], folder) as process:
        process.wait_listening(port)
        yield Proxy(name, process, port, CALLER_KEY, tls)
