"""What a message says about itself is read whatever was pushed, and nothing in its body is ever run."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from opslib import envelope
from opslib.envelope import Head, Unreadable, head, instant, peek, unacked_head
from opslib.rewrite import restored

SAMPLES = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "samples").glob("*.json"))}
ENVELOPES = {name: raw for name, raw in SAMPLES.items() if name.startswith("envelope-")}
PLAIN = json.loads(ENVELOPES["envelope-plain"])
UNACKED = [json.dumps(entry).encode() for entry in json.loads(SAMPLES["unacked-hash"]).values()]
UNACKED.append(SAMPLES["unacked-entry-redelivered"])

ID, TAG = PLAIN["headers"]["id"], PLAIN["properties"]["delivery_tag"]
DEEP = b"[" * 200_000 + b"]" * 200_000


def message(
    *without: str, headers: Mapping[str, Any] | None = None, properties: Mapping[str, Any] | None = None, **more: Any
) -> bytes:
    """Return the plain sample with other fields, and without those named; `_` in a name stands for `-`."""
    made = {
        **PLAIN,
        "headers": {**PLAIN["headers"], **(headers or {})},
        "properties": {**PLAIN["properties"], **(properties or {})},
    }
    made |= {name.replace("_", "-"): value for name, value in more.items()}
    for name in without:
        where, _, field = name.rpartition(".")
        del (made[where] if where else made)[field]
    return json.dumps(made).encode()


def entry(raw: bytes, exchange: object = "", routing_key: object = "celery") -> bytes:
    """Return a message as the unacked hash holds it."""
    return b"[" + raw + b", " + json.dumps(exchange).encode() + b", " + json.dumps(routing_key).encode() + b"]"


# What Celery writes


@pytest.mark.parametrize("name", ENVELOPES)
def test_every_message_of_celery_is_read(name):
    """Plain, beat's, a chord's, compressed, pickled, protocol 1 or stamped: each has its id, task and tag."""
    said, written = head(ENVELOPES[name]), json.loads(ENVELOPES[name])

    assert isinstance(said, Head)
    assert said.task == "tapp.add"
    assert said.task_id == written["properties"]["correlation_id"]
    assert said.delivery_tag == written["properties"]["delivery_tag"]
    assert said.priority == written["properties"]["priority"]


@pytest.mark.parametrize("name", ENVELOPES)
def test_fast_and_tolerant_reading_agree(name):
    """The typed path is only quicker: what it says, the tolerant one says too."""
    raw = ENVELOPES[name]

    assert head(raw) == envelope._tolerant(raw)
    assert (peek(raw) is None) == (name == "envelope-protocol1")


@pytest.mark.parametrize("raw", UNACKED)
def test_an_unacked_entry_is_read_by_both_ways(raw):
    """The entry's envelope reads like a waiting one, beside its exchange and routing key."""
    found, exchange, routing_key = unacked_head(raw)
    by_the_tolerant_way = unacked_head(re.sub(rb'"retries": (\d+)', rb'"retries": "\1"', raw))

    assert isinstance(found, Head)
    assert (exchange, routing_key) == ("", "celery")
    assert by_the_tolerant_way == (found, exchange, routing_key)


def test_a_retried_message_tells_its_retries_and_its_eta():
    """What a retry loop and a late ETA are judged by is in the headers."""
    found, _, _ = unacked_head(UNACKED[0])

    assert isinstance(found, Head)
    assert found.retries == 4
    assert found.eta_at == datetime(2026, 11, 21, 1, 42, 41, 124639, tzinfo=UTC).timestamp()
    assert not found.redelivered


