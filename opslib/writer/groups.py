"""What a group or a chord keeps → whether every task of it is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from opslib.keys import raw_name

if TYPE_CHECKING:
    from redis import Redis

    from opslib.collectors.mentions import Mentions

#: A group's own list of its members that is larger is not read.
_MOST_BYTES = 4 * 1024 * 1024
_MOST_DEPTH = 200


def is_over(client: Redis, root: bytes, group_id: str, met: Mentions) -> bool:
    """
    Whether no task of a group can still be run.

    A chord that has counted all its members knows that each has ended. A group that was saved names its members, and
    none of these may be in circulation. Of all others the members are not known: such a one is over only where no
    message names it, and no task runs of which nobody can say whose member it is.

    Args:
        root: What the keys of groups begin with.

        met: A look at every message, none of which names the group.
    """
    base = root + raw_name(group_id)
    with client.pipeline(transaction=False) as pipe:
        pipe.get(base + b".s")
        pipe.get(base + b".t")
        pipe.type(base + b".j")
        pipe.strlen(base)
        size, more, kind, length = pipe.execute(raise_on_error=False)
    counted = _counted(client, base + b".j", kind)
    is_chord = isinstance(size, bytes) or kind != b"none"
    if is_chord and isinstance(size, bytes) and counted >= _number(size) + _number(more) > 0:
        return _none_held(client, base, length, met) is not False
    if is_chord:
        return not met.doubtful and _none_held(client, base, length, met) is not False
    known = _none_held(client, base, length, met)
    return not met.doubtful if known is None else known


def _counted(client: Redis, key: bytes, kind: object) -> int:
    if kind == b"zset":
        return client.zcard(key)
    return client.llen(key) if kind == b"list" else 0


def _number(raw: object) -> int:
    return int(raw) if isinstance(raw, bytes) and raw.isdigit() else 0


def _none_held(client: Redis, base: bytes, length: object, met: Mentions) -> bool | None:
    """Return whether none of the members that a group names can still be run; None where it names none."""
    if not isinstance(length, int) or not 0 < length <= _MOST_BYTES:
        return None
    raw = cast("bytes | None", client.get(base))
    try:
        named = list(_texts(json.loads(raw or b"null"), 0))
    except (ValueError, RecursionError):
        return None
    members = [each for each in named if each not in {"result", base.decode("utf-8", "replace")}]
    return not any(each in met.held for each in members) if members else None


def _texts(value: Any, depth: int) -> Iterator[str]:  # noqa: ANN401 - whatever JSON holds
    if depth > _MOST_DEPTH:
        raise RecursionError
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, depth + 1)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each, depth + 1)
