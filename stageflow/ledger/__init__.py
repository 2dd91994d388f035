"""The durable output of a run: results, dead letters, and a ledger that says what of them counts."""

from __future__ import annotations

from stageflow.ledger.status import Holder, LedgerStatus, status
from stageflow.ledger.writer import Fsync, LedgerOutput

__all__ = ["Fsync", "Holder", "LedgerOutput", "LedgerStatus", "status"]
