"""
A run is cut off at every place there is: nothing is lost or done twice, and its id is enough to end it either way.

Where each crash point of the safety protocol (C0 to C14) is tried, says `PROTOCOL`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager

import pytest

from opslib.plan import Status
from opslib.writer import audit as audits
from opslib.writer import lock
from tests.support import crashing, engines, proxy
from tests.support.crashing import VERBS, Trial, crash, cut, interrupt, look
from tests.support.plans import audit
from tests.support.seed import KEYS
from tests.support.waiting import until

EARLY = ("before-lock", "before-plan-file", "in-plan-file", "after-plan-file", "after-lock")
BATCHES = ("before-intent", "after-intent", "after-script", "after-result")
BETWEEN = ("after-intent-2", "after-script-2", "after-result-2", "after-intent-3", "after-script-3")
LATE = ("before-verify", "before-release")
#: After the change itself, in the run of a command.
ENDS = ("in-look", "in-report")
#: Places that only some come to.
OWN = {
    "delete": ("in-vault", "after-vault"),
    "handover": ("in-vault", "after-vault", "in-verify"),
    "sweep": ("in-vault", "after-vault"),
    **dict.fromkeys(("restore", "quarantine", "purge", "move", "move-queue", "purge-some", "send"), ("in-verify",)),
}
SIEVED = (
    "sieve",
    "quarantine-deep",
    "move-deep",
    "purge-some-deep",
    "move-some-deep",
    "reorder-deep",
    "expedite-deep",
)
OWN |= {verb: (*OWN.get(verb, ()), "list-set-aside") for verb in SIEVED}
OWN |= {verb: (*OWN[verb], "in-verify") for verb in SIEVED[:5]}
#: What comes to its end in more steps than others: from quarantine to where it goes, list by list.
FURTHER = ("after-intent-6", "after-script-9")
OWN |= {verb: (*OWN.get(verb, ()), *FURTHER) for verb in ("move-some-deep", "expedite", "expedite-deep")}
UNDONE = (*VERBS, "everything")
#: Where a server that dies makes a difference.
OF_SERVERS = ("after-lock", "after-intent", "after-script", "after-intent-2", "after-script-2", "before-verify")
#: Words of the script that takes the lock, of what begins every change, and of what lets go of the lock.
TAKES, CHANGES, LETS_GO = b"One run at a time", b"The beginning of every script", b"Renew the lock, or let go of it"
WAYS = ("resume", "undo")
#: It takes a tenth of a second; this is for a machine that has much else to do.
HEALED_S = 30.0

#: Crash points of the safety protocol → the places here, or the tests that are about them.
PROTOCOL = {
    "C0 before the lock": "before-lock",
    "C1 before the plan file": "before-plan-file",  # which is saved before the lock is taken
    "C2 plan half written": "in-plan-file",
    "C3 before the snapshot": "after-plan-file, after-lock, list-set-aside",
    "C4 during the export": "in-vault, after-vault",
    "C5 after the intent, before the script": "before-intent, after-intent",
    "C6 script sent, answer lost": "TestLostAnswers",
    "C7 after the script, before the result": "after-script",
    "C8 between batches": ", ".join(("after-result", *BETWEEN, *FURTHER)),
    "C9 lock gone while paused": "TestPaused",
    "C10 during the verification": "before-verify, in-verify",
    "C11 before the release": "before-release",
    "C12 during the report": "in-look, in-report",
    "C13 undo interrupted": "TestUndoing",
    "C14 second SIGINT": "TestSecondCtrlC",
}


def places(verb):
    """Return all places that a run of this kind comes to."""
    return (*EARLY, *BATCHES, *BETWEEN, *LATE, *OWN.get(verb, ()))


def cells(verbs, where, ways=WAYS):
    """Return a parameter for each verb, place and way to bring it to an end."""
    return [(verb, place, way) for verb in verbs for place in where(verb) for way in ways]


def alternating(verbs, where):
    """Return a parameter for each verb and place; the ways take turns."""
    at = [(verb, place) for verb in verbs for place in where(verb)]
    return [(*each, WAYS[n % 2]) for n, each in enumerate(at)]


def sparing(cells, often):
    """Return the cells, those that are not tried often marked as slow."""
    return [cell if cell in often else pytest.param(*cell, marks=pytest.mark.slow) for cell in cells]


def of_kinds(cells):
    """Return each cell with a kind of server in front; the kinds take turns."""
    kinds = (engines.REDIS, engines.VALKEY)
    return [(kinds[n // 2 % 2], *each) for n, each in enumerate(cells)]


@pytest.fixture(autouse=True)
def _small():
    """Small batches, so that there are many."""
    with crashing.small():
        yield


@pytest.fixture(scope="module")
def expected(server, tmp_path_factory):
    """What is there after a run of each kind that nothing came in between of."""
    known = {}

    def find(verb):
        if verb not in known:
            with crashing.small(), server.client() as redis, reports(tmp_path_factory.mktemp("whole")) as archive:
                trial = Trial(redis=redis, url=server.url, archive=archive, verb=verb)
                trial.complete()
                known[verb] = look(redis)
        return known[verb]

    return find


@contextmanager
def reports(folder):
    """Have another archive for the time of a `with` block."""
    before = os.environ.get("OPS_REPORTS", "")
    os.environ["OPS_REPORTS"] = str(folder)
    try:
        yield folder
    finally:
        os.environ["OPS_REPORTS"] = before


@pytest.fixture
def trial(redis, server, archive, expected):
    """Begin with one kind of run on the shared server."""

    def begin(verb, *, undoing=False):
        if not undoing:
            expected(verb)
        made = Trial(redis=redis, url=server.url, archive=archive, verb=verb)
        if undoing:
            made.then_undo()
        return made

    return begin


def ended(trial, way, expected):
    """Bring a run that was cut off to its end by its id; all has to be as if nothing had happened, one way or other."""
    trial.check_nothing_lost()
    trial.outlive_lock()
    _end(trial, way, expected)
    assert trial.heal_s < HEALED_S


def _end(trial, way, expected):
    if way == "undo":
        if trial.undo():
            trial.check_put_back()
        else:
            trial.check_unchanged()
        return
    if not trial.resume():
        trial.check_unchanged()
        return
    if trial.undoing:
        trial.check_put_back()
        return
    trial.check_done(expected(trial.verb))
    assert trial.verb == "sieve" or not trial.left()  # a stop is proven anew each time
    trial.undo()
    trial.check_put_back()


def test_every_crash_point_of_the_protocol_is_tried():
    """By a place here, or a test of its own."""
    known = {*(place for verb in VERBS for place in places(verb)), *ENDS}
    tried = [each for text in PROTOCOL.values() for each in text.split(", ")]

    assert len(PROTOCOL) == 15
    assert {each for each in tried if not each.startswith("Test")} == known
    assert all(each in globals() for each in tried if each.startswith("Test"))


class TestCutOff:
    """A run of each kind, at each place."""

    @pytest.mark.parametrize(("verb", "place", "way"), cells(VERBS, places))
    def test_an_error(self, trial, expected, verb, place, way):
        """One that nobody expects."""
        begun = trial(verb)

        begun.in_process(cut(place), crash)

        assert not begun.redis.exists(KEYS.lock)
        ended(begun, way, expected)

    @pytest.mark.parametrize(("verb", "place", "way"), alternating(VERBS, places))
    def test_ctrl_c(self, trial, expected, verb, place, way):
        """A batch that is on its way comes to its end first."""
        begun = trial(verb)

        begun.in_process(cut(place), interrupt)

        assert not begun.redis.exists(KEYS.lock)
        ended(begun, way, expected)

    @pytest.mark.parametrize(("verb", "place", "way"), sparing(cells(VERBS, places), alternating(VERBS, places)))
    def test_its_process_is_killed(self, trial, expected, verb, place, way):
        """Nothing of it runs any more, not even what cleans up."""
        begun = trial(verb)

        begun.killed(cut(place))

        ended(begun, way, expected)

    @pytest.mark.parametrize(("verb", "place", "way"), alternating(VERBS, lambda _: ENDS))
    def test_its_process_is_killed_when_all_is_done(self, trial, expected, verb, place, way):
        """The change is whole; what is missing is only what is told of it."""
        begun = trial(verb)

        begun.killed(cut(place))

        begun.check_done(expected(verb))
        ended(begun, way, expected)


class TestUndoing:
    """The undoing of a run of each kind, at each place; it is gone on with by its own id, or by undoing again."""

    @pytest.mark.parametrize(
        ("verb", "place", "way"),
        sparing(
            cells(UNDONE, lambda _: (*BATCHES, *BETWEEN, *LATE)),
            alternating(UNDONE, lambda _: ("after-intent-2", "after-script-2", "after-script-3")),
        ),
    )
    def test_an_undo_that_is_cut_off(self, trial, expected, verb, place, way):
        """By an error."""
        begun = trial(verb, undoing=True)

        begun.in_process(cut(place), crash)

        ended(begun, way, expected)

    @pytest.mark.parametrize(
        ("verb", "place", "way"), [*cells(["everything"], lambda _: EARLY), *alternating(UNDONE, lambda _: (*BETWEEN,))]
    )
    def test_an_undo_whose_process_is_killed(self, trial, expected, verb, place, way):
        """Whatever it had begun."""
        begun = trial(verb, undoing=True)

        begun.killed(cut(place))

        ended(begun, way, expected)


@pytest.fixture(scope="module")
def durable(tmp_path_factory):
    """Servers that do, by their kind, each started when it is needed."""
    known = {}
    with ExitStack() as running:

        def find(kind):
            if kind not in known:
                engines.available(kind)
                folder = tmp_path_factory.mktemp(kind)
                known[kind] = running.enter_context(engines.start(kind, folder, persistent=True))
            return known[kind]

        yield find


SERVER_CELLS = sparing(
    of_kinds(alternating(VERBS, lambda _: OF_SERVERS)),
    [
        cell
        for cell in of_kinds(alternating(VERBS, lambda _: OF_SERVERS))
        if cell[2] in {"after-intent-2", "after-script"}
    ],
)


class TestServerKilled:
    """It has written down every change that it answered, and is started again on the same data."""

    @pytest.fixture
    def on(self, durable, archive, expected):
        """Begin with one kind of run on such a server."""
        with ExitStack() as clients:

            def begin(kind, verb, *, undoing=False):
                expected(verb)
                engine = durable(kind)
                client = clients.enter_context(engine.client())
                made = Trial(redis=client, url=engine.url, archive=archive, verb=verb)
                if undoing:
                    made.then_undo()
                return engine, made

            yield begin

    @pytest.mark.parametrize(("kind", "verb", "place", "way"), SERVER_CELLS)
    def test_under_a_run(self, on, expected, kind, verb, place, way):
        """What it had done is known when it is back."""
        engine, begun = on(kind, verb)

        begun.in_process(cut(place), engine.kill)

        back(engine, begun)
        ended(begun, way, expected)

    @pytest.mark.parametrize(
        ("kind", "verb", "place", "way"), of_kinds(alternating(["everything"], lambda _: (*OF_SERVERS, *BETWEEN[2:])))
    )
    def test_under_an_undo(self, on, expected, kind, verb, place, way):
        """Undoing goes on where it was."""
        engine, begun = on(kind, verb, undoing=True)

        begun.in_process(cut(place), engine.kill)

        back(engine, begun)
        ended(begun, way, expected)

    @pytest.mark.parametrize(("kind", "verb", "way"), of_kinds([(verb, WAYS[n % 2]) for n, verb in enumerate(VERBS)]))
    def test_with_the_answer(self, on, expected, kind, verb, way):
        """The change was made, and nobody was told: neither the first time nor when it is asked for again."""
        engine, begun = on(kind, verb)
        with proxy.before(engine) as road:

            def doomed(request):
                lost = type(road).doomed(road, request)
                if lost:
                    engine.kill()
                return lost

            road.doomed = doomed
            begun.in_process(cut("after-intent-2"), lambda: road.lose(CHANGES), url=road.url)

        assert road.lost == 1
        back(engine, begun)
        ended(begun, way, expected)


def back(engine, begun):
    """Have a server back."""
    engine.start()
    begun.redis.connection_pool.disconnect()


class TestLostAnswers:
    """A request is carried out, and its answer cut."""

    @pytest.mark.parametrize("verb", VERBS)
    def test_a_batch(self, trial, expected, server, archive, verb):
        """It is asked for again under its number, and done once."""
        begun = trial(verb)

        with proxy.before(server) as road:
            outcomes = begun.in_process(cut("after-intent-2"), lambda: road.lose(CHANGES), url=road.url)

        assert road.lost == 1
        assert {outcome.status for outcome in outcomes} == {Status.APPLIED}
        assert [line["said"] for line in audit(archive) if line["event"] == "result"].count("REPLAY") == 1
        begun.check_done(expected(verb))

    @pytest.mark.parametrize(("verb", "way"), [(verb, WAYS[n % 2]) for n, verb in enumerate(VERBS)])
    def test_a_batch_twice(self, trial, expected, server, verb, way):
        """Then nothing more is sent, and the run is ended by its id."""
        begun = trial(verb)

        with proxy.before(server) as road:
            begun.in_process(cut("after-intent-2"), lambda: road.lose(CHANGES, times=2), url=road.url)

        assert road.lost == 2
        ended(begun, way, expected)

    @pytest.mark.parametrize(("place", "words"), [("before-lock", TAKES), ("before-release", LETS_GO)])
    @pytest.mark.parametrize("way", WAYS)
    def test_the_lock(self, trial, expected, server, place, words, way):
        """Whoever does not know whether it has the lock changes nothing; one that was not let go of frees itself."""
        begun = trial("quarantine")

        with proxy.before(server) as road:
            begun.in_process(cut(place), lambda: road.lose(words), url=road.url)

        assert road.lost == 1
        ended(begun, way, expected)


class TestPaused:
    """A run stops for so long that its lock has gone, and somebody else brings it to an end; then it goes on."""

    @pytest.mark.parametrize(
        ("verb", "place", "way"), alternating(VERBS, lambda _: ("after-lock", "after-intent", "after-intent-2"))
    )
    def test_it_changes_nothing_any_more(self, trial, expected, verb, place, way):
        """Its batch is refused, and so is everything after."""
        begun = trial(verb)

        with begun.stopped(cut(place)):
            ended(begun, way, expected)
            before = look(begun.redis)

        after = look(begun.redis)
        assert (after.values, after.kept) == (before.values, before.kept)
        begun.check_rest()

    def test_the_lock_goes_by_itself(self, trial, expected):
        """After its life, without anybody's help."""
        begun = trial("quarantine")

        with begun.stopped(cut("after-intent-2"), life_ms=2_000):
            until(lambda: not begun.redis.exists(KEYS.lock), 10, "the lock has gone")
            ended(begun, "resume", expected)

        begun.check_put_back()


