"""Only a server that can be a Celery broker is opened, and a refusal says which, why and what to do."""

from __future__ import annotations

import socket
import time
from contextlib import closing

import pytest
from redis import exceptions

from opslib import broker as brokers
from opslib import refusals
from opslib.broker import connect
from opslib.demo import server as embedded
from opslib.embedded import processes
from opslib.embedded.server import free_port, program
from opslib.errors import BrokerRefused, BrokerUnreachable, NotABroker, SettingsError
from opslib.settings import Target
from tests.support import servers
from tests.support.waiting import until


def target(url, **values):
    """Return a target of that URL."""
    return Target(name="trial", broker_url=url, **values)


def test_an_open_broker_knows_where_it_is(broker, server):
    """Its fingerprint is that of the server, and it never shows the password."""
    assert broker.role == "master"
    assert broker.fingerprint.endswith("/0/")
    assert server.password not in repr(broker)
    assert repr(broker).startswith("trial: redis://:***@127.0.0.1:")


def test_the_fingerprint_tells_databases_and_prefixes_apart(server):
    """A plan for one of them does not apply to another."""
    seen = {
        servers.broker(server).fingerprint,
        servers.broker(server, broker_url=server.url[:-1] + "1").fingerprint,
        servers.broker(server, global_keyprefix="shop:").fingerprint,
    }

    assert len(seen) == 3


def test_a_restart_is_another_server(tmp_path):
    """The same port and the same data do not make it the same run."""
    seen = set()
    for _ in range(2):
        with embedded.start(tmp_path) as running:
            seen.add(servers.broker(running).fingerprint)

    assert len(seen) == 2


def test_a_change_is_never_repeated_by_the_client(broker):
    """Reads may be asked again; a push that was asked again would be a duplicate."""
    assert broker.writes.get_retry().get_retries() == 0
    assert broker.reads.get_retry().get_retries() == 1


def test_the_servers_clock_counts(broker, redis):
    """An instant with a zone, to the microsecond."""
    seconds, micros = redis.time()

    assert broker.server_time().timestamp() == pytest.approx(seconds + micros / 1e6, abs=5)
    assert broker.server_time().utcoffset().total_seconds() == 0


def test_nobody_listening_is_told_at_once():
    """Within the time that a person still waits for."""
    begun = time.monotonic()

    with pytest.raises(BrokerUnreachable, match="cannot be reached"):
        connect(target("redis://127.0.0.1:1/0"))

    assert time.monotonic() - begun < 2


def test_a_server_that_accepts_and_says_nothing_is_told_within_seconds(monkeypatch):
    """A stopped server or a firewall that swallows everything."""
    monkeypatch.setattr(brokers, "CONNECT_TIMEOUT_S", 0.3)
    with closing(socket.create_server(("127.0.0.1", 0))) as hole, pytest.raises(BrokerUnreachable, match="in time"):
        connect(target(f"redis://127.0.0.1:{hole.getsockname()[1]}/0"))


@pytest.mark.parametrize("credentials", ["", ":wrong@", "nobody:wrong@"])
def test_wrong_credentials_are_a_refusal(server, credentials):
    """The server answers, and the answer is no; what was tried is not shown."""
    with pytest.raises(BrokerRefused, match="refused the credentials") as told:
        connect(target(f"redis://{credentials}127.0.0.1:{server.port}/0"))

    assert "wrong" not in str(told.value).replace("WRONGPASS", "")


def test_a_database_that_does_not_exist_is_a_refusal(server):
    """A server has sixteen, unless it says otherwise."""
    with pytest.raises(BrokerRefused, match="no such database"):
        connect(target(server.url[:-1] + "99"))


def test_a_user_who_may_not_even_ask_is_a_refusal(redis, server):
    """It says what is not permitted."""
    servers.user(redis, "nocommands")

    with pytest.raises(BrokerRefused, match="does not permit"):
        connect(target(servers.as_user(server)))


def test_a_cluster_cannot_be_a_broker(tmp_path):
    """Celery cannot work on one, even with a single node."""
    with embedded.start(tmp_path, extra=["cluster-enabled yes"]) as running, pytest.raises(NotABroker, match="Cluster"):
        connect(target(running.url))


