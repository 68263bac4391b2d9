"""Tasks that somebody wants to go on, and the states that they have saved → how they go on, or why they cannot."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opslib import checkpoints
from opslib import plan as plans
from opslib.durations import spell
from opslib.envelope import Head, head
from opslib.errors import PlanTooLarge
from opslib.facts.checkpoints import Checkpoint, Resumable
from opslib.facts.messages import UNKNOWN_TASK
from opslib.facts.system import Coverage, StoredResult
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Outcome, Plan, Status
from opslib.rewrite import fresh, resumed
from opslib.selection import ids
from opslib.symptoms import sight
from opslib.symptoms.stop_task import PLACES

#: Where a task waits whose state and dead letter name no queue: Celery's own default.
DEFAULT_QUEUE = "celery"
#: What need not be seen whole: a letter only tells more of what is known.
_UNNEEDED = frozenset({"dead letters", "server"})
_NOT_LONG_AGO_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Standing:
    """
    How one task stands.

    Attributes:
        last: The task that goes on, or would: the one that was asked for, or the last that was resumed from it.

        why_not: Why it cannot go on, as a sentence; empty if it can.

        hint: What can be done instead.

        open: Whether that could be otherwise, for something was not seen.
    """

    last: str
    why_not: str = ""
    hint: str = ""
    open: bool = False


def wanted(task_id: str) -> list[str]:
    """Return the ids in a text that a person wrote; none for those that have left a checkpoint, to be looked at."""
    return ids(task_id)


def diagnose(seen: Resumable, *, before: Resumable | None = None, outcomes: Iterable[Outcome] = ()) -> list[Finding]:
    """
    Say of each task whether it can go on from where it failed, and if not, why, and what can be done instead.

    Args:
        before: The look before they were resumed: who has finished since has left nothing to look at.

        outcomes: What became of resuming them: who goes on by now needs nothing more.
    """
    gone_on = _gone_on(outcomes)
    found = list(sight.unseen(seen))
    for task_id in seen.asked:
        standing = _standing(seen, task_id)
        if standing.why_not and not seen.named:
            continue  # nobody asked whether it can
        line = [*_line(seen, task_id), *(_line(before, task_id) if before else ())]
        if not gone_on.isdisjoint(line) and (standing.why_not or not _failed(seen, standing.last)):
            continue
        found.append(
            _not_resumable(seen, task_id, standing) if standing.why_not else _resumable(seen, task_id, standing)
        )
    return worst_first(found)


def plan(seen: Resumable, findings: Iterable[Finding], *, to: str = "", max_actions: int = 0) -> Plan:
    """
    Propose how the tasks go on whose states are all in the broker's database; for the others see `steps`.

    Args:
        to: Queue where they wait; empty for the one that each came from.

        max_actions: How many changes there may be; 0 for as many as there are.

    Raises:
        PlanTooLarge: If more are needed.
    """
    here = [f for f in findings if f.subject and all(row.fingerprint == seen.fingerprint for row in seen.of(f.subject))]
    made = steps(seen, here, to=to, max_actions=max_actions)
    return made[-1] if made else _made(seen, seen.fingerprint, [], max_actions)


def steps(seen: Resumable, findings: Iterable[Finding], *, to: str = "", max_actions: int = 0) -> list[Plan]:
    """
    Propose how tasks go on: one plan for each database that holds states, that of the broker the last.

    The message is sent by that one, once every state of its task was handed over.

    Raises:
        PlanTooLarge: If more than `max_actions` are needed.
    """
    elsewhere: dict[str, list[Action]] = {}
    here: list[Action] = []
    sends: list[Action] = []
    for finding in findings:
        if finding.code != "task-resumable" or finding.severity is Severity.UNKNOWN or not seen.named:
            continue
        rows = seen.of(finding.subject)
        new_id = _new_id(rows)
        for row in rows:
            actions = here if row.fingerprint == seen.fingerprint else elsewhere.setdefault(row.fingerprint, [])
            actions.append(_handover(row, new_id))
        sends.append(_send(rows, new_id, to=to, now=seen.taken_at.timestamp()))
    count = len(here) + len(sends) + sum(map(len, elsewhere.values()))
    if max_actions and count > max_actions:
        raise PlanTooLarge(f"The plan has {count} actions; max_actions allows {max_actions}. Nothing was changed.")
    made = [_made(seen, fingerprint, actions, 0) for fingerprint, actions in sorted(elsewhere.items())]
    return [*made, _made(seen, seen.fingerprint, [*here, *sends], 0)] if sends else []


def _made(seen: Resumable, fingerprint: str, actions: list[Action], max_actions: int) -> Plan:
    most = max_actions or len(actions)
    return plans.make(seen.target, fingerprint, actions, max_actions=most, made_at=seen.taken_at)


def why_not(seen: Resumable, plan: Plan) -> list[str]:
    """
    Return what speaks against carrying out a saved plan now, a sentence each; nothing if it can be.

    Its states were seen some time ago; since then a task may have been sent again, or resumed.
    """
    found = [f"{row.place}: {row.note or f'{row.silent:,} not seen.'}" for row in _silent(seen)]
    for action in plan:
        old_id, new_id = action.subject, action.destination
        if action.kind is Kind.SEND:
            old_id, new_id = action.source, action.subject
        elif action.kind is not Kind.HANDOVER:
            continue
        rows = seen.of(old_id)
        is_begun = any(row.resumed_as == new_id for row in rows)
        not_handed = [row for row in rows if row.resumed_as != new_id and row.fingerprint != plan.fingerprint]
        if action.kind is Kind.SEND and not_handed:
            found.append(
                f"{old_id}: its state in {not_handed[0].database} is not handed over yet: apply that run first."
            )
        elif is_begun and (places := seen.places.get(new_id, [])):
            found.append(f"{old_id} was resumed as {new_id} already, which has a {places[0]}.")
        elif not is_begun and (why := _standing(seen, old_id).why_not):
            found.append(f"{old_id}: {why}")
    return list(dict.fromkeys(found))


def meant(plan: Plan) -> list[str]:
    """Return the tasks that a plan goes on from."""
    kinds = {Kind.SEND: "source", Kind.HANDOVER: "subject"}
    return list(dict.fromkeys(getattr(action, kinds[action.kind]) for action in plan if action.kind in kinds))


def _gone_on(outcomes: Iterable[Outcome]) -> set[str]:
    """Return the tasks that were gone on from; where nothing was to be sent yet, those whose state was handed over."""
    made = list(outcomes)
    sends = [each for each in made if each.action.kind is Kind.SEND]
    if sends:
        return {each.action.source for each in sends if each.status is Status.APPLIED}
    handed = [each for each in made if each.action.kind is Kind.HANDOVER]
    return {each.action.subject for each in handed if each.status is Status.APPLIED}


# Who may go on


def _line(seen: Resumable, task_id: str) -> list[str]:
    """Return a task and those that were resumed from it, one after the other."""
    line = [task_id]
    while following := next((row.resumed_as for row in seen.of(line[-1]) if row.resumed_as), ""):
        if following in line:
            break
        line.append(following)
    return line


def _standing(seen: Resumable, task_id: str) -> _Standing:
    line = _line(seen, task_id)
    last = line[-1]
    if len(line) == 1:
        return _alone(seen, last)
    known = seen.of(last)
    result = _result(seen, last)
    if known or _circulating(seen, last) or (result and result.state != "FAILURE"):
        standing = _alone(seen, last)
        if not standing.why_not:
            return standing
        why = f"It was resumed as {last}. That one: {standing.why_not[:1].lower()}{standing.why_not[1:]}"
        return _Standing(last=last, why_not=why, hint=standing.hint, open=standing.open)
    if result:  # it failed and has left no state, so what it began from is the best there is
        return _alone(seen, line[-2])
    return _Standing(
        last=last,
        why_not=f"It was resumed as {last}, of which nothing is left: it may have finished since.",
        hint=f"`ops task find {last}` looks for it. If its work is not done, send the task anew: `ops task send`.",
        open=True,
    )


def _alone(seen: Resumable, task_id: str) -> _Standing:
    """Return how a task stands by itself."""
    rows = seen.of(task_id)

    def no(why: str, hint: str, *, is_open: bool = False) -> _Standing:
        return _Standing(last=task_id, why_not=why, hint=hint, open=is_open)

    if places := _circulating(seen, task_id):
        return no(
            f"It is {' and '.join(places)}: it goes on by itself.",
            f"Let it end, or `ops task stop {task_id}` first.",
        )
    result = _result(seen, task_id)
    if result and result.state == "SUCCESS":
        return no("It has finished: its result says SUCCESS.", "There is nothing to go on with.")
    if result and result.state == "REVOKED":
        hint = "If its work is wanted after all, send it anew: `ops task send`."
        return no("It is revoked: somebody did not want it to go on.", hint)
    if kept := [row.run_id for row in seen.quarantined if row.subject == task_id]:
        return no(
            f"A message of it is in the quarantine of run {kept[0]}.",
            f"`ops undo {kept[0]}` puts it back; or `ops quarantine drop {kept[0]}`, if it is not wanted any more.",
        )
    if not rows:
        return _without_state(seen, task_id, no)
    if problem := next((row for row in rows if row.problem), None):
        return no(f"Its {problem.name}, {problem.key}, cannot be used. {problem.problem}", _instead(seen, task_id))
    if refused := next((row.refused for row in rows if row.refused), ""):
        return no(f"It must not go on: {refused.rstrip('.')}.", _instead(seen, task_id))
    if not _message(rows, task_id, DEFAULT_QUEUE, seen.taken_at.timestamp()):
        return no(
            "What it was called with is known to nobody: not its state, no dead letter and no result says it.",
            "Send it anew: `ops task send`; what it had done is in its state, for a person to look at.",
        )
    return _Standing(last=task_id)


def _without_state(seen: Resumable, task_id: str, no: Any) -> _Standing:  # noqa: ANN401 - a function of two texts
    blind = [row.place for row in seen.silent_places if row.place.startswith("states")]
    nowhere = not seen.places.get(task_id)
    where = " It was found nowhere else either." if nowhere and not blind else ""
    why = f"No saved state of it is there: it never saved one, or that has expired, or was removed.{where}"
    standing: _Standing = no(why, _instead(seen, task_id), is_open=bool(blind))
    return standing


def _instead(seen: Resumable, task_id: str) -> str:
    """Return how a task begins at the beginning, as a sentence."""
    if any(row.task_id == task_id for row in seen.dead):
        return "`ops dead redrive` sends it again from its beginning: its dead letter was kept."
    return "Send it anew from its beginning: `ops task send TASK --args JSON`."


def _circulating(seen: Resumable, task_id: str) -> list[str]:
    return [place for place in dict.fromkeys(seen.places.get(task_id, [])) if place in PLACES]


def _result(seen: Resumable, task_id: str) -> StoredResult | None:
    return next((row for row in seen.results if row.task_id == task_id), None)


def _failed(seen: Resumable, task_id: str) -> bool:
    result = _result(seen, task_id)
    return (result is not None and result.state == "FAILURE") or any(row.failure for row in seen.of(task_id))


def _doubts(seen: Resumable, task_id: str) -> list[str]:
    """Return why nobody can say that a task is over, a sentence each; nothing if that was seen."""
    failed = _failed(seen, task_id)
    found = [
        f"{row.place}: {row.note or f'{row.silent:,} not seen.'}"
        for row in _silent(seen)
        if not (row.place == "results" and failed)
    ]
    consumers = seen.server.consumers
    if not seen.receivers and consumers != 0:
        who = "nobody can say whether connections consume" if consumers is None else "connections consume"
        found.append(f"No node listens to control messages, and {who}.")
    elif not failed and consumers is not None and consumers > max(1, seen.receivers):
        found.append(f"{consumers} connections consume, and {seen.receivers} nodes listen: one of them may run it.")
    return found


def _silent(seen: Resumable) -> list[Coverage]:
    return [row for row in seen.silent_places if row.place not in _UNNEEDED]


# What is said


def _resumable(seen: Resumable, task_id: str, standing: _Standing) -> Finding:
    last = standing.last
    rows = seen.of(last)
    doubts = _doubts(seen, last)
    from_there = f" It goes on from {task_id}." if last != task_id else ""
    elsewhere = sorted({row.database for row in rows if row.fingerprint != seen.fingerprint})
    split = f" Its state is in {elsewhere[0]}, so that is two runs, made by this command alone." if elsewhere else ""
    told = {
        "progress": next((row.progress for row in rows if row.progress is not None), None),
        "results": sum(row.results for row in rows),
        "states": [row.key for row in rows],
        "parameters_from": _source(rows),
        "result": result.state if (result := _result(seen, last)) else "none",
        "unseen": doubts,
    }
    said = f"{_how_it_ended(seen, last)} {_how_far(seen, rows)}{from_there}"
    if doubts:
        said += f" Whether it still runs is not known: {' '.join(doubts)}"
    return Finding(
        code="task-resumable",
        severity=Severity.UNKNOWN if doubts else Severity.ATTENTION,
        subject=last,
        task=_task(seen, last),
        message=said,
        evidence=told,
        hint="Look again once everything can be seen." if doubts else f"`ops task resume {last} --apply`.{split}",
        runbook="resume-task",
    )


def _not_resumable(seen: Resumable, task_id: str, standing: _Standing) -> Finding:
    blind = [row.place for row in _silent(seen)]
    return Finding(
        code="task-not-resumable",
        severity=Severity.UNKNOWN if standing.open else Severity.ATTENTION,
        subject=task_id,
        task=_task(seen, task_id),
        message=standing.why_not,
        evidence={
            "places": list(dict.fromkeys(seen.places.get(task_id, []))),
            "states": [row.key for row in seen.of(task_id)],
            "unseen": blind,
        },
        hint=standing.hint,
        runbook="resume-task",
    )


def _how_it_ended(seen: Resumable, task_id: str) -> str:
    if why := next((row.failure for row in seen.of(task_id) if row.failure), ""):
        return f"It failed: {why.rstrip('.')}."
    result = _result(seen, task_id)
    if result and result.state == "FAILURE":
        return f"It failed{f': {result.exception}' if result.exception else ''}."
    if result:
        return f"Its result says {result.state}, and nobody has it any more."
    return "Nobody has it any more, and it has no result."


def _how_far(seen: Resumable, rows: Iterable[Checkpoint]) -> str:
    said = []
    for row in rows:
        age_s = seen.taken_at.timestamp() - row.saved_at if row.saved_at is not None else None
        when = f", saved {spell(age_s)} ago" if age_s is not None and age_s >= _NOT_LONG_AGO_S else ""
        said.append(f"Its {row.name} is {_extent(row)}{when}.")
    return " ".join(said)


def _extent(row: Checkpoint) -> str:
    results = f"{row.results} result{'s' * (row.results != 1)}"
    return f"at {row.progress:.0%}, with {results}" if row.progress is not None else f"there, with {results}"


def _task(seen: Resumable, task_id: str) -> str:
    rows = (*seen.of(task_id), *seen.held, *seen.messages, *seen.results, *seen.dead)
    return next((row.task for row in rows if row.task_id == task_id and row.task), UNKNOWN_TASK)


def _source(rows: Iterable[Checkpoint]) -> str:
    found = list(rows)
    if any(row.message for row in found):
        return "its dead letter's message"
    return next((f"its {row.source}" for row in found if row.source), "nobody")


# What is done


def _new_id(rows: list[Checkpoint]) -> str:
    return checkpoints.successor(rows[0].task_id, "".join(row.sha256 for row in rows))


def _handover(row: Checkpoint, new_id: str) -> Action:
    return Action(
        kind=Kind.HANDOVER,
        subject=row.task_id,
        task=row.task,
        source=row.name,
        destination=new_id,
        copies=(Copy(place="state", key=row.key, sha256=row.sha256, life_s=row.life_s),),
        why="task-resumable",
        effect=f"Its {row.name}, {_extent(row)}, is copied for {new_id}, and each names the other.",
    )


def _send(rows: list[Checkpoint], new_id: str, *, to: str, now: float) -> Action:
    old_id = rows[0].task_id
    queue = to or next((row.queue for row in rows if row.queue), DEFAULT_QUEUE)
    message = _message(rows, new_id, queue, now)
    found = head(message)
    original = next((row.message for row in rows if row.message), b"")
    was = head(original) if original else None
    left = " It leaves its group, where nobody counts its new id." if isinstance(was, Head) and was.group else ""
    return Action(
        kind=Kind.SEND,
        subject=new_id,
        task=found.task if isinstance(found, Head) else "",
        source=old_id,
        destination=queue,
        why="task-resumable",
        message=message.decode(),
        effect=f"It waits in {queue} and goes on from there, called with what {_source(rows)} says.{left}",
    )


def _message(rows: Collection[Checkpoint], new_id: str, queue: str, now: float) -> bytes:
    """Return the message of the task that goes on: the one that failed where it was kept; empty if none can be made."""
    old_id = next(iter(rows)).task_id
    for row in rows:
        if row.message:
            try:
                return resumed(row.message, task_id=new_id, old_id=old_id, queue=queue, now=now)
            except ValueError:
                continue
    task = next((row.task for row in rows if row.task), "")
    for row in rows:
        if row.parameters and task:
            said: Mapping[str, Any] = json.loads(row.parameters)
            priority = next((each.priority for each in rows if each.priority), 0)
            new = fresh(task, said["args"], said["kwargs"], task_id=new_id, queue=queue, priority=priority)
            return resumed(_repeatable(new, new_id), task_id=new_id, old_id=old_id, queue=queue, now=now)
    return b""


def _repeatable(raw: bytes, new_id: str) -> bytes:
    """Return a new message without what chance decides: whoever confirmed a plan has to meet it again."""
    value = json.loads(raw)
    value["properties"]["reply_to"] = new_id
    return json.dumps(value).encode()
