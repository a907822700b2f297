"""What a file is, by its first bytes before its name: names lie."""

import zipfile
from pathlib import Path

from llmsvc.files.parsers import Refused
from llmsvc.files.parsers.text import is_code

_MAGIC = (
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "a picture, a sound or a film"),
    (b"ID3", "a sound"),
    (b"OggS", "a sound"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"Rar!", "an archive"),
    (b"7z\xbc\xaf", "an archive"),
    (b"\x1f\x8b", "an archive"),
    (b"BZh", "an archive"),
    (b"\xfd7zXZ", "an archive"),
    (b"SQLite format 3", "a database"),
)
_BY_NAME = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), "markdown"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".ipynb"), "json"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
}


def kind_of(path: Path, name: str) -> tuple[str, str]:
    """("pdf", "docx", "markdown", "csv", "json", "html", "code" or "text", a note on a wrong name).

    Raises Refused for what cannot be read, with what to do about it.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    ending = Path(name).suffix.lower()
    if not head:
        raise Refused("This file is empty.")
    if b"%PDF-" in head:
        return "pdf", "" if ending == ".pdf" else _lies(ending, "PDF")
    if head.startswith(b"PK\x03\x04"):
        return _zipped(path, ending)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        raise Refused(
            "This is an old Word, Excel or PowerPoint file, or one that is locked with a password. "
            "Save it as DOCX or PDF without a password."
        )
    if head.startswith(b"{\\rtf"):
        raise Refused("RTF cannot be read. Save it as DOCX or PDF.")
    for mark, what in _MAGIC:
        if head.startswith(mark):
            raise Refused(f"This is {what}, which cannot be read. Upload PDF, DOCX, or a text format.")
    if head[4:8] == b"ftyp":
        raise Refused("This is a film or a sound, which cannot be read. Upload PDF, DOCX, or a text format.")
    if ending == ".pdf":
        raise Refused("This is named .pdf but is no PDF, or its beginning is lost. Save it anew, and upload that.")
    if ending == ".docx":
        raise Refused("This is named .docx but is none. Save it anew in a word processor, and upload that.")
    if found := _BY_NAME.get(ending):
        return found, ""
    if head.lstrip()[:200].lower().startswith((b"<!doctype html", b"<html")):
        return "html", "" if not ending else _lies(ending, "HTML")
    return ("code" if is_code(name) else "text"), ""


def _zipped(path: Path, ending: str) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist()[:5000])
    except (zipfile.BadZipFile, OSError, ValueError):
        if ending == ".docx":
            raise Refused("This DOCX is damaged or incomplete. Save it anew, and upload that.") from None
        raise Refused("This is a damaged archive. Unpack it, and upload the files inside.") from None
    if "word/document.xml" in names:
        return "docx", "" if ending == ".docx" else _lies(ending, "DOCX")
    if "xl/workbook.xml" in names:
        raise Refused("Spreadsheets cannot be read. Save the sheet as CSV.")
    if "ppt/presentation.xml" in names:
        raise Refused("Presentations cannot be read. Save it as PDF.")
    if "content.xml" in names or "mimetype" in names:
        raise Refused("This format cannot be read. Save it as DOCX or PDF.")
    raise Refused("This is an archive. Unpack it, and upload the files inside.")


def _lies(ending: str, what: str) -> str:
    return f"Named {ending or 'without an ending'}, but it is {what}, and was read as that."
