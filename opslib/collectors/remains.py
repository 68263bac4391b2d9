"""A view of what is stored → the same view with what is left beside results: quarantines, groups, states, files."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib import checkpoints, folders, records, refusals, settings
from opslib.collectors import app_scan, mentions, quarantine, temporary
from opslib.collectors.keyspace import STEP
from opslib.collectors.mentions import Mentions
from opslib.durations import seconds
from opslib.envelope import Unreadable, instant
from opslib.errors import BadParameter, OpsError
from opslib.facts.messages import Quarantined
from opslib.facts.remains import AppRemains, OldKeys, OldQuarantine, OldReports, Remains
from opslib.facts.stored import Stored
from opslib.facts.system import Coverage
from opslib.keys import key_name, raw_name
from opslib.retention import Retention

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker
    from opslib.records import RunRecord

#: So long a run can be undone, and what it took out of circulation is needed for that.
LEAST_S = 14 * 86_400.0
#: Runs that began longer ago than this are what `ops reports prune` is for.
REPORTS_AFTER_S = 90 * 86_400.0
#: Groups that one run deals with; the others wait for the next.
MOST_GROUPS = 20_000
#: The parts of what a group or a chord keeps, each a key of its own.
PARTS = ("j", "s", "t", "d", "c")
_SUFFIX = re.compile(rb"\.[%s]$" % "".join(PARTS).encode())
_PAGE = 1_000
#: What files a run's folder has that say what the run did; all else was taken out of somewhere.
_SAID = frozenset({folders.MANIFEST, folders.NOTEBOOK, folders.PLAN, folders.RECORD, folders.REPORT})


def remains(
    broker: Broker,
    seen: Stored,
    *,
    quarantine_after: str = "",
    answer_within: str = "1.5s",
    everything: bool = False,
) -> Stored:
    """
    Look for what is left beside results, and return the view with it.

    No value is read whose age is told by how long nobody has read it. Nothing is written but a reply list of the
    control plane, which is removed again.

    Args:
        seen: What `stored` has seen; its retention says how long keys are kept.

        quarantine_after: How long a run's quarantine is kept, with a unit; empty takes the target's own.

        answer_within: How long a silent node is waited for, with a unit.

        everything: Confirms that a quarantine may be younger than 14 days.

    Raises:
        BadParameter: If quarantines would go that an undo needs, and nobody has confirmed that.

        BrokerUnreachable: If the server stops answering on the way.
    """
    timeout_s = seconds(answer_within, "answer_within")
    after_s = _after_s(broker, quarantine_after, everything=everything)
    keep_s = longest(seen.retention)
    with refusals.explained(broker.target.shown_broker):
        now = broker.server_time().timestamp()
        groups, names = _groups(broker, seen, keep_s)
        saved, saved_names, links = _checkpoints(broker, now)
        scans, unread = _scans(broker, keep_s)
        wants = bool(names or saved_names or any(scan.scan.rows for scan in scans))
        met = mentions.read(broker, names, timeout_s=timeout_s) if wants else None
        found = Remains(
            quarantines=tuple(_quarantines(broker, now, after_s)),
            quarantine_after_s=after_s,
            groups=_judged_groups(groups, names, met),
            checkpoints=_judged_states(saved, saved_names, links, met),
            apps=tuple(_judged_app(broker, each, met) for each in scans),
            files=tuple(temporary.look(name, each) for name, each in broker.target.temporary_files.items()),
            reports=_reports(now),
        )
    return replace(seen, remains=found, coverage=(*seen.coverage, *unread, *_blind(found)))


def longest(retention: Retention) -> float:
    """Return how long keys are kept that do not say whose they are: as long as any task's results."""
    return max((rule.keep_s for rule in retention.rules), default=0.0)


