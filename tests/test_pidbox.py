"""Questions to all nodes: how many heard them, who answered, and that nothing stays behind."""

from __future__ import annotations

import json
import time

import pytest
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as Late

from opslib import broker as brokers
from opslib import pidbox
from opslib.pidbox import Call
from tests.support import proxy, servers
from tests.support.impostor import listening, reply

PING = Call(method="ping")


def test_nobody_hears_and_nothing_is_waited_for(broker):
    """Without a subscriber there is no answer to come."""
    begun = time.monotonic()

    answers = pidbox.ask(broker, [PING], timeout_s=5)

    assert (answers.receivers, answers.nodes, answers.late) == (0, set(), False)
    assert time.monotonic() - begun < 1


def test_every_answer_is_filed_under_its_node(broker, server):
    """The wait ends with the last of them, not with the deadline."""
    begun = time.monotonic()

    with (
        listening(server, lambda asked: [reply(asked, "a@x", {"ok": 1})]),
        listening(server, lambda asked: [reply(asked, "b@x", asked["method"])]),
    ):
        answers = pidbox.ask(broker, [PING, Call(method="stats")], timeout_s=10)

    assert answers.receivers == 2
    assert {m: {n: json.loads(raw) for n, raw in by.items()} for m, by in answers.replies.items()} == {
        "ping": {"a@x": {"ok": 1}, "b@x": "ping"},
        "stats": {"a@x": {"ok": 1}, "b@x": "stats"},
    }
    assert not answers.late
    assert time.monotonic() - begun < 5


def test_who_stays_silent_is_counted(broker, server):
    """One of two subscribers does not answer: the reply to PUBLISH tells."""
    with listening(server, lambda asked: [reply(asked, "a@x", "pong")]), listening(server, lambda _: []):
        answers = pidbox.ask(broker, [PING], timeout_s=0.3)

    assert (answers.receivers, answers.nodes, answers.late) == (2, {"a@x"}, True)


@pytest.mark.usefixtures("redis")
def test_a_long_wait_is_not_cut_by_the_clients_own_timeout(target, server, monkeypatch):
    """Who asks for more patience than a read has gets it, and is not told that the server is gone."""
    monkeypatch.setattr(brokers, "READ_TIMEOUT_S", 1.2)
    impatient = brokers.connect(target)

    with listening(server, lambda _: []):
        answers = pidbox.ask(impatient, [PING], timeout_s=1.6)

    assert (answers.receivers, answers.late) == (1, True)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda _: [b"no JSON"], id="no JSON"),
        pytest.param(lambda _: [b"{}"], id="no body"),
        pytest.param(lambda asked: [reply(asked, "a@x", 1, ticket="another")], id="to another question"),
        pytest.param(lambda asked: [reply(asked, "a@x", 1).replace(b'"body": "', b'"body": "A')], id="no base64"),
        pytest.param(lambda _: [json.dumps({"body": "WzFd", "headers": {}}).encode()], id="no object"),
    ],
)
def test_an_answer_of_another_shape_is_none(broker, server, answer):
    """Who answers nonsense has not answered."""
    with listening(server, answer):
        answers = pidbox.ask(broker, [PING], timeout_s=0.2)

    assert (answers.receivers, answers.nodes, answers.late) == (1, set(), True)


def test_two_nodes_of_one_name_are_one_that_did_not_answer(broker, server):
    """What one of them holds would hide what the other holds; so the count stays short."""

    def same(asked):
        return [reply(asked, "twin@x", "pong")]

    with listening(server, same), listening(server, same):
        answers = pidbox.ask(broker, [PING], timeout_s=1)

    assert answers.receivers == 2
    assert answers.nodes == {"twin@x"}


def test_an_order_reaches_only_whom_it_is_meant_for(broker, server):
    """The names travel with it; a node that is not named leaves it alone."""
    with listening(server, lambda asked: [reply(asked, "a@x", {"ok": "done"})]) as heard:
        answer = pidbox.order(
            broker, Call(method="revoke", arguments={"task_id": ["1"]}, destination=("a@x",)), timeout_s=1
        )

    assert answer == {"a@x": {"ok": "done"}}
    assert [(asked["method"], asked["destination"], asked["arguments"]) for asked in heard] == [
        ("revoke", ["a@x"], {"task_id": ["1"]})
    ]


@pytest.mark.parametrize("silent", [True, False])
def test_reply_list_and_route_are_taken_away(broker, redis, server, silent):
    """Whoever answered; a late answer finds no list that it would be kept in."""
    with listening(server, lambda asked: [] if silent else [b"one more", reply(asked, "a@x", 1)]):
        pidbox.ask(broker, [PING], timeout_s=0.2)

    assert list(redis.scan_iter()) == []


@pytest.mark.parametrize("missing", ["+publish", "+sadd", "&*"])
def test_who_may_not_ask_is_told_and_leaves_nothing(broker, redis, server, missing):
    """A right that is missing half way does not leave a route behind."""
    rights = f"{servers.READ_ONLY} &* +publish +sadd +srem +del +brpop"
    servers.user(redis, " ".join(right for right in rights.split() if right != missing))
    limited = servers.elsewhere(broker, servers.as_user(server))

    with pytest.raises(NoPermissionError):
        pidbox.ask(limited, [PING], timeout_s=0.2)

    assert list(redis.scan_iter()) == []


@pytest.mark.usefixtures("redis")
def test_a_prefix_stands_before_channel_and_list(server):
    """Nodes behind a key prefix listen elsewhere, and are not reached without it."""
    prefixed = servers.broker(server, global_keyprefix="shop:")

    with listening(server, lambda _: []):
        answers = pidbox.ask(prefixed, [PING], timeout_s=0.2)

    assert answers.receivers == 0
    assert prefixed.keys.control_channel == "shop:/0.celery.pidbox"


@pytest.mark.usefixtures("redis")
def test_a_server_that_takes_no_writes_for_long_is_waited_for_once(target, server, monkeypatch):
    """One timeout, and not four: a question is not repeated, and where nothing was left nothing is cleaned up."""
    monkeypatch.setattr(brokers, "READ_TIMEOUT_S", 0.5)
    impatient = brokers.connect(target)
    begun = time.monotonic()
    with server.client() as client:
        client.client_pause(60_000, all=False)
        try:
            with pytest.raises(Late):
                pidbox.ask(impatient, [PING], timeout_s=0.2)
        finally:
            client.client_unpause()

        assert time.monotonic() - begun < 1
        assert not client.exists(impatient.keys.reply_bindings)


def test_a_question_whose_answer_is_lost_is_not_asked_twice(redis, server):
    """Each node would answer twice, and count as two."""
    with proxy.before(server) as road:
        remote = servers.broker(server, broker_url=road.url)
        road.lose(b"PUBLISH")
        heard = []
        with listening(server, lambda asked: heard.append(asked) or []), pytest.raises(LostConnection):
            pidbox.ask(remote, [PING], timeout_s=0.5)

    assert len(heard) == 1
    assert not redis.exists(remote.keys.reply_bindings)
