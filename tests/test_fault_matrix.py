"""Each fault that can meet a look → the exit code and the sentence that a person gets: never a wrong "healthy"."""

from __future__ import annotations

import os
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import quote, urlencode

import pytest
from redis import RedisError

from opslib import broker as brokers
from opslib import settings
from opslib.broker import connect
from opslib.collectors.deployment import collect
from opslib.errors import BrokerRefused, BrokerUnreachable, Exit, NotABroker
from opslib.findings import Verdict, verdict
from opslib.symptoms.stuck_tasks import Thresholds, diagnose
from tests import command_line
from tests.command_line import call
from tests.support import certificates, engines, proxy, roads, servers
from tests.support.seed import bind, seed_unacked, seed_waiting
from tests.support.waiting import until

#: Every command that looks: each of them meets the same faults.
LOOKS = (["tasks"], ["queues"], ["workers"], ["find", "some-id"], ["config", "check"])
PATIENCE_S = 0.4


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Nothing of the developer's shell, and a folder of its own."""
    for name in os.environ.keys() - command_line.environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def impatient(monkeypatch):
    """Give up early: what takes its time to fail need not take a test's."""
    monkeypatch.setattr(brokers, "CONNECT_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(brokers, "READ_TIMEOUT_S", PATIENCE_S)


@pytest.fixture
def seeded(any_server):
    """A server of each kind with a queue, and the id of the one message that waits in it."""
    with any_server.client() as client:
        bind(client, "celery", "celery")
        return any_server, seed_waiting(client, retries=1).task_id


def at(url, **values):
    """Return a target at that URL."""
    return settings.Target(name="trial", broker_url=url, **values)


def unseen(monkeypatch, url, *said, looks=LOOKS):
    """Every command that looks shows nothing, ends with exit 4, says this, and shows no password."""
    monkeypatch.setenv("OPS_BROKER_URL", url)
    for words in looks:
        done = call(*words)
        assert (done.code, done.out) == (Exit.CANNOT_SEE, ""), (words, done)
        assert done.err.startswith("✖ "), done.err
        assert "defect" not in done.err
        assert not [sentence for sentence in said if sentence not in done.err], done.err
        assert "correct-horse" not in done.err


def judged(broker):
    """Look once, with hardly any patience for silent nodes, and judge."""
    snapshot = collect(broker, settle="0.01s", answer_within="0.3s")
    return snapshot, diagnose(snapshot, Thresholds())


# Nobody there, or nobody who says anything


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://127.0.0.1:1/0", "Connection refused"),
        ("redis://no-such-host.invalid:6379/0", "cannot be reached"),
        ("unix:///no/such.sock", "No such file"),
    ],
    ids=["refused", "unknown host", "no socket"],
)
def test_nobody_there(monkeypatch, url, said):
    """The cause is told at once, with where to look."""
    begun = time.monotonic()

    unseen(monkeypatch, url, said, "ops config show")

    assert time.monotonic() - begun < 5 * len(LOOKS)


@pytest.mark.usefixtures("impatient")
def test_a_black_hole(monkeypatch):
    """A firewall that swallows everything: one wait for each command, and then a word."""
    begun = time.monotonic()
    with roads.black_hole() as port:
        unseen(monkeypatch, f"redis://127.0.0.1:{port}/0", "did not answer in time", "TLS", "firewall")

    assert time.monotonic() - begun < (PATIENCE_S + 0.5) * len(LOOKS)


@pytest.mark.usefixtures("impatient")
def test_a_stopped_server(monkeypatch, any_server):
    """Its port accepts; the process does not run."""
    with any_server.frozen():
        unseen(monkeypatch, any_server.url, "did not answer in time", "stopped", looks=LOOKS[:2])


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stops_between_two_questions(any_server):
    """Half a look is no look, and it is not waited for any longer than one answer and one repetition."""
    broker = connect(at(any_server.url))
    begun = time.monotonic()

    with any_server.frozen(), pytest.raises(BrokerUnreachable, match="in time"):
        collect(broker)

    assert time.monotonic() - begun < 4 * PATIENCE_S


