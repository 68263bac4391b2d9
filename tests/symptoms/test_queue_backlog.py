"""When a queue is a backlog and why, at the boundaries; and that nothing is done about it unless a person asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from opslib.errors import BadParameter, PlanTooLarge
from opslib.facts.rates import Rate
from opslib.facts.system import ListInfo, QueueInfo, TaskInfo
from opslib.facts.window import Flow, Window
from opslib.findings import Severity
from opslib.plan import Kind
from opslib.selection import Selection
from opslib.settings import Thresholds as Configured
from opslib.symptoms.queue_backlog import Thresholds, diagnose, plan, rates
from tests.support import servers
from tests.support.rows import NODE, NOW, NOW_S, coverage, held, node, server, silent, snapshot, twice

LIMITS = Thresholds(queue_depth=10, scheduled_per_node=100)
HAS = (TaskInfo(name="shop.ok"), TaskInfo(name="shop.pay"))


def queue(name="celery", *lists, consumers=(NODE,), **fields):
    """Return a queue of these lists: pairs of priority and messages by task."""
    rows = tuple(
        ListInfo(
            key=name if not step else f"{name}\x06\x16{step}", priority=step, length=sum(tasks.values()), by_task=tasks
        )
        for step, tasks in lists
    )
    by_task: dict[str, int] = {}
    for row in rows:
        for task, count in row.by_task.items():
            by_task[task] = by_task.get(task, 0) + count
    return QueueInfo(
        name=name,
        depth=sum(row.length for row in rows),
        by_priority={row.priority: row.length for row in rows},
        consumers=tuple(consumers),
        read=sum(row.length for row in rows),
        by_task=by_task,
        lists=fields.pop("lists", rows),
        **fields,
    )


def of(count, name="celery", **fields):
    """Return a queue with so many messages of one task that its node has."""
    return queue(name, (0, {"shop.ok": count}), **fields)


def flow(name="celery", priority=0, *, before=0, arrived=0, served=0, restored=0, exact=True):
    """Return what a list did in the window."""
    return Flow(
        queue=name,
        priority=priority,
        before=before,
        after=before + arrived + restored - served,
        arrived=arrived,
        served=served,
        restored=restored,
        exact=exact,
    )


def seen(*queues, flows=(), length_s=6.0, **fields):
    """Return a snapshot of queues whose node has the tasks that wait, with a window if there are flows."""
    window = Window(started_at=NOW - timedelta(seconds=length_s), length_s=length_s, flows=tuple(flows))
    given = {"nodes": (node(tasks=HAS),), **fields}
    return snapshot(queues=tuple(queues), window=window if flows else None, **given)


def found(snapshot, code, limits=LIMITS):
    """Return the findings with that code."""
    return [finding for finding in diagnose(snapshot, limits) if finding.code == code]


def test_a_short_queue_that_moves_has_no_findings():
    """Some messages always wait somewhere."""
    calm = seen(of(10), flows=[flow(before=5, arrived=25, served=20)], held=(held("a"), held("b", "reserved")))

    assert diagnose(calm, LIMITS) == []


# Depth


@pytest.mark.parametrize(("depth", "is_one"), [(10, False), (11, True)])
def test_a_queue_is_a_backlog_beyond_its_limit(depth, is_one):
    """More than may: as many as may are none."""
    assert bool(found(seen(of(depth)), "queue-backlog")) is is_one


def test_a_backlog_says_what_waits_by_priority_and_how_long_it_takes():
    """The figures that somebody who is woken needs, in one sentence each."""
    long = queue("celery", (0, {"shop.ok": 900}), (9, {"shop.pay": 340}))
    (finding,) = found(seen(long, flows=[flow(before=1300, arrived=30, served=90)]), "queue-backlog")

    assert finding.severity is Severity.ATTENTION
    assert finding.message == (
        "1,240 messages wait (900 of priority 0, 340 of priority 9), mostly shop.ok; 10 may. "
        "300 come and 900 are taken a minute; empty in about 2 min 4 s."
    )
    assert finding.evidence["arrive_per_min"] == 300
    assert finding.evidence["slots"] == "0 of 2 busy"


def test_a_backlog_that_grows_is_critical():
    """It is never empty, and says by how much it grows."""
    (finding,) = found(seen(of(50), flows=[flow(before=20, arrived=40, served=10)]), "queue-backlog")

    assert finding.severity is Severity.CRITICAL
    assert "never empty: it grows by 300 a minute" in finding.message
    assert "find what sends so much" in finding.hint


@pytest.mark.parametrize(
    ("consumers", "fields", "severity"),
    [
        ((NODE,), {}, Severity.ATTENTION),
        ((), {}, Severity.CRITICAL),
        ((), {"receivers": 2, "nodes": (node(tasks=HAS), silent())}, Severity.ATTENTION),
        ((), {"coverage": coverage(workers=1)}, Severity.ATTENTION),
        ((), {"server": server(consumers=2)}, Severity.ATTENTION),
    ],
    ids=["consumed", "nobody", "silent node", "workers not asked", "connections that nobody answers for"],
)
def test_a_backlog_that_nobody_consumes_is_critical_where_that_is_certain(consumers, fields, severity):
    """Somebody who was not heard may consume it."""
    (finding,) = found(seen(of(50, consumers=consumers), **fields), "queue-backlog")

    assert finding.severity is severity
    assert ("cannot be told" in finding.hint) is (not consumers and severity is Severity.ATTENTION)


def test_a_queue_without_a_consumer_is_told_whatever_its_depth():
    """One message that nobody takes is one too many."""
    (finding,) = found(seen(of(1, "lost", consumers=())), "queue-without-consumer")

    assert finding.subject == "lost"


@pytest.mark.parametrize(
    ("running", "said"), [(2, "All 2 slots of the nodes that consume it are busy"), (1, "1 of 2 slots are free")]
)
def test_a_hint_goes_by_the_slots_of_the_nodes_that_consume_it(running, said):
    """More processes help only where all are busy."""
    tasks = tuple(held(f"t{n}") for n in range(running))
    (finding,) = found(seen(of(50), held=tasks), "queue-backlog")

    assert said in finding.hint


def test_a_hint_offers_only_plain_names_for_pasting():
    """Names of queues and tasks come from elsewhere, and a hint is made to be pasted into a shell."""
    evil = "q; reboot"
    listed = ListInfo(key=evil, priority=0, length=40, by_task={"$(halt)": 40}, expired=3)
    odd = queue(evil, lists=(listed,), odd_priorities={"$(halt)": {10: 40}})
    odd = replace(odd, depth=40, by_task={"$(halt)": 40})
    hints = [each.hint for each in diagnose(seen(odd, held=(held("a"), held("b"))), LIMITS)]

    offered = " ".join(hint for hint in hints if "-p " in hint)

    for words in ("-p do=purge-expired -p queue=…", "-p do=grow -p queue=…"):
        assert words in offered
    assert "-p do=pause -p queue=…" in offered
    assert "reboot" not in offered
    assert "halt" not in offered


def test_what_has_expired_is_counted():
    """No worker runs it: it only makes the others wait."""
    listed = ListInfo(key="celery", priority=0, length=50, by_task={"shop.ok": 50}, expired=20)
    (finding,) = found(seen(of(50, lists=(listed,))), "queue-backlog")

    assert finding.evidence["expired"] == 20
    assert "-p do=purge-expired -p queue=celery" in finding.hint


# Rates


def rate(**fields):
    """Return a rate over six seconds: ten times its counts a minute."""
    return Rate(**{"queue": "celery", "depth": 100, "before": 100, "watched_s": 6.0, **fields})


@pytest.mark.parametrize(
    ("arrived", "served", "grows", "drains"),
    [
        (4, 0, False, False),  # 4 is twice the root of 4: chance alone does that
        (5, 0, True, False),
        (0, 4, False, False),
        (0, 5, False, True),
        (50, 50, False, False),
        (60, 40, False, False),  # 20 is twice the root of 100
        (61, 40, True, False),
        (40, 61, False, True),
    ],
)
def test_a_queue_grows_or_drains_beyond_what_chance_does(arrived, served, grows, drains):
    """As much coming as going looks like either, in a few seconds."""
    row = rate(depth=100 + arrived - served, arrived=arrived, served=served)

    assert (row.grows, row.drains) == (grows, drains)
    assert (row.empty_in_s is None) is not drains


def test_the_time_until_it_is_empty_is_what_waits_by_what_leaves():
    """Net of what comes: 60 in six seconds, of 600."""
    row = rate(depth=600, before=660, arrived=40, served=100)

    assert row.empty_in_s == pytest.approx(60)
    assert row.outlook == "empty in about 1 min"


@pytest.mark.parametrize(
    ("fields", "outlook"),
    [
        ({"watched_s": 0.0}, ""),
        ({"depth": 0, "before": 0}, "empty now"),
        ({}, "it stands still"),
        ({"arrived": 9, "served": 9}, "in 6.0 s it neither grew nor drained clearly"),
        ({"exact": False}, "in 6.0 s it neither grew nor drained clearly"),
    ],
)
def test_an_outlook_is_no_more_than_was_seen(fields, outlook):
    """What nobody watched, what does not move, and what cannot be told are three things."""
    assert rate(**fields).outlook == outlook


def test_a_lower_bound_is_called_one():
    """A list that was empty in between may have had more."""
    row = rate(depth=0, before=0, arrived=3, served=3, exact=False)

    assert row.speed == "at least 30 come and at least 30 are taken a minute"


def test_rates_add_up_the_lists_of_a_queue():
    """And a queue that nobody watched has its depth alone."""
    lists = [flow(before=5, arrived=1), flow(priority=9, before=7, served=2, exact=False), flow("mail", before=1)]
    watched = seen(of(11), of(3, "late"), of(1, "mail"), flows=lists)

    celery, late, mail = rates(watched)

    assert (celery.depth, celery.before, celery.arrived, celery.served, celery.exact) == (11, 12, 1, 2, False)
    assert (late.depth, late.watched_s, late.outlook) == (3, 0.0, "")
    assert mail.exact
    assert [row.watched_s for row in rates(seen(of(3)))] == [0.0]


def test_what_is_put_back_has_come_too():
    """Celery restores at the end that is served first; a queue grows by it as by anything else."""
    (row,) = rates(seen(of(30), flows=[flow(before=10, arrived=2, served=2, restored=20)]))

    assert (row.arrived, row.served, row.depth) == (22, 2, 30)
    assert row.grows


# Tasks that nobody has


@pytest.mark.parametrize(
    ("tasks", "severity"),
    [
        ({"shop.ok": 1}, None),
        ({"shop.gone": 1}, Severity.CRITICAL),
        ({"celery.backend_cleanup": 1, "(unknown)": 1, "(unreadable)": 1, "(others)": 1}, None),
    ],
    ids=["registered", "unregistered", "Celery's own and nameless ones"],
)
def test_a_task_that_no_consumer_has_is_lost_once_it_is_taken(tasks, severity):
    """Celery's own tasks are on every node; what has no name cannot be looked up."""
    findings = found(seen(queue("celery", (0, tasks))), "unregistered-task")

    assert [finding.severity for finding in findings] == ([severity] if severity else [])


