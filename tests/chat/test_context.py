"""What stands in a prompt, what does not, and whether its ledger says so; with the real tokenizer."""

import random
from collections import Counter
from typing import Any

import pytest
import samples
from talks import Talk, checked, common, document

from llmsvc.chat.past import Attics
from llmsvc.chat.summaries import clean_summary
from llmsvc.engine import FinishReason
from llmsvc.files.retrieval import Library

PLACES = ("an old turn", "a small file", "a large file", "one of several files")


def haystack(dice: random.Random, tokenizer: Any, seed: int) -> tuple[Talk, str, str, str]:
    """A chat of 0.5 to 10 times the window with one fact somewhere; the question, its answer, and where it stands."""
    window, place = dice.choice((1024, 2048, 4096)), dice.choice(PLACES)
    factor = dice.choice((0.5, 1, 2, 5, 10))
    word, vault = f"{dice.choice(samples.WORDS)}-{dice.randrange(10**6)}", dice.randrange(1000)
    fact = f"The password of vault {vault} is {word}."
    pieces = max(2, int(factor * window / 100))  # of about 100 tokens
    at = dice.randrange(pieces)
    texts = [samples.sentences(dice.randrange(6, 10), 10_000 * seed + n) for n in range(pieces)]
    documents = []
    if place == "an old turn":
        texts[at] += f" {fact}"
    else:
        small = place == "a small file"
        home = [samples.sentences(4, seed)] if small else texts
        home[0 if small else at] += f" {fact}"
        documents = [document("vaults.md" if small else "vaults.pdf", home, "markdown" if small else "pdf")]
        if place == "one of several files" or small:
            others = [document(f"other{n}.pdf", texts[n::3], order=n + 1) for n in range(3)]
            documents = [*others, *documents] if dice.random() < 0.5 else [*documents, *others]
        texts = [samples.sentences(3, seed + n) for n in range(dice.randrange(12))]
    system = dice.choice(("", "You are exact.", "Answer in one sentence. " * 6))
    facts = [f"I collect stamps of the year {1900 + n}." for n in range(dice.choice((0, 0, 3, 40)))]
    talk = Talk(tokenizer, Library(documents), window, system, facts)
    for text in texts:
        if dice.random() * len(texts) < 4:  # a few prompts are made, after some of which there is time
            talk.ask(text, samples.sentences(1, at))
            if dice.random() < 0.5:
                talk.idle(samples.sentences(4, at))
        else:
            talk.say(text, samples.sentences(1, at))
    return talk, f"What is the password of vault {vault}?", word, place


def test_what_is_kept_of_old_turns_changes_no_prompt(tokenizer) -> None:
    """The service that has seen a chat grow, and one that has just started, make the same prompts of it."""
    talk, recalled = Talk(tokenizer, window=1024), 0
    for turn in range(40):
        talk.say(f"{samples.sentences(6, turn)} The code of door {turn} is {turn * 7919}.", samples.sentences(2, turn))
        if turn % 8 == 7:
            text = f"What is the code of door {turn // 2}?"
            seen = talk.prompt(text)
            talk.given["attics"], kept = Attics(), talk.given["attics"]
            assert talk.prompt(text).tokens == seen.tokens
            talk.given["attics"] = kept
            recalled += seen.ledger.recalled > 0
    assert recalled >= 3


def test_every_needle_is_there_or_the_ledger_says_what_is_not(tokenizer, needles: int, capsys) -> None:
    """``--needles 500`` is the long run."""
    asked: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for seed in range(needles):
        talk, question, word, place = haystack(random.Random(seed), tokenizer, seed)
        long = seed % 10 == 0  # now and then the message itself takes much of the window
        text = f"{samples.sentences(talk.window // 40, seed)} {question}" if long else question
        prompt = talk.prompt(text)
        words, ledger = checked(talk, prompt, text), prompt.ledger
        asked[place] += 1
        if word in words:
            found[place] += 1
        elif place == "an old turn":
            assert ledger.turns_left_out + ledger.turns_summarised > 0, seed
        else:
            assert ledger.passages_read < ledger.passages, seed
    with capsys.disabled():
        shares = ", ".join(f"{place} {found[place]} of {asked[place]}" for place in PLACES)
        print(f"\nneedles found: {shares}")


def gauges(count: int = 60) -> Library:
    pages = [f"{samples.sentences(20, n)} The gauge of engine {n} shows {7 * n} bar." for n in range(count)]
    return Library([document("gauges.pdf", pages)])


def test_twenty_turns_over_a_long_file_read_only_what_is_new(tokenizer) -> None:
    """With time between the messages: of what stands before a new message the engine has read 95 % and more."""
    talk = Talk(tokenizer, gauges(), window=8192)
    answer = "The gauge shows what the file says, as far as I can see from the passage on that engine."
    read: list[tuple[int, ...]] = []
    for n in range(20):
        prompt = talk.ask(f"What does the gauge of engine {n} show?", answer)
        assert f"of engine {n} shows {7 * n} bar" in checked_again(talk, prompt)
        ledger = prompt.ledger
        if read:
            new = ledger.excerpts + ledger.recalled + ledger.message + len(tokenizer(answer)["input_ids"])
            assert max(common(prompt.tokens, tokens) for tokens in read) >= 0.95 * (ledger.prompt - new)
        read = [prompt.tokens]
        if early := talk.idle():
            read.append(early)
    assert talk.cuts
    assert prompt.ledger.turns_left_out == 0  # the passages went first, and that was enough