def test_a_server_that_was_restarted_between_two_questions(tmp_path):
    """The clients find it again under the same address once it is back, with all that it had confirmed."""
    with engines.start(engines.REDIS, tmp_path, persistent=True) as running:
        broker = connect(at(running.url))
        with running.client() as client:
            bind(client, "celery", "celery")
            waiting = seed_waiting(client, retries=1)

        running.restart()

        assert [row.task_id for row in collect(broker, settle="0.01s").waiting] == [waiting.task_id]


# Nobody who speaks Redis


RUBBISH = {
    "web server": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "binary": b"\x15\x03\x01\x00\x02\x02\x46\xff\x00",
    "length out of range": b"$-99\r\n",
    "another protocol version": b"%1\r\n+server\r\n+redis\r\n",
    "always OK": b"+OK\r\n",
    "always a number": b":1\r\n",
    "always text": b"$5\r\nhello\r\n",
    "always nothing": b"$-1\r\n",
    "always an empty list": b"*0\r\n",
}


@pytest.mark.parametrize("hang_up", [True, False])
@pytest.mark.parametrize("case", RUBBISH)
def test_something_that_is_no_redis(monkeypatch, case, hang_up):
    """The port is open, and what listens there is another program."""
    with roads.saying(RUBBISH[case], hang_up=hang_up) as port:
        url = f"redis://127.0.0.1:{port}/0"
        unseen(monkeypatch, url, "answers, but not as Redis does", "another program", looks=LOOKS[:1])
        with pytest.raises(NotABroker):
            connect(at(url))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("hang_up", "said"), [(True, "closed the connection"), (False, "did not answer in time")], ids=["cut", "stuck"]
)
@pytest.mark.parametrize("reply", [b"$100\r\nabc", b"*9\r\n+OK\r\n", b"$"])
def test_half_a_reply(monkeypatch, reply, hang_up, said):
    """What is missing is not made up."""
    with roads.saying(reply, hang_up=hang_up) as port:
        unseen(monkeypatch, f"redis://127.0.0.1:{port}/0", said, looks=LOOKS[:1])


# Answers that get lost or take their time


@pytest.mark.parametrize("question", [b"INFO", b"SCAN", b"LRANGE"])
def test_an_answer_that_is_lost_once_is_asked_for_again(redis, server, question):
    """A look may be repeated: it changes nothing."""
    bind(redis, "celery", "celery")
    waiting, delivered = seed_waiting(redis, retries=1), seed_unacked(redis)
    with proxy.before(server) as road:
        broker = connect(at(road.url))
        road.lose(question)

        snapshot, _ = judged(broker)

        assert road.lost == 1
    assert [row.task_id for row in snapshot.waiting] == [waiting.task_id]
    assert [row.task_id for row in snapshot.unacked] == [delivered.task_id]


@pytest.mark.parametrize("question", [b"SCAN", b"LRANGE"])
def test_an_answer_that_is_lost_again_and_again_ends_the_look(redis, server, question):
    """What was seen until then is not shown as if it were all."""
    seed_waiting(redis)
    with proxy.before(server) as road:
        broker = connect(at(road.url))
        road.lose(question, times=99)

        with pytest.raises(BrokerUnreachable, match="closed the connection"):
            collect(broker)

        assert road.lost == 2


def test_a_server_far_away(redis, server, monkeypatch):
    """A tenth of a second for each answer makes a look slow, and changes nothing about it."""
    bind(redis, "celery", "celery")
    waiting = seed_waiting(redis, retries=1)
    with roads.slow(server.port, 0.1) as port:
        monkeypatch.setenv("OPS_BROKER_URL", server.url.replace(f":{server.port}/", f":{port}/"))
        begun = time.monotonic()

        done = call("tasks", "--state", "waiting", "-o", "ids")

    assert (done.code, done.out.split()) == (Exit.DONE, [waiting.task_id])
    assert time.monotonic() - begun < 10


def test_a_paused_server_is_waited_for(seeded, monkeypatch):
    """As during a failover by hand, or a slow command of somebody else."""
    server, waiting = seeded
    monkeypatch.setenv("OPS_BROKER_URL", server.url)
    with server.client() as client:
        client.client_pause(700, all=True)

    done = call("tasks", "--state", "waiting", "-o", "ids")

    assert (done.code, done.out.split()) == (Exit.DONE, [waiting])


