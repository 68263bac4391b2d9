"""A task's rate limit → the nodes that keep to it, as they say themselves, and what each of them had before."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from opslib import durations, pidbox
from opslib.collectors import unacked
from opslib.durations import pace, spell
from opslib.facts.system import HeldTask, NodeInfo
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import nodes
from opslib.writer.journal import Batch
from opslib.writer.nodes import At
from opslib.writer.primitive import Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

_ANSWER_S = 2.0
_WITHIN_S = 6.0
_PAUSE_S = 0.2
#: Between the two looks that tell a task held back from one that is just being delivered.
_LOOK_AGAIN_S = 0.5
_MOST_UNACKED = 50_000
#: What is held back for longer than this under the old limit is a trap; for less, it is only worth a word.
_SOON_S = 60.0
#: Longer than it should take at most, it is waited for.
_MARGIN_S = 5.0
#: A node says in whole seconds how long it runs, and its clock is not the server's.
_CLOCKS_S = 5.0


def limit(primitive: Primitive, action: Action) -> Outcome:
    """
    Have each node that can run a task keep to a rate; the journal knows what each had before it is told.

    What a node has received under an old limit goes on at that one, whatever it is told: the requests lie in the old
    limit's bucket, in no answer of the node's, and take up its prefetch. Where that would take long, nothing is
    ordered.
    """
    broker, task = primitive.broker, action.subject
    rate = _wanted(action.destination)
    there, held, silent = nodes.look(broker)
    had = {
        name: found
        for name, node in there.items()
        if (not action.node or name in action.node.split(",")) and (found := _limit_of(node, task)) is not None
    }
    deaf = _deaf(broker, list(had))
    concerned = sorted(name for name, old in had.items() if not _same(old, rate) and name not in deaf)
    left = [*(f"{name} (worker_disable_rate_limits)" for name in sorted(deaf)), *filter(None, [nodes.unseen(silent)])]
    if not concerned:
        return Outcome(action=action, status=Status.SKIPPED, reason=_nobody(task, rate, had, left))
    back = _held_back(broker, task, {there[name]: had[name] for name in concerned}, held, silent)
    if back.trap:
        return Outcome(action=action, status=Status.SKIPPED, reason=back.trap)
    items = [{"a": action.id, "s": task, "node": name, "had": had[name], "rate": rate} for name in concerned]
    number = nodes.write_down(primitive, Kind.LIMIT, items)
    refused, late = _ordered(broker, task, rate, concerned)
    nodes.strike_out(
        primitive, Kind.LIMIT, [(item, (number, n)) for n, item in enumerate(items) if item["node"] in refused]
    )
    begun = "" if rate else _begun(broker, task, back)
    return _outcome(action, concerned, refused, [*late, *left], _words(rate), f"{back.note}{begun}")


def put_back(primitive: Primitive, action: Action, batches: Mapping[str, Batch]) -> Outcome:
    """Give each node the limit back that it had, unless somebody gave it another one meanwhile, or it was restarted."""
    broker, task = primitive.broker, action.subject
    orders = [(copy.key, int(copy.delivery_tag)) for copy in action.copies]
    items: dict[At, Mapping[str, Any]] = {at: batches[at[0]].items[at[1]] for at in orders}
    there, held, silent = nodes.look(broker)
    now = {name: found for name, node in there.items() if (found := _limit_of(node, task)) is not None}
    back = {at: item for at, item in items.items() if item["node"] in now and _same(now[item["node"]], item["rate"])}
    as_before = [(item, at) for at, item in items.items() if item["node"] in now and at not in back]
    nodes.strike_out(primitive, Kind.LIMIT, as_before)
    absent = [str(item["node"]) for item in items.values() if item["node"] not in now]
    gone = f" {', '.join(absent)} did not answer." if absent else ""
    if not back:
        reason = "It has another limit by now: its node was restarted, or somebody changed it again." * bool(as_before)
        return Outcome(action=action, status=Status.SKIPPED, reason=f"{reason}{gone}".strip())
    rates = {there[str(item["node"])]: str(item["rate"]) for item in back.values()}
    kept = _held_back(broker, task, rates, held, silent)
    if kept.trap:
        return Outcome(action=action, status=Status.SKIPPED, reason=kept.trap)
    by_rate: defaultdict[str, list[str]] = defaultdict(list)
    for item in back.values():
        by_rate[str(item["had"])].append(str(item["node"]))
    refused: dict[str, str] = {}
    late: list[str] = []
    for rate, names in by_rate.items():
        words, mute = _ordered(broker, task, rate, names)
        refused |= words
        late += mute
    done = [(item, at) for at, item in back.items() if item["node"] not in refused and item["node"] not in late]
    nodes.strike_out(primitive, Kind.LIMIT, done)
    told = sorted(str(item["node"]) for item in back.values())
    begun = _begun(broker, task, kept) if "" in by_rate else ""
    return _outcome(action, told, refused, late, "The limit that it had is back", f"{kept.note}{begun}{gone}")


def _limit_of(node: NodeInfo, task: str) -> str | None:
    """Return the limit that a node has for a task, empty for none; None if it cannot run it."""
    return next((each.rate_limit for each in node.tasks if each.name == task), None)


def _wanted(destination: str) -> str:
    """Return the limit that an action asks for, empty for none; what is no rate is left to the nodes to refuse."""
    try:
        return durations.rate(destination)
    except ValueError:
        return destination


def _same(one: str, other: str) -> bool:
    """Whether two rates are the same pace."""
    try:
        return abs(pace(one) - pace(other)) < 1e-9
    except ValueError:
        return one == other


def _words(rate: str) -> str:
    return f"{rate} at most" if rate else "No limit any more"


def _nobody(task: str, rate: str, had: Mapping[str, str], left: Sequence[str]) -> str:
    """Say why nobody has to be told."""
    unknown = f" Not known of, or without effect on, {', '.join(left)}." if left else ""
    if not had:
        return f"No node that answers can run {task}.{unknown}"
    return f"{_words(rate)}: so it is already on {', '.join(sorted(had))}.{unknown}"


def _deaf(broker: Broker, names: Sequence[str]) -> set[str]:
    """Return the nodes that agree to any limit and keep to none."""
    if not names:
        return set()
    call = pidbox.Call(method="conf", destination=tuple(names))
    answers = pidbox.ask(broker, [call], timeout_s=_ANSWER_S).replies["conf"]
    return {name for name, raw in answers.items() if nodes.decoded(raw).get("worker_disable_rate_limits") is True}


@dataclass(frozen=True, kw_only=True, slots=True)
class _HeldBack:
    """
    What nodes hold back under an old limit.

    Attributes:
        trap: Why the limit is not changed because of it; empty where it may be.

        note: What is to be said of it otherwise.

        tags: Delivery tags of its messages.

        takes_s: Until all of it has begun, at most.

        since: Epoch seconds before which nothing was delivered that can be among it.
    """

    trap: str = ""
    note: str = ""
    tags: frozenset[str] = frozenset()
    takes_s: float = 0.0
    since: float = 0.0


def _held_back(
    broker: Broker, task: str, had: Mapping[NodeInfo, str], held: Sequence[HeldTask], silent: int
) -> _HeldBack:
    """
    Return what was received under the old limits of nodes, and whether a change of them would be a trap.

    Such messages are unacknowledged, and in no answer. Without an old limit there is no bucket. What a node keeps until
    its time comes has the limit under which it was received, whichever that was, and is only worth a word. What was
    delivered before any of these nodes started is with none of them.
    """
    names = {node.name for node in had}
    later = {each.task_id for each in held if each.place == "scheduled" and each.task == task and each.node in names}
    note = f" {_tasks(len(later))} with a time of their own keep the limit under which they were received." * bool(
        later
    )
    limited = {node: old for node, old in had.items() if old}
    if not limited:
        return _HeldBack(note=note)
    old = min(limited.values(), key=_per_s)
    since = _since(broker, list(limited))
    tags, before, whole = _in_no_answer(broker, task, held, since)
    if not whole:
        return _HeldBack(trap=f"Not all of what is unacknowledged could be read: what {old} holds back is not known.")
    if before:
        are, them = ("was", "it") if len(before) == 1 else ("were", "them")
        note += (
            f" {_tasks(len(before))} {are} delivered before any of these nodes started, and no node reports {them}: "
            f"{'it' if len(before) == 1 else 'they'} may be orphaned (`ops run stuck-tasks`).{_or_silent(silent)}"
        )
    if not tags:
        return _HeldBack(note=note)
    takes_s = max(_takes_s(node, rate, len(tags)) for node, rate in limited.items())
    some = f"{_tasks(len(tags))} received under {old} {'goes' if len(tags) == 1 else 'go'} on at that pace"
    if takes_s <= _SOON_S:
        return _HeldBack(note=f" {some}, for up to {spell(takes_s)}.{note}", tags=tags, takes_s=takes_s, since=since)
    return _HeldBack(
        trap=f"{some} for up to {spell(takes_s)}, whatever is ordered now: the node keeps what it holds back apart, in "
        "no answer, and takes less from its queues until then. Pause the queue and restart its nodes warmly (SIGTERM), "
        f"which gives the messages back; then set the limit.{note if before else _or_silent(silent)}"
    )


def _since(broker: Broker, limited: Sequence[NodeInfo]) -> float:
    """Return when the first of some nodes started, by the server's clock; 0 where one does not say."""
    if not all(node.uptime_s for node in limited):
        return 0.0
    return broker.server_time().timestamp() - max(node.uptime_s for node in limited) - _CLOCKS_S


