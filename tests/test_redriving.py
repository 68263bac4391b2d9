"""What a letter is sent as, and which are refused: whatever its message is like."""

from __future__ import annotations

import base64
import json
import time
import uuid

import pytest

from opslib import letters, plain_letters, redriving
from opslib.letters import Cause
from opslib.plan import Redrive
from opslib.redriving import Known, Note, Sending
from tests.support import graveyard
from tests.support.seed import envelope, iso

NOW = Known(now=time.time())
TAG = "0b0b0b0b-1c1c-4d4d-8e8e-2f2f2f2f2f2f"


def decided(letter, how=None, known=NOW, **more):
    """Decide about a letter after it was written and read, as a list gives it."""
    raw = letter if isinstance(letter, bytes) else letters.write(letter)
    return redriving.decide(letters.read(raw), how or Redrive(), known, tag=TAG, **more)


def sent(letter, how=None, known=NOW, **more):
    """Return the message that a letter becomes."""
    found = decided(letter, how, known, **more)
    assert isinstance(found, Sending), found
    return json.loads(found.message)


def body(message):
    """Return the body of a message."""
    return json.loads(base64.b64decode(message["body"]))


def of(message, **fields):
    """Return a letter with this message."""
    return graveyard.letter(message=message, **fields)


def with_headers(**headers):
    """Return a letter whose message has other headers."""
    found = envelope("tests.ok")
    found["headers"] |= headers
    return of(found)


class TestSame:
    """What is not asked to change, does not."""

    def test_only_tag_and_count_differ(self):
        """To the byte: the same spelling, the same order, the same arguments."""
        letter = graveyard.letter()
        before = letter.envelope

        _, message = plain_letters.message(letters.write(letter), TAG)

        tag = json.loads(before)["properties"]["delivery_tag"]
        assert message.replace('"x-redrive": 1, ', "").replace(TAG, tag) == before

    def test_the_longer_way_says_the_same(self):
        """Whatever the quick way takes, the other makes the same message of it."""
        letter = graveyard.letter()

        _, message = plain_letters.message(letters.write(letter), TAG)

        assert sent(letter) == json.loads(message)

    @pytest.mark.parametrize(
        "letter",
        [
            with_headers(retries=1),
            with_headers(eta=iso(60)),
            with_headers(expires=iso(60)),
            with_headers(**{"x-redrive": 1}),
            graveyard.letter(redrives=1),
            of(envelope("tests.ok", priority=3)),
            of(graveyard.embedded(chain=[graveyard.signature()])),
            of(graveyard.embedded(errbacks=[graveyard.signature()])),
            of(graveyard.chord_member(group="g")),
            of(graveyard.pickled()),
            of(graveyard.compressed()),
            of(b"{}"),
            graveyard.letter(exact=False),
        ],
        ids=range(13),
    )
    def test_what_is_not_plain_takes_the_longer_way(self, letter):
        """Whatever there is to decide, it decides."""
        assert plain_letters.message(letters.write(letter), TAG) is None

    @pytest.mark.parametrize("entry", [*graveyard.odd().values(), json.dumps(graveyard.of_script()).encode()])
    def test_what_is_not_ours_takes_the_longer_way(self, entry):
        """It may be anything."""
        assert plain_letters.message(entry, TAG) is None

    def test_a_tag_that_stands_before_the_headers_too_takes_the_longer_way(self):
        """Whoever wrote a message with its properties first: which of both is the tag, is not guessed."""
        found = envelope("tests.ok")
        tag = found["properties"]["delivery_tag"]
        found["headers"]["argsrepr"] = f"({tag!r},)"
        turned = {"body": found["body"], "properties": found["properties"], **found}

        assert plain_letters.message(letters.write(of(turned)), TAG) is None
        assert sent(of(turned))["headers"]["argsrepr"] == f"({tag!r},)"

    @pytest.mark.parametrize("text", ['"headers": {', '{"x-redrive": 9}', TAG])
    def test_what_looks_like_a_header_in_an_argument_is_none(self, text):
        """Argument values are shown in headers; nothing in them is taken for one."""
        found = envelope("tests.ok")
        found["headers"]["argsrepr"] = f"({text!r}, {found['properties']['delivery_tag']!r})"

        quick = plain_letters.message(letters.write(of(found)), TAG)
        for message in [sent(of(found)), *([json.loads(quick[1])] if quick else [])]:
            assert message["headers"].pop("x-redrive") == 1
            assert message["headers"] == found["headers"]
            assert message["properties"] == {**found["properties"], "delivery_tag": TAG}

    @pytest.mark.parametrize("make", [graveyard.pickled, graveyard.compressed], ids=["pickled", "compressed"])
    def test_a_body_that_is_not_read_stays_as_it_is(self, make):
        """It is sent without a look into it."""
        found = make()

        assert sent(of(found))["body"] == found["body"]

    def test_retries_begin_anew_unless_they_are_to_count(self):
        """At its last retry one failure would end it."""
        letter = with_headers(retries=3)

        assert sent(letter)["headers"]["retries"] == 0
        assert sent(letter, Redrive(keep_retries=True))["headers"]["retries"] == 3

    def test_a_past_eta_goes_and_a_future_one_stays(self):
        """It is run at once, or when it was to be."""
        later = iso(3600)

        assert sent(with_headers(eta=iso(-3600)))["headers"]["eta"] is None
        assert sent(with_headers(eta=later))["headers"]["eta"] == later
        assert Note.ETA in decided(with_headers(eta=later)).notes


