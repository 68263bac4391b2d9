"""A URL as Celery writes it becomes one that redis-py understands, or is refused with a sentence."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import make_url

from opslib import redact, urls
from opslib.errors import SettingsError

#: In a password each of these needs an escape, and each is forgotten by somebody.
_UNESCAPED = ["geh@eim", "geh/eim", "geh?eim", "geh#eim", "geh eim", "a:b@c/d?e#f", "geh;eim@/"]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """No password of another test is masked in this one."""
    monkeypatch.setattr(redact, "_known", set())


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("redis://h", "redis://h/0"),
        ("redis://h:6379/", "redis://h:6379/0"),
        ("redis://h/3", "redis://h/3"),
        ("redis://h?db=3", "redis://h/3"),
        ("redis://h?virtual_host=3", "redis://h/3"),
        ("redis://h/3?db=3", "redis://h/3"),
        ("redis://h/%33", "redis://h/3"),
        ("redis://ops:geh%40eim@h:6380/1", "redis://ops:geh%40eim@h:6380/1"),
        ("redis://[::1]:6379/2", "redis://[::1]:6379/2"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+socket:///run/redis.sock?virtual_host=2", "unix:///run/redis.sock?db=2"),
        ("sentinel://a:26379/0;sentinel://b:26379/0", "sentinel://a:26379/0;sentinel://b:26379/0"),
        (
            "rediss://h?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=/ca.pem",
            "rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem",
        ),
    ],
)
def test_each_spelling_of_celery_is_understood(given, understood):
    """Host, database, user, socket, sentinels and TLS mean what they mean to Celery."""
    assert urls.check(given, "broker_url") == (understood, [])


@pytest.mark.parametrize(
    "option",
    [
        "socket_timeout=600",
        "socket_timeout=soon",
        "retry_on_timeout=true",
        "visibility_timeout=60",
        "ssl_ca_certs=/ca.pem",
    ],
)
def test_an_option_that_is_not_ours_to_take_is_left_out(option):
    """Timeouts and retries are chosen here, and Celery's own words would be an error to redis-py."""
    understood, _ = urls.check(f"redis://h/0?{option}", "broker_url")

    assert understood == "redis://h/0"
    Redis.from_url(understood)


