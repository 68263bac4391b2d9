"""ops unlock: who holds the lock of a broker, and taking it from a run that cannot let go of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opslib.cli import options, output
from opslib.errors import BadParameter, Exit, OpsError

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.lock import Holder


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="unlock")(unlock)


def unlock(
    lock_id: Annotated[str, typer.Option("--lock-id", metavar="ID", help="The lock to take: its first letters.")] = "",
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Also from a run that is still connected.")] = False,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show which run holds the lock; with --lock-id and --reason, take it from that run.

    A lock frees itself a minute after its holder has died. Exit 0: it is free. 1: a run holds it. 4: a database did
    not answer.

    Example: ops unlock --target prod --lock-id 3f9a0c1d --reason "the host was lost"
    """
    del verbose
    from opslib import refusals
    from opslib.writer import lock, sites

    if not lock_id and (reason or yes):
        raise BadParameter("--reason and --yes need --lock-id.", hint="`ops unlock` by itself shows it.")
    broker = output.open_broker(target, env_file)
    unseen: list[OpsError] = []
    with refusals.explained(broker.target.shown_broker):
        held = [(site, holder) for site in sites.of(broker, unseen=unseen) if (holder := lock.look(site))]
    for error in unseen:
        output.say(f"Not the whole view: {error.message}")
    if lock_id:
        named = (site for site, holder in held if lock.names(lock_id, holder))
        site = next(named, held[0][0] if held else broker)
        taken = lock.unlock(site, lock_id, reason, though_connected=yes)
        output.say(f"The lock was taken from {taken}." if taken else f"{broker.target.name} was not locked any more.")
        return
    _show(held, broker.target.name, output.form(output_form, as_json=as_json))
    if held or unseen:
        raise typer.Exit(int(Exit.ATTENTION if held else Exit.CANNOT_SEE))


def _show(held: list[tuple[Broker, Holder]], target: str, form: options.Format) -> None:
    if form is options.Format.TABLE:
        from opslib.render import listings

        output.show(*listings.locks([(site.target.shown_broker, holder) for site, holder in held], target))
    elif form is options.Format.IDS:
        output.emit([holder for _, holder in held], form, table=lambda: "", ids=lambda row: str(row.lock_id))
    else:
        from dataclasses import asdict

        holders = [{"server": site.target.shown_broker, **asdict(holder)} for site, holder in held]
        output.document({"held": bool(held), "holders": holders}, form)
