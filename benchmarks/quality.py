"""How good are the answers of the example jobs? Recall of the retrievers, and how many answers stand on their evidence.

    python benchmarks/quality.py
    python benchmarks/quality.py --quick

Asks the questions of jobs/queries.jsonl, for which the passages that answer them are known. recall@k is the share of
questions with such a passage among the first k; "cited" is the share of answers that cite one. The figures depend on
the interpreter (its documentation is the corpus) and not on the machine. The ranking's few weights were fitted on these
questions, so expect a little less on others. Exits 1 if a retriever's recall@5 is below
0.8.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JOBS = Path(__file__).resolve().parent.parent / "jobs"
sys.path.insert(0, str(JOBS))

from ragkit.engines import ENGINES  # noqa: E402 - the jobs' folder has to be on the path first
from ragkit.extract import INSUFFICIENT, extract  # noqa: E402
from ragkit.grounding import validate  # noqa: E402
from ragkit.index import Index, open_index  # noqa: E402

NEEDED = 0.8
QUICK = 60
DEPTHS = (1, 3, 5)


def measure(index: Index, questions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the shares for one retriever, each from 0 to 1."""
    counts = dict.fromkeys((*(f"recall@{depth}" for depth in DEPTHS), "grounded", "insufficient", "cited"), 0)
    for question in questions:
        expected = set(question["expect"])
        hits = index.search(question["query"])
        answer = extract(question["query"], hits, index)
        for depth in DEPTHS:
            counts[f"recall@{depth}"] += any(hit["id"] in expected for hit in hits[:depth])
        counts["grounded"] += validate(answer, hits, index)["grounded"]
        counts["insufficient"] += answer["answer"] == INSUFFICIENT
        counts["cited"] += any(citation["doc"] in expected for citation in answer["citations"])
    return {name: round(count / len(questions), 4) for name, count in counts.items()}


def main() -> int:
    """Print a table and a JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"ask the first {QUICK} questions only")
    quick = parser.parse_args().quick
    lines = (JOBS / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines][: QUICK if quick else None]
    results: dict[str, dict[str, float]] = {}
    for retriever in ENGINES:
        start = time.perf_counter()
        index = open_index(retriever)
        opened = time.perf_counter()
        results[retriever] = measure(index, questions)
        asked = time.perf_counter()
        results[retriever] |= {
            "open_seconds": round(opened - start, 2),
            "ms_per_question": round((asked - opened) / len(questions) * 1e3, 2),
        }
    print(f"{len(questions)} questions, {len(index.passages)} passages, Python {platform.python_version()}")
    columns = list(results[index.retriever])
    print(f"{'retriever':<11}" + "".join(f"{name:>17}" for name in columns))
    for retriever, figures in results.items():
        print(f"{retriever:<11}" + "".join(f"{figures[name]:>17}" for name in columns))
    fixed = {"python": platform.python_version(), "questions": len(questions), "passages": len(index.passages)}
    print(json.dumps(fixed | {"retrievers": results}))
    return int(min(figures["recall@5"] for figures in results.values()) < NEEDED)


if __name__ == "__main__":
    sys.exit(main())
