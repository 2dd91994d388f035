"""What a stage with a cache is known by: a job in several files is compared with edited copies of itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stageflow
from stageflow.fingerprint import cache_digests
from stageflow.loader import load

FILES = {
    "job.py": """
import json, re, string
from collections import namedtuple
from functools import lru_cache, partial, wraps
from math import floor as whole
from pathlib import Path
from stageflow import Pipeline, degrade
from kit import prompts, unrelated
from kit.clients import chat as service
from kit.prompts import SYSTEM
from kit.checks import is_fine

LIMIT = 100
TEXT = Path(__file__).with_name("prompt.txt").read_text()
TEMPLATE = string.Template("Say $x")
PATTERN = re.compile("[a-z]+")
OPTIONS = {"temperature": 0.5}
OPTIONS["top_p"] = 1.0
API_KEY = "sk-" + TEXT
Pair = namedtuple("Pair", "one two")
STEPS = {}
pipeline = Pipeline("job", params={"size": 1})

def loud(text):
    return text.upper()

def quietly(text):
    return text.lower()

def spoken(how):
    def around(function):
        @wraps(function)
        async def call(*given):
            return how(await function(*given))
        return call
    return around

class Base:
    def shape(self, x):
        return x

class Shaper(Base):
    SIZE = LIMIT
    def cut(self, x):
        return PATTERN.sub("", x)

STEPS["shape"] = Shaper()

@lru_cache
def cut(text):
    return text[:LIMIT]

@pipeline.resource
def index():
    return STEPS["shape"]

@pipeline.resource
def client(index, params):
    return index

@pipeline.stage(cache=True, on_error=degrade(quietly))
@spoken(loud)
async def generate(x, client, tail=SYSTEM):
    text = TEMPLATE.substitute(x=cut(x)) + prompts.build(x) + TEXT
    return [Pair(text, tail), await service.ask(text, OPTIONS, API_KEY), json.dumps(x), whole(1.5)]

CHECK = "yes"

@pipeline.stage
async def validate(generate):
    return is_fine(generate) and CHECK

def made(prompt):
    async def ask(x):
        return prompt + x
    return ask

pipeline.add_stage("first", made("one"), cache=True)
pipeline.add_stage("second", partial(made("two"), x="x"), cache=True)

if __name__ == "__main__":
    OPTIONS = {"temperature": 0.5, "top_p": 1.0}
""",
    "kit/__init__.py": "",
    "kit/prompts.py": """
from . import words
SYSTEM = "Be brief."
def build(x):
    return words.POLITE + x
""",
    "kit/words.py": 'POLITE = "Please "\n',
    "kit/clients.py": """
URL = "http://service"
MOST = 3
class Chat:
    def __init__(self, url):
        self.url = url
    async def ask(self, *given):
        return given
chat = Chat(URL)
chat.most = MOST
""",
    "kit/checks.py": """
def is_fine(value):
    return bool(value)
