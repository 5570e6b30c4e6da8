"""Chat templates of other models, a tokenizer for each, and rows with what is trained of them."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from glmtune.chatformat.encoding import Encoder
from glmtune.family import GENERIC, GLM, GLM_MOE, Family

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
GLM_TOKENS = ("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# As Qwen's: a default system prompt, tools beside the messages, the results of several calls in one user turn.
QWEN = """
{%- set first = messages[0] if messages[0].role == 'system' else {'content': 'Be brief.'} %}
{{- '<|im_start|>system\\n' + first.content }}
{%- if tools %}
    {{- '\\n\\n# Tools' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n' if m.content or not loop.first else '' }}
            {{- '<call>' + call.function.name + ' ' + call.function.arguments | tojson + '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' }}
        {{- '\\n<result>' + m.content + '</result>' }}
        {{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

LLAMA = (
    "{% for m in messages %}"
    "{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim %}"
    "{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
    "{{ text + ('<|eom_id|>' if m['tool_calls'] else '<|eot_id|>') }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

# As GLM-4-0414's: tools beside the messages, all system messages first, the name of a call on the role line.
GLM_0414 = """[gMASK]<sop>
{%- if tools %}
    {{- '<|system|>\\n# Tools' }}
    {%- for tool in tools %}
        {{- '\\n' + tool.function | tojson }}
    {%- endfor %}
{%- endif %}
{%- for m in messages if m.role == 'system' %}
    {{- '<|system|>\\n' + m.content }}
{%- endfor %}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == 'user' %}
        {{- '<|user|>\\n' + m.content }}
    {%- elif m.role == 'assistant' %}
        {{- '<|assistant|>' + m.get('metadata', '') + '\\n' + m.content }}
    {%- elif m.role == 'observation' %}
        {{- '<|observation|>\\n' + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""

# As GLM-4.5's: reasoning is shown behind the last question only, calls are blocks, results have the role `tool`.
GLM_45 = """[gMASK]<sop>
{%- if tools %}
    {{- '<|system|>\\n# Tools' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
{%- endif %}
{%- set last = namespace(question=-1) %}
{%- for m in messages if m.role == 'user' %}
    {%- set last.question = messages.index(m) %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'system' %}
        {{- '<|system|>\\n' + m.content }}
    {%- elif m.role == 'user' %}
        {{- '<|user|>\\n' + m.content }}
    {%- elif m.role == 'assistant' %}
        {%- set reasoning = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' %}
        {%- set content = m.content.split('</think>')[-1].strip() %}
        {{- '<|assistant|>\\n<think>' + (reasoning if loop.index0 > last.question else '') + '</think>' }}
        {{- '\\n' + content if content else '' }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>' + call.function.name }}
            {%- for key, value in call.function.arguments.items() %}
                {{- '\\n<arg_key>' + key + '</arg_key>\\n<arg_value>' }}
                {{- (value if value is string else value | tojson) + '</arg_value>' }}
            {%- endfor %}
            {{- '\\n</tool_call>' }}
        {%- endfor %}
    {%- elif m.role == 'tool' %}
        {{- '<|observation|>' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' }}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""


@functools.cache
def base_tokenizer(control_tokens: tuple[str, ...], *, merges: bool = True) -> Tokenizer:
    """Return a byte-level BPE tokenizer that joins newlines and some letters, with `<think>` as a plain added token.

    It splits text as the tokenizers of Llama 3, Qwen and GLM-4 do: newlines in a row stay together.
    """
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=360 if merges else 256, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(["user assistant system hello\n\n\n\nhow are you\n\ntool weather result\n"], trainer)
    tokenizer.add_special_tokens(list(control_tokens))
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer


def with_template(
    template: Any, control_tokens: tuple[str, ...], *, named: bool = True, merges: bool = True
) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the template; unless `named`, most control tokens are special without being listed."""
    backend = Tokenizer.from_str(base_tokenizer(control_tokens, merges=merges).to_str())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path="some/model",
        bos_token=control_tokens[0],
        eos_token=control_tokens[-1],
        extra_special_tokens=list(control_tokens) if named else [],
    )
    tokenizer.chat_template = template
    return tokenizer


LAYOUTS: dict[str, tuple[str, tuple[str, ...], Family, bool]] = {
    "chatml": (CHATML, CHATML_TOKENS, GENERIC, True),
    "qwen": (QWEN, CHATML_TOKENS, GENERIC, True),
    "llama": (LLAMA, LLAMA_TOKENS, GENERIC, False),
    "glm-0414": (GLM_0414, GLM_TOKENS, GLM, True),
    "glm-4.5": (GLM_45, GLM_TOKENS, GLM_MOE, True),
}


@functools.cache
def encoder_of(layout: str, **options: Any) -> Encoder:
    template, control_tokens, family, named = LAYOUTS[layout]
    return Encoder(with_template(template, control_tokens, named=named), family, **options)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, *calls: tuple[str, Any], **more: Any) -> dict[str, Any]:
    tool_calls = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": content, **({"tool_calls": tool_calls} if calls else {}), **more}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"b": 1, "a": None}}}
TOOL_TEXT = (
    '{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"b": 1, "a": null}}}'
)
FUNCTION_TEXT = '{"name": "weather", "description": "d", "parameters": {"b": 1, "a": null}}'

TURNS = [user("hello"), assistant("how are you"), user("well"), assistant("good")]
SYSTEM = [{"role": "system", "content": "Rhyme."}, *TURNS[:2]]
CALLS = [
    user("weather?"),
    assistant("I look.", ("weather", {"in": "北京"}), ("weather", {"days": 2})),
    tool("sunny"),
    tool("rainy"),
    assistant("Sunny, then rainy."),
]
LAST_CALL = [user("weather?"), assistant("", ("weather", {"in": "北京"}))]

# layout, messages, tools, expected
RENDERED: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]] | None, str]] = {
    "chatml: turns": (
        "chatml",
        TURNS,
        None,
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«how are you<|im_end|>»\n"
        "<|im_start|>user\nwell<|im_end|>\n<|im_start|>assistant\n«good<|im_end|>»\n",
    ),
    "chatml: an answer after an answer": (
        "chatml",
        [user("hello"), assistant("how"), assistant("are")],
        None,
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«how<|im_end|>»\n"
        "<|im_start|>assistant\n«are<|im_end|>»\n",
    ),
    "chatml: the result of a call is written under its role": (
        "chatml",
        [user("hello"), assistant('{"name": "a", "arguments": {}}'), tool("sunny"), assistant("are")],
        None,
        '<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«{"name": "a", "arguments": {}}<|im_end|>»\n'
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n«are<|im_end|>»\n",
    ),
    "qwen: turns": (
        "qwen",
        TURNS,
        None,
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«how are you<|im_end|>»\n"
        "<|im_start|>user\nwell<|im_end|>\n<|im_start|>assistant\n«good<|im_end|>»\n",
    ),
    "qwen: a system message": (
        "qwen",
        SYSTEM,
        None,
        "<|im_start|>system\nRhyme.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«how are you<|im_end|>»\n",
    ),
    "qwen: an empty system message takes the place of the default one": (
        "qwen",
        [{"role": "system", "content": ""}, *TURNS[:2]],
        None,
        "<|im_start|>system\n<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«how are you<|im_end|>»\n",
    ),
    "qwen: tools, a text with two calls, two results": (
        "qwen",
        CALLS,
        [TOOL],
        f"<|im_start|>system\nBe brief.\n\n# Tools\n{TOOL_TEXT}<|im_end|>\n"
        "<|im_start|>user\nweather?<|im_end|>\n"
        '<|im_start|>assistant\n«I look.\n<call>weather {"in": "北京"}</call>\n'
        '<call>weather {"days": 2}</call><|im_end|>»\n'
        "<|im_start|>user\n<result>sunny</result>\n<result>rainy</result><|im_end|>\n"
        "<|im_start|>assistant\n«Sunny, then rainy.<|im_end|>»\n",
    ),
    "qwen: a call at the end": (
        "qwen",
        LAST_CALL,
        [TOOL],
        f"<|im_start|>system\nBe brief.\n\n# Tools\n{TOOL_TEXT}<|im_end|>\n"
        "<|im_start|>user\nweather?<|im_end|>\n"
        '<|im_start|>assistant\n«<call>weather {"in": "北京"}</call><|im_end|>»\n',
    ),
    "llama: turns": (
        "llama",
        TURNS,
        None,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«how are you<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nwell<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«good<|eot_id|>»",
    ),
    "llama: a system message": (
        "llama",
        SYSTEM,
        None,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nRhyme.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«how are you<|eot_id|>»",
    ),
    "glm-0414: turns": (
        "glm-0414",
        TURNS,
        None,
        "[gMASK]<sop><|user|>\nhello<|assistant|>«\nhow are you<|user|>»\nwell<|assistant|>«\ngood<|user|>»",
    ),
    "glm-0414: tools and a system message": (
        "glm-0414",
        SYSTEM,
        [TOOL],
        f"[gMASK]<sop><|system|>\n# Tools\n{FUNCTION_TEXT}<|system|>\nRhyme.<|user|>\nhello<|assistant|>"
        "«\nhow are you<|user|>»",
    ),
    "glm-0414: a call, its result and the answer": (
        "glm-0414",
        [user("w?"), assistant("{}", metadata="weather"), {"role": "observation", "content": "sunny"}, assistant("ok")],
        [TOOL],
        f"[gMASK]<sop><|system|>\n# Tools\n{FUNCTION_TEXT}<|user|>\nw?<|assistant|>«weather\n{{}}<|observation|>»"
        "\nsunny<|assistant|>«\nok<|user|>»",
    ),
    "glm-4.5: turns": (
        "glm-4.5",
        TURNS,
        None,
        "[gMASK]<sop><|user|>\nhello<|assistant|>«\n<think></think>\nhow are you<|user|>»\nwell<|assistant|>"
        "«\n<think></think>\ngood<|user|>»",
    ),
    "glm-4.5: reasoning behind the last question": (
        "glm-4.5",
        [*TURNS[:3], assistant("<think>hm</think>good")],
        None,
        "[gMASK]<sop><|user|>\nhello<|assistant|>«\n<think></think>\nhow are you<|user|>»\nwell<|assistant|>"
        "«\n<think>hm</think>\ngood<|user|>»",
    ),
    "glm-4.5: tools, a text with two calls, two results": (
        "glm-4.5",
        CALLS,
        [TOOL],
        f"[gMASK]<sop><|system|>\n# Tools\n{TOOL_TEXT}<|user|>\nweather?<|assistant|>«\n<think></think>\nI look."
        "\n<tool_call>weather\n<arg_key>in</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>"
        "\n<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call><|observation|>»"
        "\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrainy\n</tool_response><|assistant|>"
        "«\n<think></think>\nSunny, then rainy.<|user|>»",
    ),
    "glm-4.5: a call at the end": (
        "glm-4.5",
        LAST_CALL,
        [TOOL],
        f"[gMASK]<sop><|system|>\n# Tools\n{TOOL_TEXT}<|user|>\nweather?<|assistant|>«\n<think></think>"
        "\n<tool_call>weather\n<arg_key>in</arg_key>\n<arg_value>北京</arg_value>\n</tool_call><|observation|>»",
    ),
}
