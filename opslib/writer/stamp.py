"""A deployment's environment → a stamp in its broker, written once, that tells it from every other one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.errors import Refused
from opslib.writer import audit, scripts

if TYPE_CHECKING:
    from opslib.broker import Broker


def make(broker: Broker, environment: str, label: str = "") -> dict[str, str]:
    """Return a new stamp; its id tells it from that of a copy under the same name."""
    created = broker.server_time().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"env": environment, "id": str(uuid.uuid4()), "label": label or environment, "created": created}


def write(broker: Broker, stamp: Mapping[str, str]) -> None:
    """
    Write a stamp into a broker that has none.

    Raises:
        Refused: If something stands there already, or the server takes no writes; nothing was changed then.

        BrokerUnreachable: If the server does not answer.
    """
    shown, key = broker.target.shown_broker, broker.keys.environment
    audit.write("stamp", stage="intent", target=broker.target.name, stamp=dict(stamp))
    try:
        with refusals.explained(shown):
            said, _ = broker.writes.eval(scripts.text("stamp"), 1, key, json.dumps(stamp, sort_keys=True))
    except Exception as error:
        audit.note("stamp", stage="result", said="ERROR", why=str(error))
        raise
    audit.note("stamp", stage="result", said=said.decode())
    if said != b"STAMPED":
        raise Refused(
            f"{shown} has something in {key} already. Nothing was changed.",
            hint="A stamp is written once. Is this the broker that is meant?",
        )
