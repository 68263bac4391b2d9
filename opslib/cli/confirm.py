"""A plan that waits → a person's typed yes, or a refusal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from opslib.errors import BadParameter, Refused


def pairs(given: Sequence[str]) -> dict[str, str]:
    """
    Return `name=value` texts as a dict.

    Raises:
        BadParameter: If one has no name or no equals sign, or a name stands twice.
    """
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadParameter(f"{text!r} is not NAME=VALUE.", hint="Write for instance -p stuck_after=90m.")
        if name.strip() in values:
            raise BadParameter(f"Parameter {name.strip()} is given twice.")
        values[name.strip()] = value
    return values


def exclusive(*, apply: bool, dry_run: bool) -> None:
    """
    Refuse two words that contradict each other.

    Raises:
        BadParameter: If both are given.
    """
    if apply and dry_run:
        raise BadParameter("--apply and --dry-run exclude each other.")


def possible(*, yes: bool) -> None:
    """
    Refuse a change that nobody could confirm, before anything is started.

    Raises:
        Refused: If there is no terminal to ask on and no `--yes`.
    """
    if not yes and not sys.stdin.isatty():
        hint = "Read the plan of a dry run first, then add --yes."
        raise Refused("There is no terminal to ask on. Nothing was changed.", hint=hint)


def permitted(target: str, *, protected: bool, yes: bool, confirmed: str) -> None:
    """
    Refuse a change of a protected target that was not named.

    Raises:
        Refused: If `--confirm` is missing with `--yes`, or names another target.
    """
    if confirmed and confirmed != target:
        raise Refused(f"--confirm says {confirmed!r}; the target is {target!r}. Nothing was changed.")
    if protected and yes and not confirmed:
        raise Refused(f"{target} is protected. Nothing was changed.", hint=f"Add --confirm {target}.")


def phrase(target: str, verb: str, count: int) -> str:
    """Return what has to be typed: target, verb and count, so that no habit answers for a person."""
    return f"{target} {verb} {count}"


def ask(target: str, verb: str, count: int) -> bool:
    """Ask for the phrase, to the letter; anything else is a no, and is told so."""
    from opslib.cli import output

    wanted = phrase(target, verb, count)
    output.say(f"To carry this out, type: {wanted}")
    try:
        agreed = input("> ").strip() == wanted
    except EOFError:
        agreed = False
    if not agreed:
        output.say("That is not it. Nothing was changed.")
    return agreed
