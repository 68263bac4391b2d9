"""A runbook's parameters are what its notebook declares, and a value that does not fit is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opslib import catalog
from opslib.catalog import Parameter
from opslib.errors import BadParameter, Exit, UnknownRunbook

#: One parameter of each type.
FOUR = 's: str = ""\ni: int = 1  # how many\nf: float = 1.0\nb: bool = True\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A runbooks folder of its own, which OPS_RUNBOOKS names."""
    folder = tmp_path_factory.mktemp("runbooks")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPS_RUNBOOKS", str(folder))
        yield folder


@pytest.fixture
def write(folder):
    """Write the runbook `x`, as cells or as text, and take it away again."""

    def write(
        source: str | list[str] = FOUR, *, text: str | None = None, title: str = "# Title\n\nSymptom.\n\nAbout."
    ) -> None:
        cells = [
            {"cell_type": "markdown", "metadata": {}, "source": title},
            {"cell_type": "code", "id": "parameters", "metadata": {"tags": ["parameters"]}, "source": source},
            {"cell_type": "code", "id": "setup", "metadata": {}, "source": "z: int = 5"},
        ]
        (folder / "x.ipynb").write_text(json.dumps({"cells": cells}) if text is None else text)

    yield write
    (folder / "x.ipynb").unlink(missing_ok=True)


# What a notebook declares


def test_each_parameter_has_a_type_a_default_and_a_meaning(write):
    """The annotation, the value and the comment behind it; an equals sign or a hash inside them does no harm."""
    write(
        """
a: str = "x=y # z"  # what = it # means
b: int = -5
c: float = 2  # whole
d: bool = False
e: str = (
    "two"
    "lines"
)  # last
"""
    )

    assert catalog.find("x").parameters == (
        Parameter(name="a", type="str", default="x=y # z", help="what = it # means"),
        Parameter(name="b", type="int", default=-5, help=""),
        Parameter(name="c", type="float", default=2, help="whole"),
        Parameter(name="d", type="bool", default=False, help=""),
        Parameter(name="e", type="str", default="twolines", help="last"),
    )


def test_a_source_of_lines_is_one_source(write):
    """Jupyter keeps a cell as a list of lines."""
    write(["a: int = 1\n", "b: int = 2"])

    assert [each.name for each in catalog.find("x").parameters] == ["a", "b"]


def test_the_first_cell_says_what_it_is_for(write):
    """Title, symptom in the first paragraph, all else after it; the steps are the code cells."""
    write()
    found = catalog.find("x")

    assert (found.title, found.symptom, found.about) == ("Title", "Symptom.", "About.")
    assert found.steps == ("parameters", "setup")


def test_a_notebook_without_a_title_has_its_name(write):
    """Nothing is left empty that a list shows."""
    write(title="Just a symptom.")

    assert (catalog.find("x").title, catalog.find("x").symptom) == ("x", "Just a symptom.")


@pytest.mark.parametrize(
    "cell",
    [
        "a = 1",
        "import os",
        "a: str | None = None",
        "a: list = []",
        "a: str",
        "a: str = None",
        'a: int = "x"',
        "a: int = True",
        "a: bool = 1",
        "a: int = 1.5",
        "a: str = str(5)",
        'a: str = f"{1}"',
        'a: str = __import__("os").name',
        "a: str = (",
        "  a: str = ''",
        'a: str = """',
        'a: str = "\0"',
    ],
)
def test_a_cell_that_declares_something_else_is_refused(write, cell):
    """Nothing in it is run to find that out; the error names the notebook."""
    write(cell)

    with pytest.raises(BadParameter, match=r"^x\.ipynb: ") as caught:
        catalog.find("x")
    assert caught.value.exit_code is Exit.USAGE


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", '{"cells": null}', '{"cells": [1]}', '{"cells": [{"cell_type": "code"}]}', "[" * 100_000],
)
def test_a_file_that_is_no_notebook_is_refused(write, text):
    """Half a file, another document, no cells: a sentence with the file's name."""
    write(text=text)

    with pytest.raises(UnknownRunbook, match=r"^x\.ipynb cannot be read as a notebook"):
        catalog.find("x")


def test_a_notebook_without_parameters_has_none(write):
    """It may be run all the same; it takes no -p."""
    write(text='{"cells": []}')

    assert catalog.find("x").parameters == ()


def test_the_runbooks_that_are_shipped_can_be_read(monkeypatch):
    """Each has a symptom, its parameters have a meaning, and it changes nothing unless it is told to."""
    monkeypatch.delenv("OPS_RUNBOOKS", raising=False)

    for runbook in catalog.everything():
        declared = {each.name: each for each in runbook.parameters}
        assert runbook.symptom
        assert declared["dry_run"].default is True
        assert all(each.help for each in runbook.parameters)
        assert catalog.convert(runbook, {name: str(each.default) for name, each in declared.items()}) == {
            name: each.default for name, each in declared.items()
        }