def test_a_protocol_1_message_is_named_by_its_body():
    """Protocol 1 keeps id, task and ETA in the body: just these are read, and only from plain JSON."""
    found = head(ENVELOPES["envelope-protocol1"])

    assert isinstance(found, Head)
    assert (found.task, found.retries) == ("tapp.add", 0)
    assert found.eta_at == datetime(2026, 11, 21, 1, 41, 39, 158415, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(("size", "task"), [(64 * 1024, "tapp.add"), (64 * 1024 + 4, "")])
def test_a_large_protocol_1_body_is_left_alone(size, task):
    """Up to 64 KiB a body is looked into for its task's name; above, the correlation id has to do."""
    body = json.dumps({"task": "tapp.add", "id": "b", "args": ["x" * 40_000]}).encode()
    body += b" " * (size // 4 * 3 - len(body))
    raw = json.dumps({**PLAIN, "headers": {}, "body": base64.b64encode(body).decode()}).encode()

    found = head(raw)

    assert isinstance(found, Head)
    assert (found.task, found.task_id) == (task, "b" if task else ID)


# What is never done


@dataclass
class Bomb:
    """Writes a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("headers", [PLAIN["headers"], {}, {"task": "tapp.add"}])
def test_a_pickled_body_is_never_run(tmp_path, headers):
    """A body of pickle stays bytes, with headers of its own and without: what it would do is not done."""
    canary = tmp_path / "run"
    body = base64.b64encode(pickle.dumps(Bomb(canary))).decode()
    raw = json.dumps(
        {**PLAIN, "headers": headers, "body": body, "content-type": "application/x-python-serialize"}
    ).encode()

    assert isinstance(head(raw), Head)
    assert isinstance(unacked_head(entry(raw))[0], Head)
    assert restored(entry(raw), "new")
    assert not canary.exists()

    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-yaml", "!!python/object/apply:os.system ['true']"),
        ("application/x-msgpack", "\x93\x90\x80\xc0"),
        ("application/x-weird", "?"),
        ("application/json", "[5, {}]"),
        ("application/json", '{"args": 5, "kwargs": []}'),
    ],
)
def test_a_body_of_any_kind_is_opaque(content_type, body):
    """Of protocol 2 nothing depends on the body: its kind is told, and its content is nobody's business here."""
    raw = message(body=base64.b64encode(body.encode()).decode(), content_type=content_type)

    found = head(raw)

    assert isinstance(found, Head)
    assert (found.task, found.content_type) == ("tapp.add", content_type)


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_a_compressed_body_stays_compressed(pack):
    """A hundred megabytes that fold into a hundred kilobytes are not unfolded."""
    packed = pack(bytes(100_000_000))
    raw = message(body=base64.b64encode(packed).decode(), headers={"compression": "application/x-gzip"})

    found = head(raw)

    assert isinstance(found, Head)
    assert found.task == "tapp.add"


@pytest.mark.slow
def test_a_huge_message_is_read():
    """Fifty megabytes of arguments are skipped."""
    found = head(message(body="A" * 50_000_000))

    assert isinstance(found, Head)
    assert found.task == "tapp.add"


# What a worker would stumble over: each of these ends a Celery 5.7 worker, or is dropped by it unread


UNREADABLE = [
    ("nothing", b"", "it is empty"),
    ("white space", b"  ", "it is empty"),
    ("cut off", message()[:100], "it is not JSON"),
    ("a number", b"42", "it is a JSON number, not an object"),
    ("null", b"null", "it is a JSON null, not an object"),
    ("a list", b"[]", "it is a JSON list, not an object"),
    ("a text", b'"x"', "it is a JSON string, not an object"),
    ("a boolean", b"true", "it is a JSON boolean, not an object"),
    ("an empty object", b"{}", "it has no properties"),
    ("no headers, and no task in the body", message("headers"), "it names no task"),
    ("headers that are null", json.dumps({**PLAIN, "headers": None}).encode(), "it names no task"),
    ("headers that are a list", json.dumps({**PLAIN, "headers": [1]}).encode(), "its headers are not an object"),
    ("no properties", message("properties"), "it has no properties"),
    ("properties that are a list", json.dumps({**PLAIN, "properties": [1]}).encode(), "it has no properties"),
    ("no delivery tag", message("properties.delivery_tag"), "it has no delivery tag"),
    ("a tag that is null", message(properties={"delivery_tag": None}), "it has no delivery tag"),
    ("no body", message("body"), "it has no body"),
    ("a body that is null", message(body=None), "it has no body"),
    ("an empty body", message(body=""), "its body is empty"),
    ("a body that is a number", message(body=5), "its body is a JSON number, not text"),
    ("a body that is a list", message(body=[1]), "its body is a JSON list, not text"),
    ("base64 with bad padding", message(body="abc"), "its body is not base64"),
    ("base64 that is not ASCII", message(body="äöüß"), "its body is not base64"),
    (
        "an encoding that kombu lacks",
        message(properties={"body_encoding": "rot13"}),
        "its body_encoding 'rot13' is not known",
    ),
    ("no task's name", message(headers={"task": None}), "it names no task"),
    ("an empty task's name", message(headers={"task": ""}), "it names no task"),
    ("a task's name that is a list", message(headers={"task": ["x"]}), "its task name is not text"),
    ("protocol 1, not ASCII", message("headers.task", body="äöüß"), "its body is not base64"),
    ("protocol 1, not JSON", message("headers.task", body="YWJj"), "it names no task"),
    ("5,000 digits", message().replace(b'"retries": 0', b'"retries": ' + b"9" * 5000), "it is not JSON"),
    ("200,000 brackets", message().replace(b'"lang": "py"', b'"x": ' + DEEP), "it is nested too deeply"),
    ("nothing but brackets", DEEP, "it is nested too deeply"),
    ("a byte order mark", b"\xef\xbb\xbf" + message(), "it is not JSON"),
    ("UTF-16", message().decode().encode("utf-16"), "it is not JSON"),
    ("a byte that is not UTF-8 in front", b"\xff" + message(), "it is not JSON"),
    ("a NUL behind", message() + b"\0", "it is not JSON"),
    ("a raw NUL in a text", message().replace(b'"retries": 0', b'"retries": 0, "shadow": "p\0y"'), "it is not JSON"),
]


@pytest.mark.parametrize(("raw", "because"), [case[1:] for case in UNREADABLE], ids=[case[0] for case in UNREADABLE])
def test_what_cannot_be_read_says_why(raw, because):
    """A sentence for a person, waiting or unacked, and no traceback for anybody."""
    found = head(raw)

    assert isinstance(found, Unreadable)
    assert found.reason.startswith(because)
    assert len(found.reason) < 700
    assert isinstance(unacked_head(entry(raw or b'""'))[0], Unreadable)
    assert peek(raw) is None


@pytest.mark.parametrize(
    "raw",
    [b"", b"42", b"{}", b"[]", b'[{}, "", ""]', b"[" + message() + b"]", b"[" + message() + b', "", "", ""]', DEEP],
)
def test_an_entry_of_another_shape_is_unreadable_and_not_restored(raw):
    """An unacked entry that is no list of three says so, and nothing is made of it."""
    assert isinstance(unacked_head(raw)[0], Unreadable)
    with pytest.raises(ValueError, match="the entry"):
        restored(raw, "new")


# What is odd, and readable all the same


READABLE = [
    ("an extra key twice", message().replace(b'"lang": "py"', b'"task": "other", "task": "tapp.add"'), {}),
    ("NaN", message(headers={"retries": float("nan")}), {"retries": 0}),
    ("Infinity", message(headers={"expires": float("inf")}), {"expires_at": None}),
    ("half a surrogate pair", message(headers={"task": "a\ud800"}), {"task": "a\\ud800"}),
    ("bytes that are not UTF-8", message(headers={"origin": "p?y"}).replace(b"p?y", b"p\xffy"), {"origin": "p\ufffdy"}),
    ("a NUL in a name", message(headers={"task": "a\0b"}), {"task": "a\0b"}),
    ("a line end in a name", message(headers={"task": "a\nb"}), {"task": "a\nb"}),
    ("a name of 10 KB", message(headers={"task": "é" * 10_000}), {"task": "é" * 512}),
    ("an empty delivery tag", message(properties={"delivery_tag": ""}), {"delivery_tag": ""}),
    ("an id that is a number", message(headers={"id": 5}), {"task_id": "5"}),
    ("an id that is null", message(headers={"id": None}), {"task_id": ID}),
    ("an id of 1 KB", message(headers={"id": "x" * 1000}), {"task_id": "x" * 1000}),
    ("a body that is plain text", message(properties={"body_encoding": None}, body="[[], {}, {}]"), {}),
    ("a body that is called UTF-8", message(properties={"body_encoding": "utf-8"}, body="[[], {}, {}]"), {}),
    ("a priority below 0", message(properties={"priority": -1}), {"priority": -1}),
    ("a priority of 255", message(properties={"priority": 255}), {"priority": 255}),
    ("a priority that is text", message(properties={"priority": "7"}), {"priority": 7}),
    ("a priority that is no number", message(properties={"priority": "high"}), {"priority": 0}),
    ("a priority that is null", message(properties={"priority": None}), {"priority": 0}),
    ("retries below 0", message(headers={"retries": -1}), {"retries": -1}),
    ("retries beyond counting", message(headers={"retries": 10**30}), {"retries": 2**31}),
    ("retries that are text", message(headers={"retries": "3"}), {"retries": 3}),
    ("a time limit of another shape", message(headers={"timelimit": "soon"}), {}),
    ("redelivered as a word", message(headers={"redelivered": "yes"}), {"redelivered": True}),
]


@pytest.mark.parametrize(("raw", "fields"), [case[1:] for case in READABLE], ids=[case[0] for case in READABLE])
def test_what_is_odd_is_read_as_a_worker_reads_it(raw, fields):
    """What does not keep a worker from reading does not keep us either, waiting or unacked; both ways agree."""
    found = head(raw)

    assert isinstance(found, Head)
    assert {name: getattr(found, name) for name in fields} == fields
    assert found == envelope._tolerant(raw)
    assert unacked_head(entry(raw))[0] == found


def test_every_text_of_a_head_can_be_written_anywhere():
    """Half of a surrogate pair decodes and then fails where it is printed, so it is spelled out at once."""
    odd = "\ud800"
    raw = message(
        headers=dict.fromkeys(("task", "id", "origin", "root_id", "group"), odd), properties={"delivery_tag": odd}
    )

    found, exchange, routing_key = unacked_head(entry(raw, odd, odd))

    assert isinstance(found, Head)
    for text in (
        found.task_id,
        found.task,
        found.delivery_tag,
        found.origin,
        found.root_id,
        found.group,
        exchange,
        routing_key,
    ):
        assert text.encode() == b"\\ud800"


def test_a_long_routing_key_stays_whole():
    """A queue's name may be a kilobyte; cut off, it would be another queue."""
    name = "q" * 1024

    assert unacked_head(entry(message(), "", name))[1:] == ("", name)
    assert unacked_head(entry(message(headers={"retries": "0"}), "", name))[1:] == ("", name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        (True, None),
        ("soon", None),
        ("-001-01-01T00:00:00", None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        ([], None),
        (0, 0.0),
        (12.5, 12.5),
        ("2026-01-01T00:00:00", 1767225600.0),
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T14:00:00+14:00", 1767225600.0),
        ("9999-12-31T23:59:59+00:00", 253402300799.0),
        ("0001-01-01T00:00:00+00:00", -62135596800.0),
    ],
)
def test_an_instant_is_utc_unless_it_says_otherwise(value, expected):
    """ISO 8601 with an offset, without one, or a number; everything else is no instant."""
    assert instant(value) == expected


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)), st.timezones() | st.none())  # noqa: DTZ001 - the zone is drawn beside it
def test_an_instant_survives_its_text(naive, zone):
    """What isoformat writes is read back, to the microsecond that a float still holds."""
    at = naive.replace(tzinfo=zone or UTC)
    text = at.isoformat() if zone else naive.isoformat()

    found = instant(text)

    assert found is not None
    assert abs(found - (at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)) < 1e-4


