"""What can go wrong → one root error, its sentence, its hint and the exit code of the process."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice

#: Of what there is, a hint names so many.
_MOST_NAMED = 8
_PLAIN = re.compile(r"[\w.:@-]{1,200}", re.ASCII)


class Exit(IntEnum):
    """
    The exit codes of every command, explained in docs/exit-codes.md.

    Attributes:
        DONE: Nothing needs a person.

        ATTENTION: A person is needed: findings remain, a plan waits, an action failed.

        USAGE: Wrong usage or configuration.

        FAILED: The runbook itself failed.

        CANNOT_SEE: Unreachable, not permitted, or too little seen for a verdict.

        REFUSED: A safety rule said no.

        INTERRUPTED: Stopped by Ctrl-C or a signal.
    """

    DONE = 0
    ATTENTION = 1
    USAGE = 2
    FAILED = 3
    CANNOT_SEE = 4
    REFUSED = 5
    INTERRUPTED = 130


class OpsError(Exception):
    """
    The root of every error that a user can cause or meet.

    Args:
        message: One sentence: what was tried and what happened.

        hint: One sentence: what to do about it; the class has a default.
    """

    exit_code: Exit = Exit.FAILED
    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or type(self).hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def _render_traceback_(self) -> list[str]:
        """Show the sentence instead of a traceback; IPython asks an exception for this."""
        return [f"{type(self).__name__}: {self.message}", *([f"Hint: {self.hint}"] if self.hint else [])]


class SettingsError(OpsError):
    """Raised when a target, a setting or an option cannot be used as given."""

    exit_code = Exit.USAGE


class BadParameter(OpsError):
    """Raised when a runbook's parameter has an unknown name or a value of the wrong type."""

    exit_code = Exit.USAGE


class UnknownRunbook(OpsError):
    """Raised when no runbook has the given name."""

    exit_code = Exit.USAGE
    hint = "`ops list` shows every runbook by symptom."


class NotFound(OpsError):
    """Raised when a report, a run or another thing named by the user does not exist."""

    exit_code = Exit.USAGE


class BrokerUnreachable(OpsError):
    """Raised when the broker does not answer."""

    exit_code = Exit.CANNOT_SEE
    hint = "Check the target's URL (`ops config show`) and that this host may reach the port."


class BrokerRefused(OpsError):
    """Raised when the server answers, and the answer is no: credentials, TLS, database, permissions."""

    exit_code = Exit.CANNOT_SEE
    hint = "Check user, password and rights of the target's URL (`ops config show`)."


class NotABroker(OpsError):
    """Raised when the server answers, but cannot be the broker of a Celery deployment."""

    exit_code = Exit.CANNOT_SEE


class DatabaseUnreachable(OpsError):
    """Raised when the application's SQL database does not answer, or not in time."""

    exit_code = Exit.CANNOT_SEE
    hint = "Check the target's database_url (`ops config show`) and that this host may reach it."


class DatabaseRefused(OpsError):
    """Raised when the SQL database answers, and the answer is no: credentials, rights, a lock of somebody else's."""

    exit_code = Exit.CANNOT_SEE
    hint = "Check user, password and rights of the target's database_url (`ops config show`)."


class DatabaseLocked(DatabaseRefused):
    """Raised when somebody else holds a lock in the SQL database, and did not let it go in time."""

    hint = "Find who does (`pg_locks`), or try again in a moment."


class Refused(OpsError):
    """Raised when a safety rule forbids a change: not confirmed, replica, stale plan."""

    exit_code = Exit.REFUSED


class LockHeld(Refused):
    """Raised when another run is changing the same broker."""

    hint = "Wait for it to finish; the lock frees itself a minute after its holder has died."


class PlanTooLarge(Refused):
    """Raised when a plan has more actions than `max_actions` allows."""

    hint = "Read the findings first; raise max_actions only if all of them are meant."


class RunbookFailed(OpsError):
    """Raised when a runbook stops on an error of its own."""

    exit_code = Exit.FAILED


class Interrupted(OpsError):
    """Raised when a run was stopped from outside."""

    exit_code = Exit.INTERRUPTED


def by_name(name: str) -> type[OpsError] | None:
    """Return the error class of that name; errors cross from the kernel to the runner by name."""
    classes = [OpsError]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    return next((cls for cls in classes if cls.__name__ == name), None)


def near(wanted: str, known: Iterable[str], *, otherwise: str = "", option: str = "") -> str:
    """
    Return the hint for a name that nobody knows: the nearest one that there is.

    Args:
        otherwise: What is said where none is near; without it, what there is.

        option: What stands before each name where they are listed, as it is typed.
    """
    names = sorted(set(known))
    if close := difflib.get_close_matches(wanted, names, n=1):
        return f"Did you mean {close[0]}?"
    if otherwise or not names:
        return otherwise or "There is none."
    listed = ", ".join(f"{option}{typed(name) if option else name}" for name in islice(names, _MOST_NAMED))
    return f"There {'is' if len(names) == 1 else 'are'}: {listed}{' …' * (len(names) > _MOST_NAMED)}."


def typed(name: str) -> str:
    """Return a name as it can be pasted into a shell; whoever sent the message chose it, so any other is left out."""
    return name if _PLAIN.fullmatch(name) else "…"
