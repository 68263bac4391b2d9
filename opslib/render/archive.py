"""The folders of the archived runs → their index, their checksums, and a run found by its id."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opslib import records, redact
from opslib.errors import Exit, NotFound, OpsError
from opslib.findings import Verdict
from opslib.folders import MANIFEST, NOTEBOOK, PATTERN, RECORD, REPORT, folder
from opslib.records import RunRecord
from opslib.render import words
from opslib.render.page import opslib_version, page
from opslib.render.words import SIGNS

if TYPE_CHECKING:
    from opslib.catalog import Parameter

#: Runs on the index page; index.jsonl has them all.
NEWEST = 500


def keep(root: Path, run: Path, record: RunRecord) -> Path | None:
    """
    Write a run's report, then its checksums and the index; return the report's path.

    None means that the disk took no report; without an index or a manifest a run still has its report.
    """
    from opslib.render.report import write_report

    report = None
    with suppress(OSError):
        report = write_report(run / REPORT, run / NOTEBOOK, record, declared=_declared(record.runbook))
        seal(run)
        index(root)
    return report


def seal(run: Path) -> Path:
    """Write the checksums of a run's files, as `sha256sum --check` reads them; return the manifest."""
    lines = [f"{_sha256(path)}  {path.name}" for path in _files(run)]
    records.write_atomically(run / MANIFEST, "".join(f"{line}\n" for line in lines).encode())
    return run / MANIFEST


def verify(run: Path) -> list[str]:
    """Return what no longer agrees with a run's manifest, a sentence each; nothing if all is as it was sealed."""
    if not (run / MANIFEST).is_file():
        return ["The run has no manifest; it was never sealed."]
    lines = (run / MANIFEST).read_text(encoding="utf-8").splitlines()
    sealed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {path.name: path for path in _files(run)}
    return [
        *(f"{name} is missing." for name in sealed if name not in there),
        *(f"{name} was added later." for name in there if name not in sealed),
        *(f"{name} was changed." for name, path in there.items() if name in sealed and _sha256(path) != sealed[name]),
    ]


def runs(root: Path) -> Iterator[RunRecord]:
    """Iterate over the archived runs, the newest first; a run without a readable record comes as a failed one."""
    return (record for _, record in entries(root))


def entries(root: Path, since: str = "") -> Iterator[tuple[Path, RunRecord]]:
    """
    Iterate over the archived runs with their folders, as `runs` does.

    Args:
        since: What the oldest id begins with or comes after, such as "20261121T"; empty for all.
    """
    newer = itertools.takewhile(lambda run: run.name >= since, folders(root))
    return ((run, _record(run)) for run in newer)


def find(root: Path, run_id: str = "") -> RunRecord:
    """
    Return the record of an archived run.

    Args:
        run_id: The newest run where empty.

    Raises:
        NotFound: If there is none, or the id is none.
    """
    if not run_id:
        newest = next(runs(root), None)
        if newest is None:
            raise NotFound("No run has been archived yet.", hint="`ops run stuck-tasks` makes the first.")
        return newest
    run = folder(root, run_id)
    if run.is_dir() and not run.is_symlink() and run.resolve().is_relative_to(root.resolve()):
        return _record(run)
    known = [path.name for path in itertools.islice(folders(root), 5000)]
    close = difflib.get_close_matches(run_id, known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]}?" if close else "`ops reports list` shows the archived runs."
    raise NotFound(f"No archived run has the id {run_id}.", hint=hint)


def index(root: Path) -> Path:
    """
    Write index.jsonl and index.html from the records, the newest first; return the page.

    Two runs that end together wait for each other, so that neither is missing.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(root):
        archived = [(run, _record(run)) for run in folders(root)]
        lines = (json.dumps(redact.values(_line(root, run, record)), ensure_ascii=False) for run, record in archived)
        records.write_atomically(
            root / "index.jsonl", "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        )
        records.write_atomically(root / "index.html", _page(root, archived).encode("utf-8", "backslashreplace"))
    return root / "index.html"


# --- folders ---


def folders(root: Path) -> Iterator[Path]:
    """Iterate over the folders of the runs; names sort by time, so nothing has to be opened."""
    for year in _below(root, r"[0-9]{4}"):
        for month in _below(year, r"[0-9]{2}"):
            for day in _below(month, r"[0-9]{2}"):
                yield from _below(day, PATTERN)


def _below(path: Path, pattern: str) -> list[Path]:
    if not path.is_dir():
        return []
    named = (each for each in path.iterdir() if re.fullmatch(pattern, each.name))
    return sorted(
        (each for each in named if each.is_dir() and not each.is_symlink()), key=lambda each: each.name, reverse=True
    )


def _files(run: Path) -> list[Path]:
    """Return a run's files but the manifest; a name with a dot in front is one that is being written."""
    return sorted(
        path for path in run.iterdir() if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    )


