"""Files that tasks left go to the run's folder and come back as they were; what is a link, open or changed stays."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from opslib import records, settings
from opslib import temporary as rules
from opslib.broker import connect
from opslib.collectors import temporary as collected
from opslib.collectors.remains import remains
from opslib.collectors.stored import stored
from opslib.errors import Refused, SettingsError
from opslib.facts.remains import TemporaryFile
from opslib.plan import Kind
from opslib.settings import Target, TemporaryFolder
from opslib.symptoms import remnants, weekly_cleanup
from opslib.writer import apply, points
from opslib.writer import temporary as writing
from opslib.writer import undo as undoing
from tests.support.plans import told, undone
from tests.support.remains import DAY_S, file


@pytest.fixture
def uploads(tmp_path):
    """Where the application's tasks write."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def site(broker, server, uploads):
    """The shared server; its application leaves files."""
    assert broker
    return connect(of(server, uploads))


def of(server, folder, pattern="*.part"):
    """Return the target whose tasks write into a folder."""
    places = {"uploads": TemporaryFolder(folder=str(folder), pattern=pattern)}
    return Target(name="trial", broker_url=server.url, temporary_files=places)


def planned(site):
    """Look, judge and plan, as the runbook does."""
    seen = remains(site, stored(site, weekly_cleanup.asked(site)))
    return weekly_cleanup.plan(seen, weekly_cleanup.diagnose(seen))


def kept(archive):
    """Return the files that runs have kept."""
    return sorted(archive.rglob("kept-*.file"))


class TestLooking:
    """Which files may go."""

    def test_only_old_files_that_fit_and_nobody_has_open(self, site, uploads, tmp_path):
        """In the folder and below, no link and nothing behind one."""
        old, deep = file(uploads / "a.part"), file(uploads / "task-1" / "b.part", age_s=9 * DAY_S)
        file(uploads / "young.part", age_s=3600)
        file(uploads / "a.mp4")
        busy = file(uploads / "busy.part")
        elsewhere = file(tmp_path / "elsewhere" / "c.part")
        (uploads / "link.part").symlink_to(elsewhere)
        (uploads / "task-2").symlink_to(elsewhere.parent)
        os.mkfifo(uploads / "pipe.part")

        with busy.open("ab"):
            found = collected.look("uploads", site.target.temporary_files["uploads"])

        assert [row.path for row in found.rows] == [str(deep), str(old)]
        assert (found.open, found.links, found.young) == (1, 2, 1)
        assert found.host == socket.gethostname()

    @pytest.mark.parametrize("what", ["missing", "file", "link", "archive"])
    def test_a_folder_that_is_none_is_not_seen(self, broker, server, tmp_path, archive, what):
        """It is told as a place that nobody could look into, and there is no plan for it."""
        places = {"missing": tmp_path / "missing", "file": file(tmp_path / "file"), "archive": archive}
        places["link"] = tmp_path / "link"
        (tmp_path / "real").mkdir()
        places["link"].symlink_to(tmp_path / "real")
        file(tmp_path / "real" / "a.part")
        site = connect(of(server, places[what]))
        seen = remains(site, stored(site, weekly_cleanup.asked(site)))

        findings = weekly_cleanup.diagnose(seen)

        assert broker
        assert [f.severity for f in findings if f.subject == "files uploads"] == ["unknown"]
        assert not weekly_cleanup.plan(seen, findings)

    @pytest.mark.parametrize(
        ("folder", "said"),
        [
            ("", "absolute"),
            ("uploads", "absolute"),
            ("~/uploads", "absolute"),
            ("/", "holds more"),
            ("//", "holds more"),
            ("/tmp/", "holds more"),
            ("/var/tmp", "holds more"),
            ("/srv/../etc", "upwards"),
            ("/etc/app", "of the system"),
            ("/proc/self/fd", "of the system"),
            (str(Path.home()), "home|holds more"),
        ],
    )
    def test_a_folder_that_holds_more_is_refused(self, folder, said):
        """Before anything is looked at."""
        assert re.search(said, rules.why_not(folder)), rules.why_not(folder)
        with pytest.raises(SettingsError, match=r"temporary_files\.uploads\.folder"):
            _load(folder=folder)

    @pytest.mark.parametrize("pattern", ["", "*", "*.*", "?*", "[a-z]*", "**/*.part", "../x.part", "*.p"])
    def test_a_pattern_that_means_everything_is_refused(self, pattern):
        """Two letters have to stand as they are, and it is a name and no path."""
        with pytest.raises(SettingsError, match=r"temporary_files\.uploads\.pattern"):
            _load(pattern=pattern)

    @pytest.mark.parametrize("age", ["0", "0h", "59m"])
    def test_no_age_and_a_short_one_are_refused(self, age):
        """A task may be writing the file."""
        with pytest.raises(SettingsError):
            _load(older_than=age)

    def test_a_sound_one_is_taken(self):
        """And shown."""
        assert _load().temporary_files["uploads"].older_than == "24h"
        (row,) = [row for row in settings.described(_load()) if row["setting"] == "temporary_files.uploads"]
        assert row["value"] == "*.part in /srv/app/uploads, older than 24h"


