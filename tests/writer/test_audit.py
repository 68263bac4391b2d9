"""What is about to be done is on the disk before it is done, and a line that was changed shows."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import stat
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from opslib import records, redact
from opslib.errors import BrokerRefused, NotFound, Refused
from opslib.writer import apply, audited, lock
from opslib.writer import audit as auditing
from tests.support import servers
from tests.support.plans import RUN, audit, foreign, interrupted, proposed
from tests.support.seed import KEYS, seed_unacked


def test_a_run_is_on_record_from_its_beginning_to_its_end(broker, redis, archive):
    """Who, where, which plan, each batch with its subjects, and what came of it."""
    orphan = seed_unacked(redis)
    plan = proposed(broker)

    apply(plan, broker, dry_run=False)

    begin, intent, result, end = audit(archive)
    assert [line["event"] for line in (begin, intent, result, end)] == ["begin", "intent", "result", "end"]
    assert {line["plan"] for line in (begin, intent, end)} == {plan.digest}
    assert intent["moves"] == [[orphan.task_id, KEYS.unacked, "celery"]]
    assert (result["said"], result["letters"], result["batch"]) == ("APPLIED", "A", intent["batch"])
    assert end["outcomes"] == {"applied": 1}
    assert len({line["run_id"] for line in (begin, intent, result, end)}) == 1
    assert begin["operator"] == records.operator()


def test_the_intent_is_on_the_disk_before_the_change(broker, redis, archive):
    """When the server has done it, the line is there; its result is not yet."""
    seed_unacked(redis)
    plan = proposed(broker)
    seen = []
    interrupted(broker, lambda _: seen.append([line["event"] for line in audit(archive)]))

    apply(plan, broker, dry_run=False)

    assert seen == [["begin", "intent"]]


def test_without_a_record_nothing_is_done(broker, redis, archive):
    """Its place is taken by something that cannot be written to."""
    seed_unacked(redis)
    plan = proposed(broker)
    (archive / auditing.FILE).mkdir()
    before = foreign(redis)

    with pytest.raises(Refused, match="No change goes unrecorded"):
        apply(plan, broker, dry_run=False)

    assert foreign(redis) == before


def test_a_link_in_its_place_is_not_followed(broker, redis, archive, tmp_path):
    """Nobody leads its lines elsewhere."""
    seed_unacked(redis)
    (archive / auditing.FILE).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Refused):
        apply(proposed(broker), broker, dry_run=False)

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("tamper", [lambda lines, n: lines.pop(n), lambda lines, n: lines.insert(n, lines[n])])
def test_a_line_that_was_changed_shows(archive, number, tamper):
    """Taken away or repeated; the last line alone is vouched for by nothing after it."""
    for event in ("begin", "intent", "result", "end"):
        auditing.write(event)
    path = archive / auditing.FILE
    lines = path.read_text("utf-8").splitlines()
    tamper(lines, number)
    path.write_text("\n".join([*lines, ""]), "utf-8")

    with pytest.raises(AssertionError):
        audit(archive)


def test_lines_of_many_processes_form_one_chain(archive):
    """Each waits for the one before it."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: auditing.write("intent", number=n), range(64)))

    assert sorted(line["number"] for line in audit(archive)) == list(range(64))


def test_a_line_holds_no_credential(archive):
    """Whatever is put into it."""
    redact.remember("redis://:hunter2-secret@h/0")

    auditing.write("refused", why="redis://u:other-secret@h/0 said hunter2-secret")

    assert b"secret" not in (archive / auditing.FILE).read_bytes()
    assert audit(archive)


def test_only_its_owner_may_read_it(archive):
    """From its first line on."""
    auditing.write("begin")

    assert stat.S_IMODE((archive / auditing.FILE).stat().st_mode) == 0o600


def test_a_long_line_is_chained_too(archive):
    """A batch may have many subjects."""
    auditing.write("intent", moves=["x" * 100] * 5_000)
    auditing.write("result")

    assert len(audit(archive)) == 2


