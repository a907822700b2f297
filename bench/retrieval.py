"""Whether the passage that answers a question is in the prompt, and named rightly, over documents that packages ship.

Seven sets, each the files of one chat. ``reference``: Python's language reference (``pydoc_data.topics``) as one file
of pages. ``manuals``: the descriptions that come with ten packages, Markdown and reStructuredText. ``code``: the
sources of starlette, httpx and tinydb. Their questions are worded by hand (``bench/questions.txt``), half of them were
held out. ``undocumented``: modules of the standard library without their docstrings, the question being the docstring's
first sentence, which is harder than what users have. ``descriptions`` of 19 packages, ``sources`` of jinja2, uvicorn
and pdfplumber, and ``libraries``, those of click, anyio and filelock, were asked about by somebody who knew the files
only. All beside plain BM25: windows of 900 characters, words as they are, the best five. Each file's vectors are made
before it is asked about, which takes some minutes.
``--misses`` prints what was not found. Writes ``bench/results/retrieval.json``.
"""

import argparse
import ast
import importlib
import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import metadata
from pathlib import Path
from pydoc_data import topics
from typing import Any

import bm25s
from markdown_it import MarkdownIt

from bench.report import write_results
from llmsvc.chat import context
from llmsvc.files.chunks import Cutter
from llmsvc.files.meaning import Meaning
from llmsvc.files.retrieval import Document, Library
from llmsvc.models.catalogue import MINILM, SMOLLM2, Catalogue
from llmsvc.models.download import fetch

ROOT = Path(__file__).resolve().parents[1]
WINDOW = 8192
PROSE = {"reference", "manuals", "descriptions"}
_MARKDOWN = ("orjson", "pdfplumber", "openai", "pypdfium2", "bm25s")
_STRUCTURED = ("tqdm", "regex", "psutil", "pytz", "sortedcontainers")
_DESCRIPTIONS = """
charset-normalizer torch python-dotenv fastapi ruff rich transformers accelerate wordllama gradio sse-starlette
annotated-types typer pandas huggingface_hub tree-sitter bitsandbytes tokenizers attrs
"""
_PACKAGES = ("starlette", "httpx", "tinydb")
_SOURCES = ("jinja2", "uvicorn", "pdfplumber")
_LIBRARIES = ("click", "anyio", "filelock")
_MODULES = """
argparse shutil pathlib tempfile zipfile tarfile json.decoder csv configparser logging sched heapq bisect
fractions statistics random textwrap difflib ipaddress mailbox imaplib ftplib cmd code queue threading selectors
"""


@dataclass
class Question:
    text: str
    answer: str
    """Words that only a passage with the answer has, their blanks reduced."""
    places: set[str]
    """The page, heading or symbol of each place where they stand."""


def documents(kind: str, files: dict[str, list[str]]) -> list[Document]:
    found = []
    for order, (name, pages) in enumerate(files.items()):
        cutter = Cutter(kind, name)
        rows = [{"text": page, "chunks": cutter.cut(page)} for page in pages]
        found.append(Document({"id": f"{order:032x}", "name": name, "kind": kind}, rows, order))
    return found


def reference() -> list[Document]:
    return documents("pdf", {"reference.pdf": [text for _, text in sorted(topics.topics.items())]})


def manuals() -> list[Document]:
    texts = {name: str(metadata(name).get_payload()) for name in (*_MARKDOWN, *_STRUCTURED)}
    found = documents("markdown", {f"{name}.md": [texts[name]] for name in _MARKDOWN})
    found += documents("text", {f"{name}.rst": [texts[name]] for name in _STRUCTURED})
    return [Document({"id": f"{n:032x}", "name": d.name, "kind": d.kind}, rows(d), n) for n, d in enumerate(found)]


def rows(document: Document) -> list[dict[str, Any]]:
    spans = [(chunk.start, chunk.end, chunk.head) for chunk in document.chunks]
    return [{"text": document.pages[0], "chunks": spans}]


def descriptions() -> list[Document]:
    return documents("markdown", {f"{name}.md": [str(metadata(name).get_payload())] for name in _DESCRIPTIONS.split()})


def code(packages: tuple[str, ...]) -> list[Document]:
    files: dict[str, list[str]] = {}
    for package in packages:
        folder = Path(importlib.import_module(package).__file__ or "").parent
        for path in sorted(folder.rglob("*.py")):
            files["_".join((package, *path.relative_to(folder).parts))] = [path.read_text()]
    return documents("code", {name: text for name, text in files.items() if text[0].strip()})


def asked(section: str, found: list[Document]) -> list[Question]:
    """The section's questions; says which have no answer in the versions that are installed."""
    text = Path(__file__).with_name("questions.txt").read_text()
    lines = re.split(r"^\[(\w+)\]\n", text, flags=re.MULTILINE)
    pairs = [line.split(" => ", 1) for line in dict(zip(lines[1::2], lines[2::2], strict=True))[section].split("\n")]
    questions = []
    for question, answer in (pair for pair in pairs if len(pair) == 2):
        if places := {place for document in found for place in standing(document, plain(answer))}:
            questions.append(Question(question, plain(answer), places))
        else:
            print(f"not in what is installed: {question}")
    return questions