def _load(**fields):
    values = {"folder": "/srv/app/uploads", "pattern": "*.part", **fields}
    table = {"broker_url": "redis://h/0", "temporary_files": {"uploads": values}}
    return settings._target("prod", table, {}, [])


class TestMoving:
    """What is planned is moved, and put back."""

    @pytest.mark.parametrize("across", [False, True])
    def test_there_and_back(self, site, uploads, archive, monkeypatch, across):
        """With its bytes, rights and times; also where the archive is on another disk."""
        old = file(uploads / "task-1" / "a.part", content=b"\x00half\xff" * 1000, mode=0o640)
        before = old.stat()
        if across:
            monkeypatch.setattr(writing, "_other_disk", lambda *_: True)

        outcomes = apply(planned(site), site, dry_run=False)

        assert told(outcomes) == ["applied"]
        assert "1 files, 6,000 bytes" in outcomes[0].reason
        assert not old.exists()
        (vault,) = kept(archive)
        assert (vault.read_bytes(), vault.stat().st_mode & 0o777) == (b"\x00half\xff" * 1000, 0o600)
        assert (vault.stat().st_ino == before.st_ino) is not across
        assert told(undone(site, records.context().run_id)) == ["applied"]
        after = old.stat()
        assert old.read_bytes() == b"\x00half\xff" * 1000
        assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)
        assert [each.name for each in old.parent.iterdir()] == ["a.part"]
        assert kept(archive) == [vault]
        assert not undoing.plan(site, records.context().run_id)

    def test_a_name_may_be_any_bytes(self, site, uploads):
        """No text, and with characters that a terminal obeys."""
        names = [b"\xff\xfe.part", "a\n\x1b[31m\u202e.part".encode(), b"'; rm -rf *.part"]
        for name in names:
            made = file(uploads / "x.part")
            made.rename(uploads / os.fsdecode(name))

        assert told(apply(planned(site), site, dry_run=False)) == ["applied"]
        assert not list(uploads.iterdir())
        assert told(undone(site, records.context().run_id)) == ["applied"]
        assert {os.fsencode(each.name) for each in uploads.iterdir()} == set(names)

    def test_what_was_changed_replaced_or_opened_since_stays(self, site, uploads, archive, tmp_path):
        """Each is looked at right before it is moved."""
        for name in ("longer", "again", "gone", "busy", "swapped", "sound"):
            file(uploads / name / "a.part")
        outside = file(tmp_path / "outside" / "a.part")
        plan = planned(site)
        (uploads / "longer" / "a.part").open("ab").write(b"more")
        file(uploads / "new.part").replace(uploads / "again" / "a.part")
        (uploads / "gone" / "a.part").unlink()
        (uploads / "swapped").rename(tmp_path / "away")
        (uploads / "swapped").symlink_to(outside.parent)

        with (uploads / "busy" / "a.part").open("rb"):
            (outcome,) = apply(plan, site, dry_run=False)

        assert "1 files, 4 bytes, were moved" in outcome.reason
        assert "2 stay: gone already" in outcome.reason
        assert "2 stay: changed since they were looked at" in outcome.reason
        assert "1 stay: open in a process" in outcome.reason
        assert outside.exists()
        assert len(kept(archive)) == 1

    def test_one_that_is_opened_while_it_is_moved_is_put_back(self, site, uploads, archive, monkeypatch):
        """Between the look and the move is an instant."""
        old = file(uploads / "a.part")
        handles = []

        def open_it(place):
            if place == "after-intent-of-files":
                handles.append(old.open("ab"))

        plan = planned(site)
        monkeypatch.setattr(points, "passed", open_it)

        (outcome,) = apply(plan, site, dry_run=False)
        handles[0].close()

        assert (outcome.status, old.exists(), kept(archive)) == ("skipped", True, [])

    def test_a_crash_between_journal_and_move_loses_nothing(self, site, uploads, monkeypatch):
        """Undo finds what was moved by then, and leaves what was not."""
        first, second = file(uploads / "a.part", age_s=3 * DAY_S), file(uploads / "b.part")
        take = writing._take
        taken = []

        def cut(*of):
            if taken:
                raise KeyboardInterrupt
            taken.append(take(*of))
            return taken[0]

        monkeypatch.setattr(writing, "_take", cut)
        with pytest.raises(KeyboardInterrupt):
            apply(planned(site), site, dry_run=False)
        monkeypatch.setattr(writing, "_take", take)
        assert (first.exists(), second.exists()) == (False, True)

        (outcome,) = undone(site, records.context().run_id)

        assert outcome.reason.startswith("1 of 2 files are back.")
        assert (first.read_bytes(), second.read_bytes()) == (b"half", b"half")

    def test_undo_leaves_a_newer_file_of_that_name(self, site, uploads):
        """The task was run again."""
        old = file(uploads / "a.part")
        apply(planned(site), site, dry_run=False)
        old.write_bytes(b"new")

        (outcome,) = undone(site, records.context().run_id)

        assert (outcome.status, old.read_bytes()) == ("skipped", b"new")
        assert "exists again" in outcome.reason

    def test_undo_writes_only_where_the_target_says(self, site, server, uploads, archive):
        """Whoever can write a journal must not be able to have a file written anywhere."""
        old = file(uploads / "a.part")
        apply(planned(site), site, dry_run=False)

        (outcome,) = undone(connect(of(server, uploads.parent / "other")), records.context().run_id)

        assert (outcome.status, old.exists(), len(kept(archive))) == ("skipped", False, 1)
        assert "no folder of the target's" in outcome.reason

    def test_on_another_machine_nothing_is_done(self, site, uploads, monkeypatch):
        """It has other files of the same names."""
        old = file(uploads / "a.part")
        plan = planned(site)
        monkeypatch.setattr(socket, "gethostname", lambda: "other")

        (outcome,) = apply(plan, site, dry_run=False)

        assert (outcome.status, old.exists()) == ("skipped", True)
        assert "and this is other" in outcome.reason

    def test_a_plan_for_another_path_is_refused(self, site, uploads, tmp_path):
        """Even if somebody has written it into the plan's file."""
        file(uploads / "a.part")
        victim = file(tmp_path / "victim.part")
        plan = planned(site)
        (action,) = plan
        copies = (replace(action.copies[0], key=str(uploads / ".." / "victim.part")),)

        with pytest.raises(Refused, match="is about"):
            apply(replace(plan, actions=(replace(action, copies=copies),)), site, dry_run=False)
        assert victim.exists()


def test_no_more_is_kept_than_fits(monkeypatch):
    """What is larger than that by itself is a person's."""
    rows = [TemporaryFile(path=f"/srv/app/{n}.part", size_bytes=n, age_s=9.0, mark=f"{n}") for n in (6, 20, 3, 4)]
    found = collected.TemporaryFiles(
        name="app", folder="/srv/app", pattern="*.part", older_than_s=1.0, host="h", rows=tuple(rows)
    )
    monkeypatch.setattr(remnants, "MOST_KEPT_BYTES", 10)

    action, (finding,) = remnants._removed(found), list(remnants._files(found))

    assert action.kind is Kind.REMOVE
    assert [copy.key for copy in action.copies] == ["/srv/app/6.part", "/srv/app/3.part"]
    assert "2 of them, 24 bytes, stay: one run keeps 10 bytes" in finding.message
