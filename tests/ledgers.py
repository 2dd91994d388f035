"""What a ledger says, read as a user would: without checking anything, and also while it is being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stageflow.ledger.format import SEAL_BYTES

__all__ = ["committed", "ledger_lines"]


def ledger_lines(ledger: Path) -> list[dict[str, Any]]:
    """The whole lines; none where there is no ledger yet."""
    data = ledger.read_bytes() if ledger.exists() else b""
    return [json.loads(line[SEAL_BYTES:]) for line in data.split(b"\n")[:-1]]


def committed(ledger: Path) -> list[int]:
    """The records that have settled, in that order."""
    return [ordinal for fields in ledger_lines(ledger) if fields["t"] == "c" for ordinal in fields["k"]]
