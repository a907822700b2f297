"""Whether the passage that answers a question is in the prompt, over documents that Python ships.

Two sets. `reference`: the language reference of ``pydoc_data.topics`` as one file of pages, with questions worded by
hand and the words that answer them. `code`: modules of the standard library without their docstrings; the question is
the docstring's first sentence, and the answer the line that begins the function that it stood in. Both beside plain
BM25: windows of 900 characters, words as they are, the best five. Prints a table and writes
``bench/results/retrieval.json``.
"""

import ast
import importlib
import re
import sys
import time
from pathlib import Path
from pydoc_data import topics
from typing import Any

import bm25s

from bench.report import write_results
from llmsvc.chat import context
from llmsvc.files.chunks import Cutter
from llmsvc.files.retrieval import Document, Library
from llmsvc.models.catalogue import SMOLLM2, Catalogue
from llmsvc.models.download import fetch

ROOT = Path(__file__).resolve().parents[1]
WINDOW = 8192
Asked = tuple[str, str, str]
"""A question, words of the passage that answers it, and the symbol that it belongs to, if any."""
_MODULES = """
argparse shutil pathlib tempfile zipfile tarfile json.decoder csv configparser logging sched heapq bisect
fractions statistics random textwrap difflib ipaddress mailbox imaplib ftplib cmd code queue threading selectors
"""

QUESTIONS = {
    "How does a class answer for an attribute that is not found?": "Called when the default attribute access fails",
    "Which clause of a loop runs only if no break happened?": 'skipping the optional "else" clause',
    "Can a function declare that a variable belongs to the enclosing scope?": "nearest enclosing scope",
    "What does a single star before a parameter collect?": "receiving any excess positional parameters",
    "Are default parameter values computed at each call?": "evaluated from left to right when the function definition",
    "How can I skip to the next cycle of the nearest enclosing loop?": "continues with the next cycle",
    "Which exception is raised when an assertion does not hold?": "raise AssertionError",
    "What is returned by a function that has a return without expression?": '"None" is substituted',
    "How do chained comparisons work?": "can be chained arbitrarily",
    "What does the walrus operator do?": "assignment expression",
    "How is a context manager's cleanup method called?": "__exit__()",
    "What is the method resolution order stored in?": "method resolution order",
    "How are objects compared for identity?": "test for an object’s identity",
    "How many times is the finally clause executed on the way out?": "finally",
    "How do I make a class callable?": "Called when the instance is “called” as a function",
    "Which method makes an object usable as a dictionary key?": 'Called by built-in function "hash()"',
    "How is a string made lower case for caseless matching?": "casefold",
    "How do I remove a prefix of a string?": "removeprefix",
    "How do I split a string at the first occurrence only?": "Split the string at the first occurrence of",
    "How do I check whether every character is a digit?": "isdigit",
    "How can I pad a number with zeros on the left?": "zfill",
    "How do I catch several exceptions in a group?": "except*",
    "What does raise from do?": "exception chaining",
    "Which names does importing a star bring?": "__all__",
    "What are soft keywords?": "Soft Keywords",
    "How is the format specification for a thousands separator written?": "thousands separator",
    "What does the exclamation mark r do in a format string?": "repr()",
    "How do slots save memory?": "__slots__",
    "What is a descriptor's get method for?": "get the attribute of the owner class",
    "How do I set a breakpoint in the debugger?": "tbreak",
    "How do I step into a function in the debugger?": "s(tep)",
    "How can I insert an item into a list at an index?": "insert(i, x)",
    "How do I reverse a list in place?": "reverse()",
    "What does the power operator bind tighter than?": "binds more tightly than unary operators",
    "What is the value of an empty container in a condition?": "empty sequences and collections",
    "How are integers divided with rounding down?": "floor division",
    "How are imaginary numbers written?": "imaginary",
    "How do I delete a name?": "Deletion of a name",
    "Which object signals an unimplemented operation?": "NotImplemented",
    "Which statement does nothing?": "null operation",
    "How does a class private name get mangled?": "mangl",
    "How do I get a default when a key is missing in a dictionary?": "Return the value for",
    "How is a dictionary merged with another by the bar operator?": "merged keys and values",
    "What does an asynchronous for loop call?": "__anext__",
    "How is a lambda's body restricted?": "cannot contain statements",
    "Which scopes do class blocks leave out of name resolution?": "does not extend to the code blocks",
    "How are arguments unpacked with two stars in a call?": "**expression",
}


