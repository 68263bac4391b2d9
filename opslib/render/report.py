"""An executed notebook and its record → one HTML file that says at a glance what was wrong and what was changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, cast

from markupsafe import Markup

from opslib import catalog, redact
from opslib.records import RunRecord, write_atomically
from opslib.render import sections, words
from opslib.render.page import opslib_version, page
from opslib.render.words import SIGNS

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from opslib.catalog import Parameter
    from opslib.render.sections import Section


class State(StrEnum):
    """What became of a cell; papermill's own status calls a cut-off cell completed."""

    DONE = "done"
    FAILED = "failed"
    CUT_OFF = "cut-off"
    NOT_RUN = "not-run"


@dataclass(frozen=True, slots=True)
class CellState:
    """
    One code cell, by its id, and what became of it.
    """

    id: str
    state: State


def write_report(
    path: Path,
    notebook: Path | NotebookNode | None,
    record: RunRecord | None,
    *,
    declared: Sequence[Parameter] = (),
    cells: Sequence[CellState] | None = None,
) -> Path:
    """Write the report in one step, mode 0600; arguments as for `render_report`."""
    html = render_report(notebook, record, declared=declared, cells=cells)
    write_atomically(path, html.encode("utf-8", "backslashreplace"))
    return path


def render_report(
    notebook: Path | NotebookNode | None,
    record: RunRecord | None,
    *,
    declared: Sequence[Parameter] = (),
    cells: Sequence[CellState] | None = None,
) -> str:
    """
    Return the report of a run as one HTML page.

    It never refuses: a notebook that is missing or broken, or a record that was never written, is said on the page.

    Args:
        notebook: The executed notebook; None where the run ended before there was one.

        record: None where the run ended without one: the verdict is then "failed".

        declared: The runbook's parameters, with their defaults and meanings.

        cells: What became of each code cell; read from nbclient's stamps where not given.
    """
    node, sha256 = _read(notebook)
    run = record or _without_record(node)
    states = cells if cells is not None else cell_states(node) if node else []
    marked = {cell.id: cell.state for cell in states if cell.state is not State.DONE}
    title, body = _prepared(node, run) if node else (run.runbook or "Runbook", None)
    parts, params = sections.sections(run), sections.parameters(run, declared)
    word, badge = words.badge(run)
    return page(
        "report.html.j2",
        word=word,
        badge=badge,
        sign=SIGNS[word],
        title=words.shown(title),
        where=words.shown(run.target) if run.target else "",
        day=words.clock(run.started_at)[:10],
        mode=words.mode(run) if record else "No record: what was changed is not known",
        headline=words.shown(words.headline(run), 600),
        answers=sections.answers(run, known=record is not None),
        facts=sections.facts(run),
        error=_error(run, states),
        unseen=sections.unseen(run),
        following=sections.following(run),
        sections=parts,
        cell_ids=_cell_ids(body),
        contents=_contents(parts, body, marked, run, has_parameters=bool(params)),
        parameters=params,
        notebook=Markup(_cells(body, marked)) if body else "",  # noqa: S704 - cleaned fragment by fragment
        no_notebook="The run ended before its notebook was written." if _is_runbook(run) else "",
        provenance=_provenance(run, sha256),
    )


def cell_states(node: NotebookNode) -> list[CellState]:
    """
    Return what became of each code cell.

    nbclient stamps only the cells it started; the reply's stamp is missing where the kernel died or was stopped.
    """
    return [CellState(cell.get("id", ""), _state(cell)) for cell in node.cells if cell.cell_type == "code"]


def _state(cell: NotebookNode) -> State:
    stamps = cell.metadata.get("execution")
    if not cell.source.strip() or "skip-execution" in cell.metadata.get("tags", []):
        return State.DONE
    if not stamps:  # papermill's own is there even if the kernel died before its first word
        return State.CUT_OFF if cell.metadata.get("papermill", {}).get("start_time") else State.NOT_RUN
    if "shell.execute_reply" not in stamps:
        return State.CUT_OFF
    expected = "raises-exception" in cell.metadata.get("tags", [])
    return State.FAILED if not expected and any(out.output_type == "error" for out in cell.outputs) else State.DONE


