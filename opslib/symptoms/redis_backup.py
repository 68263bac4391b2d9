"""How a server saves, and what a rehearsed restore showed → what is wrong, a save as a plan, and the way back."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from opslib import plan as plans
from opslib.durations import seconds, spell
from opslib.facts.backup import Backup, Kept, RestoreStep, Saves, Saving
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Kind, Outcome, Plan, Status
from opslib.symptoms import sight

_RUNBOOK = "redis-backup"
_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When a backup counts as old.

    Attributes:
        max_age_s: How old the last save may be while there are changes that it has not.
    """

    max_age_s: float = 86_400.0

    @classmethod
    def of(cls, max_age: str = "24h") -> Thresholds:
        """
        Return the limits as they were typed.

        Raises:
            SettingsError: If it is no duration.
        """
        return cls(max_age_s=seconds(max_age, "max_age"))


def diagnose(
    seen: Saves, limits: Thresholds, backup: Backup | None = None, outcomes: Sequence[Outcome] = ()
) -> list[Finding]:
    """
    Say what speaks against it that this deployment could be restored, worst first, and what could not be told.

    Args:
        backup: What was kept and rehearsed, once it was.

        outcomes: Of the plan: a save that failed is the latest word on saving.
    """
    found = [*sight.unseen(seen), *_failing(seen, outcomes), *_old(seen, limits), *_memory(seen)]
    if backup is not None:
        found += [*_unproven(backup), *_differing(backup)]
    return worst_first(found)


def plan(seen: Saves, *, save: bool = True, max_actions: int = 1) -> Plan:
    """Propose one save in the background; nothing, where nobody wants one or the server has none to offer."""
    actions = [_save(seen)] if save and seen.saving.offered else []
    return plans.make(seen.target, seen.fingerprint, actions, max_actions=max_actions, made_at=seen.taken_at)


def steps(seen: Saves, backup: Backup) -> tuple[RestoreStep, ...]:
    """Return how this deployment is restored from what was kept, in the order in which it has to be done."""
    return tuple(_steps(seen, seen.saving, backup))


# --- what is wrong ---


def _failing(seen: Saves, outcomes: Sequence[Outcome]) -> Iterator[Finding]:
    failed = [each for each in outcomes if each.action.kind is Kind.SAVE and each.status is Status.FAILED]
    saving = seen.saving
    if not saving.offered:
        yield Finding(
            code="save-failing",
            severity=Severity.ATTENTION,
            subject=seen.broker,
            message="The server has no BGSAVE, as a managed service has none.",
            evidence={"product": saving.product, "version": saving.version},
            hint="Take the snapshot with the service's own tools; the export here holds Celery's keys all the same.",
            runbook=_RUNBOOK,
        )
    if not (saving.failing or failed):
        return
    said = failed[0].reason if failed else "The server's last save failed."
    yield Finding(
        code="save-failing",
        severity=Severity.CRITICAL,
        subject=seen.broker,
        message=said,
        evidence={
            "directory": saving.directory or saving.untold,
            "last_save_at": plans.instant(saving.last_save_at),
            "changes_since": saving.changes,
        },
        hint="See the server's log, the free space and the owner of its directory. Where it saves by itself, it takes "
        "no writes until a save has succeeded.",
        runbook=_RUNBOOK,
    )


def _old(seen: Saves, limits: Thresholds) -> Iterator[Finding]:
    saving = seen.saving
    age_s = (seen.taken_at - saving.last_save_at).total_seconds()
    never = saving.took_s < 0 and age_s >= saving.uptime_s - 5
    if not saving.changes or not (never or age_s > limits.max_age_s):
        return
    last = (
        f"has not been saved since it was started {spell(age_s)} ago" if never else f"was last saved {spell(age_s)} ago"
    )
    itself = {None: "Whether it saves by itself is not known.", "": "It never saves by itself."}.get(
        saving.save_points, ""
    )
    aof = "Its append-only file has what came since." if saving.aof else ""
    yield Finding(
        code="backup-old",
        severity=Severity.ATTENTION,
        subject=seen.broker,
        message=" ".join(filter(None, (f"The server {last}, with {saving.changes:,} changes.", itself, aof))),
        evidence={"age_s": round(age_s), "changes_since": saving.changes, "append_only_file": saving.aof},
        hint="This runbook with dry_run=False saves it; a job that runs each night keeps it young.",
        runbook=_RUNBOOK,
    )