def standing(document: Document, answer: str) -> list[str]:
    """Where words stand, found without our chunks: page, heading or symbol."""
    spaced = re.compile(r"\s+".join(map(re.escape, answer.split())))
    found = []
    for number, page in enumerate(document.pages, 1):
        for match in spaced.finditer(page):
            line = page.count("\n", 0, match.start())
            if document.kind == "pdf":
                found.append(f"p.{number}")
            elif document.kind == "code":
                found.append(symbol(ast.parse(page), line + 1))
            else:
                above = [title for at, title in headings(document.kind, page) if at <= line]
                found.append(above[-1] if above else "")
    return found


def headings(kind: str, text: str) -> list[tuple[int, str]]:
    """Line and title of each."""
    lines = text.split("\n")
    if kind == "markdown":
        tokens = MarkdownIt().parse(text)
        return [(t.map[0], lines[t.map[0]].strip("# ")) for t in tokens if t.type == "heading_open" and t.map]
    ruled = re.compile(r"([=\-~^+.*\"])\1{2,}\s*")
    return [
        (at, lines[at].strip())
        for at in range(len(lines) - 1)
        if ruled.fullmatch(lines[at + 1])
        and re.match(r"[^\s|>]", lines[at])
        and not ruled.fullmatch(lines[at])
        and len(lines[at + 1].strip()) >= len(lines[at].strip())
        and (at == 0 or not lines[at - 1].strip() or ruled.fullmatch(lines[at - 1]))
    ]


def symbol(node: Any, line: int, path: str = "") -> str:
    for child in ast.iter_child_nodes(node):
        first = min([getattr(child, "lineno", 0), *(d.lineno for d in getattr(child, "decorator_list", []))])
        if first <= line <= (getattr(child, "end_lineno", 0) or 0):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
            return symbol(child, line, f"{path}.{child.name}".strip(".") if named else path)
    return path


