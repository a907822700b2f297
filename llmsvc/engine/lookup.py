"""Guesses of what comes next, from what stands there already: a quoted file, code that is changed, a list that goes on.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): the model looks at all
guessed tokens in one pass and keeps those that it would have chosen itself, so the answer is the same.
"""

_STANDING = 3
"""Tokens that must have stood together before."""
_MOST = 8
"""Tokens guessed at once."""
_LONGEST_REST = 64
"""Tokens without a guess after many wrong ones."""


class Lookup:
    """One answer's guesses. They become rarer while they are wrong: a pass over several tokens takes longer."""

    def __init__(self) -> None:
        self._behind: dict[tuple[int, ...], int] = {}
        self._known = _STANDING
        self._rest_until, self._wrong = 0, 0

    def guess(self, tokens: list[int]) -> list[int]:
        """What followed when the last tokens stood together before; nothing when they did not."""
        for place in range(self._known, len(tokens)):
            self._behind[tuple(tokens[place - _STANDING : place])] = place
        self._known = max(self._known, len(tokens))
        place = self._behind.get(tuple(tokens[-_STANDING:]), 0)
        if not place or len(tokens) < self._rest_until:
            return []
        guess: list[int] = []
        for n in range(place, place + _MOST):  # past the end it goes on with itself
            guess.append(tokens[n] if n < len(tokens) else guess[n - len(tokens)])
        return guess

    def learn(self, right: int, length: int) -> None:
        """How many guessed tokens were right, and how many tokens there are now."""
        self._wrong = 0 if right > 1 else self._wrong + 1
        self._rest_until = length + min(4**self._wrong, _LONGEST_REST) if self._wrong else 0
