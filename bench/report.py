"""Where a benchmark leaves what it found."""

import json
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).resolve().parent / "results"


def write_results(name: str, found: Any) -> None:
    """Into ``bench/results/NAME.json``."""
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))


def read_results(name: str) -> Any:
    """What ``write_results`` left. Raises FileNotFoundError."""
    return json.loads((_RESULTS / f"{name}.json").read_text())
