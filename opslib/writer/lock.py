"""A broker → the one lock that allows changes to it, compared inside every script that makes one."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from opslib import records, redact
from opslib.errors import LockHeld
from opslib.interrupts import deferred
from opslib.writer import scripts

if TYPE_CHECKING:
    from opslib.broker import Broker

#: A holder that dies frees the broker after this.
LIFE_MS = 60_000


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
        raise LockHeld(f"{broker.target.name} is being changed by another run: {_describe(detail)}.")
    try:
        yield Lock(broker=broker, token=token, epoch=int(detail))
    finally:
        from redis.exceptions import RedisError

        with deferred(), suppress(RedisError):  # it frees itself after its life
            _keep(broker, token, 0)


def _keep(broker: Broker, token: str, life_ms: int) -> bool:
    return bool(broker.writes.eval(scripts.text("keep_lock"), 1, broker.keys.lock, token, life_ms))


def _describe(holder: bytes) -> str:
    try:
        found = json.loads(holder)
    except ValueError:
        return "a lock of unknown shape"
    return redact.plain(
        f"{found.get('run')} by {found.get('who')} on {found.get('host')}, since {found.get('started')}"
    )
