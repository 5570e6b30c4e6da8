"""A model behind a URL that says which of two answers is better: asked in both orders, since the first is favoured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.chat.chat_server import server_answers
from glmtune.chat.chat_session import ModelAnswers
from glmtune.chatformat.replies import Delta
from glmtune.console import show_evaluation
from glmtune.evaluation.predictions import Prediction

PROMPT = """\
Two assistants have answered the same conversation. Say which answer is better: more correct, more helpful, closer to \
what was asked. Length alone is no merit. The reference is one good answer; others may be as good.

<conversation>
{prompt}
</conversation>

<reference>
{reference}
</reference>

<answer_1>
{first}
</answer_1>

<answer_2>
{second}
</answer_2>

Reply with one word: 1, 2 or tie."""

VERDICT = re.compile(r"\b(1|2|tie)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judge has said of the turns in which two models answer differently; equal answers are ties."""

    wins: int
    """Turns in which the second model's answer is better in both orders."""
    losses: int
    ties: int
    """Also where the two orders contradict each other."""
    unread: int
    """Turns in which the judge has said neither 1, 2 nor tie."""
    prompt: str = PROMPT


def judge(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    *,
    url: str,
    model: str | None = None,
    api_key_env: str | None = None,
) -> Judgement:
    """Have a model compare the answers of two others; nothing is sampled.

    Args:
        first: Answers of the first model.
        second: Of the second, to the same turns in the same order.
        url: Of a server that speaks OpenAI's protocol, up to `/v1`. It is sent the rows.
        model: Its name there; the first that the server lists by default.
        api_key_env: Environment variable that holds the key; `OPENAI_API_KEY` by default.
    """
    ask = server_answers(url, model=model, api_key_env=api_key_env, temperature=0.0, max_new_tokens=1024)
    found = []
    for number, (one, other) in enumerate(zip(first, second)):
        show_evaluation(number, len(first))
        found.append(0 if one.prediction == other.prediction else _verdict(ask, one, other))
    show_evaluation(0, 0)
    return Judgement(wins=found.count(1), losses=found.count(-1), ties=found.count(0), unread=found.count(None))


def _verdict(ask: ModelAnswers, first: Prediction, second: Prediction) -> int | None:
    """Return 1 where the second answer is better, -1 where the first is, 0 for a tie, None where nothing was said."""
    straight, turned = _asked(ask, first, second), _asked(ask, second, first)
    if straight is None or turned is None:
        return None
    return straight if straight == -turned else 0


def _asked(ask: ModelAnswers, shown_first: Prediction, shown_second: Prediction) -> int | None:
    question = PROMPT.format(
        prompt=shown_first.prompt,
        reference=shown_first.reference,
        first=shown_first.prediction,
        second=shown_second.prediction,
    )
    events = ask([{"role": "user", "content": question}], [])
    text = "".join(event.text for event in events if isinstance(event, Delta) and not event.is_reasoning)
    said = VERDICT.findall(text.rpartition("</think>")[2])
    return {"1": -1, "2": 1, "tie": 0}[said[-1].lower()] if said else None
