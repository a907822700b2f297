"""Chunks leave nothing out, and know what stands above them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsvc.files.chunks import LONGEST, Cutter
from llmsvc.files.retrieval import Document, Library, words

ROOT = Path(__file__).resolve().parents[2]
CODE = {
    "a.py": "class A:\n    def go(self):\n        return 1\n\n\ndef b():\n    return 2\n",
    "a.js": "class A {\n  go() { return 1; }\n}\nfunction b() { return 2; }\n",
    "a.ts": "interface A { x: number }\nclass C { go(): void {} }\nfunction b(): number { return 2 }\n",
    "a.java": "class A {\n  void go() { }\n  int b() { return 2; }\n}\n",
    "a.go": "package m\n\ntype A struct{}\n\nfunc (a A) go1() {}\n\nfunc b() int { return 2 }\n",
    "a.rs": "struct A;\nimpl A { fn go(&self) {} }\nfn b() -> i32 { 2 }\n",
    "a.c": "struct A { int x; };\nint b(void) { return 2; }\n",
    "a.cpp": "class A { void go(); };\nint A::b() { return 2; }\n",
    "a.rb": "class A\n  def go\n  end\nend\n\ndef b\nend\n",
}


def heads(kind: str, name: str, text: str) -> list[str]:
    return [head for _, _, head in Cutter(kind, name).cut(text)]


@pytest.mark.parametrize("name", CODE)
def test_code_is_cut_by_its_definitions(name: str) -> None:
    assert set(heads("code", name, CODE[name])) & {"A", "A.go", "C", "C.go", "A::b", "b"}


def test_a_method_has_its_class_above_it() -> None:
    body = "".join(f"        step_{n} = {n}  # a line that takes some room here\n" for n in range(30))
    text = f"class Engine:\n    def start(self):\n{body}\n    def stop(self):\n{body}"
    assert {"Engine.start", "Engine.stop"} <= set(heads("code", "a.py", text))


def test_headings_and_table_heads_stand_above() -> None:
    rows = "".join(f"| {n} | value {n} of the table |\n" for n in range(120))
    text = f"# Guide\n\nIntro.\n\n## Setup\n\nFirst.\n\n| no | what |\n| --- | --- |\n{rows}\n## End\n\nDone.\n"
    cutter = Cutter("markdown", "g.md")
    found = [head for _, _, head in cutter.cut(text)]
    assert found[0] == "Guide"
    assert "Guide › Setup › | no | what |" in found
    assert found[-1] == "Guide › End"
    assert cutter.cut("On the next page.")[0][2] == "Guide › End"


def test_comments_in_fenced_code_are_no_headings() -> None:
    text = "# Guide\n\n```sh\n# install it\npip install x\n```\n\n## Use\n\nRun it.\n"
    assert heads("markdown", "g.md", text) == ["Guide", "Guide › Use"]


def test_ruled_lines_are_headings() -> None:
    text = "Title\n=====\n\nIntro.\n\nFirst part\n----------\n\nOne.\n\nSecond part\n-----------\n\na b\n=== ===\n1 2\n"
    assert heads("text", "g.rst", text) == ["Title", "Title › First part", "Title › Second part"]


def test_a_short_function_keeps_its_own_name() -> None:
    text = "class A:\n    @property\n    def one(self):\n        return 1\n\n    def two(self):\n        return 2\n"
    assert heads("code", "a.py", text) == ["A.one", "A.two"]


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab\n |#.é\t"), max_size=4000), st.sampled_from(["markdown", "pdf", "code"]))
def test_nothing_but_blank_space_is_left_out(text: str, kind: str) -> None:
    end = 0
    for start, stop, _ in Cutter(kind, "x.py" if kind == "code" else "x").cut(text):
        assert not text[end:start].strip()
        assert 0 < stop - start <= 3 * LONGEST
        end = stop
    assert not text[end:].strip()


def test_words() -> None:
    assert sorted(words("The running engines")) == sorted(words("engine runs"))
    assert {"maxtoken", "max", "token"} <= set(words("maxTokens"))
    assert "日本" in words("日本語")


def test_other_words_for_the_same_are_found() -> None:
    pages = ["Bread is sold at the harbour.", "The harbour tax is nine coins.", "The vessel left the harbour at dawn."]
    row = {"id": "0" * 32, "name": "notes.pdf", "kind": "pdf"}
    chunks = [{"text": page, "chunks": Cutter("pdf", "notes.pdf").cut(page)} for page in pages]
    found = Library([Document(row, chunks)]).search("When did the ship sail out of the harbour?", 3)
    assert found[0].page == 3


def test_real_code_is_found_by_what_it_does() -> None:
    documents = []
    for order, path in enumerate(sorted((ROOT / "llmsvc" / "chat").glob("*.py"))):
        text = path.read_text()
        row = {"id": f"{order:032x}", "name": path.name, "kind": "code"}
        documents.append(Document(row, [{"text": text, "chunks": Cutter("code", path.name).cut(text)}], order))
    found = Library(documents).search("Where are sessions purged that can no longer be restored?", 3)
    assert "sessions.py" in [chunk.file.name for chunk in found]
    assert Library([]).search("anything", 3) == []
    assert Library(documents).search("zzzzqqq", 3) == []
