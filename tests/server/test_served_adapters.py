"""Adapters on one base model: each name answers as its adapter alone would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from serving_rows import PLAIN, THANKS
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmtune import generate
from glmtune.errors import GlmtuneError
from glmtune.generation.prefill import SCORED_TOKENS
from glmtune.modeling.finding.model_source import find_model
from glmtune.server.models import find_adapters, load_models, model_name

KINDS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "wide": LoraConfig(r=8, target_modules=["o_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def adapters(tool_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained adapters with random weights, so that each one answers otherwise."""
    folders = {}
    for number, (name, config) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        model = AutoModelForCausalLM.from_pretrained(tool_model)
        get_peft_model(model, config).save_pretrained(str(folders[name]))
        AutoTokenizer.from_pretrained(tool_model).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def many(tool_model: Path, adapters: dict[str, Path], serve_in_thread) -> Iterator[str]:
    options = [f"{name}={folder}" for name, folder in adapters.items()]
    with serve_in_thread(tool_model, adapters=options) as url:
        yield url


def test_an_adapter_whose_tokens_padding_would_part_from_a_row_is_not_served(tool_model: Path, tmp_path: Path) -> None:
    settings = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tool_model), settings).save_pretrained(str(tmp_path))
    with pytest.raises(GlmtuneError, match="an adapter of prompt tuning cannot be served") as caught:
        load_models(find_model(str(tmp_path), base_model=str(tool_model)), "prompt", {})
    assert caught.value.where == str(tmp_path)


def test_every_name_answers_as_its_adapter_alone(many: str, tool_model: Path, adapters: dict[str, Path]) -> None:
    prompts = [*PLAIN, THANKS]

    async def ask_all() -> dict[str, list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{many}/v1", api_key="none", max_retries=0) as client:

            async def one(name: str, prompt: str) -> str:
                messages: list[Any] = [{"role": "user", "content": prompt}]
                done = await client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=12)
                return done.choices[0].message.content

            # All at once: each pass of one adapter comes between two of the others.
            names = ["tiny", *adapters]
            answers = await asyncio.gather(*(one(name, prompt) for name in names for prompt in prompts))
            return {name: answers[number * len(prompts) :][: len(prompts)] for number, name in enumerate(names)}

    served = asyncio.run(ask_all())
    alone = {
        name: generate(folder, prompts, max_new_tokens=12, do_sample=False)
        for name, folder in {"tiny": tool_model, **adapters}.items()
    }
    assert served == alone
    assert len({tuple(answers) for answers in alone.values()}) == len(alone)


def test_a_conversation_goes_on_from_what_its_own_adapter_has_read(
    many: str, tool_model: Path, adapters: dict[str, Path]
) -> None:
    client = openai.OpenAI(base_url=f"{many}/v1", api_key="none", max_retries=0)
    ids: Any = AutoTokenizer.from_pretrained(tool_model)(THANKS * 30)["input_ids"][:150]
    told = {}
    for name, folder in {"tiny": None, **adapters}.items():
        model = AutoModelForCausalLM.from_pretrained(tool_model)
        model = model if folder is None else PeftModel.from_pretrained(model, folder)
        conversation, cached = list(ids), []
        for _ in range(3):
            done = client.completions.create(
                model=name,
                prompt=conversation,
                max_tokens=4,
                temperature=0,
                logprobs=0,
                extra_body={"ignore_eos": True},
            )
            cached.append(done.usage.prompt_tokens_details.cached_tokens)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([conversation])).logits[0, -1]
            expected = float(logits.log_softmax(-1).max())
            assert done.choices[0].logprobs.token_logprobs[0] == pytest.approx(expected, abs=1e-4)
            conversation += [int(logits.argmax()), *ids[:60]]
        told[name] = cached
    assert told == {name: [0, 128, 192] for name in told}


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_an_echoed_prompt_is_as_likely_as_with_its_adapter(
    name: str, many: str, tool_model: Path, adapters: dict[str, Path]
) -> None:
    client = openai.OpenAI(base_url=f"{many}/v1", api_key="none", max_retries=0)
    ids = AutoTokenizer.from_pretrained(tool_model)(THANKS * 60)["input_ids"]
    prompts: Any = [ids, ids[: len(ids) // 2], ids[3:]]
    assert sum(map(len, prompts)) > SCORED_TOKENS
    done = client.completions.create(model=name, prompt=prompts, max_tokens=0, echo=True, logprobs=0)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tool_model), adapters[name])
    for choice, prompt in zip(done.choices, prompts):
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(prompt[1:])[:, None]).squeeze(1).tolist()
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_a_trained_prefix_takes_its_part_of_the_context(
    tool_model: Path, adapters: dict[str, Path], serve_in_thread
) -> None:
    source = find_model(tool_model)
    options = [f"{name}={folder}" for name, folder in adapters.items()]
    context = load_models(source, "tiny", find_adapters(options, source)).max_tokens
    rooms = {"tiny": context, "lora": context, "wide": context, "prefix": context - 4}

    def refusal(url: str, name: str, prompt: int, wanted: int) -> str | None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        ids: Any = [20] * prompt
        try:
            client.completions.create(model=name, prompt=ids, max_tokens=wanted, temperature=0)
        except openai.BadRequestError as error:
            return error.body["message"]  # type: ignore[index]
        return None

    with serve_in_thread(tool_model, adapters=options, max_length=context) as url:
        for name, room in rooms.items():
            assert refusal(url, name, 10, room - 9) == (
                f"This model's maximum context length is {room} tokens. However, you requested {room + 1} tokens (10 "
                f"in the prompt, {room - 9} in the completion). Please reduce the length of the prompt or completion."
            )
        assert refusal(url, "prefix", context - 5, 1) is None
    # A limit of the server's own, far below the context, holds for all alike.
    with serve_in_thread(tool_model, adapters=options, max_length=64) as url:
        for name in rooms:
            assert refusal(url, name, 63, 1) is None
            assert refusal(url, name, 63, 2) is not None


def test_models_are_listed_with_their_adapters(many: str) -> None:
    client = openai.OpenAI(base_url=f"{many}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny", *KINDS]


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_checkpoint_may_be_an_adapter_itself(kind: str, adapters: dict[str, Path]) -> None:
    models = load_models(find_model(adapters[kind]), "mine", {})
    assert list(models.lanes) == ["mine"]


def test_options_for_adapters_that_make_no_sense_are_told(tool_model: Path, adapters: dict[str, Path]) -> None:
    source = find_model(tool_model)

    def message(*options: str) -> str:
        with pytest.raises(GlmtuneError) as caught:
            load_models(source, "tiny", find_adapters(list(options), source))
        return str(caught.value)

    lora = adapters["lora"]
    assert message("lora") == "`--adapter lora`: expected NAME=PATH"
    assert message(f"a={lora}", f"a={lora}") == f"`--adapter a={lora}`: the name `a` is given twice"
    assert message(f"a={tool_model}") == f"`--adapter a={tool_model}`: `{tool_model}` is a full model, not an adapter"
    assert message(f"tiny={lora}") == (
        "the name `tiny` is the checkpoint's and an adapter's\nhint: choose another with `--name`"
    )


def test_a_checkpoint_is_called_after_its_run(tool_model: Path) -> None:
    assert model_name(tool_model) == "run/checkpoint-60"
    assert model_name("demo") == "demo"
