"""One SCAN over the broker's database → which queues, routes, results and foreign Celery keys there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from opslib.facts.system import Coverage
from opslib.keys import DEAD, OWN, Binding, key_name, raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Keys a SCAN step visits: at 250 other clients notice nothing (PERFORMANCE B).
STEP = 250
#: Keys of a database that a look visits at most, unless it is told otherwise.
MAX_KEYS = 1_000_000
#: A queue's name is bounded like everything that is kept.
_MOST_LISTS = 5_000


@dataclass(kw_only=True)
class Found:
    """
    What a pass over the keyspace met.

    Attributes:
        lists: Keys of lists that could be queues.

        bindings: Routes by exchange.

        remembered: Nodes that the broker remembers, dead or alive.

        results: Keys of results, as bytes.

        foreign: Prefixes other than ours under which Celery's keys stand.

        aside: Keys under which an interrupted run has set part of a queue aside.

        quarantined: Keys of quarantine lists.

        dead: Keys that are named like dead-letter lists.
    """

    lists: list[str] = field(default_factory=list)
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    remembered: set[str] = field(default_factory=set)
    results: list[bytes] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    aside: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    visited: int = 0
    complete: bool = True


def read(broker: Broker, *, max_keys: int, keep_results: bool = True) -> tuple[Found, Coverage]:
    """
    Visit every key of the broker's database once, in steps, and sort it by its name.

    Args:
        max_keys: Keys after which the pass stops; the coverage then says how many were left.

        keep_results: Whether the names of results are kept; without them, memory does not grow with their number.
    """
    found = Found()
    undecided: list[bytes] = []
    cursor, total = 0, broker.reads.dbsize()
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", broker.reads.scan(cursor, count=STEP))
        found.visited += len(names)
        root = raw_name(broker.keys.result_root)
        for name in names if keep_results else [name for name in names if not name.startswith(root)]:
            _sort(broker, name, found, undecided)
        if cursor == 0:
            break
        if found.visited >= max_keys:
            found.complete = False
            break
    found.lists += _lists_among(broker, undecided[:_MOST_LISTS])
    left = max(0, total - found.visited) if not found.complete else 0
    left += max(0, len(undecided) - _MOST_LISTS)
    note = f"Stopped after {found.visited:,} of about {total:,} keys; max_keys allows no more." if left else ""
    return found, Coverage(place="keyspace", seen=found.visited, silent=left, note=note)


def remembered(broker: Broker) -> set[str]:
    """Return the nodes that the broker remembers, dead or alive, without a look at any other key."""
    found = Found()
    _routes(broker, raw_name(broker.keys.node_bindings), broker.keys.node_bindings, found)
    return found.remembered


def _sort(broker: Broker, name: bytes, found: Found, undecided: list[bytes]) -> None:
    keys = broker.keys
    text = key_name(name)
    if text.startswith(keys.result_root):
        found.results.append(name)
    elif text.startswith(keys.binding_root):
        _routes(broker, name, text, found)
    elif "_kombu.binding." in text:
        found.foreign.add(text.split("_kombu.binding.", 1)[0])
    elif keys.set_aside_by(text):
        found.aside.append(text)
    elif keys.quarantined(text):
        found.quarantined.append(text)
    elif text.startswith(keys.prefix) and text.endswith(DEAD) and not text.startswith(f"{keys.prefix}{OWN}"):
        found.dead.append(text)
    elif keys.is_queue_like(text):
        undecided.append(name)


def set_aside(broker: Broker, found: Found) -> list[Coverage]:
    """Return a row of coverage for what interrupted runs have set aside: no worker sees it, nor was it looked into."""
    rows = []
    for key in found.aside[:_MOST_LISTS]:
        count = broker.reads.llen(raw_name(key))
        note = f"Run {broker.keys.set_aside_by(key)} was cut off while it sorted a queue; `ops resume` deals it back."
        rows += [Coverage(place="set aside", seen=0, silent=count, note=note)] if count else []
    return rows


def _routes(broker: Broker, name: bytes, text: str, found: Found) -> None:
    """Read one exchange's routes; those of the control plane name nodes instead of queues."""
    from redis.exceptions import ResponseError

    try:
        members = cast("set[bytes]", broker.reads.smembers(name))
    except ResponseError:
        return
    for member in members:
        binding = broker.keys.binding(text, key_name(member))
        if binding is None:
            continue
        if binding.exchange.endswith(".pidbox"):
            if binding.exchange == "celery.pidbox":
                found.remembered.add(binding.queue.removesuffix(".celery.pidbox"))
        elif not binding.exchange.startswith("celeryev"):
            found.bindings.setdefault(binding.exchange, []).append(binding)


def _lists_among(broker: Broker, names: list[bytes]) -> list[str]:
    """Return those of the undecided keys that are lists."""
    lists: list[str] = []
    for start in range(0, len(names), STEP):
        page = names[start : start + STEP]
        with broker.reads.pipeline(transaction=False) as pipe:
            for name in page:
                pipe.type(name)
            kinds = cast("list[bytes]", pipe.execute())
        lists += [key_name(name) for name, kind in zip(page, kinds, strict=True) if kind == b"list"]
    return lists
