"""PDF: pdfplumber for the text and its tables, pdfium for columns and where the former is slow (58 times so)."""

import time
from collections.abc import Iterator
from typing import Any

import pdfplumber
import pypdfium2
from pdfminer.pdftypes import resolve1
from pdfminer.utils import decode_text
from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

from llmsvc.files.parsers import Given, PasswordMissing, Refused, Report, ScannedOnly, table

SLOW_PAGE = 1.0
PATIENCE = 30.0
"""Seconds that pdfplumber may take: of one page before the next ones go to pdfium, and of all pages together."""
_BINS = 120


def pages(given: Given, report: Report) -> Iterator[str]:
    """Raises Refused."""
    document = _opened(given)
    total = len(document)
    report("pages", total)
    if not total:
        raise Refused("This PDF has no pages.")
    leaves, form = _leaves(given)
    spent, empty = 0.0, list[int]()
    for number in range(total):
        text, filled = "", ""
        if number < len(leaves):
            began = time.process_time()
            try:
                filled = _filled(leaves[number]) if form else ""
                text = _careful(leaves[number])
            except RecursionError:
                leaves = []
            except Exception:  # one bad page: pdfium reads most of what pdfminer cannot
                text = ""
            took = time.process_time() - began
            spent += took
            if leaves:
                leaves[number].close()
            if took > SLOW_PAGE or spent > PATIENCE:
                leaves = []
        if not text:
            text, pictures = _quick(document, number)
            if not text.strip() and pictures:
                empty.append(number + 1)
        yield "\n\n".join(filter(None, (text, filled)))
    if len(empty) == total or (empty and len(empty) > 0.9 * total):
        raise ScannedOnly(
            "These pages are pictures without text. Run the file through text recognition (OCR), for example with "
            "ocrmypdf, and upload the result."
        )
    if empty:
        shown = ", ".join(map(str, empty[:8])) + (", …" if len(empty) > 8 else "")
        report("note", f"Without text, because they are pictures: page {shown}.")


def _opened(given: Given) -> Any:
    try:
        return pypdfium2.PdfDocument(given.path, password=given.password or None)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            what = "The password does not open this file" if given.password else "This PDF is locked with a password"
            raise PasswordMissing(f"{what}. Enter it in the Files tab.") from None
        raise Refused(
            "This PDF is damaged or incomplete. Open it in a viewer, save it anew, and upload that."
        ) from None


def _leaves(given: Given) -> tuple[list[Any], bool]:
    """The pages as pdfplumber has them, none if it cannot, and whether there are fields to fill in."""
    try:
        plumber = pdfplumber.open(given.path, password=given.password or None)
        return list(plumber.pages), "AcroForm" in plumber.doc.catalog
    except Exception:
        return [], False


def _filled(page: Any) -> str:
    """What was filled into the fields of a form, which is no text of the page."""
    fields = []
    for annotation in page.annots:
        field = resolve1(annotation["data"])
        above = resolve1(field.get("Parent")) or {}
        name, value = (resolve1(field.get(key) or above.get(key)) for key in ("T", "V"))
        if isinstance(name, bytes) and value:
            shown = decode_text(value) if isinstance(value, bytes) else str(getattr(value, "name", value))
            fields.append(f"{decode_text(name)}: {shown}")
    return "\n".join(fields)


def _quick(document: Any, number: int) -> tuple[str, bool]:
    """The page's text as pdfium reads it, and whether there are pictures."""
    try:
        page = document[number]
    except pypdfium2.PdfiumError:  # it is counted, but is not there
        return "", False
    text: str = page.get_textpage().get_text_bounded()
    pictures = page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE], max_depth=3)
    return text.replace("\r\n", "\n"), any(True for _ in pictures)


def _careful(page: Any) -> str:
    """Text in reading order with its tables; "" when the page is better read by pdfium."""
    tables = page.find_tables() if page.lines or page.rects else []
    tables = [found for found in tables if len(found.rows) > 1 and len(found.columns) > 1]
    if not tables:
        return "" if _has_columns(page) else page.extract_text()
    boxes = [found.bbox for found in tables]

    def between(top: float, bottom: float) -> str:
        def wanted(thing: dict[str, Any]) -> bool:
            x, y = (thing["x0"] + thing["x1"]) / 2, (thing["top"] + thing["bottom"]) / 2
            inside = any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes)
            return top <= y < bottom and not inside

        return str(page.filter(wanted).extract_text())

    parts, top = [], float("-inf")
    for found in sorted(tables, key=lambda found: found.bbox[1]):
        parts += [between(top, found.bbox[1]), table(found.extract())]
        top = max(top, found.bbox[1])
    parts.append(between(top, float("inf")))
    return "\n\n".join(part for part in parts if part.strip())


def _has_columns(page: Any) -> bool:
    """Whether a gap of 3 % of the width runs down the middle third of the page, with text on both sides."""
    width = float(page.width) or 1.0
    lines: dict[int, set[int]] = {}
    for char in page.chars:
        if char["text"].strip():
            bins = lines.setdefault(round(char["top"] / 4), set())
            bins.update(
                range(int(char["x0"] / width * _BINS), min(_BINS - 1, max(0, int(char["x1"] / width * _BINS))) + 1)
            )
    if len(lines) < 8:
        return False
    covered = [sum(at in bins for bins in lines.values()) for at in range(_BINS)]
    few, run = 0.12 * len(lines), 0
    for at in range(_BINS // 3, 2 * _BINS // 3):
        run = run + 1 if covered[at] <= few else 0
        if run >= 0.03 * _BINS:
            left = sum(any(b < at - run for b in bins) for bins in lines.values())
            right = sum(any(b > at for b in bins) for bins in lines.values())
            if min(left, right) > 0.4 * len(lines):
                return True
    return False
