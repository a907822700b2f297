"""The prompt of one turn, within the model's window, and a ledger of what is in it.

Its parts stand in the order of the ledger, the steadiest first, so that a prompt begins like the one before and the
engine need not read that again. When the turns fill their share, they are cut at once to far less than it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmsvc.chat.asking import AS_MADE, Manner, rendered
from llmsvc.chat.material import PASSAGES_SHARE, Desk, choose, lay_out, quote, spans, within
from llmsvc.chat.past import Attics, Chat, Cut, Cuts, Past, Turn, number
from llmsvc.errors import BadRequest
from llmsvc.files.retrieval import Library
from llmsvc.formats import templates
from llmsvc.formats.templates import Rendered
from llmsvc.models.remote import Estimate
from llmsvc.store.database import Row

ANSWER_SHARE = 4
"""At least one part in this many of the window is kept free for the answer."""
KEEP_SHARE, CUT_SHARE = 0.75, 0.35
"""Where something is looked up for a message, earlier turns may fill so much of what is left, elsewhere all of it; if
they have more, they are cut down to the second."""
ONE_PASSAGE = 260
"""Tokens: where something is looked up, there is room for this at least."""
READING_SECONDS, LEAST_PASSAGES = 5.0, 1500
"""What is looked up for a message takes a model at most so long to read, unless it has fewer tokens than the second."""
EARLY = 0.15
"""So much before they must be, turns are cut in idle time."""
MEMORY_SHARE, RECALL_SHARE = 0.125, 0.08
"""Of what the model may read: at most so much for facts about the user, and for pieces of old turns."""
_NO_FILES = Library()
Ids = tuple[int, ...]


@dataclass(frozen=True)
class ContextLedger:
    """Tokens by part, counted by the model's tokenizer; the parts in ``PARTS`` sum up to ``prompt``.

    ``system`` is what is there besides messages: the system prompt, and the marks of the model's chat template;
    ``files``: those that are there whole; ``summary``: of turns that are left out; ``recalled``: pieces of such turns,
    and ``excerpts``: passages of files, with the newest message. Those that came with earlier messages belong to
    ``history``.
    """

    window: int
    prompt: int
    system: int
    history: int
    message: int
    turns_used: int
    turns_left_out: int
    """Neither there word by word nor in the summary."""
    memory: int = 0
    files: int = 0
    summary: int = 0
    excerpts: int = 0
    recalled: int = 0
    turns_summarised: int = 0
    summarised_from: int = 0
    """The number of the first of them."""
    passages: int = 0
    """Of the files that are searched, and how many of them are there."""
    passages_read: int = 0
    left_out: tuple[str, ...] = ()
    """Sentences: what the answer should have been told of and was not."""
    begins: int = 0
    """See ``Cut``; so are ``bare`` and ``cut``, which is its id."""
    bare: int = 0
    cut: str = ""
    recalled_from: tuple[Row, ...] = ()
    estimated: bool = False
    """By the length of the texts, since the tokenizer is on another server."""

    def row(self) -> Row:
        return {**asdict(self), "left_out": list(self.left_out), "recalled_from": list(self.recalled_from)}


PARTS = ("system", "memory", "files", "summary", "history", "excerpts", "recalled", "message")


@dataclass(frozen=True)
class Prompt:
    """``sources``: whole files and passages that are there for this message. ``messages``: what the tokens say, and
    ``rendered`` the same as text."""

    tokens: Ids
    ledger: ContextLedger
    sources: tuple[Row, ...]
    messages: tuple[Row, ...]
    rendered: Rendered


@dataclass(frozen=True)
class Plan:
    """A cut that is due; its summary is still without its ``turns``, which come behind those that it covers."""

    cut: Cut
    turns: list[Turn]


def build(
    tokenizer: Any,
    window: int,
    system: str,
    older: Iterable[Row],
    text: str,
    answer: str = "",
    depth: int = 1,
    library: Library = _NO_FILES,
    sources: Sequence[Row] = (),
    *,
    facts: Sequence[str] = (),
    cuts: Cuts | None = None,
    attics: Attics | None = None,
    speed: float = 0.0,
    manner: Manner = AS_MADE,
    reasoning: str = "",
) -> Prompt:
    """Newest message whole, then as many whole turns as fit, newest first.

    ``older``: earlier messages, newest first, read only as far as they fit; ``depth``: how many messages there are with
    this one; ``answer``: what is there of an answer that is continued, and ``sources`` what it had of the files.
    ``facts``: what the user wants to be remembered. ``speed``: tokens that the model reads in a second, if that is
    known; a slow one gets fewer passages. ``reasoning``: of the answer that is continued; without any ``answer`` it
    goes on there. Raises BadRequest, with the numbers, when the newest message alone leaves no room for an answer: it
    is never cut.
    """
    past = Past(older, library, cuts, attics)
    page = _Page(tokenizer, window, system, library, facts, answer, reasoning, manner)
    alone = page.make_room(text, past.cut)
    used, cut, tokens = _turns(past, page, text, alone)
    quick = max(LEAST_PASSAGES, int(READING_SECONDS * speed)) if speed else page.budget
    chosen, pieces = _found(past, page, text, used, cut, page.budget - len(tokens), quick, sources)
    head, turns = page.head(), past.chat(used, cut.bare)
    if chosen or pieces:
        tokens = page.encode([*head, *turns, page.asked(chosen, past.quote(pieces), text)])
    while len(tokens) > page.budget and (chosen or pieces):
        (chosen or pieces).pop()
        tokens = page.encode([*head, *turns, page.asked(chosen, past.quote(pieces), text)])
    with_passages = len(page.encode([*head, page.asked(chosen, "", text)])) if chosen else len(alone)
    asked = page.asked(chosen, past.quote(pieces), text)
    with_all = len(page.encode([*head, asked])) if pieces else with_passages
    summarised = number(cut.covers) - number(cut.first) + 1 if page.summary else 0
    read, passages = _passages(page.desk, [*past.sources(used, cut.bare), *chosen])
    ledger = ContextLedger(
        window=window,
        prompt=len(tokens),
        **page.parts(),
        message=len(alone) - len(page.encode([*head, _user("")])),
        excerpts=with_passages - len(alone),
        recalled=with_all - with_passages,
        history=len(tokens) - with_all,
        turns_used=used,
        turns_summarised=summarised,
        summarised_from=number(cut.first) if summarised else 0,
        turns_left_out=max(0, (depth - 1) // 2 - past.empty - used - summarised),
        passages=passages,
        passages_read=read,
        left_out=tuple(page.desk.left_out),
        begins=past.begins(used) or depth,
        bare=cut.bare,
        cut=cut.id,
        recalled_from=tuple(pieces),
        estimated=isinstance(tokenizer, Estimate),
    )
    said = [*head, *turns, asked]
    continued = [{"role": "assistant", "content": answer}] if answer else []
    sources = (*page.desk.whole_sources(), *chosen)
    return Prompt(tokens, ledger, sources, (*said, *continued), page.render(said))


def plan(
    tokenizer: Any,
    window: int,
    system: str,
    older: Iterable[Row],
    library: Library = _NO_FILES,
    *,
    facts: Sequence[str] = (),
    cuts: Cuts | None = None,
    attics: Attics | None = None,
    manner: Manner = AS_MADE,
) -> Plan | None:
    """What to cut and summarise before the next message comes, if anything; ``older`` begins with the last answer."""
    past = Past(older, library, cuts, attics)
    page = _Page(tokenizer, window, system, library, facts, manner=manner)
    alone = page.make_room("", past.cut)
    used, cut, _ = _turns(past, page, "", alone, EARLY)
    uncovered = past.left_out(used, cut.covers)
    if not past.has(1) or (not uncovered and (cut.begins, cut.bare) == (past.cut.begins, past.cut.bare)):
        return None
    return Plan(replace(cut, id=past.newest(1)[0].answers[0]["id"]), uncovered)


def _turns(past: Past, page: "_Page", text: str, alone: Ids, early: float = 0.0) -> tuple[int, Cut, Ids]:
    """How many turns are there, cut where, and the prompt with them."""
    cut, head, last = past.cut, page.head(), _user(text)
    room = page.budget - len(alone)

    as_before = past.since(cut.begins) if cut.begins else 0
    looked_up = bool(page.desk.searched) or (cut.begins > 0 and past.has(as_before + 1))
    keep, spare = (KEEP_SHARE - early, ONE_PASSAGE) if looked_up else (1.0 - early, 0)

    def within(share: float, bare: int) -> Callable[[int], Ids | None]:
        def fits(used: int) -> Ids | None:
            tokens = page.encode([*head, *past.chat(used, bare), last])
            return tokens if len(tokens) <= len(alone) + min(int(share * room), room - spare) else None

        return fits

    if cut.begins:
        past.open_attic(as_before)
        whole, used = within(keep, cut.bare)(as_before), as_before
    else:
        used, whole = _most(past, within(keep, cut.bare), alone)
        whole = None if past.has(used + 1) else whole
    if whole is None:
        bare = past.newest(1)[0].depth
        used, whole = _most(past, within(CUT_SHARE, bare), alone)
        if not used and (newest := within(keep, bare)(1)):
            used, whole = 1, newest
        cut = replace(cut, bare=bare)
    past.open_attic(used)
    return used, replace(cut, begins=past.begins(used)), whole


def _found(
    past: Past, page: "_Page", text: str, used: int, cut: Cut, left: int, quick: int, sources: Sequence[Row]
) -> tuple[list[Row], list[Row]]:
    """Passages of files, and pieces of left-out turns, that the message is about, in ``left`` tokens.

    ``quick``: how many tokens the best passages may have; a question about all of a file has another measure.
    """
    pieces: list[Row] = []
    if not text:
        return [], pieces
    most = min(left, int(RECALL_SHARE * page.budget))
    for piece in past.recall(text, past.recalled(used, cut.bare)):
        if page.count(past.quote([*pieces, piece])) <= (most if pieces else left):
            pieces.append(piece)
    if not page.desk.library.documents:
        return [], pieces
    left = min(left - (page.count(past.quote(pieces)) if pieces else 0), int(PASSAGES_SHARE * page.budget))
    known = past.sources(used, cut.bare)
    chosen = list(sources) or choose(page.desk, text, past.asked(), page.count, left, min(left, quick), known)
    return [source for source in chosen if not source.get("whole")], pieces


def _passages(desk: Desk, sources: Sequence[Row]) -> tuple[int, int]:
    """How many passages of the searched files are among the sources, and how many there are."""
    there = spans(sources)
    chunks = [chunk for document in desk.searched for chunk in document.chunks]
    return sum(within(chunk, there) for chunk in chunks), len(chunks)


@dataclass
class _Page:
    """What stands before the turns, and how all of it is counted."""

    tokenizer: Any
    window: int
    system: str
    library: Library
    facts: Sequence[str]
    answer: str = ""
    reasoning: str = ""
    manner: Manner = AS_MADE
    summary: str = ""
    desk: Desk = field(init=False)

    def __post_init__(self) -> None:
        self.budget = self.window - self.window // ANSWER_SHARE
        self.desk = lay_out(self.library, self.budget, self.count)
        facts = list(self.facts)
        while facts and self.count(_remembered(facts)) > MEMORY_SHARE * self.budget:
            facts.pop()
        if len(facts) < len(self.facts):
            self.desk.left_out.append(f"Only the first {len(facts)} of {len(self.facts)} facts of the memory fit")
        self.facts = facts

    def render(self, chat: Chat) -> Rendered:
        return rendered(self.tokenizer, chat, self.manner, answer=self.answer, reasoning=self.reasoning)

    def encode(self, chat: Chat) -> Ids:
        return templates.encode(self.tokenizer, self.render(chat))

    def count(self, part: str) -> int:
        return len(self.tokenizer(part, add_special_tokens=False)["input_ids"])

    def make_room(self, text: str, cut: Cut) -> Ids:
        """The prompt of the message alone. For a long one, what is less needed goes, this once. Raises BadRequest."""
        self.summary = cut.summary
        tokens = self.encode([*self.head(), _user(text)])
        if len(tokens) > self.budget and self.desk.whole:  # they are searched
            names = [document.name for document in self.desk.whole]
            self.desk.left_out += [f"{name} does not fit beside this message as a whole" for name in names]
            self.desk.whole = []
            tokens = self.encode([*self.head(), _user(text)])
        if len(tokens) > self.budget and (self.summary or self.facts):
            self.desk.left_out.append("The summary of earlier turns and the memory do not fit beside this message")
            self.summary, self.facts = "", []
            tokens = self.encode([*self.head(), _user(text)])
        if len(tokens) > self.budget:
            raise BadRequest(
                f"This message needs {len(tokens):,} tokens, but the model reads at most {self.window:,}, of which "
                f"{self.window // ANSWER_SHARE:,} are kept for the answer. Shorten it, or choose a model with a longer "
                "context."
            )
        return tokens

    def head(self, memory: bool = True, files: bool = True, summary: bool = True) -> Chat:
        """The system prompt with its parts, which are steadier the further in front they stand."""

        def written(memory: bool, files: bool, summary: bool) -> str:
            known = _remembered(self.facts) if memory and self.facts else ""
            before = "\n\n".join(filter(None, (self.system.strip() and self.system, known)))
            told = f"What was said before, in short:\n{self.summary}" if summary and self.summary else ""
            return "\n\n".join(filter(None, (self.desk.system(before, files), told)))

        # Templates add a system prompt of their own where there is none: it must not come and go with a part.
        if not written(True, True, True).strip():
            return []
        return [{"role": "system", "content": written(memory, files, summary)}]

    def asked(self, chosen: Sequence[Row], recalled: str, text: str) -> Row:
        """The newest message with what was found for it."""
        return _user(quote(chosen, self.library) + recalled + text)

    def parts(self) -> dict[str, int]:
        """Tokens of what stands before the turns, by part."""
        marks = [_user("")]
        alone = len(self.encode([*self.head(False, False, False), *marks]))
        memory = len(self.encode([*self.head(True, False, False), *marks])) if self.facts else alone
        files = len(self.encode([*self.head(True, True, False), *marks])) if self.desk.whole else memory
        summary = len(self.encode([*self.head(), *marks])) if self.summary else files
        return {"system": alone, "memory": memory - alone, "files": files - memory, "summary": summary - files}


def _remembered(facts: Sequence[str]) -> str:
    return "\n".join(["What the user wants you to remember:", *(f"- {fact}" for fact in facts)])


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _most(past: Past, fits: Callable[[int], Ids | None], alone: Ids) -> tuple[int, Ids]:
    """How many turns fit, and the prompt with them.

    Twice as many until they no longer fit, then the largest number between: few renderings, whatever the length.
    """
    tokens, used, too_many = alone, 0, 0
    while not too_many and past.has(used + 1):
        count = used * 2 or 1
        while not past.has(count):
            count -= 1
        if longer := fits(count):
            tokens, used = longer, count
        else:
            too_many = count
    while too_many - used > 1:
        count = (used + too_many) // 2
        if longer := fits(count):
            tokens, used = longer, count
        else:
            too_many = count
    return used, tokens