def _after_s(broker: Broker, text: str, *, everything: bool) -> float:
    after_s = seconds(text or broker.target.thresholds.quarantine_after, "quarantine_after")
    if after_s < LEAST_S and not everything:
        raise BadParameter(
            f"quarantine_after={text or broker.target.thresholds.quarantine_after} is less than 14 days: "
            "so long `ops undo` may need what a run has kept.",
            hint="If that is meant, confirm it by everything=True (--everything).",
        )
    return after_s


# --- what runs took out of circulation ---


def _quarantines(broker: Broker, now: float, after_s: float) -> Iterator[OldQuarantine]:
    """Yield the quarantines of runs of which there was no sign for so long, the oldest first."""
    by_run: dict[str, list[Quarantined]] = {}
    for row in quarantine.lists(broker):
        by_run.setdefault(row.run_id, []).append(row)
    old = {run_id: at for run_id in by_run if (at := _began(run_id)) is not None and now - at >= after_s}
    if not old:
        return
    recent = _recent(broker, now - after_s)
    later = _later(set(old))
    aside = quarantine.set_aside(broker)
    for run_id, began in sorted(old.items(), key=lambda each: (each[1], each[0])):
        ended, stays = _of_archive(broker, run_id, later.get(run_id))
        age_s = now - max(began, ended)
        if run_id in recent or age_s < after_s:
            continue
        if aside.get(run_id):
            stays = "It was cut off with messages on their way: `ops resume` or `ops undo` comes first."
        yield OldQuarantine(run_id=run_id, age_s=age_s, lists=tuple(by_run[run_id]), stays=stays)


def _began(run_id: str) -> float | None:
    """Return when a run began, by its id; None for one that says no time."""
    if not re.fullmatch(folders.PATTERN, run_id):
        return None
    return datetime.strptime(run_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _recent(broker: Broker, since: float) -> set[str]:
    """Return the runs that have changed something since then, as far back as the broker's own audit goes."""
    found: set[str] = set()
    upper = "+"
    while True:
        page = cast(
            "list[tuple[bytes, Mapping[bytes, bytes]]]",
            broker.reads.xrevrange(broker.keys.audit, upper, f"{int(since * 1000)}", count=_PAGE),
        )
        for _, fields in page:
            with suppress(ValueError, AttributeError):
                found.add(str(json.loads(fields.get(b"line", b"{}")).get("run", "")))
        if len(page) < _PAGE:
            return found
        upper = f"({page[-1][0].decode()}"


def _later(run_ids: set[str]) -> dict[str, RunRecord]:
    """Return the last record of a run that went on with each of these: applied, resumed or undid it."""
    found: dict[str, RunRecord] = {}
    for folder in _folders():
        record = _record(folder)
        run_id = str(record.plan.get("continues", "")) if record is not None else ""
        if record is not None and run_id in run_ids and not record.dry_run and run_id != record.run_id:
            found[run_id] = max(found.get(run_id, record), record, key=lambda each: each.run_id)
    return found


def _folders() -> Iterator[Path]:
    """Yield the folder of every run in the archive of this machine."""
    for folder in settings.reports_root().glob("[0-9]*/[0-9]*/[0-9]*/*"):
        if re.fullmatch(folders.PATTERN, folder.name) and not folder.is_symlink():
            yield folder


def _record(folder: Path) -> RunRecord | None:
    try:
        return records.read(folder / folders.RECORD)
    except (OSError, msgspec.DecodeError):
        return None


def _of_archive(broker: Broker, run_id: str, later: RunRecord | None) -> tuple[float, str]:
    """
    Return when a run ended, by its record, and why its quarantine stays: it could be gone on with.

    Args:
        later: Of the last run that went on with it.
    """
    folder = folders.folder(settings.reports_root(), run_id)
    record = later or _record(folder)
    if record is not None:
        settled = {"applied", "skipped"}
        is_over = record.error is None and all(row.get("status") in settled for row in record.outcomes)
        ended = instant(record.finished_at) or 0.0
        return ended, "" if is_over else f"It did not come to its end: `ops resume {run_id}` may still go on with it."
    if (folder / folders.PLAN).exists():
        return 0.0, "Its plan is in the archive and no record of its end: it may still be gone on with."
    host = _host(broker, run_id)
    if host != socket.gethostname():
        where = f" on {host}" if host else ""
        return 0.0, f"It is not in this archive: whether it came to its end, the archive{where} says."
    return 0.0, ""


def _host(broker: Broker, run_id: str) -> str:
    try:
        told = json.loads(cast("bytes | None", broker.reads.hget(broker.keys.journal(run_id), "run")) or b"{}")
        return str(told.get("host", ""))[:200]
    except (ValueError, AttributeError):
        return ""


# --- keys of groups and chords ---


def group_of(name: bytes, root: bytes) -> str:
    """Return the id of the group that a key belongs to."""
    return key_name(_SUFFIX.sub(b"", name[len(root) :]))


def idle_keys(client: Redis, root: bytes, idle_s: float) -> Iterator[tuple[bytes, int | None]]:
    """
    Yield the keys that begin so and that nobody has read or written for so long, and what each weighs.

    Where the server keeps no such time, or does not say it, each key comes without a weight.
    """
    cursor = 0
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, match=_literal(root) + b"*", count=STEP))
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.object("idletime", name)
                pipe.memory_usage(name, samples=5)
            said = pipe.execute(raise_on_error=False) if names else []
        for name, idle, weight in zip(names, said[::2], said[1::2], strict=True):
            if isinstance(idle, int) and idle >= idle_s:
                yield name, weight if isinstance(weight, int) else 0
            elif isinstance(idle, Exception):
                yield name, None
        if cursor == 0:
            return


