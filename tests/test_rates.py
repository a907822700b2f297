import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsvc.errors import TooMany
from llmsvc.rates import GUESTS_TOGETHER, Rates


def taken(rates: Rates, owner: str, most: int = 1000) -> int:
    """How many times in a row it may ask."""
    for count in range(most):
        try:
            rates.take(owner)
        except TooMany:
            return count
    return most


def test_each_owner_has_an_allowance() -> None:
    rates = Rates("answers", 5, 2)
    assert [taken(rates, owner) for owner in ("ann", "bob", "guest:1", "guest:2")] == [5, 5, 2, 2]
    with pytest.raises(TooMany, match="5 answers a minute") as refused:
        rates.take("ann")
    assert 0 < refused.value.retry_seconds <= 60


def test_none_is_no_bound() -> None:
    assert taken(Rates("answers", 0, 2), "ann") == 1000


def test_whoever_drops_the_cookie_gains_nothing() -> None:
    rates = Rates("answers", 5, 2)
    assert sum(taken(rates, f"guest:{number}") for number in range(100)) == 2 * GUESTS_TOGETHER
    assert taken(rates, "ann") == 5


@given(st.lists(st.floats(0, 30), max_size=30))
def test_what_is_refused_takes_nothing(amounts: list[float]) -> None:
    rates, left = Rates("bytes", 100, 100), 100.0
    for amount in amounts:
        try:
            rates.take("ann", amount)
            left -= amount
        except TooMany:
            assert amount > left
    assert left > -1  # a little was filled meanwhile
