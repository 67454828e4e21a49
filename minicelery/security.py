"""Signed messages, as Celery signs them, and who may read pickles.

A signed body is ``base64(signer 0 1 signature 0 1 content type 0 1 encoding 0 1 body)``, where
signer (the certificate's issuer and number) and signature are base64 themselves; 0 1 are two
bytes.  The signature is RSA-PSS over the body alone: headers and task name are not signed.
"""

from __future__ import annotations

import glob
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from minicelery import serialization
from minicelery.exceptions import ImproperlyConfigured, SecurityError
from minicelery.serialization import PICKLE, accepted

if TYPE_CHECKING:
    from minicelery.settings import Settings

DIGESTS = ("sha256", "sha384", "sha512", "sha224", "sha3_256", "sha3_384", "sha3_512")
_SEPARATOR = b"\x00\x01"

_signed_types: frozenset[str] = frozenset()
"""Content types that a signed body may have, in this process."""


def setup_security(
    conf: Settings,
    allowed_serializers: Iterable[str] | None = None,
    key: Any = None,
    key_password: str | bytes | None = None,
    cert: Any = None,
    store: Any = None,
    digest: str | None = None,
    serializer: str = "json",
) -> None:
    """Sign and verify what goes by `auth`, for all apps of this process.

    Signed bodies are written by `serializer`, and read if they are that or one of
    `allowed_serializers`.  What is not given here is taken from the ``security_…`` settings.
    Raises ImproperlyConfigured, or SecurityError for a certificate that can't be trusted.
    """
    global _signed_types
    if conf.task_serializer != "auth" or accepted(conf.accept_content) != {serialization.AUTH}:
        raise ImproperlyConfigured(
            "app.setup_security() needs task_serializer='auth' and accept_content=['auth'], and they are "
            f"{conf.task_serializer!r} and {list(conf.accept_content)!r}: to sign messages is of no use while "
            "others are accepted as well"
        )
    readable = accepted((serializer, *(allowed_serializers or ())))
    for name in readable:
        if name == serialization.AUTH:
            raise ImproperlyConfigured(
                "app.setup_security(): what is signed can't be written by 'auth' itself"
            )
    serialization.check_readable(readable, "allowed_serializers of app.setup_security()")
    _require_cryptography()
    given = {
        "security_key": key or conf.security_key,
        "security_certificate": cert or conf.security_certificate,
        "security_cert_store": store or conf.security_cert_store,
    }
    if missing := [name for name, value in given.items() if not value]:
        raise ImproperlyConfigured(
            f"app.setup_security() needs {' and '.join(missing)}; set, or pass, a path"
        )
    own = Certificate(
        _read(given["security_certificate"], "security_certificate"), given["security_certificate"]
    )
    signer = Signer(
        _load_key(given["security_key"], key_password or conf.security_key_password),
        own,
        load_store(given["security_cert_store"]),
        digest or conf.security_digest,
        serializer,
        readable,
    )
    serialization.set_signer(signer.encode, signer.decode)
    _signed_types = readable


def check_content(conf: Settings) -> None:
    """Raise unless this process can read what `accept_content` lists, and may; at a worker's start.

    Raises ImproperlyConfigured for a missing extra or set-up, SecurityError as `refuse_pickle_as_root`.
    """
    refuse_pickle_as_root(conf)
    serialization.check_readable(conf.accept_content, "accept_content")
    serialization.check_writable(conf.task_serializer, "task_serializer")


def refuse_pickle_as_root(conf: Settings) -> None:
    """Raise SecurityError where this process is root's and would read pickles, unless C_FORCE_ROOT is set."""
    if os.geteuid() != 0 and os.getuid() != 0:
        return
    found = [
        name
        for name, names in (
            ("accept_content", conf.accept_content),
            ("result_accept_content", conf.result_accept_content or ()),
        )
        if PICKLE in accepted(names)
    ]
    if serialization.AUTH in accepted(conf.accept_content) and PICKLE in _signed_types:
        found.append("allowed_serializers of app.setup_security()")
    if found and not os.environ.get("C_FORCE_ROOT"):
        raise SecurityError(
            f"{found[0]} lists pickle, and the worker runs as root: whoever can write to the broker could do "
            "anything on this machine. Run the worker as another user, take 'pickle' out, or set the "
            "environment variable C_FORCE_ROOT=1 to run it all the same"
        )


