"""What a server has saved → a copy of it in the run's folder, and the proof, by a restore beside it, that it holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from opslib import folders, records, redact, refusals, settings, values
from opslib.collectors import backup as collected
from opslib.errors import Refused
from opslib.facts.backup import Backup, Census, Compared, Kept, KeyPrint, Saves, Saving
from opslib.keys import key_name, raw_name
from opslib.plan import Kind, Outcome, Status
from opslib.writer import dumps, scratch, vault

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

#: Files of the run's folder. What begins with this word is a copy of somebody's data, and is never looked through for
#: credentials that would have to be taken out of it.
DUMP, EXPORT = "vault-dump.rdb", "vault-export.jsonl.gz"
#: Elements that are in memory at once; and keys that are asked for together, with those of their values that are short.
_WINDOW, _PAGE = 1_000, 250
#: Names of keys that differ, of which so many are told.
_NAMED = 10
#: An expiry is counted to the millisecond, by clocks that are asked at different times.
_LIFE_DIFFERS_MS = 2_000
#: What is about to expire may do so before it is looked at again.
_ABOUT_TO_MS = 60_000
_NOT_EXPORTED = frozenset({"replies", "others"})


def rehearse(
    broker: Broker,
    before: Saves,
    outcomes: Sequence[Outcome],
    *,
    dump_path: str = "",
    export: bool = True,
    restore: bool = True,
) -> Backup:
    """
    Copy the dump, have a server of our own load it, and compare; and write Celery's keys down one by one.

    What this run has just had saved is kept in its folder. Otherwise all of it is only tried, on whatever dump lies
    there, and removed again. The broker is only read.

    Args:
        before: The look from before the save: what looked the same then and looks the same now has to be in it.

        dump_path: Where the server's file can be read from here, if that is not where the server says.

        export: Whether Celery's keys are written down as well, in a form of their own.

        restore: Whether a server is started here to load the dump.

    Raises:
        BadParameter: If there is no file that can be read at `dump_path`.

        Refused: If the run's folder cannot be written.
    """
    fresh = any(each.action.kind is Kind.SAVE and each.status is Status.APPLIED for each in outcomes)
    with refusals.explained(broker.target.shown_broker):
        saving = collected.saving(broker)
        source, why_not = dumps.locate(broker, saving, dump_path)
        now = collected.census(broker.reads, broker.keys, one_of=before.census.one_of)
    settled = _settled(before.census, now)
    files: list[Kept] = []
    compared: list[Compared] = []
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opslib-rehearsal-")))
        folder = _folder() if fresh else place
        dump, head = _copied(source, why_not, folder, saving, fresh=fresh)
        files.append(_shown(dump, folder, fresh=fresh))
        if head is not None and restore:
            with refusals.explained("the scratch server"):
                compared.append(_restored(broker, folder / DUMP, head, place, saving, settled, now.one_of))
        if export:
            with refusals.explained(broker.target.shown_broker):
                written, found = _exported(broker, folder / EXPORT, now.one_of)
                after = collected.census(broker.reads, broker.keys, one_of=now.one_of)
            files.append(_shown(written, folder, fresh=fresh))
            still = _settled(now, after)  # it was read between these two looks
            mine = {key: each for key, each in still.items() if each.family not in _NOT_EXPORTED}
            compared.append(_judged(Compared(of="export", by="read back from the file"), mine, found))
    return Backup(fresh=fresh, census=now, files=tuple(files), compared=tuple(compared))


def _folder() -> Path:
    ctx = records.context()
    try:
        return Path(ctx.record).parent if ctx.record else folders.create(settings.reports_root(), ctx.run_id)
    except OSError as error:
        raise Refused(f"The run's folder cannot be written: {error.strerror}. Nothing was kept.") from None


def _shown(kept: Kept, folder: Path, *, fresh: bool) -> Kept:
    """Return a file with its place below the archive; what is only tried has none."""
    name = DUMP if kept.kind == "dump" else EXPORT
    there = fresh and (folder / name).is_file()
    return replace(kept, path=str((folder / name).relative_to(settings.reports_root())) if there else "")


def _copied(
    source: Path | None, why_not: str, folder: Path, saving: Saving, *, fresh: bool
) -> tuple[Kept, dumps.Head | None]:
    """Copy the dump; return what is to be said of it, and its head, if it is one that can be loaded."""
    kept = Kept(kind="dump")
    if source is None:
        return replace(kept, problem=why_not), None
    try:
        size, sha256 = dumps.copy(source, folder / DUMP)
    except OSError as error:
        return replace(kept, problem=f"{source} cannot be copied: {error.strerror}."), None
    head = dumps.read_head(folder / DUMP)
    kept = replace(kept, size_bytes=size, sha256=sha256)
    if isinstance(head, str):
        return replace(kept, problem=f"{source}: {head}"), None
    kept = replace(kept, saved_at=head.began_at)
    sound, said = dumps.check(folder / DUMP)
    if sound is False:
        return replace(kept, problem=said), None
    if not dumps.is_of_last_save(head, saving):
        problem = "It is not of the last save that the server knows of." if fresh else ""
        said = f"{said} It is of another save than the last one that the server knows of."
        return replace(kept, problem=problem, note=said), head
    return replace(kept, note=said), head


def _settled(before: Census, now: Census) -> Mapping[str, KeyPrint]:
    """Return the keys that looked the same before and after: whatever was saved in between has to hold them so."""
    end_ms = now.taken_at.timestamp() * 1000 + _ABOUT_TO_MS
    return {
        key: each
        for key, each in now.prints.items()
        if (was := before.prints.get(key)) is not None
        and _alike(was, each)
        and each.family not in {"opslib", "replies"}
        and (each.expires_at_ms is None or each.expires_at_ms > end_ms)
    }


def _alike(one: KeyPrint, other: KeyPrint) -> bool:
    lives = one.expires_at_ms, other.expires_at_ms
    same_life = lives[0] == lives[1] or (
        lives[0] is not None and lives[1] is not None and abs(lives[0] - lives[1]) <= _LIFE_DIFFERS_MS
    )
    return (one.type, one.elements, one.digest) == (other.type, other.elements, other.digest) and same_life


def _restored(
    broker: Broker,
    dump: Path,
    head: dumps.Head,
    place: Path,
    saving: Saving,
    settled: Mapping[str, KeyPrint],
    one_of: int,
) -> Compared:
    """Have a server of our own load a copy of the dump, and compare what it holds."""
    blank = Compared(of="dump")
    if problem := scratch.room_for(max(saving.used_bytes, dump.stat().st_size)):
        return replace(blank, problem=problem)
    own = place / "scratch"
    own.mkdir(mode=0o700)
    try:
        dumps.copy(dump, own / scratch.DUMP)
    except OSError as error:
        return replace(blank, problem=f"There is no room for a second copy of the dump: {error.strerror}.")
    with scratch.loaded(own, head, broker.keys.database) as server:
        if isinstance(server, str):
            return replace(blank, problem=server)
        found = collected.census(server.client, broker.keys, one_of=one_of)
        blank = replace(blank, by=server.by, took_s=server.took_s, databases=server.databases)
        return _judged(blank, settled, found.prints, keys=found.keys)


def _judged(
    blank: Compared, settled: Mapping[str, KeyPrint], found: Mapping[str, KeyPrint], *, keys: int = 0
) -> Compared:
    """Return how many of the settled keys a backup holds as they are, and which it does not."""
    differing = sorted(key for key, each in settled.items() if key not in found or not _alike(each, found[key]))
    return replace(
        blank,
        keys=keys or len(found),
        settled=len(settled),
        same=len(settled) - len(differing),
        others=sum(settled[key].family == "others" for key in differing),
        differing=tuple(redact.plain(key) for key in differing[:_NAMED]),
        families=collected.families(found.values()),
    )


def _exported(broker: Broker, path: Path, one_of: int) -> tuple[Kept, Mapping[str, KeyPrint]]:
    """Write Celery's keys down, read the file back, and return what it holds."""
    header = vault.Header(run_id=records.context().run_id, target=broker.target.name, broker=broker.fingerprint)
    left_out: list[int] = []
    receipt = vault.write(path, header, _entries(broker, left_out))
    found: dict[str, KeyPrint] = {}
    names = 0
    for key, each in _read_back(broker, path):
        names += 1
        if collected.is_chosen(raw_name(key), one_of):
            found[key] = each
    count = len(left_out)
    more = f" {count:,} stream{'s are' if count > 1 else ' is'} in the dump alone." if count else ""
    note = f"Every line of it was read back and compared.{more}"
    kept = Kept(kind="export", size_bytes=receipt.size, sha256=_sha256(path), keys=names, note=note)
    return kept, found


