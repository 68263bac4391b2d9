"""The result backend, and what else Celery stores → how much of it there is, by state, task, age and life."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, cast

from opslib import aging, refusals
from opslib.aging import Brief
from opslib.collectors import circulation, keyspace, looks, pages
from opslib.collectors.circulation import Circulation
from opslib.durations import seconds
from opslib.facts.snapshot import parts_of
from opslib.facts.stored import (
    AGES,
    ASIDE,
    HELD,
    KEPT,
    OPAQUE,
    PAST,
    UNDATED,
    UNKNOWN_AGE,
    Leftover,
    Stored,
    StoredGroup,
)
from opslib.facts.system import Coverage
from opslib.keys import key_name, raw_name
from opslib.retention import Retention, rule_of

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker
    from opslib.collectors.pages import Seen

#: Idle for so long, a reply has nobody who waits for it: a control client gives up after seconds.
IDLE = "15m"
_MAX_KEYS = 100_000_000
#: Names and states that are told apart; whoever names each task anew must not fill this machine's memory.
_MOST_KINDS, _MOST_STATES = 500, 50
OTHERS = "(others)"
#: Other keys whose names are held until they are looked at together.
_AT_ONCE = 1_000
_BOUNDS = [most for most, _ in AGES]
_NAMES = [name for _, name in AGES]
_REPLY_TAIL = b".reply.celery.pidbox"
_NOT_REDIS = "The result backend is not Redis, so results were not looked at."


@dataclass(slots=True)
class _Kind:
    """
    Results of one state and one task.

    Attributes:
        asked: Whether a person asks about these.

        edges: Ages at which a result is called otherwise: older by name, or past its retention.

        cells: How many and what they weigh, for each span between two edges, of those that expire and of those that
            last; before them, of those whose age nobody knows.

        held: The same, of those whose task can still be run.
    """

    state: str
    task: str
    rule: int
    keep_s: float
    asked: bool
    opaque: bool
    edges: list[float] = field(init=False)
    cells: list[list[int]] = field(init=False)
    held: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.edges = sorted([*_BOUNDS[:-1], self.keep_s or -inf])  # kept for no time, also what is dated ahead is past
        self.cells, self.held = ([[0, 0] for _ in range(2 * len(self.edges) + 4)] for _ in range(2))

    @property
    def count(self) -> int:
        return sum(count for cells in (self.cells, self.held) for count, _ in cells)

    def rows(self) -> Iterator[StoredGroup]:
        since: list[float | None] = [None, 0.0, *(max(0.0, edge) for edge in self.edges)]
        sums: dict[tuple[str, bool, str], tuple[int, int]] = {}
        for cells in (self.cells, self.held):
            for n, (count, size) in enumerate(cells):
                at_least_s = since[n // 2]
                age = UNKNOWN_AGE if at_least_s is None else _NAMES[bisect_right(_BOUNDS, at_least_s)]
                of = (age, n % 2 == 1, HELD if cells is self.held else self._standing(at_least_s))
                before = sums.get(of, (0, 0))
                sums[of] = (before[0] + count, before[1] + size)
        for (age, lasting, standing), (count, size) in sums.items():
            if count:
                yield StoredGroup(
                    state=self.state,
                    task=self.task,
                    rule=self.rule,
                    age=age,
                    lasting=lasting,
                    standing=standing,
                    count=count,
                    size_bytes=size,
                )

    def _standing(self, at_least_s: float | None) -> str:
        if self.opaque:
            return OPAQUE
        if not self.asked:
            return ASIDE
        if at_least_s is None:
            return UNDATED
        return PAST if at_least_s >= self.keep_s else KEPT


@dataclass(kw_only=True)
class _Count:
    """What a pass over a database has met so far."""

    retention: Retention
    now: float
    held: Circulation | None
    _kinds: dict[tuple[str, str], _Kind] = field(default_factory=dict)
    _tasks: set[str] = field(default_factory=set)
    _states: set[str] = field(default_factory=set)
    _shortest_s: float = inf
    _longest_s: float = -inf

    def note(self, page: Sequence[Seen], start: int) -> None:
        now, held, kinds, expires_after_s = self.now, self.held, self._kinds, self.retention.expires_after_s
        for name, (state, task, told_at), size, life_s in page:
            kind = kinds.get((state, task)) or self._kind(state, task)
            written_at = told_at
            if told_at is None:
                if expires_after_s:
                    written_at = aging.by_life(Brief(state, task), life_s, expires_after_s, now)
            elif life_s is not None and not self._shortest_s <= life_s + now - told_at <= self._longest_s:
                self._shortest_s = min(self._shortest_s, life_s + now - told_at)
                self._longest_s = max(self._longest_s, life_s + now - told_at)
            at = 1 if life_s is None else 0
            if written_at is not None:
                at += 2 + 2 * bisect_right(kind.edges, now - written_at)
            is_held = held is not None and not kind.opaque and key_name(name[start:]) in held
            cell = (kind.held if is_held else kind.cells)[at]
            cell[0] += 1
            cell[1] += size

    def _kind(self, state: str, task: str) -> _Kind:
        """Return where such results are counted; beyond so many of them, no more are told apart."""
        rules = self.retention.rules
        rule = rule_of(rules, task)
        asked = self.retention.past(0.0)[rule].named(task)
        asked = asked and (not self.retention.states or state in self.retention.states)
        if len(self._kinds) < _MOST_KINDS or state == aging.UNREADABLE:
            self._states.add(state)
            self._tasks.add(task)
            of = (state, task)
        else:
            of = (state if state in self._states and len(self._states) <= _MOST_STATES else OTHERS, OTHERS)
            of = (of[0], f"{OTHERS}{rule}{asked}")
        if of not in self._kinds:
            self._kinds[of] = _Kind(
                of[0],
                OTHERS if of[1].startswith(OTHERS) else task,
                rule,
                rules[rule].keep_s,
                asked,
                state == aging.UNREADABLE,
            )
        return self._kinds[of]

    @property
    def seen(self) -> int:
        return sum(kind.count for kind in self._kinds.values())

    @property
    def opaque(self) -> int:
        return sum(kind.count for kind in self._kinds.values() if kind.opaque)

    @property
    def lives(self) -> tuple[float, float] | None:
        return (self._shortest_s, self._longest_s) if self._longest_s >= 0 else None

    def rows(self) -> tuple[StoredGroup, ...]:
        found = [row for kind in self._kinds.values() for row in kind.rows()]
        return tuple(sorted(found, key=lambda row: (-row.count, row.state, row.task, row.age)))


@dataclass(kw_only=True)
class _Beside:
    """
    The names of other keys that a pass meets, sorted by whose they are, and counted a thousand at a time.

    Attributes:
        client: Of the database that the pass is over.

        idle_s: Idle for so long, a reply is orphaned.
    """

    broker: Broker
    client: Redis
    idle_s: float = 0.0
    strangers: int = 0
    _names: dict[str, list[bytes]] = field(default_factory=dict)
    _rows: dict[str, Leftover] = field(default_factory=dict)

    def note(self, names: list[bytes]) -> None:
        space = self.broker.keys
        prefix, group, checkpoint = map(raw_name, (space.prefix, space.group(""), space.checkpoint_root))
        for name in names:
            if name.endswith(_REPLY_TAIL) and name.startswith(prefix):
                if b"_kombu.binding." not in name:
                    self._add("replies", name)
            elif name.startswith(group):
                self._add("groups", name)
            elif name.startswith(checkpoint):
                self._add("checkpoints", name)
            elif not space.is_reserved(key_name(name)):
                self.strangers += 1

    def _add(self, kind: str, name: bytes) -> None:
        waiting = self._names.setdefault(kind, [])
        waiting.append(name)
        if len(waiting) >= _AT_ONCE:
            self._count(kind)

    def _count(self, kind: str) -> None:
        names = self._names.pop(kind, [])
        row = self._rows.get(kind, Leftover(name=kind, count=0))
        orphaned, size, undated = row.orphaned, row.size_bytes, row.undated
        if kind == "replies":
            found = list(idle_of(self.client, names))
            orphans = [each for each in found if each.idle_s is not None and each.idle_s >= self.idle_s]
            undated += sum(each.idle_s is None for each in found)
            orphaned, size = orphaned + len(orphans), size + sum(each.size_bytes for each in orphans)
        else:
            weights = list(_lasting(self.client, names))
            orphaned, size = orphaned + len(weights), size + sum(weights)
        self._rows[kind] = replace(
            row, count=row.count + len(names), orphaned=orphaned, size_bytes=size, undated=undated
        )

    @property
    def rows(self) -> tuple[Leftover, ...]:
        """Every kind that there is any of, counted to the end."""
        for kind in tuple(self._names):
            self._count(kind)
        return tuple(self._rows[kind] for kind in ("replies", "groups", "checkpoints") if kind in self._rows)


def stored(
    broker: Broker,
    retention: Retention,
    *,
    idle: str = IDLE,
    answer_within: str = "1.5s",
    max_keys: int = _MAX_KEYS,
    only_count: bool = False,
) -> Stored:
    """
    Count every result and every other key that Celery left, and find out which tasks can still be run.

    Nothing is written but a reply list of the control plane, which is removed again. Memory does not grow with the
    number of results.

    Args:
        retention: How long results are kept, and which are asked about.

        idle: Idle for so long, a reply counts as orphaned; with a unit.

        answer_within: How long a silent node is waited for, with a unit.

        max_keys: Keys visited in each database at most; beyond that the coverage is partial.

        only_count: Leave out which tasks can still be run: nothing is to be removed.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.

        BrokerRefused: If it refuses what every look needs.
    """
    timeout_s, idle_s = seconds(answer_within, "answer_within"), seconds(idle, "idle")
    with refusals.explained(broker.target.shown_broker):
        held = None if only_count else circulation.read(broker, timeout_s=timeout_s)
        found, keys_coverage = keyspace.read(broker, max_keys=keyspace.STEP, keep_results=False)
        keys_coverage = replace(keys_coverage, silent=0, note="")
        around = looks.around(broker, found, keys_coverage, timeout_s=timeout_s)
        count = _Count(retention=retention, now=around.taken_at.timestamp(), held=held)
        beside = _Beside(broker=broker, client=broker.reads, idle_s=idle_s)
        site, apart, results_coverage = _results(broker, count, beside, max_keys=max_keys)
        leftovers = (*beside.rows, *(row for row in apart.rows if row.name == "groups")) if apart else beside.rows
    coverage = (
        around.coverage[0],
        *(held.coverage if held is not None else ()),
        results_coverage,
        *_undated(leftovers),
    )
    return Stored(
        **parts_of(around, but={"coverage"}),
        coverage=coverage,
        groups=count.rows(),
        site=site,
        replies_site=broker.fingerprint,
        result_root=broker.keys.result_root,
        reply_root=broker.keys.reply_list(""),
        leftovers=leftovers,
        retention=retention,
        idle_s=idle_s,
        unseen=held.unseen if held is not None else ("Which tasks can still be run was not looked at.",),
        lives_s=count.lives,
        circulating=len(held) if held is not None else 0,
        strangers=beside.strangers + (apart.strangers if apart else 0),
    )


def _results(broker: Broker, count: _Count, beside: _Beside, *, max_keys: int) -> tuple[str, _Beside | None, Coverage]:
    """Count the results, and meet all other keys; return where results are, and what lies beside them if elsewhere."""
    from redis.exceptions import RedisError

    here = broker.reads
    if broker.results is None:
        for names in _names(here, max_keys):
            beside.note(names)
        return "", None, Coverage(place="results", seen=0, silent=1, note=_NOT_REDIS)
    root = raw_name(broker.keys.result_root)
    apart = None if broker.results is here else _Beside(broker=broker, client=broker.results)
    try:
        site = broker.elsewhere(broker.results, broker.target.result_backend or broker.target.broker_url)
        total = site.reads.dbsize()
        other = (apart or beside).note
        for page in pages.steps(broker.results, root, other=other, max_keys=max_keys):
            count.note(pages.understood(broker.results, page, len(root), count.now), len(root))
        if apart:
            for names in _names(here, max_keys):
                beside.note(names)
    except RedisError as error:
        note = f"It cannot be read: {str(error).rstrip('.')}."
        return "", None, Coverage(place="results", seen=count.seen, silent=1, note=note)
    seen, opaque = count.seen, count.opaque
    left = max(0, total - max_keys)
    notes = [f"{left:,} keys were not looked at; max_keys allows no more."] if left else []
    notes += [f"{opaque:,} are no JSON of Celery's (compressed, pickled), and are left alone."] if opaque else []
    return site.fingerprint, apart, Coverage(place="results", seen=seen, silent=left, note=" ".join(notes))


def _names(client: Redis, max_keys: int) -> Iterator[list[bytes]]:
    cursor, visited = 0, 0
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, count=pages.STEP))
        visited += len(names)
        yield names
        if cursor == 0 or visited >= max_keys:
            return


def _undated(rows: Sequence[Leftover]) -> list[Coverage]:
    """Return a row of coverage for replies of which the server does not say how long they have been idle."""
    note = "The server does not say how long {:,} replies have been idle: they are left alone."
    return [
        Coverage(place="replies", seen=row.count, silent=row.undated, note=note.format(row.undated))
        for row in rows
        if row.undated
    ]


@dataclass(frozen=True, slots=True)
class Idle:
    """
    How long a list of replies has been idle.

    Attributes:
        idle_s: None where the server does not say: it evicts by how often keys are used, and keeps no time.
    """

    key: bytes
    idle_s: float | None
    size_bytes: int


def idle_of(client: Redis, names: Sequence[bytes]) -> Iterator[Idle]:
    """Yield how long lists have been idle; neither this question nor that for their size counts as use. No others."""
    for start in range(0, len(names), pages.STEP):
        page = names[start : start + pages.STEP]
        with client.pipeline(transaction=False) as pipe:
            for name in page:
                pipe.type(name)
                pipe.object("idletime", name)
                pipe.memory_usage(name, samples=5)
            replies = pipe.execute(raise_on_error=False)
        for name, kind, idle, size in zip(page, replies[::3], replies[1::3], replies[2::3], strict=True):
            if kind == b"list":
                known = float(idle) if isinstance(idle, int) else None
                yield Idle(name, known, size if isinstance(size, int) else 0)


def reply_names(broker: Broker) -> Iterator[list[bytes]]:
    """Yield the names of all lists of replies, step by step."""
    prefix = raw_name(broker.keys.prefix)
    for names in _names(broker.reads, _MAX_KEYS):
        ours = [name for name in names if name.endswith(_REPLY_TAIL) and name.startswith(prefix)]
        ours = [name for name in ours if b"_kombu.binding." not in name]
        if ours:
            yield ours


def _lasting(client: Redis, names: Sequence[bytes]) -> Iterator[int]:
    """Yield what each of those keys weighs that never expires."""
    for start in range(0, len(names), pages.STEP):
        page = names[start : start + pages.STEP]
        with client.pipeline(transaction=False) as pipe:
            for each in page:
                pipe.pttl(each)
                pipe.memory_usage(each, samples=5)
            replies = pipe.execute(raise_on_error=False)
        for life, size in zip(replies[::2], replies[1::2], strict=True):
            if life == -1:
                yield size if isinstance(size, int) else 0
