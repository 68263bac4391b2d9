"""ops demo: the embedded broken system."""

from __future__ import annotations

import typer

from opslib.cli import options, output
from opslib.errors import Exit

app = typer.Typer(help="An embedded, really broken Celery system to practise on.", no_args_is_help=True)


@app.command()
def up(quiet: options.Quiet = False, verbose: options.Verbose = False) -> None:
    """
    Start the demo and leave it running; it ends by itself within the hour.

    Example: ops demo up && ops run stuck-tasks --target demo
    """
    del verbose
    from opslib import demo
    from opslib.render import listings

    running = demo.up(say=None if quiet else output.say)
    output.show(listings.faults(running.faults))


@app.command()
def down(verbose: options.Verbose = False) -> None:
    """
    Stop the demo and everything that it started.

    Example: ops demo down
    """
    del verbose
    from opslib import demo

    output.say("The demo has been stopped." if demo.down() else "The demo was not running.")


@app.command()
def status(
    output_form: options.Output = options.Format.TABLE, as_json: options.Json = False, verbose: options.Verbose = False
) -> None:
    """
    Show what is broken in the running demo; exit 4 if it is not running.

    Example: ops demo status -o json
    """
    del verbose
    from opslib import demo
    from opslib.render import listings

    running = demo.status()
    if running is None:
        output.say("The demo is not running.")
        raise typer.Exit(int(Exit.CANNOT_SEE))
    faults = list(running.faults)
    output.emit(
        faults,
        output.form(output_form, as_json=as_json),
        table=lambda: listings.faults(faults),
        ids=lambda fault: str(fault.subject),
    )