def _entries(broker: Broker, left_out: list[int]) -> Iterator[vault.Kept]:
    """
    Yield what Celery's keys hold, a window at a time; a key of several windows has them one after the other.

    A scan may meet a key twice, and to remember all of them would need as much memory as they do: it then begins anew.
    """
    client = broker.reads
    cursor = 0
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, count=_PAGE))
        rows = _celerys(broker, client, names)
        short = collected.short_strings(client, [name for name, kind, _ in rows if kind == "string"])
        for name, kind, until in rows:
            if kind not in values.KINDS:
                left_out.append(1)
                continue
            found = [[short[name]]] if name in short else collected.elements(client, name, kind, window=_WINDOW)
            for part, window in enumerate(found):
                yield vault.Kept(key=name, type=kind, parts=tuple(window), expires_at_ms=until, note={"part": part})
        if cursor == 0:
            return


def _celerys(broker: Broker, client: Redis, names: Sequence[bytes]) -> list[tuple[bytes, str, int | None]]:
    """Return those keys that are Celery's or this tool's, each with its type and when it expires."""
    if not names:
        return []
    seconds, micros = client.time()
    now_ms = int(seconds * 1000 + micros / 1000)
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.type(name)
            pipe.pttl(name)
        said = pipe.execute()
    return [
        (name, kind, now_ms + life_ms if life_ms >= 0 else None)
        for name, kind, life_ms in zip(names, map(key_name, said[::2]), said[1::2], strict=True)
        if kind != "none" and collected.family(broker.keys, key_name(name), kind) not in _NOT_EXPORTED
    ]