def _literal(root: bytes) -> bytes:
    return re.sub(rb"([*?\[\]\\^])", rb"\\\1", root)


def _groups(broker: Broker, seen: Stored, keep_s: float) -> tuple[OldKeys, dict[str, list[int]]]:
    """Return a row for the keys of groups, and the groups that are old enough with the weights of their keys."""
    root = broker.keys.group("")
    row = OldKeys(name="groups", root=root, site=seen.site, keep_s=keep_s)
    found: dict[str, list[int]] = {}
    if broker.results is None or not seen.site:
        return row, found
    name = raw_name(root)
    for key, weight in idle_keys(broker.results, name, keep_s):
        group_id = group_of(key, name)
        if weight is None:
            row = replace(row, undated=row.undated + 1)
        elif group_id in found or len(found) < MOST_GROUPS:
            found.setdefault(group_id, []).append(weight)
        else:
            row = replace(row, more=True)
    return row, found


def _judged_groups(row: OldKeys, found: Mapping[str, Sequence[int]], met: Mentions | None) -> OldKeys:
    if met is None:
        return row
    over = [weights for group_id, weights in found.items() if group_id not in met.named]
    return replace(
        row,
        count=sum(map(len, over)),
        size_bytes=sum(map(sum, over)),
        in_use=sum(len(weights) for group_id, weights in found.items() if group_id in met.named),
        doubtful=met.doubtful if found else 0,
        unseen=met.unseen if found else (),
    )


# --- saved states of tasks ---


def past_its_life(raw: bytes, now: float) -> checkpoints.State | None:
    """Return a saved state that should have expired and never does; None for any other."""
    found = checkpoints.state(raw, own=True)
    if isinstance(found, Unreadable) or found.saved_at is None:
        return None
    return found if found.saved_at <= now - max(found.life_s, checkpoints.LIFE_S) else None


