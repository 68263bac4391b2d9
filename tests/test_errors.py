"""Every error is a sentence with a hint and an exit code, and finds its way from the kernel to the runner."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import opslib
from opslib import errors
from opslib.errors import Exit, OpsError, near, typed

for _module in pkgutil.walk_packages(opslib.__path__, "opslib."):
    # Everything that may define an error; the demo's app is made to refuse a process that is not its worker.
    if _module.name not in {"opslib.demo.app", "opslib.demo.__main__", "opslib.__main__"}:
        importlib.import_module(_module.name)


def everyone(root: type[OpsError] = OpsError) -> list[type[OpsError]]:
    """Return an error and all that derive from it."""
    return [root, *(each for child in root.__subclasses__() for each in everyone(child))]


CODES = {
    "OpsError": Exit.FAILED,
    "SettingsError": Exit.USAGE,
    "BadParameter": Exit.USAGE,
    "UnknownRunbook": Exit.USAGE,
    "NotFound": Exit.USAGE,
    "BrokerUnreachable": Exit.CANNOT_SEE,
    "BrokerRefused": Exit.CANNOT_SEE,
    "NotABroker": Exit.CANNOT_SEE,
    "DatabaseUnreachable": Exit.CANNOT_SEE,
    "DatabaseRefused": Exit.CANNOT_SEE,
    "DatabaseLocked": Exit.CANNOT_SEE,
    "Refused": Exit.REFUSED,
    "LockHeld": Exit.REFUSED,
    "PlanTooLarge": Exit.REFUSED,
    "RunbookFailed": Exit.FAILED,
    "Interrupted": Exit.INTERRUPTED,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_an_error_has_its_exit_code(name, code):
    """Wrong usage is 2, a failure 3, what cannot be seen 4, a refusal 5, an interruption 130."""
    assert getattr(errors, name).exit_code is code


def test_no_error_of_the_module_is_missing_above():
    """A new error decides its exit code in the table of this file, too."""
    assert {each.__name__ for each in everyone() if each.__module__ == errors.__name__} == set(CODES)


@pytest.mark.parametrize("kind", everyone(), ids=lambda kind: kind.__name__)
def test_every_error_ends_with_a_documented_code(kind):
    """Wherever it is defined: one of the enumeration, and never one that says that all is well or a person decides."""
    assert kind.exit_code in set(Exit) - {Exit.DONE, Exit.ATTENTION}


@pytest.mark.parametrize("kind", everyone(), ids=lambda kind: kind.__name__)
def test_an_error_is_found_by_its_name(kind):
    """From the kernel only the name arrives; two errors of one name would be confused."""
    assert errors.by_name(kind.__name__) is kind


@pytest.mark.parametrize("name", ["", "ValueError", "opserror", "Exit"])
def test_another_name_is_no_error_of_ours(name):
    """What a cell raised otherwise is not taken for one of these."""
    assert errors.by_name(name) is None


@pytest.mark.parametrize("kind", everyone(), ids=lambda kind: kind.__name__)
def test_an_error_is_its_sentence_and_its_hint(kind):
    """Message first, hint on its own line; IPython shows these instead of a traceback."""
    error = kind("It did not work.", hint="Do this.")

    assert str(error) == "It did not work.\nDo this."
    assert error._render_traceback_() == [f"{kind.__name__}: It did not work.", "Hint: Do this."]


@pytest.mark.parametrize("kind", everyone(), ids=lambda kind: kind.__name__)
def test_a_default_hint_is_a_sentence(kind):
    """Without one of its own, an error has its class's hint or none, and never an empty line."""
    error = kind("It did not work.")

    assert error.hint == kind.hint
    assert str(error).splitlines() == ["It did not work.", *kind.hint.splitlines()]


def test_the_codes_are_those_that_scripts_rely_on():
    """A number, once published, means the same for ever."""
    assert {code.name: int(code) for code in Exit} == {
        "DONE": 0,
        "ATTENTION": 1,
        "USAGE": 2,
        "FAILED": 3,
        "CANNOT_SEE": 4,
        "REFUSED": 5,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("wanted", "known", "fields", "said"),
    [
        ("celry", ["mail", "celery"], {}, "Did you mean celery?"),
        ("celry", ["mail", "celery"], {"otherwise": "`ops queues` lists them."}, "Did you mean celery?"),
        ("other", ["mail", "celery"], {"otherwise": "`ops queues` lists them."}, "`ops queues` lists them."),
        ("other", ["mail", "celery"], {}, "There are: celery, mail."),
        ("other", ["mail", "mail"], {}, "There is: mail."),
        ("", ["mail", "x; rm -r ~"], {"option": "-p queue="}, "There are: -p queue=mail, -p queue=…."),
        ("x", [f"queue-{n}" for n in range(8)], {}, f"There are: {', '.join(f'queue-{n}' for n in range(8))}."),
        ("x", [f"queue-{n}" for n in range(9)], {}, f"There are: {', '.join(f'queue-{n}' for n in range(8))} …."),
        ("x", [], {}, "There is none."),
    ],
)
def test_a_name_that_nobody_knows_is_met_with_the_nearest(wanted, known, fields, said):
    """Or with what there is, a few of it."""
    assert near(wanted, known, **fields) == said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop.pay", "shop.pay"),
        ("w1@host:6379-a_b", "w1@host:6379-a_b"),
        ("a" * 200, "a" * 200),
        ("a" * 201, "…"),
        ("", "…"),
        ("shop.pay; rm -r ~", "…"),
        ("$(reboot)", "…"),
        ("a\n", "…"),
        ("é", "…"),
    ],
)
def test_only_a_plain_name_is_offered_for_pasting(name, said):
    """Whoever sent a message chose the names in it."""
    assert typed(name) == said
