"""What speaks against it that a deployment could be restored, and the way back in its order."""

from __future__ import annotations

import shlex
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest

from opslib.errors import SettingsError
from opslib.facts.backup import Backup, Census, Compared, Kept, Saves, Saving
from opslib.findings import Severity
from opslib.plan import Action, Kind, Outcome, Status
from opslib.symptoms import redis_backup
from opslib.symptoms.redis_backup import Thresholds
from tests.support.rows import NOW, coverage, node, snapshot

DAY = Thresholds()
GIB = 1024**3


def saving(age_s: float = 60.0, **more: Any) -> Saving:
    """Return a server that has saved a minute ago, and has changes since."""
    given = {
        "product": "Redis",
        "version": "7.0.15",
        "directory": "/data",
        "file": "dump.rdb",
        "save_points": "3600 1",
        "last_save_at": NOW - timedelta(seconds=age_s),
        "uptime_s": 500_000.0,
        "took_s": 1.0,
        "changes": 10,
        "used_bytes": GIB,
        "rss_bytes": GIB,
        "machine_bytes": 8 * GIB,
        "databases": {0: 20, 1: 3},
    }
    return Saving(**{**given, **more})


def seen(state: Saving | None = None, **more: Any) -> Saves:
    """Return a deployment with one node and such a server."""
    whole = snapshot(**more)
    given = {each.name: getattr(whole, each.name) for each in fields(whole)}
    return Saves(**given, saving=state or saving(), census=CENSUS)


CENSUS = Census(taken_at=NOW, keys=20)
WHOLE = Compared(of="dump", by="Redis 7.0.15", keys=20, settled=18, same=18)


def made(*compared: Compared, fresh: bool = True, **more: Any) -> Backup:
    """Return a backup that was kept."""
    dump = Kept(kind="dump", path="2026/x/vault-dump.rdb", sha256="ab" * 32, **more)
    return Backup(fresh=fresh, census=CENSUS, files=(dump,), compared=compared or (WHOLE,))


def found(*args: Any, **more: Any) -> dict[str, tuple[Severity, str]]:
    """Return what is judged, by code."""
    return {each.code: (each.severity, each.message) for each in redis_backup.diagnose(*args, **more)}


class TestFindings:
    """Each with its boundary."""

    def test_nothing_is_wrong(self):
        """A young save, memory enough, and a rehearsal that held everything."""
        assert found(seen(), DAY, made()) == {}

    @pytest.mark.parametrize(
        ("state", "codes"),
        [
            (saving(86_400.0), set()),
            (saving(86_401.0), {"backup-old"}),
            (saving(86_401.0, changes=0), set()),
            (saving(100.0, took_s=-1.0, uptime_s=101.0), {"backup-old"}),
            (saving(100.0, took_s=-1.0, uptime_s=101.0, changes=0), set()),
            (saving(failing=True), {"save-failing"}),
            (saving(offered=False), {"save-failing"}),
            (saving(rss_bytes=4 * GIB), set()),
            (saving(rss_bytes=4 * GIB + 1), {"save-memory"}),
            (saving(rss_bytes=9 * GIB, machine_bytes=0), set()),
        ],
    )
    def test_of_the_server(self, state: Saving, codes: set[str]):
        """How old, whether it fails, whether there is memory; what the server does not tell is not judged."""
        assert set(found(seen(state), DAY)) == codes

    def test_a_save_that_failed_just_now(self):
        """Is critical with its own words."""
        action = Action(kind=Kind.SAVE, subject="redis://h/0", source="memory", destination="disk")
        failed = Outcome(action=action, status=Status.FAILED, reason="The save failed; see the log.")

        assert found(seen(), DAY, outcomes=[failed]) == {
            "save-failing": (Severity.CRITICAL, "The save failed; see the log.")
        }

    def test_with_an_append_only_file(self):
        """What came since is on the disk all the same, and that is said."""
        _, said = found(seen(saving(90_000.0, aof=True)), DAY)["backup-old"]

        assert "Its append-only file has what came since." in said

    def test_what_is_not_proven(self):
        """Every reason is told; a proven export does not prove the dump."""
        backup = made(Compared(of="dump", problem="No program."), Compared(of="export", settled=1, same=1))
        severity, said = found(seen(), DAY, backup)["backup-unproven"]

        assert (severity, said) == (Severity.ATTENTION, "No program.")

    @pytest.mark.parametrize(
        ("of", "fresh", "codes"),
        [
            ("dump", True, {"restore-differs"}),
            ("dump", False, set()),
            ("export", False, {"restore-differs"}),
        ],
    )
    def test_what_differs(self, of: str, fresh: bool, codes: set[str]):
        """Of a dump only if it was made just now: an older one has to differ."""
        assert set(found(seen(), DAY, made(Compared(of=of, settled=3, same=2), fresh=fresh))) == codes

    @pytest.mark.parametrize(("others", "severity"), [(0, "critical"), (1, "critical"), (2, "attention")])
    def test_what_differs_of_the_applications_own(self, others: int, severity: str):
        """Is for attention, if it is nothing else: it may have changed and changed back."""
        said = found(seen(), DAY, made(Compared(of="dump", settled=5, same=3, others=others)))

        assert said["restore-differs"][0] == severity

    def test_what_was_not_seen(self):
        """Keeps the verdict unknown."""
        assert set(found(seen(coverage=coverage(workers=1)), DAY, made())) == {"cannot-see"}

    @pytest.mark.parametrize("text", ["", "24", "0s", "soon"])
    def test_ages_that_are_none(self, text: str):
        """Are the mistake of the one who typed them."""
        with pytest.raises(SettingsError):
            Thresholds.of(text)


