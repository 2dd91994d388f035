"""What of a job decides its results, and what does not: each job is compared with an edited copy of itself."""

from __future__ import annotations

import ast
import dataclasses
import functools
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import stageflow
from stageflow import DefinitionError, Pipeline, SettingError
from stageflow.commit import JobIdentity
from stageflow.fingerprint import changes, job_identity, upstream_digests
from stageflow.loader import load

JOB = '''\
import functools
from stageflow import Batch, Pipeline, RateLimit, Retry, degrade

LIMIT = RateLimit(per_second=5)
PROMPT = "Answer briefly: "
pipeline = Pipeline("job", key="id", params={"model": "small", "api_key": "sk-not-told"})


def shorten(text):
    return text[:100]


@pipeline.resource
def client(params):
    return params.model


@pipeline.stage(max_in_flight=8, rate_limit=LIMIT, retry=Retry(3, base=1.0))
async def retrieve(query, client):
    """Look it up."""
    return shorten(query)  # not too much


@pipeline.stage(timeout=30, on_error=degrade("nothing"), when=lambda retrieve: len(retrieve) > 1)
async def generate(retrieve):
    return PROMPT + retrieve


@pipeline.stage(batch=Batch(8, within=0.1), version="1")
async def judge(generate):
    return [len(each) for each in generate]


def publish(record, results):
    return results["judge"]


pipeline.add_stage("publish", publish, depends_on=["judge"], run="inline", queue_size=3)


if __name__ == "__main__":
    pipeline.run_sync("in.jsonl", "out.jsonl", limit=10)
'''


class Bench:
    """Writes jobs into folders of their own and loads them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0

    def pipeline(self, text: str = JOB, **files: str) -> Pipeline:
        self._count += 1
        folder = self.path / str(self._count)
        folder.mkdir()
        for name, content in {"job": text, **files}.items():
            (folder / f"{name}.py").write_text(content)
        return load(str(folder / "job.py")).pipeline

    def identity(self, text: str = JOB, **files: str) -> JobIdentity:
        return job_identity(self.pipeline(text, **files).plan())

    def told(self, *edits: tuple[str, str], job: str = JOB) -> list[str]:
        """What the edits, each an old and a new text, change."""
        edited = job
        for old, new in edits:
            assert edited.count(old) == 1, f"{old!r} is there {edited.count(old)} times"
            edited = edited.replace(old, new)
        return changes(self.identity(job), self.identity(edited))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield Bench(tmp_path)
    for name in set(sys.modules) - known:
        if name.startswith("stageflow_job_") or name == "helper":
            del sys.modules[name]


SAME = {
    "nothing": [],
    "a comment": [("# not too much", "# as much as the service takes")],
    "the layout": [('"id", params', '"id",\n    params'), ("\n\ndef shorten", "\n\n\n\ndef shorten")],
    "the number of calls at once": [("max_in_flight=8", "max_in_flight=64")],
    "knobs that were not there": [("timeout=30, ", "timeout=9.5, queue_size=7, run='async', retry=5, ")],
    "a knob less": [("max_in_flight=8, ", "")],
    "the rate": [("per_second=5", "per_minute=90, burst=3")],
    "no rate": [("LIMIT = RateLimit(per_second=5)\n", ""), (" rate_limit=LIMIT,", "")],
    "the retries": [("Retry(3, base=1.0)", "Retry(9, cap=600.0, on=OSError)")],
    "the size of a batch": [("Batch(8, within=0.1)", "Batch(64)")],
    "knobs of a stage added by a call": [('run="inline", queue_size=3', 'run="thread", timeout=3')],
    "where a stage added by a call runs": [('run="inline", queue_size=3', 'run="process", gpus=1')],
    "how it is run": [("limit=10", "limit=99, max_open_records=5")],
    "a key": [("sk-not-told", "sk-renewed")],
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_no_part_of_a_job(bench: Bench, name: str) -> None:
    assert bench.told(*SAME[name]) == []


CALLED = """\
from stageflow import Pipeline

pipeline = Pipeline("called")

def shout(text):
    return text.upper()

