"""However an adapter begins: its checkpoint is the model that was trained, or the run is refused before it begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from json_lines import json_lines
from peft import LoraConfig

from glmtune import evaluate, export, resume, train
from glmtune.errors import GlmtuneError
from glmtune.modeling.adapting.starts import check_start
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_model
from glmtune.server.models import find_adapters, load_models

KNOWN = [True, False, "gaussian", "orthogonal", "mica"]
REFUSED = ["pissa", "pissa_niter_4", "PiSSA", "olora", "loftq", "corda", "lora_ga", "eva", "something new"]


def config_for(write_config, start) -> Path:
    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": start}
    return write_config(
        top={"peft_config": peft}, max_steps=4, save_steps=2, eval_steps=4, predict_with_generate=False, seed=3
    )


@pytest.mark.parametrize("start", KNOWN, ids=str)
def test_the_checkpoint_is_the_trained_model(start, write_config, demo_data: Path, tmp_path: Path, read_losses) -> None:
    if start == "mica" and "mica" not in (LoraConfig.__doc__ or ""):
        pytest.skip("this PEFT has no `mica`")
    run = train(demo_data, "demo", config_for(write_config, start))
    lines = json_lines(run / "metrics.jsonl")
    [at_the_end] = [line["eval_loss"] for line in lines if "eval_loss" in line]
    checkpoint = run / "checkpoint-4"
    saved = evaluate(checkpoint, demo_data / "dev.jsonl", max_new_tokens=1, limit=None).metrics["loss"]
    assert saved == pytest.approx(at_the_end, abs=2e-6)
    losses = read_losses(run)
    shutil.rmtree(checkpoint)
    resume(run)
    assert read_losses(run) == losses
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "你好"}\n', encoding="utf-8")
    assert export(run, tmp_path / "exported", prompts=prompts).check.is_faithful


@pytest.mark.parametrize("start", REFUSED)
def test_a_start_that_the_checkpoint_could_not_give_back_is_refused(
    start: str, write_config, demo_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(GlmtuneError, match=rf"^`peft_config.init_lora_weights: {start}` ") as caught:
        train(demo_data, "demo", config_for(write_config, start))
    assert caught.value.fix is not None
    assert not (tmp_path / "run").exists()


def test_a_start_that_no_one_chose_is_none_that_is_refused() -> None:
    check_start(None)
    check_start({"peft_type": "PREFIX_TUNING"})
    check_start({"peft_type": "LORA", "init_lora_weights": None})
    with pytest.raises(GlmtuneError, match=r"^`peft_config.init_lora_weights: olora` "):
        check_start({"peft_type": "LORA", "init_lora_weights": "olora"})


def adapter_with(start: str, run: Path, folder: Path) -> Path:
    shutil.copytree(run / "checkpoint-4", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"init_lora_weights": start}), "utf-8")
    return folder


def test_adapters_of_other_tools_that_change_the_base_are_refused_where_they_would_be_wrong(
    write_config, demo_data: Path, tmp_path: Path
) -> None:
    run = train(demo_data, "demo", config_for(write_config, True))
    random = adapter_with("pissa_niter_4", run, tmp_path / "random")
    with pytest.raises(GlmtuneError, match="comes out differently each time"):
        load_model(find_model(random))
    exact = adapter_with("pissa", run, tmp_path / "exact")
    load_model(find_model(exact))
    for source, adapters in ((run, [f"b={exact}"]), ("demo", [f"b={exact}"]), (exact, [f"b={run / 'checkpoint-4'}"])):
        found = find_model(source)
        with pytest.raises(GlmtuneError, match="changes the base model, which others answer with, too"):
            load_models(found, "a", find_adapters(adapters, found))
    load_models(find_model(exact), "a", {})