def _checkpoints(broker: Broker, now: float) -> tuple[OldKeys, dict[str, int], dict[str, str]]:
    """Return a row for saved states, the tasks whose state is past its life, and who goes on from each."""
    root = broker.keys.checkpoint_root
    row = OldKeys(name="checkpoints", root=root, site=broker.fingerprint, keep_s=checkpoints.LIFE_S)
    found: dict[str, int] = {}
    links: dict[str, str] = {}
    for key, raw in lasting_strings(broker.reads, raw_name(root)):
        state = past_its_life(raw, now)
        if state is not None:
            task_id = key_name(key[len(raw_name(root)) :])
            found[task_id], links[task_id] = len(raw), state.resumed_as
    return row, found, links


def lasting_strings(client: Redis, root: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the strings that begin so and never expire, with their values, but for those that are too large."""
    cursor = 0
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, match=_literal(root) + b"*", count=STEP))
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.pttl(name)
                pipe.strlen(name)
            said: list[Any] = pipe.execute(raise_on_error=False) if names else []
        for name, life, length in zip(names, said[::2], said[1::2], strict=True):
            if life == -1 and isinstance(length, int) and 0 < length <= checkpoints.MOST_STATE_BYTES:
                raw = client.get(name)
                if isinstance(raw, bytes):
                    yield name, raw
        if cursor == 0:
            return


def _judged_states(row: OldKeys, found: Mapping[str, int], links: Mapping[str, str], met: Mentions | None) -> OldKeys:
    if met is None:
        return row
    over = [task_id for task_id in found if task_id not in met.held and links[task_id] not in met.held]
    return replace(
        row,
        count=len(over),
        size_bytes=sum(found[task_id] for task_id in over),
        in_use=len(found) - len(over),
        unseen=met.held.unseen if found else (),
    )


# --- keys of the application ---


def _scans(broker: Broker, keep_s: float) -> tuple[list[AppRemains], list[Coverage]]:
    """Return a scan for each name that the target has; one that cannot be made is silent."""
    found, unread = [], []
    for name, each in broker.target.app_keys.items():
        try:
            scan = app_scan.scan(broker, name, older_than_s=keep_s)
        except OpsError as error:
            unread.append(Coverage(place=f"keys in {each.shown}", seen=0, silent=1, note=error.message))
            continue
        found.append(AppRemains(scan=scan, keep_s=keep_s))
        if scan.left:
            note = f"About {scan.left:,} keys were not visited."
            unread.append(Coverage(place=f"keys in {each.shown}", seen=scan.visited, silent=scan.left, note=note))
    return found, unread


def _judged_app(broker: Broker, row: AppRemains, met: Mentions | None) -> AppRemains:
    if met is None:
        return row
    lists = met.lists if row.scan.fingerprint == broker.fingerprint else ()
    return replace(row, rows=tuple(row.scan.over(met.held, lists)), unseen=met.held.unseen)


# --- the archive ---


def _reports(now: float) -> OldReports:
    """Count the runs of this machine's archive that are old."""
    stamp = f"{datetime.fromtimestamp(now - REPORTS_AFTER_S, UTC):%Y%m%dT%H%M%SZ}"
    count = size = kept = 0
    for folder in _folders():
        if folder.name >= stamp:
            continue
        files = _files_of(folder)
        count, size = count + 1, size + sum(files.values())
        kept += bool(files.keys() - _SAID)
    return OldReports(count=count, size_bytes=size, kept=kept, older_than_s=REPORTS_AFTER_S)


def _files_of(folder: Path) -> dict[str, int]:
    try:
        return {each.name: each.lstat().st_size for each in folder.iterdir() if not each.is_dir()}
    except OSError:
        return {}


def _blind(found: Remains) -> Iterator[Coverage]:
    """Yield a row for what could not be told: a folder that is not there, keys whose age the server does not keep."""
    if found.groups and found.groups.undated:
        note = f"The server does not say how long {found.groups.undated:,} of them have been idle: they are left alone."
        yield Coverage(place="keys of groups", seen=0, silent=found.groups.undated, note=note)
    for each in found.files:
        if each.problem:
            yield Coverage(place=f"files {each.name}", seen=0, silent=1, note=each.problem)