pipeline.stage(max_in_flight=8, retry=3)(shout)
"""


def test_knobs_are_no_part_of_a_job_either_where_no_decorator_has_them(bench: Bench) -> None:
    assert bench.told(("max_in_flight=8, retry=3", "timeout=5, queue_size=1"), job=CALLED) == []


REST = "job.py (outside its stages)"
DIFFERENT = {
    "a function": ([("shorten(query)", "shorten(query).strip()")], ['stage "retrieve" (source)']),
    "a docstring": ([("Look it up", "Look up")], ['stage "retrieve" (source)']),
    "another parameter": (
        [("judge(generate)", "judge(generate, retrieve)")],
        ['stage "judge" (source, dependencies)'],
    ),
    "the version": ([('version="1"', 'version="2"')], ['stage "judge" (source)']),
    "no version": ([(', version="1"', "")], ['stage "judge" (source)']),
    "a condition": ([("len(retrieve) > 1", "len(retrieve) > 2")], ['stage "generate" (source)']),
    "a stand-in": ([('degrade("nothing")', 'degrade("none")')], ['stage "generate" (source)']),
    "a stand-in that is a function": (
        [('degrade("nothing")', "degrade(lambda error: 'x')")],
        ['stage "generate" (source)'],
    ),
    "what a failure does": ([('degrade("nothing")', '"skip"')], ['stage "generate" (source)']),
    "what is emitted": ([("timeout=30", "emit=False")], ['stage "generate" (source)']),
    "batched or not": ([("batch=Batch(8, within=0.1), ", "")], ['stage "judge" (source)']),
    "an edge": ([('depends_on=["judge"]', 'depends_on=["judge", "generate"]')], ['stage "publish" (dependencies)']),
    "a new stage": (
        [("def publish", "@pipeline.stage\nasync def score(generate): ...\n\ndef publish")],
        ['stage "score" (new)'],
    ),
    "a new stage that is added by a call": (
        [("\n\nif __name", 'pipeline.add_stage("score", lambda generate: 1)\n\nif __name')],
        ['stage "score" (new)'],
    ),
    "a stage less": (
        [
            ('pipeline.add_stage("publish", publish, depends_on=["judge"], run="inline", queue_size=3)\n', ""),
            ('def publish(record, results):\n    return results["judge"]\n', ""),
        ],
        ['stage "publish" (removed)'],
    ),
    "a helper": ([("text[:100]", "text[:50]")], [REST]),
    "a prompt": ([("Answer briefly", "Answer at length")], [REST]),
    "a resource": ([("return params.model", "return params.model.upper()")], [REST]),
    "the key field": ([('key="id"', 'key="no"')], [REST]),
    "the fields of the output": ([("\n\nif __name", 'pipeline.emit("judge")\n\nif __name')], [REST]),
    "a default": ([('"small"', '"large"')], ['parameter "model"']),
    "a new parameter": ([('{"model"', '{"max_tokens": 9, "model"')], ['parameter "max_tokens" (new)']),
    "much": (
        [("text[:100]", "text[:50]"), ("PROMPT + retrieve", "retrieve"), ('"small"', '"large"')],
        ['stage "generate" (source)', REST, 'parameter "model"'],
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_told_of_a_changed_job(bench: Bench, name: str) -> None:
    edits, told = DIFFERENT[name]
    assert bench.told(*edits) == told


LAMBDAS = (
    "from stageflow import Pipeline\np = Pipeline()\n"
    'p.add_stage("a", lambda x: x + 1); p.add_stage("b", lambda x: x + 2); p.add_stage("c", lambda b: (lambda y: b))\n'
)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("x + 1", "x + 9"), ['stage "a" (source)']),
        (("x + 2", "x + 9"), ['stage "b" (source)']),
        (("lambda y: b", "lambda z: b"), ['stage "c" (source)']),
    ],
)
def test_lambdas_on_one_line_are_told_apart(bench: Bench, edit: tuple[str, str], told: list[str]) -> None:
    assert bench.told(edit, job=LAMBDAS) == told


SHAPES = """\
import functools
from stageflow import Pipeline

def plain(x, prompt="p", api_key=""):
    return prompt + x

class Answers:
    bound = "none"
    def __call__(self, shorter):
        return "called"
    def answer(self, x):
        return "method"

def quoted(function):
    @functools.wraps(function)
    def wrapper(x):
        return f"<{function(x)}>"
    return wrapper