class TestSecondCtrlC:
    """Whoever is impatient gets no other result."""

    SOME = ("quarantine", "purge", "delete", "sieve")

    @pytest.mark.parametrize(("verb", "way"), [(verb, WAYS[n % 2]) for n, verb in enumerate(SOME)])
    def test_within_a_batch(self, trial, expected, verb, way):
        """Both wait for it."""
        begun = trial(verb)

        begun.in_process(cut("after-intent-2"), lambda: (interrupt(), interrupt()))

        assert not begun.redis.exists(KEYS.lock)
        ended(begun, way, expected)

    @pytest.mark.parametrize(("verb", "way"), [(verb, WAYS[n % 2]) for n, verb in enumerate(SOME)])
    @pytest.mark.parametrize("where", ["letting go of the lock", "writing it down"])
    def test_while_it_ends(self, trial, expected, monkeypatch, where, verb, way):
        """The lock is let go of all the same."""
        begun = trial(verb)
        keep, note = lock._keep, audits.note

        def keeping(broker, token, life_ms):
            if not life_ms and where == "letting go of the lock":
                interrupt()
            return keep(broker, token, life_ms)

        def noting(event, **detail):
            if event == "interrupted" and where == "writing it down":
                interrupt()
            note(event, **detail)

        with monkeypatch.context() as patched:
            patched.setattr(lock, "_keep", keeping)
            patched.setattr(audits, "note", noting)
            begun.in_process(cut("after-intent-2"), interrupt)

        assert not begun.redis.exists(KEYS.lock)
        ended(begun, way, expected)
