"""Task ids → the states that they have saved, what the tasks were called with, and where they and their heirs are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib import checkpoints, letters, redact, refusals
from opslib.collectors import keyspace, windows
from opslib.collectors.find import find
from opslib.envelope import Head, Unreadable, digest, head
from opslib.errors import BadParameter, OpsError
from opslib.facts.checkpoints import Checkpoint, Resumable
from opslib.facts.snapshot import parts_of
from opslib.facts.system import Coverage
from opslib.facts.whereabouts import Whereabouts
from opslib.keys import key_name, raw_name

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker
    from opslib.letters import Letter

#: What one of ours is called, beside the names of an application's keys.
OWN = "checkpoint"
_PAGE = 100
#: Keys of a step of the scan; and tasks that are looked at where nobody named any.
_STEP, _MOST_UNNAMED = 1_000, 50
_LARGEST_RESULT = 1024 * 1024
#: Entries of a dead-letter list that are looked through for a task's own.
_MOST_ENTRIES = 200_000


class _Result(msgspec.Struct):
    """What a result says of its task, where `result_extended` is on."""

    name: str | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    queue: str | None = None


_decode_result = msgspec.json.Decoder(_Result).decode


def resumable(
    broker: Broker,
    ids: Iterable[str],
    *,
    settle: str = "",
    answer_within: str = "1.5s",
    max_keys: int = keyspace.MAX_KEYS,
) -> Resumable:
    """
    Look for the states of tasks, and for the tasks in every place; and the same for those that go on from them.

    The states are read first: what is saved after that makes a later change refuse itself.

    Args:
        ids: None of them stands for those that have left a checkpoint of ours, some of them where they are many.

        settle: Pause before a second look, where the first was not enough; empty for one look.

    Raises:
        BadParameter: If an id would make one of Celery's keys, or of ours, out of an application's pattern.

        BrokerUnreachable: If the server stops answering on the way.
    """
    asked = list(dict.fromkeys(ids))
    for task_id in asked:
        _refuse_reserved(broker, task_id)
    named, unread = bool(asked), list[Coverage]()
    if not named:
        with refusals.explained(broker.target.shown_broker):
            asked, unread = _left(broker, max_keys)
    rows, coverage = _followed(broker, asked)
    coverage += unread
    known = list(dict.fromkeys([*asked, *(row.task_id for row in rows), *(row.resumed_as for row in rows)]))
    seen = find(broker, filter(None, known), settle=settle, answer_within=answer_within, max_keys=max_keys)
    with refusals.explained(broker.target.shown_broker):
        checkpoints = tuple(_with_parameters(broker, seen, rows))
    return Resumable(
        **parts_of(seen, but={"coverage"}),
        coverage=(*seen.coverage, *coverage),
        asked=tuple(asked),
        named=named,
        checkpoints=checkpoints,
    )


def _left(broker: Broker, max_keys: int) -> tuple[list[str], list[Coverage]]:
    """Return tasks that have left a checkpoint of ours, not too many; and what was not looked at."""
    root = raw_name(broker.keys.checkpoint_root)
    found: list[str] = []
    cursor = visited = 0
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", broker.reads.scan(cursor, count=_STEP))
        visited += len(names)
        found += [key_name(name[len(root) :]) for name in names if name.startswith(root)]
        if cursor == 0 or visited >= max_keys:
            break
    found = sorted(dict.fromkeys(found))
    rest = len(found) - _MOST_UNNAMED
    note = f"{rest:,} tasks more have left a checkpoint; name the one that is meant." if rest > 0 else ""
    note = f"{note} The keys beyond {max_keys:,} were not looked at.".strip() if cursor else note
    return found[:_MOST_UNNAMED], [
        Coverage(
            place="checkpoints", seen=min(len(found), _MOST_UNNAMED), silent=max(0, rest) or int(cursor != 0), note=note
        )
    ]


def read(broker: Broker, ids: Sequence[str]) -> tuple[list[Checkpoint], list[Coverage]]:
    """Return the states that are there, of every database; one that does not answer is silent."""
    rows: list[Checkpoint] = []
    coverage = []
    for name, client, url in _places(broker):
        shown, seen = redact.url(url), 0
        try:
            with refusals.explained(shown):
                fingerprint = broker.elsewhere(client, url).fingerprint
                blank = Checkpoint(task_id="", name=name, key="", database=shown, fingerprint=fingerprint)
                for start in range(0, len(ids), _PAGE):
                    page = ids[start : start + _PAGE]
                    wanted = [(task_id, _key(broker, name, task_id)) for task_id in page]
                    rows += _rows(client, blank, [(task_id, key) for task_id, key in wanted if key])
                    seen += len(page)
        except OpsError as error:
            coverage.append(Coverage(place=f"states in {shown}", seen=seen, silent=len(ids) - seen, note=error.message))
            continue
        coverage.append(Coverage(place=f"states in {shown}", seen=seen))
    return rows, coverage


def _followed(broker: Broker, asked: Sequence[str]) -> tuple[list[Checkpoint], list[Coverage]]:
    """Read the states of tasks, of those that were resumed from them, and so on."""
    rows: list[Checkpoint] = []
    coverage: dict[str, Coverage] = {}
    wanted, known = list(asked), set(asked)
    for _ in range(checkpoints.MOST_LINKS):
        if not wanted:
            break
        found, told = read(broker, wanted)
        rows += found
        for row in told:
            before = coverage.get(row.place, replace(row, seen=0, silent=0))
            coverage[row.place] = replace(row, seen=before.seen + row.seen, silent=before.silent + row.silent)
        wanted = list(dict.fromkeys(row.resumed_as for row in found if row.resumed_as and row.resumed_as not in known))
        known |= set(wanted)
    return rows, list(coverage.values())


def _places(broker: Broker) -> Iterator[tuple[str, Redis, str]]:
    """Yield what holds states: our own checkpoints, then the application's keys that say that they are such."""
    yield OWN, broker.reads, broker.target.broker_url
    for name, client in broker.apps.items():
        if broker.target.app_keys[name].state:
            yield name, client, broker.target.app_keys[name].url or broker.target.broker_url


