"""Lines, dots, areas and texts → one picture as SVG, the same bytes for the same strokes; knows matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opslib import redact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Everything in points, from the top left.
WIDTH, LEFT, RIGHT = 680.0, 128.0, 668.0
#: What a letter of DejaVu takes at 9 points, on average.
LETTER = 5.3
INK, QUIET, RULE, ALARM = "#1b1f24", "#57606a", "#d5d9de", "#a40e26"
#: Figures come out of matplotlib in DejaVu; the reader's own typeface is narrower, so nothing outgrows its place.
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
#: A white rim keeps a text legible where a line passes behind it.
_RULES = "*{stroke-linejoin"
_HALO = "text{paint-order:stroke;stroke:#fff;stroke-width:3px;font-variant-numeric:tabular-nums}"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opslib",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,
    "text.usetex": False,
    "path.simplify": False,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """
    A picture and the sentence that says what is seen in it.
    """

    svg: str
    alt: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.alt}

    def _repr_svg_(self) -> str:
        return self.svg

    def __str__(self) -> str:
        return self.alt


def from_figure(figure: Figure, alt: str = "A picture without a description.") -> Chart:
    """Return a matplotlib figure as a chart."""
    return Chart(_svg(figure), alt)


class Pen:
    """
    Draws on one matplotlib figure in points from its top left, without axes: ticks of its own making cost nothing.
    """

    def __init__(self, height: float) -> None:
        # Imported here, and without pyplot: only a run that draws pays for it.
        from matplotlib.figure import Figure
        from matplotlib.transforms import IdentityTransform

        self._height = height
        self._figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        self._points = IdentityTransform()

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, width: float, dashes: Any = "-") -> None:  # noqa: ANN401 - matplotlib's own union
        """Draw a line."""
        from matplotlib.lines import Line2D

        line = Line2D(xs, [self._height - y for y in ys], color=colour, linewidth=width, linestyle=dashes)
        line.set(transform=self._points, zorder=0.5 if colour == RULE else 2)  # a rule lies behind what it measures
        self._figure.add_artist(line)

    def dots(self, xs: Sequence[float], ys: Sequence[float], colour: str, radius: float, edge: str) -> None:
        """Draw dots."""
        from matplotlib.lines import Line2D

        if xs:
            line = Line2D(xs, [self._height - y for y in ys], linestyle="none", marker="o", markersize=radius * 2)
            line.set(markerfacecolor=colour, markeredgecolor=edge, markeredgewidth=1.1, transform=self._points)
            self._figure.add_artist(line)

    def bar(self, x: float, y: float, width: float, height: float, colour: str, edge: str) -> None:
        """Draw a filled rectangle."""
        from matplotlib.patches import Rectangle

        corner = (x, self._height - y - height)
        self._figure.add_artist(
            Rectangle(corner, width, height, facecolor=colour, edgecolor=edge, linewidth=0.8, transform=self._points)
        )

    def area(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str) -> None:
        """Fill what lies between two lines."""
        from matplotlib.patches import Polygon

        corners = [*zip(xs, lows, strict=True), *reversed([*zip(xs, highs, strict=True)])]
        flipped = [(x, self._height - y) for x, y in corners]
        self._figure.add_artist(Polygon(flipped, closed=True, facecolor=colour, linewidth=0, transform=self._points))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        colour: str = INK,
        size: float = 9,
        ha: str = "left",
        weight: str = "normal",
    ) -> None:
        """Write a text on its base line."""
        self._figure.text(
            x,
            self._height - y,
            _printable(text),
            color=colour,
            size=size,
            ha=ha,
            weight=weight,
            transform=self._points,
            parse_math=False,
        )

    def svg(self) -> str:
        """Return the picture."""
        return _svg(self._figure)


def _printable(text: str) -> str:
    """Return text without the two characters that XML forbids and the filter lets through."""
    return redact.plain(text).replace("\ufffe", "?").replace("\uffff", "?")


def _svg(figure: Figure) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A glyph that DejaVu lacks is drawn by the reader's own typeface; the warning would only alarm.
        warnings.simplefilter("ignore")
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue().replace("'DejaVu Sans'", _FONT).replace(_RULES, _HALO + _RULES, 1)
