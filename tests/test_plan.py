"""The frozen job: what a parameter's name means, what is refused with which words, and which setting wins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow import Batch, DefinitionError, GraphError, JobLoadError, Params, Pipeline, SettingError, degrade
from stageflow.loader import load
from stageflow.plan import Override
from stageflow.settings import from_amounts, from_environment, from_file, from_pairs, parse_params


@dataclass
class Context:
    query: str
    answer: str = ""


async def nothing(x: Any) -> None: ...


def job_of(tmp_path: Path, text: str, header: str = "from stageflow import Pipeline, degrade\n") -> Any:
    """Load ``job.py`` with this text; the first line of ``text`` is line 2."""
    path = tmp_path / "job.py"
    path.write_text(header + dedent(text).strip("\n") + "\n")
    return load(str(path))


def refusal(tmp_path: Path, text: str, **options: Any) -> DefinitionError:
    with pytest.raises(DefinitionError) as caught:
        job_of(tmp_path, text).pipeline.plan(**options)
    assert caught.value.exit_code == 2
    return caught.value


def kinds(pipeline: Pipeline, stage: str) -> dict[str, str]:
    return {parameter.name: parameter.kind for parameter in pipeline.plan().stages[stage].parameters}


# Parameters


def test_a_parameter_is_a_stage_a_resource_a_reserved_name_or_a_field() -> None:
    pipeline = Pipeline()

    @pipeline.resource
    def index() -> None: ...

    @pipeline.stage
    async def retrieve(query: str) -> None: ...

    @pipeline.stage
    async def generate(retrieve, index, record, results, params, call, ctx, query, *, lang) -> None:  # type: ignore[no-untyped-def]
        ...

    assert kinds(pipeline, "generate") == {
        "retrieve": "stage",
        "index": "resource",
        "record": "record",
        "results": "results",
        "params": "params",
        "call": "call",
        "ctx": "ctx",
        "query": "field",
        "lang": "field",
    }


def test_a_stage_defined_later_is_an_edge_too() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("b", lambda a: a)
    pipeline.add_stage("a", lambda x: x)
    plan = pipeline.plan()
    assert list(plan.stages) == ["b", "a"]
    assert plan.order == ("a", "b")
    assert plan.edges == (("a", "b"),)
    assert (plan.first, plan.last) == (("a",), ("b",))


def test_a_parameter_of_the_context_class_is_the_context_whatever_its_name() -> None:
    pipeline = Pipeline(context=Context)

    async def fill(state: Context, query: str) -> None: ...

    pipeline.stage(fill)
    assert kinds(pipeline, "fill") == {"state": "ctx", "query": "field"}


def test_names_of_its_own_let_others_take_it() -> None:
    pipeline = Pipeline()

    @pipeline.stage(name="docs")
    async def retrieve(query: str) -> None: ...

    @pipeline.stage
    async def generate(docs: Any, retrieve: Any) -> None: ...

    assert kinds(pipeline, "generate") == {"docs": "stage", "retrieve": "field"}


def test_a_default_makes_a_field_optional() -> None:
    pipeline = Pipeline()

    @pipeline.stage
    async def first(query: str, lang: str = "en", *, top: int = 5, user: int) -> None: ...

    plan = pipeline.plan()
    assert dict(plan.required) == {"query": 'stage "first"', "user": 'stage "first"'}
    assert [parameter.default for parameter in plan.stages["first"].parameters] == [
        inspect.Parameter.empty,
        "en",
        5,
        inspect.Parameter.empty,
    ]


def test_a_field_required_by_several_is_said_to_be_of_the_first() -> None:
    pipeline = Pipeline()
    for name in ("b", "a"):
        pipeline.add_stage(name, lambda query: query)
    assert dict(pipeline.plan().required) == {"query": 'stage "b"'}


def test_a_context_requires_its_fields_without_a_default() -> None:
    assert dict(Pipeline.linear(lambda ctx: None, name="n", context=Context)._draft.params) == {}
    pipeline = Pipeline(context=Context)
    pipeline.add_stage("s", lambda ctx: None)
    assert dict(pipeline.plan().required) == {"query": "the context Context"}


def test_depends_on_adds_edges_to_those_of_the_names() -> None:
    pipeline = Pipeline()
    for name in "abc":
        pipeline.add_stage(name, lambda record: record)
    pipeline.add_stage("d", lambda a, results: a, depends_on=["c", "a", "c"])
    pipeline.add_stage("e", lambda record, results: record, depends_on="d")
    plan = pipeline.plan()
    assert plan.stages["d"].dependencies == ("c", "a")
    assert plan.stages["e"].dependencies == ("d",)


def test_linear_is_one_after_another() -> None:
    def f(x: Any) -> None: ...
    def g(f: Any) -> None: ...
    def h(x: Any) -> None: ...

    plan = Pipeline.linear(f, g, h, name="three", key="id").plan()
    assert (plan.name, plan.key) == ("three", "id")
    assert plan.edges == (("f", "g"), ("g", "h"))


def test_functions_stay_ordinary() -> None:
    pipeline = Pipeline()

    @pipeline.stage
    def one(x: int) -> int:
        return x + 1

    @pipeline.stage(max_in_flight=2)
    def two(one: int) -> int:
        return one + 1

    @pipeline.resource
    def index() -> int:
        return 4

    assert (two(one(1)), index()) == (3, 4)


def test_the_default_bound_on_open_records_is_what_workers_and_channels_hold() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("a", nothing)
    pipeline.add_stage("b", nothing, max_in_flight=100, queue_size=7)
    assert pipeline.plan().max_open_records == 16 + 64 + 100 + 7


# Refusals. Line 1 of each job is its import.

REFUSALS = [
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage
        async def a(c): ...
        @pipeline.stage
        async def b(a): ...
        @pipeline.stage
        async def c(b): ...
        """,
        GraphError,
        "job.py:3: stages form a cycle: a -> b -> c -> a",
        "a parameter named after a stage is an edge; rename a parameter or a stage",
        id="cycle",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage
        async def a(a): ...
        """,
        GraphError,
        "job.py:3: stages form a cycle: a -> a",
        "a parameter named after a stage is an edge; rename a parameter or a stage",
        id="cycle of one",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        async def f(record, results): ...
        pipeline.add_stage("generate", f)
        pipeline.add_stage("judge", f, depends_on=["generat"])
        """,
        GraphError,
        'job.py:5: stage "judge" depends on unknown stage "generat" (did you mean "generate"?)',
        "stages are: generate, judge",
        id="unknown dependency",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        async def f(record, results): ...
        pipeline.add_stage("judge", f, depends_on=["xyz"])
        """,
        GraphError,
        'job.py:4: stage "judge" depends on unknown stage "xyz"',
        "stages are: judge",
        id="unknown dependency, none near",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage
        async def generate(x): ...

        @pipeline.stage(name="generate")
        async def other(x): ...
        """,
        GraphError,
        'job.py:6: two stages are named "generate" (job.py:3, job.py:6)',
        'give one of them another name="..."',
        id="two stages of one name",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource
        def index(): ...
        @pipeline.stage
        async def index(x): ...
        """,
        GraphError,
        'job.py:3: a stage and a resource are both named "index" (job.py:5, job.py:3)',
        'give one of them another name="..."',
        id="stage and resource of one name",
    ),
    *(
        pytest.param(
            f"""
            pipeline = Pipeline("job")
            @pipeline.stage
            async def {name}(x): ...
            """,
            DefinitionError,
            f'job.py:3: a stage can\'t be named "{name}": the name is reserved',
            'reserved names are: record, results, params, call, ctx; give it another with name="..."',
            id=f"stage named {name}",
        )
        for name in ("record", "results", "params", "call", "ctx")
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource(name="call")
        def client(): ...
        @pipeline.stage
        async def f(x): ...
        """,
        DefinitionError,
        'job.py:3: a resource can\'t be named "call": the name is reserved',
        'reserved names are: record, results, params, call, ctx; give it another with name="..."',
        id="resource of a reserved name",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        pipeline.add_stage("no name", print)
        """,
        DefinitionError,
        "job.py:3: 'no name' can't name a stage: others take its result as a parameter of that name",
        'give it a name with name="..."',
        id="no identifier",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        pipeline.add_stage(5, print)
        """,
        DefinitionError,
        "job.py:3: 5 can't name a stage: others take its result as a parameter of that name",
        'give it a name with name="..."',
        id="no text",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage
        async def f(x, *more): ...
        """,
        DefinitionError,
        'job.py:3: stage "f" takes *more: a parameter\'s name is the edge, so each must be named',
        "take `record` for the whole input record, or `results` for all results it depends on",
        id="*args",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage
        async def f(x, **more): ...
        """,
        DefinitionError,
        'job.py:3: stage "f" takes **more: a parameter\'s name is the edge, so each must be named',
        "take `record` for the whole input record, or `results` for all results it depends on",
        id="**kwargs",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        pipeline.add_stage("f", 5)
        """,
        DefinitionError,
        'job.py:3: stage "f": 5 is not a function',
        "give a function",
        id="no function",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        """,
        GraphError,
        'job.py:2: pipeline "job" has no stages',
        "put @pipeline.stage above a function",
        id="no stage",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job", context=int)
        """,
        DefinitionError,
        "job.py:2: context must be a dataclass, not <class 'int'>",
        "put @dataclass above the class",
        id="context of no dataclass",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage(max_in_flght=3)
        async def f(x): ...
        """,
        SettingError,
        'job.py:3: stage "f" has no setting "max_in_flght"',
        'did you mean "max_in_flight"?',
        id="misspelt setting",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage(max_in_flight="auto")
        async def f(x): ...
        """,
        SettingError,
        'job.py:3: stage "f": max_in_flight="auto" is not available yet',
        "give a number",
        id="auto",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage(run="process")
        async def f(x): ...
        """,
        SettingError,
        'job.py:3: stage "f": an async function can\'t run as "process"',
        'run must be "async"',
        id="async in a process",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.stage(run="async")
        def f(x): ...
        """,
        SettingError,
        'job.py:3: stage "f": a plain function can\'t run as "async"',
        'run must be "thread", "process" or "inline"',
        id="plain on the loop",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource(scope="thread")
        def r(): ...
        """,
        DefinitionError,
        'job.py:3: the scope of a resource is "run" or "process", not \'thread\'',
        'the default is "run"',
        id="scope of a resource",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource
        def r(query): ...
        @pipeline.stage
        def f(r): ...
        """,
        DefinitionError,
        'job.py:3: resource "r" takes "query", which is no resource',
        "a resource is opened before any record is read: it may take `params` and other resources",
        id="resource that takes a field",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource
        def r(s): ...
        @pipeline.resource
        def s(r): ...
        @pipeline.stage
        def f(r): ...
        """,
        GraphError,
        "job.py:3: resources form a cycle: r -> s -> r",
        "a parameter named after a resource is an edge; rename a parameter or a resource",
        id="resources in a cycle",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource
        def r(): ...
        @pipeline.stage(run="process")
        def f(r): ...
        """,
        DefinitionError,
        'job.py:5: stage "f" runs in processes and can\'t use resource "r" (scope "run")',
        'declare it @pipeline.resource(scope="process"), or run the stage elsewhere',
        id="process stage with a resource of the run",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource(scope="process")
        def r(): ...
        @pipeline.stage
        def f(r): ...
        """,
        DefinitionError,
        'job.py:5: stage "f" does not run in processes and can\'t use resource "r" (scope "process")',
        'declare it @pipeline.resource(scope="process"), or run the stage elsewhere',
        id="thread stage with a resource of processes",
    ),
    pytest.param(
        """
        pipeline = Pipeline("job")
        @pipeline.resource
        def r(): ...
        @pipeline.resource(scope="process")
        def s(r): ...
        @pipeline.stage(run="process")
        def f(s): ...
        """,
        DefinitionError,
        'job.py:5: resource "s" lives in worker processes and can\'t use "r"',
        'declare "r" @pipeline.resource(scope="process"), too',
        id="process resource that uses one of the run",
    ),
]