@pytest.mark.parametrize("length", [10, auditing._BLOCK - 1, auditing._BLOCK, auditing._BLOCK + 1, 3_000_000])
def test_lines_of_any_length_are_chained(archive, length):
    """Wherever a block ends that is read of them."""
    for size in (length, 1, length, length + 1):
        auditing.write("intent", subject="x" * size)

    assert len(audit(archive)) == 4
    assert [line["seq"] for line in audit(archive)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "content", [b"", b"a", b"\n", b"a\n", b"\n\na", b"ab\ncde\n\nfghijklmnop\nq\n", b"abcdefgh\nabc\nabcd"]
)
def test_lines_are_read_from_the_end(tmp_path, monkeypatch, content):
    """The same lines, wherever blocks end."""
    (tmp_path / "file").write_bytes(content)
    for size in (1, 2, 3, 4, 5, 100):
        monkeypatch.setattr(auditing, "_BLOCK", size)
        with (tmp_path / "file").open("rb") as file:
            assert list(auditing._backwards(file.fileno())) == content.split(b"\n")[::-1]


def test_a_line_is_flushed_to_the_disk(archive, monkeypatch):
    """When it returns, a loss of power does not take it any more."""
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (fsync(handle), flushed.append(os.fstat(handle).st_size)))

    auditing.write("begin")

    assert flushed == [(archive / auditing.FILE).stat().st_size]


@pytest.mark.parametrize("cut", [1, 2, 30, 150_000])
def test_a_torn_line_stops_nobody(archive, cut):
    """Power was lost while it was written; the next line begins on a line of its own, and vouches for the torn one."""
    auditing.write("begin")
    auditing.write("intent", subject="x" * 150_000)
    path = archive / auditing.FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])

    auditing.write("begin")
    auditing.write("end")

    lines = path.read_bytes().split(b"\n")
    assert lines[:2] == whole[:-cut].split(b"\n")
    assert [json.loads(line)["seq"] for line in lines[2:4]] == [3, 4]
    assert json.loads(lines[2])["prev_sha256"] == hashlib.sha256(lines[1]).hexdigest()


def test_numbers_go_on_after_lines_without_one(archive):
    """As earlier releases wrote them."""
    old = b'{"event": "begin"}\n{"event": "end"}\n'
    (archive / auditing.FILE).write_bytes(old)

    auditing.write("begin")

    assert json.loads((archive / auditing.FILE).read_bytes().splitlines()[-1])["seq"] == 3


def test_what_does_not_fit_on_a_full_disk_is_taken_away_again(archive):
    """So that there is no torn line in the middle."""
    auditing.write("begin")
    before = (archive / auditing.FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1_000, limits[1]))
    try:
        with pytest.raises(Refused, match="File too large"):
            auditing.write("intent", subject="x" * 5_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert (archive / auditing.FILE).read_bytes() == before


@pytest.mark.parametrize("secret", ["0000", "intent", "event", "prev_sha256", "dead", "1"])
def test_a_password_breaks_no_chain(archive, monkeypatch, secret):
    """However much it looks like a part of a digest, or a field."""
    monkeypatch.setattr(redact, "_known", set())
    redact.remember(f"redis://:{secret}@h/0")

    for number in range(40):
        auditing.write("intent", batch=f"7.{number}")
        auditing.write("result", batch=f"7.{number}", said="APPLIED", letters="A")

    assert len(audit(archive)) == 80
    assert audited.verify(archive / auditing.FILE).whole


# --- verify ---


def found(archive):
    """Return what is found in the file alone, by kind and line."""
    return [(problem.kind, problem.line) for problem in audited.verify(archive / auditing.FILE).problems]


def story(count=3):
    """Write the lines of a run that came to its end."""
    auditing.write("begin", target="trial", continues="")
    for number in range(1, count + 1):
        auditing.write("intent", batch=f"1.{number}")
        auditing.write("result", batch=f"1.{number}", said="APPLIED", letters="A")
    auditing.write("end")


def rewrite(archive, tamper):
    """Change the file's lines."""
    path = archive / auditing.FILE
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))


@pytest.fixture
def another(monkeypatch):
    """Begin another run."""

    def begin(run_id, **more):
        monkeypatch.setattr(records, "_HAND", [records.RunContext(run_id=run_id, operator="ada", **more)])

    return begin


