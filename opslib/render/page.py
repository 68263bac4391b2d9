"""A template of the package and its values → a page with the report's style and content-security policy."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from opslib import redact

#: The folder of the templates; nbconvert takes it by its name, from the folder above.
TEMPLATES = Path(__file__).parent / "template"


def page(template: str, **values: object) -> str:
    """Return a page; every value is escaped unless it is Markup, and no credential is left in it."""
    return redact.markup(_environment().get_template(template).render(css=_style(), **values))


def opslib_version() -> str:
    """Return the version of the installed package; "unknown" where it runs from a folder."""
    try:
        return version("opslib")
    except PackageNotFoundError:
        return "unknown"


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ticks"] = _ticks
    return environment


def _ticks(text: str) -> Markup:
    """Return text, escaped, with its `commands` set as code."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped first


@cache
def _style() -> Markup:
    """Return the style sheet without its comments; it is the package's own file."""
    lines = (TEMPLATES / "report.css").read_text(encoding="utf-8").splitlines()
    return Markup("\n".join(line for line in map(str.strip, lines) if line and not line.startswith("/*")))  # noqa: S704
