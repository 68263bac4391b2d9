"""Each notebook is kept as its readers, its runners and git need it."""

from __future__ import annotations

import ast
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from opslib import catalog

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "runbooks").glob("*.ipynb"))
HEADINGS = ["Meaning", "Diagnosis", "Mitigation", "Verify", "If it did not help"]
CELLS = {"parameters", "setup", "facts", "diagnosis", "record"}
#: Those of a runbook that can change something; one that only looks has none of them.
CHANGES = {"plan", "apply", "verify"}
#: What makes a reader follow a path instead of a text.
BRANCHES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.For,
    ast.While,
    ast.If,
    ast.IfExp,
    ast.Try,
    ast.With,
    ast.Match,
    ast.comprehension,
)
MOST_LINES = 6

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    """Return a notebook's cells of one kind."""
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def test_nothing_of_a_run_is_kept(path: Path) -> None:
    """No output, no count and no trace of papermill, nbclient or a machine: each would show in every diff."""
    book = nbformat.read(path, 4)

    assert not [cell.id for cell in book.cells if cell.get("outputs") or cell.get("execution_count")]
    assert not [cell.id for cell in book.cells if cell.get("attachments")]
    assert {key for cell in book.cells for key in cell.metadata} == {"tags"}
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_bytes_are_those_that_tools_write(path: Path) -> None:
    """Format 4.5, and written again it is the same file, so that saving one cell changes one cell."""
    text = path.read_text("utf-8")
    book = nbformat.reads(text, 4)
    nbformat.validate(book)

    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert f"{nbformat.writes(book)}\n" == text


def test_cells_have_speaking_ids(path: Path) -> None:
    """The report links to them, and the progress names them."""
    ids = [cell.id for cell in nbformat.read(path, 4).cells]

    assert len(set(ids)) == len(ids)
    assert not [each for each in ids if not re.fullmatch(r"[a-z]+(-[a-z]+)*", each)]
    assert {cell.id for cell in cells(path)} >= CELLS
    assert CHANGES & set(ids) in (set(), CHANGES)


def test_parameters_are_typed_and_explained(path: Path) -> None:
    """One cell of them, every one with a default and a help; looking is the default."""
    tagged = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    (cell,) = tagged
    parameters = {each.name: each for each in catalog.find(path.stem).parameters}

    assert cell.id == "parameters"
    assert parameters["dry_run"].default is True
    assert next(iter(parameters)) == "target"
    assert all(len(each.help) > 10 for each in parameters.values())
    assert all(type(each.default).__name__ == each.type for each in parameters.values())


def test_bare_papermill_knows_the_same_parameters(path: Path) -> None:
    """Its reader goes line by line, and loses what it does not understand: a misspelt name would pass unseen."""
    papermill = pytest.importorskip("papermill")

    assert list(papermill.inspect_notebook(str(path))) == [each.name for each in catalog.find(path.stem).parameters]


def test_prose_leads_through(path: Path) -> None:
    """A title with its symptom first, then the headings in their order, and prose before every code cell."""
    book = nbformat.read(path, 4)
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    runbook = catalog.find(path.stem)

    assert re.findall(r"^## (.*)$", prose, re.MULTILINE) == HEADINGS
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert runbook.symptom.endswith(".")
    changes = "nothing unless `dry_run = False`" if "apply" in runbook.steps else "nothing, whatever"
    assert f"**Changes** {changes}" in runbook.about
    kinds = [(cell.cell_type, cell.id) for cell in book.cells]
    lonely = [
        name
        for (before, previous), (kind, name) in itertools.pairwise(kinds)
        if kind == before == "code" and previous != "parameters"
    ]
    assert lonely in ([], ["record"])


def test_code_is_only_calls(path: Path) -> None:
    """A few lines for each cell, no branch and no definition; what it needs comes from opslib."""
    for cell in cells(path):
        tree = ast.parse(cell.source)
        assert not [node for node in ast.walk(tree) if isinstance(node, BRANCHES)], cell.id
        if cell.id != "parameters":
            assert len(cell.source.splitlines()) <= MOST_LINES, cell.id
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                pytest.fail(f"{cell.id}: write `from opslib import …`")
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] == "opslib", cell.id


def test_only_apply_is_told_whether_to_look(path: Path) -> None:
    """`dry_run` goes to apply and to the record, and nothing else decides by it."""
    used = {cell.id for cell in cells(path) if "dry_run" in cell.source}

    assert used == {"parameters", "record"} | {"apply"} & set(catalog.find(path.stem).steps)


def test_record_bears_its_name(path: Path) -> None:
    """The last cell concludes the run under the file's own name."""
    last = cells(path)[-1]
    calls = [node for node in ast.walk(ast.parse(last.source)) if isinstance(node, ast.Call)]
    (record,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "record"]

    assert last.id == "record"
    assert ast.literal_eval(record.args[0]) == path.stem


def test_index_leads_to_it(path: Path) -> None:
    """The folder's README names it, with the command that runs it, and it has tests of its own."""
    index = (ROOT / "runbooks" / "README.md").read_text("utf-8")

    assert f"]({path.name})" in index
    assert f"make runbook name={path.stem}" in index
    assert (ROOT / "tests" / "runbooks" / f"test_{path.stem.replace('-', '_')}.py").is_file()


def test_no_executed_copy_is_kept(path: Path) -> None:
    """Every notebook that git would take is one of the runbooks: a copy with outputs is nobody's source."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    command = [git, "ls-files", "--cached", "--others", "--exclude-standard", "*.ipynb"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    assert sorted(listed.stdout.split()) == [f"runbooks/{each.name}" for each in NOTEBOOKS]
    assert path.name
