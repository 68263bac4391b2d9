"""Values and records → the words, signs and figures that tables, cards, reports and the index share."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opslib import redact
from opslib.durations import spell
from opslib.errors import Exit
from opslib.findings import ORDER, Severity, Verdict
from opslib.plan import Kind, Status

if TYPE_CHECKING:
    from opslib.records import RunRecord

Row = Mapping[str, Any]

#: A sign beside each word, so that colour alone never carries it. None of them has an emoji form.
SIGNS = {
    "healthy": "✓",
    "fine": "✓",
    "not judged": "–",
    "attention": "▲",
    "critical": "✕",
    "unknown": "?",
    "failed": "⊘",
    "unverified": "?",
    "applied": "✓",
    "skipped": "–",
    "gone": "✓",
    "remains": "▲",
    "new": "+",
    "worse": "✕",
    "better": "✓",
    "answered": "✓",
    "no answer": "–",
    "whole": "✓",
    "partly": "?",
    "there": "●",
    "not there": "–",
    "not seen": "?",
    "done": "✓",
    "in order": "✓",
    "planned": "▲",
    "not all done": "▲",
}

#: What each exit code says, as docs/exit-codes.md does.
EXITS = {
    Exit.DONE: "nothing needs a person",
    Exit.ATTENTION: "a person is needed",
    Exit.USAGE: "wrong usage or configuration",
    Exit.FAILED: "the runbook itself failed",
    Exit.CANNOT_SEE: "too little was seen for a verdict",
    Exit.REFUSED: "refused by a safety rule",
    Exit.INTERRUPTED: "interrupted",
}

#: Beyond this a value is cut, and its length said: a task name may be 10 KB.
LONGEST = 400
#: Numbers that name something: nobody writes a pid with a comma.
_NAMES = frozenset({"pid", "database", "port"})
_CENTURY_S = 100 * 365.25 * 86400
#: Clocks differ by a little; further ahead than this is worth a word.
_AHEAD_S = 5.0


def row_of(thing: object) -> Row:
    """Return a facts row, a finding or a record's JSON row as a mapping."""
    if isinstance(thing, Mapping):
        return thing
    if is_dataclass(thing):
        return {field.name: getattr(thing, field.name) for field in fields(thing)}
    raise TypeError(f"{type(thing).__name__} is not a row")


def shown(value: object, longest: int = LONGEST) -> str:
    """Return any value as one line of harmless text: no credential, no control character, not endless."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, datetime):
        return clock(value)
    # Lines become one before the mask, or "\x0a" would show where a space belongs.
    text = redact.plain(" ".join(str(value).splitlines()) if isinstance(value, str) else compact(value))
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def maybe(value: object) -> str:
    """Return a value as `shown` does, and nothing for nothing."""
    return "" if value is None or value == "" else shown(value)


def count(value: object) -> str:
    """Return a number with separators; any other value as it is."""
    try:
        return f"{value:,}" if isinstance(value, int) else str(value)
    except ValueError:
        return "a number of more than 4,300 digits"


def compact(value: object) -> str:
    """Return a collection as short JSON."""
    try:
        plain = list(value) if isinstance(value, (set, frozenset)) else value
        return json.dumps(plain, ensure_ascii=False, default=str, separators=(", ", ": ")).strip('"')
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__} that cannot be shown"


def age(value_s: object) -> str:
    """Return seconds as a person says them; "unknown" for what is no number, "in the future" below zero."""
    if not isinstance(value_s, (int, float)) or not math.isfinite(value_s):
        return "unknown"
    if value_s < -_AHEAD_S:
        return "in the future"
    return "over 100 years" if value_s > _CENTURY_S else spell(float(value_s))


def size(value_bytes: object) -> str:
    """Return bytes as "1.5 GiB"; a dash for none."""
    if not isinstance(value_bytes, (int, float)) or not math.isfinite(value_bytes) or value_bytes <= 0:
        return "–"
    from humanize import naturalsize

    return naturalsize(value_bytes, binary=True)


def clock(value: object) -> str:
    """Return an instant (datetime, epoch seconds or ISO text) as "2026-11-21 02:15:00 UTC"; "" for none."""
    instant = moment(value)
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC" if instant else ""


def moment(value: object) -> datetime | None:
    """Return an instant as an aware UTC datetime; None for what is none."""
    try:
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None


def plural(number: int, noun: str) -> str:
    """Return "1 finding", "2 findings"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def evidence(facts: object) -> str:
    """Return a finding's evidence on one line; the unit in a fact's name decides how it reads."""
    if not isinstance(facts, Mapping):
        return ""
    known = ((str(name), value) for name, value in facts.items() if value is not None and value != "")
    return " · ".join(f"{_label(name)} {_fact(name, value)}" for name, value in known)


