"""Five steps, one after another, over one context: each step reads what it needs from `ctx` and fills in its part.

stageflow run jobs/linear.py jobs/queries.jsonl -o answers.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ragkit import grounding
from ragkit.extract import INSUFFICIENT, Citation, extract
from ragkit.index import Hit, Index, open_index
from ragkit.question import kind_of

from stageflow import Pipeline


@dataclass
class RagContext:
    """What the steps know of one question; an output line has the fields of its record and these."""

    query: str
    hits: list[Hit] = field(default_factory=list)
    intent: str = ""
    answer: str = ""
    citations: list[Citation] = field(default_factory=list)
    grounded: bool = False
    text: str = ""


# All five are short, so they run on the event loop: together they take less than two hops to a thread and back.
async def retrieve(ctx: RagContext, index: Index) -> None:
    ctx.hits = index.search(ctx.query)


async def classify_intent(ctx: RagContext) -> None:
    ctx.intent = kind_of(ctx.query)


async def generate(ctx: RagContext, index: Index) -> None:
    # A definition is one sentence; "how do I" may need a second.
    found = extract(ctx.query, ctx.hits, index, most=1 if ctx.intent == "definition" else 2)
    ctx.answer, ctx.citations = found["answer"], found["citations"]


async def validate(ctx: RagContext, index: Index) -> None:
    answer = {"answer": ctx.answer, "citations": ctx.citations}
    ctx.grounded = grounding.validate(answer, ctx.hits, index)["grounded"]


async def format_answer(ctx: RagContext) -> None:
    sources = dict.fromkeys(citation["doc"] for citation in ctx.citations)
    ctx.text = f"{ctx.answer} [{', '.join(sources)}]" if ctx.grounded else f"No answer: {INSUFFICIENT}."


pipeline = Pipeline.linear(retrieve, classify_intent, generate, validate, format_answer, context=RagContext)


@pipeline.resource
def index() -> Index:
    return open_index()
