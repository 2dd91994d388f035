"""A real S3 server in a process of its own, on a free port of this machine."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

_SECONDS = 60.0


@dataclass
class Bucket:
    """A bucket, and how it is reached."""

    endpoint: str
    name: str = "results"
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
        }

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process reach it."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def new_folder(self) -> str:
        """An address below which nothing is."""
        return f"s3://{self.name}/folder-{next(self._numbers)}/out"


@contextmanager
def serving_s3() -> Iterator[Bucket]:
    """Serve until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    bucket = Bucket(f"http://127.0.0.1:{port}")
    try:
        _make(bucket, process)
        yield bucket
    finally:
        process.kill()
        process.wait()


def _make(bucket: Bucket, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _SECONDS
    while True:
        try:
            asked = urllib.request.Request(f"{bucket.endpoint}/{bucket.name}", method="PUT")
            with urllib.request.urlopen(asked, timeout=5):
                return
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < until, "the S3 server does not answer"
            time.sleep(0.05)