def _takes_s(node: NodeInfo, rate: str, count: int) -> float:
    """Return how long a node needs at most for what it holds back: no more than it may have unacknowledged."""
    per_s = _per_s(rate)
    return (min(count, node.prefetch) if node.prefetch else count) / per_s if per_s else inf


def _begun(broker: Broker, task: str, back: _HeldBack) -> str:
    """
    Wait for what is held back, where no limit is left by which one could see that it may be; say how that ended.

    Until then it looks like orphans, which nobody can restore as long as this run has the lock.
    """
    deadline = time.monotonic() + back.takes_s + _MARGIN_S
    left = back.tags
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
        _, held, _ = nodes.look(broker)
        left &= _unreported(broker, task, held, back.since)[0]
    if left:
        return f" {_tasks(len(left))} of them have not begun yet: these are no orphans, and must not be restored."
    return " All of them have begun by now." if back.tags else ""


def _tasks(count: int) -> str:
    return f"{count:,} task{'s' * (count != 1)}"


def _or_silent(silent: int) -> str:
    """Say that what looks held back may be elsewhere."""
    return f" Some of them may be with {nodes.unseen(silent)}." if silent else ""


def _per_s(rate: str) -> float:
    """Return a rate's pace; 0 for one that cannot be read, which is then waited for for ever."""
    try:
        return pace(rate)
    except ValueError:
        return 0.0


