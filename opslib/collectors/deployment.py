"""Every source of a deployment → one Snapshot; a source that does not answer is a row of coverage."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.collectors import dead_letters as dead
from opslib.collectors import dead_look, keyspace, looks, queues
from opslib.collectors import window as watching
from opslib.durations import seconds
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from opslib.broker import Broker


def collect(
    broker: Broker,
    *,
    settle: str = "2s",
    window: str = "",
    tell_events: bool = False,
    dead_letters: bool = False,
    answer_within: str = "1.5s",
    max_keys: int = keyspace.MAX_KEYS,
    max_messages: int = queues.MAX_MESSAGES,
    max_letters: int = dead.MAX_LETTERS,
) -> Snapshot:
    """
    Look at everything once, and at what looks wrong a second time.

    Nothing is written but a reply list of the control plane, which is removed again. The second look tells an
    orphan from a message that was just being delivered; it is left out where there is nothing to confirm.

    Args:
        settle: Pause between the two looks, with a unit.

        window: In place of that pause, watch for so long what comes and goes, and look again in any case.

        tell_events: While watching, have nodes that send no events of tasks send them, and stop them again: the one
            order that a look gives.

        dead_letters: Look at the dead letters instead: each of them is read, and of queues only how much waits in them.

        answer_within: How long a silent node is waited for, with a unit.

        max_keys: Keys visited per database at most; beyond that the coverage is partial.

        max_messages: Waiting messages read at most, the next to be served first.

        max_letters: Dead letters that are kept as rows; all are counted.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.

        BrokerRefused: If it refuses what every look needs.
    """
    pause_s, timeout_s = seconds(settle, "settle"), seconds(answer_within, "answer_within")
    watched_s = seconds(window, "window") if window else None
    with refusals.explained(broker.target.shown_broker):
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        if dead_letters:
            pause_s = pause_s if watched_s is None else watched_s
            limits = _Limits(timeout_s=timeout_s, max_keys=max_keys, max_letters=max_letters)
            return _dead(broker, found, keys_coverage, pause_s=pause_s, limits=limits)
        snapshot = looks.first(
            broker, found, keys_coverage, timeout_s=timeout_s, max_keys=max_keys, max_messages=max_messages
        )
        if watched_s is not None:
            names = [queue.name for queue in snapshot.queues]
            watched = watching.watch(broker, names, length_s=watched_s, timeout_s=timeout_s, tell_events=tell_events)
            again = looks.second(broker, found, snapshot, timeout_s=timeout_s, wanted=looks.retrying(snapshot))
            return watching.joined(watched, again)
        if not looks.unsettled(snapshot):
            return snapshot
        time.sleep(pause_s)
        return looks.second(broker, found, snapshot, timeout_s=timeout_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limits:
    timeout_s: float
    max_keys: int
    max_letters: int


def _dead(
    broker: Broker, found: keyspace.Found, keys_coverage: Coverage, *, pause_s: float, limits: _Limits
) -> Snapshot:
    """Look at the dead letters, and once more at how many there are; what is declared as a queue is no list of them."""
    snapshot = looks.around(broker, found, keys_coverage, timeout_s=limits.timeout_s)
    declared = {broker.keys.queue(queue.name) for queue in snapshot.queues}
    keys = sorted(key for key in found.dead if key not in declared)
    before = dead.marks(broker, keys)
    began = time.monotonic()
    kept = sorted(declared & set(found.dead))
    letters, *coverage = dead_look.read(
        broker,
        found,
        snapshot,
        keys,
        timeout_s=limits.timeout_s,
        max_letters=limits.max_letters,
        max_keys=limits.max_keys,
        notes=[f"{name} is declared as a queue, so it was left alone." for name in kept[:3]],
    )
    if before:
        time.sleep(max(0.0, pause_s - (time.monotonic() - began)))
        letters = dead.again(broker, letters, before)
    return replace(snapshot, letters=letters, coverage=(*snapshot.coverage, *coverage))
