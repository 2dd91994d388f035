"""``stageflow status``: what the ledger beside an output says, in plain lines or as JSON.

An output that is a folder or a bucket has no ledger, but the commits of its shards.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from stageflow.cluster.status import is_sharded, sharded_json, sharded_text
from stageflow.ledger.status import LedgerStatus, status
from stageflow.money import amount_of, shown
from stageflow.report.text import counted

__all__ = ["status_json", "status_text"]


def status_text(path: str) -> str:
    """How far the run behind an output is, a line for each thing there is to say.

    Raises:
        RequestError: There is no ledger, or it can't be read.
        StorageError: There are commits, and they can't be read.
    """
    if is_sharded(path):
        return sharded_text(path)
    return "\n".join(_lines(path, status(path)))


def status_json(path: str) -> str:
    """The same as one line of JSON.

    Raises:
        RequestError, StorageError: As :func:`status_text`.
    """
    if is_sharded(path):
        return sharded_json(path)
    found = status(path)
    return json.dumps({"output": path, **asdict(found), "settled": found.totals.settled})


def _lines(path: str, found: LedgerStatus) -> list[str]:
    totals, holder = found.totals, found.holder
    by = f" (pid {holder.pid} on {holder.host} since {holder.since})" if holder is not None else ""
    left = f", about {found.left:,} left" if found.left else ""
    lines = [
        f"{path}: {found.state}{by}",
        f"  {counted(totals.settled, 'record')} done = {totals.written:,} written + {totals.dropped:,} dropped + "
        f"{totals.dead:,} dead{left}",
        f"  run {found.run}, started {'once' if found.epoch == 1 else f'{found.epoch} times'}: "
        f"{found.job} over {found.input or 'an input that can not be read again'}",
    ]
    if found.letters:
        lines.append(f"  {counted(found.letters, 'dead letter')} not tried again")
    if found.cost or found.cost_unsure:
        most = f", at most {shown(amount_of(found.cost + found.cost_unsure))}" if found.cost_unsure else ""
        lines.append(f"  its calls cost {shown(amount_of(found.cost))}{most}, in the currency of the job's prices")
    if found.last_sync is not None:
        lines.append(f"  safe from a power loss: {counted(found.synced.settled, 'record')}, at {found.last_sync}")
    return lines