def _key(broker: Broker, name: str, task_id: str) -> str:
    """Return the key of one task's state; empty where its id would make another key of it."""
    if name == OWN:
        return broker.keys.checkpoint(task_id)
    key = broker.target.app_keys[name].key(task_id)
    return "" if broker.keys.is_reserved(key) else key


def _refuse_reserved(broker: Broker, task_id: str) -> None:
    for name, _, _ in _places(broker):
        if not _key(broker, name, task_id):
            said = redact.plain(task_id)[:100]
            raise BadParameter(f"{said!r} is no task id: as {name} it would be one of Celery's keys, or of ours.")


def _rows(client: Redis, blank: Checkpoint, wanted: Sequence[tuple[str, str]]) -> Iterator[Checkpoint]:
    """Yield one page of states: their types and sizes first, for one of megabytes is not fetched."""
    with client.pipeline(transaction=False) as pipe:
        for _, key in wanted:
            pipe.type(raw_name(key))
            pipe.pttl(raw_name(key))
            pipe.strlen(raw_name(key))
        said = pipe.execute(raise_on_error=False)
    for (task_id, key), kind, life_ms, length in zip(wanted, said[::3], said[1::3], said[2::3], strict=True):
        for answer in (kind, life_ms):
            if isinstance(answer, Exception):
                raise answer
        if kind == b"none":
            continue
        row = replace(blank, task_id=task_id, key=key, life_s=life_ms / 1000 if life_ms >= 0 else -1.0)
        if kind != b"string" or not isinstance(length, int):
            yield replace(row, problem=f"It is a {key_name(kind)}, and a state is a string of JSON.")
        elif length > checkpoints.MOST_STATE_BYTES:
            most = checkpoints.MOST_STATE_BYTES
            yield replace(row, size_bytes=length, problem=f"It has {length:,} bytes; at most {most:,} are copied.")
        elif (raw := cast("bytes | None", client.get(raw_name(key)))) is not None:
            yield _row(row, raw)


