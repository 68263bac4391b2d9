"""READ. A sample of the stored results → how many of them live for ever."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from opslib.facts.care import ResultLife
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

_PAGE = 250
#: What the server says of a key without an end, and of one that is not there any more.
_ENDLESS, _GONE = -1, -2


def read(broker: Broker, known: Sequence[bytes], sample: int) -> tuple[ResultLife | None, list[Coverage]]:
    """
    Ask how long some of the results live, taken evenly from all that there are.

    Args:
        known: Keys of results that a pass over the broker's database met.

        sample: How many are asked at most.
    """
    from redis.exceptions import RedisError

    if broker.results is None:
        return None, []  # the look at the results has said so
    try:
        total, keys = len(known), _evenly(known, sample)
        if broker.results is not broker.reads:
            total, keys = _other_database(broker.results, broker.keys.result_root, sample)
        lives = [life for page in _pages(keys) for life in _lives(broker.results, page)]
    except RedisError as error:
        note = f"How long results live cannot be asked: {str(error).rstrip('.')}."
        return None, [Coverage(place="results' life", seen=0, silent=1, note=note)]
    looked = [life for life in lives if life != _GONE]
    gone, endless = len(lives) - len(looked), sum(each == _ENDLESS for each in looked)
    life = ResultLife(total=max(total - gone, len(looked)), looked=len(looked), endless=endless)
    note = "" if life.exact else f"Of {life.total:,} results a sample was asked for its time to live."
    return life, [Coverage(place="results' life", seen=life.looked, note=note)]


def _evenly(keys: Sequence[bytes], sample: int) -> list[bytes]:
    if len(keys) <= sample:
        return list(keys)
    return [keys[at * len(keys) // sample] for at in range(sample)]


def _other_database(client: Redis, root: str, sample: int) -> tuple[int, list[bytes]]:
    """Return how many keys there are, and the first of those that are results; SCAN meets them in no order."""
    cursor, keys, start, visited, total = 0, list[bytes](), root.encode(), 0, int(client.dbsize())
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, count=_PAGE))
        visited += len(names)
        keys += [name for name in names if name.startswith(start)]
        if cursor == 0:
            return len(keys), keys[:sample]
        if len(keys) >= sample:
            return round(total * len(keys) / max(1, visited)), keys[:sample]
        if visited > 20 * sample:
            return round(total * len(keys) / visited), keys


def _pages(keys: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    return (keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE))


def _lives(client: Redis, keys: Sequence[bytes]) -> list[int]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.pttl(key)
        return cast("list[int]", pipe.execute())
