"""The keys that an application keeps, and where their tasks are → which of them may go, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opslib import plan as plans
from opslib import values
from opslib.durations import spell
from opslib.facts.app_keys import FoundKey, KeyScan, ids_in
from opslib.facts.whereabouts import Whereabouts
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Plan
from opslib.symptoms import sight
from opslib.symptoms.stop_task import PLACES

#: Actions of one plan, unless somebody asks for more.
LIMIT = 1_000
#: A collection that weighs more is likely to have too many elements to be kept and removed in one step.
KEPT_BYTES = 64 * 1024
#: What such a one has to live, so that an undo finds it.
LIFE_S = 86_400.0
_CODE = "app-keys"


def ids(named: Iterable[str]) -> list[str]:
    """
    Return every id that could be meant by what stands in keys' names for one: itself, and each part of it.

    Where one of them still runs, its key stays.
    """
    return sorted({each for text in named for each in ids_in(text)})


def in_circulation(seen: Whereabouts) -> set[str]:
    """Return the ids that can still be run."""
    return {task_id for task_id, places in seen.places.items() if any(place in PLACES for place in places)}


def over(seen: Whereabouts, scan: KeyScan) -> list[FoundKey]:
    """
    Return the keys of tasks that are not in circulation, and that are no queue's, the longest untouched first.

    Args:
        seen: Where those of `ids` are, with nothing that matters unseen.
    """
    live = in_circulation(seen)
    queues = seen.queues if seen.fingerprint == scan.fingerprint else ()
    lists = {each.key for queue in queues for each in queue.lists}
    return actionable(scan.over(live, lists))


def actionable(rows: Iterable[FoundKey]) -> list[FoundKey]:
    """Return the keys of which something can be done."""
    return [row for row in rows if not _goes_by_itself(row)]


def diagnose(seen: Whereabouts, scan: KeyScan, rows: Sequence[FoundKey]) -> list[Finding]:
    """
    Say how many keys are left of tasks that are over, and what could not be looked into.

    Args:
        rows: Of the scan those that may go.
    """
    return worst_first([*sight.unseen(seen), *_partly(scan), *left(scan, rows)])


def plan(target: str, scan: KeyScan, rows: Sequence[FoundKey], *, limit: int = LIMIT) -> Plan:
    """Propose to remove keys, each after its value is in the vault; what is too large for that gets a life of a day."""
    return plans.make(
        target,
        scan.fingerprint,
        [_action(scan, row) for row in rows[:limit]],
        max_actions=limit,
        made_at=scan.taken_at,
    )


def told(scan: KeyScan, rows: Sequence[FoundKey], planned: int) -> list[str]:
    """
    Return what a person has to know of a scan, a sentence each: how many, which of them stay, and how to go on.

    Args:
        rows: Those that may go.

        planned: How many of them are in the plan.
    """
    counted = f"{scan.keys:,} keys, {scan.size_bytes:,} bytes; {scan.forever:,} of them never expire."
    found = [f"{scan.pattern} in {scan.database}: {counted}"]
    if scan.fits < scan.keys:
        found.append(f"{scan.keys - scan.fits:,} of them were read or written since, and stay.")
    if spared := len(scan.rows) - len(rows):
        found.append(f"{spared:,} of them stay: of tasks in circulation, of a queue, or too large and soon to expire.")
    if scan.strangers:
        found.append(f"{scan.strangers:,} more are called so, and are Celery's, ours or those of a closer pattern.")
    if scan.left:
        found.append(f"About {scan.left:,} keys of that database were not visited.")
    if more := (scan.fits - len(scan.rows)) + (len(rows) - planned):
        found.append(
            f"The plan has the {planned:,} that were untouched the longest; {more:,} more are old enough, as far as "
            "was counted: apply this one, then run the same command again, or raise --limit."
        )
    return found


def left(scan: KeyScan, rows: Sequence[FoundKey]) -> Iterable[Finding]:
    """Say how many keys are left of tasks that are over."""
    if not rows:
        return
    more = scan.fits - len(scan.rows)
    count = f"{len(rows):,}" + (f", and up to {more:,} more," if more else "")
    size = sum(row.size_bytes for row in rows)
    yield Finding(
        code=_CODE,
        severity=Severity.ATTENTION,
        subject=scan.pattern,
        message=f"{count} of {scan.keys:,} keys in {scan.database} are of tasks that are over: {size:,} bytes.",
        evidence={
            "keys": scan.keys,
            "size_bytes": scan.size_bytes,
            "never_expire": scan.forever,
            "stay": len(scan.rows) - len(rows),
            "longest_untouched_s": round(rows[0].idle_s) if rows[0].idle_s is not None else None,
        },
        hint=f"`ops app flush {scan.name}` removes them. Give them a life where they are written.",
        runbook="weekly-cleanup",
    )


def _partly(scan: KeyScan) -> Iterable[Finding]:
    if scan.left:
        yield Finding(
            code="cannot-see",
            severity=Severity.UNKNOWN,
            subject=scan.pattern,
            message=f"keys in {scan.database}: about {scan.left:,} not visited.",
            evidence={"visited": scan.visited},
            hint="There may be more of this name among them.",
        )


def _can_be_kept(row: FoundKey) -> bool:
    return row.type == "string" or (row.type in values.KINDS and row.size_bytes <= KEPT_BYTES)


def _goes_by_itself(row: FoundKey) -> bool:
    """Whether all that could be done about a key is done: it cannot be kept, and it has no more than a day to live."""
    return not _can_be_kept(row) and 0 <= row.life_s <= LIFE_S


def _action(scan: KeyScan, row: FoundKey) -> Action:
    kept = _can_be_kept(row)
    age = f", untouched for {spell(row.idle_s)}" if row.idle_s is not None else ""
    what = f"the {scan.name} of a task that is over, {row.size_bytes:,} bytes{age}"
    return Action(
        kind=Kind.DELETE if kept else Kind.EXPIRE,
        subject=row.key,
        source=scan.name,
        destination="vault" if kept else "",
        copies=(Copy(place="key", key=row.key, life_s=row.life_s, idle_s=row.idle_s),),
        ttl_s=None if kept else LIFE_S,
        why=_CODE,
        effect=f"It leaves {scan.database} ({what}); the value is in the vault of this run."
        if kept
        else f"It expires in {spell(LIFE_S)} ({what}): it is too large to be kept and removed in one step. "
        "Until then `ops undo` gives it back the life that it had.",
    )
