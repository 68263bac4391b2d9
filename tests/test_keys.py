"""Every key has one name, and a name leads back to what it stands for."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opslib.keys import OWN, SEPARATOR, Binding, Keyspace, destinations

#: Names of queues as somebody once chose them.
STRANGE = ["celery", "*?[]\\", "two words", "a\nline", "\U0001f955", "\u202eright", "\udcff", "x" * 1024, "a:b", ""]
RUN = "20261121T021500Z-stuck-tasks-7f3a9c"


@pytest.mark.parametrize(
    ("priority", "step"),
    [(-1, 0), (0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (8, 6), (9, 9), (10, 9), (255, 9)],
)
def test_a_priority_is_rounded_down_to_its_step(priority, step):
    """Kombu has the lists 0, 3, 6 and 9, and clamps what is beyond."""
    assert Keyspace().step(priority) == step


def test_a_queue_has_a_list_for_each_step_served_from_0():
    """The first list bears the queue's name alone; the others add two bytes and the step."""
    assert Keyspace(prefix="app:").queue_lists("mail") == {
        "app:mail": 0,
        "app:mail\x06\x163": 3,
        "app:mail\x06\x166": 6,
        "app:mail\x06\x169": 9,
    }


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("prefix", ["", "app:", "{tag}"])
def test_a_list_leads_back_to_its_queue(name, prefix):
    """Queue and step are read from the key again, whatever characters the name has."""
    space = Keyspace(prefix=prefix)

    for key, step in space.queue_lists(name).items():
        assert space.queue_of(key) == (name, step)


@given(st.text(), st.integers(), st.text(max_size=5))
@example("a" + SEPARATOR + "4", 0, "")
@example("a" + SEPARATOR, 9, "")
def test_any_queue_survives_its_key(name, priority, prefix):
    """The round trip holds for any name that does not itself end like a priority's list."""
    space = Keyspace(prefix=prefix)
    if name.rpartition(SEPARATOR)[2] in {"3", "6", "9", "0"} and SEPARATOR in name:
        return

    assert space.queue_of(space.queue(name, priority)) == (name, space.step(priority))


def test_a_list_of_another_step_is_a_queue_of_that_name():
    """Only kombu's steps are cut off; 4 is none of them."""
    assert Keyspace().queue_of(f"mail{SEPARATOR}4") == (f"mail{SEPARATOR}4", 0)


def test_other_steps_and_another_separator_are_followed():
    """Both are options of the transport."""
    space = Keyspace(separator=":", priority_steps=(0, 5))

    assert space.queue_lists("mail") == {"mail": 0, "mail:5": 5}
    assert space.queue_of("mail:5") == ("mail", 5)
    assert space.step(9) == 5


def test_a_key_under_another_prefix_is_no_queue_of_ours():
    """What does not begin with the prefix belongs to somebody else."""
    assert Keyspace(prefix="app:").queue_of("other:mail") is None


@pytest.mark.parametrize(
    "bare",
    [
        "unacked",
        "unacked_index",
        "unacked_mutex",
        "_kombu.binding.celery",
        "_kombu.binding_deadlines",
        "celery-task-meta-5",
        "celery-taskset-meta-5",
        "opslib:lock",
        f"opslib:run:{RUN}:q:celery",
        "redbeat:schedule",
        "6a.reply.celery.pidbox",
        "w1@host.celery.pidbox",
    ],
)
@pytest.mark.parametrize("prefix", ["", "app:"])
def test_a_key_of_celery_or_of_ours_is_never_taken_for_a_queue(bare, prefix):
    """A list by one of these names holds no tasks, so it is neither read nor changed as one."""
    assert not Keyspace(prefix=prefix).is_queue_like(prefix + bare)


@pytest.mark.parametrize("name", [name for name in STRANGE if name])
def test_any_other_key_could_be_a_queue(name):
    """Nothing is excluded for its characters; whether it is a queue is decided by what it holds."""
    assert Keyspace(prefix="app:").is_queue_like(f"app:{name}")
    assert not Keyspace(prefix="app:").is_queue_like(name)


@pytest.mark.parametrize("space", [Keyspace(), Keyspace(prefix="app:", separator="~", priority_steps=(0, 5))])
def test_a_queue_can_have_any_name_but_that_of_another_key(space):
    """One priority's list of a queue is none by itself; an ending that others use for dead letters is no reason."""
    last = space.priority_steps[-1]

    assert all(map(space.is_queue_name, ["mail", "orders.dead", f"mail{space.separator}{last + 1}"]))
    assert not any(map(space.is_queue_name, ["", "unacked", "opslib:lock", f"mail{space.separator}{last}"]))