def test_a_server_busy_with_a_script(any_server, monkeypatch):
    """It answers that it answers nobody, which is not the same as being gone."""
    with any_server.client(timeout_s=0.3) as client:
        client.config_set("lua-time-limit", 50)
        with suppress(RedisError):
            client.eval("while true do end", 0)
    try:
        unseen(monkeypatch, any_server.url, "busy with a script", "SCRIPT KILL")
    finally:
        with any_server.client() as client:
            client.script_kill()
            until(lambda: _answers(client), 5, "the script is gone")


def _answers(client):
    with suppress(RedisError):
        return client.ping()
    return False


@pytest.mark.parametrize("kind", [engines.VALKEY, engines.REDIS])  # 6.2 has no way to make it slow enough to be met
def test_a_server_that_loads_its_data(kind, tmp_path, monkeypatch):
    """It accepts connections long before it has its data; an empty answer then would be a lie."""
    with engines.start(kind, tmp_path) as running:
        with running.client() as client:
            for number in range(400):
                client.set(f"key-{number}", secrets.token_bytes(1100))
            client.save()
        running.kill()
        # 20 ms for each key, and time for questions after each kilobyte.
        running.lines += ("key-load-delay 20000", "loading-process-events-interval-bytes 1024")
        running.start(ready=False)
        until(lambda: _loading(running), 10, "it accepts connections")

        unseen(monkeypatch, running.url, "is loading its data", "Wait", looks=LOOKS[:2])


def _loading(running):
    try:
        with running.client() as client:
            client.ping()
    except RedisError as error:
        return "loading" in str(error).lower()
    return False


# Servers that answer, and the answer is no


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("", "refused the credentials"),
        (":correct-horse-not@", "refused the credentials"),
        ("nobody:correct-horse-not@", "redis://nobody:***@"),
    ],
    ids=["no password", "wrong password", "unknown user"],
)
def test_wrong_credentials(any_server, monkeypatch, user, said):
    """The user is named and the password is not."""
    unseen(monkeypatch, f"redis://{user}127.0.0.1:{any_server.port}/0", said, "Check user and password")


def test_a_user_without_rights(any_server, monkeypatch):
    """What is not permitted is named."""
    with any_server.client() as client:
        servers.user(client, "nocommands")

    unseen(monkeypatch, servers.as_user(any_server), "does not permit", "limited:***@", "docs/safety.md")


def test_a_user_who_may_not_ask_nodes_sees_the_rest(seeded, monkeypatch):
    """A missing right for one place is a hole in the view, and no reason to show nothing."""
    server, waiting = seeded
    with server.client() as client:
        servers.user(client, servers.READ_ONLY)
    monkeypatch.setenv("OPS_BROKER_URL", servers.as_user(server))

    done = call("tasks", "--state", "waiting", "-o", "ids")

    assert (done.code, done.out.split()) == (Exit.CANNOT_SEE, [waiting])
    assert "Not the whole view: workers: This user may not publish control messages" in done.err


def test_a_database_that_is_not_there(any_server, monkeypatch):
    """A server has sixteen, unless it says otherwise."""
    unseen(monkeypatch, any_server.url[:-1] + "99", "no such database", "end of the URL")


def test_another_database_is_not_called_healthy(seeded):
    """Nothing of Celery is there, and where there is something is told."""
    server, _ = seeded

    _, findings = judged(connect(at(server.url[:-1] + "7")))

    assert verdict(findings) is Verdict.UNKNOWN
    assert "Other databases of this server hold keys: 0" in findings[0].hint


@pytest.mark.parametrize("kind", engines.KINDS)
def test_a_node_of_a_cluster(kind, tmp_path, monkeypatch):
    """Celery cannot use one."""
    with engines.start(kind, tmp_path, extra=["cluster-enabled yes"]) as running:
        unseen(monkeypatch, running.url, "Redis Cluster, which cannot be a Celery broker", looks=LOOKS[:2])


