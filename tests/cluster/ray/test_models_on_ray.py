"""Models on a real Ray, whose machines say that they have a GPU each; one is killed in the middle."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from clusters import Workbench, is_there, until

pytest.importorskip("ray.cluster_utils", reason="needs stageflow[ray]")
pytestmark = [pytest.mark.timeout(180), pytest.mark.ray, pytest.mark.xdist_group("ray")]

RECORDS = 6_000
JOB = """
    import os
    import time
    from stageflow import Pipeline

    pipeline = Pipeline("models", key="id")

    @pipeline.resource(scope="process")
    def model():
        with open(f"FOLDER/calls.{os.getpid()}", "a", buffering=1) as calls:
            def triple(id):
                calls.write(f"{id}\\n")
                time.sleep(0.002)
                return 3 * id
            assert os.environ["MODEL_KEY"] == "secret"
            yield triple
        open(f"FOLDER/closed.{os.getpid()}", "w").close()

    @pipeline.stage
    async def retrieve(id: int) -> int:
        return id + 1

    @pipeline.stage(run="process", gpus=1, max_in_flight=128)
    def generate(id: int, retrieve: int, model) -> int:
        if id % 997 == 5:
            raise ValueError("no such number")
        return model(id) + retrieve
"""
DEAD = list(range(5, RECORDS, 997))


def test_a_model_is_killed_and_another_takes_its_place(bench: Workbench) -> None:
    bench.write(JOB.replace("FOLDER", str(bench.folder)), ({"id": n} for n in range(RECORDS)))
    env = {"MODEL_KEY": "secret"}
    driver = bench.begin("--nodes", "2", "--model-actors", "generate=2", "--env", "MODEL_KEY", env=env)
    until(lambda: bench.commits() >= 4 and len(models := bench.replicas()) == 2 and models)
    killed = min(bench.replicas())
    assert killed in bench.cluster.processes("ModelActor")
    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_there(killed))
    code, told = bench.ended(driver)
    assert code == 3, told
    assert bench.ids() == [n for n in range(RECORDS) if n not in DEAD]
    assert [letter["record"]["id"] for letter in bench.letters()] == DEAD
    assert "no such number" in str(bench.letters()[0]["error"])
    calls = Counter(record for _, record in bench.calls())
    again = sum(calls.values()) - len(calls)
    assert 0 <= again <= 2 * 2 * 32  # what each of two replicas had sent to it
    by_model = Counter(pid for pid, _ in bench.calls())
    assert len(by_model) == 3, "no other has taken its place"
    closed = {int(path.suffix[1:]) for path in bench.folder.glob("closed.*")}
    assert closed == set(by_model) - {killed}