def _declared(runbook: str) -> tuple[Parameter, ...]:
    from opslib import catalog

    try:
        return catalog.find(runbook).parameters
    except OpsError:
        return ()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    # The lock file stays: removing it would let a third run lock another file of the same name.
    with (root / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the index ---


def _record(run: Path) -> RunRecord:
    try:
        return records.read(run / RECORD)
    except (OSError, msgspec.MsgspecError):
        stamp, _, rest = run.name.partition("-")
        started = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[9:11]}:{stamp[11:13]}:{stamp[13:15]}Z"
        return RunRecord(
            run_id=run.name,
            runbook=rest.rpartition("-")[0],
            target="",
            operator="",
            started_at=started,
            verdict=str(Verdict.FAILED),
            exit_code=int(Exit.FAILED),
            error={"type": "NoRecord", "message": "This run left no readable record.", "hint": ""},
        )


def _line(root: Path, run: Path, record: RunRecord) -> dict[str, object]:
    return {
        "run_id": record.run_id,
        "runbook": record.runbook,
        "target": record.target,
        "operator": record.operator,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "verdict": words.verdict_of(record),
        "exit_code": record.exit_code,
        "dry_run": record.dry_run,
        "headline": words.headline(record),
        "findings": len(record.findings),
        "remaining": len(record.remaining),
        "applied": words.done(record)["applied"],
        "report": _link(root, run),
        "schema_version": record.schema_version,
    }


def _link(root: Path, run: Path) -> str:
    """Return the report's path from the index; the folder where there is no report."""
    path = run / REPORT
    return (path if path.is_file() else run).relative_to(root).as_posix()


def _page(root: Path, archived: list[tuple[Path, RunRecord]]) -> str:
    newest = archived[:NEWEST]
    days = [_day(root, day, list(group)) for day, group in itertools.groupby(newest, key=lambda pair: pair[0].parent)]
    older = len(archived) - len(newest)
    return page(
        "archive.html.j2",
        headline=f"{words.plural(len(archived), 'run')} archived. {_last(archived)}".strip(),
        days=days,
        older=f"{words.plural(older, 'older run')} not shown here; index.jsonl has them all." if older else "",
        written=words.clock(records.now()),
        version=opslib_version(),
    )


def _last(archived: list[tuple[Path, RunRecord]]) -> str:
    if not archived:
        return ""
    record = archived[0][1]
    return f"The latest, {words.shown(record.runbook)}, ended {words.badge(record)[1]}."


def _day(root: Path, path: Path, archived: list[tuple[Path, RunRecord]]) -> dict[str, object]:
    day = date(int(path.parent.parent.name), int(path.parent.name), int(path.name)) if _is_date(path) else None
    return {
        "title": f"{day:%A}, {day.day} {day:%B %Y}" if day else "Without a date",
        "figures": words.plural(len(archived), "run"),
        "runs": [_run(root, run, record) for run, record in archived],
    }


def _is_date(path: Path) -> bool:
    try:
        date(int(path.parent.parent.name), int(path.parent.name), int(path.name))
    except ValueError:
        return False
    return True


def _run(root: Path, run: Path, record: RunRecord) -> dict[str, str]:
    word, badge = words.badge(record)
    return {
        "word": word,
        "badge": badge,
        "sign": SIGNS[word],
        "time": words.clock(record.started_at)[11:16],
        "runbook": words.shown(record.runbook, 80),
        "target": words.shown(record.target, 80) if record.target else "",
        "headline": words.shown(words.headline(record)),
        "mode": words.mode(record),
        "took": words.took(record),
        "link": _link(root, run),
    }
