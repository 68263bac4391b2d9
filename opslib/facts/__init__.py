"""What was seen, as frozen rows: one reading of a deployment, and what of it stayed unseen."""

from opslib.facts.app_keys import AppValue, FoundKey, KeyScan, TaskKey
from opslib.facts.backup import Backup, Census, Compared, Family, Kept, KeyPrint, RestoreStep, Saves, Saving
from opslib.facts.beat import BeatLock, ScheduleEntry, Schedules, SentTwice
from opslib.facts.care import Area, Care, NodeCare, Replica, ResultLife, ServerCare, SlowCommand, TaskCare
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
from opslib.facts.remains import (
    AppRemains,
    OldKeys,
    OldQuarantine,
    OldReports,
    Remains,
    TemporaryFile,
    TemporaryFiles,
)
from opslib.facts.resets import DrainNode, ResetChoice
from opslib.facts.retries import RetryingTask, TaskRetries
from opslib.facts.rows import ClassCount, Classes, Reconciled, RowCount, Sample, SeenTable, StateNow, TaskRow
from opslib.facts.snapshot import Reading, Snapshot
from opslib.facts.stored import Leftover, Stored, StoredGroup
from opslib.facts.system import (
    FINAL_STATES,
    Coverage,
    HeldTask,
    ListInfo,
    NodeInfo,
    QueueInfo,
    ServerInfo,
    StatusCount,
    StoredResult,
    TaskInfo,
)
from opslib.facts.whereabouts import Whereabouts
from opslib.facts.window import Flow, TaskEvents, Window

__all__ = [
    "FINAL_STATES",
    "UNKNOWN_TASK",
    "AppRemains",
    "AppValue",
    "Area",
    "Backup",
    "BeatLock",
    "Care",
    "Census",
    "Checkpoint",
    "ClassCount",
    "Classes",
    "Compared",
    "Coverage",
    "DeadGroup",
    "DeadLetter",
    "DeadLetters",
    "DeadList",
    "DrainNode",
    "Family",
    "Flow",
    "FoundKey",
    "HeldTask",
    "Kept",
    "KeyPrint",
    "KeyScan",
    "Leftover",
    "ListInfo",
    "Message",
    "NodeCare",
    "NodeInfo",
    "OldKeys",
    "OldQuarantine",
    "OldReports",
    "Quarantined",
    "QuarantinedMessage",
    "QueueInfo",
    "Rate",
    "Reading",
    "Reconciled",
    "Remains",
    "Replica",
    "ResetChoice",
    "RestoreStep",
    "ResultLife",
    "Resumable",
    "RetryingTask",
    "RowCount",
    "Sample",
    "Saves",
    "Saving",
    "ScheduleEntry",
    "Schedules",
    "SeenTable",
    "SentTwice",
    "ServerCare",
    "ServerInfo",
    "SlowCommand",
    "Snapshot",
    "StateNow",
    "StatusCount",
    "Stored",
    "StoredGroup",
    "StoredResult",
    "TaskCare",
    "TaskEvents",
    "TaskInfo",
    "TaskKey",
    "TaskRetries",
    "TaskRow",
    "TemporaryFile",
    "TemporaryFiles",
    "UnackedMessage",
    "UnreadableMessage",
    "WaitingMessage",
    "Whereabouts",
    "Window",
]
