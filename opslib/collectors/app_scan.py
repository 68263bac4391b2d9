"""One SCAN by the pattern of an application's keys → how many there are, what they weigh, and the oldest of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from opslib import redact, refusals
from opslib.collectors import keyspace
from opslib.errors import BadParameter, Refused, near
from opslib.facts.app_keys import FoundKey, KeyScan
from opslib.keys import key_name, raw_name
from opslib.settings import TASK_ID, AppKey

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

#: Keys of a database after which a scan stops: at ten million it has taken some minutes.
MAX_KEYS = 10_000_000
#: Rows that are kept; the others are counted.
MOST_ROWS = 10_000
_GLOB = re.compile(r"[*?\[\]\\^]")
_ANYTHING = re.compile(r"\w")


def scan(
    broker: Broker, name: str, *, older_than_s: float = 0.0, keep: int = MOST_ROWS, max_keys: int = MAX_KEYS
) -> KeyScan:
    """
    Visit every key of the database that has keys of this name, in small steps, and keep the oldest that fit.

    No value is read: that would make every key look as if somebody had just used it.

    Args:
        name: What the target calls the keys.

        older_than_s: Only rows of keys that nobody has read or written for so long; all of them are counted.

        keep: Rows at most, the longest untouched first.

    Raises:
        BadParameter: If the target has no keys of that name, or their pattern could be any key.

        Refused: If ages are wanted, and the server does not count them.

        OpsError: If the database does not answer.
    """
    app_key = known(broker, name)
    if not _ANYTHING.search(app_key.pattern.replace(TASK_ID, "")):
        raise BadParameter(f"app_keys.{name}.pattern: {app_key.pattern!r} could be any key.")
    client, url = broker.apps[name], app_key.url or broker.target.broker_url
    shown = redact.url(url)
    head, _, tail = app_key.pattern.partition(TASK_ID)
    glob = raw_name(f"{_escaped(head)}*{_escaped(tail)}")
    others = _others(broker, name)
    found = _Found(keep)
    with refusals.explained(shown):
        site = broker.elsewhere(client, url)
        taken_at = site.server_time()
        total, cursor, visited = client.dbsize(), 0, 0
        while True:
            cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, match=glob, count=keyspace.STEP))
            visited += keyspace.STEP
            some = [key for key in map(key_name, names) if len(key) > len(head) + len(tail)]
            own = [
                key
                for key in some
                if not (broker.keys.is_reserved(key) or any(other.fullmatch(key) for other in others))
            ]
            found.strangers += len(some) - len(own)
            _look(client, own, app_key, found, older_than_s)
            if cursor == 0 or visited >= max_keys:
                break
    return KeyScan(
        name=name,
        pattern=app_key.pattern,
        database=shown,
        fingerprint=site.fingerprint,
        keys=found.keys,
        size_bytes=found.size_bytes,
        forever=found.forever,
        fits=found.fits,
        strangers=found.strangers,
        rows=tuple(found.oldest()),
        visited=min(visited, total),
        left=max(1, total - visited) if cursor else 0,
        taken_at=taken_at,
    )


def known(broker: Broker, name: str) -> AppKey:
    """
    Return what the target says of the keys of a name.

    Raises:
        BadParameter: If it names none so.
    """
    found = broker.target.app_keys.get(name)
    if found is None:
        none = "Name them under app_keys in ops.toml, or set REDIS_PROGRESS_URL, REDIS_LOGS_URL: docs/configuration.md."
        raise BadParameter(
            f"Target {broker.target.name} names no keys {redact.plain(name)[:100]!r} of the application.",
            hint=near(name, broker.target.app_keys) if broker.target.app_keys else none,
        )
    return found


class _Found:
    """Counts over all keys, and the rows of the oldest."""

    def __init__(self, keep: int) -> None:
        self.keys = self.size_bytes = self.forever = self.fits = self.strangers = 0
        self._keep = keep
        self._rows: dict[str, FoundKey] = {}

    def add(self, row: FoundKey, *, fits: bool) -> None:
        self.keys += 1
        self.size_bytes += row.size_bytes
        self.forever += row.life_s < 0
        if fits:
            self.fits += 1
            self._rows[row.key] = row
            if len(self._rows) >= 2 * self._keep:
                self._rows = {each.key: each for each in self.oldest()}

    def oldest(self) -> list[FoundKey]:
        ranked = sorted(self._rows.values(), key=lambda row: (-(row.idle_s or 0.0), row.key))
        return ranked[: self._keep]


def _look(client: Redis, keys: Sequence[str], app_key: AppKey, found: _Found, older_than_s: float) -> None:
    """Ask of one step's keys what can be told without touching them."""
    if not keys:
        return
    with client.pipeline(transaction=False) as pipe:
        for name in map(raw_name, keys):
            pipe.type(name)
            pipe.pttl(name)
            pipe.memory_usage(name)
            pipe.object("IDLETIME", name)
        said = pipe.execute(raise_on_error=False)
    for key, kind, life_ms, weight, idle in zip(keys, said[::4], said[1::4], said[2::4], said[3::4], strict=True):
        for answer in (kind, life_ms, weight):
            if isinstance(answer, Exception):
                raise answer
        idle_s = _idle_s(idle, older_than_s)
        if kind == b"none" or life_ms == -2 or weight is None:
            continue
        row = FoundKey(
            key=key,
            task_id=app_key.task_id(key),
            type=key_name(kind),
            size_bytes=int(weight),
            life_s=life_ms / 1000 if life_ms >= 0 else -1.0,
            idle_s=idle_s,
        )
        found.add(row, fits=not older_than_s or (idle_s is not None and idle_s >= older_than_s))


def _idle_s(answer: object, older_than_s: float) -> float | None:
    """Return for how long a key was unused; None where the server does not tell, and nobody asks for an age."""
    if not isinstance(answer, Exception):
        return None if answer is None else float(cast("int", answer))
    if not older_than_s:
        return None
    if "LFU" not in str(answer):
        raise answer
    what = "This server does not count how long a key was unused (its maxmemory-policy counts how often)"
    raise Refused(f"{what}, so older_than cannot be told. Nothing was changed.", hint="Leave it out.")


def _others(broker: Broker, name: str) -> list[re.Pattern[str]]:
    """Return the closer patterns of other names in the same database: `task:{task_id}:log` beside `task:{task_id}`."""
    own = broker.target.app_keys[name].pattern
    patterns = [
        each.pattern
        for other, each in broker.target.app_keys.items()
        if other != name and broker.apps[other] is broker.apps[name] and len(each.pattern) > len(own)
    ]
    return [re.compile(re.escape(pattern).replace(re.escape(TASK_ID), ".+"), re.DOTALL) for pattern in patterns]


def _is_of(patterns: Sequence[re.Pattern[str]], key: str) -> bool:
    return any(pattern.fullmatch(key) for pattern in patterns)


def _escaped(text: str) -> str:
    return _GLOB.sub(r"\\\g<0>", text)
