"""
Batches of rows → in the vault, in the audit and the journal, set in a transaction, and told; the same ways back.

Two systems are involved, and no step is atomic in both. So everything is written down before a transaction is begun:
the old values in the run's vault, the intent in the audit and the journal. What became of a transaction is written down
after it. Of one of which that is missing, the rows themselves say whether it was committed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import database as databases
from opslib import settings
from opslib.errors import DatabaseLocked, OpsError, Refused
from opslib.interrupts import deferred
from opslib.plan import Action, Outcome, Status
from opslib.writer import cells, points, rows, vault
from opslib.writer import journal as journals
from opslib.writer.moves import MOVED
from opslib.writer.rows import LOCKED, Change, Place
from opslib.writer.vault import Kept

if TYPE_CHECKING:
    from opslib.database import Database
    from opslib.writer.journal import Batch, Journal
    from opslib.writer.primitive import Primitive

OP = "rows"
#: Roles of its batches: one row, many of them, and the way back.
ONE, MANY, BACK = "row", "rows", "back"
#: Roles of the notes that tell what became of a batch, and what is about to be set back.
_TOLD, _RETURNS = "rows told", "rows back"


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """
    Rows of one transaction.

    Attributes:
        vault: Where their old values are, from entry `at` on.

        of: How many there are of each action.
    """

    place: Place
    changes: Sequence[Change]
    vault: Path
    at: int
    of: Mapping[int, int]
    role: str


def carried_out(primitive: Primitive, database: Database, batch: Transaction, subject: str) -> tuple[str, str]:
    """Set the rows of a batch; return a letter for each, and why it was broken off, if it was."""
    where = str(batch.vault.relative_to(settings.reports_root()))
    of = {str(number): count for number, count in batch.of.items()}
    item = {"from": batch.at, "count": len(batch.changes), "of": of, "s": subject}
    receipt = {"op": OP, "role": batch.role, "vault": where, "table": batch.place.name, "items": [item]}
    about = {"set": f"{len(batch.changes)} rows", "table": batch.place.name, "vault": where}
    why = ""
    with deferred():  # Ctrl-C waits until it is written down what became of it
        number = primitive.call("note", primitive.keys(), [MOVED], receipt=receipt, about=about).number
        try:
            letters = rows.written(database, batch.place, batch.changes)
        except DatabaseLocked as error:  # before anything was set
            why, letters = error.message, LOCKED * len(batch.changes)
        except (OpsError, cells.Unkeepable) as error:
            why = error.message if isinstance(error, OpsError) else f"{error}."
            letters = _looked_again(database, batch)
            if not letters:
                raise Refused(f"{why} What became of the rows is not known: `ops resume` looks again.") from None
        points.passed("after-rows")
        _tell(primitive, number, letters)
    return letters, why


def put_back(
    primitive: Primitive, database: Database, journal: Journal, batches: Iterator[tuple[Batch, list[Change]]]
) -> Counter[str]:
    """
    Set back the rows of batches, each only if it holds what was written; return how many of them by letter.

    Args:
        journal: In which it is told what became of each batch.
    """
    told, places = told_of(journal), dict[str, Place]()
    count: Counter[str] = Counter()
    for batch, changes in batches:
        where = _place_of(places, primitive, database, str(batch.receipt["table"]))
        some = [each.back for each, letter in zip(changes, told[batch.number], strict=True) if letter == MOVED]
        about = {"set back": f"{len(some)} rows", "table": where.name, "of": batch.number}
        with deferred():
            receipt: dict[str, Any] = {"op": "note", "role": _RETURNS, "of": batch.number, "items": []}
            primitive.call("note", primitive.keys(), [""], receipt=receipt, about=about)
            back = rows.returned(database, where, some)
            points.passed("after-rows")
            if LOCKED not in back:
                undoes = {"undoes": [batch.number, 0], "s": batch.items[0]["s"]}
                receipt = {"op": OP, "role": BACK, "vault": batch.receipt["vault"], "items": [undoes]}
                primitive.call("note", primitive.keys(), [MOVED], receipt=receipt, about={**about, "done": len(back)})
        count.update(back)
    return count


def standing(journal: Journal, where: str) -> list[Batch]:
    """Return the batches of rows that a vault keeps and that were not set back yet, in the order of the vault."""
    found = [b for b in journal.batches if b.receipt.get("op") == OP and b.receipt.get("vault") == where]
    return sorted((b for b in found if journal.standing(b)), key=lambda batch: int(batch.items[0]["from"]))


def count_of(batch: Batch, journal: Journal) -> int:
    """Return how many rows a batch has set; where nobody knows yet, how many it was about."""
    told = told_of(journal).get(batch.number)
    return int(batch.items[0]["count"]) if told is None else told.count(MOVED)


def unproven(primitive: Primitive, actions: set[int]) -> dict[int, str]:
    """Return those of these actions whose rows do not hold what was written, each with how many that are."""
    database = databases.connect(primitive.broker.target)
    journal = journals.read(primitive.broker, primitive.run_id)
    told, places = told_of(journal), dict[str, Place]()
    mine = [b for b in journal.batches if b.receipt.get("op") == OP and b.receipt.get("role") != BACK]
    mine = [batch for batch in mine if primitive.goes_on or batch.order[0] == primitive.epoch]
    of = {batch.number: {int(number) for number in batch.items[0]["of"]} for batch in mine}
    lacking: Counter[int] = Counter()
    for batch, changes in of_vaults([b for b in mine if of[b.number] & actions and b.number in told]):
        where = _place_of(places, primitive, database, str(batch.receipt["table"]))
        some = [each.back for each, letter in zip(changes, told[batch.number], strict=True) if letter == MOVED]
        with database.reading() as connection:
            now = rows.find(connection, where, some)
        short = sum(rows.letter(where, each, found) != MOVED for each, found in zip(some, now, strict=True))
        lacking.update(dict.fromkeys(of[batch.number], short))
    unknown = actions - set().union(*of.values())
    lost = {
        number: f"{n:,} of the rows do not hold what was written: somebody has changed them since"
        for number, n in lacking.items()
        if n
    }
    return lost | dict.fromkeys(unknown, "the journal has nothing of it: a failover or a restart rolled it back")


def told_of(journal: Journal) -> dict[str, str]:
    """Return the letters of every batch of which it is known what became of it."""
    return {str(note.receipt["of"]): str(note.receipt["letters"]) for note in journal.of("note", _TOLD)}


def settled(primitive: Primitive, database: Database) -> Journal:
    """Return the run's journal after it knows what became of every batch: a run may have been cut off before."""
    journal = journals.read(primitive.broker, primitive.run_id)
    told, places = told_of(journal), dict[str, Place]()
    open_ = [b for b in journal.batches if b.receipt.get("op") == OP and "of" in (b.items or [{}])[0]]
    open_ = [batch for batch in open_ if batch.number not in told]
    for batch, some in of_vaults(open_):
        where = _place_of(places, primitive, database, str(batch.receipt["table"]))
        _tell(primitive, batch.number, rows.looked_at(database, where, some))
    return journals.read(primitive.broker, primitive.run_id) if open_ else journal


