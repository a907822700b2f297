"""CSV as a table, JSON laid out in lines."""

import csv
import io
import json
from collections.abc import Iterator

from llmsvc.files.parsers import Given, Report, table
from llmsvc.files.parsers.text import PART, decoded, parts

_ROWS = 100
"""In one part; the head is repeated in each."""


def csv_pages(given: Given, report: Report) -> Iterator[str]:
    """Raises Refused."""
    text = decoded(given, report)[: given.characters]
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
    if len(text) < 20 * PART and not given.name.lower().endswith((".jsonl", ".ndjson")):
        try:
            text = json.dumps(json.loads(text), ensure_ascii=False, indent=1)
        except (ValueError, RecursionError) as error:
            report("note", f"This is no valid JSON ({error}); it is read as text.")
    yield from parts(text, report)
