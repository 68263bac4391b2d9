"""The keys that are kept for a task beside its messages: its result, and what the application itself notes down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskKey:
    """
    One key of one task.

    Attributes:
        name: "result", or what the target calls the application's key: "progress".

        database: URL of its database, without password.

        fingerprint: Identity of that database; a change of the key is planned for it alone.

        type: As Redis calls it.

        elements: Elements of a list, members of a set, fields of a hash; 1 for a string.

        size_bytes: Length of a string; of a collection about what it weighs in the server.

        life_s: How long it had to live; negative for ever.

        sha256: Of its value, as `opslib.values` spells it; what a removal is compared with. Empty if it was not read.

        group: Group that a result names; its own bookkeeping is another key.

        fixed: Why it cannot be removed, as a sentence; empty if it can.
    """

    name: str
    task_id: str
    key: str
    database: str
    fingerprint: str
    type: str
    elements: int
    size_bytes: int
    life_s: float
    sha256: str = ""
    group: str = ""
    fixed: str = ""