""",
    "kit/unrelated.py": "VALUE = 1\n",
    "prompt.txt": "Answer: ",
}


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, str]]]:
    """Digests of the job with edits, ``{file: (before, after)}``."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before_modules = set(sys.modules)
    copies = 0

    def made(edits: dict[str, tuple[str, str]] | None = None) -> dict[str, str]:
        nonlocal copies
        for name in set(sys.modules) - before_modules:
            if name.startswith(("kit", "stageflow_job")):
                del sys.modules[name]
        copies += 1
        folder = tmp_path / str(copies)
        for name, text in FILES.items():
            old, new = (edits or {}).get(name, ("", ""))
            assert old in text
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text.replace(old, new, 1) if old else text)
        sys.path[:] = [path for path in sys.path if not path.startswith(str(tmp_path))]
        return cache_digests(load(str(folder / "job.py")).pipeline.plan())

    yield made
    for name in set(sys.modules) - before_modules:
        if name.startswith(("kit", "stageflow_job")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("job.py", "json.dumps(x)", "json.dumps([x])"),
        ("job.py", "import floor as", "import ceil as"),
        ("job.py", "return text[:LIMIT]", "return text[1:LIMIT]"),
        ("job.py", "LIMIT = 100", "LIMIT = 200"),
        ("prompt.txt", "Answer: ", "Say: "),
        ("job.py", '"Say $x"', '"Tell $x"'),
        ("job.py", '"[a-z]+"', '"[a-z]*"'),
        ("job.py", '"temperature": 0.5}\n', '"temperature": 0.7}\n'),
        ("job.py", '["top_p"] = 1.0', '["top_p"] = 0.9'),
        ("job.py", '"one two"', '"two one"'),
        ("job.py", "return text.upper()", "return text.title()"),
        ("job.py", "how(await function(*given))", "how(how(await function(*given)))"),
        ("job.py", "@spoken(loud)", "@spoken(quietly)"),
        ("job.py", 'return PATTERN.sub("", x)', 'return PATTERN.sub("-", x)'),
        ("job.py", "        return x\n", "        return [x]\n"),
        ("job.py", 'STEPS["shape"] = Shaper()', 'STEPS["shape"] = Base()'),
        ("job.py", '    return STEPS["shape"]', '    return STEPS.get("shape")'),
        ("job.py", "return index\n", "return [index]\n"),
        ("job.py", 'params={"size": 1}', 'params={"size": 2}'),
        ("kit/prompts.py", "Be brief.", "Be thorough."),
        ("kit/prompts.py", "words.POLITE + x", "words.POLITE + x.strip()"),
        ("kit/words.py", "Please ", "Now "),
        ("kit/clients.py", "http://service", "http://other"),
        ("kit/clients.py", "return given", "return list(given)"),
        ("kit/clients.py", "MOST = 3", "MOST = 4"),
    ],
)
def test_what_a_function_can_reach_is_part_of_it(
    digests: Callable[..., dict[str, str]], file: str, before: str, after: str
) -> None:
    was, now = digests(), digests({file: (before, after)})
    assert was["generate"] != now["generate"]
    assert (was["first"], was["second"]) == (now["first"], now["second"])


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("job.py", "return is_fine(generate) and CHECK", "return CHECK"),
        ("job.py", 'CHECK = "yes"', 'CHECK = "no"'),
        ("job.py", "return text.lower()", "return text.casefold()"),
        ("job.py", '"sk-" + TEXT', '"sk-new-" + TEXT'),
        ("job.py", "on_error=degrade(quietly)", "retry=3, timeout=5, rate_limit=None"),
        ("job.py", "    text = TEMPLATE", "    # a comment\n    text = TEMPLATE"),
        ("job.py", '"top_p": 1.0}', '"top_p": 0.1}'),
        ("kit/checks.py", "return bool(value)", "return value is not None"),
        ("kit/unrelated.py", "VALUE = 1", "VALUE = 2"),
    ],
)
def test_what_it_can_not_reach_is_none(
    digests: Callable[..., dict[str, str]], file: str, before: str, after: str
) -> None:
    assert digests() == digests({file: (before, after)})


def test_what_was_closed_over_and_bound_counts(digests: Callable[..., dict[str, str]]) -> None:
    was = digests()
    assert len(set(was.values())) == 3
    for stage, before, after in (("first", 'made("one")', 'made("uno")'), ("second", 'x="x"', 'x="y"')):
        now = digests({"job.py": (before, after)})
        assert {name for name in was if was[name] != now[name]} == {stage}


def test_the_same_in_every_process_and_as_a_script(digests: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    was = digests()
    root = str(Path(stageflow.__file__).parents[1])
    loaded = "import sys, job; from stageflow.fingerprint import cache_digests as d; print(d(job.pipeline.plan()))"
    script = "import runpy, sys; from stageflow.fingerprint import cache_digests as d\n"
    script += "import types; sys.modules['__main__'] = m = types.ModuleType('__main__'); m.__file__ = sys.argv[1]\n"
    script += "exec(compile(open(sys.argv[1]).read(), sys.argv[1], 'exec'), vars(m)); print(d(m.pipeline.plan()))"
    for number, code in enumerate((loaded, script)):
        done = subprocess.run(
            [sys.executable, "-c", code, "job.py"],
            env={"PYTHONPATH": f".:{root}", "PYTHONHASHSEED": str(number + 1)},
            cwd=tmp_path / "1",
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.strip() == repr(was)


def test_without_a_cache_nothing_is_looked_at(digests: Callable[..., dict[str, str]]) -> None:
    edit = {"job.py": ("@pipeline.stage(cache=True, ", "@pipeline.stage(")}
    assert set(digests(edit)) == {"first", "second"}