def test_a_task_that_some_consumers_lack_is_for_attention():
    """In the middle of a deployment, half of the nodes drop it."""
    two = (node(tasks=HAS), node("w2@lab", tasks=HAS[:1]))
    (finding,) = found(
        seen(queue("celery", (0, {"shop.pay": 3}), consumers=(NODE, "w2@lab")), nodes=two, receivers=2),
        "unregistered-task",
    )

    assert finding.severity is Severity.ATTENTION
    assert finding.evidence["without"] == ["w2@lab"]


def test_a_task_is_looked_up_on_the_nodes_that_consume_its_queue():
    """One that has it and never takes it is no help."""
    two = (node(tasks=HAS[:1]), node("w2@lab", tasks=HAS, queues=("other",)))
    (finding,) = found(seen(queue("celery", (0, {"shop.pay": 3})), nodes=two, receivers=2), "unregistered-task")

    assert finding.severity is Severity.CRITICAL
    assert "drops each that it takes" in finding.message


def test_a_task_that_nobody_has_is_unknown_while_a_node_is_silent():
    """That one may have it."""
    (finding,) = found(
        seen(queue("celery", (0, {"shop.gone": 3})), nodes=(node(tasks=HAS), silent()), receivers=2),
        "unregistered-task",
    )

    assert finding.severity is Severity.UNKNOWN