def before(primitive: Primitive, database: Database) -> Counter[int]:
    """Return how many rows of each action an interrupted run had set, which this one goes on with."""
    found: Counter[int] = Counter()
    if primitive.goes_on:
        journal = settled(primitive, database)
        told = told_of(journal)
        for batch in journal.batches:
            if batch.receipt.get("op") == OP and batch.receipt.get("role") != BACK:
                for number in batch.items[0]["of"]:  # a batch is of one action
                    found[int(number)] += told.get(batch.number, "").count(MOVED)
    return found


def taken(primitive: Primitive, action: Action, reason: str) -> Outcome:
    """Have the journal know that an action is done with: another one that goes on leaves it out."""
    key = action.copies[0].key if action.copies else ""
    item = {"a": action.id, "s": action.subject, "key": key}
    receipt = {"op": "note", "role": "taken", "items": [item]}
    primitive.call("note", primitive.keys(), [MOVED], receipt=receipt, about={"taken": action.subject})
    return Outcome(action=action, status=Status.APPLIED, reason=reason)


def kept(action: Action, table: str, of: Change) -> Kept:
    """Return what the vault keeps of a row that an action sets."""
    document = {"key": of.key, "held": of.held, "old": of.old, "new": of.new}
    key = f"{table} {json.dumps(dict(of.key))}"
    return Kept(
        key=key.encode(),
        type="row",
        parts=(json.dumps(document).encode(),),
        note={"a": action.id, "table": table},
    )


def change_of(kept: Kept) -> Change:
    """Return the row that an entry of the vault is."""
    return Change(**json.loads(kept.parts[0]))


def header(primitive: Primitive) -> vault.Header:
    """Return whose vault it is."""
    target = primitive.broker.target
    return vault.Header(run_id=primitive.run_id, target=target.name, broker=primitive.broker.fingerprint)


def of_vaults(batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Change]]]:
    """
    Yield batches with the rows that each was about, vault by vault, in little memory.

    Raises:
        Refused: If a vault is missing or damaged, or holds fewer.
    """
    by_vault: defaultdict[str, list[Batch]] = defaultdict(list)
    for batch in batches:
        by_vault[str(batch.receipt["vault"])].append(batch)
    for where, some in by_vault.items():
        path, at = _path_of(where), 0
        _, entries = vault.read(path)
        for batch in sorted(some, key=lambda each: int(each.items[0]["from"])):
            start, count = int(batch.items[0]["from"]), int(batch.items[0]["count"])
            changes = [change_of(kept) for kept in islice(entries, start - at, start - at + count)]
            at = start + count
            if len(changes) != count:
                raise Refused(f"The vault {path} does not hold the rows of batch {batch.number}.")
            yield batch, changes


def _place_of(known: dict[str, Place], primitive: Primitive, database: Database, name: str) -> Place:
    if name not in known:
        known[name] = rows.place(primitive.broker.target, database, name)
    return known[name]


def _looked_again(database: Database, batch: Transaction) -> str:
    """Return what became of a transaction that ended by an error, by the rows; empty if they cannot be seen either."""
    try:
        return rows.looked_at(database, batch.place, batch.changes)
    except (OpsError, cells.Unkeepable):
        return ""


def _tell(primitive: Primitive, number: str, letters: str) -> None:
    """Write down what became of a batch."""
    receipt = {"op": "note", "role": _TOLD, "of": number, "letters": letters, "items": []}
    told = ", ".join(f"{letter} {n}" for letter, n in Counter(letters).items())
    primitive.call("note", primitive.keys(), [""], receipt=receipt, about={"rows": told, "of": number})
    points.passed("rows-told")


def _path_of(where: str) -> Path:
    root = settings.reports_root()
    path = root / where
    if not path.resolve().is_relative_to(root.resolve()):
        raise Refused(f"The journal names a vault outside the archive: {where}.")
    return path