@pytest.mark.parametrize(("version", "old"), [("6.0.20", True), ("6.2.0", False), ("7.2.4", False), ("10.0", False)])
def test_a_server_older_than_celery_needs_is_refused(version, old):
    """The floor itself is new enough."""
    information = {"redis_version": version, "redis_mode": "standalone"}

    if old:
        with pytest.raises(NotABroker, match=version):
            brokers._check(information, target("redis://h/0"))
    else:
        brokers._check(information, target("redis://h/0"))


def test_a_server_that_loads_is_waited_for_by_the_person():
    """It accepts connections before it has its data."""
    with pytest.raises(BrokerUnreachable, match="loading"):
        brokers._check({"redis_version": "7.2.4", "loading": 1}, target("redis://h/0"))


@pytest.fixture
def sentinel(server, tmp_path):
    """A sentinel that watches the shared server, and its port."""
    port = free_port()
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"sentinel monitor mymaster 127.0.0.1 {server.port} 1",
        f"sentinel auth-pass mymaster {server.password}",
    ]
    path = tmp_path / "sentinel.conf"
    path.write_text("\n".join([*lines, ""]))
    child = processes.spawn(
        "sentinel", [str(program()), str(path), "--sentinel"], folder=tmp_path, env=processes.environment()
    )
    yield port
    child.end()


def test_sentinels_lead_to_the_master(redis, server, sentinel):
    """Asked for the master by its name, with the master's own password."""
    redis.set("here", 1)
    url = f"sentinel://:{server.password}@127.0.0.1:{sentinel}/0"

    def opened():
        try:
            return connect(target(url, master_name="mymaster"))
        except BrokerUnreachable:
            return None

    found = until(opened, 10, "the sentinel knows the master")

    assert found.reads.get("here") == b"1"
    assert found.writes.set("here", 2)
    assert found.fingerprint == servers.broker(server).fingerprint


def test_sentinels_need_the_masters_name():
    """They may watch several."""
    with pytest.raises(SettingsError, match="master"):
        connect(target("sentinel://127.0.0.1:1"))


def test_a_password_for_the_master_is_decoded():
    """As in any other URL: what needs an escape there is written with one."""
    url = "sentinel://ops%2Fme:geh%40eim@127.0.0.1:1/3;sentinel://127.0.0.1:2"

    options = brokers._client(url, target(url, master_name="m"), retries=0, timeout_s=1).connection_pool

    wanted = {"username": "ops/me", "password": "geh@eim", "db": 3}
    assert {name: options.connection_kwargs[name] for name in wanted} == wanted


def test_sentinels_that_are_gone_are_told_at_once():
    """As a server would be: none of them is asked a second time."""
    begun = time.monotonic()

    with pytest.raises(BrokerUnreachable):
        connect(target("sentinel://127.0.0.1:1;sentinel://127.0.0.1:2", master_name="mymaster"))

    assert time.monotonic() - begun < 2


def test_a_frozen_script_is_told_as_busy(tmp_path):
    """The server lives, and answers nobody."""
    with embedded.start(tmp_path, extra=["busy-reply-threshold 50"]) as running:
        broker = servers.broker(running)
        stuck = running.client()
        stuck.connection_pool.connection_kwargs["socket_timeout"] = 0.01
        with pytest.raises(exceptions.TimeoutError):
            stuck.eval("while true do end", 0)

        def busy():
            try:
                broker.reads.ping()
            except exceptions.ResponseError as error:
                return refusals.of(error, "trial")
            return None

        told = until(busy, 5, "the server calls itself busy")

    assert isinstance(told, BrokerUnreachable)
    assert "busy" in told.message


def test_an_error_of_our_own_is_not_dressed_up():
    """A fault in this program must not look like one of the server."""
    with pytest.raises(KeyError):
        refusals.of(KeyError("x"), "trial")


@pytest.mark.parametrize("backend", ["", "redis://127.0.0.1:1/0", "db+sqlite:///x.db", "rpc://"])
def test_the_result_backend_is_opened_where_it_is_redis(server, backend):
    """Without one it is the broker's own database; of another kind it is none."""
    found = servers.broker(server, result_backend=backend)

    assert (found.results is None) is backend.startswith(("db+", "rpc"))
    assert (found.results is found.reads) is (backend == "")
