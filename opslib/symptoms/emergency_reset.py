"""
A system in which nothing goes right: a Snapshot → what a reset would take, end and leave, and its steps in order.

Nodes are told while they listen; what they hold is taken while nobody consumes; and only then do they go on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.durations import seconds, spell
from opslib.errors import BadParameter, near
from opslib.facts.messages import UnackedMessage
from opslib.facts.resets import ResetChoice
from opslib.facts.rows import StateNow
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import HeldTask, ListInfo, NodeInfo, QueueInfo
from opslib.findings import Finding, Severity, worst_first
from opslib.keys import Keyspace
from opslib.plan import CONDITIONS, Action, Copy, Gate, Kind, Outcome, Plan, Status
from opslib.selection import Selection
from opslib.symptoms import asked, serving, state_reset, stuck_tasks
from opslib.symptoms.stuck_tasks import Thresholds

if TYPE_CHECKING:
    from opslib.broker import Broker

MODES = {
    "partial": "only what is old and stuck: tasks that run too long, loops, messages that nobody holds",
    "complete": "everything: what runs, what nodes hold, and what waits",
    "memory": "what waits, at once and without any memory: for a server that is full",
}
#: A canary goes behind what waits; behind more than this it would prove nothing in time.
_CANARY_BEHIND = 100
_FREEZE, _REVOKE, _SHUTDOWN, _CLEAR, _STATE, _START, _RESUME, _CANARY = (
    "freeze",
    "revoke",
    "shutdown",
    "clear",
    "state",
    "start",
    "resume",
    "canary",
)

__all__ = ["MODES", "Thresholds", "app_keys", "canary", "choices", "diagnose", "plan", "shut_down"]


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """
    What a reset is about.

    Attributes:
        names: Queues, in their order.

        every: Whether all of them are meant, and what is of no known queue.

        task: Glob of the tasks' names.

        keys: Patterns of the application's keys that go with the tasks, by their names.

        state: Rows that say what the application is at.
    """

    snapshot: Snapshot
    names: tuple[str, ...]
    every: bool
    task: str
    wait_s: float
    keys: Mapping[str, str] = field(default_factory=dict)
    state: tuple[StateNow, ...] = ()

    @property
    def queues(self) -> list[QueueInfo]:
        return [queue for queue in self.snapshot.queues if queue.name in self.names]

    @property
    def consumed(self) -> list[QueueInfo]:
        return [queue for queue in self.queues if queue.consumers]

    @property
    def only(self) -> Selection | None:
        return Selection(task=self.task) if self.task.strip("*") else None

    @property
    def words(self) -> str:
        """The queues, as a gate names them."""
        if self.every:
            return "any queue"
        return ", ".join(self.names[:5]) + (f" and {len(self.names) - 5:,} more" if len(self.names) > 5 else "")

    def has(self, queue: str, task: str) -> bool:
        """Whether a task of a queue is meant."""
        return (self.every or queue in self.names) and fnmatchcase(task, self.task)

    @property
    def held(self) -> list[HeldTask]:
        home = {message.task_id: message.queue for message in self.snapshot.unacked}
        return [each for each in self.snapshot.held if self.has(home.get(each.task_id, each.queue), each.task)]

    @property
    def unacked(self) -> list[UnackedMessage]:
        return [message for message in self.snapshot.unacked if self.has(message.queue, message.task)]

    @property
    def nodes(self) -> list[NodeInfo]:
        """Those that consume one of the queues, or hold something of them."""
        holding = {each.node for each in self.held}
        return [n for n in self.snapshot.answering if set(n.queues) & set(self.names) or n.name in holding]

    def gate(self, until: str, step: str, *, nodes: Sequence[str] = (), queues: Sequence[str] = ()) -> Action:
        """Return the gate that ends a step."""
        where = tuple(queues) or (*self.names, *([""] if self.every else []))
        named = ", ".join(nodes[:5]) + (f" and {len(nodes) - 5:,} more" if len(nodes) > 5 else "")
        said = CONDITIONS[until].format(queues=", ".join(queues[:5]) or self.words, nodes=named)
        silent = self.snapshot.silent_nodes
        doubt = f" Of {_nodes(silent)} that did not answer nobody can tell." if silent else ""
        return Action(
            kind=Kind.AWAIT,
            subject=said,
            source=step,
            destination="go on",
            step=step,
            gate=Gate(
                until=until,
                queues=where,
                nodes=tuple(nodes),
                task=self.task,
                within_s=self.wait_s,
                silent=silent,
                hidden=_hidden(self.snapshot),
            ),
            effect=f"Goes on once {said}; after {spell(self.wait_s)} in vain, nothing more is done.{doubt}",
        )


def app_keys(broker: Broker, names: str = "*") -> Mapping[str, str]:
    """
    Return the patterns of the application's own keys that a reset removes with the tasks, by their names.

    Args:
        names: Glob of the names that the target has for them; empty for none.

    Raises:
        BadParameter: If the target has none of that name.
    """
    known = broker.target.app_keys
    found = {name: each.pattern for name, each in known.items() if fnmatchcase(name, names)}
    if names.strip("*") and not found:
        raise BadParameter(f"keys: the target names no keys that fit {names!r}.", hint=near(names, known))
    return found


def diagnose(
    snapshot: Snapshot, limits: Thresholds, *, before: Snapshot | None = None, outcomes: Iterable[Outcome] = ()
) -> list[Finding]:
    """
    Say what is stuck, what a reset could not reach, and after one, what of the old is still there.

    Args:
        before: The look before the reset.

        outcomes: What became of its actions.
    """
    found = [*stuck_tasks.diagnose(snapshot, limits), *_beyond_reach(snapshot)]
    if before is not None:
        found += _left_behind(before, snapshot, list(outcomes))
    return worst_first(found)


def _beyond_reach(snapshot: Snapshot) -> Iterator[Finding]:
    """What an order to nodes would not reach: those that stay silent or do not listen, and pools that end no task."""
    unheld = _unheld(snapshot)
    if snapshot.silent_nodes:
        yield _reach(
            "a silent node",
            f"{_nodes(snapshot.silent_nodes)} would not hear that they shall drop what they hold; "
            f"{len(unheld):,} unacknowledged messages may be theirs and are not taken.",
            {"silent": snapshot.silent_nodes, "messages": len(unheld)},
            "End its process on its machine (kill -9 for one that hangs), then run this again: then nobody holds them.",
        )
    consumers = snapshot.server.consumers
    if _hidden(snapshot):
        yield _reach(
            "connections without remote control",
            f"{consumers} connections consume, {snapshot.receivers} listen to orders: the others cannot be paused, and "
            "end nothing that they run.",
            {"consumers": consumers, "listening": snapshot.receivers, "messages": len(unheld)},
            "What waits is taken from them all the same. What they run, only their own end ends: stop these workers.",
        )
    stuck = [
        (each, node)
        for each in snapshot.held
        for node in snapshot.answering
        if each.place == "active" and node.name == each.node and not node.can_terminate
    ]
    for name in sorted({node.name for _, node in stuck}):
        of_node = [each for each, node in stuck if node.name == name]
        pool = next(node.pool for _, node in stuck if node.name == name) or "unknown"
        yield _reach(
            name,
            f"{len(of_node):,} task{'s' * (len(of_node) != 1)} run{'s' * (len(of_node) == 1)} on it, and its {pool} "
            "pool cannot end one.",
            {"running": len(of_node), "pool": pool},
            "A reset waits for them, and stops at that gate if they take longer: restart that node, then resume.",
        )

    copies = Counter((each.task_id, each.node) for each in snapshot.held if each.place == "active")
    for (task_id, name), count in copies.items():
        if count > 1:
            yield _reach(
                task_id,
                f"It runs {count} times at once on {name}, and an order ends only one of them.",
                {"node": name, "copies": count},
                "Restart that node. It was delivered again while it ran: the visibility timeout is too short for it.",
            )


def _reach(subject: str, message: str, evidence: dict[str, object], hint: str) -> Finding:
    return Finding(
        code="reset-beyond-reach",
        severity=Severity.ATTENTION,
        subject=subject,
        message=message,
        evidence=evidence,
        hint=hint,
        runbook="emergency-reset",
    )


def _left_behind(before: Snapshot, after: Snapshot, outcomes: Sequence[Outcome]) -> Iterator[Finding]:
    """What was delivered before a reset and is unacknowledged still: it comes back once its timeout is over."""
    closed = [o.action.id for o in outcomes if o.action.kind is Kind.AWAIT and o.status is Status.FAILED]
    stops = [o.action for o in outcomes if o.action.kind is Kind.STOP and _is_held(o.action)]
    meant = [action for action in stops if action.id < min(closed, default=action.id + 1)]
    if not meant or not any(outcome.status is Status.APPLIED for outcome in outcomes):
        return
    old = {m.task_id for m in before.unacked} | {each.task_id for each in before.held}
    everything = any(action.subject == "*" for action in meant)
    queues = {action.subject for action in meant}
    tasks = {action.only.task if action.only else "*" for action in meant}
    left = [
        m
        for m in after.unacked
        if m.task_id in old and (everything or m.queue in queues) and any(fnmatchcase(m.task, t) for t in tasks)
    ]
    for message in left:
        doubt = _doubt(after)
        yield Finding(
            code="reset-left-behind",
            severity=Severity.UNKNOWN if doubt else Severity.CRITICAL,
            subject=message.task_id,
            task=message.task,
            message=f"It was unacknowledged before the reset, and is so still; {_comes_back(after, message)}.",
            evidence={"queue": message.queue, "delivery_tag": message.delivery_tag, "doubt": doubt or "none"},
            hint="End the worker that does not answer, and run this again." if doubt else "Run this again.",
            runbook="emergency-reset",
        )


def _is_held(action: Action) -> bool:
    return any(copy.place == "held" for copy in action.copies)


def _comes_back(snapshot: Snapshot, message: UnackedMessage) -> str:
    if message.delivered_at is None:
        return "it is not in the index, so that nothing brings it back"
    due_s = snapshot.visibility_timeout_s - (snapshot.taken_at.timestamp() - message.delivered_at)
    return f"it comes back within {spell(max(0.0, due_s))}"


def _unheld(snapshot: Snapshot) -> list[UnackedMessage]:
    held = {each.task_id for each in snapshot.held}
    return [message for message in snapshot.unacked if message.task_id not in held]


def choices(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    *,
    queue: str = "*",
    task: str = "*",
    shutdown: str = "",
    wait: str = "60s",
    canary: bool = True,
    mode: str = "",
    keys: Mapping[str, str] | None = None,
    state: Sequence[StateNow] = (),
) -> tuple[ResetChoice, ...]:
    """Return what each mode would do, in numbers, whichever is asked for; raise as `plan` does."""
    del mode, keys, state
    scope = _scope(snapshot, queue, task, wait)
    return tuple(_choice(scope, findings, each, shutdown, canary=canary) for each in MODES)


def _choice(scope: _Scope, findings: Sequence[Finding], mode: str, shutdown: str, *, canary: bool) -> ResetChoice:
    running = [each for each in scope.held if each.place == "active"]
    able = {node.name for node in scope.snapshot.answering if node.can_terminate}
    canaries = len(_canaries(scope, mode)) if canary and mode != "memory" else 0
    if mode == "memory":
        waits = sum(queue.depth for queue in scope.queues) if not scope.only else 0
        return ResetChoice(mode=mode, meaning=MODES[mode], waiting=waits, left=len(scope.unacked))
    if mode == "partial":
        actions = _partial(scope, findings)
        stops = [action for action in actions if action.kind is Kind.STOP]
        copies = [copy for action in actions for copy in action.copies]
        unacked = sum(copy.place == "unacked" for copy in copies)
        return ResetChoice(
            mode=mode,
            meaning=MODES[mode],
            ended=sum(action.terminate for action in stops),
            running_on=sum(bool(action.node) and not action.terminate for action in stops),
            unacked=unacked,
            waiting=sum(copy.place == "waiting" for copy in copies),
            left=len(scope.unacked) - unacked,
            canaries=canaries,
        )
    doubtful = len([m for m in _unheld(scope.snapshot) if m in scope.unacked]) if _doubt(scope.snapshot) else 0
    return ResetChoice(
        mode=mode,
        meaning=MODES[mode],
        frozen=len(scope.consumed),
        ended=sum(each.node in able for each in running),
        running_on=sum(each.node not in able for each in running),
        held=len({each.task_id for each in scope.held if each.place != "active"}),
        unacked=len(scope.unacked) - doubtful,
        waiting=sum(_lengths(queue, scope.only) for queue in scope.queues),
        left=doubtful,
        nodes=len(scope.nodes) if shutdown else 0,
        canaries=canaries,
    )


def plan(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    *,
    mode: str = "",
    queue: str = "*",
    task: str = "*",
    shutdown: str = "",
    wait: str = "60s",
    canary: bool = True,
    keys: Mapping[str, str] | None = None,
    state: Sequence[StateNow] = (),
    max_actions: int = 500,
) -> Plan:
    """
    Return a reset as steps in their order; nothing where no mode is said.

    Args:
        findings: What is stuck, for the partial mode.

        mode: A key of `MODES`; empty plans nothing.

        queue, task: Globs of the queues and tasks that are meant.

        shutdown: "warm" to have nodes end before anything is cleared; empty to leave them running.

        wait: Deadline of each gate.

        canary: Whether a task is sent through each queue afterwards.

        keys: Patterns of the application's keys that go with the tasks, by their names (`app_keys`); None for none.

        state: Rows that say what the application is at; a complete reset of everything sets them to idle.

    Raises:
        BadParameter: If something is unknown, or cannot be meant.

        PlanTooLarge: If more than `max_actions` are needed.
    """
    scope = replace(_scope(snapshot, queue, task, wait), keys=keys or {}, state=tuple(state))
    if mode and mode not in MODES:
        raise BadParameter(f"mode: {mode!r} is none.", hint=near(mode, MODES))
    if shutdown not in {"", "warm"}:
        raise BadParameter(
            f"shutdown: {shutdown!r} is none that can be ordered.",
            hint="Over the broker a node ends warm only: say warm; SIGQUIT on its machine ends it cold.",
        )
    if shutdown and mode not in {"", "complete"}:
        raise BadParameter(f"shutdown={shutdown} belongs to mode=complete; {mode} leaves nodes alone.")
    actions: list[Action] = []
    if mode == "memory":
        actions = _memory(scope)
    elif mode == "partial":
        actions = [*_partial(scope, findings), *(_canaries(scope, mode) if canary else [])]
    elif mode == "complete":
        actions = [*_complete(scope, shutdown), *(_canaries(scope, mode) if canary else [])]
        actions = actions if any(action.kind is not Kind.AWAIT for action in actions) else []
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )


def _scope(snapshot: Snapshot, queue: str, task: str, wait: str) -> _Scope:
    """
    Return what is meant.

    Raises:
        BadParameter: If no queue fits.

        SettingsError: If the deadline is none.
    """
    every = not queue.strip("*") and bool(queue)
    names = tuple(each.name for each in snapshot.queues if fnmatchcase(each.name, queue))
    if not names and not every:
        known = [each.name for each in snapshot.queues]
        raise BadParameter(f"queue: there is no queue that fits {queue!r}.", hint=near(queue, known))
    return _Scope(snapshot=snapshot, names=names, every=every, task=task or "*", wait_s=seconds(wait, "wait"))


def _complete(scope: _Scope, shutdown: str) -> Iterator[Action]:
    """All of it: nobody takes any more, what is held is ended and kept, what waits is kept, and all begin anew."""
    nodes, consumed = scope.nodes, scope.consumed
    for queue in consumed:
        (pause,) = asked.consuming(Kind.PAUSE, queue.name)
        yield replace(pause, step=_FREEZE, effect=f"{pause.effect} Producers go on: what they send waits.")
    if consumed:
        yield scope.gate("paused", _FREEZE)
    yield from _stops(scope)
    if nodes:
        yield scope.gate("idle", _REVOKE)
    if shutdown:
        yield from (shut_down(node) for node in nodes)
        if nodes:
            yield scope.gate("gone", _SHUTDOWN, nodes=[node.name for node in nodes])
            yield scope.gate("paused", _SHUTDOWN)
    yield from _purges(scope)
    yield from _unreadable(scope)
    yield scope.gate("cleared", _CLEAR)
    yield from _states(scope, sum(q.depth for q in scope.queues) + len(scope.unacked), "nodes consume again")
    if scope.every and scope.only is None:
        yield from state_reset.actions(scope.state, step=_STATE)
    if shutdown and consumed:
        gate = scope.gate("served", _START, queues=[queue.name for queue in consumed])
        yield replace(gate, effect=f"{_how_to_start(nodes)} {gate.effect}")
    if shutdown:
        return
    for queue in consumed:
        (back,) = asked.consuming(Kind.RESUME, queue.name, queue.consumers)
        yield replace(back, step=_RESUME)
    for queues, names in _by_queues(scope).items():
        yield scope.gate("consumed", _RESUME, nodes=names, queues=queues)


def _stops(scope: _Scope) -> Iterator[Action]:
    """All that nodes hold, by queue; what that is, is seen once they take no more."""
    doubt = _doubt(scope.snapshot)
    for name in ("*",) if scope.every else scope.names:
        of_queue = replace(scope, names=scope.names if name == "*" else (name,), every=name == "*")
        held, unacked = of_queue.held, of_queue.unacked
        places = [
            f"{count:,} {'run' if place == 'active' else place}"
            for place in ("active", "reserved", "scheduled")
            if (count := len({each.task_id for each in held if each.place == place}))
        ]
        ids = {each.task_id for each in held} | {message.task_id for message in unacked}
        if not ids and not of_queue.nodes:
            continue
        now = ", ".join([*places, f"{len(unacked):,} unacknowledged"])
        left = (
            f" What no node that answers holds stays: {doubt}."
            if doubt
            else " What is unacknowledged and held by nobody is taken as well."
        )
        yield Action(
            kind=Kind.STOP,
            subject=name,
            source="nodes, unacked",
            destination="quarantine",
            copies=(Copy(place="held", key="", queue=name, count=len(ids)),),
            only=scope.only,
            terminate=True,
            step=_REVOKE,
            effect=f"{now} now; all that nodes hold by then is revoked and its messages are kept. What runs is ended "
            f"where the pool can, and its work is lost: no undo brings that back. A node that runs on drops "
            f"these tasks, also after an undo, until it is restarted.{left}",
        )


def shut_down(node: NodeInfo) -> Action:
    """Have one node end once its tasks have."""
    return Action(
        kind=Kind.SHUTDOWN,
        subject=node.name,
        source=node.name,
        destination="ended",
        node=node.name,
        step=_SHUTDOWN,
        effect="It ends once its tasks have, and sends no reply. Its supervisor may start it again at once: hold that "
        f"one off. Nothing here starts a node: {_start(node)}.",
    )


def _purges(scope: _Scope) -> Iterator[Action]:
    """What waits, and what tasks leave behind that are ended: their retries, and what they had sent."""
    prefix = Keyspace(prefix=scope.snapshot.fingerprint.split("/", 3)[-1]) if scope.snapshot.fingerprint else Keyspace()
    home = {message.task_id: message.queue for message in scope.snapshot.unacked}
    for queue in scope.queues:
        held = {each.task_id for each in scope.held if home.get(each.task_id, each.queue) == queue.name}
        lengths = {each.key: _of(each, scope.only) for each in queue.lists}
        waits = sum(lengths.values())
        base = prefix.queue(queue.name)
        lengths[base] = lengths.get(base, 0) + len(held)
        also = f" Up to {len(held):,} more, of what tasks leave that are ended." if held else ""
        for purge in asked.purge(queue.name, lengths, scope.only):
            effect = f"{waits:,} messages leave circulation and are kept.{also} What comes after them is new and stays."
            yield replace(purge, step=_CLEAR, effect=effect)


def _unreadable(scope: _Scope) -> Iterator[Action]:
    for message in scope.snapshot.unreadable:
        if message.place == "unacked" and scope.every and not scope.only:
            yield replace(stuck_tasks.quarantine(message), step=_CLEAR)


def _canaries(scope: _Scope, mode: str) -> list[Action]:
    """A task that does nothing, through each queue that is consumed; what waits before it would only delay it."""
    emptied = mode == "complete" and not scope.only
    found = [queue for queue in scope.consumed if emptied or queue.depth <= _CANARY_BEHIND]
    return [canary(queue.name, scope.wait_s) for queue in found]


def canary(queue: str, wait_s: float) -> Action:
    """Send a task that does nothing through a queue."""
    return Action(
        kind=Kind.CANARY,
        subject=queue,
        source="canary",
        destination=queue,
        step=_CANARY,
        gate=Gate(until="ran", queues=(queue,), within_s=wait_s),
        effect="A task of Celery's own that does nothing is taken and run, which shows that the queue is served; "
        "one that nobody takes is taken out again. It proves nothing of your own tasks, and is not undone.",
    )


def _memory(scope: _Scope) -> list[Action]:
    """
    What waits, the longest queue first, each as a whole: that alone a full server can still do.

    Raises:
        BadParameter: If only some tasks are meant: to tell them apart needs memory.
    """
    if scope.only:
        raise BadParameter(
            "mode=memory takes whole queues: to tell tasks apart needs memory.", hint="Name a queue, or leave task out."
        )
    ranked = sorted(scope.queues, key=lambda queue: -queue.depth)
    actions = [a for q in ranked for a in asked.purge(q.name, {each.key: each.length for each in q.lists})]
    frees = " It frees no memory by itself: `ops quarantine drop RUN_ID --apply` writes it to a file and does."
    return [replace(action, effect=f"{action.effect}{frees}") for action in actions]


def _partial(scope: _Scope, findings: Sequence[Finding]) -> list[Action]:
    """What is old and stuck: stopped where it can still run, and kept where nobody holds it; the rest is left alone."""
    snapshot = scope.snapshot
    found = stuck_tasks.plan(snapshot, findings, max_actions=10**9)
    queue_of = {each.task_id: each.queue for each in snapshot.held}
    queue_of |= {each.task_id: each.queue for each in (*snapshot.waiting, *snapshot.unacked)}
    stops: list[Action] = []
    takes: list[Action] = []
    for action in found:
        queue = next((copy.queue for copy in action.copies), queue_of.get(action.subject, ""))
        if not scope.has(queue, action.task) or (scope.only and not action.task):
            continue
        if action.kind is Kind.STOP:
            stops.append(replace(action, step=_REVOKE))
        elif action.kind is Kind.RESTORE:
            effect = "Nobody holds it: kept, instead of being delivered again. `ops run stuck-tasks` restores instead."
            takes.append(replace(action, kind=Kind.QUARANTINE, destination="quarantine", step=_CLEAR, effect=effect))
        elif action.kind is Kind.QUARANTINE:
            takes.append(replace(action, step=_CLEAR))
    return [*stops, *takes, *_states(scope, len(stops) + len(takes), "anybody sends them anew")]


def _states(scope: _Scope, tasks: int, before: str) -> Iterator[Action]:
    """What the application itself has written down for tasks that are reset: who begins anew has to find none of it."""
    for name, pattern in scope.keys.items() if tasks else ():
        yield Action(
            kind=Kind.DELETE,
            subject=pattern,
            source=name,
            destination="vault",
            copies=(Copy(place="app", key=pattern, count=tasks),),
            step=_STATE,
            effect=f"The {name} of every task that this run took is removed before {before}, up to {tasks:,} keys, "
            "each after its value is in the vault. That of a task which can still be run stays. Where they have a "
            "database of their own, `ops undo` is run once more for it.",
        )


def _by_queues(scope: _Scope) -> dict[tuple[str, ...], list[str]]:
    """Return the nodes by those of the queues that they consume."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for node in scope.nodes:
        queues = tuple(sorted(set(node.queues) & set(scope.names)))
        if queues:
            found[queues].append(node.name)
    return found


