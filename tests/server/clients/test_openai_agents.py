"""OpenAI's Agents SDK over both of its protocols: answers, streams, functions, objects."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from client_rows import GARMENT, Garment
from serving_rows import ITEMS, PLAIN, answer, question

agents = pytest.importorskip("agents", reason="needs openai-agents (`pip install 'glmtune[clients]'`)")

pytestmark = pytest.mark.slow

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))
PROTOCOLS = ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"]


def agent(url: str, protocol: str, **options: Any) -> Any:
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    model = getattr(agents, protocol)(model="tiny", openai_client=client)
    settings = agents.ModelSettings(temperature=0, max_tokens=100)
    return agents.Agent(name="clerk", model=model, model_settings=settings, **options)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_agent_answers_and_streams(protocol: str, url: str) -> None:
    async def streamed() -> Any:
        run = agents.Runner.run_streamed(agent(url, protocol), ASKED)
        return "".join([event.data.delta async for event in run.stream_events() if is_text(event)])

    def is_text(event: Any) -> bool:
        return event.type == "raw_response_event" and event.data.type == "response.output_text.delta"

    assert asyncio.run(agents.Runner.run(agent(url, protocol), ASKED)).final_output == TOLD
    assert asyncio.run(streamed()) == TOLD


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("is_strict", [True, False])
def test_an_agent_calls_a_function_and_answers(is_strict: bool, protocol: str, url: str) -> None:
    @agents.function_tool(strict_mode=is_strict)
    def query_price(item: str) -> str:
        """查询价格"""  # noqa: D415
        return json.dumps({"price": ITEMS[item]})

    run = agents.Runner.run(agent(url, protocol, tools=[query_price]), question(ITEM)["content"])
    assert asyncio.run(run).final_output == answer(ITEM)["content"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_agent_returns_objects(protocol: str, url: str) -> None:
    run = agents.Runner.run(agent(url, protocol, output_type=Garment), GARMENT)
    assert isinstance(asyncio.run(run).final_output, Garment)