def _in_no_answer(
    broker: Broker, task: str, held: Sequence[HeldTask], since: float
) -> tuple[frozenset[str], frozenset[str], bool]:
    """
    Return the tags of a task's messages that are delivered and no node reports, and whether all of them could be read.

    Those that were delivered from an instant on come first, then those from before it. Seen twice, so that one which is
    just being delivered does not count.
    """
    first, old, whole = _unreported(broker, task, held, since)
    if not (first or old) or not whole:
        return frozenset(), frozenset(), whole
    time.sleep(_LOOK_AGAIN_S)
    _, again, _ = nodes.look(broker)
    second, older, whole = _unreported(broker, task, again, since)
    return first & second, old & older, whole


def _unreported(
    broker: Broker, task: str, held: Sequence[HeldTask], since: float
) -> tuple[frozenset[str], frozenset[str], bool]:
    rows, _, coverage = unacked.read(broker, {}, max_messages=_MOST_UNACKED)
    reported = {each.task_id for each in held}
    mute = [row for row in rows if row.task == task and row.task_id not in reported]
    before = frozenset(row.delivery_tag for row in mute if row.delivered_at is not None and row.delivered_at < since)
    return frozenset(row.delivery_tag for row in mute) - before, before, not coverage.silent


def _ordered(broker: Broker, task: str, rate: str, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Tell nodes and wait until they say that it is so; return those that refuse, and those that may not."""
    arguments = {"task_name": task, "rate_limit": rate or None}
    refused, _ = nodes.tell(broker, "rate_limit", arguments, names)
    deadline = time.monotonic() + _WITHIN_S
    while True:
        there, _, _ = nodes.look(broker)
        late = [
            name
            for name in names
            if name not in refused and (name not in there or not _same(_limit_of(there[name], task) or "", rate))
        ]
        if not late or time.monotonic() > deadline:
            return refused, late
        time.sleep(_PAUSE_S)


def _outcome(
    action: Action, told: Sequence[str], refused: Mapping[str, str], unknown: Sequence[str], done: str, note: str
) -> Outcome:
    """Account for nodes that were told: what is so on those that obeyed, and what is to be said of it."""
    so = ", ".join(name for name in told if name not in refused and name not in unknown)
    said = f"{done} on {so}.{note}" if so else ""
    no = " ".join(f"{name} says: {words}." for name, words in refused.items())
    left = f"Not known of, or without effect on, {', '.join(unknown)}." if unknown else ""
    status = Status.FAILED if refused else Status.UNVERIFIED if unknown else Status.APPLIED
    return Outcome(action=action, status=status, reason=" ".join(filter(None, (said, no, left))))
