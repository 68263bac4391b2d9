"""HTML out of a notebook → the same text and tables, with nothing left that acts, loads or poses as the report."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from html import escape

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, Tag
from bs4.element import NavigableString, PreformattedString
from bs4.exceptions import ParserRejectedMarkup

from opslib import redact

#: What may stay. Anything else either acts (see below) or is taken off while its text stays.
TAGS = frozenset(
    """
    a abbr b blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure h1 h2 h3 h4
    h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead
    time tr tt u ul var wbr
    """.split()  # noqa: SIM905 - a list of sixty strings is harder to read
)
ATTRIBUTES = frozenset(
    """
    alt class colspan data-label datetime dir href lang open reversed rowspan scope src start style title
    """.split()  # noqa: SIM905
)
#: What acts, loads or swallows what follows: it goes with all that is in it, and a sentence says so.
ACTING = frozenset(
    """
    applet audio base button canvas dialog embed form frame frameset iframe input link map marquee math meta noembed
    noframes noscript object option param plaintext portal script select slot source svg template textarea track video
    xmp
    """.split()  # noqa: SIM905
)
#: Acting by name only: parsers put them around a fragment, and libraries give every table its style.
_SILENT = frozenset({"html", "head", "body", "title"})
#: Nothing that moves, covers or loads: a box over the verdict would be a lie.
PROPERTIES = frozenset(
    """
    background background-color border border-bottom border-collapse border-left border-right border-top color
    font-family font-size font-style font-weight padding padding-left padding-right text-align text-decoration
    vertical-align white-space width
    """.split()  # noqa: SIM905
)
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE)
#: Our own tables', pandas' and the tokens of highlighted code; no class of the page around them.
_CLASSES = re.compile(r"ops-[a-z-]+|dataframe|highlight|hl-\w+|[a-z]{1,3}\d?")


def clean(fragment: str, *, shift: int = 0) -> str:
    """
    Return HTML that is safe to stand in a report.

    Only known tags, attributes and properties stay, and each fragment is closed by itself, so that none can end the
    element around it. Links become text with their address; only links within the page stay. What was removed is said.

    Args:
        shift: Levels that headings move down, so that the page keeps one h1.
    """
    try:
        return _clean(fragment, shift)
    except RecursionError:
        return f"<pre>{escape(redact.plain(fragment))}</pre>"


def _clean(fragment: str, shift: int) -> str:
    soup = _parsed(fragment)
    removed: Counter[str] = Counter()
    for text in soup.find_all(string=True):
        _text(text)
    # From the innermost outwards, and hidden instead of unwrapped: however deep they are nested, each costs the same.
    for tag in reversed(soup.find_all(name=True)):
        _tag(tag, removed, shift)
    return soup.decode(formatter="minimal") + _said(removed)


def _parsed(fragment: str) -> BeautifulSoup:
    with warnings.catch_warnings():
        # A fragment that is only a URL or a file name is still a fragment.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        try:
            return BeautifulSoup(fragment, "html.parser")
        except ParserRejectedMarkup:
            return BeautifulSoup(f"<pre>{escape(fragment)}</pre>", "html.parser")


def _text(text: NavigableString) -> None:
    if isinstance(text, PreformattedString):  # comments, doctypes, processing instructions
        text.extract()
        return
    plain = redact.plain(text)
    if plain != text:
        text.replace_with(NavigableString(plain))


def _tag(tag: Tag, removed: Counter[str], shift: int) -> None:
    if tag.name == "input" and tag.get("type") == "checkbox":
        tag.replace_with("☑ " if tag.has_attr("checked") else "☐ ")
    elif tag.name == "style":
        tag.extract()
    elif tag.name in _SILENT:
        tag.hidden = True
    elif tag.name in ACTING:
        removed[f"<{tag.name}>"] += 1
        tag.extract()
    elif tag.name not in TAGS:
        _attributes(tag, removed)
        tag.hidden = True
    else:
        _attributes(tag, removed)
        _special(tag, removed, shift)


def _attributes(tag: Tag, removed: Counter[str]) -> None:
    for name, value in list(tag.attrs.items()):
        if name.startswith("on"):
            removed[f"{name}="] += 1
        if name not in ATTRIBUTES:
            del tag.attrs[name]
        elif name == "style":
            _set(tag, name, _style(str(value)))
        elif name == "class":
            _set(
                tag,
                name,
                " ".join(each for each in tag.get_attribute_list("class") if each and _CLASSES.fullmatch(each)),
            )
        elif isinstance(value, str):
            tag.attrs[name] = redact.plain(value)


def _set(tag: Tag, name: str, value: str) -> None:
    if value:
        tag.attrs[name] = value
    else:
        del tag.attrs[name]


def _style(declarations: str) -> str:
    kept = []
    for declaration in declarations.split(";"):
        name, _, value = declaration.partition(":")
        # A bracket can hold a url() or an expression(); colours are written without one often enough.
        if name.strip().lower() in PROPERTIES and not re.search(r"[(\\@]", value):
            kept.append(f"{name.strip().lower()}:{value.strip()}")
    return ";".join(kept)


def _special(tag: Tag, removed: Counter[str], shift: int) -> None:
    if tag.name == "a":
        _link(tag, removed)
    elif tag.name == "img":
        _image(tag, removed)
    elif shift and re.fullmatch("h[1-6]", tag.name):
        tag.name = f"h{min(6, int(tag.name[1]) + shift)}"


def _link(tag: Tag, removed: Counter[str]) -> None:
    address = str(tag.attrs.pop("href", ""))
    if address.startswith("#"):
        tag.attrs["href"] = address
        return
    scheme = re.match(r"\s*([a-z][\w+.-]*):", address, re.IGNORECASE)
    if scheme and scheme.group(1).lower() not in {"http", "https", "mailto"}:
        removed[f"{scheme.group(1).lower()}: link"] += 1
    elif scheme and not (tag.contents and isinstance(tag.contents[0], NavigableString) and tag.contents[0] == address):
        tag.append(f" ({redact.plain(address)})")
    tag.hidden = True


def _image(tag: Tag, removed: Counter[str]) -> None:
    if not _PICTURE.fullmatch(str(tag.get("src", ""))):
        removed["picture from outside"] += 1
        tag.extract()
    elif not tag.get("alt"):
        tag.attrs["alt"] = "A picture without a description."


def _said(removed: Counter[str]) -> str:
    if not removed:
        return ""
    parts = ", ".join(f"{what}{f' × {times}' if times > 1 else ''}" for what, times in sorted(removed.items()))
    return f'<p class="ops-removed">Removed here, because a report does not act: {escape(parts)}.</p>'
