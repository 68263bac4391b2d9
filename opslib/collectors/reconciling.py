"""An application's open rows and everything that Celery knows → where the task of each is, was, or was lost."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from opslib import collectors, database, refusals, tables
from opslib.collectors import (
    circulation,
    dead_letters,
    horizon,
    keyspace,
    quarantine,
    results,
    task_rows,
    verifiers,
)
from opslib.collectors.marks import Marks
from opslib.durations import seconds
from opslib.errors import BadParameter, DatabaseRefused, DatabaseUnreachable, SettingsError, near
from opslib.facts import FINAL_STATES, Coverage, Reconciled, RowCount, SeenTable, Snapshot, StatusCount, TaskRow
from opslib.facts.rows import (
    BEGUN,
    BEYOND,
    CLASSES,
    DEAD,
    ENDED,
    HELD,
    NAMELESS,
    NOWHERE,
    ORDER,
    OTHERS,
    QUARANTINED,
    UNACKED,
    UNSEEN,
    WAITING,
    age_of,
)
from opslib.progress import Progress

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.collectors.circulation import Circulation
    from opslib.collectors.horizon import Horizon
    from opslib.collectors.task_rows import Row
    from opslib.database import Database
    from opslib.tables import Mapped

MAX_ROWS = 2_000_000
_MAX_KEYS = 100_000_000
#: Names of tasks that are told apart; whoever names each task anew must not fill this machine's memory.
_MOST_TASKS = 1_000
#: Rows that are kept as such: those with a node, and those that are nowhere.
_MOST_KEPT = 10_000
#: Rows of one task and sighting of which all is told.
_MOST_SAMPLES = 200
#: What Celery makes ids of; others are looked for one by one.
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NO_TABLE = "No table of the database is known by its name, and none is configured."


@dataclass(frozen=True, kw_only=True)
class _Places:
    """
    What is known of every task that is somewhere, besides its result.

    Attributes:
        unseen: Why nobody can say of a task that is not among them that it is nowhere; empty if that was seen.

        damaged: Messages that no node could run, one after the other; what they say besides is all there is to know.
    """

    circulating: Sequence[Circulation]
    nodes: Mapping[str, str]
    unacked: frozenset[str]
    dead: Marks
    aside: Marks
    unseen: str
    horizon: Horizon
    damaged: bytes = b""
    damaged_ids: frozenset[bytes] = frozenset()

    def of(self, task_id: str) -> str:
        """Return where a task is that can still be run; empty for nowhere."""
        if task_id in self.nodes:
            return HELD
        if task_id in self.unacked:
            return UNACKED
        return WAITING if any(task_id in each for each in self.circulating) else ""

    def why_unseen(self, task_id: str) -> str:
        """Return why nobody can say of a task that is not among them that it is nowhere; empty if that was seen."""
        spelled = task_id.encode("utf-8", "surrogateescape")
        if spelled in (self.damaged_ids if _UUID.fullmatch(spelled) else self.damaged):
            return "A message that cannot be decoded names it."
        return self.unseen


def reconcile(
    broker: Broker,
    *,
    hours: float = 24.0,
    limit: int = 5,
    check_execution: bool = False,
    log_file: str = "",
    table: str = "",
    results_kept: str = "",
    with_arguments: bool = False,
    settle: str = "2s",
    answer_within: str = "1.5s",
    max_rows: int = MAX_ROWS,
) -> Reconciled:
    """
    Look for the task of every open row everywhere, in little memory.

    Everything that can still be run is looked through twice, then each row is read, and its result last: a task that
    moves on meanwhile is met further on, one that ends has written its result by then, and a row that is closed
    meanwhile is not met at all.

    Args:
        hours: Rows that were last run so long ago or longer.

        limit: Rows of each task and sighting of which all is told.

        check_execution: Whether verifiers are asked about those.

        log_file: Where the progress is written as well; empty for nowhere.

        table: Name of the only table that is meant; empty for all.

        results_kept: How long results are surely kept, with a unit; empty for as long as nodes say.

        with_arguments: Whether arguments of rows that are nowhere are read too, so that those can be sent again.

        max_rows: Open rows that are read at most, of each table.

    Raises:
        BadParameter: If a number is none of its kind.

        SettingsError: If the target has no database or table, or they are not as configured.

        OpsError: If broker or database do not answer, or say no.
    """
    if not hours >= 0 or hours == float("inf"):
        raise BadParameter(f"hours: {hours} is no number of hours.", hint="For instance hours=24.")
    if not 1 <= limit <= _MOST_SAMPLES:
        raise BadParameter(f"limit: {limit} is not between 1 and {_MOST_SAMPLES}.")
    timeout_s = seconds(answer_within, "answer_within")
    progress = Progress(log_file)
    base = database.connect(broker.target)
    mapped = _chosen(tables.task_tables(broker.target, base), table, broker)
    with refusals.explained(broker.target.shown_broker):
        with progress.phase("Looking at broker, nodes and results"):
            seen = collectors.collect(broker, settle=settle, answer_within=answer_within)
        now = seen.taken_at.timestamp()
        with progress.phase("Looking for every task that can still be run"):
            places, rows_of_coverage = _everywhere(broker, seen, timeout_s=timeout_s, results_kept=results_kept)
        most_gone = _MOST_KEPT if with_arguments else 0
        count = _Count(now=now, open_for_s=hours * 3600.0, limit=limit, most_gone=most_gone, places=places)
        known, statuses = [], list[StatusCount]()
        for each in mapped:
            rows_of_coverage += _statuses(base, each, statuses)
            backends = [other for other in mapped if other.says.results and other is not each]
            total = sum(row.count for row in statuses if row.table == each.name and row.standing == "open")
            read, said = _table(broker, base, each, backends, count, progress, total=total, max_rows=max_rows)
            rows_of_coverage.append(said)
            known.append(_seen(each, read))
        samples, gone = count.samples(), count.gone()
        for each in mapped:
            samples = _whole(base, each, samples, progress, check=check_execution, keep=with_arguments)
            # What would be sent again is asked about whether anybody wants to know or not: it may have been done.
            gone = _whole(base, each, gone, progress, check=True, keep=True) if with_arguments else gone
    if with_arguments:  # of these no result could tell, and a verifier did
        gone += [row for row in samples if row.sighting == BEYOND and row.effect is False]
    known_fields = {one.name: getattr(seen, one.name) for one in fields(Snapshot)}
    known_fields |= {"coverage": (*seen.coverage, *rows_of_coverage), "statuses": tuple(statuses)}
    return Reconciled(
        **known_fields,
        database=base.shown,
        open_for_s=hours * 3600.0,
        tables=tuple(known),
        counts=tuple(count.rows()),
        samples=tuple(samples),
        met=tuple(count.met),
        gone=tuple(gone),
        verified=check_execution,
    )


def _chosen(mapped: Sequence[Mapped], wanted: str, broker: Broker) -> list[Mapped]:
    if not mapped:
        raise SettingsError(
            f"{broker.target.shown_database}: {_NO_TABLE}",
            hint=f"Configure one as [targets.{broker.target.name}.task_tables.NAME]; see docs/reconcile-tasks.md.",
        )
    chosen = [each for each in mapped if wanted in {"", each.name}]
    if not chosen:
        raise BadParameter(f"table: there is no {wanted!r}.", hint=near(wanted, [each.name for each in mapped]))
    return chosen


def _seen(table: Mapped, read: int) -> SeenTable:
    says = table.says
    return SeenTable(
        name=table.name, table=says.table, results=says.results, becomes=tuple(sorted(says.becomes.items())), read=read
    )


def _everywhere(
    broker: Broker, seen: Snapshot, *, timeout_s: float, results_kept: str
) -> tuple[_Places, list[Coverage]]:
    """Look twice: a task that is retried goes back while one looks on, and might be missed once."""
    now = seen.taken_at.timestamp()
    found, _ = keyspace.read(broker, max_keys=_MAX_KEYS, keep_results=False)
    looks = [circulation.read(broker, timeout_s=timeout_s) for _ in range(2)]
    dead, aside = Marks(), Marks()
    declared = {broker.keys.queue(queue.name) for queue in seen.queues}
    said = [
        dead_letters.ids(broker, sorted(key for key in found.dead if key not in declared), dead.note),
        quarantine.ids(broker, found.quarantined, aside.note),
    ]
    known, settings = horizon.read(broker, timeout_s=timeout_s, results_kept=results_kept, now=now)
    unseen = [why for look in looks for why in look.unseen]
    unseen += [f"{row.place}: {row.note}" for row in said if row.silent]
    if odd := max(map(_opaque, looks)):
        unseen.append(f"{odd:,} message{'s' * (odd != 1)} cannot be decoded, so nobody knows of which task.")
    damaged = b"\n".join(raw for look in looks for raw in look.damaged)
    places = _Places(
        circulating=looks,
        nodes={task.task_id: task.node for task in seen.held},
        unacked=frozenset(message.task_id for message in seen.unacked),
        dead=dead.sealed(),
        aside=aside.sealed(),
        unseen=unseen[0] if unseen else "",
        horizon=known,
        damaged=damaged,
        damaged_ids=frozenset(_UUID.findall(damaged)),
    )
    partial = [row for look in looks for row in look.coverage if row.silent]
    here = {row.place for row in seen.coverage}
    return places, [*said, settings, *(row for row in partial if row.place not in here)]


def _opaque(look: Circulation) -> int:
    """
    Return how many messages might be those of any task.

    One that cannot be decoded runs nowhere, and is its task's if it says so. Where it is the rule rather than the
    exception, nodes may well understand what we do not.
    """
    return look.unreadable - (len(look.damaged) if len(look) > look.unreadable else 0)


def _statuses(base: Database, table: Mapped, found: list[StatusCount]) -> list[Coverage]:
    """Count the rows of each status; a table that is too large for that within the time is a row of coverage."""
    place = f"statuses of {table.name}"
    try:
        rows, beyond = task_rows.statuses(base, table)
    except (DatabaseUnreachable, DatabaseRefused) as error:
        return [Coverage(place=place, seen=0, silent=1, note=error.message)]
    found += rows
    note = f"{beyond:,} rows have statuses beyond those that are told apart." if beyond else ""
    return [Coverage(place=place, seen=sum(row.count for row in rows), silent=beyond, note=note)]


def _table(
    broker: Broker,
    base: Database,
    table: Mapped,
    backends: Sequence[Mapped],
    count: _Count,
    progress: Progress,
    *,
    total: int,
    max_rows: int,
) -> tuple[int, Coverage]:
    """Read a table's open rows and look up each; an error on the way leaves what was read, and says how far it came."""
    place, read = f"rows of {table.name}", 0
    stored = _Stored(broker, base, backends)
    with progress.phase(f"Looking for the tasks of {table.says.table}", min(total, max_rows)) as step:
        try:
            for page in task_rows.pages(base, table, most=max_rows):
                count.note(table, page, stored)
                read += len(page)
                step(read, count.words(table.name))
        except (DatabaseUnreachable, DatabaseRefused) as error:
            return read, Coverage(
                place=place, seen=read, silent=max(1, total - read), note=f"Broken off after {read:,}: {error.message}"
            )
    left = max(0, total - read) if read >= max_rows else 0
    said = [f"{left:,} open rows were not read; max_rows allows no more."] if left else []
    said += [stored.unread] if stored.unread else []
    return read, Coverage(place=place, seen=read, silent=left + bool(stored.unread), note=" ".join(said))


