"""Serve SmolLM2 over HTTP as OpenAI's API has it, by llama.cpp's own server, for this machine only.

    python jobs/ragkit/serve.py --port 8080
    stageflow run jobs/rag.py jobs/queries.jsonl -o answers.jsonl --limit 12 \\
        -p base_url=http://127.0.0.1:8080/v1 -p model=smollm2 -p api_key_env=

It prints its base URL when it answers; Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # a script's own folder is on the path; the package's is the one above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ragkit.local_model import ModelMissing, start


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until it is interrupted; return 2 where it can't."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080, help="0: one that is free")
    parser.add_argument("--slots", type=int, default=4, help="questions that are answered at once")
    parser.add_argument("--threads", type=int, help="CPU threads of the model; by default all cores but one")
    given = parser.parse_args(argv)
    try:
        server = start(slots=given.slots, threads=given.threads, port=given.port)
    except ModelMissing as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"it did not start at port {given.port}, which may be taken: {error}", file=sys.stderr)
        return 2
    print(f"{server.listening_address}/v1", flush=True)
    try:
        while True:
            time.sleep(0.5)  # in turns: a signal may reach a thread of the server's, which wakes nobody here
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
