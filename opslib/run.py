"""A runbook and its parameters → the executed notebook, its record and report; only this module knows papermill."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import errors, folders, records, redact, session
from opslib.catalog import Runbook, Value
from opslib.errors import OpsError
from opslib.session import RunResult

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from papermill.exceptions import PapermillExecutionError

    from opslib.kernel import OpsKernelManager

#: A single cell may take this long; reading millions of messages takes minutes.
CELL_TIMEOUT_S = 1800
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """
    A code cell on its way, for whoever shows the progress.

    Attributes:
        name: The cell's id.

        number: From 1, of `total`.

        took_s: None when it begins.

        log: Where the cell writes how far it is; the file may never be there.
    """

    name: str
    number: int
    total: int
    log: Path
    took_s: float | None = None
    failed: bool = False


Say = Callable[[Step], None]


def run(
    runbook: Runbook,
    parameters: Mapping[str, Value],
    *,
    target: str = "",
    reason: str = "",
    confirmed: str = "",
    say: Say | None = None,
) -> RunResult:
    """
    Execute a runbook in a kernel of this interpreter and archive the run, however it ends.

    Args:
        parameters: Already converted, see `catalog.convert`.

        target: Name of the deployment; empty for the default.

        confirmed: Path of the plan that a person confirmed; empty where nobody has to.

        say: Called when a cell begins and when it has ended.

    Raises:
        SettingsError: If the archive cannot be written.
    """
    context = session.context(
        runbook.name, target=target, reason=reason, confirmed=confirmed, parameters=dict(parameters)
    )
    folder = Path(context.record).parent
    redact.remember_environment()
    with session.environment(context), session.sigterm_interrupts():
        problem = _execute(runbook, parameters, folder / folders.NOTEBOOK, say)
    with session.uninterrupted():
        record = session.concluded(context, problem)
        return session.archived(record, folder, declared=runbook.parameters)


def _execute(runbook: Runbook, parameters: Mapping[str, Value], output: Path, say: Say | None) -> OpsError | None:
    """Run the notebook; return what stopped it, None if it ran to its end."""
    # A second for nothing, where JupyterLab is installed: jsonschema does without it.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from opslib.kernel import started

    # Whoever interrupts a run leaves a cell that nobody waits for, and asyncio would log its traceback.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        with started(runbook.path.parent) as kernel:
            return _execute_in(kernel, runbook, parameters, output, say)
    except KeyboardInterrupt:
        hint = "What it had seen and done until then is in the report."
        return errors.Interrupted("The run was interrupted.", hint=hint)


def _execute_in(
    kernel: OpsKernelManager, runbook: Runbook, parameters: Mapping[str, Value], output: Path, say: Say | None
) -> OpsError | None:
    """Run the notebook in a kernel that may still be booting, which is why the imports are here."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import papermill_io

    import opslib.render.report  # noqa: F401 - needed later; the kernel is still booting

    papermill_io.register("ops://", _Files({"runbook.ipynb": runbook.path, "executed.ipynb": output}))
    try:
        papermill.execute_notebook(
            "ops://runbook.ipynb",
            "ops://executed.ipynb",
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            km=kernel,
            progress_bar=False,
            execution_timeout=CELL_TIMEOUT_S,
            **_hooks(runbook, say, output.with_name(folders.PROGRESS)),
        )
    except PapermillExecutionError as error:
        return _from_cell(error)
    except CellTimeoutError:
        return errors.RunbookFailed(
            f"A cell took longer than {CELL_TIMEOUT_S // 60} minutes and was cut off.",
            hint="Narrow the run with its parameters.",
        )
    except DeadKernelError:
        return errors.RunbookFailed(
            "The kernel died.", hint="Out of memory, most likely: see the system's log, and lower max_messages."
        )
    except Exception as error:  # noqa: BLE001 - whatever a kernel or a disk can do: there is a report of it all the same
        return errors.RunbookFailed(f"The notebook could not be run: {redact.plain(error)[:500]}")
    return None


def _from_cell(error: PapermillExecutionError) -> OpsError:
    """Return the error of a cell as it was raised in the kernel, by its name."""
    kind = errors.by_name(str(error.ename)) or errors.RunbookFailed
    message, _, hint = _ANSI.sub("", str(error.evalue)).partition("\n")
    if kind is errors.RunbookFailed and error.ename not in {"RunbookFailed", "OpsError"}:
        if error.ename == "KeyboardInterrupt":
            return errors.Interrupted("The run was interrupted.")
        message = f"{error.ename}: {message}"
    return kind(redact.plain(message), hint=redact.plain(hint))


class _Files:
    """
    Papermill's files by name instead of by path.

    Papermill formats paths with the parameters and stores them in the notebook, so it gets none. Whatever it saves is
    redacted and moved into place whole: it saves after each cell, and a kill must not leave half a file.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def _path(self, name: str) -> Path:
        return self._paths[name.removeprefix("ops://")]

    def read(self, name: str) -> str:
        return self._path(name).read_text("utf-8")

    def write(self, text: str, name: str) -> None:
        records.write_atomically(self._path(name), redact.notebook(text).encode())

    def listdir(self, name: str) -> list[str]:
        return [name]

    def pretty_path(self, name: str) -> str:
        return name


def _hooks(runbook: Runbook, say: Say | None, log: Path) -> dict[str, Any]:
    """Return nbclient's hooks that tell of each code cell as it begins and ends."""
    if say is None:
        return {}
    began: dict[str, float] = {}
    total = len(runbook.steps)

    def step(cell: NotebookNode, took_s: float | None = None, *, failed: bool = False) -> Step | None:
        name = cell.get("id", "")
        if cell.cell_type != "code" or name not in runbook.steps:
            return None
        number = runbook.steps.index(name) + 1
        return Step(name=name, number=number, total=total, log=log, took_s=took_s, failed=failed)

    def start(cell: NotebookNode, cell_index: int) -> None:
        del cell_index
        began[cell.get("id", "")] = time.monotonic()
        if found := step(cell):
            say(found)

    def end(cell: NotebookNode, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
        del cell_index
        took_s = time.monotonic() - began.get(cell.get("id", ""), time.monotonic())
        if found := step(cell, took_s, failed=execute_reply["content"]["status"] != "ok"):
            say(found)

    return {"on_cell_execute": start, "on_cell_executed": end}