def _memory(seen: Saves) -> Iterator[Finding]:
    saving = seen.saving
    need = 2 * max(saving.rss_bytes, saving.used_bytes)
    if not saving.machine_bytes or need <= saving.machine_bytes:
        return
    yield Finding(
        code="save-memory",
        severity=Severity.ATTENTION,
        subject=seen.broker,
        message=f"A save may take as much memory again: up to {_mib(need)} in all, and the server's machine has "
        f"{_mib(saving.machine_bytes)}.",
        evidence={"rss_bytes": saving.rss_bytes, "machine_bytes": saving.machine_bytes},
        hint="Save while little is written, from a replica, or after results were cleaned up. Whether the system lends "
        "memory (vm.overcommit_memory), and what a container may use, cannot be seen from here.",
        runbook=_RUNBOOK,
    )


def _unproven(backup: Backup) -> Iterator[Finding]:
    said = [*(each.problem for each in backup.files), *(each.problem for each in backup.compared)]
    problems = [problem for problem in said if problem]
    if not problems:
        return
    proven = [each for each in backup.compared if not each.problem]
    yield Finding(
        code="backup-unproven",
        severity=Severity.ATTENTION,
        subject="dump" if proven else "backup",
        message=" ".join(problems),
        evidence={"proven": ", ".join(each.of for each in proven) or "nothing"},
        hint="Copy the file to where this runs and name it with dump_path. What was never restored may be none.",
        runbook=_RUNBOOK,
    )


def _differing(backup: Backup) -> Iterator[Finding]:
    for each in backup.compared:
        lost = each.settled - each.same
        if each.problem or not lost or (each.of == "dump" and not backup.fresh):
            continue  # an older dump has to differ
        own = lost == each.others
        hint = "Do not rely on it. Is it the file of this server? Save once more, and compare again."
        if own:
            hint = "Only keys of the application: one that changes and changes back looks so. Compare again."
        yield Finding(
            code="restore-differs",
            severity=Severity.ATTENTION if own else Severity.CRITICAL,
            subject=each.of,
            message=f"{lost:,} of {each.settled:,} keys that stood still are not in the {each.of} as on the server.",
            evidence={"keys": ", ".join(each.differing), "by": each.by},
            hint="Only keys of the application: one that changes and changes back looks so. Compare again."
            if own
            else hint,
            runbook=_RUNBOOK,
        )


# --- the plan ---


def _save(seen: Saves) -> Action:
    saving = seen.saving
    cost = (
        f"It forks: the copy may take up to {_mib(max(saving.rss_bytes, saving.used_bytes))} more memory while it runs"
    )
    stop = f", and the last fork stopped the server for {saving.fork_s * 1000:,.0f} ms" if saving.fork_s else ""
    over = f" The file {saving.directory}/{saving.file} is replaced." if saving.directory else ""
    wait = " One that is running is waited for first." if saving.running else ""
    return Action(
        kind=Kind.SAVE,
        subject=seen.broker,
        source="memory",
        destination="the server's disk",
        effect=f"The server saves all of its databases in the background. {cost}{stop}.{over}{wait}",
    )


# --- the way back ---


