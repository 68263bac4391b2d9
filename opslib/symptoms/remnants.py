"""What is left beside results: a Stored → what of it nobody needs any more, and how each kind would be removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from opslib.durations import spell
from opslib.facts.app_keys import FoundKey
from opslib.facts.remains import AppRemains, OldKeys, OldQuarantine, OldReports, Remains, TemporaryFile, TemporaryFiles
from opslib.facts.stored import Stored
from opslib.findings import Finding, Severity
from opslib.plan import Action, Copy, Kind
from opslib.selection import CHECKPOINTS, GROUPS, ResultSelection
from opslib.symptoms import app_flush, asked

#: What the plan's parts are called, beside those of Celery's own keys and of the application's.
QUARANTINE, FILES = "quarantine", "files"
#: What stands before the name of an application's keys.
APP = "app_keys."
#: Bytes of files that one run keeps: they are in its folder until it is pruned.
MOST_KEPT_BYTES = 1024**3
_RUNBOOK = "weekly-cleanup"
_NAMED = 7
#: Keys of one name that a plan has, unless somebody asks for more.
_MANY = 500


@dataclass(frozen=True, slots=True)
class Part:
    """
    Actions of one kind.

    Attributes:
        site: Fingerprint of the database that they are carried out in.

        actions: Makes them, given how many there may be.
    """

    site: str
    actions: Callable[[int], list[Action]]


def diagnose(stored: Stored) -> Iterator[Finding]:
    """Say what is left beside results; nothing where that was not looked at."""
    found = stored.remains
    if found is None:
        return
    yield from _quarantines(found)
    yield from _groups(stored, found.groups)
    yield from _checkpoints(stored, found.checkpoints)
    for app in found.apps:
        yield from _app(stored, app)
    for files in found.files:
        yield from _files(files)
    yield from _reports(found.reports)


def parts(stored: Stored) -> Mapping[str, Part]:
    """Return what a plan may be made of, by name; nothing where it was not looked at."""
    found = stored.remains
    if found is None:
        return {}
    home = stored.replies_site
    return {
        QUARANTINE: Part(home, lambda _: list(_drops(found))),
        GROUPS: Part(stored.site or home, lambda _: list(_swept(GROUPS, found.groups))),
        CHECKPOINTS: Part(home, lambda _: list(_swept(CHECKPOINTS, found.checkpoints))),
        **{f"{APP}{app.scan.name}": Part(app.scan.fingerprint, _flush(stored, app)) for app in found.apps},
        FILES: Part(home, lambda _: [_removed(each) for each in found.files if each.rows]),
    }


def _elsewhere(stored: Stored, name: str, site: str) -> str:
    main = stored.site or stored.replies_site
    return (
        "The plan removes them." if site == main else f"They are in another database than the results: -p clean={name}."
    )


# --- what runs took out of circulation ---


def _quarantines(found: Remains) -> Iterator[Finding]:
    for rows, stay in (([r for r in found.quarantines if not r.stays], False), (_stay(found), True)):
        if not rows:
            continue
        count, size = sum(row.count for row in rows), sum(row.size_bytes for row in rows)
        runs = f"{len(rows):,} run{'s' * (len(rows) != 1)}"
        told = f"{runs} of more than {spell(found.quarantine_after_s)} ago {'still keep' if stay else 'keep'}"
        told = told.replace(" keep", " keeps", 1) if len(rows) == 1 else told
        yield Finding(
            code="quarantine-expired",
            severity=Severity.ATTENTION,
            subject="runs that may go on" if stay else "quarantine",
            message=f"{told} {count:,} message{'s' * (count != 1)} in the broker; they take {size:,} bytes."
            + (" They stay." if stay else ""),
            evidence={
                "messages": count,
                "size_bytes": size,
                "runs": {row.run_id: row.stays or f"{spell(row.age_s)} ago" for row in rows[:_NAMED]},
            },
            hint="See to each by its name: `ops resume`, `ops undo`, or `ops quarantine drop RUN_ID`."
            if stay
            else "The plan writes them to a file and drops them: no undo of those runs finds them then.",
            runbook=_RUNBOOK,
        )


def _stay(found: Remains) -> list[OldQuarantine]:
    return [row for row in found.quarantines if row.stays]


def _drops(found: Remains) -> Iterator[Action]:
    for row in found.quarantines:
        if row.stays:
            continue
        for action in asked.drop(row.lists):
            ago = f"Run {row.run_id} ended {spell(row.age_s)} ago."
            yield replace(action, why="quarantine-expired", effect=f"{action.effect} {ago} No undo brings them back.")


# --- keys of groups, and saved states ---


def _groups(stored: Stored, row: OldKeys | None) -> Iterator[Finding]:
    if row is None or not row.count:
        return
    doubt = (
        f" {row.doubtful:,} tasks run whose message is gone: of groups that could be theirs, the keys stay."
        if row.doubtful
        else ""
    )
    more = " There are more; the next run looks at them." if row.more else ""
    yield Finding(
        code="group-keys",
        severity=Severity.ATTENTION,
        subject=f"{row.root}*",
        message=f"{row.count:,} keys of groups and chords were not touched for {spell(row.keep_s)}, and no message "
        f"names their group; they take {row.size_bytes:,} bytes.{doubt}{more}",
        evidence={"keys": row.count, "named_by_messages": row.in_use, "idle": spell(row.keep_s)},
        hint=_not_seen(row) or _elsewhere(stored, GROUPS, row.site),
        runbook=_RUNBOOK,
    )


def _checkpoints(stored: Stored, row: OldKeys | None) -> Iterator[Finding]:
    if row is None or not row.count:
        return
    yield Finding(
        code="checkpoints-expired",
        severity=Severity.ATTENTION,
        subject=f"{row.root}*",
        message=f"{row.count:,} states of tasks that are over were saved more than {spell(row.keep_s)} ago and never "
        f"expire; they take {row.size_bytes:,} bytes.",
        evidence={"states": row.count, "task_in_circulation": row.in_use, "size_bytes": row.size_bytes},
        hint=_not_seen(row) or _elsewhere(stored, CHECKPOINTS, row.site),
        runbook=_RUNBOOK,
    )


def _not_seen(row: OldKeys) -> str:
    return f"None is removed: {row.unseen[0]}" if row.unseen else ""


def _swept(what: str, row: OldKeys | None) -> Iterator[Action]:
    if row is None or not row.count or row.unseen:
        return
    groups = what == GROUPS
    keys = f"{row.count:,} {'keys of groups and chords' if groups else 'saved states'}"
    rest = (
        "Whoever asks for such a group finds none. Those of a group with a task in circulation stay."
        if groups
        else "`ops task resume` cannot go on from them then. Those of a task in circulation stay."
    )
    yield Action(
        kind=Kind.DELETE,
        subject=f"{row.root}*",
        source=f"idle for {spell(row.keep_s)}" if groups else f"never expires, older than {spell(row.keep_s)}",
        destination="vault",
        copies=(Copy(place=what, key=row.root, count=row.count),),
        results=ResultSelection(what=what, idle_s=row.keep_s if groups else 0.0, lasting=None if groups else True),
        why="group-keys" if groups else "checkpoints-expired",
        effect=f"{keys} are removed and kept in the vault of this run; that frees {row.size_bytes:,} bytes. {rest}",
    )


# --- keys of the application ---


def _app(stored: Stored, app: AppRemains) -> Iterator[Finding]:
    hint = f"None is removed: {app.unseen[0]}" if app.unseen else ""
    for finding in app_flush.left(app.scan, app_flush.actionable(app.rows)):
        said = hint or _elsewhere(stored, f"{APP}{app.scan.name}", app.scan.fingerprint)
        old = f"{finding.message} Nobody has touched them for {spell(app.keep_s)}."
        said += " More than a plan may have wait for the next run." * (len(app.rows) > _MANY)
        yield replace(finding, message=old, hint=f"{said} Give them a life where they are written.")


def _flush(stored: Stored, app: AppRemains) -> Callable[[int], list[Action]]:
    rows: Sequence[FoundKey] = [] if app.unseen else app_flush.actionable(app.rows)

    def actions(room: int) -> list[Action]:
        return list(app_flush.plan(stored.target, app.scan, rows, limit=max(0, room)))

    return actions


# --- files ---


def _within(rows: Iterable[TemporaryFile]) -> tuple[list[TemporaryFile], list[TemporaryFile]]:
    """Return the files that one run keeps, and those that would be too much."""
    kept: list[TemporaryFile] = []
    beyond: list[TemporaryFile] = []
    total = 0
    for row in rows:
        if total + row.size_bytes > MOST_KEPT_BYTES:
            beyond.append(row)
        else:
            kept.append(row)
            total += row.size_bytes
    return kept, beyond


def _files(found: TemporaryFiles) -> Iterator[Finding]:
    if not found.rows:
        return
    kept, beyond = _within(found.rows)
    count = len(found.rows) + found.more
    said = f" {found.open:,} more are open in a process, and stay." if found.open else ""
    said += f" {found.links:,} more are links, and stay." if found.links else ""
    if beyond:
        size = sum(row.size_bytes for row in beyond)
        said += (
            f" {len(beyond):,} of them, {size:,} bytes, stay: one run keeps {MOST_KEPT_BYTES:,} bytes of files at "
            "most. Run it again for the rest; what is larger by itself is for you."
        )
    said += f" {found.unread:,} processes do not say what they have open; root is told." if found.unread else ""
    yield Finding(
        code="temporary-files",
        severity=Severity.ATTENTION,
        subject=f"{found.folder}/{found.pattern}",
        message=f"{count:,} file{'s' * (count != 1)} of {found.host} {'were' if count != 1 else 'was'} not changed for "
        f"{spell(found.older_than_s)}: {found.size_bytes:,} bytes.{said}",
        evidence={
            "host": found.host,
            "files": count,
            "size_bytes": found.size_bytes,
            "oldest": spell(found.rows[0].age_s),
            "open": found.open,
            "links": found.links,
            "young": found.young,
        },
        hint="The plan moves them to the folder of this run. Other machines have files of their own: run it there too."
        if kept
        else "None is moved: each is more than one run keeps.",
        runbook=_RUNBOOK,
    )


def _removed(found: TemporaryFiles) -> Action:
    kept, _ = _within(found.rows)
    size = sum(row.size_bytes for row in kept)
    return Action(
        kind=Kind.REMOVE,
        subject=f"{found.folder}/{found.pattern}",
        source=found.name,
        destination="vault",
        node=found.host,
        copies=tuple(Copy(place="file", key=row.path, sha256=row.mark) for row in kept),
        why="temporary-files",
        effect=f"{len(kept):,} file{'s' * (len(kept) != 1)} of {found.host}, {size:,} bytes, "
        f"{'are' if len(kept) != 1 else 'is'} moved to the folder of this run; `ops undo` on that machine puts them "
        "back. One that is opened or changed until then stays.",
    )


# --- the archive ---


def _reports(row: OldReports | None) -> Iterator[Finding]:
    if row is None or not row.count:
        return
    days = f"{row.older_than_s / 86_400:.0f}d"
    kept = f" {row.kept:,} of them hold what was taken out of a broker, and stay unless you say --with-kept." * bool(
        row.kept
    )
    yield Finding(
        code="old-reports",
        severity=Severity.ATTENTION,
        subject="archive",
        message=f"{row.count:,} run{'s' * (row.count != 1)} of more than {spell(row.older_than_s)} ago: "
        f"{row.size_bytes:,} bytes.{kept}",
        evidence={"runs": row.count, "size_bytes": row.size_bytes, "hold_something": row.kept},
        hint=f"`ops reports prune --older-than {days} --apply`{' --with-kept' * (row.kept == row.count)} removes them.",
        runbook=_RUNBOOK,
    )
