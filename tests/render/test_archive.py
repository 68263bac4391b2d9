"""Runs are kept in folders by day, found by their id, sealed, and listed newest first."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading

import msgspec
import pytest
from bs4 import BeautifulSoup

from opslib import folders, records
from opslib.errors import Exit, NotFound
from opslib.render import archive
from tests.render.samples import RUN_ID, action, finding, outcome, plan, record


def keep(root, run_id: str = RUN_ID, **more):
    """Archive a run as the runner does."""
    run = folders.create(root, run_id)
    kept = record(run_id=run_id, started_at=archive_time(run_id), **more)
    records.write(kept, run / folders.RECORD)
    archive.keep(root, run, kept)
    return run


def archive_time(run_id: str) -> str:
    """Return the instant that a run id begins with."""
    return f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}T{run_id[9:11]}:{run_id[11:13]}:{run_id[13:15]}Z"


def index(root) -> BeautifulSoup:
    """Return the index page."""
    return BeautifulSoup((root / "index.html").read_text(), "html.parser")


def mode(path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_run_has_its_folder_by_day(tmp_path):
    """reports/YYYY/MM/DD/<run id>, all of it for its owner only."""
    root = tmp_path / "reports"
    run = keep(root)

    assert run == root / "2026" / "11" / "21" / RUN_ID
    assert {mode(each) for each in [root, *root.rglob("*")] if each.is_dir()} == {0o700}
    assert {mode(each) for each in run.iterdir()} == {0o600}
    assert sorted(each.name for each in run.iterdir()) == ["manifest.sha256", "record.json", "report.html"]


@pytest.mark.parametrize(
    "run_id",
    [
        "../../etc/passwd",
        "/etc/passwd",
        f"{RUN_ID}/../x",
        f"{RUN_ID}\n",
        f"{RUN_ID}\x00",
        "20261121T021500Z-../x-7f3a9c",
        "20261121T021500Z-Stuck-7f3a9c",
        "20261121T021500Z--7f3a9c",
        "\uff120261121T021500Z-stuck-tasks-7f3a9c",
        "stuck-tasks",
        "20261121T021500Z-" + "a" * 500 + "-7f3a9c",
        "*",
    ],
)
def test_an_id_that_could_be_a_path_is_refused(tmp_path, run_id):
    """Names come from the run id, so a run id is checked before it is one."""
    with pytest.raises(NotFound) as error:
        archive.find(tmp_path, run_id)

    assert error.value.exit_code is Exit.USAGE
    with pytest.raises(NotFound):
        folders.create(tmp_path, run_id)


def test_an_unknown_run_answers_with_the_nearest(tmp_path):
    """One wrong digit at three in the morning."""
    keep(tmp_path)

    with pytest.raises(NotFound, match="No archived run") as error:
        archive.find(tmp_path, RUN_ID.replace("7f3a9c", "7f3a9d"))

    assert error.value.hint == f"Did you mean {RUN_ID}?"


def test_a_run_is_found_by_its_id_and_the_newest_by_none(tmp_path):
    """No id means the latest run."""
    keep(tmp_path)
    keep(tmp_path, "20261122T000000Z-stuck-tasks-aaaaaa")

    assert archive.find(tmp_path, RUN_ID).run_id == RUN_ID
    assert archive.find(tmp_path).run_id == "20261122T000000Z-stuck-tasks-aaaaaa"


def test_an_empty_archive_says_so(tmp_path):
    """Before the first run there is nothing to find, and the index is a sentence."""
    with pytest.raises(NotFound, match="No run has been archived yet"):
        archive.find(tmp_path / "nowhere")
    archive.index(tmp_path / "new")

    assert "No run has been archived yet" in index(tmp_path / "new").get_text()
    assert (tmp_path / "new" / "index.jsonl").read_text() == ""


def test_a_link_in_place_of_a_run_is_not_followed(tmp_path):
    """A symbolic link could lead anywhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    day = folders.folder(tmp_path / "reports", RUN_ID).parent
    day.mkdir(parents=True)
    (day / RUN_ID).symlink_to(elsewhere)

    with pytest.raises(NotFound):
        archive.find(tmp_path / "reports", RUN_ID)
    assert list(archive.runs(tmp_path / "reports")) == []


def test_runs_come_newest_first(tmp_path):
    """Over days, months and years, by the time in their ids."""
    ids = [
        "20251231T235959Z-a-000001",
        "20261121T000000Z-a-000002",
        "20261121T235959Z-a-000003",
        "20261201T000000Z-b-000004",
    ]
    for run_id in ids:
        keep(tmp_path, run_id)

    assert [run.run_id for run in archive.runs(tmp_path)] == ids[::-1]


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"run_id": 3}', b"[]"])
def test_a_run_without_a_readable_record_is_listed_as_failed(tmp_path, content):
    """Absence is a row: a kernel may have died before it wrote anything."""
    run = folders.create(tmp_path, RUN_ID)
    if content is not None:
        (run / folders.RECORD).write_bytes(content)

    found = archive.find(tmp_path)
    archive.index(tmp_path)

    assert (found.run_id, found.runbook, found.verdict) == (RUN_ID, "stuck-tasks", "failed")
    assert "This run left no readable record." in index(tmp_path).get_text()


