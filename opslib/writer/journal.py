"""A run's journal in the broker → what it has changed and not yet put back, the latest first."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from opslib.errors import Refused

if TYPE_CHECKING:
    from opslib.broker import Broker

_NUMBER = re.compile(r"(\d+)\.(\d+)")
_PAGE = 200
#: What a receipt may unpack to: more than a batch can have.
_LARGEST = 64 * 1024 * 1024
#: Letters of items that were changed.
DONE = frozenset("AN")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """
    One call of a script.

    Attributes:
        number: "epoch.n".

        said: Its letters; "intent" if it was begun and not ended.

        seen: What the script saw of each item.
    """

    number: str
    said: str
    receipt: Mapping[str, Any]
    seen: tuple[str, ...]

    @property
    def order(self) -> tuple[int, int]:
        """What batches sort by: the order in which they were done."""
        epoch, number = self.number.split(".")
        return int(epoch), int(number)

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """What it was about, as its receipt has it; of many alike, it has columns."""
        columns = self.receipt.get("columns")
        if columns:
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return cast("list[dict[str, Any]]", self.receipt.get("items", []))

    def done(self, n: int) -> bool:
        """Whether its n-th item was changed; what was dealt from a list that is set aside always was."""
        if self.receipt.get("op") == "deal":
            return self.said != "intent"
        return n < len(self.said) and self.said[n] in DONE

    def place(self, n: int) -> str:
        """What the script saw of its n-th item; empty for nothing."""
        return self.seen[n] if n < len(self.seen) else ""


@dataclass(frozen=True, kw_only=True)
class Journal:
    """
    What a run did to a broker.

    Attributes:
        run: What the run said of itself: plan, target, runbook; empty if there is no journal.

        batches: In the order in which they were done.
    """

    run_id: str
    run: Mapping[str, Any] = field(default_factory=dict)
    batches: tuple[Batch, ...] = ()

    @cached_property
    def undone(self) -> frozenset[tuple[str, int]]:
        """Batch and item of everything that was put back."""
        return frozenset(
            (str(item["undoes"][0]), int(item["undoes"][1]))
            for batch in self.batches
            for n, item in enumerate(batch.items)
            if "undoes" in item and batch.done(n)
        )

    @cached_property
    def undone_passes(self) -> frozenset[str]:
        """First batches of those passes over a whole list that were put back."""
        return frozenset(str(b.receipt["undoes_pass"]) for b in self.batches if "undoes_pass" in b.receipt)

    def of(self, op: str, role: str, **fields: object) -> list[Batch]:
        """Return the batches of one kind, in the order in which they were done."""
        wanted = {"op": op, "role": role, **fields}
        return [b for b in self.batches if all(b.receipt.get(name) == value for name, value in wanted.items())]

    def standing(self, batch: Batch) -> list[int]:
        """Return the numbers of a batch's items that were changed and not put back."""
        return [
            n
            for n, item in enumerate(batch.items)
            if batch.done(n)
            and "undoes" not in item
            and (batch.number, n) not in self.undone
            and batch.receipt.get("pass") not in self.undone_passes
        ]

    def changed(self) -> Iterator[tuple[Batch, int]]:
        """Yield every item that was changed and not put back, the latest first."""
        for batch in reversed(self.batches):
            for n in reversed(self.standing(batch)):
                yield batch, n

    @property
    def on_the_way(self) -> int:
        """How many messages are in quarantine only because a run was cut off while it moved them through there."""
        kept = f"run:{self.run_id}:q"
        through = onward = 0
        for batch in self.batches:
            undone = batch.receipt.get("pass") in self.undone_passes
            for n, item in enumerate(batch.items):
                if batch.done(n) and not undone:
                    through += "for" in item
                    onward += batch.receipt.get("op") == "move" and "undoes" not in item and kept in item["from"][0]
        return max(0, through - onward)

    @property
    def keeps(self) -> set[str]:
        """Every list of this run's own that it ever put a message into."""
        to = {str(item["to"]) for b in self.batches if b.receipt.get("op") == "rename" for item in b.items}
        to |= {str(item["to"][0]) for b in self.batches if b.receipt.get("op") == "move" for item in b.items}
        to |= {str(run[2]) for b in self.batches for run in b.receipt.get("runs", [])}
        return {key for key in to if f"run:{self.run_id}:" in key}

    @property
    def partial(self) -> list[str]:
        """Batches that were begun and not ended; a person has to look at them."""
        return [batch.number for batch in self.batches if batch.said == "intent"]


def read(broker: Broker, run_id: str) -> Journal:
    """
    Return a run's journal; an empty one if the run changed nothing here, or too long ago.

    Raises:
        Refused: If what stands under its name is no journal of ours.
    """
    fields: dict[str, bytes] = {}
    for name, value in broker.reads.hscan_iter(broker.keys.journal(run_id), count=_PAGE):
        fields[cast("bytes", name).decode("utf-8", "backslashreplace")] = cast("bytes", value)
    try:
        return _of_fields(run_id, fields)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise Refused(
            f"The journal of run {run_id} cannot be read: {type(error).__name__}.",
            hint=f"See {broker.keys.journal(run_id)} in the broker's database; docs/safety.md says what is in it.",
        ) from None


def _of_fields(run_id: str, fields: Mapping[str, bytes]) -> Journal:
    batches = [
        Batch(
            number=name,
            said=said.decode(),
            receipt=_receipt(fields[f"{name}:u"]) if f"{name}:u" in fields else {},
            seen=tuple(fields.get(f"{name}:p", b"").decode().split(",")),
        )
        for name, said in fields.items()
        if _NUMBER.fullmatch(name)
    ]
    return Journal(
        run_id=run_id,
        run=json.loads(fields["run"]) if "run" in fields else {},
        batches=tuple(sorted(batches, key=lambda batch: batch.order)),
    )


def _receipt(packed: bytes) -> dict[str, Any]:
    unpacker = zlib.decompressobj()
    found = json.loads(unpacker.decompress(packed, _LARGEST))
    if not isinstance(found, dict):
        raise TypeError("a receipt is an object")
    return found
