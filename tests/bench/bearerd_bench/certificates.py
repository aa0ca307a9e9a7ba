"""A certificate authority of our own, and one certificate for everything on loopback."""

import dataclasses
import pathlib
import subprocess

EXTENSIONS = """subjectAltName=DNS:localhost,IP:127.0.0.1
basicConstraints=CA:FALSE
extendedKeyUsage=serverAuth
"""
P256 = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclasses.dataclass(frozen=True)
class Certificates:
    authority: pathlib.Path
    certificate: pathlib.Path
    key: pathlib.Path
    #: Certificate and private key in one file, as HAProxy wants them.
    bundle: pathlib.Path


def make(folder: pathlib.Path) -> Certificates:
    """P-256 throughout, for `localhost` and 127.0.0.1, for a day."""
    authority_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "extensions"
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key", folder / "bundle.pem")
    extensions.write_text(EXTENSIONS)
    openssl(
        "req", "-x509", *P256, "-days", "1", "-keyout", authority_key, "-out", made.authority,
        "-subj", "/CN=bearerd-bench", "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    openssl("req", *P256, "-keyout", made.key, "-out", request, "-subj", "/CN=localhost")
    openssl(
        "x509", "-req", "-in", request, "-CA", made.authority, "-CAkey", authority_key, "-CAcreateserial",
        "-days", "1", "-out", made.certificate, "-extfile", extensions,
    )  # fmt: skip
    made.bundle.write_text(made.certificate.read_text() + made.key.read_text())
    return made


def openssl(*arguments: str | pathlib.Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
