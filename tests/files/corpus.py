"""Real and hostile files: the state in which each must end, and words of its text or of the sentence on it."""

import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable, Iterable

import docx
import samples
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

Case = tuple[Callable[[], bytes], str, str]
WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def raw_pdf(objects: Iterable[bytes], head: bytes = b"%PDF-1.5\n") -> bytes:
    """Objects from 1 on, the first of which is the catalogue."""
    out, places = bytearray(head), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(places) + 1, start))


def stream(data: bytes, extra: bytes = b"") -> bytes:
    return b"<</Length %d%s>>stream\n%s\nendstream" % (len(data), extra, data)


def plain_pdf(
    page: bytes = b"", catalogue: bytes = b"", words: bytes = b"The harbour freezes.", count: int = 1, head: bytes = b""
) -> bytes:
    """``count`` pages that share their words; ``page`` and ``catalogue`` are further entries."""
    kids = b" ".join(b"%d 0 R" % (5 + n) for n in range(count))
    return raw_pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R%s>>" % catalogue,
            b"<</Type/Pages/Count %d/Kids[%s]>>" % (count, kids),
            stream(b"BT /F 12 Tf 60 700 Td (%s) Tj ET" % words),
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
            *[
                b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 3 0 R/Resources<</Font<</F 4 0 R>>>>%s>>"
                % page
            ]
            * count,
        ],
        head or b"%PDF-1.5\n",
    )


def form_pdf() -> bytes:
    from reportlab.pdfgen.canvas import Canvas

    out = io.BytesIO()
    canvas = Canvas(out)
    canvas.drawString(60, 700, "Name of the applicant:")
    canvas.acroForm.textfield(name="applicant", value="Ada Lovelace", x=60, y=650, width=200)
    canvas.showPage()
    canvas.save()
    return out.getvalue()


def circular_pdf() -> bytes:
    return raw_pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 9/Kids[2 0 R 2 0 R]>>"])


def deep_pdf(depth: int = 5000) -> bytes:
    """Each node of the page tree has one child."""
    nodes = [b"<</Type/Pages/Count 1/Kids[%d 0 R]>>" % (number + 3) for number in range(depth)]
    return raw_pdf([b"<</Type/Catalog/Pages 2 0 R>>", *nodes, b"<</Type/Page/MediaBox[0 0 600 800]>>"])


def nested_pdf(depth: int = 100_000) -> bytes:
    return raw_pdf([b"<</Type/Catalog/Pages 2 0 R/Deep %s>>" % (b"[" * depth + b"]" * depth), b"<</Type/Pages>>"])


def glyph_pdf(count: int = 3_000_000) -> bytes:
    """Few bytes, millions of characters on one page."""
    words = zlib.compress(b"BT /F 1 Tf 60 700 Td (" + b"x" * count + b") Tj ET", 9)
    return raw_pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Count 1/Kids[5 0 R]>>",
            stream(words, b"/Filter/FlateDecode"),
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 3 0 R/Resources<</Font<</F 4 0 R>>>>>>",
        ]
    )


def spoiled(raw: bytes, changes: int, seed: int = 0) -> bytes:
    dice, changed = random.Random(seed), bytearray(raw)
    for _ in range(changes):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def word(body: str = "", change: Callable[[zipfile.ZipFile], None] = lambda archive: None, without: str = "") -> bytes:
    """A DOCX with this XML in its body, and with what ``change`` adds to the archive."""
    document = docx.Document()
    if body:
        document.element.body.insert(0, parse_xml(body))
    out, result = io.BytesIO(), io.BytesIO()
    document.save(out)
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            if info.filename != without:
                new.writestr(info, old.read(info))
        change(new)
    return result.getvalue()


def paragraph(text: str) -> str:
    return f"<w:p {nsdecls('w')}><w:r><w:t>{text}</w:t></w:r></w:p>"


def text_box() -> str:
    space = 'xmlns:v="urn:schemas-microsoft-com:vml"'
    inner = "<w:p><w:r><w:t>Words in a text box.</w:t></w:r></w:p>"
    shape = f"<v:shape><v:textbox><w:txbxContent>{inner}</w:txbxContent></v:textbox></v:shape>"
    return f"<w:p {WORD} {space}><w:r><w:pict>{shape}</w:pict></w:r></w:p>"


def nested_tables(depth: int) -> str:
    text = paragraph("The innermost cell.")
    for _ in range(depth):
        text = f"<w:tbl {WORD}><w:tr><w:tc>{text}<w:p/></w:tc></w:tr></w:tbl>"
    return text