def test_foreign_files_do_not_disturb(tmp_path):
    """A .gitignore, notes and half-written folders are left alone."""
    keep(tmp_path)
    (tmp_path / ".gitignore").write_text("*")
    (tmp_path / "2026" / "notes.txt").write_text("x")
    (tmp_path / "2026" / "11" / "21" / "scratch").mkdir()

    assert len(list(archive.runs(tmp_path))) == 1
    archive.index(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == "*"


def test_the_index_lists_runs_by_day_with_their_verdicts(tmp_path):
    """Time, verdict, runbook, target, what was found, what was changed, and the way to the report."""
    proposed = plan(action())
    keep(tmp_path, findings=[finding()], proposed=proposed)
    keep(
        tmp_path,
        "20261122T040000Z-stuck-tasks-aaaaaa",
        proposed=proposed,
        outcomes=[outcome(proposed.actions[0])],
        dry_run=False,
    )

    page = index(tmp_path)

    assert [each.get_text(" ", strip=True) for each in page.select("h2")] == [
        "Sunday, 22 November 2026 1 run",
        "Saturday, 21 November 2026 1 run",
    ]
    assert [each.get_text(" ", strip=True) for each in page.select(".run-verdict")] == ["✓ healthy", "✕ critical"]
    modes = [" ".join(each.get_text(" ").split()) for each in page.select(".run-mode")]
    assert [mode.partition(" took")[0] for mode in modes] == ["Applied: 1 change made", "Dry run: nothing was changed"]
    for link in page.select(".run a"):
        assert (tmp_path / link["href"]).is_file()


def test_the_index_is_as_inert_as_a_report(tmp_path):
    """The same policy, no script, and only links into the archive."""
    keep(tmp_path, target="<script>alert(1)</script>", runbook="<img src=x onerror=alert(1)>")

    page = index(tmp_path)

    assert page.head.find(True)["http-equiv"] == "Content-Security-Policy"
    assert not page.select("script, img, iframe, form, link")
    assert all(re.fullmatch(r"#main|\d{4}/\d\d/\d\d/[\w-]+(/report\.html)?", link["href"]) for link in page.select("a"))


def test_the_index_as_data_has_every_run(tmp_path):
    """One JSON object a line, the newest first, with what a script asks for."""
    keep(tmp_path, findings=[finding()])
    keep(tmp_path, "20261122T040000Z-stuck-tasks-aaaaaa")

    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]

    assert [line["verdict"] for line in lines] == ["healthy", "critical"]
    assert lines[1]["run_id"] == RUN_ID
    assert lines[1]["remaining"] == 1
    assert lines[1]["report"] == f"2026/11/21/{RUN_ID}/report.html"


def test_the_page_is_bounded_and_the_data_is_not(tmp_path, monkeypatch):
    """Years of runs make a long file, not a long page."""
    monkeypatch.setattr(archive, "NEWEST", 3)
    for number in range(5):
        run = folders.create(tmp_path, f"20261121T00000{number}Z-a-00000{number}")
        (run / folders.RECORD).write_bytes(msgspec.json.encode(record(run_id=run.name)))

    archive.index(tmp_path)

    assert len(index(tmp_path).select(".run")) == 3
    assert "2 older runs not shown here" in index(tmp_path).get_text()
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == 5


def test_two_runs_that_end_together_are_both_in_the_index(tmp_path):
    """The index is rewritten under a lock: who comes last writes both."""
    script = (
        "import sys; from pathlib import Path; from tests.render.test_archive import keep;"
        "[keep(Path(sys.argv[1]), f'20261121T00000{n}Z-a-{sys.argv[2]}0000{n}') for n in range(5)]"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(which)], env=environment) for which in (1, 2)
    ]

    assert [each.wait(60) for each in both] == [0, 0]
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == 10
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".index.html")]


def test_the_index_waits_for_whoever_writes_it(tmp_path):
    """While another process holds the lock, the index is not touched; then it is written."""
    keep(tmp_path)
    before = (tmp_path / "index.html").stat().st_ino
    writer = threading.Thread(target=archive.index, args=(tmp_path,), daemon=True)
    with (tmp_path / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert (tmp_path / "index.html").stat().st_ino == before

    writer.join(30)
    assert not writer.is_alive()


def test_a_sealed_run_tells_what_was_changed_since(tmp_path):
    """Changed, added and missing files are each named; an untouched run has nothing to tell."""
    run = keep(tmp_path)
    assert archive.verify(run) == []

    (run / "record.json").write_text("{}")
    (run / "report.html").unlink()
    (run / "extra.txt").write_text("x")

    assert archive.verify(run) == ["report.html is missing.", "extra.txt was added later.", "record.json was changed."]


def test_an_unsealed_run_is_said(tmp_path):
    """Without a manifest nothing is proved."""
    assert archive.verify(folders.create(tmp_path, RUN_ID)) == ["The run has no manifest; it was never sealed."]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_the_manifest_is_what_sha256sum_reads(tmp_path):
    """It can be checked without opslib."""
    run = keep(tmp_path)

    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "manifest.sha256"], cwd=run, capture_output=True, check=False
    )

    assert checked.returncode == 0


def test_a_report_that_cannot_be_written_is_none(tmp_path):
    """A full or read-only disk ends no run with an error."""
    assert archive.keep(tmp_path, tmp_path / "gone", record()) is None
