"""What was seen, as frozen rows: one reading of a deployment, and what of it stayed unseen."""

from opslib.facts.app_keys import TaskKey
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
from opslib.facts.whereabouts import DeadLetter, Whereabouts
from opslib.facts.window import Flow, TaskEvents, Window

__all__ = [
    "FINAL_STATES",
    "UNKNOWN_TASK",
    "Coverage",
    "DeadLetter",
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
