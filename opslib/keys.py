"""A deployment's options → the name of every Redis key that Celery, kombu and this tool use, with its type."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

#: Between the parts of a binding and before a priority step (kombu's `sep`).
SEPARATOR = "\x06\x16"
#: kombu's steps; a priority is rounded down to one of them. 0 is served first on Redis.
PRIORITY_STEPS = (0, 3, 6, 9)
#: Everything that this tool writes begins so.
OWN = "opslib:"
#: What the name of a dead-letter list ends with: a guess, and none where a route or a node declares such a queue.
DEAD = ".dead"
#: What people call Celery's own key of a task, beside those of the application.
RESULT = "result"
#: What the names of Celery's, kombu's, its scheduler's and this tool's keys begin with, but for the unacked ones.
_HEADS = ("_kombu.", "celery-task-meta-", "celery-taskset-meta-", OWN, "redbeat")
_TAILS = (".reply.celery.pidbox", ".celery.pidbox")


def raw_name(name: str) -> bytes:
    """Return a name as the server spells it; one that is not UTF-8 survives the round trip."""
    return name.encode("utf-8", "surrogateescape")


def key_name(raw: object) -> str:
    """Return what the server calls a key, a field or a member, as text."""
    return cast("bytes", raw).decode("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """
    One route of an exchange.

    Attributes:
        pattern: As a topic exchange matches it; empty for a direct one.
    """

    exchange: str
    routing_key: str
    pattern: str
    queue: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyspace:
    """
    Names of keys under one deployment's transport options.

    Attributes:
        prefix: kombu's `global_keyprefix`; stands before every key but the pub/sub's name inside a binding.

        result_prefix: The result backend's own `global_keyprefix`.
    """

    database: int = 0
    prefix: str = ""
    result_prefix: str = ""
    separator: str = SEPARATOR
    priority_steps: tuple[int, ...] = PRIORITY_STEPS
    unacked_name: str = "unacked"
    unacked_index_name: str = "unacked_index"
    unacked_mutex_name: str = "unacked_mutex"

    @property
    def unacked(self) -> str:
        """Hash: delivery tag → JSON [envelope, exchange, routing key]."""
        return self.prefix + self.unacked_name

    @property
    def unacked_index(self) -> str:
        """Sorted set: delivery tag, scored with the epoch seconds of its delivery."""
        return self.prefix + self.unacked_index_name

    def queue(self, name: str, priority: int = 0) -> str:
        """List: envelopes of one queue and priority; producers push left, workers pop right."""
        step = self.step(priority)
        return f"{self.prefix}{name}" + (f"{self.separator}{step}" if step else "")

    def queue_lists(self, name: str) -> dict[str, int]:
        """Return every list of a queue with its priority step, in the order in which they are served."""
        return {self.queue(name, step): step for step in self.priority_steps}

    def step(self, priority: int) -> int:
        """Return the step that a priority is rounded down to; values clamp to 0..9 as kombu does it."""
        clamped = max(0, min(9, priority))
        return self.priority_steps[max(0, bisect_right(self.priority_steps, clamped) - 1)]

    def queue_of(self, key: str) -> tuple[str, int] | None:
        """Return queue and priority step of a list's key; None if the key is not under the prefix."""
        if not key.startswith(self.prefix):
            return None
        name, separator, step = key[len(self.prefix) :].rpartition(self.separator)
        if separator and step.isdigit() and int(step) in self.priority_steps:
            return name, int(step)
        return key[len(self.prefix) :], 0

    def bindings(self, exchange: str) -> str:
        """Set: the routes of an exchange."""
        return f"{self.binding_root}{exchange}"

    @property
    def binding_root(self) -> str:
        """What the key of every exchange's routes begins with."""
        return f"{self.prefix}_kombu.binding."

    def binding(self, key: str, member: str) -> Binding | None:
        """Return a route from its key and set member; None if the member has another shape."""
        parts = member.split(self.separator)
        if len(parts) != 3 or not key.startswith(self.binding_root):
            return None
        return Binding(exchange=key[len(self.binding_root) :], routing_key=parts[0], pattern=parts[1], queue=parts[2])

    @property
    def control_channel(self) -> str:
        """Pub/sub channel of the control plane; holds the database number, as pub/sub knows no databases."""
        return f"{self.prefix}/{self.database}.celery.pidbox"

    def reply_list(self, oid: str) -> str:
        """List: the answers to one control client."""
        return f"{self.prefix}{self.reply_queue(oid)}"

    @staticmethod
    def reply_queue(oid: str) -> str:
        """Name of that list as a binding spells it, without the prefix."""
        return f"{oid}.reply.celery.pidbox"

    @property
    def reply_bindings(self) -> str:
        """Set: where the answers to control clients go."""
        return self.bindings("reply.celery.pidbox")

    def reply_member(self, oid: str) -> str:
        """Return the member of `reply_bindings` that routes answers to one client."""
        return self.separator.join((oid, "", self.reply_queue(oid)))

    @property
    def node_bindings(self) -> str:
        """Set: nodes that ever listened to control messages; dead ones stay in it."""
        return self.bindings("celery.pidbox")

    def result(self, task_id: str) -> str:
        """String: JSON of one task's result."""
        return f"{self.result_root}{task_id}"

    @property
    def result_root(self) -> str:
        """What the key of every result begins with."""
        return f"{self.result_prefix}celery-task-meta-"

    def group(self, group_id: str) -> str:
        """String: the results of a group; what a chord counts is under the same name with .j, .s, .t, .d and .c."""
        return f"{self.result_prefix}celery-taskset-meta-{group_id}"

    def is_queue_like(self, key: str) -> bool:
        """Whether a key of unknown type could be a queue: none of kombu's, the results' or our own."""
        return key.startswith(self.prefix) and not self._is_taken(key[len(self.prefix) :])

    def is_queue_name(self, name: str) -> bool:
        """Whether a queue can be called so: no key of Celery's or our own, nor one priority's list of another."""
        key = self.queue(name)
        return bool(name) and self.is_queue_like(key) and self.queue_of(key) == (name, 0)

    def is_reserved(self, key: str) -> bool:
        """Whether a name is one of Celery's, kombu's or our own keys, so that no application's key can be called so."""
        return any(self._is_taken(key.removeprefix(prefix)) for prefix in ("", self.prefix, self.result_prefix))

    def _is_taken(self, bare: str) -> bool:
        unacked = (self.unacked_name, self.unacked_index_name, self.unacked_mutex_name)
        return bare in unacked or bare.startswith(_HEADS) or bare.endswith(_TAILS)

    # What this tool writes, all in the broker's database and under the deployment's prefix.

    def checkpoint(self, task_id: str) -> str:
        """String with a life: JSON of how far a task has come, which its own worker wrote."""
        return f"{self.checkpoint_root}{task_id}"

    @property
    def checkpoint_root(self) -> str:
        """What the key of every checkpoint begins with."""
        return f"{self.prefix}{OWN}checkpoint:"

    @property
    def environment(self) -> str:
        """String: JSON of the environment that this database belongs to; written once."""
        return f"{self.prefix}{OWN}env"

    @property
    def lock(self) -> str:
        """String with a life: JSON of the one run that may change this broker."""
        return f"{self.prefix}{OWN}lock"

    @property
    def epoch(self) -> str:
        """String: how often the lock was ever taken; the fencing number."""
        return f"{self.prefix}{OWN}epoch"

    @property
    def audit(self) -> str:
        """Stream: one entry per batch of changes, written by the script that makes them."""
        return f"{self.prefix}{OWN}audit"

    @property
    def dead_dropped(self) -> str:
        """Hash: queue → how many of its dead letters were lost to their list's bound; the capture counts them."""
        return f"{self.prefix}{OWN}dead:dropped"

    def dead_list(self, queue: str) -> str:
        """List: the dead letters of a queue, the newest left."""
        return f"{self.prefix}{queue}{DEAD}"

    def dead_sender(self, sender: str) -> str:
        """String with a life: number of the last batch of dead letters that one node's process has written."""
        return f"{self.prefix}{OWN}dead:from:{sender}"

    def journal(self, run_id: str) -> str:
        """Hash: "run", what the run is; "epoch.n", a batch's letters; "epoch.n:u", its receipt; "epoch.n:p", places."""
        return f"{self.prefix}{OWN}run:{run_id}:j"

    def quarantine(self, run_id: str, queue: str, part: int = 1) -> str:
        """List: messages that a run took out of circulation, as they were. Never expires."""
        return f"{self.prefix}{OWN}run:{run_id}:q{f'.{part}' if part > 1 else ''}:{queue}"

    def redriven(self, run_id: str, key: str) -> str:
        """List: dead letters that a run has sent again, as they were; lives as long as the run's journal."""
        return f"{self.prefix}{OWN}run:{run_id}:d:{key.removeprefix(self.prefix)}"

    def quarantine_of_full(self, run_id: str, key: str) -> str:
        """List: what a queue's list held when a server without memory was purged; its name is all that is known."""
        return f"{self.prefix}{OWN}run:{run_id}:q.full:{key.removeprefix(self.prefix)}"

    def quarantined(self, key: str) -> tuple[str, str] | None:
        """Return run and queue of a quarantine's key; None for another key."""
        run_id, part, queue = [*key.removeprefix(f"{self.prefix}{OWN}run:").split(":", 2), "", ""][:3]
        is_one = key.startswith(f"{self.prefix}{OWN}run:") and (part == "q" or part.startswith("q."))
        return (run_id, queue) if is_one else None

    def work(self, run_id: str, queue: str) -> str:
        """List: a queue's messages while a run sorts them; what it still holds after a crash is put back by resume."""
        return f"{self.prefix}{OWN}run:{run_id}:w:{queue}"

    def work_back(self, run_id: str, queue: str) -> str:
        """List: the same, while an undo deals both parts of the queue together again."""
        return f"{self.prefix}{OWN}run:{run_id}:w.back:{queue}"

    def set_aside_by(self, key: str) -> str:
        """Return the run that has set part of a queue aside under this key; empty for another key."""
        run_id, part, _ = [*key.removeprefix(self.own_runs).split(":", 2), "", ""][:3]
        return run_id if key.startswith(self.own_runs) and part in {"w", "w.back"} else ""

    @property
    def own_runs(self) -> str:
        """What the key of everything that belongs to one run begins with."""
        return f"{self.prefix}{OWN}run:"

    def quarantine_notes(self, run_id: str) -> str:
        """Hash: delivery tag or digest → JSON of where a quarantined message came from, and why."""
        return f"{self.prefix}{OWN}run:{run_id}:m"


