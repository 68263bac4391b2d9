"""A URL as Celery writes it → the one that redis-py understands, or why it cannot be meant so."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from opslib import redact
from opslib.errors import SettingsError

_SCHEMES = {"redis", "rediss", "unix", "redis+socket", "sentinel"}
_PORTS = range(1, 65536)


def is_redis(url: str) -> bool:
    """Whether a result backend is Redis, by its URL's scheme."""
    return url.split(":", 1)[0] in _SCHEMES


def check(url: str, what: str) -> tuple[str, list[str]]:
    """
    Return a Redis URL that redis-py understands as Celery would have, and warnings about it.

    redis-py takes a path that is no number for database 0, and knows none of Celery's `CERT_…` spellings
    (facts §7.2), so both are settled here. The password is remembered for masking.

    Raises:
        SettingsError: If the URL could not be meant as given.
    """
    redact.remember(url)
    shown = redact.url(url)
    if url != url.strip() or re.search(r"\s", url):
        raise SettingsError(f"{what}: {shown!r} holds white space.")
    scheme = url.split(":", 1)[0]
    if scheme in {"redis+cluster", "rediscluster"}:
        raise SettingsError(
            f"{what}: Redis Cluster cannot be a Celery broker.", hint="Name a single server, or a Sentinel."
        )
    if "://" not in url or scheme not in _SCHEMES:
        known = ", ".join(sorted(_SCHEMES))
        raise SettingsError(
            f"{what}: {shown!r} is no Redis URL; schemes are {known}.",
            hint="For instance redis://host:6379/0; Valkey uses redis:// too.",
        )
    if scheme == "sentinel":
        return url, []
    if scheme in {"unix", "redis+socket"}:
        return "unix" + url[len(scheme) :].replace("virtual_host=", "db="), []
    return _check_tcp(url, what, shown)


def _check_tcp(url: str, what: str, shown: str) -> tuple[str, list[str]]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{what}: {shown!r}: {error}.") from None
    if not parts.hostname or parts.netloc.count("@") > 1 or (port is not None and port not in _PORTS):
        raise SettingsError(
            f"{what}: {shown!r} has no usable host or port.",
            hint="Characters such as @ / : in a password are written %40 %2F %3A.",
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path).strip("/")
    for database in filter(None, (path, query.pop("virtual_host", ""), query.pop("db", ""))):
        if not database.isdecimal():
            raise SettingsError(
                f"{what}: {database!r} in {shown!r} is no database number.",
                hint="Write the number at the end of the path: redis://host:6379/0.",
            )
        if path and database != path:
            raise SettingsError(f"{what}: {shown!r} names two databases, {path} and {database}.")
        path = database
    scheme, warnings = parts.scheme, []
    if "ssl_cert_reqs" in query:
        scheme = "rediss"  # kombu switches TLS on by this key alone
        query["ssl_cert_reqs"] = _certificates(query["ssl_cert_reqs"], what)
        if query["ssl_cert_reqs"] == "none":
            warnings.append(f"{what}: the server's certificate is not verified (ssl_cert_reqs=none).")
    return urlunsplit((scheme, parts.netloc, f"/{path or 0}", urlencode(query), "")), warnings


def _certificates(value: str, what: str) -> str:
    spelled = value.lower().removeprefix("cert_")
    if spelled not in {"none", "optional", "required"}:
        raise SettingsError(f"{what}: ssl_cert_reqs={value!r} is not known.", hint="Use none, optional or required.")
    return spelled