def test_nobody_drops_what_nobody_takes():
    """A queue without a consumer is told as that."""
    assert found(seen(queue("celery", (0, {"shop.gone": 3}), consumers=())), "unregistered-task") == []


def test_one_task_in_two_queues_is_one_finding():
    """A finding is recognised by its code and its subject."""
    both = [queue(name, (0, {"shop.gone": 2})) for name in ("celery", "mail")]
    (finding,) = found(seen(*both), "unregistered-task")

    assert finding.evidence["waiting"] == {"celery": 2, "mail": 2}


# Priorities


@pytest.mark.parametrize(
    ("priority", "said"),
    [(10, "40 of its messages have priority 10: that counts as 9, and is served last."), (-1, "is served first")],
)
def test_a_priority_that_celery_does_not_have_is_told(priority, said):
    """A table in which 10 is critical makes the most urgent task the last."""
    odd = of(40, odd_priorities={"shop.pay": {priority: 40}})
    (finding,) = found(seen(odd), "priority-inverted")

    assert said in finding.message
    assert finding.evidence["odd_priorities"] == {f"shop.pay at {priority}": 40}
    assert "`ops queue expedite`" in finding.hint


def two_steps(low=11, *, urgent_served=5, low_served=0, urgent_arrived=None, exact=True):
    """Return a queue whose urgent messages are served while others wait."""
    arrived = urgent_served if urgent_arrived is None else urgent_arrived
    flows = [
        flow(before=30, arrived=arrived, served=urgent_served),
        flow(priority=9, before=low + low_served, served=low_served, exact=exact),
    ]
    return seen(queue("celery", (0, {"shop.ok": 30}), (9, {"shop.ok": low})), flows=flows)


