"""How much money a run may spend, with what the calls in flight may cost set aside."""

from __future__ import annotations

__all__ = ["Budget"]


class Budget:
    """An amount of money that is not to be passed. Pure.

    What a call may cost at the most is reserved before it starts, and what it did cost takes the place of that when it
    has ended. So ``spent + reserved <= total`` at all times, unless a call costs more than was reserved for it, or
    something is spent that nothing was reserved for.

    Args:
        total: The amount; >= 0.
        spent: What was spent of it before; >= 0. It may be more than there is.
    """

    __slots__ = ("reserved", "spent", "total")

    def __init__(self, total: int, spent: int = 0) -> None:
        assert total >= 0, "a budget below nothing"
        assert spent >= 0, "less than nothing was spent"
        self.total = total
        self.spent = spent
        self.reserved = 0

    @property
    def left(self) -> int:
        """What is neither spent nor reserved; below 0 where a call cost more than was reserved for it."""
        return self.total - self.spent - self.reserved

    def fits(self, amount: int) -> bool:
        """Whether so much could be reserved now."""
        return amount <= self.left

    def reserve(self, amount: int) -> bool:
        """Set an amount aside, if it fits."""
        assert amount >= 0, "less than nothing was reserved"
        if not self.fits(amount):
            return False
        self.reserved += amount
        return True

    def is_beyond(self, amount: int) -> bool:
        """Whether so much will not fit any more, even if all that is reserved comes back."""
        return self.spent + amount > self.total

    def settle(self, reserved: int, used: int) -> None:
        """``used`` was spent where ``reserved`` was set aside; 0 where nothing was."""
        assert 0 <= reserved <= self.reserved, "more comes back than was reserved"
        assert used >= 0, "less than nothing was spent"
        self.reserved -= reserved
        self.spent += used