class _Stored:
    """
    The states of tasks' results, wherever results are kept.

    Attributes:
        unread: Why they are not all known; empty as long as they are.
    """

    def __init__(self, broker: Broker, base: Database, backends: Sequence[Mapped]) -> None:
        self._redis = results.States(broker)
        self._base, self._backends = base, backends
        self._in_tables = bool(backends)
        self.unread = ""

    def of(self, ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in self._backends:
            found |= task_rows.states(self._base, each, ids)
        found |= self._redis.of(ids)
        if self._redis.unread and not self._in_tables:
            self.unread = f"{self._redis.unread}."
        return found


@dataclass(kw_only=True)
class _Count:
    """What was met so far, in memory that does not grow with the number of rows."""

    now: float
    open_for_s: float
    limit: int
    most_gone: int
    places: _Places
    met: list[TaskRow] = field(default_factory=list)
    _cells: dict[tuple[str, str, str, str, str, str, str], list[float]] = field(default_factory=dict)
    _tasks: set[str] = field(default_factory=set)
    _oldest: defaultdict[tuple[str, str, str], list[tuple[float, int, TaskRow]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _gone: list[tuple[float, int, TaskRow]] = field(default_factory=list)
    _by_class: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    _number: int = 0

    def note(self, table: Mapped, page: Sequence[Row], stored: _Stored) -> None:
        old = [row for row in page if row.at is None or self.now - row.at >= self.open_for_s]
        in_table = table.says.results
        states = {} if in_table else stored.of([row.task_id for row in old if row.task_id])
        for row in old:
            self._add(table, row, *self._sighted(row, states, in_table=in_table, unread=stored.unread))

    def _sighted(self, row: Row, states: Mapping[str, str], *, in_table: bool, unread: str) -> tuple[str, str, str]:
        """Return where the task of a row was met, the state of its result, and what stands against a verdict."""
        task_id, places = row.task_id, self.places
        if not task_id:
            return NAMELESS, "", "It has no task id to look for."
        state = states.get(task_id, "")
        if place := places.of(task_id):
            return place, state, ""
        if state in FINAL_STATES:
            return ENDED, state, ""
        if task_id in places.dead:
            return DEAD, state, ""
        if task_id in places.aside:
            return QUARANTINED, state, ""
        if why := places.why_unseen(task_id) or unread:
            return UNSEEN, state, why
        if state and state != results.UNREADABLE:
            return BEGUN, state, ""
        if state:
            return BEYOND, state, "Its result cannot be read."
        why = places.horizon.why_not(row.task, row.at, in_table=in_table)
        return (BEYOND if why else NOWHERE), "", why

    def _add(self, table: Mapped, row: Row, sighting: str, state: str, why: str) -> None:
        age_s = None if row.at is None else max(0.0, self.now - row.at)
        age = age_of(age_s)
        task = row.task
        if task not in self._tasks:
            if len(self._tasks) >= _MOST_TASKS:
                task = OTHERS
            self._tasks.add(task)
        cell = self._cells.setdefault((table.name, task, row.status, sighting, state, why, age), [0, -1.0])
        cell[0] += 1
        cell[1] = max(cell[1], -1.0 if age_s is None else age_s)
        self._by_class[table.name, CLASSES[sighting]] += 1
        self._keep(table, row, task, sighting, state, why)

    def _keep(self, table: Mapped, row: Row, task: str, sighting: str, state: str, why: str) -> None:
        """Keep a row as such where it is among the oldest of its kind, or with a node, or gone."""
        self._number += 1
        order = (-(row.at or 0.0), -self._number)
        heap = self._oldest[table.name, task, sighting]
        is_sample = len(heap) < self.limit or order > heap[0][:2]
        is_met = sighting in {HELD, UNACKED} and len(self.met) < _MOST_KEPT
        is_gone = sighting in {NOWHERE, BEGUN} and (
            len(self._gone) < self.most_gone or bool(self._gone and order > self._gone[0][:2])
        )
        if not (is_sample or is_met or is_gone):
            return
        kept = TaskRow(
            table=table.name,
            row_id=str(row.key),
            task_id=row.task_id,
            task=row.task,
            status=row.status,
            last_run_at=row.at,
            sighting=sighting,
            state=state,
            node=self.places.nodes.get(row.task_id, ""),
            why=why,
            last_run=task_rows.as_text(row.last_run),
        )
        if is_sample:
            _push(heap, (*order, kept), self.limit)
        if is_met:
            self.met.append(kept)
        if is_gone:
            _push(self._gone, (*order, kept), self.most_gone)

    def rows(self) -> Iterator[RowCount]:
        for of, (count, longest_s) in sorted(self._cells.items(), key=lambda each: (-each[1][0], each[0])):
            table, task, status, sighting, state, why, age = of
            yield RowCount(
                table=table,
                task=task,
                status=status,
                sighting=sighting,
                state=state,
                why=why,
                age=age,
                count=int(count),
                longest_s=longest_s if longest_s >= 0 else None,
            )

    def samples(self) -> list[TaskRow]:
        return [row for heap in self._oldest.values() for *_, row in sorted(heap, reverse=True)]

    def gone(self) -> list[TaskRow]:
        return [row for *_, row in sorted(self._gone, reverse=True)]

    def words(self, table: str) -> str:
        return ", ".join(f"{n:,} {kind}" for kind in ORDER if (n := self._by_class.get((table, kind), 0)))


def _push(heap: list[tuple[float, int, TaskRow]], entry: tuple[float, int, TaskRow], most: int) -> None:
    """Keep the largest; no two numbers are the same, so rows are never compared."""
    if len(heap) < most:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _whole(
    base: Database, table: Mapped, rows: Iterable[TaskRow], progress: Progress, *, check: bool, keep: bool = False
) -> list[TaskRow]:
    """
    Return rows, those of this table with what else they hold, and with what their verifiers say.

    Args:
        keep: Whether their arguments are kept.
    """
    mine = [row for row in rows if row.table == table.name]
    others = [row for row in rows if row.table != table.name]
    asks = check and bool(table.says.verify)
    found = task_rows.whole(base, table, mine, arguments=asks or keep)
    if asks:
        with progress.phase(f"Asking verifiers about rows of {table.says.table}", len(found)) as step:
            found = verifiers.verified(base, table, found, step=lambda n: step(n, ""))
    bare = found if keep else [replace(row, arguments="", kwargs="") for row in found]
    by_key = {row.row_id: row for row in bare}
    return [*others, *(by_key[row.row_id] for row in mine if row.row_id in by_key)]
