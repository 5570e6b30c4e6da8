"""LangChain's own tests of a chat model, `ChatModelIntegrationTests`, with langchain-openai in front of the server.

The model has learnt by heart what these need its wit for: `test_tool_calling` and its async twin (which argument),
`test_tool_calling_with_no_arguments`, `test_bind_runnables_as_tools` (an argument that is not empty),
`test_agent_loop` (that it calls, which nothing demands), `test_unicode_tool_call_integration` (the name of the
question) and `test_json_mode` (the keys that the question names). All others depend on the server alone.
"""

from __future__ import annotations

from typing import Any

import pytest

standard = pytest.importorskip(
    "langchain_tests.integration_tests", reason="needs langchain-tests (`pip install 'glmtune[clients]'`)"
)
langchain_openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai")

# Its coroutines have no mark of their own, and its connections outlive a test.
pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


class TestChatOpenAI(standard.ChatModelIntegrationTests):
    """The tests come with the base class."""

    url = ""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _served(cls, url: str) -> None:
        cls.url = url

    @property
    def chat_model_class(self) -> Any:
        return langchain_openai.ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # At addresses other than OpenAI's it asks for the usage of a stream only where it is told to.
        connection = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "stream_usage": True}
        return {"model": "tiny", "temperature": 0, **connection}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "tiny"