def checked_again(talk: Talk, prompt: Any) -> str:
    """A prompt whose message was added to the chat already."""
    asked = talk.rows[-2:]
    del talk.rows[-2:]
    words = checked(talk, prompt, asked[0]["content"])
    talk.rows += asked
    return words


def test_without_time_only_a_cut_costs_a_beginning(tokenizer) -> None:
    talk, cuts = Talk(tokenizer, gauges(), window=8192), 0
    before = talk.ask("Begin.")
    for n in range(20):
        prompt = talk.ask(f"What does the gauge of engine {n} show?")
        if prompt.ledger.bare == before.ledger.bare:
            assert common(before.tokens, prompt.tokens) >= len(before.tokens) - 8  # the mark of an answer's beginning
        else:
            cuts += 1
        before = prompt
    assert 0 < cuts < 20


def test_turns_that_are_cut_are_told_in_short_and_found_again(tokenizer) -> None:
    talk = Talk(tokenizer, window=1024, system="Be brief.")
    talk.ask("My sister's boat is called Halcyon and lies in Bergen.", "A fine name for a boat.")
    while not talk.cuts:
        talk.ask(samples.sentences(5, len(talk.rows)), "Yes.")
        talk.idle("The user has a sister, who has a boat.")
    plain = talk.ask("Well then.")
    words, ledger = talk.words(plain), plain.ledger
    assert words.index("Be brief.") < words.index("The user has a sister") < words.index("Well then.")
    assert "Halcyon" not in words
    assert ledger.summary > 0
    assert (ledger.summarised_from, ledger.turns_left_out) == (1, 0)
    assert ledger.turns_summarised + ledger.turns_used == len(talk.rows) // 2 - 1
    about = talk.ask("What was the boat of my sister called?")
    assert "[turn 1]\nUser: My sister's boat is called Halcyon" in checked_again(talk, about)
    assert about.ledger.recalled > 0
    # What came back stays with its message, so that the next prompt begins like this one.
    after = talk.ask("Where does it lie?")
    assert common(about.tokens, after.tokens) >= len(about.tokens) - 8
    assert talk.words(after).count("lies in Bergen") == 1


def test_another_branch_begins_before_a_summary(tokenizer) -> None:
    talk = Talk(tokenizer, window=1024)
    while not talk.cuts:
        talk.ask(samples.sentences(5, len(talk.rows)), "Yes.")
        talk.idle("A secret of the other branch.")
    talk.ask("Is there a secret?")
    assert "other branch" in talk.words(talk.prompt("And now?"))
    talk.rows = talk.rows[:2]  # as an edit of the second message does
    assert "other branch" not in talk.words(talk.ask("Something else."))
    assert talk.prompt("And now?").ledger.turns_used == 2


def test_a_file_that_was_removed_leaves_what_stands_before_it_as_it_is(tokenizer) -> None:
    files = [
        document(f"{name}.md", [f"{samples.sentences(20, n)} {name}!"], "markdown") for n, name in enumerate("abc")
    ]
    talk = Talk(tokenizer, Library(files), window=4096, system="Be brief.", facts=["I like tea."])
    before = talk.ask("What is in these files?")
    assert before.ledger.files > 0
    talk.library = Library([files[0], files[2]])
    after = talk.ask("And now?")
    kept = talk.words(before).split("--- file b.md")[0]
    assert common(before.tokens, after.tokens) >= len(tokenizer(kept)["input_ids"]) - 1
    assert "b!" not in talk.words(after)


@pytest.mark.parametrize("system", ["", "You are exact."])
def test_facts_stand_behind_the_system_prompt(tokenizer, system: str) -> None:
    talk = Talk(tokenizer, system=system, facts=["I am Ada.", "I live in Bergen."])
    prompt = talk.ask("Who am I?")
    words = checked_again(talk, prompt)
    assert words.index(system) <= words.index("- I am Ada.\n- I live in Bergen.") < words.index("Who am I?")
    facts = tokenizer("- I am Ada.\n- I live in Bergen.")["input_ids"]
    assert len(facts) <= prompt.ledger.memory <= len(facts) + 16
    many = Talk(tokenizer, window=1024, facts=[samples.sentences(2, n) for n in range(50)])
    assert "of 50 facts of the memory fit" in many.ask("Hi").ledger.left_out[0]


@pytest.mark.parametrize(
    ("said", "end", "summary"),
    [
        (" Ada has a boat. It costs 3.5 million. ", FinishReason.STOP, "Ada has a boat. It costs 3.5 million."),
        ("A boat. A boat. A boat. A", FinishReason.LENGTH, "A boat."),  # small models go round in circles
        ("no end", FinishReason.LENGTH, "no end"),
        ("  ", FinishReason.STOP, ""),
        ("A boat.", FinishReason.ERROR, ""),
    ],
)
def test_a_summary_is_whole_sentences_each_once(said: str, end: FinishReason, summary: str) -> None:
    assert clean_summary(said, end) == summary
