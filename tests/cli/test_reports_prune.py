"""`ops reports prune` removes what is old, keeps what may be the only copy, and never leaves the archive."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opslib import folders
from opslib.cli import confirm
from opslib.errors import Exit
from opslib.render import archive, prune
from tests.command_line import call
from tests.render.test_figures import done, keep

OLD, FORMER = "20200101T120000Z-stuck-tasks-000000", "20200102T120000Z-weekly-cleanup-000000"


@pytest.fixture
def root(place: Path) -> Path:
    """An archive with a run of long ago, one that has a vault, and one of today."""
    found = place / "reports"
    found.mkdir()
    keep(found, "20200101", "stuck-tasks", **done())
    keep(found, "20200102", "weekly-cleanup", **done())
    keep(found, f"{datetime.now(UTC):%Y%m%d}", "stuck-tasks", **done())
    (folders.folder(found, FORMER) / "vault.jsonl.zst").write_bytes(b"values" * 100)
    archive.index(found)
    return found


def names(root: Path) -> list[str]:
    """Return the ids of the runs that are there."""
    return [run.name for run in archive.folders(root)]


def test_a_dry_run_removes_nothing(root: Path) -> None:
    """It says what would go, and what stays and why."""
    told = call("reports", "prune", "--older-than", "90d")

    assert told.code == Exit.ATTENTION
    assert OLD in told.out
    assert FORMER not in told.out
    assert "1 would be, with --apply" in told.err
    assert "Left: 1, which keep what was removed from a broker" in told.err
    assert len(names(root)) == 3


def test_what_is_old_goes_and_what_was_kept_stays(root: Path) -> None:
    """With its empty folders; the index knows it no more."""
    told = call("reports", "prune", "--older-than", "90d", "--apply", "--yes", "-o", "ids")

    assert told.out == f"{OLD}\n"
    assert OLD not in names(root)
    assert not (root / "2020" / "01" / "01").exists()
    assert (folders.folder(root, FORMER) / "vault.jsonl.zst").exists()
    indexed = [json.loads(line)["run_id"] for line in (root / "index.jsonl").read_text().splitlines()]
    assert indexed == names(root)


def test_what_was_kept_goes_only_by_its_own_word(root: Path) -> None:
    """Then nothing of that year is left."""
    told = call("reports", "prune", "--older-than", "90d", "--with-kept", "--apply", "--yes")

    assert told.code == Exit.DONE
    assert len(names(root)) == 1
    assert not (root / "2020").exists()


@pytest.mark.parametrize("age", ["13d", "335h"])
def test_what_may_still_be_undone_is_too_young(root: Path, age: str) -> None:
    """A vault is what an undo reads, for as long as the journal lives."""
    told = call("reports", "prune", "--older-than", age, "--apply", "--yes")

    assert (told.code, "less than 14 days" in told.err) == (Exit.USAGE, True)
    assert len(names(root)) == 3


def test_the_age_is_counted_from_the_run_s_name(root: Path) -> None:
    """To the second; who copied an archive changed the dates of its files."""
    instant = datetime(2020, 1, 1, 12, 0, 0, tzinfo=UTC)

    assert [run.run_id for run in prune.before(root, instant)] == []
    assert [run.run_id for run in prune.before(root, instant + timedelta(seconds=1))] == [OLD]


def test_nobody_to_ask_removes_nothing(root: Path) -> None:
    """Without a terminal it takes --yes."""
    told = call("reports", "prune", "--older-than", "90d", "--apply")

    assert told.code == Exit.REFUSED
    assert len(names(root)) == 3


def test_links_are_not_followed_and_folders_within_stay(root: Path, tmp_path: Path) -> None:
    """What is no file of a run is nobody's to remove."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("still here")
    run = folders.folder(root, OLD)
    (run / "link").symlink_to(outside / "precious")
    (run / "folder").mkdir()
    (run / "folder" / "notes").write_text("mine")
    linked = root / "2020" / "01" / "03"
    linked.mkdir()
    (linked / "20200103T120000Z-stuck-tasks-000000").symlink_to(outside)

    told = call("reports", "prune", "--older-than", "90d", "--apply", "--yes")

    assert told.code == Exit.ATTENTION
    assert (outside / "precious").read_text() == "still here"
    assert [path.name for path in run.iterdir()] == ["folder"]
    assert "0 of 1 were removed" in told.err


def test_a_link_to_a_folder_goes_and_the_folder_stays(root: Path, tmp_path: Path) -> None:
    """It is a link like any other."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("still here")
    run = folders.folder(root, OLD)
    (run / "link").symlink_to(outside)

    assert call("reports", "prune", "--older-than", "90d", "--apply", "--yes", "--with-kept").code == Exit.DONE
    assert not run.exists()
    assert (outside / "precious").read_text() == "still here"


def test_the_archive_itself_is_never_removed(tmp_path: Path) -> None:
    """Also where nothing else is in it, nor in what it is in."""
    root = tmp_path / "empty" / "reports"
    run = folders.folder(root, OLD)
    run.mkdir(parents=True)

    assert prune.remove(root, run)
    assert list((tmp_path / "empty").rglob("*")) == [root]


def test_what_could_not_be_removed_is_a_finding(root: Path) -> None:
    """Also where nothing stays because it was kept."""
    (folders.folder(root, OLD) / "folder").mkdir()

    told = call("reports", "prune", "--older-than", "90d", "--apply", "--yes", "--with-kept")

    assert (told.code, "1 of 2 were removed" in told.err) == (Exit.ATTENTION, True)


@pytest.mark.parametrize(("words", "code"), [(["--yes"], Exit.ATTENTION), (["--apply", "--dry-run"], Exit.USAGE)])
def test_only_one_word_applies(root: Path, words: list[str], code: Exit) -> None:
    """And it stands alone."""
    assert call("reports", "prune", "--older-than", "90d", *words).code == code
    assert len(names(root)) == 3


def test_who_says_no_keeps_everything(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the question, which names how many."""
    asked: list[object] = []
    monkeypatch.setattr(confirm, "possible", lambda **_: None)
    monkeypatch.setattr(confirm, "ask", lambda *about: asked.append(about[-1]))

    told = call("reports", "prune", "--older-than", "90d", "--apply")

    assert (told.code, asked) == (Exit.ATTENTION, [1])
    assert len(names(root)) == 3


class TestVerify:
    """Files as they were sealed, and others."""

    def test_whole(self, root: Path) -> None:
        """Each run by itself, or all of them."""
        for name in names(root):
            archive.seal(folders.folder(root, name))

        told = call("reports", "verify")

        assert told.code == Exit.DONE
        assert "3 looked at, 0 not as they were sealed" in told.err
        assert call("reports", "verify", OLD, "-o", "json").out == "[]\n"

    def test_altered(self, root: Path) -> None:
        """With what is wrong."""
        for name in names(root):
            archive.seal(folders.folder(root, name))
        (folders.folder(root, OLD) / folders.RECORD).write_text("{}")

        told = call("reports", "verify", "--json")

        assert told.code == Exit.ATTENTION
        assert json.loads(told.out) == [{"run_id": OLD, "problem": "record.json was changed."}]

    def test_an_id_that_is_none(self, root: Path) -> None:
        """With the nearest."""
        assert root
        told = call("reports", "verify", OLD.replace("stuck", "stock"))

        assert (told.code, OLD in told.err) == (Exit.USAGE, True)