# Which notebook


@pytest.mark.parametrize("name", ["", "X", "x.ipynb", "x/", "../x", "./x", "/etc/passwd", "x\0", "*"])
def test_only_a_name_of_the_folder_is_a_runbook(write, name):
    """No path, no pattern, no other case: a name leads to a notebook of the folder, or to none."""
    write()

    with pytest.raises(UnknownRunbook, match="There is no runbook named") as caught:
        catalog.find(name)
    assert "`ops list`" in caught.value.hint


def test_a_name_that_is_nearly_right_is_proposed(monkeypatch):
    """A typo at three in the morning is answered with the name that was meant."""
    monkeypatch.delenv("OPS_RUNBOOKS", raising=False)

    with pytest.raises(UnknownRunbook) as caught:
        catalog.find("stuck-task")
    assert caught.value.hint == "Did you mean stuck-tasks? `ops list` shows every runbook by symptom."


def test_a_folder_that_is_not_there_holds_no_runbooks(monkeypatch):
    """It is empty, and a name is unknown in it."""
    monkeypatch.setenv("OPS_RUNBOOKS", "/nowhere")

    assert catalog.everything() == []


# What may be given


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("i", "7", 7),
        ("i", "007", 7),
        ("i", "-3", -3),
        ("i", " 5 ", 5),
        ("i", "0", 0),
        ("f", "1e5", 100000.0),
        ("f", "007", 7.0),
        ("f", ".5", 0.5),
        ("f", "3", 3.0),
        ("b", "true", True),
        ("b", "YES", True),
        ("b", "on ", True),
        ("b", "1", True),
        ("b", "False", False),
        ("b", "no", False),
        ("b", "off", False),
        ("b", "0", False),
        ("s", "007", "007"),
        ("s", "1e5", "1e5"),
        ("s", "true", "true"),
        ("s", "", ""),
        ("s", "a=b", "a=b"),
    ],
)
def test_a_value_becomes_what_was_declared(write, name, text, value):
    """The declaration decides, and not the look of the text: an id of digits stays text, with its zeros."""
    write()

    (found,) = catalog.convert(catalog.find("x"), {name: text}).values()

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("i", "", "a whole number"),
        ("i", "1e5", "a whole number"),
        ("i", "5.0", "a whole number"),
        ("i", "true", "a whole number"),
        ("i", "nan", "a whole number"),
        ("i", "9" * 5000, "a whole number"),
        ("f", "", "a number"),
        ("f", "1,5", "a number"),
        ("f", "nan", "a number"),
        ("f", "inf", "a number"),
        ("f", "-inf", "a number"),
        ("f", "1e999", "a number"),
        ("b", "", "true or false"),
        ("b", "2", "true or false"),
        ("b", "y", "true or false"),
        ("b", "maybe", "true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(write, name, text, wanted):
    """Nothing is guessed, rounded or taken for zero; the hint is the parameter's own meaning."""
    write()

    with pytest.raises(BadParameter, match=f"Parameter {name} must be {wanted}") as caught:
        catalog.convert(catalog.find("x"), {name: text})

    assert caught.value.exit_code is Exit.USAGE
    assert len(caught.value.message) < 150
    assert caught.value.hint == ("how many" if name == "i" else "")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dryrun", "Did you mean dry_run?"),
        ("stuck_afer", "Did you mean stuck_after?"),
        ("zzz", "It takes: target, "),
        ("", "It takes: target, "),
    ],
)
def test_an_unknown_parameter_is_refused(monkeypatch, name, hint):
    """Papermill would only warn: a typo in `dry_run` must not pass for a dry run."""
    monkeypatch.delenv("OPS_RUNBOOKS", raising=False)

    with pytest.raises(BadParameter, match=f"stuck-tasks has no parameter '{name}'") as caught:
        catalog.convert(catalog.find("stuck-tasks"), {name: "1"})
    assert caught.value.hint.startswith(hint)


@given(st.text(), st.sampled_from("sifb"))
def test_any_text_is_converted_or_refused(text, name):
    """Whatever is typed behind -p gives a value of the declared type, or a sentence."""
    declared = {
        each: Parameter(name=each, type=kind, default="", help="")
        for each, kind in zip("sifb", catalog._TYPES, strict=True)
    }
    runbook = catalog.Runbook(
        name="x", path=None, title="", symptom="", about="", parameters=tuple(declared.values()), steps=()
    )
    try:
        (value,) = catalog.convert(runbook, {name: text}).values()
    except BadParameter:
        return
    assert type(value).__name__ == declared[name].type
