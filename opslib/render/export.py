"""A prepared notebook → the markup of its cells, through nbconvert and the package's template."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, cast

from nbconvert.exporters.html import HTMLExporter
from nbconvert.exporters.templateexporter import TemplateExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import InvalidNotebook, IPythonRenderer, MarkdownWithMath

from opslib import redact
from opslib.render.clean import clean
from opslib.render.page import TEMPLATES

if TYPE_CHECKING:
    from nbformat import NotebookNode

#: Without scripts, widgets and LaTeX: what is not in this list is never rendered.
_SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]


def export(body: NotebookNode, values: Mapping[str, object]) -> str:
    """Return the cells as HTML; `values` reach the template as `resources.ops`."""
    html, _ = _exporter().from_notebook_node(body, resources={"ops": dict(values)})
    return str(html)


class _Exporter(HTMLExporter):
    """
    nbconvert's exporter for HTML without its second pass over the finished page, which our template does not need.
    """

    def from_notebook_node(self, nb: Any, resources: Any = None, **kw: Any) -> Any:  # noqa: ANN401 - nbconvert's types contradict each other
        return TemplateExporter.from_notebook_node(self, nb, resources, **kw)


def _prose(source: str, shift: int) -> str:
    """Return Markdown as clean HTML; what cannot be rendered is shown as it is written."""
    # A picture would be read from this machine's disk, so none is embedded.
    renderer = IPythonRenderer(escape=False, embed_images=False, exclude_anchor_links=True)
    try:
        html = MarkdownWithMath(renderer=renderer).render(source)
    except (InvalidNotebook, RecursionError, ValueError):
        html = f"<pre>{escape(source)}</pre>"
    return clean(html, shift=shift)


@cache
def _exporter() -> _Exporter:
    exporter: Any = _Exporter(  # type: ignore[no-untyped-call]
        template_name=TEMPLATES.name,
        extra_template_basedirs=[str(TEMPLATES.parent)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        config={"NbConvertBase": {"display_data_priority": _SHOWN}, "HighlightMagicsPreprocessor": {"enabled": False}},
    )
    exporter.register_filter("clean", clean)
    exporter.register_filter("prose", _prose)
    exporter.register_filter("alt", lambda output: output.data.get("ops/alt", ""))
    exporter.register_filter(
        "base64", lambda svg: base64.b64encode(redact.markup(str(svg)).encode("utf-8", "replace")).decode()
    )
    exporter.register_filter("base64_only", lambda text: re.sub(r"[^A-Za-z0-9+/=]", "", str(text)))
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="python3", parent=exporter))  # type: ignore[no-untyped-call]
    return cast("_Exporter", exporter)
