"""An application's open rows and everything that Celery knows → where the task of each is, was, or was lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opslib import database, refusals, tables
from opslib.collectors import (
    circulation,
    dead_letters,
    deployment,
    horizon,
    keyspace,
    mentions,
    quarantine,
    task_rows,
    verifiers,
)
from opslib.collectors.marks import Marks
from opslib.collectors.row_counts import MOST_GONE, Count, Places, Stored
from opslib.durations import seconds
from opslib.errors import BadParameter, DatabaseRefused, DatabaseUnreachable, SettingsError, near
from opslib.facts.rows import (
    BEYOND,
    Reconciled,
    SeenTable,
    TaskRow,
)
from opslib.facts.snapshot import Snapshot, parts_of
from opslib.facts.system import Coverage, StatusCount
from opslib.progress import Progress

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.collectors.circulation import Circulation
    from opslib.database import Database
    from opslib.tables import Mapped

MAX_ROWS = 2_000_000
_MAX_KEYS = 100_000_000
#: Rows of one task and sighting of which all is told.
_MOST_SAMPLES = 200
_NO_TABLE = "No table of the database is known by its name, and none is configured."


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
    known_tables = tables.task_tables(broker.target, base)
    mapped = _chosen(known_tables, table, broker)
    with refusals.explained(broker.target.shown_broker):
        with progress.phase("Looking at broker, nodes and results"):
            seen = deployment.collect(broker, settle=settle, answer_within=answer_within)
        now = seen.taken_at.timestamp()
        with progress.phase("Looking for every task that can still be run"):
            places, rows_of_coverage = _everywhere(
                broker,
                seen,
                timeout_s=timeout_s,
                results_kept=results_kept,
                tables_of_results=any(each.says.results for each in known_tables),
            )
        most_gone = MOST_GONE if with_arguments else 0
        count = Count(now=now, open_for_s=hours * 3600.0, limit=limit, most_gone=most_gone, places=places)
        known, statuses = [], list[StatusCount]()
        for each in mapped:
            rows_of_coverage += _statuses(base, each, statuses)
            backends = [other for other in known_tables if other.says.results and other is not each]
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
    return Reconciled(
        **parts_of(seen, but={"coverage", "statuses"}),
        coverage=(*seen.coverage, *rows_of_coverage),
        statuses=tuple(statuses),
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
    broker: Broker, seen: Snapshot, *, timeout_s: float, results_kept: str, tables_of_results: bool
) -> tuple[Places, list[Coverage]]:
    """Look twice: a task that is retried goes back while one looks on, and might be missed once."""
    now = seen.taken_at.timestamp()
    found, _ = keyspace.read(broker, max_keys=_MAX_KEYS, keep_results=False)
    carried = Marks()  # before the looks: what comes after a task is sent when that has run, and is met by them
    opaque = mentions.carried(broker, carried.note, timeout_s=timeout_s)
    looks = [circulation.read(broker, timeout_s=timeout_s) for _ in range(2)]
    dead, aside = Marks(), Marks()
    declared = {broker.keys.queue(queue.name) for queue in seen.queues}
    said = [
        dead_letters.ids(broker, sorted(key for key in found.dead if key not in declared), dead.note),
        quarantine.ids(broker, found.quarantined, aside.note),
    ]
    stored = sum(seen.result_states.values())
    known, settings = horizon.read(
        broker, timeout_s=timeout_s, results_kept=results_kept, now=now, stored=stored, tables=tables_of_results
    )
    unseen = [why for look in looks for why in look.unseen]
    unseen += [f"{settings.place}: {settings.note}"] if settings.silent else []
    unseen += [f"{row.place}: {row.note}" for row in said if row.silent]
    if odd := max(map(_opaque, looks)):
        unseen.append(f"{odd:,} message{'s' * (odd != 1)} cannot be decoded, so nobody knows of which task.")
    damaged = b"\n".join(raw for look in looks for raw in look.damaged)
    if opaque:
        unseen.append(
            f"{opaque:,} messages cannot be read (compressed), so nobody knows which tasks come after theirs."
        )
    places = Places(
        circulating=looks,
        nodes={task.task_id: task.node for task in seen.held},
        unacked=frozenset(message.task_id for message in seen.unacked),
        dead=dead.sealed(),
        aside=aside.sealed(),
        carried=carried.sealed(),
        running=_running(seen),
        unseen=unseen[0] if unseen else "",
        horizon=known,
        damaged=damaged,
        damaged_ids=frozenset(mentions.UUID.findall(damaged)),
    )
    partial = [row for look in looks for row in look.coverage if row.silent]
    here = {row.place for row in seen.coverage}
    return places, [*said, settings, *(row for row in partial if row.place not in here)]


def _running(seen: Snapshot) -> str:
    """Return what is not seen of tasks that run and whose messages are gone: which ones they will send at their end."""
    delivered = {message.task_id for message in seen.unacked}
    count = sum(task.place == "active" and task.task_id not in delivered for task in seen.held)
    if not count:
        return ""
    run = "1 task runs whose message is" if count == 1 else f"{count:,} tasks run whose messages are"
    return (
        f"{run} gone, and this one may come after it in a chain; chains = false in ops.toml says that there are none."
    )


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
    count: Count,
    progress: Progress,
    *,
    total: int,
    max_rows: int,
) -> tuple[int, Coverage]:
    """Read a table's open rows and look up each; an error on the way leaves what was read, and says how far it came."""
    place, read = f"rows of {table.name}", 0
    stored = Stored(broker, base, backends)
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