def _steps(seen: Saves, saving: Saving, backup: Backup) -> Iterator[RestoreStep]:
    folder, name = saving.directory or "DIRECTORY", saving.file or "dump.rdb"
    place = f"{folder.rstrip('/')}/{name}"
    dump = next((each for each in backup.files if each.kind == "dump"), Kept(kind="dump"))
    nodes = [each.name for each in seen.nodes if each.answered]
    yield RestoreStep(
        title="Stop who sends: the application, and beat.",
        why="What is sent meanwhile is lost with the database that is replaced.",
    )
    yield RestoreStep(
        title=f"Stop the workers: {', '.join(nodes[:5])}{' …' * (len(nodes) > 5)}." if nodes else "Stop the workers.",
        command="ops run maintenance-drain",
        why="What they hold comes back with the dump, while they go on with it: it would run twice.",
    )
    if saving.replicas:
        yield RestoreStep(
            title=f"Stop the {saving.replicas} replicas, and the sentinels if there are any.",
            why="Otherwise one of them becomes the master, with the data of today, while this one is down.",
        )
    if not saving.offered:
        yield RestoreStep(
            title="Restore the service's own snapshot, by its own means.", why="It gives no access to files."
        )
        yield from _afterwards(saving)
        return
    yield RestoreStep(
        title="Stop the server without saving.",
        command="redis-cli SHUTDOWN NOSAVE",
        why="A server that ends in another way may write today's memory over the file.",
    )
    yield RestoreStep(
        title="Put aside what it has on its disk.",
        command=" && ".join(f"mv {_aside(each)}" for each in _on_disk(saving, place)),
        why="It is the only copy of today.",
    )
    if saving.aof:
        yield RestoreStep(
            title="Start it without the append-only file, the first time: appendonly no in its configuration.",
            command="appendonly no",
            why=f"With it on, the server starts from {saving.aof_folder or 'that file'} and ignores the dump: it would "
            "come up empty, or as it was.",
        )
    yield RestoreStep(
        title="From the folder of the archive, put the dump in its place, for the user that the server runs as.",
        command=f"cp {_quoted(dump.path or 'DUMP')} {_quoted(place)} && chown --reference={_quoted(folder)} "
        f"{_quoted(place)}",
        why=f"Its sha256 is {dump.sha256}." if dump.sha256 else "Compare its checksum after you have copied it.",
    )
    version = f"{saving.product} {saving.version}"
    yield RestoreStep(
        title=f"Start the server: {version} or later of the same kind.",
        command="redis-cli PING",
        why="An older one cannot read the file, and ends; while it loads, it answers LOADING.",
    )
    if saving.aof:
        yield RestoreStep(
            title="Switch the append-only file on again, in the running server, and only then in its configuration.",
            command="redis-cli CONFIG SET appendonly yes",
            why="This writes a new one out of what was loaded. Wait until INFO says aof_rewrite_in_progress:0.",
        )
    if saving.replicas:
        yield RestoreStep(title="Start the replicas; each takes everything anew.", command="redis-cli INFO replication")
    yield from _afterwards(saving)


def _on_disk(saving: Saving, place: str) -> list[str]:
    """Return what a server starts from: its dump, and where it keeps one, its append-only file."""
    folder = place.rpartition("/")[0]
    return [place, *([f"{folder}/{saving.aof_folder}"] if saving.aof and saving.aof_folder else [])]


def _aside(path: str) -> str:
    return f"{_quoted(path)} {_quoted(f'{path}.before')}"


def _quoted(path: str) -> str:
    return shlex.quote(path)


def _afterwards(saving: Saving) -> Iterator[RestoreStep]:
    counted = ", ".join(f"database {number}: {keys:,}" for number, keys in sorted(saving.databases.items()))
    yield RestoreStep(
        title=f"Count what is there: {counted or 'no keys'}.",
        command="redis-cli INFO keyspace",
        why="Those are today's figures; what had a life may have expired since.",
    )
    for place in saving.elsewhere:
        yield RestoreStep(
            title=f"See to {place} as well.",
            why="It is on another server, and nothing of it is in this dump: both would be of different times.",
        )
    yield RestoreStep(
        title="Look before anything consumes: what is waiting or unacknowledged in the dump will run again.",
        command="ops run stuck-tasks",
        why="Also what has been done since it was saved; and nodes have forgotten what was revoked.",
    )
    yield RestoreStep(title="Start the workers, then the application, and beat at last.", command="ops workers")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:,.0f} MiB"