@pytest.mark.parametrize(
    ("fields", "starves"),
    [
        ({}, True),
        ({"low": 10}, False),
        ({"urgent_served": 4}, False),
        ({"low_served": 1}, False),
        ({"exact": False}, False),
        ({"urgent_served": 30, "urgent_arrived": 0}, False),
    ],
    ids=["starves", "few", "hardly any served", "served", "perhaps served", "its turn comes"],
)
def test_a_list_starves_while_more_urgent_ones_are_served_and_come_again(fields, starves):
    """Priority is strict: as long as anything of a lower number waits, the higher one is never served."""
    assert bool(found(two_steps(**fields), "priority-inverted")) is starves


def test_a_list_starves_of_another_queue_too():
    """A node takes the most urgent of all its queues first."""
    flows = [flow("mail", before=9, arrived=8, served=8), flow("celery", 9, before=20)]
    shared = seen(of(9, "mail"), queue("celery", (9, {"shop.ok": 20})), flows=flows)
    apart = replace(shared, queues=(of(9, "mail", consumers=("w2@lab",)), shared.queues[1]))

    assert [finding.subject for finding in found(shared, "priority-inverted")] == ["celery"]
    assert found(apart, "priority-inverted") == []


# Scheduled tasks


def flooded(scheduled, *, prefetch=10, waiting=3, running=0, concurrency=2):
    """Return a node with so many scheduled tasks."""
    tasks = [replace(held(f"s{n}", "scheduled"), eta_at=NOW_S + 60 + n) for n in range(scheduled)]
    tasks += [held(f"a{n}") for n in range(running)]
    full = node(tasks=HAS, prefetch=prefetch, concurrency=concurrency)
    return seen(of(waiting), nodes=(full,), held=tuple(tasks))


@pytest.mark.parametrize(
    ("fields", "full"),
    [
        ({"scheduled": 10}, True),
        ({"scheduled": 9}, False),
        ({"scheduled": 10, "prefetch": 18}, False),
        ({"scheduled": 10, "prefetch": 0}, False),
        ({"scheduled": 10, "waiting": 0}, False),
        ({"scheduled": 10, "running": 2}, False),
    ],
    ids=["full", "room for one", "prefetch raised", "no limit", "nothing waits", "no slot free"],
)
def test_a_node_is_full_of_scheduled_tasks_where_they_fill_its_prefetch(fields, full):
    """Its slots are free, messages wait, and it takes none until an ETA is reached."""
    findings = found(flooded(**fields), "eta-flood")

    assert [finding.severity for finding in findings] == ([Severity.CRITICAL] if full else [])
    if full:
        assert "1 min from now" in findings[0].message


def test_a_full_node_is_not_called_one_that_lost_its_consumer():
    """Both take nothing; only one of them is cured by a restart."""
    lying = twice(flooded(10, waiting=20))

    assert [each.code for each in diagnose(lying, LIMITS)] == ["eta-flood", "queue-backlog"]


