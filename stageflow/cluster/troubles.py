"""What is known of shards that replicas were lost with. Pure.

The rules:

* Where a replica has died for sure, each shard that it held is charged with a death. Where it fell silent, with half a
  one: it may have been frozen or cut off, or hang in a record.
* A replica that does a shard with care tells of each record before it runs it. Where it dies then, that record has
  killed it: it is *fatal*, and the death is not charged. Where it falls silent, the record is fatal if another one has
  fallen silent at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stageflow.cluster.messages import ShardLease

__all__ = ["Troubles"]


@dataclass(slots=True)
class _Trouble:
    """Of one shard.

    Attributes:
        fatal: Places in it of records that kill.
        silent_at: Those of records at which a replica fell silent.
        half: A silence was not charged yet.
    """

    fatal: set[int] = field(default_factory=set)
    silent_at: set[int] = field(default_factory=set)
    half: bool = False


class Troubles:
    """Of all shards."""

    def __init__(self) -> None:
        self._of: dict[int, _Trouble] = {}

    def fatal(self, number: int) -> tuple[int, ...]:
        """The places in a shard of records that kill."""
        return tuple(sorted(self._of[number].fatal)) if number in self._of else ()

    def charges(self, lease: ShardLease, at_record: tuple[int, int] | None, *, silent: bool) -> bool:
        """A replica that had a lease was lost: whether the shard is charged with a death now.

        Args:
            at_record: The shard and the place in it of the record that it was about to run, by what it said last.
            silent: It is not sure that it has died.
        """
        trouble = self._of.setdefault(lease.number, _Trouble())
        if lease.careful and at_record is not None and at_record[0] == lease.number:
            place = at_record[1]
            if place not in trouble.fatal and (not silent or place in trouble.silent_at):
                trouble.fatal.add(place)
                return False
            trouble.silent_at.add(place)
        if silent:
            trouble.half = not trouble.half
            return not trouble.half
        return True

    def forget(self, number: int) -> None:
        """A shard is committed."""
        self._of.pop(number, None)
