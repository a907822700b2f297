"""CSV as a table, JSON laid out in lines, a notebook as what is seen of it."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from llmsvc.files.parsers import Given, Report, table
from llmsvc.files.parsers.text import PART, decoded, parts

_ROWS = 100
"""In one part; the head is repeated in each."""


def csv_pages(given: Given, report: Report) -> Iterator[str]:
    """Raises Refused."""
    text = decoded(given, report)
    if len(text) > given.characters:
        report("cut", True)
        text = text[: given.characters]
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:20_000], ",;\t|")
    except csv.Error:
        dialect = csv.excel_tab if given.name.lower().endswith(".tsv") else csv.excel
    csv.field_size_limit(given.characters)
    rows = [row for row in csv.reader(io.StringIO(text), dialect) if any(cell.strip() for cell in row)]
    report("pages", max(1, -(-(len(rows) - 1) // _ROWS)))
    for start in range(1, max(2, len(rows)), _ROWS):
        yield table([rows[0], *rows[start : start + _ROWS]])


def json_pages(given: Given, report: Report) -> Iterator[str]:
    """Raises Refused."""
    text = decoded(given, report)
    if given.name.lower().endswith(".ipynb"):
        with suppress(ValueError, RecursionError, LookupError, TypeError, AttributeError):
            yield from parts(_notebook(json.loads(text)), report)
            return
    if len(text) < 20 * PART and not given.name.lower().endswith((".jsonl", ".ndjson")):
        try:
            text = json.dumps(json.loads(text), ensure_ascii=False, indent=1)
        except (ValueError, RecursionError) as error:
            report("note", f"This is no valid JSON ({error}); it is read as text.")
    yield from parts(text, report)


def _notebook(found: dict[str, Any]) -> str:
    """Its cells and what they printed, without pictures."""
    shown = []
    language = found.get("metadata", {}).get("language_info", {}).get("name", "python")
    for cell in found["cells"]:
        source = "".join(cell["source"])
        shown.append(f"```{language}\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", ()):
            shown.append("".join(output.get("text") or output.get("data", {}).get("text/plain", "")))
    return "\n\n".join(text.strip() for text in shown if text.strip())
