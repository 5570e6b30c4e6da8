"""Conversations that are written into one text, as in hh-rlhf: `Human: ...` and `Assistant: ...` in turn."""

from __future__ import annotations

import re
from collections.abc import Iterator

from glmtune.data.conversation import TEXT, Message, is_blank

_SPEAKER = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_BEFORE, _BEHIND = r"(?:#+[ \t]*|<\|?|\[|\*\*)?", r"(?:\|?>|\]|\*\*)?[ \t]*[:：]"
_ASKS = re.compile(rf"\s*{_BEFORE}(Human|User|用户){_BEHIND}", re.IGNORECASE)
_ANSWERS = re.compile(
    rf"(?:^|\n[ \t]*|(?=###)){_BEFORE}(Assistant|AI|Bot|Chatbot|GPT|ChatGPT|助手|助理){_BEHIND}", re.IGNORECASE
)
_LAST = re.compile(rf"(?:^|\n)[ \t]*{_BEFORE}(Assistant|助手|助理){_BEHIND}\s*$", re.IGNORECASE)
_ASKS_AGAIN = re.compile(rf"\n[ \t]*{_BEFORE}(Human){_BEHIND}")


def spoken_turns(text: str) -> list[tuple[str, str]]:
    """Return speaker and words of every turn of a text such as hh-rlhf has; none of any other."""
    _, *parts = _SPEAKER.split(text)
    return list(zip(parts[::2], parts[1::2]))


def question_messages(text: str) -> list[Message]:
    """Return a question as messages: the turns of a transcript that waits for its answer, or the text as it is.

    A text is taken for a transcript where `Human:` and `Assistant:` begin its paragraphs in turn, the last of which is
    an empty one of the assistant's. What the assistant said in it is not trained.
    """
    if not text.lstrip().startswith("Human:") or not text.rstrip().endswith("Assistant:"):
        return [Message(role="user", content=text)]
    *turns, last = spoken_turns(text.strip())
    speakers = [speaker for speaker, _ in turns]
    is_in_turn = speakers == ["Human", "Assistant"] * (len(turns) // 2) + ["Human"]
    if not is_in_turn or last != ("Assistant", "") or any(is_blank(said) for _, said in turns):
        return [Message(role="user", content=text)]
    return [
        Message(role="user", content=said.strip())
        if speaker == "Human"
        else Message(role="assistant", content=said.strip(), loss=0.0)
        for speaker, said in turns
    ]


def doubts_about_speakers(message: Message) -> Iterator[str]:
    """Yield the doubt about a text that looks like a whole conversation, and is read as one text."""
    text = message.content
    if message.role == "assistant":
        again = _ASKS_AGAIN.search(text) if "Human" in text else None
        answers = _ANSWERS.search(text, again.end()) if again else None
        if again and answers:
            yield f"`{again[1]}:` and `{answers[1]}:` stand in an answer, and are text there"
        return
    if message.role not in ("user", TEXT):
        return
    what = "a question" if message.role == "user" else "a text"
    asks = _ASKS.match(text)
    answers = _ANSWERS.search(text) if asks else None
    last = _LAST.search(text[-100:]) if text.rstrip().endswith((":", "：")) else None
    if asks and answers:
        yield f"`{asks[1]}:` and `{answers[1]}:` stand in {what}, and are text there"
    elif last:
        yield f"`{last[1]}:` stands at the end of {what}, and is text there"
