"""How an answer is made: sampling parameters and the system prompt, with their bounds."""

import json
from typing import Any

from llmsvc.engine import SamplingParams
from llmsvc.errors import BadRequest
from llmsvc.store.database import Row

DEFAULTS: Row = {
    "temperature": 0.2,
    "top_p": 0.95,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 1024,
    "seed": None,
    "stop": [],
    "json_schema": "",
    "regex": "",
    "system": "",
}

LOADING: Row = {"context": 0, "keep_alive": 0.0}
"""How a model is loaded. ``context``: tokens that it reads at most, 0 for as many as it was made for; ``keep_alive``:
minutes without use after which it is unloaded, 0 for those of the service, below 0 for never."""

MOST_STOPS = 64
"""Each is looked for in each piece of an answer."""

_LIMITS = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 100_000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 10.0),
    "max_tokens": (1, 1_000_000),
}
_ALL_LIMITS = {**_LIMITS, "context": (0, 100_000_000), "keep_alive": (-1.0, 1e6)}


def checked(values: Row, known: Row = DEFAULTS) -> Row:
    """Some of the options, each with the right type. Raises BadRequest with the bounds, or for an unknown name."""
    if unknown := set(values) - set(known):
        raise BadRequest(f"Unknown setting: {', '.join(sorted(unknown))}. Known: {', '.join(known)}.")
    found: Row = {}
    for name, value in values.items():
        if name in _ALL_LIMITS:
            low, high = _ALL_LIMITS[name]
            try:
                found[name] = number = type(low)(value)
            except (TypeError, ValueError, OverflowError):
                raise BadRequest(f"{name} must be a number, not {value!r}.") from None
            if not low <= number <= high:
                raise BadRequest(f"{name} must be between {low} and {high}, not {number}.")
    if "stop" in values:
        stops = [values["stop"]] if isinstance(values["stop"], str) else values["stop"] or []
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
            raise BadRequest("stop must be a string or a list of strings.")
        if len(stops) > MOST_STOPS or sum(map(len, stops)) > MOST_STOPS * 100:
            raise BadRequest(f"stop has at most {MOST_STOPS} strings, which are short. Leave some out.")
        found["stop"] = [s for s in stops if s]
    if "seed" in values:
        seed = values["seed"]
        if seed is not None and (not isinstance(seed, int | float) or not 0 <= seed < 2**63):
            raise BadRequest("seed must be a whole number from 0 to 2^63 - 1.")
        found["seed"] = None if seed is None else int(seed)
    for name in ("system", "json_schema", "regex"):
        if name in values:
            found[name] = _text(values[name])
    return found


def _text(value: Any) -> str:
    """A schema may be given as the object that it is."""
    return json.dumps(value) if isinstance(value, dict) else str(value or "")


def merged(*layers: Row, known: Row = DEFAULTS) -> Row:
    """All options: the defaults, then each layer over those before it. Raises BadRequest."""
    whole: dict[str, Any] = dict(known)
    for layer in layers:
        whole |= {name: value for name, value in layer.items() if name in known}
    return checked(whole, known)


def sampling(options: Row) -> SamplingParams:
    """For the engine, from checked options."""
    options = {**DEFAULTS, **options}  # those of an older answer may be fewer
    numbers = {name: options[name] for name in _LIMITS}
    rest = {name: options[name] for name in ("seed", "json_schema", "regex")}
    return SamplingParams(**numbers, **rest, stop=tuple(options["stop"]))
