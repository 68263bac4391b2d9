"""ops list, ops show, ops run: the runbooks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opslib.cli import confirm, options, output, progress, results
from opslib.errors import Exit

if TYPE_CHECKING:
    from opslib.catalog import Runbook, Value
    from opslib.session import RunResult

Name = Annotated[str, typer.Argument(metavar="NAME", help="A runbook; `ops list` shows them.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(name="list")(list_)
    app.command()(show)
    app.command()(run)


def list_(
    output_form: options.Output = options.Format.TABLE, as_json: options.Json = False, verbose: options.Verbose = False
) -> None:
    """
    List the runbooks by symptom.

    Example: ops list
    """
    del verbose
    from opslib import catalog
    from opslib.render import listings

    rows = catalog.everything()
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: listings.runbooks(rows),
        ids=lambda row: str(row.name),
    )


def show(
    name: Name,
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show what a runbook is for, its parameters, and what it changes.

    Example: ops show stuck-tasks
    """
    del verbose
    from opslib import catalog
    from opslib.render import listings

    runbook = catalog.find(name)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        output.show(*listings.runbook(runbook))
    elif form is options.Format.IDS:
        output.emit([runbook.name], form, table=lambda: "", ids=str)
    else:
        output.document(runbook, form)


def run(
    name: Name,
    parameter: Annotated[
        list[str], typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter; may be repeated.")
    ] = [],  # noqa: B006 - how Typer spells it
    target: options.Target = "",
    apply: options.Apply = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    confirmed: options.Confirm = "",
    reason: options.Reason = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Run a runbook headless and keep its report; nothing is changed without --apply.

    Example: ops run stuck-tasks --target prod -p stuck_after=90m
    """
    del verbose
    from opslib import catalog

    confirm.exclusive(apply=apply, dry_run=dry_run)
    runbook = catalog.find(name)
    values = catalog.convert(runbook, confirm.pairs(parameter))
    if "dry_run" in values:
        apply = apply or not values.pop("dry_run")
    form = output.form(output_form, as_json=as_json)
    if apply:
        confirm.possible(yes=yes)
    with _prepared(target, env_file, quiet=quiet) as chosen:
        if target or "target" in {p.name for p in runbook.parameters}:
            values = {**values, "target": chosen}
        if not apply:
            result = _run(runbook, {**values, "dry_run": True}, chosen, reason, quiet=quiet)
        else:
            result = _applied(runbook, values, chosen, reason, yes=yes, confirmed=confirmed, quiet=quiet)
    results.conclude(result, form)


@contextlib.contextmanager
def _prepared(target: str, env_file: str, *, quiet: bool) -> Iterator[str]:
    """Find the target before a kernel starts, so that a typo costs nothing; start the demo if need be."""
    from opslib import settings

    if env_file:
        os.environ["OPS_ENV_FILE"] = str(Path(env_file).absolute())
    wanted = target or os.environ.get("OPS_TARGET", "")
    if wanted == settings.DEMO:
        from opslib import demo

        with demo.ensure(say=None if quiet or demo.status() else output.say) as running:
            os.environ["OPS_DEMO_DIR"] = str(running.folder)
            yield wanted
        return
    chosen = settings.load(target)
    for warning in chosen.warnings:
        output.say(f"Warning: {warning}")
    yield chosen.name


def _run(
    runbook: Runbook, values: dict[str, Value], target: str, reason: str, *, quiet: bool, confirmed: str = ""
) -> RunResult:
    from opslib import run as runner

    with progress.shown(quiet=quiet) as say:
        return runner.run(runbook, values, target=target, reason=reason, confirmed=confirmed, say=say)


def _applied(
    runbook: Runbook, values: dict[str, Value], target: str, reason: str, *, yes: bool, confirmed: str, quiet: bool
) -> RunResult:
    """Carry out a plan: at once with --yes; otherwise look first, show the plan, and ask."""
    from opslib import folders, settings
    from opslib import plan as plans
    from opslib.cli import changes
    from opslib.render import judged

    confirm.permitted(target, protected=settings.load(target).protected, yes=yes, confirmed=confirmed)
    if yes:
        return _run(runbook, {**values, "dry_run": False}, target, reason, quiet=quiet)
    looked = _run(runbook, {**values, "dry_run": True}, target, reason, quiet=quiet)
    if looked.record.error or not looked.record.plan.get("actions"):
        return looked
    output.show(*results.summary(looked))
    plan = plans.read((looked.folder / folders.PLAN).read_bytes())
    output.show(judged.plan(plan))
    if not confirm.ask(target, "apply", changes.count(plan)):
        raise typer.Exit(int(Exit.ATTENTION))
    return _run(
        runbook,
        {**values, "dry_run": False},
        target,
        reason,
        quiet=quiet,
        confirmed=str(looked.folder / folders.PLAN),
    )