def undocumented() -> tuple[list[Document], list[Question]]:
    """Modules without docstrings, and questions from these; the answer is the line that begins the function."""
    files: dict[str, list[str]] = {}
    questions = []
    for name in _MODULES.split():
        path = Path(importlib.import_module(name).__file__ or "")
        text, found = _stripped(path.read_text())
        files[path.name] = [text]
        questions += [Question(f"{doc} ({path.name})", plain(line), {symbol}) for doc, line, symbol in found]
    return documents("code", files), questions[:: max(1, len(questions) // 150)]


def _stripped(source: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Without docstrings; (first sentence of a docstring, the function's first line, its name)."""
    lines, tree, found = source.splitlines(), ast.parse(source), []
    cut: set[int] = set()

    def visit(node: Any, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                name = f"{path}.{child.name}" if path else child.name
                doc = ast.get_docstring(child)
                if doc and len(child.body) > 1:
                    expression = child.body[0]
                    cut.update(range(expression.lineno, (expression.end_lineno or 0) + 1))
                    first = re.split(r"(?<=[.!?])\s|\n\n", " ".join(doc.split()))[0]
                    if (
                        isinstance(child, ast.FunctionDef)
                        and len(first.split()) > 5
                        and source.count(line := lines[child.lineno - 1].strip()) == 1
                    ):
                        found.append((first, line, name))
                visit(child, name)

    visit(tree, "")
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in cut), found


def plain(text: str) -> str:
    return " ".join(text.split())


def ours(tokenizer: Any, library: Library, questions: list[Question]) -> dict[str, Any]:
    start = time.perf_counter()
    library.search("anything", 1)
    built = time.perf_counter() - start
    found, placed, tokens, misses = [], [], 0, []
    start = time.perf_counter()
    for question in questions:
        prompt = context.build(tokenizer, WINDOW, "", iter(()), question.text, library=library)
        tokens += prompt.ledger.excerpts
        holding = [source for source in prompt.sources if question.answer in plain(quoted(library, source))]
        found.append(bool(holding))
        placed.append(any(_right(source, question.places) for source in holding))
        if not placed[-1]:
            named = [source["place"] for source in holding]
            misses.append(f"{question.text}  {question.places} {'named ' + str(named) if holding else ''}")
    each = (time.perf_counter() - start) / len(questions)
    return {
        "in_prompt": share(found),
        "in_prompt_tuned": share(found[::2]),
        "in_prompt_held_out": share(found[1::2]),
        "place_right": share(right for right, there in zip(placed, found, strict=True) if there),
        "tokens": tokens / len(questions),
        "index_s": built,
        "prompt_ms": each * 1e3,
        "misses": misses,
    }


def _right(source: dict[str, Any], places: set[str]) -> bool:
    """The page, or the heading or symbol or one that is around or within it."""
    named = source["place"]
    return source.get("whole", False) or any(
        place[:60] == named or f"{place}.".startswith(f"{named}.") or f"{named}.".startswith(f"{place}.")
        for place in places
    )


def quoted(library: Library, source: dict[str, Any]) -> str:
    document = library.find(source["file_id"])
    assert document is not None
    return document.text if source.get("whole") else document.pages[source["page"] - 1][source["start"] : source["end"]]


def share(values: Any) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def removed(tokenizer: Any, library: Library, questions: list[Question]) -> int:
    """Prompts that have anything of a file that was removed after it had been used for the message before."""
    count = 0
    for question in questions[::5]:
        prompt = context.build(tokenizer, WINDOW, "", iter(()), question.text, library=library)
        gone = prompt.sources[0]["file_id"]
        left = Library([document for document in library.documents if document.id != gone], (), library.meaning)
        said = {"context": prompt.ledger.row(), "sources": list(prompt.sources)}
        older = [
            {"role": "assistant", "content": "Yes.", "depth": 2, **said},
            {"role": "user", "content": question.text, "depth": 1, "context": {}, "sources": []},
        ]
        after = context.build(tokenizer, WINDOW, "", iter(older), question.text, depth=3, library=left)
        name = prompt.sources[0]["name"]
        count += any(source["file_id"] == gone for source in after.sources) or f"[{name}" in tokenizer.decode(
            after.tokens
        )
    return count


def peer(tokenizer: Any, library: Library, questions: list[Question], best: int = 5) -> dict[str, float]:
    text = "\n".join(page for document in library.documents for page in document.pages)
    windows = [text[start : start + 900] for start in range(0, len(text), 900)]
    index = bm25s.BM25(corpus=windows)
    index.index(bm25s.tokenize(windows, show_progress=False), show_progress=False)
    hits = tokens = 0
    for question in questions:
        tokenized = bm25s.tokenize(question.text, show_progress=False)
        found, _ = index.retrieve(tokenized, k=best, show_progress=False)
        hits += any(question.answer in plain(window) for window in found[0])
        tokens += sum(len(tokenizer(window)["input_ids"]) for window in found[0])
    return {"in_prompt": hits / len(questions), "tokens": tokens / len(questions)}


def meant(meaning: Meaning, found: list[Document], folder: Path) -> float:
    """Make the vectors of each file; how long that took."""
    start = time.perf_counter()
    for document in found:
        document.vectors = folder / document.id
        meaning.want(document.id, partial(lambda document: document, document))
    while any(meaning.of(document) is None for document in found):
        time.sleep(0.1)
    return time.perf_counter() - start


def sets() -> dict[str, tuple[list[Document], list[Question]]]:
    found = {"reference": reference(), "manuals": manuals(), "code": code(_PACKAGES)}
    found |= {"descriptions": descriptions(), "sources": code(_SOURCES), "libraries": code(_LIBRARIES)}
    return {**{name: (docs, asked(name, docs)) for name, docs in found.items()}, "undocumented": undocumented()}


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, default=ROOT / "data", help="a data directory with the model")
    parser.add_argument("--misses", action="store_true")
    options = parser.parse_args()
    catalogue = Catalogue(options.data / "models")
    tokenizer = AutoTokenizer.from_pretrained(fetch(catalogue, SMOLLM2, lambda *_: None))
    encoder = fetch(catalogue, MINILM, lambda *_: None)
    results: dict[str, Any] = {}
    for name, (found, questions) in sets().items():
        with tempfile.TemporaryDirectory() as folder:
            meaning = Meaning(lambda _: encoder)
            seconds = meant(meaning, found, Path(folder))
            library = Library(found, (), meaning)
            row = results[name] = {"questions": len(questions), "files": len(found)}
            row["chunks"] = sum(len(document.chunks) for document in found)
            row["vectors_s"] = seconds
            row["ours"], row["plain"] = ours(tokenizer, library, questions), peer(tokenizer, library, questions)
            if len(found) > 1:
                row["removed_files_in_prompts"] = removed(tokenizer, library, questions)
        misses = row["ours"].pop("misses")
        print(f"{name}: " + ", ".join(f"{value} {key}" for key, value in row.items() if isinstance(value, int)))
        for way in ("ours", "plain"):
            print(f"  {way:6}", "  ".join(f"{key} {value:.3g}" for key, value in row[way].items()))
        for miss in misses if options.misses else ():
            print("   ", miss)
    for kind, names in {"documents": PROSE, "code": results.keys() - PROSE}.items():
        of_kind = [results[name] for name in names]
        right = sum(round(row["questions"] * row["ours"]["in_prompt"]) for row in of_kind)
        print(f"{kind}: {right} of {sum(row['questions'] for row in of_kind)} answers in the prompt")
    write_results("retrieval", results)


if __name__ == "__main__":
    main()
