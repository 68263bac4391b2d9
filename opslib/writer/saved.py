"""An order to save → the server's own BGSAVE, awaited until LASTSAVE proves it; nothing of the data is changed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opslib import redact
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import nodes, points

if TYPE_CHECKING:
    from redis import Redis

    from opslib.writer.primitive import Primitive

#: A save that takes longer is not waited for any more; it goes on by itself.
MOST_S = 3600.0
_LOOK_S = 0.1
#: How long a save that was ordered may take to begin, where nothing stands before it.
_BEGINS_S = 5.0


def save(primitive: Primitive, action: Action) -> Outcome:
    """
    Have the server save its data in the background, and wait until it has.

    BGSAVE answers at once. That it was made, only LASTSAVE says: it is of this save if it is later than the second in
    which that was ordered, and the server is still the same process.
    """
    from redis.exceptions import ResponseError

    client = primitive.broker.writes
    deadline = time.monotonic() + MOST_S
    steps = []
    if _told(client)["running"]:
        steps.append("Waited for a save that was running already: it began before this one was asked for.")
        if not _until_idle(client, deadline):
            return _failed(action, "Another save was running, and did not end within an hour.", steps)
    server = _told(client)["run_id"]
    before = _next_second(primitive, client)
    nodes.write_down(primitive, Kind.SAVE, [{"a": action.id, "s": action.subject, "node": "", "at": before}], op="note")
    points.passed("before-save")
    try:
        client.bgsave(schedule=True)
    except ResponseError as error:
        return _failed(action, _refusal(error), steps)
    return _awaited(action, client, server, before, deadline, steps)


def _awaited(action: Action, client: Redis, server: str, before: int, deadline: float, steps: list[str]) -> Outcome:
    began, idle_since = time.monotonic(), time.monotonic()
    while time.monotonic() < deadline:
        told = _told(client)
        if told["run_id"] != server:
            return _failed(action, "The server was restarted while it saved; what it has saved is not known.", steps)
        if told["running"] or told["rewriting"]:
            idle_since = time.monotonic()
        elif told["saved_at"] > before:
            took = time.monotonic() - began
            when = datetime.fromtimestamp(told["saved_at"], UTC)
            reason = f"Saved at {when:%Y-%m-%d %H:%M:%S} UTC, as LASTSAVE says; it took {took:.1f} s."
            return Outcome(action=action, status=Status.APPLIED, reason=reason, steps=tuple(steps))
        elif told["failing"]:
            why = (
                "The save failed; the server's log says why: a full disk, or a folder that it may not write, as a rule."
            )
            return _failed(action, why, steps)
        elif time.monotonic() - idle_since > _BEGINS_S:
            return _failed(action, "The server accepted the order, and has neither saved nor failed since.", steps)
        time.sleep(_LOOK_S)
    return _failed(action, "The save did not end within an hour; it goes on by itself.", steps)


def _failed(action: Action, reason: str, steps: list[str]) -> Outcome:
    return Outcome(action=action, status=Status.FAILED, reason=reason, steps=tuple(steps))


def _refusal(error: Exception) -> str:
    """Return why a server does not save, as a sentence."""
    said = redact.plain(" ".join(str(error).split()))[:200].rstrip(".")
    if "no permissions" in said or "NOPERM" in said:
        return f"The user may not save: {said}. It needs the right +bgsave."
    if "unknown command" in said:
        return (
            "The server has no BGSAVE, as a managed service has none: take the snapshot with the service's own tools."
        )
    if "fork" in said.lower():
        return f"The server could not fork: {said}. It has too little memory for a copy of itself."
    return f"The server refused to save: {said}."


def _until_idle(client: Redis, deadline: float) -> bool:
    while time.monotonic() < deadline:
        if not _told(client)["running"]:
            return True
        time.sleep(_LOOK_S)
    return False


def _next_second(primitive: Primitive, client: Redis) -> int:
    """Wait until LASTSAVE, which counts whole seconds, would be another one; return what it is."""
    before = int(_told(client)["saved_at"])
    wait_s = before + 1 - primitive.broker.server_time().timestamp()
    if 0 < wait_s <= 1:
        time.sleep(wait_s)
    return before


def _told(client: Redis) -> dict[str, Any]:
    info: dict[str, Any] = client.info()
    return {
        "run_id": str(info.get("run_id", "")),
        "running": bool(info.get("rdb_bgsave_in_progress", 0)),
        "rewriting": bool(info.get("aof_rewrite_in_progress", 0)),
        "saved_at": int(info.get("rdb_last_save_time", 0)),
        "failing": info.get("rdb_last_bgsave_status") == "err",
    }
