"""
Bytes of a task's saved state ⇄ what it says: our own checkpoints, and what an application writes under keys of its own.

A checkpoint is what a task needs to go on under another id: what it was called with, and how far it has come.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from opslib.envelope import Unreadable, instant, load

VERSION = 1
#: How long a checkpoint is kept: longer than anybody keeps a failure.
LIFE_S = 14 * 86_400.0
#: The most that one may weigh as JSON: each step writes all of it.
MOST_BYTES = 1024 * 1024
#: A state of an application that is larger is not copied in one step.
MOST_STATE_BYTES = 4 * 1024 * 1024
#: Resumptions that are followed from one task to the next.
MOST_LINKS = 50
_TEXT = 512
_SPACE = uuid.UUID("6f70736c-6962-5265-a375-6d6564746173")
#: What applications call the parts of a state, the first that is there.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "task": ("task", "task_name", "name"),
    "args": ("args", "task_args"),
    "kwargs": ("kwargs", "task_kwargs"),
    "queue": ("queue", "routing_key"),
    "priority": ("priority",),
    "progress": ("progress", "percent", "percentage"),
    "saved_at": ("saved_at", "updated_at", "timestamp", "created_at"),
    "results": ("results", "intermediate_results", "result"),
}
#: Where older scripts keep what a task was called with, if not at the top.
_NESTS = ("parameters", "params", "task_data")


class Failure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """
    How the task ended that saved a state.

    Attributes:
        failed_at: ISO 8601 in UTC.
    """

    exc_type: str = ""
    exception: str = ""
    failed_at: str = ""


class Document(msgspec.Struct, kw_only=True):
    """
    A checkpoint as its key holds it.

    Attributes:
        args, kwargs: What the task was called with; None where JSON cannot say it.

        progress: From 0 to 1; None if the task does not say.

        results: What the task has so far, under names of its own.

        saved_at: ISO 8601 in UTC.

        life_s: How long it is kept after it was saved; 0 for ever.

        resumed_from: Id of the task that this one goes on from; empty for none.

        resumed_as: Id of the task that goes on from this one; empty for none.

        refused: Why it must not go on, as the task itself says; empty if it may.
    """

    v: int = VERSION
    task_id: str = ""
    task: str = ""
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    queue: str = ""
    priority: int = 0
    progress: float | None = None
    results: dict[str, Any] = {}
    saved_at: str = ""
    saves: int = 0
    retries: int = 0
    life_s: float = LIFE_S
    resumed_from: str = ""
    resumed_as: str = ""
    failed: Failure | None = None
    refused: str = ""


class State(msgspec.Struct, kw_only=True, frozen=True):
    """
    What a saved state says, whoever wrote it.

    Attributes:
        parameters: JSON of args and kwargs; empty where the state does not say them.

        results: How many intermediate results it has.
    """

    task: str = ""
    parameters: str = ""
    queue: str = ""
    priority: int = 0
    progress: float | None = None
    results: int = 0
    saved_at: float | None = None
    life_s: float = LIFE_S
    resumed_from: str = ""
    resumed_as: str = ""
    failure: str = ""
    refused: str = ""


_decode = msgspec.json.Decoder(Document).decode


def write(document: Document) -> bytes:
    """
    Return a checkpoint's bytes.

    Raises:
        ValueError: If something in it is no JSON, or says a number that JSON does not have.
    """
    try:
        return json.dumps(
            {name: getattr(document, name) for name in document.__struct_fields__ if name != "failed"}
            | {"failed": msgspec.to_builtins(document.failed)},
            allow_nan=False,
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode("utf-8", "strict")
    except (TypeError, RecursionError, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from None


def over(document: Document) -> Document:
    """Return what is left of a state, once the task that went on from it has succeeded: that it did."""
    return Document(
        task_id=document.task_id,
        task=document.task,
        saved_at=document.saved_at,
        life_s=document.life_s,
        resumed_from=document.resumed_from,
        resumed_as=document.resumed_as,
        refused="the task that went on from it has succeeded",
    )


def read(raw: bytes) -> Document | Unreadable:
    """Return what a checkpoint says; one of another version is left alone."""
    try:
        found = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(f"it is no checkpoint ({str(error)[:80]})")
    return found if found.v == VERSION else Unreadable(f"it is of version {found.v}, and this release reads {VERSION}")


def state(raw: bytes, *, own: bool) -> State | Unreadable:
    """
    Return what a saved state says.

    Args:
        own: Whether it is a checkpoint; otherwise it is a JSON object of an application, under names of its own.
    """
    if not own:
        return _tolerant(raw)
    found = read(raw)
    if isinstance(found, Unreadable):
        return found
    known = found.args is not None and found.kwargs is not None
    failed = found.failed
    return State(
        task=_text(found.task),
        parameters=_parameters(found.args, found.kwargs) if known else "",
        queue=_text(found.queue),
        priority=_whole(found.priority),
        progress=_number(found.progress),
        results=len(found.results),
        saved_at=instant(found.saved_at),
        life_s=found.life_s if math.isfinite(found.life_s) and found.life_s >= 0 else LIFE_S,
        resumed_from=_text(found.resumed_from),
        resumed_as=_text(found.resumed_as),
        failure=": ".join(filter(None, (_text(failed.exc_type), _text(failed.exception)))) if failed else "",
        refused=_text(found.refused),
    )


def successor(task_id: str, sha256: str) -> str:
    """
    Return the id of the task that goes on from a state: the same one for the same state.

    So two people who resume a task at once mean the same successor, and only one of them makes it.
    """
    return str(uuid.uuid5(_SPACE, f"{task_id}/{sha256}"))


def handed(raw: bytes, *, old: str, new: str) -> tuple[bytes, bytes]:
    """
    Return a state as the task has it that goes on, and as the one has it that it goes on from; linked both ways.

    What it says beside that stays as it is, whoever wrote it.

    Raises:
        ValueError: If it is no JSON object that can be written back.
    """
    value = load(raw, errors="strict")
    if isinstance(value, Unreadable):
        raise ValueError(value.reason)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    copy = {**value, "resumed_from": old}
    if copy.get("task_id") == old:
        copy["task_id"] = new
    if "resumed_as" in copy:
        copy["resumed_as"] = ""
    try:
        return _dumped(copy), _dumped({**value, "resumed_as": new})
    except (RecursionError, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from None


def _dumped(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _tolerant(raw: bytes) -> State | Unreadable:
    value = load(raw)
    if isinstance(value, Unreadable):
        return value
    if not isinstance(value, dict):
        return Unreadable("it is no JSON object")
    nests = [nest for name in _NESTS if isinstance(nest := value.get(name), dict)]
    found = {what: _first([value, *nests], names) for what, names in _NAMES.items()}
    args, kwargs = found["args"], found["kwargs"]
    known = isinstance(args, list) or isinstance(kwargs, dict)
    may = [value[name] for name in ("resumable", "recoverable") if name in value]
    return State(
        task=_text(found["task"]),
        parameters=_parameters(args if isinstance(args, list) else [], kwargs if isinstance(kwargs, dict) else {})
        if known
        else "",
        queue=_text(found["queue"]),
        priority=_whole(found["priority"]),
        progress=_share(found["progress"]),
        results=len(found["results"]) if isinstance(found["results"], dict | list) else 0,
        saved_at=instant(found["saved_at"]),
        resumed_from=_text(value.get("resumed_from")),
        resumed_as=_text(value.get("resumed_as")),
        refused="its state says that it is not recoverable" if False in may else "",
    )


def _first(places: list[dict[str, Any]], names: tuple[str, ...]) -> Any:  # noqa: ANN401 - whatever JSON holds
    return next((place[name] for place in places for name in names if place.get(name) is not None), None)


def _parameters(args: object, kwargs: object) -> str:
    try:
        return json.dumps({"args": args, "kwargs": kwargs}, allow_nan=False)
    except (ValueError, RecursionError):
        return ""


def _text(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")[:_TEXT]


def _whole(value: object) -> int:
    return max(0, min(9, value)) if isinstance(value, int) and not isinstance(value, bool) else 0


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        found = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _share(value: object) -> float | None:
    """Return a progress as a share of 1; applications count to 1 or to 100."""
    found = _number(value)
    return found / 100 if found is not None and found > 1 else found