def linked(archive: zipfile.ZipFile) -> None:
    """A symbolic link to a file of the machine, a path that leads out, and a part with the same name twice."""
    info = zipfile.ZipInfo("word/media/secret.txt")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    archive.writestr(info, "/etc/passwd")
    archive.writestr("../../../../tmp/escaped.txt", "out")


def many_parts(archive: zipfile.ZipFile) -> None:
    for number in range(10_001):
        archive.writestr(f"word/media/{number}", "")


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "<x/>")
    return out.getvalue()


def notebook() -> bytes:
    cells = [
        {"cell_type": "markdown", "source": ["# Weather\n", "How warm was it?"]},
        {
            "cell_type": "code",
            "source": "print(max(degrees))",
            "outputs": [
                {"output_type": "stream", "text": ["41\n"]},
                {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo" * 500, "text/plain": ["<Figure>"]}},
            ],
        },
    ]
    return json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}).encode()


RUSSIAN = "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства. "
GERMAN = "Zwölf Boxkämpfer jagen Eva quer über den großen Sylter Deich. "
ONE_LINE = "function f(a){return a+1};" * 20_000

CASES: dict[str, Case] = {
    # Text in every encoding
    "wide-no-mark.txt": (lambda: "Wide text without a mark, éü.\n".encode("utf-16-le"), "ready", "without a mark, éü"),
    "wide-be-no-mark.txt": (lambda: "Wide text without a mark.\n".encode("utf-16-be"), "ready", "without a mark"),
    "wide-cyrillic.txt": (lambda: RUSSIAN.encode("utf-16"), "ready", "электрификация"),
    "utf32.txt": (lambda: "Four bytes each.".encode("utf-32"), "ready", "Four bytes each"),
    "koi8.txt": (lambda: (RUSSIAN * 5).encode("koi8-r"), "ready", "электрификация южных"),
    "dos.txt": (lambda: (RUSSIAN * 5).encode("cp866"), "ready", "электрификация южных"),
    "latin.txt": (lambda: GERMAN.encode("latin-1"), "ready", "Zwölf Boxkämpfer"),
    "windows.txt": (lambda: "It’s 5 € – “really”.".encode("cp1252"), "ready", "It’s 5 € – “really”"),
    "chinese.txt": (lambda: ("天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。" * 9).encode("gb18030"), "ready", "宇宙洪荒"),
    "taiwan.txt": (lambda: ("天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。" * 9).encode("big5"), "ready", "宇宙洪荒"),
    "korean.txt": (lambda: ("다람쥐 헌 쳇바퀴에 타고파. 나랏말싸미 듕귁에. " * 9).encode("utf-8"), "ready", "쳇바퀴"),
    "euc-jp.txt": (lambda: ("色は匂へど散りぬるを我が世誰ぞ常ならむ。" * 9).encode("euc_jp"), "ready", "散りぬるを"),
    "mixed.txt": (lambda: "Grüße\n".encode() + "Grüße\n".encode("latin-1") + b"plain\n" * 9, "ready", "plain"),
    "half-a-pair.txt": (lambda: b"\xff\xfe" + b"a\0" + b"\x00\xd8" + b"b\0", "ready", "a"),
    "persian.txt": (lambda: "متن فارسی از راست به چپ \u202bنوشته\u202c می‌شود".encode(), "ready", "فارسی"),
    "controls.txt": (lambda: b"bell \x07 escape \x1b[31m red \x0c page " * 20, "ready", "escape"),
    # Shapes of text
    "mark-only.txt": (lambda: b"\xef\xbb\xbf", "failed", "empty"),
    "blank.md": (lambda: b"\t \n" * 500, "failed", "empty"),
    "zeros.txt": (lambda: b"\0" * 5000, "failed", "binary"),
    "a-zero.txt": (lambda: b"words \0 words", "failed", "binary"),
    "one-line.txt": (lambda: b"0123456789 " * 100_000, "ready", "0123456789"),
    "newlines.txt": (lambda: b"\n" * 500_000 + b"end", "ready", "end"),
    "minified.js": (lambda: ONE_LINE.encode(), "ready", "function f(a)"),
    "deep.py": (lambda: b"x = " + b"(" * 20_000 + b")" * 20_000, "ready", "x = "),
    "laughs.xml": (lambda: b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><x>&b;</x>', "ready", "&b;"),
    # Data
    "notebook.ipynb": (notebook, "ready", "# Weather\nHow warm was it?\n\n```python\nprint(max(degrees))\n```\n\n41"),
    "no-cells.ipynb": (lambda: b'{"cells": 3}', "ready", '"cells": 3'),
    "deep.json": (lambda: b"[" * 100_000, "ready", "[[[["),
    "lines.jsonl": (lambda: b'{"a": 1}\n' * 5000, "ready", '{"a": 1}'),
    "quote.csv": (lambda: b'a,b\n"never closed, ' + b"x" * 200_000, "ready", "never closed"),
    "wide.csv": (lambda: b",".join(b"c%d" % n for n in range(5000)) + b"\n" + b"1," * 4999 + b"1\n", "ready", "c4999"),
    "ragged.csv": (lambda: b"a,b,c\n1\n1,2,3,4,5\n", "ready", "| 1 | 2 | 3 | 4 | 5 |"),
    "tabs.tsv": (lambda: b"city\theight\nDavos\t1560\n", "ready", "| Davos | 1560 |"),
    # HTML
    "scripts.html": (lambda: b"<p>Seen<script>evil()</script><style>p{}</style></p><!-- no -->", "ready", "Seen"),
    "deep.html": (lambda: b"<html>" + b"<div>" * 50_000 + b"deep inside", "ready", "deep inside"),
    "no-words.html": (lambda: b"<html><script>x()</script></html>", "failed", "no text"),
    "says-wrong.html": (lambda: b'<meta charset="klingon"><p>Words</p>', "failed", "Choose another one"),
    "tables.html": (lambda: b"<table><tr><td>" * 300 + b"in the midst", "ready", "in the midst"),
    # DOCX
    "box.docx": (lambda: word(text_box()), "ready", "Words in a text box."),
    "nested.docx": (lambda: word(nested_tables(20)), "ready", "innermost"),
    "very-nested.docx": (lambda: word(nested_tables(80)), "ready", "innermost"),
    "links.docx": (lambda: word(paragraph("Safe words."), linked), "ready", "Safe words."),
    "hebrew.docx": (lambda: word(paragraph("שלום עולם")), "ready", "שלום עולם"),
    "blank.docx": (word, "failed", "no text"),
    "no-document.docx": (lambda: word(without="word/document.xml"), "failed", "archive"),
    "no-types.docx": (lambda: word(without="[Content_Types].xml"), "failed", "damaged"),
    "crowded.docx": (lambda: word(change=many_parts), "failed", "unpacks to far more"),
    "spoiled.docx": (lambda: spoiled(samples.word(), 300), "failed", "damaged"),
    "is-a-picture.docx": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "failed", "a picture"),
    # PDF
    "form.pdf": (form_pdf, "ready", "Ada Lovelace"),
    "rotated.pdf": (lambda: plain_pdf(page=b"/Rotate 90"), "ready", "harbour"),
    "script.pdf": (lambda: plain_pdf(catalogue=b"/OpenAction<</S/JavaScript/JS(app.alert(1))>>"), "ready", "harbour"),
    "late.pdf": (lambda: plain_pdf(head=b"Mail header\n" * 20 + b"%PDF-1.4\n"), "ready", "harbour"),
    "huge-page.pdf": (lambda: plain_pdf(page=b"/UserUnit 75000"), "ready", "harbour"),
    "many-pages.pdf": (lambda: plain_pdf(count=300), "ready", "harbour"),
    "no-pages.pdf": (lambda: raw_pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages>>"]), "failed", "no "),
    "circular.pdf": (circular_pdf, "failed", "."),
    "deep-tree.pdf": (deep_pdf, "failed", "."),
    "nested.pdf": (nested_pdf, "failed", "."),
    "no-objects.pdf": (lambda: b"%PDF-1.7\n%%EOF", "failed", "damaged"),
    "cut.pdf": (lambda: samples.pdf(samples.sentences(30, n) for n in range(20))[:-3000], "failed", "damaged"),
    "spoiled.pdf": (lambda: spoiled(samples.pdf([samples.sentences(30)] * 10), 300), "failed", "."),
    "scan.pdf": (lambda: samples.scanned_pdf(), "needs OCR", "text recognition"),
    # Something else
    "sheet.xlsx": (lambda: zipped("xl/workbook.xml"), "failed", "Save the sheet as CSV"),
    "slides.pptx": (lambda: zipped("ppt/presentation.xml"), "failed", "Save it as PDF"),
    "open.odt": (lambda: zipped("mimetype", "content.xml"), "failed", "Save it as DOCX"),
    "letter.rtf": (lambda: b"{\\rtf1 Hello}", "failed", "Save it as DOCX"),
    "film.mp4": (lambda: b"\x00\x00\x00 ftypisom" + b"\0" * 99, "failed", "film"),
    "packed.txt": (lambda: b"\x1f\x8b\x08" + b"\0" * 99, "failed", "archive"),
    "noise.txt": (lambda: random.Random(1).randbytes(5000), "failed", "binary"),
}