class TestPlan:
    """One save, and what it costs."""

    def test_it_says_what_it_costs(self):
        """Memory, a moment of silence, and the file that is replaced."""
        (action,) = redis_backup.plan(seen(saving(fork_s=0.25, running=True)))

        assert action.kind is Kind.SAVE
        for words in ("1,024 MiB more memory", "250 ms", "/data/dump.rdb is replaced", "is waited for first"):
            assert words in action.effect

    def test_none(self):
        """Where nobody wants one, or the server has none to offer."""
        assert not redis_backup.plan(seen(), save=False)
        assert not redis_backup.plan(seen(saving(offered=False)))


class TestSteps:
    """The order in which it has to be done, for the deployment that was seen."""

    def test_a_plain_server(self):
        """Senders first, then workers, then the server; beat comes last."""
        steps = redis_backup.steps(seen(nodes=[node("a@h"), node("b@h")]), made())
        titles = [each.title for each in steps]

        assert titles[0].startswith("Stop who sends")
        assert titles[1] == "Stop the workers: a@h, b@h."
        assert titles[2] == "Stop the server without saving."
        assert titles[-1].endswith("and beat at last.")
        assert "cp 2026/x/vault-dump.rdb /data/dump.rdb && chown --reference=/data /data/dump.rdb" in [
            each.command for each in steps
        ]
        assert not any("append-only" in title or "replicas" in title for title in titles)
        assert any("database 0: 20, database 1: 3" in title for title in titles)

    def test_with_an_append_only_file(self):
        """It is off at the first start, and on again before its configuration says so."""
        steps = redis_backup.steps(seen(saving(aof=True, aof_folder="appendonlydir")), made())
        commands = [each.command for each in steps]

        assert commands.index("appendonly no") < commands.index("redis-cli PING")
        assert commands.index("redis-cli PING") < commands.index("redis-cli CONFIG SET appendonly yes")
        assert "mv /data/appendonlydir /data/appendonlydir.before" in " ".join(commands)

    def test_with_replicas_and_another_server(self):
        """A replica would take over while its master is down; results elsewhere are of another time."""
        state = saving(replicas=2, elsewhere=("redis://other/0",))
        titles = [each.title for each in redis_backup.steps(seen(state), made())]

        assert titles.index("Stop the 2 replicas, and the sentinels if there are any.") < titles.index(
            "Stop the server without saving."
        )
        assert "See to redis://other/0 as well." in titles

    def test_a_managed_service(self):
        """Has no files; the rest of the order holds."""
        titles = [each.title for each in redis_backup.steps(seen(saving(offered=False)), made())]

        assert "Restore the service's own snapshot, by its own means." in titles
        assert not any("without saving" in title for title in titles)
        assert titles[-1].endswith("and beat at last.")

    def test_names_that_a_shell_would_take_apart(self):
        """Are quoted."""
        steps = redis_backup.steps(seen(saving(directory="/da ta; rm", file="a'b.rdb")), made())
        (command,) = (each.command for each in steps if each.command.startswith("cp "))

        place = "/da ta; rm/a'b.rdb"
        copied = ["cp", "2026/x/vault-dump.rdb", place, "&&", "chown", "--reference=/da ta; rm", place]
        assert shlex.split(command) == copied
