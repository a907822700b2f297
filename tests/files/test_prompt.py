"""What a prompt has of a chat's files, with the real tokenizer: found, counted, steady."""

import random
from itertools import pairwise
from typing import Any

import pytest
import samples

from llmsvc.chat import context
from llmsvc.errors import BadRequest
from llmsvc.files.chunks import Cutter
from llmsvc.files.retrieval import Document, Library

WINDOW = 2048


def document(name: str, pages: list[str], kind: str = "pdf") -> Document:
    cutter = Cutter(kind, name)
    rows = [{"text": text, "chunks": cutter.cut(text)} for text in pages]
    row = {"id": name.encode().hex().ljust(32, "0"), "name": name, "kind": kind}
    return Document(row, rows, len(name))


class Talk:
    """A chat whose prompts are built as the service does it."""

    def __init__(self, tokenizer: Any, library: Library, window: int = WINDOW, system: str = "") -> None:
        self.tokenizer, self.library, self.window, self.system = tokenizer, library, window, system
        self.rows: list[dict[str, Any]] = []

    def ask(self, text: str, answer: str = "I see.") -> context.Prompt:
        depth = len(self.rows) + 1
        prompt = context.build(
            self.tokenizer, self.window, self.system, reversed(self.rows), text, "", depth, self.library
        )
        user = {"role": "user", "content": text, "depth": depth, "context": {}, "sources": []}
        said = {"context": prompt.ledger.row(), "sources": list(prompt.sources)}
        self.rows += [user, {"role": "assistant", "content": answer, "depth": depth + 1, **said}]
        return prompt

    def words(self, prompt: context.Prompt) -> str:
        return self.tokenizer.decode(prompt.tokens)


def checked(talk: Talk, prompt: context.Prompt, text: str) -> str:
    """What holds for every prompt; its text."""
    ledger, words = prompt.ledger, talk.words(prompt)
    assert ledger.system + ledger.files + ledger.history + ledger.excerpts + ledger.message == ledger.prompt
    assert ledger.prompt == len(prompt.tokens) <= talk.window * 3 // 4
    assert min(ledger.system, ledger.files, ledger.history, ledger.excerpts, ledger.message) >= 0
    assert talk.system in words
    assert text in words
    return words


def test_without_files_nothing_changes(tokenizer) -> None:
    talk, plain = Talk(tokenizer, Library()), Talk(tokenizer, Library(), system="Be brief.")
    for text in ("Hello", "And now?"):
        prompt = talk.ask(text)
        assert (prompt.ledger.files, prompt.ledger.excerpts, prompt.sources) == (0, 0, ())
        chat = [{"role": row["role"], "content": row["content"]} for row in talk.rows[:-1]]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert list(prompt.tokens) == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    checked(plain, plain.ask("Hi"), "Hi")


def test_a_small_file_is_there_whole_and_before_the_talk(tokenizer) -> None:
    talk = Talk(
        tokenizer, Library([document("notes.md", ["The key is under the mat."], "markdown")]), system="Be brief."
    )
    words = checked(talk, talk.ask("Where is the key?"), "Where is the key?")
    assert words.index("Be brief.") < words.index("under the mat") < words.index("Where is the key?")
    second = talk.ask("Really?")
    assert second.ledger.files > 0
    assert [source["name"] for source in second.sources] == ["notes.md"]


def test_a_file_that_was_whole_is_found_when_it_is_searched(tokenizer) -> None:
    note = document("notes.md", ["The key is under the mat."], "markdown")
    talk = Talk(tokenizer, Library([note]))
    assert talk.ask("Where is the key?").ledger.files > 0
    large = [document(f"{number}.pdf", [samples.sentences(40, number)] * 40) for number in range(2)]
    talk.library = Library([note, *large])
    prompt = talk.ask("Where is the key?")
    assert prompt.ledger.files == 0
    assert "under the mat" in checked(talk, prompt, "Where is the key?")


@pytest.mark.parametrize("seed", range(4))
def test_needles_are_found_with_their_page_or_the_miss_is_said(tokenizer, seed: int) -> None:
    """Facts in files of half to ten times the window."""
    dice = random.Random(seed)
    found = trials = 0
    for factor in (0.5, 2, 5, 10):
        count = max(2, int(factor * WINDOW / 420))
        facts = {dice.randrange(count): f"{dice.choice(samples.WORDS)}-{dice.randrange(10**6)}" for _ in range(6)}
        pages = [samples.sentences(30, 1000 * seed + n) for n in range(count)]
        for page, word in facts.items():
            pages[page] += f" The password of vault {page} is {word}. " + samples.sentences(4, page)
        library = Library([document("long.pdf", pages), document("other.pdf", [samples.sentences(9, seed)])])
        for page, word in facts.items():
            talk = Talk(tokenizer, library, system="You are exact.")
            text = f"What is the password of vault {page}?"
            prompt = talk.ask(text)
            words = checked(talk, prompt, text)
            trials += 1
            if word in words:
                found += 1
                whole = any(source.get("whole") for source in prompt.sources if source["name"] == "long.pdf")
                assert whole or any(source["page"] == page + 1 for source in prompt.sources)
    assert found >= 0.95 * trials