class TestTheFile:
    """Whether each line is as it was written."""

    def test_a_whole_one(self, archive):
        """Nothing is found, and what it holds is counted."""
        story()

        report = audited.verify(archive / auditing.FILE)

        assert (report.whole, report.problems, report.lines) == (True, (), 8)
        assert [len(run.batches) for run in report.runs.values()] == [3]

    def test_an_empty_one(self, archive):
        """It says nothing, and that is whole."""
        (archive / auditing.FILE).touch()

        assert audited.verify(archive / auditing.FILE).whole

    @pytest.mark.parametrize(
        ("tamper", "expected"),
        [
            (lambda x: [*x[:3], x[3].replace(b"trial", b"trail"), *x[4:]], []),
            (lambda x: [x[0].replace(b"trial", b"other"), *x[1:]], [("altered", 1)]),
            (lambda x: [*x[:4], x[4].replace(b'"A"', b'"G"'), *x[5:]], [("altered", 5)]),
            (lambda x: [*x[:4], b"{}\n", *x[5:]], [("altered", 5)]),
            (lambda x: [*x[:4], x[4][:50] + b"\n", *x[5:]], [("altered", 5)]),
            (lambda x: [*x[:4], b"\xff\n", *x[5:]], [("altered", 5)]),
            (lambda x: [*x[:4], b"[]\n", *x[5:]], [("altered", 5)]),
            (lambda x: [*x[:4], b"[" * 100_000 + b"\n", *x[5:]], [("altered", 5)]),
            (lambda x: [*x[:4], b"\n", *x[4:]], [("not-json", 5)]),
            (lambda x: x[1:], [("missing", 1)]),
            (lambda x: x[3:], [("missing", 1)]),
            (lambda x: x[:3] + x[5:], [("missing", 4)]),
            (lambda x: x[:1] + x[7:], [("missing", 2)]),
            (lambda x: [*x[:4], x[3], *x[4:]], [("misplaced", 5)]),
            (lambda x: [*x[:4], x[1], x[2], *x[4:]], [("misplaced", 5), ("misplaced", 6)]),
            (lambda x: [*x, x[0]], [("misplaced", 9)]),
            (lambda x: [*x[:7], b"nonsense\n"], [("not-json", 8)]),
            (lambda x: [*x, b"nonsense\n"], [("not-json", 9)]),
            (lambda x: [*x, b'{"event"'], [("torn", 9)]),
            (lambda x: [*x[:7], x[7][:-1]], []),
            (lambda x: [x[0].replace(b"0" * 64, b"1" * 64), *x[1:]], [("altered", 1), ("altered", 1)]),
        ],
    )
    def test_what_was_changed_is_named(self, archive, tamper, expected):
        """With its line: altered, missing, out of place, torn, no JSON."""
        story()
        rewrite(archive, tamper)

        chain = [each for each in found(archive) if each[0] not in {"cut-off", "no-answer", "unpaired"}]

        assert chain == expected

    @pytest.mark.parametrize("at", range(9))
    def test_each_line_that_is_taken_away_is_missed(self, archive, at):
        """But the last, which nothing comes after."""
        story()
        auditing.write("begin")
        auditing.write("end")
        rewrite(archive, lambda lines: lines[:at] + lines[at + 1 :])

        assert ("missing", at + 1) in found(archive)
        assert not audited.verify(archive / auditing.FILE).whole

    def test_every_byte_counts(self, archive):
        """Of each line but the last; and no byte makes it fail."""
        story(1)
        path = archive / auditing.FILE
        good = path.read_bytes()
        last = good.rindex(b"\n", 0, -1) + 1
        for at in range(last):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            assert not audited.verify(path).whole, at

    def test_lines_without_a_number(self, archive):
        """As earlier releases wrote them: whether one was altered, or one after it is missing, cannot be told."""
        lines, previous = [], "0" * 64
        for event in ("begin", "refused", "begin", "end"):
            lines.append(json.dumps({"event": event, "run_id": "r", "prev_sha256": previous}).encode())
            previous = hashlib.sha256(lines[-1]).hexdigest()
        path = archive / auditing.FILE
        path.write_bytes(b"\n".join([*lines, b""]))
        assert audited.verify(path).whole

        path.write_bytes(b"\n".join([lines[0], lines[2], lines[3], b""]))

        (problem,) = audited.verify(path).problems
        assert (problem.kind, problem.line) == ("altered", 1)
        assert "or lines after it are missing" in problem.says

        path.write_bytes(b"\n".join([*lines[2:], b""]))
        assert found(archive) == [("missing", 1)]

        path.write_bytes(b"\n".join([*lines, b""]))
        auditing.write("refused")
        rewrite(archive, lambda lines: lines[:3] + lines[4:])
        (_, problem) = audited.verify(path).problems
        assert problem.says == "1 line before line 4 is missing."

    def test_a_torn_line_in_the_middle(self, archive, another):
        """It is told for what it is, and is nothing that a person has to do; what it was part of may be."""
        another("first")
        story()
        auditing.write("begin", target="trial")
        rewrite(archive, lambda lines: [*lines[:-1], lines[-1][:40]])
        assert found(archive) == [("torn", 9)]
        assert not audited.verify(archive / auditing.FILE).whole

        another("second")
        story()

        (problem,) = audited.verify(archive / auditing.FILE).problems
        assert (problem.kind, problem.line, problem.person) == ("torn", 9, False)
        assert "cut off while it was written" in problem.says

    def test_a_torn_line_that_was_altered_later(self, archive):
        """The line after it knows it as it was."""
        story()
        rewrite(archive, lambda lines: [*lines, b'{"at'])
        story()
        rewrite(archive, lambda lines: [line.replace(b'{"at\n', b'{"it\n') for line in lines])

        assert found(archive) == [("altered", 9)]

    def test_a_run_can_go_on_meanwhile(self, archive):
        """It is not waited for, and does not wait; what it writes is for the next time."""
        story()
        lines = audited._lines(archive / auditing.FILE)
        first = next(lines)
        writer = threading.Thread(target=auditing.write, args=("begin",), daemon=True)
        writer.start()
        writer.join(10)
        assert not writer.is_alive()

        assert len([first, *lines]) == 8

    def test_no_line_is_seen_half_written(self, archive):
        """Who is writing one is waited for."""
        story()
        with (archive / auditing.FILE).open("ab") as file, ThreadPoolExecutor(1) as pool:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(b"half a l")
            file.flush()
            report = pool.submit(audited.verify, archive / auditing.FILE)
            with pytest.raises(TimeoutError):
                report.result(0.3)
            file.truncate((archive / auditing.FILE).stat().st_size - 8)
            fcntl.flock(file, fcntl.LOCK_UN)
            assert report.result(10).whole

    def test_memory_does_not_grow_with_the_file(self, archive):
        """Of 60 MB, one line at a time is looked at."""
        for _ in range(60):
            auditing.write("intent", batch="1.1", subject="x" * 1_000_000)
            auditing.write("result", batch="1.1", said="APPLIED", letters="A")
        tracemalloc.start()
        try:
            report = audited.verify(archive / auditing.FILE)
            assert tracemalloc.get_traced_memory()[1] < 12_000_000
        finally:
            tracemalloc.stop()
        assert report.lines == 120

    @pytest.mark.parametrize("what", ["nothing", "folder", "link", "pipe"])
    def test_what_cannot_be_read(self, archive, tmp_path, what):
        """It is said, and not waited for."""
        path = archive / auditing.FILE
        if what == "folder":
            path.mkdir()
        elif what == "link":
            (tmp_path / "x").touch()
            path.symlink_to(tmp_path / "x")
        elif what == "pipe":
            os.mkfifo(path)

        if what == "pipe":
            assert audited.verify(path).lines == 0
            return
        with pytest.raises(NotFound, match="cannot be read"):
            audited.verify(path)