def reference() -> tuple[list[Document], list[Asked]]:
    """One file whose pages are topics of the language reference."""
    cutter, pages, row = Cutter("pdf", "reference.pdf"), [], {"id": "r", "name": "reference.pdf", "kind": "pdf"}
    for _, text in sorted(topics.topics.items()):
        pages.append({"text": text, "chunks": cutter.cut(text)})
    whole = _plain("\n".join(page["text"] for page in pages))
    asked = [(question, answer, "") for question, answer in QUESTIONS.items() if _plain(answer) in whole]
    for question, answer in QUESTIONS.items():
        if _plain(answer) not in whole:
            print(f"Not in this Python's reference: {question}")
    return [Document(row, pages)], asked


def code() -> tuple[list[Document], list[Asked]]:
    """Modules without docstrings; (docstring, the function's first lines, its name)."""
    documents, asked = [], []
    for order, name in enumerate(_MODULES.split()):
        path = Path(importlib.import_module(name).__file__ or "")
        text, found = _undocumented(path.read_text())
        chunks = Cutter("code", path.name).cut(text)
        row = {"id": name, "name": path.name, "kind": "code"}
        documents.append(Document(row, [{"text": text, "chunks": chunks}], order))
        asked += [(f"{doc} ({path.name})", body, symbol) for doc, body, symbol in found]
    return documents, asked[:: max(1, len(asked) // 150)]


def _undocumented(source: str) -> tuple[str, list[Asked]]:
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


def _plain(text: str) -> str:
    return " ".join(text.split())


def ours(tokenizer: Any, documents: list[Document], asked: list[Asked]) -> dict[str, float]:
    library = Library(documents)
    start = time.perf_counter()
    library.search("anything", 1)
    built = time.perf_counter() - start
    hits = places = tokens = 0
    start = time.perf_counter()
    for question, answer, symbol in asked:
        prompt = context.build(tokenizer, WINDOW, "", iter(()), question, library=library)
        tokens += prompt.ledger.excerpts
        quoted = [(source, _quoted(library, source)) for source in prompt.sources]
        heads = [source["head"] for source, text in quoted if _plain(answer) in _plain(text)]
        hits += bool(heads)
        places += any(not symbol or symbol.startswith(head) or head.startswith(symbol) for head in heads)
    each = (time.perf_counter() - start) / len(asked)
    return {
        "in_prompt": hits / len(asked),
        "place_right": places / max(1, hits),
        "tokens": tokens / len(asked),
        "index_s": built,
        "prompt_ms": each * 1e3,
    }


def _quoted(library: Library, source: dict[str, Any]) -> str:
    document = library.find(source["file_id"])
    assert document is not None
    return document.text if source.get("whole") else document.pages[source["page"] - 1][source["start"] : source["end"]]


def plain(tokenizer: Any, documents: list[Document], asked: list[Asked], best: int = 5) -> dict[str, float]:
    text = "\n".join(page for document in documents for page in document.pages)
    windows = [text[start : start + 900] for start in range(0, len(text), 900)]
    index = bm25s.BM25(corpus=windows)
    index.index(bm25s.tokenize(windows, show_progress=False), show_progress=False)
    hits = tokens = 0
    for question, answer, _ in asked:
        found, _ = index.retrieve(bm25s.tokenize(question, show_progress=False), k=best, show_progress=False)
        hits += any(_plain(answer) in _plain(window) for window in found[0])
        tokens += sum(len(tokenizer(window)["input_ids"]) for window in found[0])
    return {"in_prompt": hits / len(asked), "tokens": tokens / len(asked)}


def main() -> None:
    from transformers import AutoTokenizer

    models = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "data") / "models"
    tokenizer = AutoTokenizer.from_pretrained(fetch(Catalogue(models), SMOLLM2, lambda *_: None))
    results: dict[str, Any] = {}
    for name, (documents, asked) in {"reference": reference(), "code": code()}.items():
        chunks = sum(len(document.chunks) for document in documents)
        results[name] = {"questions": len(asked), "chunks": chunks}
        results[name] |= {"ours": ours(tokenizer, documents, asked), "plain": plain(tokenizer, documents, asked)}
        row = results[name]
        print(f"{name}: {len(asked)} questions, {chunks} chunks")
        for way in ("ours", "plain"):
            print(f"  {way:6}", "  ".join(f"{key} {value:.3g}" for key, value in row[way].items()))
    write_results("retrieval", results)


if __name__ == "__main__":
    main()