def test_no_connection_to_spare(any_server, monkeypatch):
    """A leak of connections is told as one."""
    with any_server.client() as client:
        client.config_set("maxclients", 1)
        try:
            unseen(monkeypatch, any_server.url, "has no connection to spare", "maxclients")
        finally:
            client.config_set("maxclients", 1000)


# TLS


@contextmanager
def speaking_tls(folder, **of):
    """Start a server with a certificate; return it and its authority."""
    authority = certificates.authority(folder)
    with engines.start(engines.REDIS, folder, certificate=certificates.issue(authority, **of)) as running:
        yield running


def test_a_known_authority(place, monkeypatch):
    """Looking works over TLS as it does without, results included."""
    with speaking_tls(place) as running:
        with running.client() as client:
            waiting = seed_waiting(client, retries=1)
            bind(client, "celery", "celery")
        monkeypatch.setenv("OPS_BROKER_URL", running.url)
        monkeypatch.setenv("OPS_RESULT_BACKEND", running.url)

        done = call("tasks", "--state", "waiting", "-o", "ids")

    assert (done.code, done.out.split()) == (Exit.DONE, [waiting.task_id])


def test_an_unknown_authority(place, monkeypatch):
    """Neither the system's nor another one vouches for it."""
    with speaking_tls(place) as running:
        bare = running.url.partition("?")[0]
        other = urlencode({"ssl_ca_certs": certificates.authority(place, "other")})
        for url in (bare, f"{bare}?{other}"):
            unseen(monkeypatch, url, "TLS with rediss://", "certificate verify failed", "ssl_ca_certs")


def test_an_authority_whose_file_is_missing(place, monkeypatch):
    """The server is fine; the URL's option is not."""
    with speaking_tls(place) as running:
        url = running.url.partition("?")[0] + "?ssl_ca_certs=/no/such.pem"
        unseen(monkeypatch, url, "TLS with", "No such file", "ssl_ca_certs", looks=LOOKS[:2])


@pytest.mark.parametrize(
    ("of", "said"),
    [({"days": -1}, "certificate has expired"), ({"hosts": "DNS:elsewhere.example"}, "not valid for '127.0.0.1'")],
    ids=["expired", "wrong name"],
)
def test_a_certificate_that_does_not_hold(place, monkeypatch, of, said):
    """The authority is the right one."""
    with speaking_tls(place, **of) as running:
        unseen(monkeypatch, running.url, said, looks=LOOKS[:2])


def test_plain_words_to_a_tls_port(place, monkeypatch):
    """It hangs up, and the hint asks for TLS."""
    with speaking_tls(place) as running:
        url = running.url.partition("?")[0].replace("rediss://", "redis://")
        unseen(monkeypatch, url, "closed the connection", "Does this port speak TLS (rediss://)?", looks=LOOKS[:2])


@pytest.mark.usefixtures("impatient")
def test_tls_to_a_plain_port(any_server, monkeypatch):
    """Both wait for each other, and the hint asks for the plain URL."""
    url = any_server.url.replace("redis://", "rediss://")
    unseen(monkeypatch, url, "did not answer in time", "without TLS (redis://)?", looks=LOOKS[:2])


# Servers that take no writes: looking works, and says what that means


def stores_nothing(server, monkeypatch, waiting, why):
    """Look at a server that takes no writes: all is seen but the nodes, and the reason is a finding."""
    monkeypatch.setenv("OPS_BROKER_URL", server.url)
    done = call("tasks", "--state", "waiting", "-o", "ids")
    assert (done.code, done.out.split()) == (Exit.CANNOT_SEE, [waiting]), done
    assert f"Not the whole view: workers: {why}" in done.err

    _, findings = judged(connect(at(server.url)))
    assert verdict(findings) is Verdict.UNKNOWN
    assert why in " ".join(finding.message for finding in findings)
    # Nobody was asked, so nobody is accused of being absent.
    assert "no-workers" not in {finding.code for finding in findings}


def test_out_of_memory(seeded, monkeypatch):
    """What it takes to look needs no memory; asking the nodes does."""
    server, waiting = seeded
    with server.client() as client:
        client.config_set("maxmemory", 1)

    stores_nothing(server, monkeypatch, waiting, "This server is out of memory")