@dataclass(frozen=True, slots=True)
class RedBeat:
    """
    The keys of celery-redbeat, which takes no prefix but its own.

    Attributes:
        prefix: Its setting `redbeat_key_prefix`.
    """

    prefix: str = "redbeat:"

    @property
    def schedule(self) -> str:
        """Sorted set: keys of the entries, by the epoch second at which each is due; below 0 for never."""
        return f"{self.prefix}:schedule"

    @property
    def lock(self) -> str:
        """String: a token of the beat that serves the schedule; it renews it each time that it looks."""
        return f"{self.prefix}:lock"

    @property
    def statics(self) -> str:
        """Set: names of the entries that beat has written from the application's configuration."""
        return f"{self.prefix}:statics"

    def entry(self, name: str) -> str:
        """Hash: `definition` and `meta`, JSON both."""
        return f"{self.prefix}{name}"


def destinations(bindings: Mapping[str, Sequence[Binding]], exchange: str, routing_key: str) -> tuple[str, ...]:
    """
    Return the queues that a message with this exchange and routing key belongs to.

    The default exchange routes by name. A topic's wildcards are matched word by word, as the exchange's type is
    nowhere in Redis; an exchange without routes gives nothing (kombu would drop the message: facts §1.1).
    """
    if not exchange:
        return (routing_key,) if routing_key else ()
    routes = bindings.get(exchange, [])
    direct = {route.queue for route in routes if route.routing_key == routing_key and route.queue}
    if direct:
        return tuple(sorted(direct))
    return tuple(sorted({route.queue for route in routes if route.queue and _topic(route.routing_key, routing_key)}))


def _topic(pattern: str, routing_key: str) -> bool:
    """Match `*` (one word) and `#` (any words)."""
    if "*" not in pattern and "#" not in pattern:
        return False
    words = routing_key.split(".")
    reached = {0}  # how many words the pattern may have used up so far
    for part in pattern.split("."):
        if part == "#":
            reached = set(range(min(reached, default=len(words) + 1), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in {"*", words[at]}}
    return len(words) in reached
