"""What is of one task → one sentence that says how it stands, and the step that comes next."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from opslib.durations import spell
from opslib.facts.messages import UnackedMessage, WaitingMessage
from opslib.facts.system import HeldTask
from opslib.findings import Severity
from opslib.render import trace
from opslib.render.trace import Trace, shown

#: An id that can be pasted into a shell as it stands.
_PLAIN = re.compile(r"\w[\w.:@+=-]{0,199}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """
    How a task stands.

    Attributes:
        sentence: Where it is, what holds it up, when it moves next.

        step: What to do; empty commands where there is nothing to type.

        command: The command that does it.
    """

    task_id: str
    task: str
    sentence: str
    step: str
    command: str = ""


def tell(of: Trace) -> Story:
    """Return a task's sentence and its next step."""
    step, command = _next(of)
    return Story(task_id=of.task_id, task=of.task, sentence=sentence(of), step=step, command=command)


# --- the sentence ---


def sentence(of: Trace) -> str:
    """
    Say how a task stands, by where it is farthest from its end.

    PENDING is never said of where it is: for Celery it means "no result is stored", which is true of an id that never
    existed.
    """
    here = _in_flight(of)
    if len(here) > 1:
        said = f"in {len(here)} places at once: {trace.several(here)}"
    elif here:
        said = here[0]
    else:
        return f"{_at_rest(of)}."
    return f"{said}{_besides(of)}."


def _in_flight(of: Trace) -> list[str]:
    """Return what is said of each place from which it can still be run, each once."""
    nodes = [_held(of, task) for task in of.held]
    unowned = [_unowned(of, row) for row in of.unacked] if not of.held else []
    return list(dict.fromkeys([*nodes, *unowned, *(_waiting(of, row) for row in of.waiting)]))


def _held(of: Trace, task: HeldTask) -> str:
    node = shown(task.node)
    if task.place == "active":
        since = f" for {spell(of.now - task.started_at)}" if task.started_at else ""
        long = ", which is longer than it may run" if "stuck-active" in of.findings else ""
        attempt = f"; attempt {of.retries + 1:,}" if of.retries else ""
        return f"active on {node}{since}{long}{attempt}"
    if task.place == "scheduled":
        return _scheduled(of, task)
    delivered = next((row.delivered_at for row in of.unacked if row.delivered_at), None)
    since = f"; it was delivered {trace.ago(delivered, of.now)}" if delivered else ""
    retried = f", for attempt {of.retries + 1:,}" if of.retries else ""
    return f"reserved on {node}{retried}, which has not begun it{since}"


def _scheduled(of: Trace, task: HeldTask) -> str:
    node = shown(task.node)
    if of.result is not None and of.result.state == "REVOKED":
        return f"revoked; {node} drops it when its time comes"
    left_s = None if task.eta_at is None else task.eta_at - of.now
    due = "is due" if left_s is None or left_s <= 0 else f"is due in {spell(left_s)}"
    if of.retries:
        times = "once" if of.retries == 1 else f"{of.retries:,} times"
        return f"retried {times}; the next attempt {due} on {node}"
    at = f" at {trace.clock(task.eta_at, of.now)}" if task.eta_at and left_s and left_s > 0 else ""
    twice = "; it will be delivered again before that" if "scheduled-beyond-visibility" in of.findings else ""
    return f"scheduled on {node}, {due.removeprefix('is ')}{at}{twice}"


def _unowned(of: Trace, row: UnackedMessage) -> str:
    """Say how a delivered message stands that no answering node has."""
    judged = of.findings.get("orphaned-unacked")
    when = "at an unknown time" if row.delivered_at is None else trace.ago(row.delivered_at, of.now)
    if judged is None:
        if row.task_id in {task.task_id for task in (of.seen.earlier.held if of.seen.earlier else ())}:
            return f"delivered {when}, and held by a node until a moment ago"
        looks = "it may be on its way into one" if of.seen.earlier else "one look cannot tell whether it is lost"
        return f"delivered {when}, and no node that answered has it; {looks}"
    if judged.severity is Severity.UNKNOWN or of.has_ended:
        return _lowered(judged.message)
    lost = f"delivered {when} to a node that is gone"
    if row.delivered_at is None:
        return f"{lost}, and missing from the index; nothing will ever run it unless it is restored"
    back_at = row.delivered_at + of.seen.visibility_timeout_s
    if back_at <= of.now:
        return f"{lost}; nothing runs it until Celery gives it back, which is overdue"
    return f"{lost}; nothing will run it before {trace.clock(back_at, of.now)} unless it is restored"