def test_too_few_replicas(seeded, monkeypatch):
    """It is set to take no writes that nobody copies."""
    server, waiting = seeded
    with server.client() as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            stores_nothing(server, monkeypatch, waiting, "This server takes no writes, as it has too few replicas")
        finally:
            client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize("kind", engines.KINDS)
def test_a_disk_that_takes_nothing(kind, tmp_path, monkeypatch):
    """Its last copy to the disk failed, and it is set to take no writes then."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with engines.start(kind, tmp_path, extra=[f"dir {disk}", "save 3600 100000"]) as running:
        with running.client() as client:
            bind(client, "celery", "celery")
            waiting = seed_waiting(client, retries=1).task_id
            disk.rmdir()
            client.bgsave()
            until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10, "it could not save")

        stores_nothing(running, monkeypatch, waiting, "This server takes no writes, as it cannot save its data")


@pytest.mark.parametrize("kind", engines.KINDS)
def test_a_replica_may_be_looked_at(kind, tmp_path, monkeypatch):
    """All is there but the nodes, which cannot answer to it."""
    for name in ("primary", "copy"):
        (tmp_path / name).mkdir()
    with engines.start(kind, tmp_path / "primary", extra=["repl-diskless-sync-delay 0"]) as primary:
        with primary.client() as client:
            bind(client, "celery", "celery")
            waiting = seed_waiting(client, retries=1).task_id
        lines = [f"replicaof 127.0.0.1 {primary.port}", f"masterauth {primary.password}"]
        with engines.start(kind, tmp_path / "copy", extra=lines) as replica, replica.client() as client:
            until(lambda: client.info("replication")["master_link_status"] == "up", 20, "it is in step")

            stores_nothing(replica, monkeypatch, waiting, "This server is a replica")
            assert connect(at(replica.url)).role == "slave"


def test_a_replica_is_planned_for_and_not_changed(place):
    """A dry run makes its plan there; to apply it is refused, even where the replica itself would take writes."""
    for name in ("primary", "copy"):
        (place / name).mkdir()
    with engines.start(engines.REDIS, place / "primary", extra=["repl-diskless-sync-delay 0"]) as primary:
        with primary.client() as client:
            bind(client, "celery", "celery")
            client.lpush("celery", "no message")
        lines = [f"replicaof 127.0.0.1 {primary.port}", f"masterauth {primary.password}", "replica-read-only no"]
        with engines.start(engines.REDIS, place / "copy", extra=lines) as replica, replica.client() as client:
            until(lambda: client.info("replication")["master_link_status"] == "up", 20, "it is in step")
            env = command_line.environment(OPS_BROKER_URL=replica.url, OPS_REPORTS=str(place / "reports"))
            words = ["run", "stuck-tasks", "-q", "-p", "settle=0.1s", "-p", "answer_within=0.2s"]

            looked = command_line.ops(*words, env=env, cwd=place)
            applied = command_line.ops(*words, "--apply", "--yes", env=env, cwd=place)

            assert looked.code == Exit.ATTENTION
            assert "quarantine 1" in looked.out
            assert applied.code == Exit.REFUSED
            assert "is a replica; changes belong on its master" in applied.out
            assert client.lrange("celery", 0, -1) == [b"no message"]
            assert not [key for key in client.scan_iter() if key.startswith(b"opslib:")]


# Nobody works


def test_no_workers(seeded, monkeypatch):
    """Messages wait, and nobody is there to take them: that is told, and is no hole in the view."""
    server, _ = seeded
    monkeypatch.setenv("OPS_BROKER_URL", server.url)

    done = call("workers")
    _, findings = judged(connect(at(server.url)))

    assert done.code == Exit.DONE
    assert "no-workers" in {finding.code for finding in findings}
    assert verdict(findings) is Verdict.CRITICAL


def test_nodes_that_hear_and_stay_silent(seeded, monkeypatch):
    """Somebody listens on the control channel, and nobody knows what they hold."""
    server, _ = seeded
    monkeypatch.setenv("OPS_BROKER_URL", server.url)
    with server.client() as client, client.pubsub() as listener:
        listener.subscribe("/0.celery.pidbox")
        assert listener.get_message(timeout=2)

        done = call("workers", "--timeout", "0.2s")
        _, findings = judged(connect(at(server.url)))

    assert done.code == Exit.CANNOT_SEE
    assert "1 heard the question and did not answer within 0.2 s" in done.err
    assert "worker-silent" in {finding.code for finding in findings}
    assert verdict(findings) in {Verdict.UNKNOWN, Verdict.CRITICAL}


def test_a_clock_that_is_a_day_off_changes_no_age(seeded, monkeypatch):
    """Ages count from the server's clock; this machine's is not asked."""
    server, _ = seeded
    with server.client() as client:
        seed_unacked(client, age_s=60)
    real = time.time
    ages = []
    for skew_s in (0, -86_400, 86_400):
        monkeypatch.setattr(time, "time", lambda skew_s=skew_s: real() + skew_s)
        snapshot, _ = judged(connect(at(server.url)))
        ages.append(snapshot.taken_at.timestamp() - snapshot.unacked[0].delivered_at)

    assert ages == pytest.approx([60, 60, 60], abs=10)


# Another server under the same name


def test_sentinels_lead_to_the_new_primary(place):
    """Who connects after a failover works on the server that counts, and a broker that was opened before knows it."""
    with engines.failover(place) as group:
        target = at(group.url, master_name=engines.MASTER)
        before = connect(target)
        assert before.reads.info("server")["process_id"] == group.primary.pid
        before.reads.set("here", 1)
        assert before.reads.wait(1, 2000) == 1

        group.primary.kill()
        group.until_failed_over()

        after = connect(target)
        assert after.writes.info("server")["process_id"] == group.replica.pid
        assert after.reads.get("here") == b"1"
        assert after.fingerprint != before.fingerprint
        # Changes begin with a connection of their own: the primary is asked for then, not when the broker was opened.
        assert before.writes.info("server")["process_id"] == group.replica.pid


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Servers and sentinels that nobody fails over."""
    with engines.failover(tmp_path_factory.mktemp("group")) as running:
        yield running


