"""What a run on Ray is made of, where no cluster is needed to see that it is right."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from stageflow import RequestError
from stageflow.cluster.engines import CoordinatorSetup, ReplicaSetup
from stageflow.cluster.ray import RayEngine
from stageflow.cluster.ray.idling import Idling
from stageflow.cluster.ray.shipping import LARGE_BYTES, Shipment, origin_there
from stageflow.cluster.ray.versions import Versions
from stageflow.options import Options
from stageflow.testing import run_virtual
from stageflow.work import JobOrigin


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


# What is sent


def test_a_job_is_sent_with_its_neighbours(tmp_path: Path) -> None:
    put(tmp_path, "job.py", "stageflow.toml", "lib/__init__.py", "lib/words.txt")
    sent = Shipment.of(tmp_path)
    assert [str(path) for path in sent.files] == ["job.py", "stageflow.toml", "lib/__init__.py", "lib/words.txt"]
    target = tmp_path / ".there"
    sent.lay_out(target)
    assert (target / "lib" / "words.txt").read_text() == "lib/words.txt"


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        ".env",
        ".venv/lib/x.py",
        "env3/pyvenv.cfg",
        "__pycache__/job.pyc",
        "job.pyc",
        "out/_stageflow/plan.json",
        "out/part-000000.jsonl",
        "x.egg-info/PKG-INFO",
    ],
)
def test_what_is_no_part_of_a_job_is_not_sent(tmp_path: Path, name: str) -> None:
    put(tmp_path, "job.py", name)
    if name.startswith("out/"):
        put(tmp_path, "out/_stageflow/plan.json")
    assert [str(path) for path in Shipment.of(tmp_path).files] == ["job.py"]


def test_a_large_file_stays_and_is_told_of(tmp_path: Path) -> None:
    put(tmp_path, "job.py")
    with (tmp_path / "in.jsonl").open("wb") as file:
        file.truncate(LARGE_BYTES + 1)
    sent = Shipment.of(tmp_path)
    assert sent.files == (Path("job.py"),)
    assert sent.left_out == ((Path("in.jsonl"), LARGE_BYTES + 1),)


def test_a_folder_that_is_no_jobs_folder_is_refused(tmp_path: Path) -> None:
    for n in range(21):
        with (tmp_path / f"{n}.bin").open("wb") as file:
            file.truncate(LARGE_BYTES)
    with pytest.raises(RequestError, match="more than 10,000 files or 200 MB"):
        Shipment.of(tmp_path)


def test_a_reference_is_the_same_place_in_what_was_sent(tmp_path: Path) -> None:
    put(tmp_path, "job.py", "sub/job.py")

    def there(reference: str, folder: Path = tmp_path) -> str:
        return origin_there(JobOrigin(reference, (), None), folder).reference

    assert there(f"{tmp_path}/job.py") == "./job.py"
    assert there(f"{tmp_path}/job.py:other") == "./job.py:other"
    assert there(f"{tmp_path}/sub/job.py") == "./sub/job.py"
    assert there("package.module:name") == "package.module:name"
    with pytest.raises(RequestError, match="not in the folder"):
        there(f"{tmp_path}/job.py", tmp_path / "sub")


# Who ends before it has worked


def test_replicas_that_go_without_having_worked_are_counted_while_none_works() -> None:
    idling = Idling()
    idling.died("a")
    idling.died("b")
    assert idling.count == 2
    idling.works("c")
    assert idling.count == 0
    idling.died("d")
    assert idling.count == 0, "one works"
    idling.died("c")
    assert idling.count == 1
    idling.died("e")
    assert idling.count == 2


def test_a_replica_that_left_does_not_hide_those_that_can_not_begin() -> None:
    idling = Idling()
    idling.works("a")
    idling.left("a")
    idling.died("b")
    assert idling.count == 1


# Versions and addresses


def test_the_minor_of_python_and_all_of_ray_have_to_be_the_same() -> None:
    here = Versions("3.11.7", "2.60.0")
    assert here.suits(Versions("3.11.9", "2.60.0"))
    assert not here.suits(Versions("3.12.7", "2.60.0"))
    assert not here.suits(Versions("3.11.7", "2.59.0"))
    assert str(here) == "Python 3.11.7 and Ray 2.60.0"


def test_the_address_of_a_ray_client_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="Ray client") as caught:
        RayEngine("ray://head:10001", working_dir=tmp_path)
    assert "ray job submit" in str(caught.value.hint)


def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="Ray is not installed") as caught:
        RayEngine(working_dir=tmp_path)
    assert caught.value.hint == "pip install 'stageflow[ray]'"


def test_an_engine_loads_no_ray_before_it_is_started(tmp_path: Path) -> None:
    pytest.importorskip("ray.cluster_utils", reason="needs stageflow[ray]")
    code = """