# Whatever is pushed


@settings(deadline=None)
@given(st.binary())
@example(b"\x80\x04\x95")
def test_any_bytes_give_a_head_or_a_reason(raw):
    """Decoding never raises, whatever somebody pushed."""
    assert isinstance(head(raw), Head | Unreadable)
    assert isinstance(unacked_head(raw)[0], Head | Unreadable)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_PLACES = [(), ("headers",), ("properties",), ("body",), ("content-type",)]
_PLACES += [("headers", name) for name in (*PLAIN["headers"], "redelivered")]
_PLACES += [("properties", name) for name in PLAIN["properties"]]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(ENVELOPES)), st.sampled_from(_PLACES), _JSON)
def test_any_value_in_any_field_gives_a_head_or_a_reason(name, place, value):
    """A real message with one field of another kind is read, or says why not; it can be put back, or is refused."""
    made = json.loads(ENVELOPES[name])
    if place:
        *outer, last = place
        (made[outer[0]] if outer else made)[last] = value
    else:
        made = value
    raw = json.dumps(made).encode()

    found, tolerant = head(raw), envelope._tolerant(raw)

    if place != ("body",):  # of base64 the typed way sees no more than the length, so it may be the more trusting one
        assert found == tolerant
    json.dumps({field: getattr(found, field) for field in found.__struct_fields__}, ensure_ascii=False).encode()
    try:
        restored(entry(raw), "new")
    except ValueError as error:
        assert str(error)  # noqa: PT017 - raised or not, both are right


