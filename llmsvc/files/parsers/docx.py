"""DOCX in document order: headings, lists, tables, insertions, text boxes, footnotes, headers and footers."""

import zipfile
from collections.abc import Iterator
from typing import Any

import docx
from docx.oxml.ns import qn
from docx.table import Table
from lxml import etree

from llmsvc.files.parsers import Given, Refused, Report, table

MOST_UNPACKED = 300_000_000
_PART = 8_000
"""Characters after which a new part begins, at the next block."""


def pages(given: Given, report: Report) -> Iterator[str]:
    """Raises Refused."""
    _check_size(given)
    try:
        document: Any = docx.Document(str(given.path))
    except Exception:
        raise Refused("This DOCX is damaged. Open it in a word processor, save it anew, and upload that.") from None
    blocks = list(document.iter_inner_content())
    report("pages", 1 + sum(len(_words(block._element)) for block in blocks) // _PART)
    part: list[str] = []
    for block in [*_furniture(document, "header"), *blocks, *_furniture(document, "footer")]:
        if text := _block(block):
            part.append(text)
        if sum(map(len, part)) > _PART:
            yield "\n\n".join(part)
            part = []
    yield "\n\n".join([*part, *_footnotes(document)])


def _check_size(given: Given) -> None:
    """A small file can unpack to many gigabytes: its own directory tells before anything is unpacked."""
    try:
        with zipfile.ZipFile(given.path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise Refused("This DOCX is damaged or incomplete. Save it anew, and upload that.") from None
    if sum(info.file_size for info in infos) > MOST_UNPACKED or len(infos) > 10_000:
        raise Refused("This DOCX unpacks to far more than its size. Save it without embedded files, or as PDF.")


def _block(block: Any) -> str:
    if isinstance(block, Table):
        return table([[_cell(cell) for cell in row.cells] for row in block.rows])
    text = _words(block._element).strip()
    if not text:
        return ""
    style = (block.style.name if block.style is not None else "") or ""
    if style == "Title":
        return f"# {text}"
    if style.startswith("Heading ") and style[8:].isdecimal():
        return f"{'#' * min(6, int(style[8:]))} {text}"
    return f"- {text}" if style.startswith("List") or block._element.find(f".//{qn('w:numPr')}") is not None else text


def _cell(cell: Any) -> str:
    inner = (_block(part).replace("\n", " ") for part in cell.iter_inner_content())
    return " ".join(part for part in inner if part)


def _words(element: Any) -> str:
    """All text that is shown, also where python-docx skips it; what tracked deletions took away has another tag."""
    found: list[str] = []
    skipped = 0
    for event, node in etree.iterwalk(element, events=("start", "end")):
        tag = node.tag
        if not isinstance(tag, str):
            continue
        if tag.endswith("}Fallback"):  # a second copy of a text box, for old programs
            skipped += 1 if event == "start" else -1
        elif event == "start" and not skipped:
            if tag == qn("w:t"):
                found.append(node.text or "")
            elif tag == qn("w:tab"):
                found.append("\t")
            elif tag in (qn("w:br"), qn("w:cr")):
                found.append("\n")
            elif tag == qn("w:footnoteReference"):
                found.append(f"[^{node.get(qn('w:id'))}]")
        elif event == "end" and not skipped and tag == qn("w:p") and node is not element:
            found.append("\n")
    return "".join(found)


def _furniture(document: Any, kind: str) -> list[Any]:
    """Headers or footers, each once."""
    seen, found = set(), []
    for section in document.sections:
        holder = getattr(section, kind)
        if not holder.is_linked_to_previous:
            for block in holder.iter_inner_content():
                if (text := _words(block._element).strip()) and text not in seen:
                    seen.add(text)
                    found.append(block)
    return found


def _footnotes(document: Any) -> list[str]:
    notes = []
    for part in document.part.package.iter_parts():
        if part.partname.endswith("/footnotes.xml"):
            parser = etree.XMLParser(resolve_entities=False, no_network=True)
            for note in etree.fromstring(part.blob, parser).iter(qn("w:footnote")):
                if text := _words(note).strip():
                    notes.append(f"[^{note.get(qn('w:id'))}]: {text}")
    return notes
