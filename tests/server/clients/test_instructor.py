"""instructor: objects of a class, by a forced call and by a JSON Schema.

Its mode `JSON` says the schema in the prompt alone: whether an object of it comes is the model's wit.
"""

from __future__ import annotations

import openai
import pytest
from client_rows import GARMENT, Garment

instructor = pytest.importorskip(
    "instructor", reason="needs instructor, which no environment has beside openai 3 (`pip install --no-deps`)"
)


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_an_answer_becomes_an_object(mode: str, url: str) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=getattr(instructor.Mode, mode)
    )
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": GARMENT}],
        response_model=Garment,
        max_retries=0,
        max_tokens=40,
        temperature=0,
    )
    assert isinstance(made, Garment)
