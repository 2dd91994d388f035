"""The durable output of a run: results, dead letters, and a ledger that says what of them counts.

What is read of a ledger beside its run is in the module ``status``, with its function of the same name.
"""

from __future__ import annotations

from stageflow.ledger.status import Holder, LedgerStatus
from stageflow.ledger.writer import Fsync, LedgerOutput

__all__ = ["Fsync", "Holder", "LedgerOutput", "LedgerStatus"]