@settings(deadline=None)
@given(st.sampled_from(sorted(ENVELOPES)), st.data())
def test_any_damage_gives_a_head_or_a_reason(name, data):
    """A message that was cut, or in which a few bytes were changed, raises nothing."""
    raw = bytearray(ENVELOPES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])

    for each in (bytes(raw), cut):
        assert isinstance(head(each), Head | Unreadable)
        assert isinstance(unacked_head(entry(each))[0], Head | Unreadable)


# Putting one back


@pytest.mark.parametrize("raw", UNACKED)
def test_a_restored_message_differs_in_three_fields_alone(raw):
    """Redelivered twice over and a new delivery tag: all else is the same JSON, and the body the same text."""
    before = json.loads(raw)[0]

    after = json.loads(restored(raw, "new-tag"))

    assert after["headers"].pop("redelivered") is True
    assert after["properties"]["delivery_info"].pop("redelivered") is True
    assert after["properties"].pop("delivery_tag") == "new-tag"
    before["headers"].pop("redelivered", None)
    before["properties"]["delivery_info"].pop("redelivered", None)
    before["properties"].pop("delivery_tag")
    assert after == before


@pytest.mark.parametrize("name", ENVELOPES)
def test_every_kind_of_message_can_be_put_back(name):
    """What goes back reads as the message that came, but for its tag and its mark."""
    before = head(ENVELOPES[name])

    after = head(restored(entry(ENVELOPES[name]), "new-tag"))

    assert isinstance(before, Head)
    assert isinstance(after, Head)
    assert after.redelivered
    assert after.delivery_tag == "new-tag"
    assert (after.task_id, after.task, after.retries, after.eta_at) == (
        before.task_id,
        before.task,
        before.retries,
        before.eta_at,
    )