class Signer:
    """Writes values signed by one key, and reads those signed by any certificate of a store."""

    def __init__(
        self,
        key: Any,
        certificate: Certificate,
        store: dict[str, Certificate],
        digest: str,
        serializer: str,
        readable: frozenset[str],
    ) -> None:
        if certificate.key.public_numbers() != key.public_key().public_numbers():
            raise ImproperlyConfigured("security_key is not the key that security_certificate was made for")
        self._key = key
        self._id = b64encode(certificate.id.encode())
        self._store = store
        self._digest = _digest(digest)
        self._padding = _padding(self._digest)
        self._serializer = serializer
        self._readable = readable

    def encode(self, value: Any) -> bytes:
        """`value`, signed.  Raises EncodeError."""
        body, content_type, encoding = serialization.dumps(value, self._serializer)
        signature = b64encode(self._key.sign(body, self._padding, self._digest))
        fields = (self._id, signature, content_type.encode(), encoding.encode(), body)
        return b64encode(_SEPARATOR.join(fields))

    def decode(self, data: bytes) -> Any:
        """The value in `data`, once its signature has been verified.  Raises SecurityError or DecodeError."""
        try:
            fields = b64decode(data, validate=True).split(_SEPARATOR, 4)
            signer, signature = (
                b64decode(fields[0], validate=True).decode(),
                b64decode(fields[1], validate=True),
            )
            content_type, encoding, body = fields[2].decode(), fields[3].decode(), fields[4]
        except (ValueError, IndexError) as error:
            raise SecurityError("the data is not signed: it has not the form of a signed message") from error
        certificate = self._store.get(signer)
        if certificate is None:
            raise SecurityError(
                f"signed by {signer!r:.120}, whose certificate is not in security_cert_store; "
                "it was read when the process started"
            )
        certificate.check_date()
        try:
            certificate.key.verify(signature, body, self._padding, self._digest)
        except Exception as error:  # InvalidSignature, and what a key too small for the digest raises
            raise SecurityError(
                f"the signature of {signer!r} does not fit: the body was altered, or signed with another key "
                f"or another security_digest than {self._digest.name}"
            ) from error
        if content_type not in self._readable:
            # The signature does not cover the content type.
            raise SecurityError(
                f"signed by {signer!r}, but of content type {content_type!r:.80}; "
                f"app.setup_security() allows {', '.join(sorted(self._readable))}"
            )
        return serialization.loads(body, content_type, encoding, self._readable)


class Certificate:
    """An X.509 certificate with an RSA key.  Raises ImproperlyConfigured where `text` is none."""

    __slots__ = ("id", "key", "place", "until")

    def __init__(self, text: bytes, place: Any) -> None:
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
        from cryptography.x509 import load_pem_x509_certificate

        try:
            certificate = load_pem_x509_certificate(text)
            key = certificate.public_key()
        except Exception as error:  # ValueError, and what unknown kinds of keys raise
            raise ImproperlyConfigured(f"{place} is not a certificate in PEM form: {error}") from error
        if not isinstance(key, RSAPublicKey):
            raise ImproperlyConfigured(f"the certificate {place} is not of an RSA key, which signing takes")
        issuer = " ".join(str(attribute.value) for attribute in certificate.issuer)
        self.id = f"{issuer} {certificate.serial_number}"
        self.key = key
        self.place = place
        self.until: datetime = certificate.not_valid_after_utc

    def check_date(self) -> None:
        """Raise SecurityError if the certificate has expired."""
        if datetime.now(timezone.utc) >= self.until:
            raise SecurityError(
                f"the certificate of {self.id!r} ({self.place}) expired on {self.until:%Y-%m-%d}"
            )


def load_store(pattern: Any) -> dict[str, Certificate]:
    """The certificates of a folder, or of the files that a pattern fits, by the ids of their owners."""
    place = os.fspath(pattern)
    files = sorted(glob.glob(os.path.join(place, "*") if os.path.isdir(place) else place))
    found: dict[str, Certificate] = {}
    for file in files:
        certificate = Certificate(_read(file, "security_cert_store"), file)
        certificate.check_date()
        if (other := found.get(certificate.id)) is not None:
            raise SecurityError(
                f"security_cert_store: {file} and {other.place} are both of {certificate.id!r}; remove one"
            )
        found[certificate.id] = certificate
    if not found:
        raise ImproperlyConfigured(
            f"security_cert_store={place!r} fits no file; it is a folder of certificates, or a pattern "
            "such as '/etc/ssl/workers/*.pem'"
        )
    return found


def _load_key(path: Any, password: str | bytes | None) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read(path, "security_key")
    secret = password.encode() if isinstance(password, str) else password
    try:
        key = load_pem_private_key(text, secret)
    except TypeError as error:  # a password is given and not needed, or the other way round
        has = "has no password, and security_key_password is set" if secret else "needs security_key_password"
        raise ImproperlyConfigured(f"security_key={str(path)!r} {has}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = ", or security_key_password is wrong" if secret else ""
        raise ImproperlyConfigured(
            f"security_key={str(path)!r} is not a private key in PEM form{hint}"
        ) from error
    if not isinstance(key, RSAPrivateKey):
        raise ImproperlyConfigured(f"security_key={str(path)!r} is not an RSA key, which signing takes")
    return key


def _read(path: Any, setting: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImproperlyConfigured(f"{setting}: {str(path)!r} can't be read: {reason}") from error


def _digest(name: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    if not isinstance(name, str) or name.lower() not in DIGESTS:
        weak = "; it is too weak to sign with" if str(name).lower() in ("md5", "sha1") else ""
        raise ImproperlyConfigured(
            f"security_digest must be one of {', '.join(DIGESTS)}, got {name!r:.80}{weak}"
        )
    return getattr(hashes, name.upper())()


def _padding(digest: Any) -> Any:
    from cryptography.hazmat.primitives.asymmetric import padding

    return padding.PSS(mgf=padding.MGF1(digest), salt_length=padding.PSS.MAX_LENGTH)


def _require_cryptography() -> None:
    try:
        import cryptography.x509  # noqa: F401
    except ImportError:
        raise ImproperlyConfigured(
            "signed messages (the serializer 'auth') need cryptography: pip install minicelery[auth]"
        ) from None
