"""What a test server counted: calls by what became of them, tokens, money, and what clients did that they should not.

Tokens and money come in two sums. What arrived whole is what a client can know of, and what a bill has to come to. What
was lost is what a service did for an answer that was broken off or garbled: it may bill that, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import fsum
from typing import Any, Final

__all__ = ["Cell", "Price", "Seen", "Stats"]

_KEPT: Final = 1_000_000
"""Of how many calls it is known whether they come again; the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Price:
    """Of a million tokens of the prompt and of the answer, in any currency."""

    input: float = 0.0
    output: float = 0.0


@dataclass(slots=True)
class Cell:
    """Calls of one kind, and their tokens."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


Place = tuple[str, str, str, bool]
"""Outcome, model, API key, and whether the answer arrived whole."""


class Seen(dict[Any, float]):
    """A dict that forgets its oldest entries."""

    def note(self, key: Any, value: float) -> None:
        """Set an entry."""
        self[key] = value
        if len(self) > _KEPT:
            del self[next(iter(self))]


@dataclass
class Stats:
    """Live: the numbers are those of the moment they are read.

    Attributes:
        calls: Requests for a completion or an embedding, whatever became of them.
        in_flight: Those in progress.
        most_in_flight: At most so many were in progress at once.
        connections: That were ever accepted.
        repeats: Calls whose Idempotency-Key had come before: retries.
        duplicates: Those among them that were answered well although one of the same key had been: paid twice.
        retry_after_sent: Answers that asked to be left alone for a time.
        retry_after_ignored: Calls that came again before that time was over. The same call is one of the same
            Idempotency-Key, or, without one, of the same body.
        during_retry_after: Calls of any kind that came while a caller (API key, path and model) had been asked to wait.
            Those of the first quarter of a second don't count: they may have been under way.
        cells: Calls by outcome, model, API key ("key 1" is the first that came; keys themselves are not kept), and
            whether the answer arrived whole.
    """

    prices: Mapping[str, Price] = field(default_factory=dict)
    calls: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    connections: int = 0
    repeats: int = 0
    duplicates: int = 0
    retry_after_sent: int = 0
    retry_after_ignored: int = 0
    during_retry_after: int = 0
    cells: dict[Place, Cell] = field(default_factory=dict)

    def count(self, outcome: str, model: str, key: str, whole: bool, tokens_in: int, tokens_out: int) -> None:
        """A call has ended."""
        place = (outcome, model, key, whole)
        cell = self.cells.get(place)
        if cell is None:
            cell = self.cells[place] = Cell()
        cell.calls += 1
        cell.tokens_in += tokens_in
        cell.tokens_out += tokens_out

    @property
    def outcomes(self) -> dict[str, int]:
        """Calls that have ended, by what became of them."""
        found: Counter[str] = Counter()
        for (outcome, *_), cell in self.cells.items():
            found[outcome] += cell.calls
        return dict(found)

    @property
    def tokens_in(self) -> int:
        """Of the prompts of answers that arrived whole."""
        return self._sum(lambda place: place[3]).tokens_in

    @property
    def tokens_out(self) -> int:
        """Of answers that arrived whole."""
        return self._sum(lambda place: place[3]).tokens_out

    @property
    def cost(self) -> float:
        """Of answers that arrived whole, at the prices of the script."""
        return self._cost(lambda place: place[3])

    @property
    def lost_tokens_in(self) -> int:
        """Of the prompts of answers that were made, and did not arrive as they should."""
        return self._sum(lambda place: not place[3]).tokens_in

    @property
    def lost_tokens_out(self) -> int:
        """Of those answers."""
        return self._sum(lambda place: not place[3]).tokens_out

    @property
    def lost_cost(self) -> float:
        """What those come to."""
        return self._cost(lambda place: not place[3])

    def as_dict(self) -> dict[str, Any]:
        """All of it, as ``/stats`` says it."""
        numbers = (
            "calls in_flight most_in_flight connections tokens_in tokens_out cost"
            " lost_tokens_in lost_tokens_out lost_cost"
            " repeats duplicates retry_after_sent retry_after_ignored during_retry_after"
        )
        return {
            **{name: getattr(self, name) for name in numbers.split()},
            "outcomes": dict(sorted(self.outcomes.items())),
            "models": self._told(1),
            "keys": self._told(2),
        }

    def _told(self, part: int) -> dict[str, dict[str, Any]]:
        """By the model, or by the key; tokens and cost are those of whole answers."""
        told: dict[str, dict[str, Any]] = {}
        for name in sorted({str(place[part]) for place in self.cells}):
            own = {place: cell for place, cell in self.cells.items() if place[part] == name}
            mine = Stats(self.prices, cells=own)
            told[name] = {
                "calls": sum(cell.calls for cell in own.values()),
                "tokens_in": mine.tokens_in,
                "tokens_out": mine.tokens_out,
                "cost": mine.cost,
            }
        return told

    def _sum(self, fits: Callable[[Place], bool]) -> Cell:
        total = Cell()
        for place, cell in self.cells.items():
            if fits(place):
                _add(total, cell)
        return total

    def _cost(self, fits: Callable[[Place], bool]) -> float:
        costs = []
        for place, cell in self.cells.items():
            if fits(place):
                price = self.prices.get(place[1]) or self.prices.get("*") or Price()
                costs += [cell.tokens_in * price.input, cell.tokens_out * price.output]
        return fsum(costs) / 1e6


def _add(total: Cell, cell: Cell) -> None:
    total.calls += cell.calls
    total.tokens_in += cell.tokens_in
    total.tokens_out += cell.tokens_out