@pytest.mark.parametrize(("text", "kind", "message", "hint"), REFUSALS)
def test_a_wrong_job_is_refused_at_its_line(
    tmp_path: Path, text: str, kind: type[DefinitionError], message: str, hint: str
) -> None:
    error = refusal(tmp_path, text)
    assert type(error) is kind
    assert str(error) == message
    assert error.hint == hint


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        *(
            (name, value, "a positive integer")
            for name in ("max_in_flight", "queue_size")
            for value in (0, -1, 1.5, "8", True, None)
        ),
        ("run", "fork", "one of 'async', 'thread', 'process', 'inline'"),
        ("run", ["async"], "one of 'async', 'thread', 'process', 'inline'"),
        ("on_error", "ignore", '"dead_letter", "skip", "abort" or degrade(...)'),
        ("on_error", None, '"dead_letter", "skip", "abort" or degrade(...)'),
        ("emit", "yes", "true or false"),
        ("emit", 1, "true or false"),
        ("version", 2, "text"),
    ],
)
def test_a_setting_out_of_range_is_refused_where_it_is_written(setting: str, value: Any, allowed: str) -> None:
    pipeline = Pipeline()
    with pytest.raises(SettingError) as caught:
        pipeline.add_stage("f", nothing, **{setting: value})
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert str(caught.value) == f'test_plan.py:{line}: stage "f": {setting} must be {allowed}, not {value!r}'
    assert caught.value.hint
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("settings", [{"run": "process"}, {"batch": Batch(2)}])
def test_a_generator_has_its_limits(settings: dict[str, Any]) -> None:
    def children(x: Any) -> Any:
        yield x

    pipeline = Pipeline()
    pipeline.add_stage("f", children, **settings)
    with pytest.raises(DefinitionError, match="a fan-out is not possible"):
        pipeline.plan()