def _how_to_start(nodes: Sequence[NodeInfo]) -> str:
    more = f" and {len(nodes) - 3:,} more" if len(nodes) > 3 else ""
    return f"Start the nodes again as they are always started, now: {'; '.join(map(_start, nodes[:3]))}{more}."


def _start(node: NodeInfo) -> str:
    pool = f" -P {node.pool}" if node.pool else ""
    return f"`celery -A APP worker -n {node.name} -Q {','.join(node.queues)} -c {node.concurrency}{pool}`"


def _hidden(snapshot: Snapshot) -> int:
    """Return how many connections consume and belong to nobody who listens to orders."""
    return max(0, (snapshot.server.consumers or 0) - snapshot.receivers)


def _doubt(snapshot: Snapshot) -> str:
    """Return why a message that no answering node holds may have an owner; empty if it cannot."""
    if not snapshot.receivers and snapshot.server.consumers is None:
        return "CLIENT LIST is not permitted, so that a worker which takes no orders cannot be ruled out"
    return serving.unheard(snapshot)


def _lengths(queue: QueueInfo, only: Selection | None) -> int:
    return sum(_of(each, only) for each in queue.lists)


def _of(listed: ListInfo, only: Selection | None) -> int:
    """Return how many messages of a list are meant at most: what was not read may be."""
    if only is None:
        return listed.length
    unread = listed.length - sum(listed.by_task.values())
    return unread + sum(n for name, n in listed.by_task.items() if fnmatchcase(name, only.task) or name == "(others)")


def _nodes(count: int) -> str:
    return f"{count:,} node{'s' * (count != 1)}"
