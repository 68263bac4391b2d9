"""What is about to be done is on the disk before it is done, and a line that was changed shows."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from opslib import records, redact
from opslib.errors import Refused
from opslib.writer import apply
from opslib.writer import audit as auditing
from tests.support.plans import audit, foreign, interrupted, proposed
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
