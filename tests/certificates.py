"""Keys and certificates of a test's own, as files."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID


class Identity(NamedTuple):
    """Who signs: the files of a key and of its certificate."""

    key: Path
    certificate: Path


def new_key() -> Any:
    """An RSA key of 2048 bits; takes a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def write_key(key: Any, path: Path, password: bytes | None = None) -> Path:
    """The key as a file in PEM form."""
    lock: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    path.write_bytes(text)
    return path


def write_certificate(key: Any, path: Path, name: str, *, ends: timedelta = timedelta(days=1)) -> Path:
    """A certificate of the key, signed by itself, as a file in PEM form."""
    now = datetime.now(timezone.utc)
    names = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(names)
        .issuer_name(names)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + ends)
        .sign(key, hashes.SHA256() if hasattr(key, "key_size") else None)
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def new_identity(folder: Path, name: str) -> Identity:
    """A key in `folder`, and its certificate in the folder ``trusted`` in there."""
    (folder / "trusted").mkdir(exist_ok=True)
    key = new_key()
    return Identity(
        write_key(key, folder / f"{name}.key"),
        write_certificate(key, folder / "trusted" / f"{name}.pem", name),
    )
