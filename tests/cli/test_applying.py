"""From a plan to its being carried out: who has to say what, and that nothing happens without it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from opslib.cli import confirm
from opslib.errors import Exit
from opslib.records import RunRecord
from opslib.render import archive
from tests.command_line import Done, call, on_terminal, ops
from tests.shop import contents, orphan
from tests.support.workers import Deployment

CYRILLIC_A = "\u0430"
RUN = ["run", "stuck-tasks", "-q", "-p", "settle=0.1s"]


def newest(place: Path) -> RunRecord:
    """Return the record of the last run."""
    return next(archive.runs(place / "reports"))


def asked(shown: str) -> str:
    """Return the phrase that a terminal asked for."""
    return re.findall(r"type: (.*)", shown.replace("\r", ""))[-1]


class TestWithoutATerminal:
    """A script has to say that it means it."""

    @pytest.mark.parametrize("words", [["--apply"], ["-p", "dry_run=false"], ["--apply", "--confirm", "default"]])
    def test_needs_yes(self, shop: Deployment, place: Path, words: list[str]) -> None:
        """Whoever cannot be asked is refused, before anything starts, and told how."""
        task_id, before = orphan(shop), contents(shop.redis)

        done = ops(*RUN, *words, env=dict(os.environ), cwd=place)

        assert (done.code, done.out) == (Exit.REFUSED, "")
        assert "Nothing was changed" in done.err
        assert "--yes" in done.err
        assert contents(shop.redis) == before
        assert not (place / "reports").exists()
        assert shop.ran(task_id) == 0

    def test_yes_applies(self, shop: Deployment, place: Path) -> None:
        """With --yes the plan is carried out, verified, and kept with its reason; run again, there is nothing to do."""
        task_id = orphan(shop)

        done = call(*RUN, "--apply", "--yes", "--reason", "parcels stand still", "-o", "json")

        assert done.code == Exit.DONE, done
        record = json.loads(done.out)
        assert (record["verdict"], record["remaining"], record["dry_run"]) == ("healthy", [], False)
        assert [row["status"] for row in record["outcomes"]] == ["applied"]
        assert record["reason"] == "parcels stand still"
        shop.until_done(task_id)
        assert shop.ran(task_id) == 1
        audit = (place / "reports" / "audit.jsonl").read_text()
        assert audit.count("parcels stand still") == len(audit.splitlines()) == 4
        again = call(*RUN, "--apply", "--yes", "-o", "ids")
        assert (again.code, again.out) == (Exit.DONE, "")

    def test_too_large_a_plan_is_refused(self, shop: Deployment, place: Path) -> None:
        """A plan beyond max_actions is not begun, not even in part."""
        ids = [orphan(shop), orphan(shop)]
        before = contents(shop.redis)

        done = call(*RUN, "--apply", "--yes", "-p", "max_actions=1")

        assert done.code == Exit.REFUSED
        assert "The plan has 2 actions; max_actions allows 1" in done.out
        assert newest(place).error["type"] == "PlanTooLarge"
        assert contents(shop.redis) == before
        assert not any(shop.ran(each) for each in ids)


class TestOnATerminal:
    """A person is shown the plan, and types what will happen."""

    def test_right_words_apply(self, shop: Deployment, place: Path) -> None:
        """The phrase names target, verb and count; typed as shown, the plan is carried out, and kept beside the run."""
        task_id = orphan(shop)
        phrases: list[str] = []

        def answer(shown: str) -> str:
            assert task_id in shown
            phrases.append(asked(shown))
            return phrases[-1]

        done = on_terminal(*RUN, "--apply", env=dict(os.environ), cwd=place, answer=answer)

        assert phrases == ["default apply 1"]
        assert done.code == Exit.DONE, done
        assert "HEALTHY" in done.out
        shop.until_done(task_id)
        assert shop.ran(task_id) == 1
        looked, applied = sorted(archive.runs(place / "reports"), key=lambda run: run.started_at)
        assert (looked.dry_run, applied.dry_run) == (True, False)

    def test_other_words_do_not(self, shop: Deployment, place: Path) -> None:
        """A look-alike letter is another word: nothing is changed, and a person is still needed."""
        task_id, before = orphan(shop), contents(shop.redis)

        done = on_terminal(
            *RUN, "--apply", env=dict(os.environ), cwd=place, answer=lambda shown: asked(shown).replace("a", CYRILLIC_A)
        )

        assert done.code == Exit.ATTENTION
        assert "That is not it. Nothing was changed." in done.out
        assert contents(shop.redis) == before
        assert shop.ran(task_id) == 0
        assert newest(place).dry_run is True

    def test_only_what_was_shown_is_done(self, shop: Deployment, place: Path) -> None:
        """What joins the plan after it was shown is left alone, and says why."""
        shown_id = orphan(shop)
        late: list[str] = []

        def answer(shown: str) -> str:
            late.append(orphan(shop))
            return asked(shown)

        done = on_terminal(*RUN, "--apply", env=dict(os.environ), cwd=place, answer=answer)

        assert done.code == Exit.ATTENTION, done
        shop.until_done(shown_id)
        assert (shop.ran(shown_id), shop.ran(late[0])) == (1, 0)
        record = newest(place)
        became = dict(zip([each["subject"] for each in record.plan["actions"]], record.outcomes, strict=True))
        assert (became[shown_id]["status"], became[late[0]]["status"]) == ("applied", "skipped")
        assert "not in the plan that was confirmed" in became[late[0]]["reason"]
        assert [row["subject"] for row in record.remaining] == late

    def test_nothing_to_do_is_not_asked(self, shop: Deployment, place: Path) -> None:
        """Without a plan there is no question."""
        assert shop
        done = on_terminal(*RUN, "--apply", env=dict(os.environ), cwd=place)

        assert (done.code, "type:" in done.out) == (Exit.DONE, False)

    @pytest.mark.parametrize(
        ("typed", "right"),
        [
            ("prod apply 3", True),
            ("  prod apply 3  ", True),
            ("Prod apply 3", False),
            ("PROD APPLY 3", False),
            ("prod  apply 3", False),
            ("prod apply 2", False),
            ("prod apply", False),
            (f"prod {CYRILLIC_A}pply 3", False),
            ("prod apply \uff13", False),  # a full-width three
            ("prod\u00a0apply 3", False),
            ("prod apply 3\u200b", False),
            ("yes", False),
            ("y", False),
            ("", False),
        ],
    )
    def test_phrase_to_the_letter(self, monkeypatch: pytest.MonkeyPatch, typed: str, right: bool) -> None:
        """Another case, another count or a letter that only looks alike is a no."""
        monkeypatch.setattr("builtins.input", lambda _: typed)

        assert confirm.ask("prod", "apply", 3) is right

    def test_end_of_input_is_a_no(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A closed terminal confirms nothing."""

        def closed(_: str) -> str:
            raise EOFError

        monkeypatch.setattr("builtins.input", closed)

        assert confirm.ask("prod", "apply", 3) is False