@pytest.mark.parametrize("spelled", ["none", "CERT_NONE", "None", "cert_none"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_tls_without_verification_works_and_warns(scheme, spelled):
    """Kombu switches TLS on by the option alone; that nobody checks the certificate is said aloud."""
    understood, warnings = urls.check(f"{scheme}://h?ssl_cert_reqs={spelled}", "broker_url")

    assert understood == "rediss://h/0?ssl_cert_reqs=none"
    assert warnings == ["broker_url: the server's certificate is not verified (ssl_cert_reqs=none)."]


@pytest.mark.parametrize(
    ("given", "because"),
    [
        ("", "no Redis URL"),
        ("h", "no Redis URL"),
        ("h:6379/0", "no Redis URL"),
        ("amqp://h", "no Redis URL"),
        ("valkey://h", "no Redis URL"),
        ("redis:/h", "no Redis URL"),
        ("redis+cluster://h", "Redis Cluster cannot be a Celery broker"),
        ("rediscluster://h", "Redis Cluster cannot be a Celery broker"),
        ("redis://h/0 ", "white space"),
        ("redis://h\n/0", "white space"),
        ("redis://", "no usable host or port"),
        ("redis:///0", "no usable host or port"),
        ("redis://h:0/0", "no usable host or port"),
        ("redis://h:65536/0", "no usable host or port"),
        ("redis://h:-1", "no usable host or port"),
        ("redis://h:port", "no usable host or port"),
        ("redis://a@b@c/0", "no usable host or port"),
        ("redis://[::1/0", "no usable host or port"),
        ("redis://one..two/0", "no usable host or port"),
        (f"redis://{'h' * 64}/0", "no usable host or port"),
        ("sentinel://one..two:26379/0", "no usable host or port"),
        ("redis://h/abc", "no database number"),
        ("redis://h/-1", "no database number"),
        ("redis://h/1/2", "no database number"),
        ("redis://h/٣", "no database number"),
        ("redis://h?db=x", "no database number"),
        ("unix:///run/redis.sock?db=x", "no database number"),
        ("sentinel://a/x", "no database number"),
        ("redis://h/1?db=2", "names two databases"),
        ("rediss://h?ssl_cert_reqs=0", "is not known"),
        ("unix://", "names no socket"),
        ("sentinel://", "no usable host or port"),
        ("sentinel://a:x/0", "no usable host or port"),
        ("sentinel://a;b", "no list of sentinels"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, because):
    """A broken URL names its setting and says what is wrong; none of them reaches redis-py."""
    with pytest.raises(SettingsError, match=because) as caught:
        urls.check(given, "broker_url")

    assert caught.value.message.startswith("broker_url: ")


@pytest.mark.parametrize(("port", "usable"), [(1, True), (65535, True), (0, False), (65536, False)])
def test_a_port_is_between_1_and_65535(port, usable):
    """The first and the last port are ports; their neighbours are not."""
    if usable:
        assert urls.check(f"redis://h:{port}/0", "broker_url")[0] == f"redis://h:{port}/0"
    else:
        with pytest.raises(SettingsError, match="1 to 65535"):
            urls.check(f"redis://h:{port}/0", "broker_url")


@pytest.mark.parametrize("password", _UNESCAPED)
def test_a_password_that_was_not_escaped_is_never_shown(password):
    """The likeliest broken URL is one with a password in it: the error says how to escape it, without a part of it."""
    with pytest.raises(SettingsError) as caught:
        urls.check(f"redis://ops:{password}@h:6379/0", "broker_url")

    said = str(caught.value)
    assert "***" in said
    assert "eim" not in said.replace("***", "")
    assert "geh" not in said
    assert password not in redact.text(f"elsewhere: {password}")


@settings(deadline=None)
@given(st.text() | st.from_regex(r"(rediss?|unix|sentinel|redis\+socket)://[!-~\u00a0-\u2fff]{0,30}", fullmatch=True))
@example("unix://[/x")
@example("sentinel://[")
@example("redis://h:\uff16/0")
@example("redis://\udcff")
def test_any_text_gives_a_url_that_redis_py_takes_or_a_sentence(text):
    """Whatever stands in a variable, the answer is a URL that a client can be made of, or an error to read."""
    try:
        understood, _ = urls.check(text, "broker_url")
    except SettingsError:
        return
    if not understood.startswith("sentinel"):
        Redis.from_url(understood)


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("redis://h", True),
        ("rediss://h", True),
        ("sentinel://h", True),
        ("db+postgresql://h/x", False),
        ("rpc://", False),
        ("", False),
    ],
)
def test_a_result_backend_is_redis_by_its_scheme(url, answer):
    """Only what redis-py can open is opened; another backend is a place that is not seen."""
    assert urls.is_redis(url) is answer


# SQL databases


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("postgresql://h/shop", "postgresql+psycopg://h/shop"),
        ("postgres://ops:geh%40eim@h:5433/shop", "postgresql+psycopg://ops:geh%40eim@h:5433/shop"),
        ("postgresql+psycopg2://h/shop", "postgresql+psycopg://h/shop"),
        ("db+postgresql://h/shop", "postgresql+psycopg://h/shop"),
        ("postgis://h/shop?sslmode=require&conn_max_age=60", "postgresql+psycopg://h/shop?sslmode=require"),
        ("postgresql:///shop?host=/run/postgresql", "postgresql+psycopg:///shop?host=%2Frun%2Fpostgresql"),
        ("postgresql://[::1]:5432/shop", "postgresql+psycopg://[::1]:5432/shop"),
        ("MySQL://h/shop?charset=utf8mb4&pool_size=5", "mysql+pymysql://h/shop?charset=utf8mb4"),
        ("mariadb://h/shop", "mysql+pymysql://h/shop"),
        ("sqlite:////srv/shop.db", "sqlite:////srv/shop.db"),
        ("sqlite:////srv/my%20shop.db?timeout=5", "sqlite:////srv/my shop.db"),
        ("db+sqlite:////srv/shop.db", "sqlite:////srv/shop.db"),
    ],
)
def test_the_url_of_a_database_gets_our_driver(given, understood):
    """Whatever the application reaches it by; what is said of pools is left out."""
    assert urls.database(given, "database_url") == understood


@pytest.mark.parametrize(
    ("given", "because"),
    [
        ("mongodb://h/shop", "no URL of PostgreSQL, MySQL or SQLite"),
        ("shop.db", "no URL of PostgreSQL"),
        ("oracle://h/shop", "no URL of PostgreSQL"),
        ("postgresql://h", "names no database"),
        ("postgresql://h/", "names no database"),
        ("postgresql://h:0/shop", "no usable host or port"),
        ("postgresql://h:99999/shop", "no usable host or port"),
        ("postgresql://a@b@h/shop", "no usable host or port"),
        ("postgresql://h/shop ", "white space"),
        ("sqlite://", "no file by its whole path"),
        ("sqlite:///:memory:", "no file by its whole path"),
        ("sqlite:///shop.db", "no file by its whole path"),
    ],
)
def test_a_database_that_cannot_be_meant_is_refused(given, because):
    """The sentence names the setting."""
    with pytest.raises(SettingsError, match=because) as caught:
        urls.database(given, "database_url")

    assert caught.value.message.startswith("database_url: ")


@pytest.mark.parametrize("password", _UNESCAPED)
def test_nor_is_the_password_of_a_database_shown(password):
    """Understood or refused, it is remembered, and no part of it is told."""
    given = f"postgresql://ops:{password}@h:5432/shop"
    said = ""
    try:
        urls.database(given, "database_url")
    except SettingsError as error:
        said = str(error)
    assert "eim" not in said.replace("***", "")
    assert "geh" not in said
    assert password not in redact.text(f"elsewhere: {password}")


@settings(deadline=None)
@given(st.text() | st.from_regex(r"(postgresql|mysql|sqlite)://[!-~\u00a0-\u2fff]{0,30}", fullmatch=True))
@example("postgresql://[/x")
@example("sqlite:////%00")
@example("mysql://h/\udcff")
def test_any_text_gives_a_url_that_sqlalchemy_takes_or_a_sentence(text):
    """Whatever stands in a variable."""
    try:
        understood = urls.database(text, "database_url")
    except SettingsError:
        return
    assert make_url(understood).drivername in {"postgresql+psycopg", "mysql+pymysql", "sqlite"}