# What the loader makes of a file


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("x = 1", "job.py has no pipeline", 'it needs one: pipeline = Pipeline("name")'),
        (
            'one = Pipeline("1")\ntwo = Pipeline("2")',
            "job.py has several pipelines: one (job.py:2), two (job.py:3)",
            "name one: job.py:one",
        ),
        (
            "import sys\nsys.exit(5)",
            "job.py:3: the job called sys.exit(5) while it was imported",
            'put it under `if __name__ == "__main__":`',
        ),
        (
            '\nraise ValueError("one\\ntwo")',
            "job.py:2: ValueError while the job was imported: one two",
            "python job.py shows the whole traceback",
        ),
        ("\n\n1 / 0", "job.py:2: ZeroDivisionError while the job was imported: division by zero", None),
    ],
)
def test_what_can_not_be_loaded_says_why(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    with pytest.raises(JobLoadError) as caught:
        job_of(tmp_path, text)
    assert str(caught.value) == message
    assert caught.value.hint == (hint or caught.value.hint)
    assert caught.value.hint


def test_a_syntax_error_shows_the_line_and_a_caret(tmp_path: Path) -> None:
    with pytest.raises(JobLoadError) as caught:
        job_of(tmp_path, "\ndef f(:\n    pass")
    assert str(caught.value).splitlines() == ["job.py:2: invalid syntax", "def f(:", "      ^"]


def test_a_missing_module_is_named_with_the_line_that_wants_it(tmp_path: Path) -> None:
    (tmp_path / "stageflow_test_helper.py").write_text("\n\nimport no_such_module_xyz.part\n")
    with pytest.raises(JobLoadError) as caught:
        job_of(tmp_path, "import stageflow_test_helper")
    assert str(caught.value) == 'stageflow_test_helper.py:3: cannot import "no_such_module_xyz"'
    assert caught.value.hint is not None
    assert "installed" in caught.value.hint


def test_an_error_whose_text_can_not_be_read_is_no_second_failure(tmp_path: Path) -> None:
    with pytest.raises(JobLoadError, match="Odd while the job was imported: \\(its message can't be read\\)"):
        job_of(tmp_path, "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd")


def test_nul_bytes_and_foreign_encodings_are_refused(tmp_path: Path) -> None:
    for number, content in enumerate((b"x\0y", b'x = "\xff"', "x = 1".encode("utf-16"))):
        path = tmp_path / f"odd{number}.py"
        path.write_bytes(content)
        with pytest.raises(JobLoadError) as caught:
            load(str(path))
        assert "None" not in str(caught.value)


def test_one_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text('from stageflow import Pipeline\none = Pipeline("1")\ntwo = Pipeline("2")\nalias = two\n')
    assert load(f"{path}:two").pipeline.name == "2"
    assert load(f"{path}:alias").pipeline.name == "2"
    with pytest.raises(JobLoadError) as caught:
        load(f"{path}:tw")
    assert str(caught.value) == 'job.py has no pipeline "tw"'
    assert caught.value.hint == "did you mean job.py:two?"


def test_one_pipeline_of_two_names_is_one(tmp_path: Path) -> None:
    assert job_of(tmp_path, 'a = b = Pipeline("same")').pipeline.name == "same"


def test_the_folder_of_a_job_is_importable_and_the_file_hides_no_module(tmp_path: Path) -> None:
    (tmp_path / "stageflow_test_words.py").write_text("NAME = 'from the helper'\n")
    path = tmp_path / "json.py"
    path.write_text(
        "import json\nfrom stageflow import Pipeline\nfrom stageflow_test_words import NAME\n"
        "assert json.dumps(1) == '1' if hasattr(json, 'dumps') else False\npipeline = Pipeline(NAME)\n"
    )
    assert load(str(path)).pipeline.name == "from the helper"


def test_a_job_may_be_any_file(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.write_text('from stageflow import Pipeline\npipeline = Pipeline("bare")\n')
    assert load(str(path)).pipeline.name == "bare"


def test_a_module_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "stageflow_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "jobs.py").write_text('from stageflow import Pipeline\nmine = Pipeline("m")\nother = Pipeline("o")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    job = load("stageflow_test_package.jobs:mine")
    assert (job.pipeline.name, job.folder) == ("m", package)
    for missing in ("stageflow_test_package.nothing", "no_such_package.jobs"):
        with pytest.raises(JobLoadError, match="there is no module"):
            load(missing)


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "rag_job.py").write_text("")
    with pytest.raises(JobLoadError) as caught:
        load(str(tmp_path / "rag_jb.py"))
    assert str(caught.value) == f"cannot read job {tmp_path}/rag_jb.py: no such file"
    assert caught.value.hint == f"did you mean {tmp_path}/rag_job.py?"


# Settings and where they come from

LAYERS = ("toml", "environment", "line")


def settled(layers: dict[str, int | None], *, decorated: bool) -> tuple[int, str]:
    """max_in_flight of the stage ``s``, and its origin, given by some of the layers, each for ``s``."""
    pipeline = Pipeline()
    pipeline.add_stage("s", nothing, **({"max_in_flight": 1} if decorated else {}))
    toml = [Override("s", "max_in_flight", layers["toml"], "stageflow.toml")] if layers.get("toml") else []
    environment = (
        from_environment({"STAGEFLOW_MAX_IN_FLIGHT": f"s={layers['environment']}"}) if layers.get("environment") else []
    )
    line = from_amounts("max_in_flight", [f"s={layers['line']}"], "--max-in-flight") if layers.get("line") else []
    stage = pipeline.plan([*toml, *environment, *line]).stages["s"]
    return stage.max_in_flight, stage.origins["max_in_flight"]


@given(st.dictionaries(st.sampled_from(LAYERS), st.integers(2, 9)), st.booleans())
def test_the_strongest_layer_wins_and_is_named(layers: dict[str, int], decorated: bool) -> None:
    value, origin = settled(layers, decorated=decorated)
    origins = {"line": "--max-in-flight", "environment": "STAGEFLOW_MAX_IN_FLIGHT", "toml": "stageflow.toml"}
    for layer in reversed(LAYERS):
        if layer in layers:
            assert (value, origin) == (layers[layer], origins[layer])
            return
    assert value == (1 if decorated else 16)
    assert origin.startswith("test_plan.py:") if decorated else origin == "default"


def test_defaults() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("plain", lambda x: x)
    pipeline.add_stage("wide", nothing, max_in_flight=100)
    plain, wide = pipeline.plan().stages.values()
    assert (plain.max_in_flight, plain.queue_size, plain.run, plain.on_error, plain.emit, plain.version) == (
        (16, 64, "thread", "dead_letter", True, None)
    )
    assert set(plain.origins.values()) == {"default"}
    assert (wide.queue_size, wide.run, wide.origins["queue_size"]) == (100, "async", "default")


def test_the_default_queue_follows_the_resolved_max_in_flight() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("s", nothing)
    assert pipeline.plan([Override("s", "max_in_flight", 200, "--set")]).stages["s"].queue_size == 200


def test_a_number_for_every_stage_leaves_process_stages_alone() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("calls", nothing)
    pipeline.add_stage("crunch", lambda x: x, run="process", max_in_flight=2)
    bare = from_amounts("max_in_flight", ["64"], "--max-in-flight")
    plan = pipeline.plan(bare)
    assert {name: stage.max_in_flight for name, stage in plan.stages.items()} == {"calls": 64, "crunch": 2}
    named = from_amounts("max_in_flight", ["64", "crunch=8"], "--max-in-flight")
    assert pipeline.plan(named).stages["crunch"].max_in_flight == 8
    # A stage that is sent to processes from outside counts as one.
    moved = pipeline.plan([*bare, Override("crunch", "run", "thread", "--set")])
    assert moved.stages["crunch"].max_in_flight == 64
    # The queue in front of it costs no core.
    assert pipeline.plan(from_amounts("queue_size", ["5"], "--queue-size")).stages["crunch"].queue_size == 5


def test_one_for_a_stage_is_stronger_than_one_for_all() -> None:
    assert [override.stage for override in from_amounts("queue_size", ["a=1", "2"], "--queue-size")] == [None, "a"]


@pytest.mark.parametrize(
    ("read", "message", "hint"),
    [
        (
            lambda: from_amounts("max_in_flight", ["s=0"], "--max-in-flight"),
            "--max-in-flight s=0: must be a positive integer",
            "for instance --max-in-flight generate=64",
        ),
        (
            lambda: from_amounts("max_in_flight", ["x"], "--max-in-flight"),
            "--max-in-flight x: must be a positive integer",
            "for instance --max-in-flight generate=64",
        ),
        (
            lambda: from_amounts("max_in_flight", ["s=1", "s=2"], "--max-in-flight"),
            "--max-in-flight: s is given twice",
            "give it once",
        ),
        (
            lambda: from_amounts("queue_size", ["1", "2"], "--queue-size"),
            "--queue-size: the number for every stage is given twice",
            "give it once",
        ),
        (
            lambda: from_environment({"STAGEFLOW_QUEUE_SIZE": "s=-4"}),
            "STAGEFLOW_QUEUE_SIZE s=-4: must be a positive integer",
            "for instance STAGEFLOW_QUEUE_SIZE generate=64",
        ),
        (
            lambda: from_pairs(["generate=3"]),
            "--set generate=3: expected STAGE.SETTING=VALUE",
            "for instance --set generate.on_error=skip",
        ),
        (lambda: parse_params(["m=1"], {"model": "x"}), 'unknown parameter "m"', "parameters are: model"),
        (lambda: parse_params(["modl=1"], {"model": "x"}), 'unknown parameter "modl"', 'did you mean "model"?'),
        (lambda: parse_params(["a=1"], {}), 'unknown parameter "a"', "the job has no parameters"),
        (lambda: parse_params(["a"], {"a": 1}), "-p a: expected NAME=VALUE", "parameters are: a"),
        (
            lambda: parse_params(["n=x"], {"n": 3}),
            "-p n=x: must be a whole number, as its default 3 is",
            "for instance -p n=3",
        ),
        (
            lambda: parse_params(["f=maybe"], {"f": True}),
            "-p f=maybe: must be true or false, as its default True is",
            "for instance -p f=true",
        ),
        (
            lambda: parse_params(["l={}"], {"l": [1]}),
            "-p l={}: must be a JSON array, as its default [1] is",
            "for instance -p l=[1]",
        ),
    ],
)
def test_what_comes_from_outside_is_refused_by_its_own_name(read: Callable[[], Any], message: str, hint: str) -> None:
    with pytest.raises(SettingError) as caught:
        read()
    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_an_unknown_stage_is_refused_with_those_there_are() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("generate", nothing)
    pipeline.add_stage("judge", nothing)
    with pytest.raises(SettingError) as caught:
        pipeline.plan(from_amounts("max_in_flight", ["gen=64"], "--max-in-flight"))
    assert str(caught.value) == '--max-in-flight: unknown stage "gen"; stages are: generate, judge'
    assert caught.value.hint


def test_a_value_out_of_range_from_outside_is_refused_with_its_origin() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("s", nothing)
    with pytest.raises(SettingError) as caught:
        pipeline.plan(from_pairs(["s.emit=maybe"]))
    assert str(caught.value) == "--set: stage \"s\": emit must be true or false, not 'maybe'"


def test_pairs_are_numbers_words_and_text() -> None:
    given = ["s.max_in_flight=4", "s.emit=false", "s.on_error=skip", "s.version=2", "s.version=a=b"]
    assert [(o.stage, o.setting, o.value, o.origin) for o in from_pairs(given)] == [
        ("s", "max_in_flight", 4, "--set"),
        ("s", "emit", False, "--set"),
        ("s", "on_error", "skip", "--set"),
        ("s", "version", "2", "--set"),
        ("s", "version", "a=b", "--set"),
    ]


def test_the_environment_takes_several() -> None:
    found = from_environment({"STAGEFLOW_MAX_IN_FLIGHT": "8, generate=64 retrieve=4", "STAGEFLOW_QUEUE_SIZE": ""})
    assert [(o.stage, o.setting, o.value) for o in found] == [
        (None, "max_in_flight", 8),
        ("generate", "max_in_flight", 64),
        ("retrieve", "max_in_flight", 4),
    ]


def test_a_file_beside_the_job(tmp_path: Path) -> None:
    assert from_file(tmp_path) == []
    (tmp_path / "stageflow.toml").write_text('[stages.s]\nmax_in_flight = 64\non_error = "skip"\n')
    assert from_file(tmp_path) == [
        Override("s", "max_in_flight", 64, "stageflow.toml"),
        Override("s", "on_error", "skip", "stageflow.toml"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stages", "cannot read stageflow.toml: "),
        ("[stage.s]\nemit = true", 'stageflow.toml has no section "stage"'),
        ("[stages]\nemit = true", "stageflow.toml: [stages] holds tables, one per stage"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "stageflow.toml").write_text(text)
    with pytest.raises(SettingError) as caught:
        from_file(tmp_path)
    assert str(caught.value).startswith(message)
    assert caught.value.hint


# The parameters of a job


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        (1, "42", 42),
        (1.0, "2", 2.0),
        (False, "true", True),
        (True, "No", False),
        ("x", "5", "5"),
        (None, "5", 5),
        (None, "five", "five"),
        ([1], "[2, 3]", [2, 3]),
        ({}, '{"a": 1}', {"a": 1}),
        ("x", "a=b", "a=b"),
    ],
)
def test_a_parameter_is_parsed_to_the_type_of_its_default(default: Any, text: str, value: Any) -> None:
    found = parse_params([f"name={text}"], {"name": default})
    assert found == {"name": value}
    assert type(found["name"]) is type(value)


def test_parameters_are_attributes_and_items() -> None:
    params = Params({"model": "local", "n": 3})
    assert (params.model, params["n"], dict(params)) == ("local", 3, {"model": "local", "n": 3})
    with pytest.raises(AttributeError, match="the job has no parameter 'modl'; did you mean 'model'\\?"):
        _ = params.modl
    with pytest.raises(KeyError):
        _ = params["modl"]


@pytest.mark.parametrize("name", ["items", "keys", "values", "get"])
def test_a_parameter_may_have_any_name(name: str) -> None:
    assert getattr(Params({name: 3}), name) == 3


def test_an_unknown_parameter_is_refused() -> None:
    pipeline = Pipeline(params={"model": "local"})
    pipeline.add_stage("s", nothing)
    assert pipeline.plan(params={"model": "big"}).params.model == "big"
    with pytest.raises(SettingError) as caught:
        pipeline.plan(params={"modle": "big"})
    assert (str(caught.value), caught.value.hint) == ('the job has no parameter "modle"', 'did you mean "model"?')


def test_degrade_is_an_on_error() -> None:
    pipeline = Pipeline()
    pipeline.add_stage("s", nothing, on_error=degrade([]))
    assert pipeline.plan().stages["s"].on_error == degrade([])