def _waiting(of: Trace, row: WaitingMessage) -> str:
    queue = shown(row.queue)
    retried = f"retried {of.retries:,} time{'s' * (of.retries != 1)}, and " if row.retries else ""
    said = f"{retried}waiting in {queue}, {trace.turn(row, of.seen)}"
    if row.expires_at is not None and row.expires_at <= of.now:
        return f"{said}; it expired {trace.ago(row.expires_at, of.now)}, so the node that takes it drops it"
    alone = of.subjects.get(("queue-without-consumer", row.queue))
    if alone is not None:
        who = "no node that answered" if alone.severity is Severity.UNKNOWN else "no node"
        return f"{said}; {who} consumes that queue"
    if any(code == "no-workers" for code, _ in of.subjects):
        return f"{said}; no node is connected"
    if of.result is not None and of.result.state == "REVOKED":
        return f"{said}; it was revoked: a node that heard of it drops it, any other one runs it"
    due = f"; it is not due before {trace.clock(row.eta_at, of.now)}" if row.eta_at and row.eta_at > of.now else ""
    return f"{said}{due}"


def _at_rest(of: Trace) -> str:
    """Say how a task stands that nothing will run by itself."""
    said = []
    if of.quarantined:
        said.append(f"taken out of circulation {trace.several([trace.quarantined(row) for row in of.quarantined])}")
    if of.dead:
        said.append(f"failed for good; its letter is {trace.several([trace.dead(row, of.now) for row in of.dead])}")
    if said:
        return "; ".join(said) + (f"; its result says {shown(of.result.state)}" if of.result else "")
    if of.result is not None:
        return _by_result(of, of.result.state)
    blind = [f"{row.place} ({row.note.rstrip('.') or f'{row.silent:,} not seen'})" for row in of.seen.silent_places]
    if blind:
        return f"found nowhere, but not everything could be seen: {'; '.join(map(shown, blind))}"
    return "found nowhere: not waiting, not delivered, on no node, not put aside, and no result is stored"


def _by_result(of: Trace, state: str) -> str:
    why = f" ({shown(of.result.exception)})" if of.result and of.result.exception else ""
    ends = {
        "SUCCESS": "finished",
        "FAILURE": "failed",
        "REVOKED": "revoked",
        "REJECTED": "rejected",
    }
    if state in ends:
        return f"{ends[state]}: its result says {state}{why}"
    if state == "(unreadable)":
        return "a result is stored, and its state cannot be read; no message of it is left"
    judged = of.findings.get("zombie-result")
    if judged is not None:
        return _lowered(judged.message)
    return f"its result says {shown(state)}{why}, and it was in no other place when that was looked at"


def _besides(of: Trace) -> str:
    """Return what else there is of a task that can still be run, where that is a surprise."""
    said = []
    if of.has_ended and of.result and not _tells_result(of):
        said.append(f"its result says {of.result.state} already")
    if of.dead:
        said.append(f"it has a letter {trace.several([trace.dead(row, of.now) for row in of.dead])}")
    if of.quarantined:
        said.append("another copy is in quarantine")
    return "".join(f"; {each}" for each in said)


def _tells_result(of: Trace) -> bool:
    return "orphaned-unacked" in of.findings or (of.result is not None and of.result.state == "REVOKED")


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")


# --- the next step ---


def _next(of: Trace) -> tuple[str, str]:
    """Return what to do and the command for it; the first that fits, the most urgent first."""
    if not of.seen.places.get(of.task_id):
        return _find_it(of)
    for code, step, words in (
        ("stuck-active", "It holds up a slot of its node. See what it waits for, then stop it:", ("task", "stop")),
        ("retry-loop", "Nothing but a stop ends the loop:", ("task", "stop")),
        (
            "zombie-result",
            "Nothing will finish it. Remove the result, and send the task again if it is needed:",
            ("task", "cleanup"),
        ),
    ):
        judged = of.findings.get(code)
        if judged is not None and judged.severity is not Severity.UNKNOWN:
            return step, _command(of, *words)
    if "zombie-result" in of.findings:
        return "It cannot be told whether it is lost. See which node does not answer:", _on_target(of, "workers")
    if "duplicate-task-id" in of.findings:
        return "Every copy runs. If the task must not run twice, stop it:", _command(of, "task", "stop")
    return _move_it(of)


