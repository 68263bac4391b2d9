"""A URL as Celery writes it → the one that redis-py understands, or why it cannot be meant so."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from opslib import redact
from opslib.errors import SettingsError

_SCHEMES = {"redis", "rediss", "unix", "redis+socket", "sentinel"}
_PORTS = range(1, 65536)
#: What a URL may say besides place and database. The rest is Celery's, or a timeout or a retry that is ours to choose.
_LOGIN = {"username", "password"}
_TLS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "ssl_password",
}


#: Schemes of SQL databases as applications write them, and the driver that is used here in place of theirs.
_SQL = {
    **dict.fromkeys(("postgresql", "postgres", "psql", "pgsql", "postgis"), "postgresql+psycopg"),
    **dict.fromkeys(("mysql", "mariadb"), "mysql+pymysql"),
    "sqlite": "sqlite",
}
#: What the URL of an SQL database may say besides; the rest is about pools and drivers of the application's own.
_SQL_OPTIONS = {
    "postgresql+psycopg": {
        *("host", "port", "service", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslnegotiation"),
        *("channel_binding", "target_session_attrs", "gssencmode", "krbsrvname", "passfile"),
    },
    "mysql+pymysql": {"charset", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_cert", "unix_socket"},
    "sqlite": set(),
}


def is_redis(url: str) -> bool:
    """Whether a result backend is Redis, by its URL's scheme."""
    return url.split(":", 1)[0] in _SCHEMES


def place(url: str) -> str:
    """Return which database a Redis URL leads to, "host:port/number"; who asks, and how, is no part of it."""
    bare = url.partition("?")[0].rpartition("@")[2].rpartition("://")[2].rstrip("/")
    server, _, number = bare.partition("/")
    return f"{server if ':' in server or not server else f'{server}:6379'}/{number or 0}"


def check(url: str, what: str) -> tuple[str, list[str]]:
    """
    Return a Redis URL that redis-py understands as Celery would have, and warnings about it.

    redis-py takes a path that is no number for database 0, and knows none of Celery's `CERT_…` spellings
    (facts §7.2), so both are settled here. The password is remembered for masking.

    Raises:
        SettingsError: If the URL could not be meant as given.
    """
    redact.remember(url)
    found, warnings = _checked(url, what, redact.url(url))
    if redact.too_short(url):
        sentence = (
            f"the password is shorter than {redact.SHORTEST} characters, so it is masked in URLs and nowhere else."
        )
        warnings = [*warnings, f"{what}: {sentence}"]
    return found, warnings


def database(url: str, what: str) -> str:
    """
    Return the URL of an SQL database as SQLAlchemy understands it, with our driver in place of the application's.

    The password is remembered for masking. What is said of pools and of other drivers is left out.

    Raises:
        SettingsError: If the URL could not be meant as given.
    """
    redact.remember(url)
    shown = redact.url(url)
    hint = "For instance postgresql://user@host:5432/name, mysql://user@host/name or sqlite:////path/to/file.db."
    if url != url.strip() or re.search(r"\s", url):
        raise SettingsError(f"{what}: {shown!r} holds white space.")
    scheme = url.split(":", 1)[0].lower().removeprefix("db+").split("+")[0]
    if "://" not in url or scheme not in _SQL:
        raise SettingsError(f"{what}: {shown!r} is no URL of PostgreSQL, MySQL or SQLite.", hint=hint)
    driver = _SQL[scheme]
    if driver == "sqlite":
        path = unquote(url.partition("://")[2].partition("?")[0].removeprefix("/"))
        if not path.startswith("/") or path == "/":
            raise SettingsError(f"{what}: {shown!r} names no file by its whole path.", hint=hint)
        return f"sqlite:///{path}"
    place = url.partition("://")[2]
    # A host may be missing: then it is a socket of this machine.
    parts = _place(f"{scheme}://{place if place.partition('/')[0] else f'localhost{place}'}", what, shown)
    netloc = parts.netloc if place.partition("/")[0] else ""
    if not parts.path.strip("/"):
        raise SettingsError(f"{what}: {shown!r} names no database.", hint=hint)
    options = {k: v for k, v in parse_qsl(parts.query) if k in _SQL_OPTIONS[driver]}
    return f"{driver}://{netloc}{parts.path}" + (f"?{urlencode(options)}" if options else "")