@pytest.mark.parametrize(("scheduled", "many"), [(99, False), (100, True)])
def test_a_node_with_too_many_scheduled_tasks_is_for_attention(scheduled, many):
    """The boundary counts as wrong; its memory is what suffers."""
    findings = found(flooded(scheduled, prefetch=200), "eta-flood")

    assert [finding.severity for finding in findings] == ([Severity.ATTENTION] if many else [])


# Rate limits


def held_back(count, *limits, consumers=(NODE, "w2@lab")):
    """Return a queue of a task that the nodes may run at these rates."""
    names = [NODE, "w2@lab"][: len(limits)]
    nodes = tuple(
        node(name, tasks=(TaskInfo(name="shop.ok", rate_limit=limit),))
        for name, limit in zip(names, limits, strict=True)
    )
    return seen(of(count, consumers=consumers[: len(limits)]), nodes=nodes, receivers=len(nodes))


@pytest.mark.parametrize(
    ("count", "limits", "held"),
    [
        (10, ["10/m"], True),
        (9, ["10/m"], False),
        (19, ["10/m", "10/m"], False),
        (20, ["10/m", "10/m"], True),
        (500, ["10/m", ""], False),
        (500, ["0/m"], False),
        (500, ["often"], False),
        (1, ["1/h"], True),
        (599, ["10"], False),
        (600, ["10/s"], True),
    ],
)
def test_a_rate_limit_holds_back_what_waits_a_minute_for_it(count, limits, held):
    """Each node counts for itself, and one without a limit holds nothing back."""
    assert bool(found(held_back(count, *limits), "rate-limited")) is held


def test_a_rate_limit_says_how_long_it_takes_and_what_a_change_does_not_do():
    """The trap: what was received under the old limit goes on at that pace."""
    (finding,) = found(held_back(40, "10/m"), "rate-limited")

    assert finding.message == f"40 wait in celery, and {NODE} may run 10/m: that takes 4 min."
    assert "goes on at that pace" in finding.hint


# The plan


BUSY = seen(
    queue("celery", (0, {"shop.ok": 30, "shop.pay": 5}), (9, {"shop.pay": 7, "shop.gone": 1})),
    queue("mail", (0, {"shop.mail": 4})),
    queue("empty"),
    nodes=(node(tasks=HAS, concurrency=2), node("w2@lab", pool="solo", concurrency=1, queues=("mail",), tasks=HAS)),
    receivers=2,
)


def planned(snapshot=BUSY, **wish):
    """Return what is planned for a wish."""
    return list(plan(snapshot, diagnose(snapshot, LIMITS), **wish))


def counts(action):
    """Return the messages that an action is about, by key."""
    return {copy.key: copy.count for copy in action.copies}


def test_nothing_is_planned_unless_it_is_asked_for():
    """A backlog is no reason to drop messages; nor is a queue's name."""
    assert planned() == []
    assert planned(queue="celery", task="shop.*", limit=3) == []


@pytest.mark.parametrize(
    ("wish", "kind", "found", "only"),
    [
        ({"do": "purge"}, Kind.PURGE, {"celery": 35, "celery\x06\x169": 8}, None),
        (
            {"do": "purge", "task": "shop.pay"},
            Kind.PURGE,
            {"celery": 5, "celery\x06\x169": 7},
            Selection(task="shop.pay"),
        ),
        (
            {"do": "purge", "task": "shop.*", "limit": 36},
            Kind.PURGE,
            {"celery": 35, "celery\x06\x169": 1},
            Selection(task="shop.*", limit=36),
        ),
        ({"do": "purge", "limit": 3}, Kind.PURGE, {"celery": 3}, Selection(limit=3)),
        ({"do": "move", "to": "mail"}, Kind.MOVE, {"celery": 35, "celery\x06\x169": 8}, None),
        ({"do": "move", "to": "new", "task": "*.gone"}, Kind.MOVE, {"celery\x06\x169": 1}, Selection(task="*.gone")),
        (
            {"do": "expedite", "task": "shop.pay"},
            Kind.REORDER,
            {"celery": 5, "celery\x06\x169": 7},
            Selection(task="shop.pay"),
        ),
    ],
)
def test_messages_are_chosen_by_their_queue_and_task(wish, kind, found, only):
    """Counted list by list, the one that is served first at the head, as they were read."""
    (action,) = planned(queue="celery", **wish)

    assert (action.kind, action.subject, counts(action), action.only) == (kind, "celery", found, only)


