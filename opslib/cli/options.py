"""The options that mean the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from opslib.errors import BadParameter


class Format(StrEnum):
    """How a command prints its data."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    IDS = "ids"


Target = Annotated[str, typer.Option("--target", "-T", metavar="NAME", help="Deployment in ops.toml, or demo.")]
EnvFile = Annotated[str, typer.Option("--env-file", metavar="FILE", help="Read variables from here instead of .env.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="Form of the data on stdout.")]
Json = Annotated[bool, typer.Option("--json", help="The same as -o json.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of a defect.")]
Apply = Annotated[bool, typer.Option("--apply", help="Carry the plan out, instead of only showing it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing: the default.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before changing something.")]
Confirm = Annotated[str, typer.Option("--confirm", metavar="TARGET", help="On a protected target: its name.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the record and the audit.")]
Limit = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Show at most so many rows.")]
Timeout = Annotated[str, typer.Option("--timeout", "-t", metavar="TIME", help="How long a silent node is waited for.")]

TIMEOUT = "1.5s"
LIMIT = 200


def task_id(text: str) -> str:
    """
    Return an id without the white space around it.

    Raises:
        BadParameter: If it is empty: a script's variable that was not set.
    """
    if not text.strip():
        raise BadParameter("An empty text is no task id.")
    return text.strip()