# --- around the sections ---


def _without_record(node: NotebookNode | None) -> RunRecord:
    """Return the record of a run that left none."""
    message = "The run ended without a record, so its kernel died or was stopped before the last cell."
    hint = "Run it again without `--apply`, to see how things stand now."
    return RunRecord(
        run_id="",
        runbook=_title(node) if node else "",
        target="",
        operator="",
        started_at="",
        verdict="failed",
        exit_code=3,
        error={"type": "NoRecord", "message": message, "hint": hint},
    )


def _error(run: RunRecord, states: Sequence[CellState]) -> dict[str, str] | None:
    if not run.error:
        return None
    stopped = next((cell.id for cell in states if cell.state in {State.FAILED, State.CUT_OFF}), "")
    texts = {name: redact.plain(run.error.get(name, ""))[:2000] for name in ("type", "message", "hint")}
    return {**texts, "cell": stopped}


def _contents(
    parts: Sequence[Section],
    body: NotebookNode | None,
    marked: Mapping[str, State],
    run: RunRecord,
    *,
    has_parameters: bool,
) -> list[dict[str, object]]:
    top = [{"title": part.title, "target": part.id, "mark": ""} for part in parts]
    if run.error:
        top.insert(0, {"title": "What stopped the run", "target": "error", "mark": "failed"})
    if has_parameters:
        top.append({"title": "Parameters", "target": "parameters", "mark": ""})
    steps = _headings(body, marked) if body else []
    contents: list[dict[str, object]] = [{"title": "Report", "entries": top}]
    return [*contents, {"title": "Notebook", "entries": steps}] if steps else contents


def _headings(body: NotebookNode, marked: Mapping[str, State]) -> list[dict[str, str]]:
    """Return the notebook's second-level headings; each bears the worst mark of the cells below it."""
    rank = [State.NOT_RUN, State.CUT_OFF, State.FAILED]
    entries: list[dict[str, str]] = []
    for cell in body.cells:
        if cell.cell_type == "markdown":
            titles = [_words(line[3:]) for line in _outside_fences(cell.source) if line.startswith("## ")]
            entries += [
                {"title": words.shown(title, 80), "target": f"cell-id={cell.id}", "mark": ""} for title in titles
            ]
        state = marked.get(cell.get("id", ""))
        if (
            state
            and entries
            and (not entries[-1]["mark"] or rank.index(state) > rank.index(State(entries[-1]["mark"])))
        ):
            entries[-1]["mark"] = str(state)
    return entries


def _words(heading: str) -> str:
    return re.sub(r"[`*_]", "", heading).strip()


def _outside_fences(source: str) -> list[str]:
    return re.sub(r"^(```|~~~).*?^\1", "", source, flags=re.DOTALL | re.MULTILINE).splitlines()


def _provenance(run: RunRecord, sha256: str) -> list[dict[str, str]]:
    digest = str(run.plan.get("digest") or "")
    marks = [
        ("opslib", opslib_version()),
        ("record schema", str(run.schema_version)),
        ("plan", digest[:16]),
        ("executed notebook sha256", sha256),
    ]
    return [{"term": term, "value": words.shown(value)} for term, value in marks if value]


# --- the notebook ---

_GONE = frozenset({"parameters", "injected-parameters", "papermill-error-cell-tag"})
_SHOWN = ("text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain")
_MARKS = {State.FAILED: "failed", State.CUT_OFF: "cut off before it ended", State.NOT_RUN: "not run"}
#: Beyond this an output says its size instead: a report stays below 5 MB.
_LONGEST_TEXT = 40_000
_LONGEST = {
    "text/html": 200_000,
    "text/markdown": 100_000,
    "image/svg+xml": 1_500_000,
    "image/png": 1_500_000,
    "image/jpeg": 1_500_000,
}
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def _read(notebook: Path | NotebookNode | None) -> tuple[NotebookNode | None, str]:
    """Return the notebook and the sha256 of its file; None for one that is missing or broken."""
    if not isinstance(notebook, Path):
        return notebook, ""
    import nbformat

    try:
        content = notebook.read_bytes()
        return nbformat.reads(content.decode(), as_version=4), hashlib.sha256(content).hexdigest()  # type: ignore[no-untyped-call]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError):
        return None, ""


