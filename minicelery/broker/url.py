"""Server URLs: parsed once, printed without their password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from minicelery.exceptions import ImproperlyConfigured

_URL = re.compile(
    r"^(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://"
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:@/?#]*)(?::(?P<port>[^/?#]*))?"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?$"
)

# Between the servers of a list; a semicolon in a password has no scheme after it.
_NEXT = re.compile(r";(?=\s*[a-zA-Z][a-zA-Z0-9+.-]*://)")

AMQP_SCHEMES = frozenset({"amqp", "amqps", "pyamqp", "py-amqp"})


@dataclass(frozen=True, slots=True)
class ServerURL:
    """The parts of a server's URL, percent-decoded.  `path` has its leading slash."""

    scheme: str
    host: str = ""
    port: int | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)

    @property
    def masked(self) -> str:
        """The URL without its password: ``redis://:**@localhost:6379/0``."""
        secret = f"{self.user}:**@" if self.password else f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port is not None else ""
        return f"{self.scheme}://{secret}{self.host}{port}{self.path}"


def parse_url(url: str) -> ServerURL:
    """Take `url` apart; raises ImproperlyConfigured, never quoting a password."""
    if "://" not in url and url.isidentifier():
        url += "://"  # Celery takes a bare transport name: broker="memory"
    match = _URL.match(url)
    if match is None or ("@" in (match["path"] or "") and (match["host"] or match["port"])):
        raise ImproperlyConfigured(
            f"{mask_url(url)!r} is not a server URL; expected scheme://user:password@host:port/path, "
            "with special characters in the password percent-encoded"
        )
    port = match["port"]
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ImproperlyConfigured(f"{mask_url(url)!r}: the port {port!r} is not a number from 1 to 65535")
    return ServerURL(
        scheme=match["scheme"].lower(),
        host=unquote(match["host"] or "").strip("[]"),
        port=int(port) if port else None,
        user=unquote(match["user"] or ""),
        password=unquote(match["password"] or ""),
        path=unquote(match["path"] or ""),
        query=dict(parse_qsl(match["query"] or "", keep_blank_values=True)),
    )


def parse_urls(url: str) -> list[ServerURL]:
    """The servers of a list separated by ``;``, all of one kind, the first to be tried first."""
    found = [parse_url(part.strip()) for part in _NEXT.split(url) if part.strip()]
    if not found or (len(found) > 1 and not {server.scheme for server in found} <= AMQP_SCHEMES):
        raise ImproperlyConfigured(
            f"{mask_url(url)!r}: only amqp:// takes a list of servers; name one server"
        )
    return found


def mask_url(url: str) -> str:
    """`url` with everything that may be a password replaced by ``**``; takes malformed ones too."""
    return ";".join(map(_mask_one, _NEXT.split(url)))


def _mask_one(url: str) -> str:
    start = r"[^:/?#]*://" if "://" in url else ""
    return re.sub(rf"^({start}[^:@/?#]*):.*@", r"\1:**@", url).split("?")[0]
