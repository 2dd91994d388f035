"""The budget: nothing is granted that is not there, and what comes back is what was not used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stageflow import Price, SettingError
from stageflow.money import amount_of, from_text, shown, to_text, units
from stageflow.policies.budget import Budget

AMOUNTS = st.integers(0, 50)


def test_what_does_not_fit_is_not_reserved() -> None:
    budget = Budget(10, spent=3)
    assert budget.left == 7
    assert not budget.reserve(8)
    assert budget.left == 7
    assert budget.reserve(7)
    assert (budget.left, budget.fits(0), budget.fits(1)) == (0, True, False)


def test_what_a_call_did_not_use_comes_back() -> None:
    budget = Budget(10)
    assert budget.reserve(6)
    assert not budget.is_beyond(10)  # if it used nothing
    budget.settle(6, 2)
    assert (budget.spent, budget.reserved, budget.left) == (2, 0, 8)
    assert budget.is_beyond(9)
    assert not budget.is_beyond(8)


def test_a_call_that_used_more_is_a_debt() -> None:
    budget = Budget(10)
    assert budget.reserve(6)
    budget.settle(6, 12)
    assert budget.left == -2
    assert not budget.fits(0)


class Books(RuleBasedStateMachine):
    """Against a list of what is reserved."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(100, spent=5)
        self.out: list[int] = []
        self.spent = 5

    @rule(amount=AMOUNTS)
    def reserve(self, amount: int) -> None:
        there = 100 - self.spent - sum(self.out) >= amount
        assert self.budget.fits(amount) == there
        assert self.budget.reserve(amount) == there
        if there:
            self.out.append(amount)

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0), share=st.floats(0, 1))
    def settle(self, place: int, share: float) -> None:
        reserved = self.out.pop(place % len(self.out))
        used = int(reserved * share)
        self.budget.settle(reserved, used)
        self.spent += used

    @rule(amount=AMOUNTS)
    def ask_whether_it_ever_fits(self, amount: int) -> None:
        if self.budget.is_beyond(amount):
            assert 100 - self.spent < amount
        else:  # with all that is out come back
            assert Budget(100, self.spent).fits(amount)

    @invariant()
    def it_is_never_passed(self) -> None:
        assert self.budget.spent == self.spent
        assert self.budget.reserved == sum(self.out)
        assert self.budget.spent + self.budget.reserved <= 100


TestBooks = Books.TestCase


# Money


def test_sums_are_exact() -> None:
    price = Price(input=0.15, output=0.6)
    assert sum(price.of(1, 0) for _ in range(1_000_000)) == amount_of(0.15)
    assert price.of(1_000_000, 1_000_000) == amount_of(0.75)
    assert (price.most(1_000_000), price.least(1_000_000)) == (amount_of(0.6), amount_of(0.15))


@given(st.integers(0, 10**22))
def test_a_file_keeps_an_amount_as_it_is(amount: int) -> None:
    assert from_text(to_text(amount)) == amount


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0.00"), (5, "5.00"), (1234.5, "1,234.50"), (0.05, "0.05"), (0.0498, "0.0498"), (0.00031, "0.00031")],
)
def test_amounts_are_shown_with_the_digits_that_count(number: float, text: str) -> None:
    assert shown(amount_of(number)) == text


@given(st.floats(1e-6, 1e9))
def test_an_amount_is_the_number_it_was_made_of(number: float) -> None:
    assert units(amount_of(number)) == pytest.approx(number, rel=1e-15, abs=1e-12)


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "1", True, None])
def test_a_price_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(SettingError, match="the price of output must be a number of at least 0, not "):
        Price(input=0, output=value)  # type: ignore[arg-type]
