"""How long results are kept, by the name of their task → which of them are past it, as filters of one instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from opslib.durations import seconds, spell
from opslib.errors import BadParameter, SettingsError
from opslib.selection import ResultSelection

#: The rule for all that has none of its own.
DEFAULT = "default"
#: What the old scripts kept results for, where nobody says.
DEFAULT_LIFE = "12h"
#: Whoever asks for a result asks within a minute; a rule that is shorter would take it away under his eyes.
SHORTEST_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """
    How long the results of some tasks are kept.

    Attributes:
        task: Glob of their names; "*" for all that has no rule of its own.
    """

    task: str
    keep_s: float

    @property
    def name(self) -> str:
        """What it is called: its glob, or "default"."""
        return DEFAULT if self.task == "*" else self.task


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """
    How long results are kept, and which of them a person asks about.

    Attributes:
        rules: The first that fits a task's name counts; the last one fits all.

        states: Only results in one of these; empty for any.

        task: Only results of tasks whose name fits.

        expires_after_s: Life that the application gives each result; 0 where nobody said.

        everything: Whether a person has confirmed that all results are meant, however young.
    """

    rules: tuple[Rule, ...]
    states: tuple[str, ...] = ()
    task: str = "*"
    expires_after_s: float = 0.0
    everything: bool = False

    def past(self, now: float) -> tuple[ResultSelection, ...]:
        """Return what means the results that are kept longer than they should be, for each rule one."""
        return tuple(
            ResultSelection(
                rule=rule.task,
                besides=tuple(other.task for other in self.rules[:n]),
                task=self.task,
                states=self.states,
                written_by=now - rule.keep_s,
                keep_s=rule.keep_s,
                expires_after_s=self.expires_after_s,
            )
            for n, rule in enumerate(self.rules)
        )


def read(
    table: Mapping[str, str],
    *,
    older_than: str = "",
    states: Sequence[str] = (),
    task: str = "",
    result_expires: str = "",
    everything: bool = False,
) -> Retention:
    """
    Return the retention of a target, or what a person asks for in its place.

    Args:
        table: How long to keep results, by the name or a glob of their task; "default" for the rest.

        older_than: In place of the table: older than this, whatever the task; "0" for any age.

        states: Only results in one of these states, also of the application's own.

        task: Only results of tasks whose name fits this glob; empty for any.

        result_expires: The application's setting of that name: it tells how old an unfinished result is.

        everything: Confirms that results of any age, of every task and in every state, are meant.

    Raises:
        BadParameter: If all results would be meant, and nobody has confirmed that.

        SettingsError: If a duration is none, or a rule means everything.
    """
    rules = _rules(table)
    wanted = tuple(dict.fromkeys(state.strip() for state in states if state.strip()))
    if older_than.strip():
        keep_s = 0.0 if _is_zero(older_than) else seconds(older_than, "older_than")
        if keep_s < SHORTEST_S and not everything:
            raise BadParameter(
                f"older_than={older_than.strip()} means results that were written just now.",
                hint="If that is meant, confirm it by everything=True (--everything).",
            )
        rules = (Rule(task="*", keep_s=keep_s),)
    elif task and not task.strip("*?") and not everything:
        raise BadParameter(
            f"task={task} means every task there is.",
            hint="Leave it out to go by the retention of each task, or confirm it by everything=True (--everything).",
        )
    expires_after_s = seconds(result_expires, "result_expires") if result_expires.strip() else 0.0
    return Retention(
        rules=rules, states=wanted, task=task or "*", expires_after_s=expires_after_s, everything=everything
    )


def check(table: Mapping[str, str]) -> None:
    """
    Make sure that a table can be followed.

    Raises:
        SettingsError: If a duration is none or too short, or a glob means every task.
    """
    _rules(table)


def rule_of(rules: Sequence[Rule], task: str) -> int:
    """Return the number of the rule that a task's results are kept by."""
    return next(n for n, rule in enumerate(rules) if rule.task == "*" or fnmatchcase(task, rule.task))


def told(rules: Sequence[Rule]) -> str:
    """Return rules as a sentence says them: "transcription.* 24 h, default 12 h"."""
    return ", ".join(f"{rule.name} {spell(rule.keep_s) if rule.keep_s else 'any age'}" for rule in rules)


def _rules(table: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return the rules, the most exact first: a name before any glob, and of those the longer before the shorter."""
    rules = []
    for glob, life in {DEFAULT: DEFAULT_LIFE, **table}.items():
        if glob != DEFAULT and not glob.strip("*?"):
            raise SettingsError(
                f"retention: {glob!r} means every task.", hint=f'Write {DEFAULT} = "{life}" for those without a rule.'
            )
        keep_s = seconds(life, f"retention.{glob}")
        if keep_s < SHORTEST_S:
            raise SettingsError(
                f"retention.{glob}: {life} is too short: a result would go before anybody has asked for it.",
                hint="Keep results for a minute at least.",
            )
        rules.append(Rule(task="*" if glob == DEFAULT else glob, keep_s=keep_s))
    return tuple(sorted(rules, key=lambda rule: (rule.task == "*", "*" in rule.task, -len(rule.task), rule.task)))


def _is_zero(text: str) -> bool:
    return text.strip().rstrip("smhd").strip() in {"0", "0.0"}
