"""The runbooks folder → what runbooks there are, and the parameters that each one takes."""

from __future__ import annotations

import ast
import difflib
import io
import json
import os
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from opslib.errors import BadParameter, UnknownRunbook

_TYPES = ("str", "int", "float", "bool")
#: The types that a default may have, by the type that is declared.
_DEFAULTS = {"str": ("str",), "int": ("int",), "float": ("float", "int"), "bool": ("bool",)}
#: Characters of a wrong value that are quoted.
_SHOWN = 60
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}

Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """
    One parameter of a runbook, as its `parameters` cell declares it.

    Attributes:
        type: str, int, float or bool.

        help: The comment behind it.
    """

    name: str
    type: str
    default: Value
    help: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Runbook:
    """
    One notebook of the runbooks folder.

    Attributes:
        symptom: The sentence under its title: what is seen when it is needed.

        about: The rest of its first cell: how long it takes, what it changes.

        steps: Cell ids of its code cells, in order.
    """

    name: str
    path: Path
    title: str
    symptom: str
    about: str
    parameters: tuple[Parameter, ...]
    steps: tuple[str, ...]


def folder() -> Path:
    """Return the runbooks folder: OPS_RUNBOOKS, the project's own, or the one inside the installed package."""
    if os.environ.get("OPS_RUNBOOKS"):
        return Path(os.environ["OPS_RUNBOOKS"]).absolute()
    package = Path(__file__).parent
    project = package.parent / "runbooks"
    return project if project.is_dir() else package / "_runbooks"


def everything() -> list[Runbook]:
    """Return every runbook, by name."""
    return [_read(path) for path in sorted(folder().glob("*.ipynb"))]


def names() -> list[str]:
    """Return every runbook's name, without reading any."""
    return [path.stem for path in sorted(folder().glob("*.ipynb"))]


def find(name: str) -> Runbook:
    """
    Return the runbook of that name.

    Raises:
        UnknownRunbook: If there is none; with the nearest name.
    """
    known = names()
    if name in known:
        return _read(folder() / f"{name}.ipynb")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}? {UnknownRunbook.hint}" if near else ""
    raise UnknownRunbook(f"There is no runbook named {name!r}.", hint=hint)


def convert(runbook: Runbook, given: Mapping[str, str]) -> dict[str, Value]:
    """
    Return parameters in the types that the notebook declares.

    Papermill only warns of a name it does not know and guesses types; a typo in `dry_run` must not pass.

    Raises:
        BadParameter: If a name is unknown or a value does not convert.
    """
    declared = {parameter.name: parameter for parameter in runbook.parameters}
    for name in given:
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes: {', '.join(declared)}."
            raise BadParameter(f"{runbook.name} has no parameter {name!r}.", hint=hint)
    return {name: _convert(declared[name], text) for name, text in given.items()}


def _convert(parameter: Parameter, text: str) -> Value:
    try:
        if parameter.type == "bool":
            return _boolean(text)
        if parameter.type == "float":
            return _finite(text)
        return int(text) if parameter.type == "int" else text
    except ValueError:
        wanted = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(parameter.type, "text")
        raise BadParameter(
            f"Parameter {parameter.name} must be {wanted}; {text[:_SHOWN]!r} is not.", hint=parameter.help
        ) from None


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(text)
    return word in _TRUE


def _read(path: Path) -> Runbook:
    """Read a notebook as JSON: nbformat would cost every listing a tenth of a second."""
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        title, symptom, about = _first_cell(_source(cells[0]) if cells else "")
        tagged = next((_source(cell) for cell in code if "parameters" in cell["metadata"].get("tags", [])), "")
        steps = tuple(str(cell.get("id", "")) for cell in code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}".rstrip(".")
        raise UnknownRunbook(f"{path.name} cannot be read as a notebook: {said}.") from None
    return Runbook(
        name=path.stem,
        path=path,
        title=title or path.stem,
        symptom=symptom,
        about=about,
        parameters=_parameters(tagged, path.name),
        steps=steps,
    )


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _first_cell(markdown: str) -> tuple[str, str, str]:
    paragraphs = [part.strip() for part in markdown.split("\n\n") if part.strip()]
    title = paragraphs[0].removeprefix("# ").strip() if paragraphs and paragraphs[0].startswith("# ") else ""
    rest = paragraphs[1:] if title else paragraphs
    return title, " ".join(rest[0].split()) if rest else "", "\n\n".join(rest[1:])


def _parameters(source: str, where: str) -> tuple[Parameter, ...]:
    """Parse the cell with `ast`: papermill's own reader loses those whose default holds an equals sign."""
    try:
        body = ast.parse(source).body
        comments = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError) as error:
        raise BadParameter(f"{where}: its parameters cell is not Python: {str(error).rstrip('.')}.") from None
    found = []
    for node in body:
        if not (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.annotation, ast.Name)
        ):
            raise BadParameter(
                f"{where}: line {node.lineno} of its parameters cell is not `name: type = value  # help`."
            )
        default = _literal(node.value)
        if type(default).__name__ not in _DEFAULTS.get(node.annotation.id, ()):
            raise BadParameter(
                f"{where}: {node.target.id} needs a type, one of {', '.join(_TYPES)}, and a plain default of that type."
            )
        found.append(
            Parameter(
                name=node.target.id,
                type=node.annotation.id,
                default=default,
                help=comments.get(node.end_lineno or node.lineno, ""),
            )
        )
    return tuple(found)


def _literal(node: ast.expr | None) -> Any:  # noqa: ANN401 - whatever stands there
    """Return a default that is written out; None for a missing or a computed one."""
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return None
