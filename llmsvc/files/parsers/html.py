"""HTML: what a reader sees, with headings, lists and tables."""

import re
from collections.abc import Iterator
from typing import Any

from lxml import etree
from lxml import html as lxml_html

from llmsvc.files.parsers import Given, Refused, Report, table
from llmsvc.files.parsers.text import decoded, parts

_HIDDEN = {"script", "style", "noscript", "template", "svg", "head", "iframe", "object"}
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = {*_HEADINGS, "p", "div", "section", "article", "li", "ul", "ol", "dl", "dt", "dd", "blockquote", "pre", "tr"}
_BLOCKS |= {"hr", "header", "footer", "main", "nav", "aside", "figure"}
_MARKUP = re.compile(r"(?s)<(script|style|head)\b.*?</\1>|<!--.*?-->|<[^>]*>", re.IGNORECASE)


def pages(given: Given, report: Report) -> Iterator[str]:
    """Raises Refused."""
    said = re.search(rb"<meta[^>]+charset=[\"']?([\w-]+)", given.path.open("rb").read(4096), re.IGNORECASE)
    if said and not given.encoding:
        given = Given(given.path, given.name, "", said[1].decode("ascii"), given.characters)
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", decoded(given, report))
    if len(text) > given.characters * 2:
        report("cut", True)
        text = text[: given.characters * 2]
    try:
        root = lxml_html.document_fromstring(text, parser=lxml_html.HTMLParser(no_network=True, huge_tree=True))
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        raise Refused("This HTML has no content that can be read.") from None
    title = root.findtext(".//title")
    found = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", "".join(_words(root)))).strip()
    if not found:  # it nests deeper than the parser goes
        found = re.sub(r"\s+", " ", _MARKUP.sub(" ", text)).strip()
    if title and title.strip() and title.strip() not in found[:300]:
        found = f"# {' '.join(title.split())}\n\n{found}"
    yield from parts(found, report)


def _words(root: Any) -> Iterator[str]:
    """Depth first without recursion: a page may nest deeper than Python calls."""
    skipped: Any = None
    quoted = 0
    for event, node in etree.iterwalk(root, events=("start", "end")):
        tag = node.tag if isinstance(node.tag, str) else ""
        if event == "start" and skipped is None:
            if tag in _HIDDEN or not tag:
                skipped = node
                continue
            if tag == "table" and node.find(".//table") is None:
                rows = [[_flat(cell) for cell in row.iter("td", "th")] for row in node.iter("tr")]
                yield f"\n\n{table(rows)}\n\n"
                skipped = node
                continue
            quoted += tag == "pre"
            if tag in _BLOCKS:
                yield "\n\n"
            if tag in _HEADINGS:
                yield "#" * int(tag[1]) + " "
            yield "- " if tag == "li" else "\n" if tag == "br" else ""
            yield _spaced(node.text, quoted)
        elif event == "end":
            if skipped is None:
                quoted -= tag == "pre"
                yield "\n\n" if tag in _BLOCKS else ""
            elif skipped is node:
                skipped = None
            if skipped is None:
                yield _spaced(node.tail, quoted)


def _flat(node: Any) -> str:
    return " ".join(node.text_content().split())


def _spaced(text: str | None, quoted: int) -> str:
    return (text or "") if quoted else re.sub(r"\s+", " ", text or "")