def test_the_file_that_a_question_names_comes_first(tokenizer) -> None:
    """Many files say nearly the same, and the one that is meant says it in the fewest words of the question."""
    said = "How warm the boiler may get is told here: the boiler gets as warm as {}. "
    files = {f"boiler{n}.pdf": [said.format(f"{40 + n} degrees") * 9 + samples.sentences(60, n)] for n in range(9)}
    files["data.boiler4.pdf.pdf"] = [said.format("nobody knows") * 9 + samples.sentences(60, 9)]
    files["boiler4.pdf"] = [samples.sentences(90, n) for n in range(9)] + ["The boiler: 44 at most."]
    library = Library([document(name, pages) for name, pages in files.items()])
    for text in ("And in Boiler4.pdf, then?", "请总结boiler4.pdf里的内容"):
        assert [each.name for each in library.named(text)] == ["boiler4.pdf"]
    plain, named = "How warm may the boiler get?", "How warm may the boiler of boiler4.pdf get?"
    assert "44 at most" not in Talk(tokenizer, library).words(Talk(tokenizer, library).ask(plain))
    prompt = Talk(tokenizer, library).ask(named)
    assert "44 at most" in checked(Talk(tokenizer, library), prompt, named)


def test_a_question_about_everything_gets_the_whole_file_or_is_told(tokenizer) -> None:
    pages = [f"{samples.sentences(6, n)} Rule {n}: never touch lever {n}." for n in range(10)]
    filler = document("filler.md", [samples.sentences(40, 1)], "markdown")
    fits = Talk(tokenizer, Library([filler, document("rules.pdf", pages)]), window=4096)
    words = checked(fits, fits.ask("List all rules of rules.pdf"), "List all rules")
    assert all(f"lever {n}." in words for n in range(10))
    small = Talk(tokenizer, Library([document("rules.pdf", pages * 20)]))
    prompt = small.ask("List all rules of rules.pdf")
    checked(small, prompt, "List all rules")
    assert any("rules.pdf does not fit as a whole" in note for note in prompt.ledger.left_out)


def test_the_newest_message_is_never_cut(tokenizer) -> None:
    library = Library([document("notes.md", [samples.sentences(30)], "markdown")])
    text = samples.sentences(130, 3)
    talk = Talk(tokenizer, library)
    prompt = talk.ask(text)
    checked(talk, prompt, text)
    assert prompt.ledger.files == 0
    assert any("notes.md does not fit beside" in note for note in prompt.ledger.left_out)
    with pytest.raises(BadRequest, match="Shorten it"):
        talk.ask(samples.sentences(400, 3))


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_a_long_talk_over_a_long_file_keeps_its_beginning(tokenizer) -> None:
    """From the second turn on, what the engine must read anew is what is new, but where the talk had to be cut."""
    pages = [f"{samples.sentences(20, n)} The gauge of engine {n} shows {7 * n} bar." for n in range(60)]
    talk = Talk(tokenizer, Library([document("long.pdf", pages)]), window=8192)
    answer = "The gauge shows what the file says, as far as I can see from the passage on that engine."
    prompts = [talk.ask(f"What does the gauge of engine {n} show?", answer) for n in range(20)]
    for n, prompt in enumerate(prompts):
        assert f"of engine {n} shows {7 * n} bar" in checked(talk, prompt, f"engine {n} show?")
    shares = []
    for old, new in pairwise(prompts):
        before_the_message = (
            new.ledger.prompt - new.ledger.excerpts - new.ledger.message - len(tokenizer(answer)["input_ids"])
        )
        shares.append(common(old.tokens, new.tokens) / before_the_message)
    assert sorted(shares)[3] > 0.95  # it was cut at most three times
    assert sum(shares) / len(shares) > 0.85


def test_a_removed_file_is_gone_from_the_next_prompt_and_what_stood_before_it_stays(tokenizer) -> None:
    parts = [document(f"{name}.md", [f"The {name} is secret number {n}."], "markdown") for n, name in enumerate("abc")]
    big = document("long.pdf", [samples.sentences(30, n) + " The valve is turquoise." for n in range(20)])
    talk = Talk(tokenizer, Library([*parts, big]))
    before = talk.ask("What colour has the valve?")
    assert "turquoise" in talk.words(before)
    talk.library = Library([parts[0], parts[2], big])
    after = talk.ask("And now?")
    assert "secret number 1" not in talk.words(after)
    kept = talk.words(before).split("--- file b.md")[0]
    assert common(before.tokens, after.tokens) >= len(tokenizer(kept)["input_ids"]) - 1
    talk.library = Library(parts)
    assert "turquoise" not in talk.words(talk.ask("Still?"))


def test_unread_files_are_named(tokenizer) -> None:
    library = Library([document("a.md", ["Words."], "markdown")], ["scan.pdf was not read (needs OCR)"])
    assert Talk(tokenizer, library).ask("Hi").ledger.left_out == ("scan.pdf was not read (needs OCR)",)
