"""Money as whole numbers, so that sums are exact whatever their order.

No currency is assumed: an amount is in that of the prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from stageflow.errors import SettingError

__all__ = ["Price", "amount_of", "from_text", "shown", "to_text", "units"]

_PARTS: Final = 10**12
"""Of a unit of the currency: down to its sixth digit, a price per million tokens is a whole number of these per token.
"""

_TOKENS: Final = 1_000_000
_MOST: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs per million tokens: ``Pipeline(prices={"small": Price(input=0.15, output=0.60)})``.

    Args:
        input, output: For what is sent to it, and for what it answers; finite and >= 0, in any one currency.

    Raises:
        SettingError: A number is out of range.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            value: Any = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _MOST:
                raise SettingError(
                    f"the price of {name} must be a number of at least 0, not {value!r}",
                    hint="per million tokens, for instance Price(input=0.15, output=0.60)",
                )

    def of(self, input_tokens: int, output_tokens: int) -> int:
        """The amount for so many tokens."""
        return input_tokens * _per_token(self.input) + output_tokens * _per_token(self.output)

    def least(self, tokens: int) -> int:
        """The amount for tokens of either kind, if all are of the cheaper one."""
        return tokens * _per_token(min(self.input, self.output))

    def most(self, tokens: int) -> int:
        """The amount for tokens of either kind, if all are of the dearer one."""
        return tokens * _per_token(max(self.input, self.output))


def _per_token(price: float) -> int:
    return round(price * (_PARTS // _TOKENS))


def amount_of(number: float) -> int:
    """A number of units of the currency as an amount."""
    whole = int(number)
    return whole * _PARTS + round((number - whole) * _PARTS)


def units(amount: int) -> float:
    """An amount in units of the currency."""
    return amount / _PARTS


def shown(amount: int) -> str:
    """``5.00``, ``1,234.50``; below one unit as many as three digits that count: ``0.31``, ``0.0498``, ``0.004``."""
    number = units(amount)
    digits = 2
    while amount and abs(number) * 10**digits < 99.5 and digits < 9:
        digits += 1
    text = f"{number:,.{digits}f}"
    cents = text.index(".") + 3
    return text[:cents] + text[cents:].rstrip("0")


def to_text(amount: int) -> str:
    """For a file: exact, in units of the currency."""
    assert amount >= 0, "a debt"
    whole, rest = divmod(amount, _PARTS)
    return f"{whole}.{rest:012}"


def from_text(text: str) -> int:
    """What :func:`to_text` wrote."""
    whole, _, rest = text.partition(".")
    return int(whole) * _PARTS + int(rest)
