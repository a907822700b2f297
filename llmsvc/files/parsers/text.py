"""Text, Markdown and source code, in whatever encoding."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import charset_normalizer

from llmsvc.files.parsers import Given, Refused, Report

HEAD = 200_000
"""Bytes from which the encoding is guessed."""
PART = 30_000
"""Characters after which a new part begins, at the next line."""
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMON = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("iso8859_2", "iso8859_5", "koi8_r", "koi8_u", "cp866", "cp437", "cp850", "cp874", "mac_roman", "mac_cyrillic"),
    *("cp932", "shift_jis", "euc_jp", "iso2022_jp", "gb18030", "big5", "euc_kr", "utf_16_le", "utf_16_be"),
]
"""The others are hardly used, and their guesses are wrong more often than right."""


def pages(given: Given, report: Report) -> Iterator[str]:
    """Raises Refused."""
    yield from parts(decoded(given, report), report)


def parts(text: str, report: Report) -> Iterator[str]:
    report("pages", max(1, -(-len(text) // PART)))
    start = 0
    while len(text) - start > PART * 3 // 2:
        end = text.rfind("\n", start, start + PART) + 1 or start + PART
        yield text[start:end]
        start = end
    yield text[start:]


def decoded(given: Given, report: Report) -> str:
    """The text, at most as much as is wanted. Raises Refused for what is no text."""
    with given.path.open("rb") as file:
        raw = file.read(given.characters * 4 + 4)
        if file.read(1):
            report("cut", True)
    encoding = given.encoding or guess(raw[:HEAD])
    report("encoding", encoding)
    try:
        text = raw.decode(encoding, errors="replace")
    except (LookupError, UnicodeError):
        raise Refused(f'"{encoding}" is no encoding that can be read. Choose another one.') from None
    if not text.strip():
        raise Refused("This file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def guess(head: bytes) -> str:
    """The likeliest encoding of a file that begins with ``head``. Raises Refused for what is no text."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if b"\0" in head[:65536] and not _is_wide(head):
        raise Refused("This is no text but a binary file. Upload PDF, DOCX, or a text format.")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # does not mind a last character that was cut
        return "utf-8"
    except UnicodeDecodeError:
        pass
    best = charset_normalizer.from_bytes(head, threshold=0.5, cp_isolation=_COMMON).best()
    found = best.encoding if best else ""
    if not found and not _is_texty(head):
        raise Refused("This is no text in any known encoding. Upload PDF, DOCX, or a text format.")
    if not found or (_is_single_byte(found) and _is_latin(head.decode(found, "replace"))):
        return "cp1252"  # a short Latin text looks the same in a dozen of encodings; this is the commonest
    return found


def _is_wide(head: bytes) -> bool:
    """UTF-16 without its mark: every second byte is nearly always the same."""
    sample = head[:4096]
    return any(sample[start::2].count(0) > 0.4 * len(sample) / 2 for start in (0, 1)) and sample.count(b"\0\0\0") == 0


def _is_texty(head: bytes) -> bool:
    odd = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head[:4096])
    return odd < 0.01 * len(head[:4096])


def _is_single_byte(name: str) -> bool:
    try:
        return len("é".encode(name, "replace")) == 1
    except LookupError:
        return False


def _is_latin(text: str) -> bool:
    letters = [c for c in text[:20_000] if c.isalpha()]
    return sum(c < "\u0250" for c in letters) > 0.7 * len(letters)


def is_code(name: str) -> bool:
    return Path(name).suffix.lower() in CODE


_CODE = """
py pyi js mjs cjs jsx ts tsx java go rs c h cc cpp cxx hpp hh cs kt kts swift rb php pl sh bash zsh fish ps1
sql r jl lua scala clj hs ml ex exs erl dart zig nim vue svelte css scss less toml yaml yml ini cfg conf tf
proto graphql gradle cmake mk dockerfile asm s f90 m vb pas v sv vhd tcl groovy xml xsd xsl svg
"""
CODE = frozenset(f".{ending}" for ending in _CODE.split())