def test_a_silent_sentinel_is_passed_over(group, monkeypatch):
    """The others know as much."""
    monkeypatch.setattr(brokers, "CONNECT_TIMEOUT_S", PATIENCE_S)
    with roads.black_hole() as port:
        url = f"sentinel://127.0.0.1:{port}/0;{group.url}"
        with pytest.raises(BrokerRefused):  # the login of the first counts for the primary, and it has none
            connect(at(url, master_name=engines.MASTER))

        user = f":{quote(group.primary.password, safe='')}@"
        found = connect(at(f"sentinel://{user}127.0.0.1:{port}/0;{group.url}", master_name=engines.MASTER))
        begun = time.monotonic()

        assert found.role == "master"
        assert found.writes.ping()
        assert time.monotonic() - begun < 3


def test_sentinels_that_know_no_such_primary(group, monkeypatch):
    """They are there; the name is wrong."""
    with pytest.raises(BrokerUnreachable, match="No master found for 'another'") as told:
        connect(at(group.url, master_name="another"))

    assert group.primary.password not in str(told.value)
    monkeypatch.setenv("OPS_BROKER_URL", group.url)
    assert call("queues").code == Exit.USAGE


def test_two_looks_at_once_do_not_disturb_each_other(seeded):
    """Two people in the same incident."""
    server, waiting = seeded
    seen = []
    looks = [
        threading.Thread(target=lambda: seen.append(collect(connect(at(server.url)), settle="0.01s"))) for _ in range(4)
    ]
    for look in looks:
        look.start()
    for look in looks:
        look.join()

    assert [[row.task_id for row in snapshot.waiting] for snapshot in seen] == [[waiting]] * 4
    assert not any(row.silent for snapshot in seen for row in snapshot.coverage)


def test_a_refusal_says_which_server_said_no(any_server):
    """With several targets open, a sentence without an address is of no use."""
    with pytest.raises(BrokerRefused) as told:
        connect(at(f"redis://:correct-horse-not@127.0.0.1:{any_server.port}/0"))

    assert f"127.0.0.1:{any_server.port}" in told.value.message
