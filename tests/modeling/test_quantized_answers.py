"""`--quantization` of verbs that answer: what is refused, and answers beside the unquantized ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_rows import PLAIN

from glmtune import GlmtuneError, evaluate, generate, serve, train
from glmtune.modeling.finding.model_source import ModelSource, find_model
from glmtune.modeling.loading import load_model

ASKED, TOLD = next(iter(PLAIN.items()))


def test_a_number_of_bits_that_there_is_not_is_told(demo_model: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        load_model(find_model(demo_model), quantization="3bit")
    assert str(caught.value) == "`--quantization` is `3bit`; expected `4bit` or `8bit`"


def test_weights_that_are_quantized_already_are_not_quantized_again(demo_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in Path(demo_model).iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").unlink()
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(GlmtuneError, match="quantized already, by the method `bitsandbytes`"):
        load_model(find_model(str(folder)), quantization="4bit")


def test_a_model_that_is_loaded_is_not_quantized_any_more(demo_model: str) -> None:
    with pytest.raises(GlmtuneError, match="for a model that is still to be loaded"):
        generate(load_model(find_model(demo_model)), "a", quantization="4bit")


WITHOUT = "import importlib.util as u\nfind = u.find_spec\n"
WITHOUT += "u.find_spec = lambda name, *a: None if name == 'bitsandbytes' else find(name, *a)\n"


@pytest.mark.parametrize("verb", ["serve", "chat", "infer", "eval"])
@pytest.mark.slow
def test_a_missing_bitsandbytes_is_told_in_two_lines(verb: str, demo_data: Path) -> None:
    more = {"eval": [str(demo_data / "dev.jsonl")], "serve": ["--port", "0"]}.get(verb, [])
    arguments = [verb, "demo", *more, "--quantization", "4bit"]
    code = f"{WITHOUT}import sys\nsys.argv = ['glmtune', *{arguments!r}]\nfrom glmtune.cli.app import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], input="a\n", capture_output=True, text=True, cwd=demo_data)
    assert done.returncode == 2
    assert done.stderr == (
        "error: `bitsandbytes` is not installed\nhint: run `pip install 'glmtune[quant]'` and try again\n"
    )


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_answers_and_scores_come_from_quantized_weights(
    quantization: str, tool_model: Path, demo_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs `pip install 'glmtune[quant]'`")
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    loaded: Any = load_model(find_model(tool_model), quantization=quantization)
    kinds = {type(module) for module in loaded.model.modules()}
    assert {"4bit": Linear4bit, "8bit": Linear8bitLt}[quantization] in kinds
    exact: Any = load_model(find_model(tool_model))
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        distance = (loaded.model(input_ids=ids).logits - exact.model(input_ids=ids).logits).abs().mean()
        scale = exact.model(input_ids=ids).logits.std()
    assert 0 < distance / scale < 0.5
    assert isinstance(generate(str(tool_model), ASKED, quantization=quantization, max_new_tokens=20), str)
    scores = evaluate(
        str(tool_model), demo_data / "dev.jsonl", limit=2, max_new_tokens=8, quantization=quantization,
        output=tmp_path / "out.jsonl",
    )  # fmt: skip
    assert len(scores.predictions) == 2


@pytest.mark.slow
def test_an_adapter_that_was_trained_on_quantized_weights_answers_and_is_served_on_them(
    demo_data: Path, tmp_path: Path, serve_in_thread
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs `pip install 'glmtune[quant]'`")
    openai = pytest.importorskip("openai", reason="needs the `serve` extra")
    config = {
        "data_config": {"train_file": "train.jsonl"},
        "max_input_length": 64,
        "max_output_length": 64,
        "quantization": "4bit",
        "peft_config": {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8},
        "training_args": {"output_dir": str(tmp_path / "run"), "max_steps": 4, "save_steps": 4, "learning_rate": 1e-2},
    }
    adapter = train(demo_data, "demo", config) / "checkpoint-4"
    own, none = (
        load_model(ModelSource(base=find_model("demo").base, adapter=folder), quantization="4bit")
        for folder in (adapter, None)
    )
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert not torch.equal(own.model(input_ids=ids).logits, none.model(input_ids=ids).logits)
    told = generate(own, "类型#裙", max_new_tokens=8)
    with serve_in_thread("demo", quantization="4bit", adapters=[f"trained={adapter}"]) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answers = {}
        for name in ("tiny", "trained"):
            done = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "类型#裙"}], temperature=0, max_tokens=8
            )
            answers[name] = done.choices[0].message.content.strip()
    assert answers["trained"] == told.strip()


def test_vllm_has_a_way_of_its_own(demo_model: str) -> None:
    pytest.importorskip("fastapi", reason="needs the `serve` extra")
    with pytest.raises(GlmtuneError, match="vLLM cannot serve this"):
        serve(demo_model, backend="vllm", quantization="4bit")
