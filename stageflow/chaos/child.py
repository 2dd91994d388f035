"""``stageflow`` in a child process that notes the calls of handlers: ``python -m stageflow.chaos.child LOG run ...``"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from stageflow.engine import run as engine
from stageflow.engine.binding import Binder
from stageflow.item import Item

__all__ = ["note_calls"]


def note_calls(path: str) -> None:
    """Note every call of a handler from here on, as it begins: the stage, the record, and the child's place in it."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(stage: str, items: Sequence[Item]) -> None:
        places = (".".join(map(str, (item.index, *item.path))) for item in items)
        os.write(log, "".join(f"{stage}\t{place}\n" for place in places).encode())

    class Noting(Binder):
        handler: Any = None

        def call(self, target: Callable[..., Any]) -> Callable[..., Any]:
            call, stage = super().call(target), self.stage.name
            self.handler = self.handler or target
            if target is not self.handler:  # the first one is the handler; another one asks for its arguments
                return call

            def noting(item: Item, ctx: Any = None) -> Any:
                note(stage, [item])
                return call(item, ctx)

            return noting

        def turn(self, target: Callable[..., Any]) -> Callable[..., Any]:
            return self.turn_of(self.call(target))

        def batch_call(self, target: Callable[..., Any]) -> Callable[..., Any]:
            call, stage = super().batch_call(target), self.stage.name

            def noting(items: Sequence[Item]) -> Any:
                note(stage, items)
                return call(items)

            return noting

    # Put in its place rather than asked for: a hook for this would cost each call of every run.
    vars(engine)["Binder"] = Noting


if __name__ == "__main__":
    from stageflow.cli import main

    note_calls(sys.argv[1])
    main(sys.argv[2:])
