"""Prompts that end inside an answer: the last message goes on where it ends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from chat_layouts import LAYOUTS, TURNS, assistant, encoder_of, user, with_template

from glmtune.chatformat.encoding import Encoder
from glmtune.data.conversation import RowError
from glmtune.errors import GlmtuneError
from glmtune.family import GENERIC, GLM, GLM_MOE
from glmtune.generation.generate import encode_messages

TEMPLATES = Path(__file__).parents[3] / "shared" / "templates"
CONTROL = re.compile(r"<\|[A-Za-z_]+\|>|\[gMASK\]|<sop>|<(?:start|end)_of_turn>|\[/?INST\]|</s>")
END = {"gemma": "<end_of_turn>", "Mistral": "</s>", "Phi": "<|end|>", "lama": "<|eot_id|>", "wen": "<|im_end|>"}
UNFIT = {"microsoft-Phi-3.5-mini-instruct.jinja", "mistralai-Mistral-Nemo-Instruct-2407.jinja"}
"""Templates whose prompts training does not see, so that no model of theirs is loaded."""
BEGINNINGS = ["I am ", "good\n\nand", "  so", "1. a\n2."]


def continued(encoder: Encoder, messages: list[dict[str, Any]]) -> str:
    ids = encode_messages(encoder, messages, tools=None, continues=True)
    return str(encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def rendered(encoder: Encoder, messages: list[dict[str, Any]]) -> str:
    return str(encoder.tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_answer_goes_on_behind_what_the_template_writes_of_it(layout: str, beginning: str) -> None:
    encoder = encoder_of(layout)
    for messages in ([*TURNS[:1], assistant(beginning)], [*TURNS[:3], assistant(beginning)]):
        text = continued(encoder, messages)
        assert text == rendered(encoder, messages)
        assert text.rstrip().endswith(beginning.strip())


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.glob("*.jinja")) or ["none"])
def test_an_answer_goes_on_with_the_templates_of_published_models(name: str) -> None:
    if name == "none":
        pytest.skip("the published templates are not there (../shared/templates)")
    template = (TEMPLATES / name).read_text(encoding="utf-8")
    is_glm = "glm" in name.lower()
    family = (GLM if re.search("0414|4.1V", name) else GLM_MOE) if is_glm else GENERIC
    end = next((token for part, token in END.items() if part in name), "<|endoftext|>")
    controls = sorted({*CONTROL.findall(template), "<bos>", "<|user|>", "<|observation|>"} - {end})
    tokenizer = with_template(template, ("<bos>", *controls, end))
    if name in UNFIT:
        with pytest.raises(GlmtuneError):
            Encoder(tokenizer, family)
        return
    encoder = Encoder(tokenizer, family)
    for beginning in BEGINNINGS:
        messages = [user("hello"), assistant("how are you"), user("well"), assistant(beginning)]
        assert continued(encoder, messages) == rendered(encoder, messages)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_prompt_is_the_beginning_of_what_training_saw(layout: str) -> None:
    encoder = encoder_of(layout)
    whole = [user("hello"), assistant("how are you")]
    ids = encoder.tokenizer.decode(encode_messages(encoder, whole, tools=None, continues=True))
    trained = encoder.tokenizer.apply_chat_template(whole, tokenize=False)
    assert trained.startswith(ids)
    assert trained[len(ids) :].strip() in ("", encoder.renderer.end_token)


def test_a_control_token_in_the_beginning_is_text() -> None:
    encoder = encoder_of("glm-0414")
    ids = encode_messages(encoder, [user("hello"), assistant("a<|user|>b")], tools=None, continues=True)
    assert ids.count(encoder.tokenizer.convert_tokens_to_ids("<|user|>")) == 1
    assert encoder.tokenizer.decode(ids).endswith("a<|user|>b")


REFUSED = {
    "a question": ([user("a")], "the last message has role `user`; expected the assistant's, to be continued"),
    "a call": (
        [user("a"), assistant("", ("weather", {"in": "b"}))],
        "message 1 is a tool call; only text can be continued",
    ),
    "nothing": ([user("a"), assistant(" ")], "message 1 is empty: there is nothing to continue"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_continued_is_refused(kind: str) -> None:
    messages, message = REFUSED[kind]
    with pytest.raises(RowError) as caught:
        encode_messages(encoder_of("glm-0414"), messages, tools=None, continues=True)
    assert str(caught.value) == message
