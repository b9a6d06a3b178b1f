"""A certificate authority of this process alone, so that clients speak real TLS to a fake of ``*.googleapis.com``.

gRPC reads its trusted roots once in a process (``GRPC_DEFAULT_SSL_ROOTS_FILE_PATH``), so every fake of a process has
its certificate from the same authority. The keys are made anew each time and lie in memory; the root's certificate,
which is public, lies in a temporary file until the process ends.
"""

from __future__ import annotations

import atexit
import datetime as dt
import ipaddress
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOSTS = "*.googleapis.com"


@dataclass(frozen=True)
class Certificate:
    """What a TLS server shows.

    :param key: its private key, PEM.
    :param chain: its certificate, PEM.
    :param root: file with the certificate of the authority, PEM.
    """

    key: bytes
    chain: bytes
    root: Path


@cache
def certificate() -> Certificate:
    """The certificate of this process's fakes, for ``*.googleapis.com`` and the loopback address."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake cloud of this process")])
    root = (
        _draft(root_name, root_name, root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    names = [x509.DNSName(HOSTS), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    own_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOSTS)])
    own = (
        _draft(own_name, root_name, key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    folder = Path(tempfile.mkdtemp(prefix="fake-google-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "root.pem"
    file.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(private, own.public_bytes(serialization.Encoding.PEM), file)


def _draft(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """A certificate that is good for two days, so that clocks may differ."""
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
    )