def test_every_queue_is_purged_only_where_that_is_said():
    """A star is every queue that holds something; leaving the name out is nothing."""
    assert [action.subject for action in planned(do="purge", queue="*")] == ["celery", "mail"]
    with pytest.raises(BadParameter, match="needs a queue"):
        planned(do="purge")
    with pytest.raises(PlanTooLarge):
        planned(do="purge", queue="*", max_actions=1)


def test_what_has_expired_is_purged_as_of_the_look_that_counted_it():
    """The instant is part of the plan, so that it means the same messages whenever it is applied."""
    lists = (
        ListInfo(key="celery", priority=0, length=9, by_task={"shop.ok": 9}, expired=4),
        ListInfo(key="celery\x06\x169", priority=9, length=9, by_task={"shop.ok": 1, "shop.pay": 8}, expired=6),
    )
    first = seen(of(18, lists=lists))

    (action,) = planned(twice(first), do="purge-expired", queue="celery")
    (of_one,) = planned(first, do="purge-expired", queue="celery", task="shop.pay")

    assert (action.kind, counts(action)) == (Kind.PURGE, {"celery": 4, "celery\x06\x169": 6})
    assert action.only == Selection(expired_at=NOW_S - 2)
    assert (counts(of_one), of_one.only) == ({"celery\x06\x169": 6}, Selection(task="shop.pay", expired_at=NOW_S))
    assert action.effect.startswith("10 messages")
    assert of_one.effect.startswith("At most 6 messages")  # how many of the expired are of the task, nobody counted


def test_names_that_were_too_many_to_tell_apart_may_all_be_meant():
    """What a purge may take is bounded by what was counted, and these were."""
    many = queue("celery", (0, {"shop.ok": 3, "(others)": 20}))

    (action,) = planned(seen(many), do="purge", queue="celery", task="shop.ok")

    assert counts(action) == {"celery": 23}
    assert action.effect.startswith("At most 23 messages")


def test_where_nothing_waits_nothing_is_planned():
    """An empty queue is no error, and neither is a known task of which nothing waits."""
    assert planned(do="purge", queue="empty") == []
    assert planned(do="purge", queue="mail", task="shop.ok") == []


@pytest.mark.parametrize("to", ["mail", "empty", "new"])
def test_a_move_warns_of_a_queue_that_nobody_consumes(to):
    """A name that is misspelt is a queue as good as any."""
    there = replace(BUSY, queues=(*BUSY.queues[:2], replace(BUSY.queues[2], consumers=())))
    (action,) = planned(there, do="move", queue="celery", to=to)

    assert ("No node that answered consumes" in action.effect) is (to != "mail")


@pytest.mark.parametrize(
    ("wish", "kind", "node"),
    [
        ({"do": "pause", "queue": "celery"}, Kind.PAUSE, ""),
        ({"do": "resume", "queue": "mail", "node": "w2@lab"}, Kind.RESUME, "w2@lab"),
    ],
)
def test_nodes_are_told_to_consume_or_not(wish, kind, node):
    """All of them, or one."""
    (action,) = planned(**wish)

    assert (action.kind, action.subject, action.node) == (kind, wish["queue"], node)


@pytest.mark.parametrize(
    ("wish", "kind", "by"),
    [
        ({"do": "grow", "queue": "celery", "by": 3}, Kind.GROW, "3"),
        ({"do": "grow", "queue": "*"}, Kind.GROW, "1"),
        ({"do": "shrink", "node": NODE}, Kind.SHRINK, "1"),
    ],
)
def test_pools_that_can_are_resized(wish, kind, by):
    """Those that consume the queue, or the one that is named; a solo pool has one process for ever."""
    (action,) = planned(**wish)

    assert (action.kind, action.subject, action.destination) == (kind, NODE, by)


def test_a_rate_limit_is_for_every_node_that_has_the_task():
    """Each of them counts for itself."""
    (action,) = planned(do="limit", task="shop.pay", rate="10/m")

    assert (action.kind, action.subject, action.destination) == (Kind.LIMIT, "shop.pay", "10/m")
    assert action.node == f"{NODE},w2@lab"


