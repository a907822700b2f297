"""``docs/models.md``, made of what ``bench.architectures`` measured."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

INTRODUCTION = """# Which models run

Made by `python -m bench.architectures --write`; do not edit it by hand. transformers {version}, torch {torch}, a CPU.

For each type of model that transformers lists as a text generator or as one that answers about images, the bench makes
a tiny checkpoint with random weights from the type's own default configuration, with at least one layer of each kind.
It is judged and loaded as any downloaded model, then asked greedily: alone, in a batch of three prompts of different
lengths, with a long prompt that is read in pieces, with a next turn, and with a branch from the middle of a prompt
that is cached.

- *Equal*: the same tokens as transformers' own `generate` in float32, and log-probabilities within 1e-3, in all five.
- *Refused*: a sentence says why, before the download or at the load.
- *Different* and *failed*: must not be.
- *Not made*: transformers cannot make the type from its own defaults on this machine, and why.

Served *together*: answers of several chats are computed in one pass. *One at a time*: each with the model's own cache,
exact, but slower when several people ask. *Reused*: the share of a prompt of the next turn, and of the branch, that was
not computed again. Models with images answer texts only so far.
"""


class Row(Protocol):
    """What the page needs of a result."""

    name: str
    outcome: str
    note: str
    served: str
    worst: float
    reused: dict[str, float]


def summary(results: Sequence[Row]) -> str:
    """How many results there are of each outcome, in words."""
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())


def page(results: Sequence[Row]) -> str:
    """The whole of ``docs/models.md``."""
    import torch
    import transformers

    texts = [result for result in results if not result.name.endswith("(vision)")]
    images = [result for result in results if result.name.endswith("(vision)")]
    return "\n".join(
        [
            INTRODUCTION.format(version=transformers.__version__, torch=torch.__version__.split("+")[0]),
            *_section("Text models", texts),
            *_section("Models that also see", images),
        ]
    )


def _section(title: str, results: Sequence[Row]) -> list[str]:
    served = Counter(result.served for result in results if result.outcome == "equal")
    how = ", ".join(f"{count} {name}" for name, count in served.most_common())
    head = [
        f"## {title}",
        f"{len(results)} types: {summary(results)}. Of the equal ones are served: {how or 'none'}.",
        "",
    ]
    columns = [
        "| type | outcome | served | largest difference | reused next turn / branch | |",
        "|---|---|---|---|---|---|",
    ]
    return head + columns + [_row(result) for result in results] + [""]


def _row(result: Row) -> str:
    reused = [result.reused.get(case) for case in ("next turn", "branch")]
    shares = " / ".join("" if share is None else f"{share:.0%}" for share in reused) if any(reused) else ""
    worst = f"{result.worst:.1e}" if result.worst else ""
    note = result.note.replace("|", "\\|").replace("\n", " ")
    return f"| {result.name} | {result.outcome} | {result.served} | {worst} | {shares} | {note} |"