def _find_it(of: Trace) -> tuple[str, str]:
    blind = {row.place for row in of.seen.silent_places}
    if "workers" in blind:
        return "A node that is silent may have it. See which, and look again:", _on_target(of, "workers")
    if "set aside" in blind:
        return "It may be in what an interrupted run has set aside: resume that run, and look again.", ""
    if blind:
        return "Give this user the rights that are missing, or raise max_keys, and look again.", ""
    ended = "It ended, and its result is gone or was never kept"
    return f"Look for it in the application's log. {ended}; or it was lost: only then send it again.", ""


def _move_it(of: Trace) -> tuple[str, str]:
    orphaned = of.findings.get("orphaned-unacked")
    if of.unacked and not of.held:
        if orphaned is None:
            return "Look again in a moment.", _command(of, "task", "status")
        if orphaned.severity is Severity.UNKNOWN:
            return "Restoring it without proof may run it twice. See which node does not answer:", _on_target(
                of, "workers"
            )
        if of.result is not None and of.result.state == "REVOKED":
            return (
                "It was revoked, and its message is there: it runs once Celery gives it back. If it must not:",
                _command(of, "task", "stop"),
            )
        if of.has_ended:
            return "It has run. So that it does not run again, take its message away:", _command(of, "task", "stop")
        return "Put it back into its queue, next to be served:", _on_target(of, "run", "stuck-tasks")
    if of.waiting and not of.held:
        return _serve_it(of)
    if of.retries:
        return "Wait for its next attempt; whether it loops, this tells:", _command(
            of, "task", "check", "--watch", "10s"
        )
    if "scheduled-beyond-visibility" in of.findings:
        return (
            "It may run twice, once for each delivery. If it must not, stop it, and send it nearer to its time:",
            _command(of, "task", "stop"),
        )
    if of.held:
        return "Nothing to do.", ""
    return _let_it_rest(of)


def _serve_it(of: Trace) -> tuple[str, str]:
    row = of.waiting[0]
    if of.result is not None and of.result.state == "REVOKED":
        return "If it must not run at all:", _command(of, "task", "stop")
    if row.expires_at is not None and row.expires_at <= of.now:
        return "It will not run any more. Send it again, with a later expiry, if it is needed.", ""
    if ("queue-without-consumer", row.queue) in of.subjects:
        return f"Start a worker that consumes {shown(row.queue)} (-Q); these are there:", _on_target(of, "workers")
    if any(code == "no-workers" for code, _ in of.subjects):
        return "Start the workers; their logs say why they ended.", ""
    return "Wait: it is served after those before it. If the queue does not move:", _on_target(
        of, "run", "queue-backlog"
    )


def _let_it_rest(of: Trace) -> tuple[str, str]:
    if of.quarantined:
        run_id = of.quarantined[0].run_id
        safe = run_id if _PLAIN.fullmatch(run_id) else "RUN_ID"
        return "That run put it aside, with whatever else it took. To put all of that back:", f"ops undo {safe}"
    if of.dead:
        return "Read what its letter says, mend the cause, and only then send it again.", ""
    if of.has_ended and of.result and of.result.state == "SUCCESS":
        return "Nothing to do.", ""
    if of.has_ended:
        return "It has ended, and no message of it is left: nothing runs it again by itself.", ""
    return "Look again in a moment.", _command(of, "task", "status")


def _command(of: Trace, *words: str) -> str:
    """Return a command about this task; an id that a shell would take apart is left to be filled in."""
    verb, options = words[:2], words[2:]
    return _on_target(of, *verb, of.task_id if _PLAIN.fullmatch(of.task_id) else "TASK_ID", *options)


def _on_target(of: Trace, *words: str) -> str:
    return shlex.join(["ops", *words, "--target", of.seen.target])