class TestOther:
    """What is asked to change, does."""

    def test_a_new_id_stands_wherever_the_old_one_did(self):
        """And the old one is remembered."""
        letter, new = graveyard.letter(), str(uuid.uuid4())

        message = sent(letter, Redrive(new_ids=True), task_id=new)

        assert [message["headers"][name] for name in ("id", "root_id")] == [new, new]
        assert message["properties"]["correlation_id"] == new
        assert message["headers"]["x-redrive-of"] == letter.task_id

    def test_another_root_keeps_its_own_id(self):
        """It is one of a workflow's tasks, whose root is another."""
        letter = with_headers(root_id="root")

        assert sent(letter, Redrive(new_ids=True), task_id="new")["headers"]["root_id"] == "root"

    def test_another_queue_is_where_it_would_come_back_to(self):
        """A retry goes there too."""
        found = decided(graveyard.letter(queue="orders"), Redrive(queue="bulk"))

        assert found.queue == "bulk"
        assert json.loads(found.message)["properties"]["delivery_info"] == {"exchange": "", "routing_key": "bulk"}

    def test_other_arguments_stand_in_the_body_and_in_what_is_shown(self):
        """What follows the task stays."""
        found = graveyard.embedded(chain=[graveyard.signature()])

        message = sent(of(found), Redrive(args='["x"]', kwargs='{"n": 1}'))

        assert body(message)[:2] == [["x"], {"n": 1}]
        assert body(message)[2] == body(found)[2]
        assert (message["headers"]["argsrepr"], message["headers"]["kwargsrepr"]) == ("('x',)", "{'n': 1}")

    @pytest.mark.parametrize("make", [graveyard.pickled, graveyard.compressed], ids=["pickled", "compressed"])
    def test_a_body_that_is_not_read_cannot_be_edited(self, make):
        """Nothing is guessed."""
        assert decided(of(make()), Redrive(args="[]")) is Note.UNWRITABLE

    def test_protocol_1_keeps_its_fields_in_the_body(self):
        """Its id, its retries and its eta are changed there; the count is a header all the same."""
        fields = {"task": "tests.ok", "id": "old", "args": [1], "kwargs": {}, "retries": 3, "eta": iso(-3600)}
        found = envelope("tests.ok", task_id="old")
        found |= {"headers": {}, "body": base64.b64encode(json.dumps(fields).encode()).decode()}

        message = sent(of(json.dumps(found).encode(), task_id="old"), Redrive(new_ids=True), task_id="new")

        assert body(message) == {**fields, "id": "new", "retries": 0, "eta": None}
        assert message["headers"] == {"x-redrive": 1, "x-redrive-of": "old"}

    def test_an_entry_without_its_message_becomes_a_plain_one(self):
        """Task and arguments are all that is known."""
        entry = json.dumps(graveyard.of_script(task_id="x", queue="orders")).encode()
        found = decided(entry)

        message = json.loads(found.message)
        assert found.notes == (Note.INEXACT,)
        assert (message["headers"]["task"], message["headers"]["id"]) == ("tests.ok", "x")
        assert body(message)[:2] == [[graveyard.SECRET], {}]
        assert message["headers"]["x-redrive"] == 1

    def test_a_message_in_the_list_is_sent_as_it_is(self):
        """Somebody moved it there by hand."""
        found = envelope("tests.ok")

        assert sent(json.dumps(found).encode())["body"] == found["body"]