class TestProtected:
    """A target that is protected has to be named."""

    @pytest.fixture(autouse=True)
    def protected(self, shop: Deployment, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The healthy system as a protected target called prod."""
        (place / "ops.toml").write_text('[targets.prod]\nbroker_url = "env:PROD"\nprotected = true\n')
        monkeypatch.setenv("PROD", shop.server.url)
        monkeypatch.delenv("OPS_BROKER_URL")

    @pytest.mark.parametrize("words", [[], ["--confirm", "Prod"], ["--confirm", "prod "], ["--confirm", "staging"]])
    def test_yes_is_not_enough(self, shop: Deployment, place: Path, words: list[str]) -> None:
        """With --yes alone, or with another name, nothing starts and nothing is changed."""
        before = contents(shop.redis)

        done = call(*RUN, "--target", "prod", "--apply", "--yes", *words)

        assert (done.code, done.out) == (Exit.REFUSED, "")
        assert "Nothing was changed" in done.err
        assert not (place / "reports").exists()
        assert contents(shop.redis) == before

    def test_its_name_is(self, shop: Deployment, place: Path) -> None:
        """Named with --confirm, the plan is carried out."""
        task_id = orphan(shop)

        done = call(*RUN, "--target", "prod", "--apply", "--yes", "--confirm", "prod")

        assert done.code == Exit.DONE, done
        shop.until_done(task_id)
        assert newest(place).target == "prod"

    def test_looking_needs_no_name(self, shop: Deployment) -> None:
        """A dry run of a protected target is as any other."""
        assert shop
        assert call(*RUN, "--target", "prod").code == Exit.DONE

    def test_typed_phrase_names_it(self, place: Path, shop: Deployment) -> None:
        """On a terminal the phrase has the target's name in it, so that is enough."""
        task_id = orphan(shop)

        done: Done = on_terminal(*RUN, "-T", "prod", "--apply", env=dict(os.environ), cwd=place, answer=asked)

        assert "type: prod apply 1" in done.out
        assert done.code == Exit.DONE, done
        shop.until_done(task_id)