pipeline = Pipeline("shapes")

@pipeline.stage
@quoted
def wrapped(x):
    return "wrapped"

cut = lambda x: x[:3]
pipeline.add_stage("partial", functools.partial(plain, prompt="q", api_key="k"))
pipeline.add_stage("called", Answers())
pipeline.add_stage("method", Answers().answer)
pipeline.add_stage("shorter", cut)
pipeline.add_stage("builtin", len)
"""


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("prompt + x", "x + prompt"), ['stage "partial" (source)']),
        (('prompt="q"', 'prompt="r"'), ['stage "partial" (source)', REST]),
        (('return "called"', 'return "it"'), ['stage "called" (source)']),
        (('return "method"', 'return "it"'), ['stage "method" (source)']),
        (('return "wrapped"', 'return "it"'), ['stage "wrapped" (source)']),
        (("@quoted\n", ""), ['stage "wrapped" (source)']),
        (("x[:3]", "x[:4]"), ['stage "shorter" (source)']),
        (('"none"', '"some"'), [REST]),
        (("<{function(x)}>", "{function(x)}"), [REST]),
    ],
)
def test_functions_of_all_kinds(bench: Bench, edit: tuple[str, str], told: list[str]) -> None:
    # `len` has no name for its parameter that is a field: what is compared is never run.
    assert bench.told(edit, job=SHAPES) == told


def test_a_key_that_a_partial_binds_is_no_part_of_its_stage() -> None:
    def f(x: str, api_key: str, prompt: str) -> None: ...

    def stages(**bound: str) -> Any:
        pipeline = Pipeline()
        pipeline.add_stage("f", functools.partial(f, **bound))
        return job_identity(pipeline.plan()).stages

    assert stages(api_key="a", prompt="p") == stages(api_key="b", prompt="p") != stages(api_key="a", prompt="q")


def test_modules_of_the_job_count_where_they_are_declared(bench: Bench) -> None:
    job = "from stageflow import Pipeline\nimport helper\np = Pipeline()\n@p.stage\ndef a(x): return helper.f(x)\n"
    declared = job.replace("Pipeline()", 'Pipeline(files=["helper.py"])')
    found = []
    for text in (job, declared):
        for number in (1, 2):
            sys.modules.pop("helper", None)
            found.append(bench.identity(text, helper=f"def f(x): return {number}\n"))
    assert changes(found[0], found[1]) == []
    assert changes(found[2], found[3]) == ['file "helper.py"']
    assert changes(found[0], found[2]) == ['file "helper.py" (new)']
    assert changes(found[2], found[0]) == ['file "helper.py" (removed)']


def test_a_stage_from_another_module_counts_wherever_it_is_from(bench: Bench) -> None:
    job = "from stageflow import Pipeline\nimport helper\np = Pipeline()\np.add_stage('f', helper.f)\n"
    found = []
    for number in (1, 2):
        sys.modules.pop("helper", None)
        found.append(bench.identity(job, helper=f"def g(): return {number}\ndef f(x): return {number}\n"))
    assert changes(*found) == ['stage "f" (source)']


@pytest.mark.parametrize(("name", "why"), [("none.txt", "No such file or directory"), (".", "it is no file")])
def test_a_declared_file_that_is_not_there_is_refused_with_its_path(bench: Bench, name: str, why: str) -> None:
    job = f"from stageflow import Pipeline\np = Pipeline(files=['{name}'])\n@p.stage\ndef a(x): ...\n"
    with pytest.raises(DefinitionError, match=re.escape(f"job.py:2: Pipeline(files=...): cannot read {name}: {why}")):
        bench.pipeline(job).plan()


def test_a_declared_file_that_vanishes_later_is_refused_too(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("short")
    pipeline = Pipeline(files=[prompt])
    pipeline.add_stage("a", lambda x: x)
    plan = pipeline.plan()
    before = job_identity(plan)
    prompt.write_text("long")
    assert changes(before, job_identity(plan)) == [f'file "{prompt}"']
    prompt.unlink()
    with pytest.raises(DefinitionError, match=r"cannot read .*prompt\.txt: No such file"):
        job_identity(plan)


@pytest.mark.parametrize("files", ["prompt.txt", [1]])
def test_declared_files_are_a_list_of_paths(files: Any) -> None:
    with pytest.raises(SettingError, match="files must be a list of paths"):
        Pipeline(files=files)


def test_parameters_count_by_value_and_secret_ones_never(bench: Bench) -> None:
    plan = bench.pipeline().plan()
    first = {"model": "a", "n": 1, "OpenAI_Key": "x", "password": "y", "max_tokens": 5}
    second = {"model": "b", "n": "1", "OpenAI_Key": "z", "auth_token": "z", "max_tokens": 6}
    before, now = (job_identity(dataclasses.replace(plan, params=params)) for params in (first, second))
    assert changes(before, now) == ['parameter "model"', 'parameter "n"', 'parameter "max_tokens"']
    assert list(before.params) == ["model", "n", "max_tokens"]


def test_nothing_of_the_job_can_be_read_in_its_digests(bench: Bench) -> None:
    identity = bench.identity()
    digests = [identity.rest, *identity.stages.values(), *identity.params.values()]
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)
    assert "small" not in str(identity)
    assert "sk-" not in str(identity)


def test_knobs_given_from_outside_are_no_part_either(bench: Bench) -> None:
    from stageflow.plan import Override

    pipeline = bench.pipeline()
    knobs = {"max_in_flight": 3, "queue_size": 9, "timeout": 1.0, "retry": 7}
    overrides = [Override(None, name, value, "--set") for name, value in knobs.items()]
    assert job_identity(pipeline.plan(overrides)) == job_identity(pipeline.plan())
    skip = [Override("judge", "on_error", "skip", "--set")]
    assert changes(job_identity(pipeline.plan()), job_identity(pipeline.plan(skip))) == ['stage "judge" (source)']


SHOW = "from stageflow.fingerprint import job_identity, upstream_digests\nplan = pipeline.plan()\n"
SHOW += "identity = job_identity(plan)\nprint(identity, upstream_digests(identity, plan))\n"


def printed_by(arguments: list[str], folder: Path, seed: str) -> str:
    root = str(Path(stageflow.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_every_process_finds_the_same_identity(tmp_path: Path) -> None:
    sets = JOB.replace('degrade("nothing")', 'degrade({"a": {"x", "y", "z"}, "b": object})')
    (tmp_path / "job.py").write_text(sets)
    as_module = f"import sys; sys.path.insert(0, '.')\nfrom stageflow.loader import load\nimport os\n{SHOW}"
    found = {
        printed_by(["-c", as_module.replace("plan =", "pipeline = load('job.py').pipeline\nplan =", 1)], tmp_path, seed)
        for seed in ("1", "2")
    }
    # As a script, too: what stands under `if __name__ == "__main__":` is how it is run, and no part of it.
    script = sets.replace(
        '    pipeline.run_sync("in.jsonl", "out.jsonl", limit=10)', "    " + SHOW.replace("\n", "\n    ")
    )
    (tmp_path / "job.py").write_text(script)
    found.add(printed_by(["job.py"], tmp_path, "3"))
    assert len(found) == 1, found


def test_a_function_without_source_is_told_by_its_bytecode() -> None:
    def made(text: str) -> Callable[..., Any]:
        names: dict[str, Any] = {}
        exec(text, names)
        return names["f"]  # type: ignore[no-any-return]

    def digest(text: str) -> str:
        pipeline = Pipeline()
        pipeline.add_stage("f", made(text))
        return job_identity(pipeline.plan()).stages["f"]

    base = "def f(x):\n    return [y in {'a', 'b'} for y in x]"
    assert digest(base) == digest(f"# a comment\n\n{base}")
    assert digest(base) != digest(base.replace("'b'", "'c'"))
    assert digest(base) != digest(base.replace("{'a'", "{x, 'a'"))


LONG = "from stageflow import Pipeline\np = Pipeline()\n\n@p.stage\ndef a(x):\n    return {sum}\n\nSUM = {other}\n"


def test_expressions_of_any_length_are_compared(bench: Bench) -> None:
    terms = " + ".join(["'a'"] * 700)
    job = LONG.format(sum="1", other=terms)
    assert bench.told((terms, f"{terms} + 'b'"), job=job) == [REST]
    names = " + ".join(["x"] * 700)
    job = LONG.format(sum=names, other=1)
    assert 'stage "a" (source)' in bench.told((names, f"{names} + 'b'"), job=job)


def test_a_job_that_python_warns_of_is_not_warned_of_again(bench: Bench) -> None:
    pipeline = bench.pipeline("from stageflow import Pipeline\np = Pipeline()\n@p.stage\ndef a(x): return 'd'\n")
    plan = pipeline.plan()
    assert plan.file is not None
    Path(plan.file).write_text(Path(plan.file).read_text().replace("'d'", r"'\d'"))
    job_identity(plan)  # a warning would be an error here


def test_a_script_that_changes_its_folder_is_the_same_job(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB.replace('    pipeline.run_sync("in.jsonl", "out.jsonl", limit=10)', CHANGES))
    printed = {printed_by(["job.py", folder], tmp_path, "0") for folder in (".", "/")}
    assert len(printed) == 1, printed


CHANGES = "    import os, sys\n    os.chdir(sys.argv[1])\n    " + SHOW.replace("\n", "\n    ")


def test_a_job_without_a_file_has_an_identity_by_its_plan() -> None:
    names: dict[str, Any] = {}
    exec("from stageflow import Pipeline\np = Pipeline('typed')\n@p.stage\ndef a(x): ...\n", names)
    plan = names["p"].plan()
    assert plan.file is None
    assert job_identity(plan).file == "typed"
    names["p"].emit("a")
    assert changes(job_identity(plan), job_identity(names["p"].plan())) == ["typed (outside its stages)"]


def test_the_job_file_is_the_one_that_was_loaded(bench: Bench) -> None:
    make = "from stageflow import Pipeline\ndef make():\n    return Pipeline('made elsewhere')\n"
    job = "from helper import make\nPROMPT = 'a'\np = make()\n@p.stage\ndef a(x): return PROMPT\n"
    before = bench.identity(job, helper=make)
    now = bench.identity(job.replace("'a'", "'b'"), helper=make)
    assert before.file == "job.py"
    assert changes(before, now) == [REST]


# What is above a stage


def upstream(bench: Bench, *edits: tuple[str, str]) -> set[str]:
    """The stages above which something is not what it was."""
    found = []
    for edited in ([], edits):
        text = JOB
        for old, new in edited:
            text = text.replace(old, new)
        plan = bench.pipeline(text).plan()
        found.append(upstream_digests(job_identity(plan), plan))
    return {name for name in found[1] if found[0].get(name) != found[1][name]}


@pytest.mark.parametrize(
    ("edit", "below"),
    [
        (("# not too much", ""), set()),
        (("shorten(query)", "query"), {"generate", "judge", "publish"}),
        (("PROMPT + retrieve", "retrieve"), {"judge", "publish"}),
        (('results["judge"]', "results"), set()),
        (('"small"', '"large"'), {"generate", "judge", "publish"}),  # `retrieve` takes it by way of its client
        (('depends_on=["judge"]', 'depends_on=["retrieve"]'), {"publish"}),
        (("Answer briefly", "Answer"), {"retrieve", "generate", "judge", "publish"}),
    ],
)
def test_what_stands_above_a_stage(bench: Bench, edit: tuple[str, str], below: set[str]) -> None:
    assert upstream(bench, edit) == below


def test_a_changed_file_is_above_every_stage(bench: Bench) -> None:
    plan = bench.pipeline().plan()
    identity = job_identity(plan)
    other = dataclasses.replace(identity, files={"prompt.txt": "0" * 16})
    before, now = upstream_digests(identity, plan), upstream_digests(other, plan)
    assert {name for name in now if now[name] != before[name]} == set(plan.stages)


class Parses:
    """Garbage that has something parsed when it is collected, as a task does whose traceback is printed then."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        ast.parse("(\n" + "-" * 30 + "x\n)")


def test_what_is_parsed_while_garbage_is_collected_is_no_concern_of_it(bench: Bench) -> None:
    plan = bench.pipeline().plan()
    before = job_identity(plan)
    threshold = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for _ in range(10):
            garbage = [Parses() for _ in range(30)]
            del garbage
            assert job_identity(plan) == before
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
    assert gc.isenabled()