def _checked(url: str, what: str, shown: str) -> tuple[str, list[str]]:
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
        return _check_sentinel(url, what, shown), []
    if scheme in {"unix", "redis+socket"}:
        return _check_socket(url, what, shown), []
    return _check_tcp(url, what, shown)


def _check_sentinel(url: str, what: str, shown: str) -> str:
    parts = [part for part in url.split(";") if part]
    for part in parts:
        if not part.startswith("sentinel://"):
            raise SettingsError(
                f"{what}: {shown!r} is no list of sentinels.",
                hint="Write sentinel://one:26379/0;sentinel://two:26379/0.",
            )
        _database(unquote(_place(part, what, shown).path).strip("/"), what, shown)
    return ";".join(parts)


def _check_socket(url: str, what: str, shown: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if not parts.path.strip("/"):
        raise SettingsError(f"{what}: {shown!r} names no socket.", hint="For instance unix:///run/redis.sock?db=0.")
    query = {"db" if k == "virtual_host" else k: v for k, v in parse_qsl(parts.query, keep_blank_values=True)}
    _database(query.get("db", ""), what, shown)
    query = {name: value for name, value in query.items() if name in _LOGIN | {"db"}}
    return f"unix://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")


def _check_tcp(url: str, what: str, shown: str) -> tuple[str, list[str]]:
    parts = _place(url, what, shown)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path).strip("/")
    for database in filter(None, (path, query.pop("virtual_host", ""), query.pop("db", ""))):
        _database(database, what, shown)
        if path and database != path:
            raise SettingsError(f"{what}: {shown!r} names two databases, {path} and {database}.")
        path = database
    scheme, warnings = parts.scheme, []
    if "ssl_cert_reqs" in query:
        scheme = "rediss"  # kombu switches TLS on by this key alone
        query["ssl_cert_reqs"] = _certificates(query["ssl_cert_reqs"], what)
        if query["ssl_cert_reqs"] == "none":
            warnings.append(f"{what}: the server's certificate is not verified (ssl_cert_reqs=none).")
    known = _LOGIN | _TLS if scheme == "rediss" else _LOGIN
    options = urlencode({name: value for name, value in query.items() if name in known})
    return urlunsplit((scheme, parts.netloc, f"/{path or 0}", options, "")), warnings


def _place(url: str, what: str, shown: str) -> SplitResult:
    """Return the parts of a URL with a usable host and port; why they are not is not told: it may hold a password."""
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.netloc.count("@") <= 1 and (parts.port is None or parts.port in _PORTS):
            parts.hostname.encode("idna")  # as it is looked up: no part of a name is empty or longer than 63
            return parts
    except ValueError:
        pass
    raise SettingsError(
        f"{what}: {shown!r} has no usable host or port.",
        hint="A port is 1 to 65535; in a password @ / : ? # are written %40 %2F %3A %3F %23.",
    )


def _database(text: str, what: str, shown: str) -> None:
    if text and not (text.isascii() and text.isdecimal()):
        raise SettingsError(
            f"{what}: {text!r} in {shown!r} is no database number.",
            hint="It is the number at the end of redis://host:6379/0, and the one of unix:///run/redis.sock?db=0.",
        )


def _certificates(value: str, what: str) -> str:
    spelled = value.lower().removeprefix("cert_")
    if spelled not in {"none", "optional", "required"}:
        raise SettingsError(f"{what}: ssl_cert_reqs={value!r} is not known.", hint="Use none, optional or required.")
    return spelled