class TestRuns:
    """Whether each run came to an end."""

    def test_an_intent_without_a_result(self, archive, another):
        """Run, place and batch are named."""
        another("run-1")
        auditing.write("begin", target="trial", continues="")
        auditing.write("intent", batch="7.1")

        (problem,) = audited.verify(archive / auditing.FILE).problems

        assert (problem.kind, problem.run_id, problem.batch, problem.line, problem.person) == (
            "cut-off",
            "run-1",
            "7.1",
            2,
            True,
        )
        assert "Run run-1 on trial was cut off in batch 7.1" in problem.says

    def test_between_two_batches(self, archive, another):
        """Every batch has its result, and the run no end."""
        another("run-1")
        auditing.write("begin", target="trial", continues="")
        auditing.write("intent", batch="7.1")
        auditing.write("result", batch="7.1", said="APPLIED", letters="A")

        assert found(archive) == [("cut-off", 1)]

    @pytest.mark.parametrize("event", ["end", "refused", "interrupted"])
    def test_a_batch_without_an_answer_in_a_run_that_ended(self, archive, event):
        """Somebody was told at the time."""
        auditing.write("begin", target="trial", continues="")
        auditing.write("intent", batch="7.1")
        auditing.write(event)

        (problem,) = audited.verify(archive / auditing.FILE).problems
        assert (problem.kind, problem.person) == ("no-answer", False)

    def test_a_result_without_an_intent(self, archive):
        """That cannot be, however the chain was forged."""
        auditing.write("result", batch="7.1", said="APPLIED", letters="A")

        assert found(archive) == [("unpaired", 1)]

    @pytest.mark.parametrize(
        ("event", "settled"), [("end", True), ("refused", False), ("interrupted", False), ("intent", False)]
    )
    def test_a_run_that_another_went_on_with(self, archive, another, event, settled):
        """It is settled once one of them came to the end of its plan, and not before."""
        for number, run_id in enumerate(("first", "second", "third")):
            another(run_id)
            auditing.write("begin", target="trial", continues="first" if number else "")
            auditing.write("intent", batch=f"{number}.1")
        auditing.write("result", batch="2.1", said="APPLIED", letters="A")
        auditing.write(event, batch="2.1")

        report = audited.verify(archive / auditing.FILE)

        assert {p.run_id for p in report.problems if p.person and p.run_id != "third"} == (
            set() if settled else {"first", "second"}
        )

    def test_a_run_between_two_batches_that_another_went_on_with(self, archive, another):
        """It is settled as well; by a run of its own kind, and no other."""
        another("first")
        auditing.write("begin", continues="")
        another("other")
        story()
        assert found(archive) == [("cut-off", 1)]

        another("second")
        auditing.write("begin", continues="first")
        auditing.write("end")
        assert found(archive) == []

    def test_a_run_that_was_refused(self, archive):
        """That is an end."""
        auditing.write("begin", continues="")
        auditing.write("refused")

        assert found(archive) == []

    def test_an_earlier_end_settles_nothing(self, archive, another):
        """The run was undone once, and cut off in a second attempt at it."""
        another("second")
        auditing.write("begin", continues="first")
        auditing.write("end")
        another("first")
        auditing.write("begin", continues="")

        assert found(archive) == [("cut-off", 3)]

    def test_unlocking_that_was_cut_off(self, archive):
        """It has an intent and a result like any other change."""
        auditing.write("unlock", stage="refused", lock="a")
        auditing.write("unlock", stage="intent", lock="a")
        assert found(archive) == [("cut-off", 2)]

        auditing.write("unlock", stage="result", lock="a", said="FREED")
        assert found(archive) == []


