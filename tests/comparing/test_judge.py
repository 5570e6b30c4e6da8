"""The judge hears both orders; equal answers are not asked about; what it does not say is no verdict."""

from __future__ import annotations

import pytest
from written_server import OpenAIServer, texts

from glmtune.comparing.judge import judge
from glmtune.errors import GlmtuneError
from glmtune.evaluation.predictions import Prediction


def answers(*predictions: str) -> list[Prediction]:
    return [
        Prediction(where=f"a:{n}", turn=0, prompt="问{x}", reference="好", prediction=text)
        for n, text in enumerate(predictions)
    ]


@pytest.mark.parametrize(
    ("straight", "turned", "verdict"),
    [
        ("2", "1", "wins"),
        ("1", "2", "losses"),
        ("1", "1", "ties"),  # whichever stands first
        ("tie", "tie", "ties"),
        ("2", "tie", "ties"),
        ("Answer 1 is longer, but 2", "**1**", "wins"),
        ("<think>1 or 2? tie</think>2", "TIE or 1", "wins"),
        ("neither", "1", "unread"),
        ("", "1", "unread"),
    ],
)
def test_both_orders_count(straight: str, turned: str, verdict: str, server: OpenAIServer) -> None:
    server.answers = [texts(straight), texts(turned)]
    found = judge(answers("old"), answers("new"), url=server.url)
    assert {name: getattr(found, name) for name in ("wins", "losses", "ties", "unread")} == {
        **dict.fromkeys(("wins", "losses", "ties", "unread"), 0),
        verdict: 1,
    }
    asked = [request["messages"][0]["content"] for request in server.requests]
    assert [text.index("old") < text.index("new") for text in asked] == [True, False]
    assert all("问{x}" in text for text in asked)


def test_equal_answers_are_ties_without_a_question(server: OpenAIServer) -> None:
    found = judge(answers("a", "b"), answers("a", "b"), url=server.url)
    assert (found.ties, server.requests) == (2, [])


def test_nothing_is_sampled_and_the_key_is_sent(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "the-key")
    server.answers = [texts("2"), texts("1")]
    judge(answers("old"), answers("new"), url=server.url, model="big", api_key_env="JUDGE_KEY")
    assert {(request["model"], request["temperature"]) for request in server.requests} == {("big", 0.0)}
    assert all("the-key" in (key or "") for key in server.keys)


def test_a_judge_that_is_not_there_is_one_error() -> None:
    with pytest.raises(GlmtuneError):
        judge(answers("old"), answers("new"), url="http://127.0.0.1:9/v1", model="m")
