"""pydantic-ai: agents that call functions, stream, and return objects."""

from __future__ import annotations

from typing import Any

import pytest
from client_rows import GARMENT, Garment
from serving_rows import ITEMS, PLAIN, answer, question

pydantic_ai = pytest.importorskip("pydantic_ai", reason="needs pydantic-ai (`pip install 'glmtune[clients]'`)")

pytestmark = pytest.mark.slow

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))


def agent(url: str, *, uses_responses: bool = False, **options: Any) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    kind = OpenAIResponsesModel if uses_responses else OpenAIChatModel
    model = kind("tiny", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    return pydantic_ai.Agent(model, model_settings={"temperature": 0, "max_tokens": 100}, retries=0, **options)


@pytest.mark.parametrize("uses_responses", [False, True])
def test_an_agent_answers_and_streams(uses_responses: bool, url: str) -> None:
    asked = agent(url, uses_responses=uses_responses)
    told = asked.run_sync(ASKED)
    assert told.output == TOLD
    assert told.usage.output_tokens > 3
    streamed = asked.run_stream_sync(ASKED)
    assert list(streamed.stream_text())[-1] == TOLD


@pytest.mark.parametrize("uses_responses", [False, True])
def test_an_agent_calls_a_function_and_answers(uses_responses: bool, url: str) -> None:
    def query_price(item: str) -> dict[str, int]:
        """查询价格"""  # noqa: D415
        return {"price": ITEMS[item]}

    told = agent(url, uses_responses=uses_responses, tools=[query_price]).run_sync(question(ITEM)["content"])
    assert told.output == answer(ITEM)["content"]


@pytest.mark.parametrize("uses_responses", [False, True])
@pytest.mark.parametrize("output", ["ToolOutput", "NativeOutput"])
def test_an_agent_returns_objects(output: str, uses_responses: bool, url: str) -> None:
    kind = getattr(pydantic_ai, output)(Garment)
    assert isinstance(agent(url, uses_responses=uses_responses, output_type=kind).run_sync(GARMENT).output, Garment)