def _read_back(broker: Broker, path: Path) -> Iterator[tuple[str, KeyPrint]]:
    """Yield what each key of an export looks like, as a census tells it."""
    _, entries = vault.read(path)
    current: _Gathered | None = None
    for each in entries:
        if current is None or current.first.key != each.key:
            if current is not None:
                yield current.told(broker)
            current = _Gathered(each)
        current.add(each.parts)
    if current is not None:
        yield current.told(broker)


class _Gathered:
    """The windows of one key, of which no more is kept than tells it again."""

    def __init__(self, first: vault.Kept) -> None:
        self.first = first
        self._head: list[bytes] = []
        self._tail: list[bytes] = []
        self._parts = self._bytes = 0

    def add(self, parts: Sequence[bytes]) -> None:
        self._parts += len(parts)
        self._bytes += sum(map(len, parts))
        most = 2 * collected.WHOLE
        self._head += parts[: max(0, most - len(self._head))]
        self._tail = [*self._tail, *parts][-collected.END :]

    def told(self, broker: Broker) -> tuple[str, KeyPrint]:
        kind, key = self.first.type, key_name(self.first.key)
        pairs = kind in {"hash", "zset"}
        count = self._parts // 2 if pairs else self._parts
        parts: Sequence[bytes] = self._head
        if kind == "string":
            count, whole = self._bytes, b"".join(self._head)
            if count > collected.WHOLE_BYTES:
                parts = [whole[: collected.END_BYTES], whole[-collected.END_BYTES :]]
        elif kind == "list" and count > collected.WHOLE:
            parts = [*self._head[: collected.END], *self._tail]
        elif kind != "list" and count > collected.WHOLE:
            parts = []
        return key, collected.key_print(broker.keys, key, kind, count, parts, self.first.expires_at_ms)


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