def _row(row: Checkpoint, raw: bytes) -> Checkpoint:
    row = replace(row, sha256=digest(raw), size_bytes=len(raw))
    found = checkpoints.state(raw, own=row.name == OWN)
    if isinstance(found, Unreadable):
        return replace(row, problem=f"It cannot be read: {found.reason}.")
    try:
        checkpoints.handed(raw, old=row.task_id, new=row.task_id)
    except ValueError as error:
        return replace(row, problem=f"It cannot be copied: {str(error)[:100]}.")
    names = ("task", "parameters", "queue", "priority", "progress", "results", "saved_at")
    links = ("resumed_from", "resumed_as", "failure", "refused")
    told = {name: getattr(found, name) for name in (*names, *links)}
    return replace(row, **told, source="state" if found.parameters else "")


def _with_parameters(broker: Broker, seen: Whereabouts, rows: Sequence[Checkpoint]) -> Iterator[Checkpoint]:
    """Yield states with the message that failed, and with arguments out of a dead letter or a result, if need be."""
    found = _letters(broker, seen, {row.task_id for row in rows})
    results = _results(broker, [row.task_id for row in rows if not (row.parameters and row.task)])
    for row in rows:
        letter, result = found.get(row.task_id), results.get(row.task_id, _Result())
        if letter is not None:
            row = _by_letter(row, letter)  # noqa: PLW2901 - the same row, with more in it
        if result.args is not None or result.kwargs is not None:
            row = _by_result(row, result)  # noqa: PLW2901 - as above
        yield row


def _by_letter(row: Checkpoint, letter: Letter) -> Checkpoint:
    message = letter.message
    told = head(message) if message else None
    if isinstance(told, Head) and told.task_id == row.task_id and row.task in {"", told.task}:
        queue = row.queue or letter.queue
        return replace(row, message=message, task=told.task, queue=queue, source=row.source or "dead letter")
    if row.parameters or not (isinstance(letter.args, list) or isinstance(letter.kwargs, dict)):
        return row
    # In an entry of ours these are texts for people; only one of another shape has the values.
    args, kwargs = letter.args, letter.kwargs
    said = {"args": args if isinstance(args, list) else [], "kwargs": kwargs if isinstance(kwargs, dict) else {}}
    task, queue = row.task or letter.task_name, row.queue or letter.queue
    return replace(row, parameters=json.dumps(said), source="dead letter", task=task, queue=queue)


def _by_result(row: Checkpoint, result: _Result) -> Checkpoint:
    row = replace(row, task=row.task or result.name or "", queue=row.queue or result.queue or "")
    if row.parameters or row.message:
        return row
    said = json.dumps({"args": result.args or [], "kwargs": result.kwargs or {}})
    return replace(row, parameters=said, source="result")


def _letters(broker: Broker, seen: Whereabouts, ids: set[str]) -> Mapping[str, Letter]:
    """Return the newest dead letter of each task, whole."""
    from redis.exceptions import ResponseError

    found: dict[str, Letter] = {}
    wanted = {row.task_id for row in seen.dead} & ids
    needles = [form for task_id in wanted for form in (raw_name(task_id), json.dumps(task_id)[1:-1].encode())]
    for key in dict.fromkeys(row.key for row in seen.dead if row.task_id in wanted):
        try:
            listing = windows.Listing(key=key, length=broker.reads.llen(raw_name(key)))
            for _, raw in islice(windows.stream(broker, listing), _MOST_ENTRIES):
                if not any(needle in raw for needle in needles):
                    continue
                letter = letters.read(raw)
                if not isinstance(letter, Unreadable) and letter.task_id in wanted:
                    found.setdefault(letter.task_id, letter)
        except ResponseError:
            continue  # it is no list by now
    return found


def _results(broker: Broker, ids: Sequence[str]) -> Mapping[str, _Result]:
    """Return what the results of these tasks say of them."""
    from redis.exceptions import RedisError

    found: dict[str, _Result] = {}
    if broker.results is None:
        return found
    for task_id in ids:
        try:
            raw = cast("bytes", broker.results.getrange(raw_name(broker.keys.result(task_id)), 0, _LARGEST_RESULT))
            found[task_id] = _decode_result(raw)
        except (RedisError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # whether the results could be read at all, their own coverage says
    return found
