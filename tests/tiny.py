"""Lines of code → a tiny runbook in a folder of its own, to be run as a real one is."""

from __future__ import annotations

import json
from pathlib import Path

PARAMETERS = 'target: str = ""  # deployment\ndry_run: bool = True  # look only'

#: Ends a run as `record()` does, without a system to look at.
CONCLUDE = """
from opslib import records
told = records.context()
records.write(records.RunRecord(
    run_id=told.run_id, runbook=told.runbook, target="nothing", operator=told.operator, started_at=told.started_at,
    verdict="healthy", exit_code=0, report=told.report, dry_run=dry_run), told.record)
""".strip()


def runbook(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """Write a runbook whose code cells are called `parameters`, `cell-1`, `cell-2` and so on; return its path."""
    title = {
        "cell_type": "markdown",
        "id": "title",
        "metadata": {},
        "source": f"# {name}\n\nNothing moves.\n\nTakes a second.",
    }
    code = [_code("parameters", parameters, ["parameters"])]
    code += [_code(f"cell-{number}", source) for number, source in enumerate(cells, 1)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps({"cells": [title, *code], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def _code(name: str, source: str, tags: list[str] | None = None) -> dict[str, object]:
    metadata = {"tags": tags} if tags else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": metadata,
        "outputs": [],
        "source": source,
    }