class TestFollows:
    """What depends on a task is told."""

    def test_of_a_chain(self):
        """The rest of it stands in the message."""
        assert decided(of(graveyard.embedded(chain=[graveyard.signature()]))).notes == (Note.CHAIN,)

    def test_of_its_errbacks(self):
        """They have been called once."""
        assert decided(of(graveyard.embedded(errbacks=[graveyard.signature()]))).notes == (Note.ERRBACKS,)

    def test_of_a_chord(self):
        """Its count is mended in the step that sends it."""
        found = decided(of(graveyard.chord_member(group="g")))

        assert (found.chord, found.index, found.notes) == ("g", 0.0, (Note.CHORD,))

    def test_a_group_alone_needs_nothing(self):
        """Nobody counts its tasks but by their results."""
        assert decided(with_headers(group="g", group_index=1)).notes == ()

    @pytest.mark.parametrize("how", [Redrive(poison=True), Redrive(poison=True, keep_retries=True)])
    def test_of_poison(self, how):
        """It ended the process that ran it, and may do so again."""
        assert decided(graveyard.letter(**graveyard.KILLED), how).notes == (Note.POISON,)


class TestRefused:
    """What would be lost, doubled or useless is not sent, and why."""

    @pytest.mark.parametrize(("redrives", "sends"), [(0, True), (2, True), (3, False), (9, False)])
    def test_after_three_rounds(self, redrives, sends):
        """By the message's own header, whatever the entry says."""
        found = decided(with_headers(**{"x-redrive": redrives}))

        assert isinstance(found, Sending) is sends
        assert sends or found is Note.LOOPING

    def test_after_three_rounds_by_the_entry(self):
        """An entry without a message has the count in itself."""
        assert decided(json.dumps(graveyard.of_script(redrives=3)).encode()) is Note.LOOPING

    def test_a_revoked_id(self):
        """Under a new one it runs."""
        letter = graveyard.letter()
        known = Known(now=time.time(), revoked={letter.task_id})

        assert decided(letter, known=known) is Note.REVOKED
        assert isinstance(decided(letter, Redrive(new_ids=True), known, task_id="new"), Sending)

    def test_what_has_run(self):
        """Under whatever id: nobody wants it twice."""
        letter = graveyard.letter()
        known = Known(now=time.time(), succeeded={letter.task_id})

        assert decided(letter, known=known) is Note.SUCCEEDED
        assert decided(letter, Redrive(new_ids=True), known, task_id="new") is Note.SUCCEEDED

    def test_what_has_expired(self):
        """Unless it is asked for; then its expiry goes, or a node would drop it."""
        found = envelope("tests.ok")
        found["headers"]["expires"] = iso(-3600)
        found["properties"]["expiration"] = "1000"
        message = sent(of(found), Redrive(expired=True))

        assert decided(of(found)) is Note.EXPIRED
        assert message["headers"]["expires"] is None
        assert "expiration" not in message["properties"]

    def test_what_expires_later_is_sent_with_its_expiry(self):
        """It still counts."""
        later = iso(3600)

        assert sent(with_headers(expires=later))["headers"]["expires"] == later

    def test_poison_that_nobody_named(self):
        """Sent with all others, it would end the process that runs it."""
        assert decided(graveyard.letter(**graveyard.KILLED)) is Note.POISON
        assert isinstance(decided(graveyard.letter(cause=Cause.TIME_LIMIT)), Sending)

    def test_a_chord_member_under_a_new_id(self):
        """The chord would count it twice."""
        assert decided(of(graveyard.chord_member()), Redrive(new_ids=True), task_id="n") is Note.CHORD_ID

    def test_one_of_a_group_whose_body_is_not_read(self):
        """It may be a chord's."""
        found = graveyard.compressed()
        found["headers"]["group"] = "g"

        assert decided(of(found)) is Note.UNREADABLE

    @pytest.mark.parametrize("raw", graveyard.odd().values(), ids=graveyard.odd())
    def test_what_nobody_can_read(self, raw):
        """It stays where it is."""
        assert decided(raw) is Note.UNREADABLE

    @pytest.mark.parametrize("message", [b"{}", b"[]", b'{"headers": 1, "properties": 2, "body": "x"}', b"not JSON"])
    def test_an_entry_whose_message_is_none(self, message):
        """A worker would die of it."""
        assert decided(of(message)) is Note.UNREADABLE

    def test_neither_message_nor_arguments(self):
        """Only their spelling is known, which is no value."""
        assert decided(graveyard.letter(exact=False)) is Note.NO_ARGUMENTS


def test_every_refusal_has_a_sentence():
    """And nothing that is sent has one."""
    letter = graveyard.letter(cause=Cause.TIME_LIMIT)

    assert set(redriving.notes(letter, now=0.0)) & set(redriving.REFUSALS) == set()
    assert redriving.notes(letter, now=0.0, states={letter.task_id: "SUCCESS"})[0] in redriving.REFUSALS


def test_the_same_seed_makes_the_same_tags():
    """Who knows the seed need not remember them; another one has none of them."""
    some = plain_letters.tags(100, "a")

    assert some == plain_letters.tags(100, "a")
    assert len({*some, *plain_letters.tags(100, "b")}) == 200
    assert all(str(uuid.UUID(each)) == each for each in some)
