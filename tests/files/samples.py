"""Real files, made as they are needed."""

import io
import random
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import docx
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from PIL import Image, ImageDraw
from reportlab.lib import pagesizes
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import SimpleDocTemplate, Table

WORDS = ("harbour", "lantern", "copper", "meadow", "signal", "thread", "orchard", "winter", "engine", "river", "candle")


def sentences(count: int, seed: int = 0) -> str:
    dice = random.Random(seed)
    return " ".join(" ".join(dice.choices(WORDS, k=9)).capitalize() + "." for _ in range(count))


def pdf(pages: Iterable[str], **options: Any) -> bytes:
    """A page for each text, wrapped at 90 characters."""
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=pagesizes.A4, **options)
    for text in pages:
        line = canvas.beginText(60, 780)
        for start in range(0, len(text), 90):
            line.textLine(text[start : start + 90])
        canvas.drawText(line)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def locked_pdf(password: str) -> bytes:
    return pdf(["The vault opens at seven."], encrypt=StandardEncryption(password, ownerPassword="owner"))


def two_columns() -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=pagesizes.A4)
    for x, side in ((50, "left"), (320, "right")):
        for row in range(40):
            canvas.drawString(x, 780 - 15 * row, f"This is {side} line {row:02} of its column.")
    canvas.save()
    return out.getvalue()


def table_pdf() -> bytes:
    out = io.BytesIO()
    rows = [["City", "Height"], ["Bern", "540 m"], ["Davos", "1560 m"]]
    SimpleDocTemplate(out).build([Table(rows, style=[("GRID", (0, 0), (-1, -1), 1, "black")])])
    return out.getvalue()


def scanned_pdf(pages: int = 2) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=pagesizes.A4)
    for number in range(pages):
        picture = Image.new("L", (600, 800), 255)
        ImageDraw.Draw(picture).text((50, 50), f"A scanned page {number}", fill=0)
        canvas.drawImage(ImageReader(picture), 0, 0, 595, 842)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def bomb_pdf(bytes_: int = 3_000_000_000) -> bytes:
    """A content stream that is deflated twice, and is gigabytes long."""
    squeeze = zlib.compressobj(9)
    once = b"".join(squeeze.compress(b"q " * 5_000_000) for _ in range(bytes_ // 10_000_000)) + squeeze.flush()
    stream = zlib.compress(once, 9)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<<>>>>",
        b"<</Length %d/Filter[/FlateDecode/FlateDecode]>>stream\n%s\nendstream" % (len(stream), stream),
    ]
    out, places = b"%PDF-1.5\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    tail = b"xref\n0 5\n0000000000 65535 f \n%strailer<</Size 5/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
    return out + tail % (table, len(out))


def word() -> bytes:
    """Heading, paragraph with a tracked insertion and deletion, table, text, header, footer and a footnote."""
    document = docx.Document()
    document.add_heading("Annual report", 1)
    paragraph = document.add_paragraph("Revenue rose ")
    for tag, inner, text in (("w:ins", "w:t", "sharply "), ("w:del", "w:delText", "hardly ")):
        mark, run, words = OxmlElement(tag), OxmlElement("w:r"), OxmlElement(inner)
        mark.set(qn("w:author"), "A")
        words.text = text
        words.set(qn("xml:space"), "preserve")
        run.append(words)
        mark.append(run)
        paragraph._element.append(mark)
    paragraph.add_run("in spring.")
    table = document.add_table(rows=2, cols=2)
    for row, values in enumerate((("Year", "Profit"), ("2031", "17 million"))):
        for column, value in enumerate(values):
            table.cell(row, column).text = value
    document.add_paragraph("After the table.")
    document.sections[0].header.paragraphs[0].text = "Confidential header"
    document.sections[0].footer.paragraphs[0].text = "Printed footer"
    out = io.BytesIO()
    document.save(out)
    return _with_footnote(out.getvalue(), "Audited by Ada.")


def _with_footnote(raw: bytes, text: str) -> bytes:
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    notes = (
        f'<w:footnotes {space}><w:footnote w:id="1"><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:footnote></w:footnotes>'
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    changes = {
        "[Content_Types].xml": ("</Types>", f'<Override PartName="/word/footnotes.xml" ContentType="{kind}"/></Types>'),
        "word/_rels/document.xml.rels": (
            "</Relationships>",
            f'<Relationship Id="rId99" Type="{relation}" Target="footnotes.xml"/></Relationships>',
        ),
        "word/document.xml": (
            "in spring.</w:t></w:r>",
            'in spring.</w:t></w:r><w:r><w:footnoteReference w:id="1"/></w:r>',
        ),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            body = old.read(info).decode("utf-8", "surrogateescape")
            before, after = changes.get(info.filename, ("", ""))
            new.writestr(
                info.filename, (body.replace(before, after) if before else body).encode(errors="surrogateescape")
            )
        new.writestr("word/footnotes.xml", notes)
    return out.getvalue()


def bomb_docx() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(400):
            part.write(b" " * 1_000_000)
    return out.getvalue()


def billion_laughs_docx() -> bytes:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    xml = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha"><!ENTITY f SYSTEM "file:///etc/passwd">{levels}]>'
    xml += '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>'
    xml += "<w:t>&l9;&f;</w:t></w:r></w:p></w:body></w:document>"
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(word())) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, xml if info.filename == "word/document.xml" else old.read(info))
    return out.getvalue()