WRONG: Mapping[str, tuple[dict[str, object], str, str]] = {
    "unknown wish": ({"do": "prune"}, "'prune' is nothing", "Did you mean purge?"),
    "no queue": ({"do": "move", "to": "mail"}, "needs a queue", "-p queue=celery"),
    "unknown queue": ({"do": "purge", "queue": "celry"}, "no queue named 'celry'", "Did you mean celery?"),
    "every queue": ({"do": "move", "queue": "*", "to": "mail"}, "One queue at a time", "There are: celery"),
    "unknown task": ({"do": "purge", "queue": "celery", "task": "shop.pya"}, "'shop.pya'", "Did you mean shop.pay?"),
    "no destination": ({"do": "move", "queue": "celery"}, "needs a queue to move to", "-p to="),
    "same queue": ({"do": "move", "queue": "celery", "to": "celery"}, "in already", ""),
    "reserved queue": ({"do": "move", "queue": "celery", "to": "unacked"}, "'unacked' is no queue", ""),
    "list of one priority": ({"do": "move", "queue": "celery", "to": "celery\x06\x169"}, "is no queue", ""),
    "own key": ({"do": "move", "queue": "celery", "to": "opslib:lock"}, "is no queue", ""),
    "dead letters": ({"do": "move", "queue": "celery", "to": "celery.dead"}, "dead-letter list", ""),
    "empty task": ({"do": "purge", "queue": "celery", "task": ""}, "would mean every task", "Leave it out"),
    "all first": ({"do": "expedite", "queue": "celery"}, "all cannot be first", "-p task="),
    "negative limit": ({"do": "purge", "queue": "celery", "limit": -1}, "-1 is no number", "0 means all"),
    "unknown node": ({"do": "pause", "queue": "celery", "node": "w3@lab"}, "'w3@lab'", "Did you mean"),
    "no process": ({"do": "grow", "queue": "celery", "by": 0}, "0 is no number of processes", "1 is the least"),
    "last process": ({"do": "shrink", "node": NODE, "by": 2}, "has 2 processes", "pause its queues"),
    "solo pool": ({"do": "grow", "node": "w2@lab"}, "w2@lab (solo)", "--concurrency"),
    "nobody to grow": ({"do": "grow", "queue": "empty"}, "No node that answered consumes empty", "Start a worker"),
    "limit of a glob": ({"do": "limit", "task": "shop.*", "rate": "1/m"}, "the name of one task", "-p task="),
    "limit of nothing": ({"do": "limit", "task": "shop.pya", "rate": "1/m"}, "no node that answered has", "shop.pay"),
    "no rate": ({"do": "limit", "task": "shop.pay"}, "'' is no rate limit", "10/m"),
    "odd rate": ({"do": "limit", "task": "shop.pay", "rate": "10/d"}, "'10/d' is no rate limit", "10/m"),
}


@pytest.mark.parametrize(("wish", "said", "hint"), WRONG.values(), ids=WRONG)
def test_a_wish_that_cannot_be_meant_is_refused_with_what_could(wish, said, hint):
    """One sentence, and the nearest name."""
    there = replace(BUSY, queues=(*BUSY.queues[:2], replace(BUSY.queues[2], consumers=())))
    there = replace(there, nodes=(node(tasks=HAS, queues=("celery",)), there.nodes[1]))

    with pytest.raises(BadParameter) as error:
        planned(there, **wish)

    assert said in error.value.message
    assert hint in error.value.hint


def test_a_queue_may_have_any_name_that_is_none_of_celerys():
    """Names of messages come from elsewhere, and so do those of queues."""
    odd = "evil\u202e\x1b[31m queue"
    hostile = seen(queue(odd, (0, {"shop.ok\n": 20}), consumers=()))

    (action,) = planned(hostile, do="purge", queue=odd)

    assert action.subject == odd
    assert {finding.subject for finding in diagnose(hostile, LIMITS)} == {odd}


def test_judging_again_says_the_same():
    """Neither the clock nor the system is asked."""
    assert diagnose(BUSY, LIMITS) == diagnose(BUSY, LIMITS)


# Thresholds


@pytest.mark.usefixtures("redis")
def test_thresholds_are_the_targets_unless_they_are_given(server):
    """What is asked for wins; 0 takes the target's own."""
    broker = servers.broker(server, thresholds=Configured(queue_depth=500, scheduled_per_node=7))

    assert Thresholds.of(broker) == Thresholds(queue_depth=500, scheduled_per_node=7)
    assert Thresholds.of(broker, queue_depth=3) == Thresholds(queue_depth=3, scheduled_per_node=7)
    for name in ("queue_depth", "scheduled_per_node"):
        with pytest.raises(BadParameter, match=f"{name}: -1"):
            Thresholds.of(broker, **{name: -1})
