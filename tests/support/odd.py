"""Messages that somebody other than Celery wrote, or that broke on their way."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.support.seed import envelope

#: Written by a pickle body that is loaded; no test may ever find it.
CANARY = "opslib-canary"
_PICKLE = b"cposix\nsystem\n(S'touch " + CANARY.encode() + b"'\ntR."


def changed(*path: str, to: object) -> bytes:
    """Return a good message with one value replaced."""
    message: dict[str, Any] = envelope()
    inner = message
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return json.dumps(message).encode()


def without(*path: str) -> bytes:
    """Return a good message with one key left out."""
    message: dict[str, Any] = envelope()
    inner = message
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return json.dumps(message).encode()


def _protocol_1() -> bytes:
    body = {"task": "tests.old", "id": "old-1", "args": [], "kwargs": {}, "retries": 2, "eta": None, "expires": None}
    message = envelope()
    message["headers"] = {}
    message["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    return json.dumps(message).encode()


def _text(old: str, new: str) -> bytes:
    return json.dumps(envelope()).replace(old, new).encode()


#: The numbers are those of the list of bad inputs. Over some a worker stumbles, others it takes or drops by itself.
ODD: dict[str, bytes] = {
    "1 empty": b"",
    "1 blank": b"  \n",
    "2 truncated": json.dumps(envelope()).encode()[:400],
    "3 number": b"42",
    "3 null": b"null",
    "3 list": b"[1, 2]",
    "3 string": b'"text"',
    "4 no headers": without("headers"),
    "4 headers of another type": changed("headers", to=[1]),
    "5 no properties": without("properties"),
    "5 properties of another type": changed("properties", to="x"),
    "6 no body": without("body"),
    "7 no delivery tag": without("properties", "delivery_tag"),
    "7 delivery tag of another type": changed("properties", "delivery_tag", to=7),
    "11 number of 5,000 digits": _text('"retries": 0', '"retries": ' + "9" * 5000),
    "12 nested 200,000 deep": b"[" * 200_000,
    "14 no UTF-8": b'{"headers": "\xff\xfe"}',
    "15 UTF-16": json.dumps(envelope()).encode("utf-16"),
    "15 byte order mark": b"\xef\xbb\xbf" + json.dumps(envelope()).encode(),
    "16 NUL bytes": b"\x00\x00\x00",
    "21 base64 with bad padding": changed("body", to="abc"),
    "8 protocol 1": _protocol_1(),
    "9 equal keys": _text('"retries": 0', '"retries": 1, "retries": 2'),
    "10 NaN": _text('"retries": 0', '"retries": NaN'),
    "10 Infinity": _text('"expires": null', '"expires": Infinity'),
    "13 lone surrogate": _text('"tests.ok"', '"\\ud800"'),
    "17 unknown content type": changed("content-type", to="application/x-nobody"),
    "18 pickle": json.dumps(
        {
            **envelope(),
            "body": base64.b64encode(_PICKLE).decode(),
            "content-type": "application/x-python-serialize",
            "content-encoding": "binary",
        }
    ).encode(),
    "26 arguments of another type": changed("body", to=base64.b64encode(b'["x", 1, {}]').decode()),
    "27 body without its third part": changed("body", to=base64.b64encode(b"[[], {}]").decode()),
    "28 empty task name": changed("headers", "task", to=""),
    "28 task name with a newline": changed("headers", "task", to="a\nb"),
    "28 task name of 10 KB": changed("headers", "task", to="t" * 10_000),
    "29 id that is no UUID": changed("headers", "id", to="order:4711"),
    "29 id that is a number": changed("headers", "id", to=4711),
    "31 negative priority": changed("properties", "priority", to=-1),
    "31 priority 255": changed("properties", "priority", to=255),
    "31 priority as text": changed("properties", "priority", to="high"),
    "32 negative retries": changed("headers", "retries", to=-1),
    "32 huge retries": changed("headers", "retries", to=10**30),
    "32 retries as text": changed("headers", "retries", to="three"),
    "33 naive ETA": changed("headers", "eta", to="2026-11-21T02:00:00"),
    "33 ETA before year 1": changed("headers", "eta", to="-0001-01-01T00:00:00"),
    "33 ETA in year 9999": changed("headers", "eta", to="9999-12-31T23:59:59"),
    "33 ETA with Z": changed("headers", "eta", to="2026-11-21T02:00:00Z"),
    "33 ETA at +14:00": changed("headers", "eta", to="2026-11-21T02:00:00+14:00"),
    "33 ETA that is no time": changed("headers", "eta", to="tomorrow"),
    "34 expiry as a number": changed("headers", "expires", to=1.5),
    "34 expiry in the past": changed("headers", "expires", to="2001-01-01T00:00:00+00:00"),
    "35 time limit of another shape": changed("headers", "timelimit", to="soon"),
}