def _label(name: str) -> str:
    for unit in ("_s", "_bytes", "_at"):
        name = name.removesuffix(unit)
    return redact.plain(name.replace("_", " "))


def _fact(name: str, value: object) -> str:
    if name.endswith("_s") and isinstance(value, (int, float)):
        return age(value)
    if name.endswith("_bytes"):
        return size(value)
    if name in _NAMES:
        return shown(str(value), 160)
    if name.endswith("_at") and moment(value):
        return clock(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return shown(", ".join(value) or "none", 160)
    if isinstance(value, Mapping) and all(isinstance(number, int) for number in value.values()):
        return shown(", ".join(f"{each}: {number:,}" for each, number in value.items()) or "none", 160)
    return shown(value, 160)


def by_severity(findings: Iterable[object]) -> str:
    """Return "6 critical, 3 attention"; "none" for no findings."""
    counts = Counter(str(row_of(finding).get("severity", "")) for finding in findings)
    return ", ".join(f"{counts[word]:,} {word}" for word in ORDER if counts[word]) or "none"


def verdict_of(record: RunRecord) -> str:
    """Return the record's verdict, or "failed" for a word that is none."""
    return record.verdict if record.verdict in set(Verdict) else str(Verdict.FAILED)


def badge(record: RunRecord) -> tuple[str, str]:
    """
    Return the word that a run's colour and sign follow, and what its badge says.

    Healthy is only ever said of a whole deployment. Certain tasks are in order; a change is planned, done, or not all
    done, whatever else is wrong.
    """
    word = verdict_of(record)
    if record.error or record.scope == "deployment":
        return word, word
    if record.scope == "change":
        if record.exit_code == Exit.CANNOT_SEE:
            return "unknown", "unknown"
        if record.exit_code == Exit.DONE:
            return "healthy", "done"
        return "attention", "planned" if record.dry_run else "not all done"
    return word, "in order" if word == Verdict.HEALTHY else word


def elsewhere(finding: Row, of: str) -> str:
    """Return the runbook that answers a finding where that is not the one that found it; `of` is empty: not asked."""
    runbook = str(finding.get("runbook") or "")
    return shown(runbook, 60) if of and runbook and runbook != of else ""


def actions_of(record: RunRecord) -> list[Row]:
    """Return the rows of the record's plan."""
    actions = record.plan.get("actions")
    return [row for row in actions if isinstance(row, Mapping)] if isinstance(actions, list) else []


def done(record: RunRecord) -> Counter[str]:
    """Return how many actions were applied, skipped and failed."""
    return Counter(str(row.get("status", "")) for row in record.outcomes)


#: What no undo puts back, or what changed nothing.
_NOT_UNDONE = {Kind.UNDO, Kind.DROP, Kind.REVOKE, Kind.AWAIT, Kind.SHUTDOWN, Kind.CANARY, Kind.SAVE}


def undoable(record: RunRecord) -> bool:
    """Whether a run made a change that can be put back: a revoke cannot, nor a stop that found no message to keep."""
    return bool(_to_undo(record))


def way_back(record: RunRecord) -> str:
    """Return what an undo needs besides, as a sentence; empty where it needs nothing."""
    revoked = _to_undo(record) & {Kind.STOP}
    return "A node that remembers a stopped task would drop it at once: restart the nodes before." if revoked else ""


def _to_undo(record: RunRecord) -> set[object]:
    """Return the kinds of change that were made and can be put back."""
    kinds_of = {row.get("id"): row.get("kind") for row in actions_of(record)}
    made = {
        kinds_of.get(row.get("action"))
        for row in record.outcomes
        if row.get("status") == Status.APPLIED and "0 copies quarantined" not in str(row.get("steps"))
    }
    return made - {None, *_NOT_UNDONE}


def headline(record: RunRecord) -> str:
    """Return the run in one sentence; a record of another version may not have what the sentence is made of."""
    try:
        return record.headline
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{plural(len(record.remaining), 'finding')}."


def changed(record: RunRecord) -> bool:
    """Whether the run was allowed to change something and tried to."""
    return not record.dry_run and bool(record.outcomes)


def changes(record: RunRecord) -> tuple[str, str]:
    """
    Say whether anything was changed: a few words, and what stands behind them.

    Only a run that ended may say that nothing was changed while it was allowed to change something.
    """
    gates = _gates(record)
    planned, outcomes = [row for row in actions_of(record) if row.get("id") not in gates], _made(record)
    applying = _may_change(record)
    if applying and record.error and not outcomes and record.exit_code == Exit.USAGE:
        return "None made", "What was asked for cannot be done, so nothing was begun."
    if applying and record.error and not outcomes:
        return "Not known", "The run stopped while it was allowed to change something."
    if applying:
        applied = outcomes[Status.APPLIED]
        others = (Status.UNVERIFIED, Status.SKIPPED, Status.FAILED)
        rest = [f"{outcomes[word]:,} {word}" for word in others if outcomes[word]]
        of = f"of {plural(len(planned), 'planned change')}" if planned else "The plan was empty."
        return (f"{applied:,} made" if applied else "None made"), ", ".join([of, *rest]) if planned else of
    if planned:
        return "None made", f"Dry run; {len(planned):,} would be: {kinds(planned)}"
    return "None made", "Dry run; nothing was planned."


def _gates(record: RunRecord) -> set[object]:
    return {row.get("id") for row in actions_of(record) if row.get("kind") == Kind.AWAIT}


def _made(record: RunRecord) -> Counter[str]:
    """Return what became of the changes: a gate that was passed changed nothing; that one stayed closed is told."""
    gates, quiet = _gates(record), {Status.APPLIED, Status.SKIPPED}
    return Counter(
        str(row.get("status", ""))
        for row in record.outcomes
        if row.get("action") not in gates or row.get("status") not in quiet
    )


def kinds(actions: Iterable[Row]) -> str:
    """Return the counts of a plan in words: "restore 4, stop 2"."""
    counts = Counter(shown(action.get("kind"), 40) for action in actions)
    return ", ".join(f"{kind} {number:,}" for kind, number in counts.items())


def _may_change(record: RunRecord) -> bool:
    """Whether a run was allowed to change something; the draft of one that was cut off knows it by its parameters."""
    return not record.dry_run or record.parameters.get("dry_run") is False


def mode(record: RunRecord) -> str:
    """Return what the run was allowed to do and did, as one line beside the verdict."""
    made, _ = changes(record)
    if made == "Not known":
        return "Stopped while applying: what was changed is not known"
    if made == "None made" and record.error and _may_change(record):
        return "Stopped: nothing was changed"
    if made == "None made":
        return "Dry run: nothing was changed" if record.dry_run else "Applied: nothing was changed"
    return f"Applied: {plural(_made(record)[Status.APPLIED], 'change')} made"


def took(record: RunRecord) -> str:
    """Return how long the run took; "" where an end is missing."""
    start, end = moment(record.started_at), moment(record.finished_at)
    return age((end - start).total_seconds()) if start and end else ""


def exit_meaning(code: int) -> str:
    """Return an exit code with its meaning."""
    meaning = EXITS.get(Exit(code)) if code in set(Exit) else None
    return f"{code}: {meaning}" if meaning else str(code)


def worst_first(findings: Iterable[object]) -> list[Row]:
    """Return findings as rows, the worst first; an unknown word ranks with unknown."""
    order = {str(word): rank for rank, word in enumerate(ORDER)}
    unknown = order[Severity.UNKNOWN]
    return sorted(
        (row_of(finding) for finding in findings), key=lambda row: order.get(str(row.get("severity")), unknown)
    )
