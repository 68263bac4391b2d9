"""A run id → exactly the rest of that run, or all of it put back; anything else that is asked for is refused."""

from __future__ import annotations

import os
import re
import signal
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from opslib import __version__, direct, folders
from opslib import plan as plans
from opslib.demo import server as embedded
from opslib.errors import Exit, Refused
from opslib.plan import Action, Copy, Kind
from opslib.writer import resume
from tests import command_line
from tests.command_line import call, on_terminal, ops, start
from tests.support import crashing, servers
from tests.support.crashing import NAME, Trial, crash, cut, look
from tests.support.plans import audit, planned, purge_of
from tests.support.seed import KEYS, seed_waiting
from tests.support.waiting import until

UNKNOWN = "20261121T021500Z-stuck-tasks-7f3a9c"
CYRILLIC_A, FULL_WIDTH_FOUR, NO_BREAK = "\u0430", "\uff14", "\u00a0"
QUEUE = "out"


@pytest.fixture(autouse=True)
def _small():
    """Small batches, so that there are many."""
    with crashing.small():
        yield


@pytest.fixture
def place(server, archive, monkeypatch):
    """A working directory with one target; nothing of the developer's shell."""
    for name in set(os.environ) - set(command_line.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPS_REPORTS", str(archive))
    monkeypatch.setenv("TRIAL", server.url)
    monkeypatch.chdir(archive.parent)
    _write_targets(archive.parent)
    return archive.parent


def _write_targets(folder, *, protected=False):
    lines = [
        f'[targets.{NAME}]\nbroker_url = "env:TRIAL"\nprotected = {str(protected).lower()}',
        '[targets.other]\nbroker_url = "env:TRIAL"',
    ]
    (folder / "ops.toml").write_text("\n".join(lines) + "\n")


@pytest.fixture
def trial(redis, server, archive, place):
    """Begin with one kind of run on the shared server."""
    assert place

    def begin(verb="quarantine"):
        return Trial(redis=redis, url=server.url, archive=archive, verb=verb)

    return begin


def runs_of(archive):
    """Return the ids of all runs in the archive."""
    return sorted(path.name for path in archive.glob("[0-9]*/*/*/*"))


@contextmanager
def nothing_written(begun):
    """Make sure that the block changes nothing, neither in the server nor in the archive."""
    before = (everything(begun.redis), runs_of(begun.archive), len(audit(begun.archive)))
    yield
    assert (everything(begun.redis), runs_of(begun.archive), len(audit(begun.archive))) == before


def everything(redis):
    """Return every key with its value, this tool's own too."""
    return {key: crashing._value(redis, key) for key in redis.scan_iter() if b"pidbox" not in key}


def dry_run(begun):
    """Have a plan saved and not carried out; return its run's id."""
    with begun.broker() as broker:
        found = direct.run("trial", begun.plan, broker, dry_run=True)
    return found.record.run_id


# Exactly the rest


class TestTheRest:
    """What was done is not done again, and what was not is."""

    @pytest.mark.parametrize("k", range(1, 4))
    def test_after_some_of_its_batches(self, trial, archive, k):
        """Each of seven messages is named once in what the audit says was done, over both runs."""
        begun = trial()
        begun.in_process(cut(f"after-result-{k}" if k > 1 else "after-result"), crash)
        done = moved(archive, begun.run_id)

        left = begun.left()
        begun.resume()

        assert sum(len(action.copies) for action in left) == 7 - len(done)
        (second,) = [run_id for run_id in runs_of(archive) if "-resume-" in run_id]
        rest = moved(archive, second)
        assert len(done) == min(7, 2 * k)
        assert (len(rest), sorted(done + rest)) == (7 - len(done), sorted(whole(begun)))
        assert not begun.left()

    def test_keeps_the_numbers_of_its_actions(self, trial):
        """A record of the first run still says which is which; of one that was begun, the rest of its copies."""
        begun = trial()
        begun.in_process(cut("after-result-2"), crash)

        left = begun.left()

        assert [action.id for action in left] == [4, 5]
        assert [len(action.copies) for action in left] == [2, 1]
        assert left.continues == begun.run_id

    def test_of_a_run_that_was_resumed_and_cut_off_again(self, trial):
        """However often."""
        begun = trial()
        begun.in_process(cut("after-result"), crash)
        first = begun.run_id
        for _ in range(2):
            begun.plan = begun.left()
            begun.in_process(cut("after-result"), crash)
        begun.run_id = first

        assert begun.resume()

        assert not begun.left()
        begun.check_once()
        assert begun.undo()
        begun.check_put_back()

    def test_does_not_purge_what_came_since(self, redis, server, archive, place):
        """A list that was empty when its purge came to it is none that was meant."""
        assert place
        redis.lpush("mail", "a", "b")
        redis.lpush(KEYS.queue("mail", 9), "c")
        begun = Trial(redis=redis, url=server.url, archive=archive, verb="purge")
        for key in ("mail", KEYS.queue("mail", 9)):
            redis.lpush(key, "old")
        with begun.broker() as broker:
            begun.plan = planned(broker, purge_of(broker, "mail"), *begun.plan)
        redis.delete("mail")
        begun.in_process(cut("after-result"), crash)
        redis.lpush("mail", "new")

        assert begun.resume()

        assert redis.lrange("mail", 0, -1) == [b"new"]
        assert not redis.exists("bulk", "junk", "dust", KEYS.queue("mail", 9))

    def test_of_a_list_that_is_still_set_aside_is_dealt_back(self, trial):
        """Also where all that was wanted of it was taken."""
        begun = trial("quarantine-deep")
        begun.in_process(cut("after-result-5"), crash)
        assert begun.redis.exists(KEYS.work(begun.run_id, "long"))

        left = begun.left()
        assert begun.resume()

        assert [action.kind for action in left][-1] is Kind.UNDO
        assert not begun.redis.exists(KEYS.work(begun.run_id, "long"))
        assert not begun.left()
        assert begun.undo()
        begun.check_put_back()

    def test_of_an_undo(self, trial):
        """By the undo's own id."""
        begun = trial("everything")
        begun.then_undo()
        begun.in_process(cut("after-script-3"), crash)

        assert begun.resume()

        begun.check_put_back()
        assert not begun.left()


def moved(archive, run_id):
    """Return the subjects of the messages that a run says it moved, with where they were."""
    lines = [line for line in audit(archive) if line["run_id"] == run_id]
    said = {line["batch"]: line["letters"] for line in lines if line["event"] == "result"}
    found = []
    for line in lines:
        if line["event"] == "intent" and line["batch"] in said:
            found += [
                (m[0], m[1]) for m, letter in zip(line["moves"], said[line["batch"]], strict=True) if letter in "AN"
            ]
    return found


def whole(begun):
    """Return the subjects of all messages that a plan moves, with where they are."""
    return [(action.subject, copy.key) for action in begun.plan for copy in action.copies]


# What is no rest of anything


class TestRefused:
    """Whoever cannot know what is left does nothing."""

    def test_a_dry_run(self, trial):
        """It has nothing to go on with; `ops apply` carries it out."""
        begun = trial()
        run_id = dry_run(begun)

        with nothing_written(begun):
            done = call("resume", run_id)

        assert done.code == Exit.REFUSED
        assert f"ops apply {run_id}" in done.err

    def test_a_batch_that_was_begun_and_not_ended(self, trial):
        """A person has to compare journal and quarantine."""
        begun = trial()
        begun.in_process(cut("after-result-2"), crash)
        number = max(name for name in begun.redis.hkeys(KEYS.journal(begun.run_id)) if name.endswith(b".2"))
        begun.redis.hset(KEYS.journal(begun.run_id), number, "intent")

        with nothing_written(begun):
            done = call("resume", begun.run_id)

        assert done.code == Exit.REFUSED, done
        assert "begun and not ended" in done.err

    def test_on_another_server(self, trial, tmp_path):
        """That has none of its journal."""
        begun = trial()
        begun.in_process(cut("after-result"), crash)
        plan, _ = direct.saved(begun.archive, begun.run_id)
        (tmp_path / "server").mkdir()

        with embedded.start(tmp_path / "server") as other, pytest.raises(Refused, match="another one"):
            resume.remaining(plan, servers.broker(other), begun.run_id)

    def test_on_a_server_that_was_restarted_before_anything_was_changed(self, trial):
        """It may hold something else by now; a run that had begun knows it by its journal."""
        begun = trial()
        begun.in_process(cut("after-plan-file"), crash)
        plan, _ = direct.saved(begun.archive, begun.run_id)

        with begun.broker() as broker, pytest.raises(Refused, match="had changed nothing yet"):
            resume.remaining(replace(plan, fingerprint="0/0/0/"), broker, begun.run_id)

    def test_what_is_done(self, trial):
        """There is nothing to do, and it says so."""
        begun = trial()
        run_id = begun.complete()

        with nothing_written(begun):
            done = call("resume", run_id)

        assert (done.code, "Nothing was changed" in done.err + done.out) == (Exit.DONE, True)


# By hand


def asked(shown):
    """Return the phrase that a terminal asked for."""
    return re.findall(r"type: (.*)", shown.replace("\r", ""))[-1]


@dataclass(frozen=True, kw_only=True)
class Bad:
    """
    Something that nobody should be able to do.

    Attributes:
        words: RUN stands for the id of a run: a saved dry run for `apply`, otherwise one that was cut off.
    """

    words: str
    code: Exit
    edit: str = ""
    says: str = ""


BAD = {
    **{
        f"{verb}: {name}": Bad(words=f"{verb} {given}", code=Exit.USAGE)
        for verb in ("apply --yes", "resume", "undo --apply --yes")
        for name, given in {
            "no such run": UNKNOWN,
            "a path": "../../etc/passwd",
            "a path to a run": "./RUN",
            "two lines": f"{UNKNOWN}%0aRUN",
            "nothing": '""',
            "another case": "RUN_UPPER",
        }.items()
    },
    **{
        f"{verb}: {name}": Bad(words=f"{verb} RUN", code=Exit.REFUSED, edit=name, says=says)
        for verb in ("apply --yes", "resume")
        for name, says in {
            "one byte": "was edited",
            "another digest": "was edited",
            "more than a plan": "was edited",
            "another schema": "schema",
            "no plan": "holds no plan",
        }.items()
    },
    **{
        f"{verb}: other target": Bad(words=f"{verb} RUN --target other", code=Exit.REFUSED, says=f"for {NAME}")
        for verb in ("apply --yes", "resume")
    },
    "apply: expired": Bad(words="apply RUN --yes", code=Exit.REFUSED, edit="expired", says="was good until"),
    "apply: another tool": Bad(words="apply RUN --yes", code=Exit.REFUSED, edit="another tool", says="was made by"),
    "apply: another server": Bad(words="apply RUN --yes", code=Exit.REFUSED, edit="another server", says="another one"),
    "apply: no terminal": Bad(words="apply RUN", code=Exit.REFUSED, says="no terminal"),
    "undo: no terminal": Bad(words="undo RUN --apply", code=Exit.REFUSED, says="no terminal"),
    "apply: another name": Bad(words="apply RUN --yes --confirm Trial", code=Exit.REFUSED, says="--confirm says"),
    "undo: another name": Bad(words="undo RUN --apply --yes --confirm other", code=Exit.REFUSED, says="--confirm says"),
    "undo: two wills": Bad(words="undo RUN --apply --dry-run", code=Exit.USAGE, says="exclude"),
}


def edited(path, how):
    """Change a plan's file."""
    content = path.read_bytes()
    plan = plans.read(content)
    made = {
        "one byte": lambda: content.replace(b'"max_actions": 5', b'"max_actions": 6'),
        "another digest": lambda: content.replace(plan.digest.encode(), b"0" * 64),
        "more than a plan": lambda: content + b" ",
        "another schema": lambda: content.replace(b'"schema_version": 1', b'"schema_version": 2'),
        "no plan": lambda: b"[]",
        "expired": lambda: plans.write(replace(plan, expires_at="2026-01-01T00:00:00.000Z")),
        "another tool": lambda: plans.write(replace(plan, tool_version=f"{__version__}9")),
        "another server": lambda: plans.write(replace(plan, fingerprint="0/0/0/")),
    }
    path.write_bytes(made[how]())


class TestByHand:
    """`ops apply`, `ops undo` and `ops resume`, as a person or a script calls them."""

    def begun(self, trial, verb):
        """Return a trial with the run that a command is about."""
        begun = trial()
        if verb == "apply":
            begun.run_id = dry_run(begun)
        else:
            begun.in_process(cut("after-result-2"), crash)
        return begun

    @pytest.mark.parametrize("name", BAD)
    def test_bad_input_changes_nothing(self, trial, monkeypatch, name):
        """No traceback, the exit code that is documented, and neither server, archive nor audit touched."""
        bad = BAD[name]
        begun = self.begun(trial, bad.words.split()[0])
        if bad.edit:
            edited(folders.folder(begun.archive, begun.run_id) / folders.PLAN, bad.edit)
        run_id = begun.run_id
        words = [
            word.replace("RUN_UPPER", run_id.upper()).replace("RUN", run_id).replace("%0a", "\n").replace('""', "")
            for word in bad.words.split()
        ]
        monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115 - nobody sits there

        before = everything(begun.redis)
        done = call(*words)

        assert done.code == bad.code, done
        assert bad.says in done.err + done.out
        assert everything(begun.redis) == before

    @pytest.mark.parametrize("verb", ["apply", "undo"])
    def test_a_protected_target_has_to_be_named(self, trial, place, verb):
        """With --yes alone, nothing happens."""
        begun = self.begun(trial, verb)
        _write_targets(place, protected=True)

        with nothing_written(begun):
            done = call(verb, begun.run_id, *(["--apply"] if verb == "undo" else []), "--yes")

        assert done.code == Exit.REFUSED
        assert f"--confirm {NAME}" in done.err

    @pytest.mark.parametrize(
        "typed",
        [
            lambda phrase: phrase.title(),
            lambda phrase: phrase.replace("a", CYRILLIC_A, 1),
            lambda phrase: re.sub(r"\d$", FULL_WIDTH_FOUR, phrase),
            lambda phrase: phrase.replace(" ", NO_BREAK, 1),
            lambda _: "yes",
            lambda _: "",
        ],
        ids=["case", "look-alike", "wide digit", "other space", "yes", "nothing"],
    )
    @pytest.mark.parametrize("verb", ["apply", "undo"])
    def test_other_words_are_a_no(self, trial, place, verb, typed):
        """To the letter, or not at all."""
        begun = self.begun(trial, verb)

        with nothing_written(begun):
            done = on_terminal(
                verb,
                begun.run_id,
                *(["--apply"] if verb == "undo" else []),
                env=dict(os.environ),
                cwd=place,
                answer=lambda shown: typed(asked(shown)),
            )

        assert done.code == Exit.ATTENTION, done
        assert "That is not it. Nothing was changed." in done.out

    def test_the_right_words_apply(self, trial, place):
        """Exactly what was saved."""
        begun = self.begun(trial, "apply")

        done = on_terminal("apply", begun.run_id, env=dict(os.environ), cwd=place, answer=asked)

        assert f"type: {NAME} apply 5" in done.out
        assert sum(look(begun.redis).kept[QUEUE].values()) == 7

    def test_a_run_that_was_cut_off_is_resumed_and_undone(self, trial, place):
        """By two commands and its id, and twice does nothing twice."""
        begun = self.begun(trial, "resume")

        resumed = call("resume", begun.run_id)
        assert resumed.code in {Exit.DONE, Exit.ATTENTION}, resumed
        assert sum(look(begun.redis).kept[QUEUE].values()) == 7
        with nothing_written(begun):
            assert call("resume", begun.run_id).code == Exit.DONE

        undone = ops("undo", begun.run_id, "--apply", "--yes", env=dict(os.environ), cwd=place)
        assert undone.code in {Exit.DONE, Exit.ATTENTION}, undone
        begun.check_put_back()
        with nothing_written(begun):
            assert call("undo", begun.run_id, "--apply", "--yes").code == Exit.DONE

    def test_what_was_applied_is_not_applied_again(self, trial):
        """`ops apply` is for what waits; `ops resume` for what was cut off."""
        begun = trial()
        begun.run_id = begun.complete()

        with nothing_written(begun):
            done = call("apply", begun.run_id, "--yes")

        assert done.code == Exit.REFUSED
        assert "ops resume" in done.err

    def test_undo_without_apply_only_shows(self, trial):
        """And is a run of its own that changed nothing."""
        begun = self.begun(trial, "undo")
        before = everything(begun.redis)

        done = call("undo", begun.run_id)

        assert done.code == Exit.ATTENTION, done
        assert everything(begun.redis) == before


# Ctrl-C


@pytest.mark.parametrize("second_after_s", [0.0, 0.05, 0.3])
def test_a_command_that_is_interrupted_twice_can_be_resumed(trial, place, redis, second_after_s):
    """The first ends it after its batch, the second at once; either way its batches are whole."""
    begun = trial()
    seeded = [seed_waiting(redis, queue="many", task_id=f"m{n}") for n in range(1_500)]
    actions = [
        Action(
            kind=Kind.QUARANTINE,
            subject=each.task_id,
            source="many",
            destination="quarantine",
            copies=(Copy(place="waiting", key=each.key, queue="many", sha256=each.sha256),),
        )
        for each in seeded
    ]
    before = look(redis)
    with begun.broker() as broker:
        begun.plan = planned(broker, *actions)
    run_id = dry_run(begun)

    with start("apply", run_id, "--yes", env=dict(os.environ), cwd=place) as process:
        until(lambda: redis.llen("many") < 1_500, 45, "the command changes something")
        process.send_signal(signal.SIGINT)
        try:
            process.wait(second_after_s)
        except Exception:  # noqa: BLE001 - it is still at it, so it gets the second one
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=45)

    assert "Traceback" not in out  # on stderr, Python may tell of one that came in the middle of its own clearing up
    assert process.returncode in {Exit.INTERRUPTED, -signal.SIGINT}, (out, err)  # the latter as it was about to end
    assert not redis.exists(KEYS.lock)
    assert look(redis).messages == before.messages
    (cut_off,) = {line["run_id"] for line in audit(begun.archive) if line["event"] == "intent"}
    done = ops("resume", cut_off, env=dict(os.environ), cwd=place)
    assert done.code in {Exit.DONE, Exit.ATTENTION}, done
    assert redis.llen("many") == 0
    assert look(redis).messages == before.messages
