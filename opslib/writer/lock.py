"""A broker → the one lock that allows changes to it, compared inside every script that makes one; and who holds it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from opslib import records, redact, refusals
from opslib.broker import CLIENT_NAME
from opslib.errors import LockHeld, Refused
from opslib.interrupts import deferred
from opslib.writer import audit, scripts

if TYPE_CHECKING:
    from opslib.broker import Broker

#: A holder that dies frees the broker after this.
LIFE_MS = 60_000
#: So much of the token names a lock; what is shown is more than what has to be typed.
SHOWN_ID, SHORTEST_ID = 12, 8
SHORTEST_REASON = 10
#: So many batches the stream in the broker tells of.
AUDIT_ENTRIES = 100_000
_TEXTS = ("run", "runbook", "who", "host", "started")
_BATCH = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Lock:
    """
    The right to change a broker.

    Attributes:
        token: What every script compares; whoever lost the lock cannot write any more.

        epoch: Grows with each taking of the lock.
    """

    broker: Broker
    token: str
    epoch: int

    def renew(self) -> bool:
        """Prolong the lock's life; False if somebody else holds it by now."""
        return _keep(self.broker, self.token, LIFE_MS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """
    Who holds a lock, as it says itself and as the server sees it.

    Attributes:
        lock_id: Names this taking of the lock: the beginning of its token. Empty for what is not even a string.

        run: Empty for a lock that is none of ours.

        epoch: What the numbers of its batches begin with.

        age_s: By the server's clock; None where the lock does not say when it was taken.

        remaining_ms: After which it frees itself; None for never.

        connected: Whether a client of that run is connected; None if that may not be seen.

        last_batch: The latest batch in the run's journal, with its letters, or "intent".
    """

    lock_id: str
    run: str = ""
    runbook: str = ""
    who: str = ""
    host: str = ""
    pid: int | None = None
    epoch: int | None = None
    started: str = ""
    age_s: float | None = None
    remaining_ms: int | None = None
    connected: bool | None = None
    last_batch: str = ""
    last_letters: str = ""

    def __str__(self) -> str:
        whose = f"{self.run} by {self.who} on {self.host}, since {self.started}" if self.run else "of unknown shape"
        return redact.plain(f"{whose} (lock id {self.lock_id or 'none'})").replace("\n", " ")


@contextmanager
def held(broker: Broker, *, run_id: str, plan_digest: str) -> Iterator[Lock]:
    """
    Hold the broker's lock for the time of a `with` block.

    Raises:
        LockHeld: If another run holds it; says who, where and since when.
    """
    token = secrets.token_hex(16)
    ctx = records.context()
    holder = {
        "run": run_id,
        "runbook": ctx.runbook,
        "who": ctx.operator or records.operator(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": records.now(),
        "plan_sha256": plan_digest,
    }
    keys = broker.keys
    said, detail = cast(
        "tuple[bytes, bytes]",
        broker.writes.eval(scripts.text("take_lock"), 2, keys.lock, keys.epoch, json.dumps(holder), token, LIFE_MS),
    )
    if said == b"HELD":
        raise LockHeld(
            f"{broker.target.name} is being changed by another run: {_holder(detail)}.",
            hint=f"Wait for it to finish. `ops unlock --target {broker.target.name}` shows whether it still lives; "
            "the lock frees itself a minute after its holder has died.",
        )
    try:
        yield Lock(broker=broker, token=token, epoch=int(detail))
    finally:
        from redis.exceptions import RedisError

        with deferred(), suppress(RedisError):  # it frees itself after its life
            _keep(broker, token, 0)


def look(broker: Broker) -> Holder | None:
    """
    Return who holds the broker's lock, without touching it; None if it is free.

    Raises:
        OpsError: If the server does not answer, or does not permit to read the lock.
    """
    with refusals.explained(broker.target.shown_broker):
        name = broker.keys.lock
        kind = cast("bytes", broker.reads.type(name))
        raw = cast("bytes | None", broker.reads.get(name)) if kind == b"string" else b""
        life = broker.reads.pttl(name)
        if kind == b"none" or raw is None or life == -2:  # it was let go of in between
            return None
        found = _holder(raw)
        batch, letters = _last_batch(broker, found.run) if found.run else ("", "")
        return replace(
            found,
            age_s=_age(found.started, broker.server_time()),
            remaining_ms=None if life < 0 else life,
            connected=_connected(broker, found.run) if found.run else None,
            last_batch=batch,
            last_letters=letters,
        )


def unlock(broker: Broker, lock_id: str, reason: str, *, though_connected: bool = False) -> Holder | None:
    """
    Take the lock from whoever holds it, and put that on record; return who it was, or None if it was free by then.

    A run that lives on all the same writes nothing more: its token is compared in every script.

    Args:
        lock_id: The beginning of the lock's token, so that no other lock than the one that was looked at is taken.

        though_connected: Also from a run whose client is still there.

    Raises:
        Refused: If the id is not this lock's or too short, the reason is missing, or the holder is still connected.

        OpsError: If the server does not answer; then the lock may be there or not.
    """
    lock_id, reason = lock_id.strip(), reason.strip()
    if len(lock_id) < SHORTEST_ID:
        raise Refused(
            f"A lock id has at least {SHORTEST_ID} characters. Nothing was changed.", hint="`ops unlock` shows it."
        )
    if len(reason) < SHORTEST_REASON:
        raise Refused(
            f"Unlocking needs a reason of at least {SHORTEST_REASON} characters. Nothing was changed.",
            hint="Add --reason with what you know about the run that holds it.",
        )
    found = look(broker)
    if found is None:
        return None
    line: dict[str, object] = {"target": broker.target.name, "lock": lock_id, "holder": asdict(found), "reason": reason}
    why = _why_not(found, lock_id, though_connected=though_connected)
    if why:
        audit.note("unlock", stage="refused", why=why.message, **line)
        raise why
    with deferred():
        audit.write("unlock", stage="intent", **line)
        try:
            said, detail = _take(broker, lock_id, line)
        except Exception as error:
            known = refusals.of(error, broker.target.shown_broker)
            audit.note("unlock", stage="result", said="ERROR", why=known.message, **line)
            raise known from error
        audit.note("unlock", stage="result", said=said, **line)
    if said == "OTHER":
        raise _changed_hands(_holder(detail))
    if said not in {"FREED", "FREE"}:
        raise Refused(f"The server refused to unlock: {said} {detail.decode(errors='replace')}. Nothing was changed.")
    return found if said == "FREED" else None


def names(lock_id: str, found: Holder) -> bool:
    """Whether an id could be this lock's, as far as the lock is shown; the script compares all of it."""
    return found.lock_id.startswith(lock_id.strip()[:SHOWN_ID])


def _take(broker: Broker, lock_id: str, line: Mapping[str, object]) -> tuple[str, bytes]:
    keys = broker.keys
    told = json.dumps(redact.values({**line, "by": records.operator(), "host": socket.gethostname()}))
    answer = broker.writes.eval(scripts.text("unlock"), 2, keys.lock, keys.audit, lock_id, told, AUDIT_ENTRIES)
    said, detail = [*cast("list[bytes]", answer), b""][:2]
    return said.decode(), detail


def _why_not(found: Holder, lock_id: str, *, though_connected: bool) -> Refused | None:
    if not found.lock_id:
        return Refused("What has the lock's name is no lock. Nothing was changed.", hint="A person has to look at it.")
    if not names(lock_id, found):
        return _changed_hands(found)
    if found.connected and not though_connected:
        return Refused(
            f"The run that holds the lock is still connected: {found}. Nothing was changed.",
            hint="It may only be slow: wait for it, or end it. --yes takes the lock all the same; "
            "the run then stops before its next change.",
        )
    return None


def _changed_hands(found: Holder) -> Refused:
    return Refused(
        f"The lock is not the one that was named, but {found}. Nothing was changed.",
        hint="`ops unlock` shows who holds it now.",
    )


def _keep(broker: Broker, token: str, life_ms: int) -> bool:
    return bool(broker.writes.eval(scripts.text("keep_lock"), 1, broker.keys.lock, token, life_ms))


def _holder(raw: bytes) -> Holder:
    """Return what a lock says of itself; one that is none of ours is named by its content, as unlock.lua does it."""
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("token"), str):
        return Holder(lock_id=hashlib.sha1(raw, usedforsecurity=False).hexdigest()[:SHOWN_ID] if raw else "")
    run, runbook, who, host, started = (str(told.get(name) or "") for name in _TEXTS)
    pid, epoch = (told[name] if isinstance(told.get(name), int) else None for name in ("pid", "epoch"))
    lock_id = told["token"][:SHOWN_ID]
    return Holder(lock_id=lock_id, run=run, runbook=runbook, who=who, host=host, pid=pid, epoch=epoch, started=started)


def _age(started: str, now: datetime) -> float | None:
    with suppress(ValueError, TypeError):
        return max(0.0, (now - datetime.fromisoformat(started).astimezone(UTC)).total_seconds())
    return None


def _connected(broker: Broker, run_id: str) -> bool | None:
    """Whether a client is named for a run."""
    from redis.exceptions import ResponseError

    try:
        clients = broker.reads.client_list()
    except ResponseError:  # not permitted, or not to be had with a service
        return None
    return any(client.get("name") == f"{CLIENT_NAME}:{run_id}" for client in clients)


def _last_batch(broker: Broker, run_id: str) -> tuple[str, str]:
    """Return number and letters of a run's latest batch; nothing for a run that has no journal."""
    from redis.exceptions import ResponseError

    last, letters = (0, 0), b""
    with suppress(ResponseError):
        for name, value in broker.reads.hscan_iter(broker.keys.journal(run_id), match="[0-9]*.*[0-9]", count=200):
            number = _BATCH.fullmatch(cast("bytes", name).decode("utf-8", "replace"))
            if number and (at := (int(number[1]), int(number[2]))) > last:
                last, letters = at, cast("bytes", value)
    return (f"{last[0]}.{last[1]}", letters.decode("utf-8", "backslashreplace")) if any(last) else ("", "")
