"""ops dead: what failed for good, as a table for a person and as lines for a program; arguments never by themselves."""

from __future__ import annotations

import json

import pytest

from opslib.errors import Exit
from opslib.letters import name_of
from tests.command_line import call
from tests.support import graveyard
from tests.support.graveyard import SECRET, bury, letter
from tests.support.workers import Deployment

QUEUE = "graves"


@pytest.fixture(autouse=True)
def _no_failures(shop: Deployment) -> None:
    """What other tests have left as failed is none of these letters' business."""
    for key in shop.redis.scan_iter(match="celery-task-meta-*"):
        shop.redis.delete(key)


@pytest.fixture
def graves(shop: Deployment):
    """Two groups and an entry that nobody can read, in the list of a queue of their own."""
    refused = letter("shop.charge", queue=QUEUE, traceback=graveyard.traceback_of("ConnectionError", "no")[35:])
    odd = letter("\x1b[31m<b>", queue=QUEUE, age_s=10, exc_type="KeyError", exception="KeyError('k')", traceback="")
    bury(shop.redis, refused, letter("shop.charge", queue=QUEUE, age_s=30), odd, b"no JSON \x1b[31m", queue=QUEUE)
    yield refused, odd
    shop.redis.delete(f"{QUEUE}.dead")


class TestList:
    """Lists and groups."""

    def test_it_shows_lists_and_groups(self, graves):
        """With what each is judged to be."""
        done = call("dead", "list", "--window", "0.1s")

        assert done.code == Exit.DONE, done.err
        assert "graves.dead" in done.out
        assert name_of(graves[0].signature) in done.out
        assert "transient" in done.out
        assert "\x1b" not in done.out
        assert SECRET not in done.out

    def test_a_program_reads_the_same(self, graves):
        """JSON with every field, and ids that `show` takes."""
        document = json.loads(call("dead", "list", "--window", "0.1s", "-o", "json").out)
        ids = call("dead", "list", "--window", "0.1s", "-o", "ids").out.split()

        assert [(each["key"], each["length"], each["unreadable"]) for each in document["lists"]] == [
            ("graves.dead", 4, 1)
        ]
        assert [each["name"] for each in document["groups"]] == ids == [name_of(each.signature) for each in graves]
        assert SECRET not in json.dumps(document)

    def test_nothing_there_is_said(self, shop):
        """A healthy system has no list."""
        assert shop
        done = call("dead", "list", "--window", "0.1s")

        assert done.code == Exit.DONE
        assert "no dead-letter list" in done.out


class TestShow:
    """One group, one letter, or all of them."""

    def test_all_are_listed_newest_first(self, graves):
        """As far as the filters mean them."""
        every = call("dead", "show", "-o", "ids").out.split()
        some = call("dead", "show", "--queue", QUEUE, "--task", "shop.*", "--limit", "1", "-o", "ids").out.split()

        assert every[0] == graves[1].entry_id
        assert every[-1] == graves[0].entry_id
        assert (len(every), len(some)) == (3, 1)

    def test_a_group_is_shown_with_its_letters(self, graves):
        """By its short name."""
        name = name_of(graves[0].signature)
        done = call("dead", "show", name)
        document = json.loads(call("dead", "show", name, "--json").out)

        assert f"Signature {name}" in done.out
        assert graves[0].entry_id in done.out
        assert graves[1].entry_id not in done.out
        assert (document["group"]["count"], len(document["letters"])) == (2, 2)

    @pytest.mark.parametrize("which", ["entry_id", "task_id"])
    def test_a_letter_is_shown_in_full_but_its_arguments(self, graves, which):
        """With where it failed."""
        done = call("dead", "show", getattr(graves[0], which))

        assert done.code == Exit.DONE
        assert "/srv/shop/tasks.py" in done.out
        assert "not shown; --show-args shows them" in done.out
        assert SECRET not in done.out + done.err

    def test_arguments_are_shown_where_that_is_asked_for(self, graves):
        """And it is said that they are."""
        done = call("dead", "show", graves[0].entry_id, "--show-args")
        hidden = json.loads(call("dead", "show", graves[0].entry_id, "--json").out)
        shown = json.loads(call("dead", "show", graves[0].entry_id, "--json", "--show-args").out)

        assert SECRET in done.out
        assert "Arguments are shown" in done.err
        assert "args" not in hidden
        assert SECRET in shown["args"]

    def test_what_it_quotes_is_harmless(self, graves):
        """Control characters are spelled out."""
        done = call("dead", "show", graves[1].entry_id)

        assert "\x1b" not in done.out
        assert "<b>" in done.out

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["nonsense"], "is named 'nonsense'"),
            (["--show-args"], "is for one letter"),
            (["--queue", "grave"], "Did you mean graves?"),
        ],
    )
    def test_a_slip_of_the_finger_is_refused(self, graves, words, said):
        """With what there is."""
        assert graves
        done = call("dead", "show", *words)

        assert done.code == Exit.USAGE
        assert said in done.err

    def test_a_near_name_is_offered(self, graves):
        """For a signature that lost a character."""
        name = name_of(graves[0].signature)

        assert f"Did you mean {name}?" in call("dead", "show", name[:-1]).err