def _title(node: NotebookNode) -> str:
    """Return the notebook's first heading; "" where it has none."""
    sources = (cell.source for cell in node.cells if cell.cell_type == "markdown")
    return next((_words(line[2:]) for source in sources for line in source.splitlines() if line.startswith("# ")), "")


def _prepared(node: NotebookNode, run: RunRecord) -> tuple[str, NotebookNode]:
    """Return the title, and a copy of the notebook with what the report shows elsewhere taken out."""
    body, title = deepcopy(node), _title(node)
    body.cells = [cell for cell in body.cells if not _GONE & set(cell.metadata.get("tags", []))]
    heading = next(
        (cell for cell in body.cells if cell.cell_type == "markdown" and re.search("^# ", cell.source, re.MULTILINE)),
        None,
    )
    if heading is not None:
        heading.source = re.sub(r"^# .*\n?", "", heading.source, count=1, flags=re.MULTILINE).strip()
    body.cells = [cell for cell in body.cells if cell.source.strip() or cell.get("outputs")]
    for at, cell in enumerate(body.cells):
        cell.setdefault("id", f"cell-{at}")
        cell.source = _plain(cell.source)
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs = [_output(output) for output in cell.outputs]
    return title or run.runbook or "Runbook", body


def _is_runbook(run: RunRecord) -> bool:
    """Whether a notebook belongs to the run; a command's run has none."""
    return not run.runbook or run.runbook in catalog.names()


def _cell_ids(body: NotebookNode | None) -> frozenset[str]:
    return frozenset(cell.id for cell in body.cells) if body else frozenset()


def _output(output: NotebookNode) -> NotebookNode:
    """Return an output with its text masked and bounded, and only in a form that a report can show."""
    if output.output_type == "stream":
        return _stream(_plain(output.text), "stderr" if output.name == "stderr" else "stdout")
    if output.output_type == "error":
        lines = [_plain(line) for line in "\n".join(output.traceback).split("\n")]
        return _node(output_type="error", ename=_plain(output.ename), evalue=_plain(output.evalue), traceback=lines)
    kind = next((kind for kind in _SHOWN if output.data.get(kind)), "")
    if not kind:
        return _stream(f"An output of type {', '.join(output.data) or 'none'} is not shown in a report.")
    value = "".join(output.data[kind]) if isinstance(output.data[kind], list) else str(output.data[kind])
    if len(value) > _LONGEST.get(kind, len(value)):
        return _stream(f"An output of {len(value):,} characters is too large for a report; the notebook has it.")
    data = {kind: _plain(value) if kind == "text/plain" else value, "ops/alt": _alt(output)}
    return _node(output_type="display_data", data=data, metadata={})


def _stream(text: str, name: str = "stdout") -> NotebookNode:
    return _node(output_type="stream", name=name, text=text)


def _node(**fields: object) -> NotebookNode:
    from nbformat import from_dict

    return cast("NotebookNode", from_dict(fields))  # type: ignore[no-untyped-call]


def _alt(output: NotebookNode) -> str:
    """Return what a picture says in words: its text twin, unless that is a mere repr."""
    text = _plain(str(output.data.get("text/plain", "")))
    return text if text and not text.startswith("<") else "A picture without a description."


def _plain(text: str) -> str:
    """Return text without terminal escapes, masked and bounded; its beginning and end tell the most."""
    text = redact.plain(_ESCAPES.sub("", str(text)).replace("\r\n", "\n").replace("\r", "\n"))
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    gap = f"… {len(text) - _LONGEST_TEXT:,} characters are left out here; the notebook has them …"
    return f"{text[:half]}\n{gap}\n{text[-half:]}"


def _cells(body: NotebookNode, marked: Mapping[str, State]) -> str:
    # Imported here: nbconvert takes 0.3 s, and a caller that only wants the archive's index never needs it.
    from opslib.render.export import export

    return export(
        body,
        {
            "states": {cell: str(state) for cell, state in marked.items()},
            "marks": {str(k): v for k, v in _MARKS.items()},
        },
    )
