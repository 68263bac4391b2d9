"""The states that tasks have saved, from which they could go on, with where the tasks themselves are."""

from __future__ import annotations

from dataclasses import dataclass, field

from opslib.facts.whereabouts import Whereabouts


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """
    One saved state of one task.

    Attributes:
        name: "checkpoint" for one of ours, or what the target calls the application's key.

        database: URL of its database, without password.

        fingerprint: Identity of that database; a change of the key is planned for it alone.

        sha256: Of its bytes; what a change is compared with. Empty if it was not read.

        life_s: How long it had to live; negative for ever.

        progress: From 0 to 1; None if it does not say.

        results: How many intermediate results it has; what they are is not shown.

        resumed_from: Task that this one goes on from; empty for none.

        resumed_as: Task that goes on from this one; empty for none.

        failure: How the task ended, as the state itself says; empty if it does not.

        refused: Why it must not be gone on with, as the state itself says; empty if it may.

        problem: Why it cannot be read or copied, as a sentence; empty if it can.

        parameters: JSON of args and kwargs, which are shown nowhere; empty where nobody knows them.

        source: Who said what the task was called with: "state", "dead letter" or "result"; empty for nobody.

        message: The message that failed, from its dead letter, shown nowhere; empty if there is none.
    """

    task_id: str
    name: str
    key: str
    database: str
    fingerprint: str
    task: str = ""
    sha256: str = ""
    size_bytes: int = 0
    life_s: float = -1.0
    progress: float | None = None
    results: int = 0
    saved_at: float | None = None
    queue: str = ""
    priority: int = 0
    resumed_from: str = ""
    resumed_as: str = ""
    failure: str = ""
    refused: str = ""
    problem: str = ""
    source: str = ""
    parameters: str = field(default="", repr=False)
    message: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumable(Whereabouts):
    """
    Where certain tasks are, and those that go on from them, with the states that they have saved.

    Attributes:
        asked: The ids that a person named, or where nobody did, some that have left a checkpoint; `ids` has their
            successors too.

        named: Whether a person named them; what nobody named is not resumed.

        checkpoints: Their states.
    """

    asked: tuple[str, ...] = ()
    named: bool = True
    checkpoints: tuple[Checkpoint, ...] = ()

    def of(self, task_id: str) -> list[Checkpoint]:
        """Return the states of one task, our own first."""
        return [row for row in self.checkpoints if row.task_id == task_id]