import sys
from pathlib import Path
from stageflow.cluster.ray import RayEngine
RayEngine(working_dir=Path("."))
print("ray" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
    )
    assert done.stdout == "False\n"


def test_a_cluster_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("ray.cluster_utils", reason="needs stageflow[ray]")
    put(tmp_path, "job.py")
    engine = RayEngine("127.0.0.1:1", working_dir=tmp_path)
    replica = ReplicaSetup(store="out", job=JobOrigin(f"{tmp_path}/job.py", (), None), options=Options())
    with pytest.raises(RequestError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        asyncio.run(engine.start(CoordinatorSetup(store="out", shards=1, limits={}), replica, 1))


# A call that is made until it is answered


def test_a_coordinator_that_is_away_is_asked_again() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="needs stageflow[ray]")
    from stageflow.cluster.ray.calls import answered

    calls: list[float] = []

    async def call() -> str:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) < 5:
            raise exceptions.ActorUnavailableError("away", None)
        return "here"

    async def asked() -> str:
        return str(await answered(call))

    assert run_virtual(asked()) == "here"
    assert calls == pytest.approx([0.0, 0.05, 0.15, 0.35, 0.75])


def test_one_that_stays_away_is_given_up() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="needs stageflow[ray]")
    from stageflow.cluster.ray.calls import AWAY_SECONDS, answered

    async def call() -> str:
        raise exceptions.ActorDiedError()

    async def asked() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(exceptions.ActorDiedError):
            await answered(call)
        return loop.time()

    assert AWAY_SECONDS - 1.0 < run_virtual(asked()) <= AWAY_SECONDS


# Which folder is sent


def packed(engine: RayEngine, reference: str) -> tuple[str, list[str]]:
    replica, sent = engine._packed(ReplicaSetup(store="out", job=JobOrigin(reference, (), None), options=Options()))
    return replica.job.reference, [str(path) for path in sent.files]


def test_of_a_file_its_folder_is_sent_and_of_a_module_the_working_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "jobs/rag.py", "jobs/words.txt", "notes.txt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    engine = RayEngine(working_dir=tmp_path / "jobs")
    monkeypatch.chdir(tmp_path)
    assert packed(engine, f"{tmp_path}/jobs/rag.py") == ("./rag.py", ["rag.py", "words.txt"])
    assert packed(engine, "jobs.rag") == ("jobs.rag", ["notes.txt", "jobs/rag.py", "jobs/words.txt"])
    monkeypatch.chdir(tmp_path / "jobs")
    assert packed(RayEngine(working_dir=tmp_path), "installed.job") == ("installed.job", [])


def test_what_was_sent_when_the_driver_was_submitted_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "jobs/rag.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://package.zip"}}')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    engine = RayEngine(working_dir=tmp_path / "jobs")
    assert packed(engine, f"{tmp_path}/jobs/rag.py") == ("./jobs/rag.py", [])


# Who may have how much


def test_nobody_takes_all_that_is_left_before_the_others_have_asked() -> None:
    from stageflow.cluster.ray.actors import fair

    assert fair(64, held=0, left=40, replicas=2) == 10
    assert fair(64, held=7, left=40, replicas=2) == 3
    assert fair(64, held=12, left=40, replicas=2) == 0
    assert fair(2, held=7, left=40, replicas=2) == 2, "what it does not ask for it is not given"
    assert fair(64, held=0, left=3, replicas=2) == 4, "one that has nothing can always have some"
    assert fair(64, held=0, left=200_000, replicas=10) == 64
