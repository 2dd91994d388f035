"""``stageflow testserver``: the test server by itself, until it is interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from stageflow.entry import run_on_loop
from stageflow.errors import RequestError
from stageflow.testing.server import TestServer

__all__ = ["serve"]

Say = Callable[[str], object]


def serve(
    script: str | os.PathLike[str] | None, *, host: str, port: int, seed: int | None, loop: str, tell: Say, show: Say
) -> None:
    """Run a :class:`TestServer` until SIGINT or SIGTERM, and say then what it counted.

    Args:
        script, host, port, seed: As for the server.
        loop: As for :func:`stageflow.entry.run_on_loop`.
        tell: Takes what is for people.
        show: Takes the base URL, once it answers, and the stats as JSON at the end.

    Raises:
        RequestError: The script is refused, or it can't listen there.
    """
    _allow_connections()
    server = TestServer(None if script is None else Path(script), seed=seed, host=host, port=port)
    tell(f"stageflow: test server, seed {server.seed}, {_reach(host)}; Ctrl-C ends it and prints what it counted")
    with suppress(KeyboardInterrupt):  # where loops take no signal handlers
        run_on_loop(lambda: _until_stopped(server, show), loop)
    show(json.dumps(server.stats.as_dict(), indent=2))


async def _until_stopped(server: TestServer, show: Say) -> None:
    stopped = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    try:
        await server.__aenter__()
    except OSError as error:
        raise RequestError(
            f"cannot listen at {server.address}: {error.strerror or error}", hint="--port 0 takes a port that is free"
        ) from None
    try:
        show(server.url)
        await stopped.wait()
    finally:
        await server.__aexit__(None, None, None)


def _reach(host: str) -> str:
    with suppress(ValueError):
        if ip_address(host).is_loopback:
            return "for this machine only"
    return "for this machine only" if host == "localhost" else f"FOR EVERYBODY WHO REACHES {host}"


def _allow_connections() -> None:
    """Let it have as many connections as the system allows: the usual limit of files is 1,024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