class TestTheBroker:
    """Whether the broker's journals say the same."""

    @pytest.fixture
    def done(self, broker, redis):
        """A run that changed something, as it truly is; its id."""
        seed_unacked(redis)
        apply(proposed(broker), broker, dry_run=False)
        return records.context().run_id

    @staticmethod
    def compared(broker, archive, **more):
        """Return the report on file and broker."""
        return audited.reconcile(audited.verify(archive / auditing.FILE), broker, **more)

    def kinds(self, broker, archive):
        """Return what differs, and whether a person has to look."""
        return [(problem.kind, problem.person) for problem in self.compared(broker, archive).problems]

    def test_they_do(self, broker, redis, archive, done):
        """A true run, with all that its journal holds besides the batches."""
        assert {b"run", b"1.1", b"1.1:u"} <= set(redis.hkeys(KEYS.journal(done)))

        report = self.compared(broker, archive)

        assert (report.problems, report.whole, report.unseen) == ((), True, "")
        assert report.broker == broker.target.shown_broker

    def test_a_journal_that_is_gone(self, broker, redis, archive, done):
        """It has expired, or the run was on another server."""
        redis.delete(KEYS.journal(done))

        assert self.kinds(broker, archive) == []

    def test_a_batch_that_the_file_does_not_know(self, broker, redis, archive, done):
        """Lines are missing, or another machine went on with it."""
        redis.hset(KEYS.journal(done), "2.1", "A")

        assert self.kinds(broker, archive) == [("unknown-batch", True)]

    def test_lines_that_are_missing_at_the_end(self, broker, archive, done):
        """The chain cannot know; the journal does."""
        assert done
        rewrite(archive, lambda lines: lines[:1])

        assert ("unknown-batch", True) in self.kinds(broker, archive)

    def test_letters_that_differ(self, broker, redis, archive, done):
        """One of them was altered."""
        redis.hset(KEYS.journal(done), "1.1", "G")

        assert self.kinds(broker, archive) == [("differs", True)]

    def test_a_batch_that_is_not_in_the_journal(self, broker, redis, archive, done):
        """A replica took over that had not heard of it yet."""
        redis.hset(KEYS.journal(done), "1.0", "A")
        redis.hdel(KEYS.journal(done), "1.1")

        report = self.compared(broker, archive)

        assert [p.kind for p in report.problems] == ["unknown-batch", "rolled-back"]
        assert report.problems[1].says.endswith("rolled back by a failover.")

    def test_a_batch_that_was_begun_and_not_ended(self, broker, redis, archive, done):
        """Nothing rolls back in Lua; a person has to look."""
        redis.hset(KEYS.journal(done), "1.1", "intent")

        assert self.kinds(broker, archive) == [("unended", True)]

    @pytest.mark.parametrize("said", ["FENCED", "NOPERM", "WRONGTYPE"])
    def test_what_was_refused_is_in_no_journal(self, broker, redis, archive, done, said):
        """And if it is, something is wrong."""
        auditing.write("begin", continues="")
        auditing.write("intent", batch="2.1")
        auditing.write("result", batch="2.1", said=said, letters="")
        auditing.write("end")
        assert self.kinds(broker, archive) == []

        redis.hset(KEYS.journal(done), "2.1", "A")
        assert self.kinds(broker, archive) == [("differs", True)]

    @pytest.mark.parametrize(("event", "kind"), [(None, "cut-off"), ("end", "no-answer")])
    @pytest.mark.parametrize("journalled", [True, False])
    def test_an_intent_without_a_result(self, broker, redis, archive, done, event, kind, journalled):
        """The journal knows whether it was done; if nobody was told, somebody has to be."""
        auditing.write("begin", continues="")
        auditing.write("intent", batch="2.1")
        if event:
            auditing.write(event)
        if journalled:
            redis.hset(KEYS.journal(done), "2.1", "AG")

        (problem,) = self.compared(broker, archive).problems

        assert (problem.kind, problem.person) == (kind, journalled or not event)
        assert ("it was done, and nobody was told: AG" if journalled else "it was not done") in problem.says

    def test_a_run_that_goes_on_with_another(self, broker, redis, archive, done, another):
        """Its batches are in the other one's journal."""
        another("second")
        auditing.write("begin", continues=done)
        auditing.write("intent", batch="2.1")
        auditing.write("result", batch="2.1", said="APPLIED", letters="A")
        auditing.write("end")
        assert self.kinds(broker, archive) == [("rolled-back", True)]

        redis.hset(KEYS.journal(done), "2.1", "A")
        assert self.kinds(broker, archive) == []

    def test_a_run_that_is_at_it(self, broker, redis, archive, done, another):
        """Whatever looks unfinished is so, and its journal may be ahead of what was read."""
        for run_id, continues in (("second", ""), ("third", done)):
            another(run_id)
            with lock.held(broker, run_id=run_id, plan_digest="d") as held:
                auditing.write("begin", continues=continues)
                auditing.write("intent", batch=f"{held.epoch}.1")
                redis.hset(KEYS.journal(continues or run_id), f"{held.epoch}.2", "A")
                assert self.kinds(broker, archive) == [("running", False)]
            redis.hdel(KEYS.journal(continues or run_id), f"{held.epoch}.2")
            auditing.write("result", batch=f"{held.epoch}.1", said="FENCED")
            auditing.write("end")

    def test_a_run_that_is_not_at_it(self, broker, redis, archive, done, another):
        """What another run holds, and what another run's journal says, is nothing to it."""
        another("second")
        auditing.write("begin", continues="")
        auditing.write("intent", batch="7.1")
        with lock.held(broker, run_id=done, plan_digest="d"):
            assert redis.exists(KEYS.journal(done))
            (problem,) = self.compared(broker, archive).problems

        assert (problem.kind, problem.person) == ("cut-off", True)
        assert "journal" not in problem.says

    def test_a_run_that_began_after_the_file_was_read(self, broker, redis, archive, done):
        """It holds the lock, and nobody expects it in the file."""
        assert done
        with lock.held(broker, run_id=RUN, plan_digest="d"):
            redis.hset(KEYS.journal(RUN), "9.1", "A")
            assert self.kinds(broker, archive) == []

    @pytest.mark.parametrize(
        ("told", "person"),
        [
            ('{"host": "elsewhere"}', False),
            ("{}", True),
            ('["host"]', True),
            ("nonsense", True),
            ("[" * 5_000, True),
            (None, True),
            ('{"host": 5}', False),
        ],
    )
    def test_a_run_that_the_file_does_not_know(self, broker, redis, archive, done, told, person):
        """From another machine, if its journal says so; otherwise lines may be missing."""
        assert done
        redis.hset(KEYS.journal(RUN), "9.1", "A")
        if told is not None:
            redis.hset(KEYS.journal(RUN), "run", told)

        (problem,) = self.compared(broker, archive).problems

        assert (problem.kind, problem.run_id, problem.person) == ("elsewhere", RUN, person)

    def test_a_run_of_this_machine_that_the_file_does_not_know(self, broker, redis, archive, done):
        """That is not from elsewhere."""
        assert done
        redis.hset(KEYS.journal(RUN), "run", json.dumps({"host": os.uname().nodename}))

        (problem,) = self.compared(broker, archive).problems

        assert problem.person
        assert "this machine" in problem.says

    def test_what_only_looks_like_a_journal(self, broker, redis, archive, done):
        """Quarantines of a queue named so, and keys of another type, are none; nothing fails over them."""
        redis.lpush(KEYS.quarantine(done, "x:j"), "m")
        redis.delete(KEYS.journal(done))
        redis.set(KEYS.journal(done), "x")
        redis.hset(KEYS.journal("odd").encode().replace(b"odd", b"odd\xff"), "1.1", "A")

        (problem,) = self.compared(broker, archive).problems
        assert problem.kind == "elsewhere"

    def test_other_fields_are_no_batches(self, broker, redis, archive, done):
        """Whatever stands beside them."""
        redis.hset(KEYS.journal(done), mapping={"1.1:p": "x", "1.x": "A", "x1.1": "A", "1.1.1": "A", "12": "A"})

        assert self.kinds(broker, archive) == []

    def test_a_prefix_with_a_pattern_in_it(self, redis, server, archive):
        """It is a name and no pattern."""
        broker = servers.broker(server, global_keyprefix="a[b]*")
        redis.hset(replace(KEYS, prefix="a[b]*").journal("mine"), "1.1", "A")
        redis.hset(replace(KEYS, prefix="abc").journal("theirs"), "1.1", "A")
        auditing.write("begin")
        auditing.write("end")

        assert [p.run_id for p in self.compared(broker, archive).problems] == ["mine"]

    def test_many_keys(self, broker, redis, archive, done):
        """The search ends somewhere, and says so."""
        assert done
        redis.mset({f"key-{n}": "" for n in range(3_000)})

        assert self.compared(broker, archive).unseen == ""
        assert "1,000 of about 3,00" in self.compared(broker, archive, max_keys=1_000).unseen

    def test_the_result_backend(self, server, redis, archive, another):
        """Where it is another database, it has journals of its own."""
        base = server.url.rpartition("/")[0]
        results = servers.broker(server, broker_url=f"{base}/5")
        results.writes.hset(KEYS.journal("there"), "1.1", "A")
        redis.hset(KEYS.journal("here"), "1.1", "G")
        for run_id in ("here", "there"):
            another(run_id)
            auditing.write("begin", continues="")
            auditing.write("intent", batch="1.1")
            auditing.write("result", batch="1.1", said="APPLIED", letters="A")
            auditing.write("end")

        report = self.compared(servers.broker(server, result_backend=f"{base}/5"), archive)
        assert [(p.kind, p.run_id) for p in report.problems] == [("differs", "here")]

        results.writes.hset(KEYS.journal("there"), "1.1", "G")
        report = self.compared(servers.broker(server, result_backend=f"{base}/5"), archive)
        assert [(p.kind, p.run_id) for p in report.problems] == [("differs", "here"), ("differs", "there")]

    def test_who_may_not_look(self, broker, redis, server, archive, done):
        """That is said, and is no verdict."""
        assert done
        servers.user(redis, f"{servers.READ_ONLY} -hscan")

        with pytest.raises(BrokerRefused, match="does not permit"):
            self.compared(servers.elsewhere(broker, servers.as_user(server)), archive)