def test_a_number_is_put_back_as_it_was():
    """A large integer, a long fraction and an empty list keep their JSON; a detour through Lua would not keep them."""
    odd = {"big": 12345678901234567890123, "fraction": 0.1, "none": [], "nothing": {}, "text": "é\u2028"}

    after = json.loads(restored(entry(message(headers={"x": odd})), "new"))

    assert after["headers"]["x"] == odd


@pytest.mark.parametrize(
    ("raw", "because"),
    [
        (entry(message(headers={"x": float("nan")})), "JSON compliant"),
        (entry(message(headers={"x": float("inf")})), "JSON compliant"),
        (entry(message().replace(b'"py"', b"1e999")), "JSON compliant"),
        (entry(message().replace(b'"py"', b'"p\xffy"')), "the entry"),
        (entry(message().replace(b'"py"', b"9" * 5000)), "the entry"),
        (entry(message("properties")), "no headers or no properties"),
        (entry(json.dumps({**PLAIN, "headers": [1]}).encode()), "no headers or no properties"),
        (entry(b"5"), "the entry"),
    ],
)
def test_what_would_change_on_the_way_is_not_put_back(raw, because):
    """NaN is no JSON, and bytes that are not UTF-8 are no text: rather than alter a message, restoring refuses."""
    with pytest.raises(ValueError, match=because):
        restored(raw, "new")


def test_a_digest_is_of_the_stored_bytes():
    """One byte more is another message."""
    assert envelope.digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert envelope.digest(message()) != envelope.digest(message() + b" ")
