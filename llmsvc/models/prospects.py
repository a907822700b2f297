"""What is said of a model before it is loaded: whether it runs, how, what it takes and how fast it will be."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, LlmsvcError
from llmsvc.models import fields, hub, hub_search
from llmsvc.models.can_it_run import ELSEWHERE, Verdict, verdict
from llmsvc.models.catalogue import Catalogue, CatalogueEntry, is_model
from llmsvc.models.folder import check_folder
from llmsvc.models.forecast import EXPERTS, SMALL_BYTES, ModelForecast, forecast, plan
from llmsvc.models.headers import Contents, read, vocabulary_of
from llmsvc.models.speed import Bandwidth, expected
from llmsvc.models.suggestions import suggest

NOTHING = ModelForecast(0, 0, 0, 0, 0, 0).row() | {"tokens_per_second": 0.0}
"""Of a model that takes nothing here: it is elsewhere, or will not run."""


@dataclass(frozen=True)
class Prospect:
    """What a model's files say, and what follows from it. ``contents``: of an adapter's base model."""

    contents: Contents
    verdict: Verdict


class Prospects:
    """Of the models of a catalogue and of the hub."""

    def __init__(self, catalogue: Catalogue, full_weights: bool, kernel: bool) -> None:
        """``full_weights``: none is rounded without being asked to. ``kernel``: products have one of ours."""
        self._catalogue, self._full_weights, self._kernel = catalogue, full_weights, kernel
        self.bandwidth = Bandwidth(catalogue.models_dir / "bandwidth.json")
        self._rows: dict[tuple[str, float, str], dict[str, Any]] = {}

    def look(self, entry: CatalogueEntry, device: str, quantization: str = "none") -> Prospect:
        """Read a model's configuration and headers, here or on the hub. Raises BadRequest, NotFound or Unavailable."""
        path = self._catalogue.described(entry)
        contents = hub.contents(entry) if path is None else _of_disk(path)
        if contents.base:
            base = self._catalogue.entry(contents.base)
            whole = self.look(base, device, quantization)
            return replace(whole, verdict=replace(whole.verdict, served=f"LoRA on {base.id}"))
        return Prospect(contents, verdict(contents, device, quantization))

    def forecast(self, contents: Contents, device: str, quantization: str, context: int = 0) -> ModelForecast:
        """Raises BadRequest for an unknown quantization."""
        return forecast(contents, plan(contents, device, quantization, self._full_weights), context)

    def rate(self, contents: Contents, device: str, quantization: str, bandwidth: float) -> float:
        """Tokens a second that one answer is likely to have; 0 where nothing can be said."""
        weights = plan(contents, device, quantization, self._full_weights)
        return _rounded(expected(contents, weights, bandwidth, self._kernel))

    def catalogued(self, device: str) -> list[dict[str, Any]]:
        """The rows of ``/model_catalog``, from the disk alone; without speeds until the memory's was measured."""
        self.bandwidth.prepare(device)
        return [{**row, **self._of_row(row, device)} for row in self._catalogue.list()]

    def _of_row(self, row: dict[str, Any], device: str) -> dict[str, Any]:
        entry = self._catalogue.entry(row["id"])
        path = None if entry.remote else self._catalogue.described(entry)
        if path is None:  # it is elsewhere; what is not here yet is looked at when it is asked for
            return {**ELSEWHERE.row(), "tokens_per_second": 0.0}
        bandwidth = self.bandwidth.known(device)
        key = (str(path), path.stat().st_mtime, f"{device} {bandwidth}")
        if key not in self._rows:
            self._rows[key] = self._described(entry, device, bandwidth)
        return self._rows[key]

    def _described(self, entry: CatalogueEntry, device: str, bandwidth: float) -> dict[str, Any]:
        try:
            seen = self.look(entry, device)
            rate = self.rate(seen.contents, device, "none", bandwidth) if seen.verdict.runs else 0.0
            return {**seen.verdict.row(), "tokens_per_second": rate}
        except LlmsvcError as error:
            return {**Verdict(False, str(error), "other").row(), "tokens_per_second": 0.0}

    def searched(self, query: str, device: str) -> list[dict[str, Any]]:
        """What the hub finds: the rows of ``/model_search``. Raises Unavailable."""
        rows, bandwidth = hub_search.search(query), self.bandwidth.measured(device)
        return [
            {
                **row,
                "tokens_per_second": self._by_size(row, device, bandwidth),
                "local": self._catalogue.local(self._catalogue.entry(row["id"])) is not None,
            }
            for row in rows
        ]

    def suggested(self, free_bytes: int, device: str) -> list[dict[str, Any]]:
        """Models of the hub that are better than the embedded one and fit: {id, bytes, why}; none without it."""
        fitting = suggest(free_bytes, gpu=device != "cpu")
        return [asdict(one) for one in fitting] if fitting and hub.answers() else []

    def _by_size(self, row: dict[str, Any], device: str, bandwidth: float) -> float:
        """By the number of its parameters, of which a mixture of experts reads too few at a time to say."""
        if not row["runs"] or not row["parameters"] or set(EXPERTS) & fields.defaults(row["type"]).keys():
            return 0.0
        small = row["bytes"] <= SMALL_BYTES
        item = 2 if device != "cpu" or (self._full_weights and not small) else 4 if self._full_weights else 1
        return _rounded(bandwidth / (row["parameters"] * item))


def _of_disk(path: Path) -> Contents:
    """What lies in a folder or a GGUF file. Raises BadRequest for what is no model, or damaged."""
    trouble = ""
    if path.is_dir():
        try:
            check_folder(path)
        except BadRequest as error:
            if not is_model(path):
                raise
            trouble = str(error)
    contents = read(path)
    if not contents.tensors or contents.packed:
        return replace(contents, trouble=contents.trouble or trouble)
    return replace(contents, trouble=contents.trouble or trouble, vocabulary=vocabulary_of(path))


def _rounded(rate: float) -> float:
    """To two figures: more would promise too much."""
    return float(f"{rate:.2g}")
