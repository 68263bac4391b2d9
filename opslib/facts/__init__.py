"""What was seen, as frozen rows: one reading of a deployment, and what of it stayed unseen."""

from opslib.facts.app_keys import TaskKey
from opslib.facts.checkpoints import Checkpoint, Resumable
from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.facts.messages import (
    UNKNOWN_TASK,
    Message,
    Quarantined,
    QuarantinedMessage,
    UnackedMessage,
    UnreadableMessage,
    WaitingMessage,
)
from opslib.facts.rates import Rate
from opslib.facts.retries import RetryingTask, TaskRetries
from opslib.facts.snapshot import Reading, Snapshot
from opslib.facts.system import (
    FINAL_STATES,
    Coverage,
    HeldTask,
    ListInfo,
    NodeInfo,
    QueueInfo,
    ServerInfo,
    StoredResult,
    TaskInfo,
)
from opslib.facts.whereabouts import Whereabouts
from opslib.facts.window import Flow, TaskEvents, Window

__all__ = [
    "FINAL_STATES",
    "UNKNOWN_TASK",
    "Checkpoint",
    "Coverage",
    "DeadGroup",
    "DeadLetter",
    "DeadLetters",
    "DeadList",
    "Flow",
    "HeldTask",
    "ListInfo",
    "Message",
    "NodeInfo",
    "Quarantined",
    "QuarantinedMessage",
    "QueueInfo",
    "Rate",
    "Reading",
    "Resumable",
    "RetryingTask",
    "ServerInfo",
    "Snapshot",
    "StoredResult",
    "TaskEvents",
    "TaskInfo",
    "TaskKey",
    "TaskRetries",
    "UnackedMessage",
    "UnreadableMessage",
    "WaitingMessage",
    "Whereabouts",
    "Window",
]