def test_every_key_of_ours_stands_under_the_prefix_and_our_own_name():
    """Nothing that this tool writes can collide with Celery's keys, nor leave the deployment's part of the database."""
    space = Keyspace(prefix="app:")
    ours = [
        space.lock,
        space.epoch,
        space.audit,
        space.journal(RUN),
        space.quarantine(RUN, "mail"),
        space.quarantine_notes(RUN),
    ]

    assert len(set(ours)) == len(ours)
    for key in ours:
        assert key.startswith(f"app:{OWN}")
        assert not space.is_queue_like(key)


def test_names_of_celery_are_as_a_worker_writes_them():
    """Spelled out once, against the keys that were observed."""
    space = Keyspace(database=2, prefix="app:", result_prefix="res:")

    assert space.unacked == "app:unacked"
    assert space.unacked_index == "app:unacked_index"
    assert space.bindings("mail") == "app:_kombu.binding.mail"
    assert space.node_bindings == "app:_kombu.binding.celery.pidbox"
    assert space.control_channel == "app:/2.celery.pidbox"
    assert space.reply_list("oid") == "app:oid.reply.celery.pidbox"
    assert space.reply_bindings == "app:_kombu.binding.reply.celery.pidbox"
    assert space.reply_member("oid") == "oid\x06\x16\x06\x16oid.reply.celery.pidbox"
    assert space.result("5") == "res:celery-task-meta-5"


@pytest.mark.parametrize("member", ["", "a", f"a{SEPARATOR}b", SEPARATOR.join("abcd")])
def test_a_binding_with_another_count_of_fields_is_none(member):
    """Three fields make a route; what has fewer or more is skipped, not guessed at."""
    assert Keyspace().binding("_kombu.binding.x", member) is None


def test_a_binding_is_read_from_its_key_and_member():
    """Routing key, pattern and queue, under the exchange that the key names."""
    space = Keyspace(prefix="app:")
    member = SEPARATOR.join(("mail.#", "^mail\\..*$", "mail"))

    assert space.binding("app:_kombu.binding.topics", member) == Binding(
        exchange="topics", routing_key="mail.#", pattern="^mail\\..*$", queue="mail"
    )
    assert space.binding("_kombu.binding.topics", member) is None


def routes(*pairs: tuple[str, str]) -> dict[str, list[Binding]]:
    """Return the routes of one exchange from pairs of routing key and queue."""
    return {"x": [Binding(exchange="x", routing_key=key, pattern="", queue=queue) for key, queue in pairs]}


@pytest.mark.parametrize(
    ("pairs", "routing_key", "queues"),
    [
        ([], "mail", ()),
        ([("mail", "q")], "mail", ("q",)),
        ([("mail", "q")], "post", ()),
        ([("mail", "q"), ("mail", "p")], "mail", ("p", "q")),
        ([("mail", "")], "mail", ()),
        ([("mail.*", "q")], "mail.out", ("q",)),
        ([("mail.*", "q")], "mail", ()),
        ([("mail.*", "q")], "mail.out.now", ()),
        ([("mail.#", "q")], "mail", ("q",)),
        ([("mail.#", "q")], "mail.out.now", ("q",)),
        ([("#", "q")], "anything.at.all", ("q",)),
        ([("#.now", "q")], "mail.out.now", ("q",)),
        ([("#.now", "q")], "mail.now.out", ()),
        ([("*.#.now", "q")], "now", ()),
        ([("q[1].*", "q")], "q[1].x", ("q",)),
        ([("q?.*", "q")], "q1.x", ()),
    ],
)
def test_a_message_returns_to_the_queues_that_are_bound(pairs, routing_key, queues):
    """A direct route is met exactly; `*` stands for one word, `#` for any, and no other character for another."""
    assert destinations(routes(*pairs), "x", routing_key) == queues


def test_the_default_exchange_routes_by_name():
    """A message without an exchange belongs to the queue that its routing key names; without both, to none."""
    assert destinations({}, "", "mail") == ("mail",)
    assert destinations({}, "", "") == ()


def test_an_exchange_without_routes_leads_nowhere():
    """Kombu would drop such a message, so no queue is made up for it."""
    assert destinations(routes(("mail", "q")), "other", "mail") == ()


def test_a_pattern_made_to_be_slow_is_not():
    """Whoever may write a binding must not be able to keep a runbook busy for ever."""
    began = time.monotonic()

    assert destinations(routes((".".join(["#"] * 30 + ["x"]), "q")), "x", ".".join("a" * 200)) == ()

    assert time.monotonic() - began < 1
