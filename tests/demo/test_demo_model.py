"""The embedded model: reproducible bytes, GLM-4's layout, a cache that two processes can fill at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from glmtune.demo.model import SPECIAL_TOKENS, build_demo_model, cache_folder, demo_model_path
from glmtune.demo.rows import LIVELY, PLAIN, TOOLS, build_rows, to_json
from glmtune.errors import GlmtuneError
from glmtune.family import GLM_STOPS

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "model"
    build_demo_model(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def test_the_folder_holds_everything_that_transformers_writes(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_second_build_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    build_demo_model(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    build_demo_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_a_small_glm_with_grouped_key_value_heads(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert (type(model).__name__, config.model_type) == ("GlmForCausalLM", "glm")
    assert config.num_key_value_heads == 2 < config.num_attention_heads
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.attention_bias
    assert not config.tie_word_embeddings
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6


def test_pad_and_stop_ids_are_those_of_the_named_tokens(folder: Path, tokenizer) -> None:
    stop_ids = tokenizer.convert_tokens_to_ids(list(GLM_STOPS))
    generation = GenerationConfig.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    assert generation.eos_token_id == config.eos_token_id == stop_ids
    assert generation.pad_token_id == config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token == "<|endoftext|>"
    assert not generation.do_sample
    assert tokenizer.padding_side == "left"


def test_each_special_token_is_one_id_of_its_own(folder: Path, tokenizer) -> None:
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in SPECIAL_TOKENS]
    assert [len(of_token) for of_token in ids] == [1] * len(SPECIAL_TOKENS)
    assert len({of_token[0] for of_token in ids}) == len(SPECIAL_TOKENS)
    assert len(tokenizer) == AutoConfig.from_pretrained(folder).vocab_size


def test_plain_text_is_encoded_behind_glm_4s_prefix(tokenizer) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("类型"))
    assert tokens[:2] == ["[gMASK]", "<sop>"]
    assert tokenizer.convert_tokens_to_ids(tokens[2:]) == tokenizer.encode("类型", add_special_tokens=False)


def test_any_text_survives_the_tokenizer(tokenizer) -> None:
    texts = ["Zwölf Boxkämpfer 🥊\n\ttab", "龘 is not in the rows", '{"item": "墨绿羊毛风衣"}']
    texts += [m["content"] for style in (PLAIN, LIVELY) for row in build_rows(style)["test"] for m in row["messages"]]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_attribute_is_one_token(tokenizer) -> None:
    ids = tokenizer.encode("类型#风衣*颜色#墨绿*材质#羊毛", add_special_tokens=False)
    pieces = ["类型", "#", "风衣", "*", "颜色", "#", "墨绿", "*", "材质", "#", "羊毛"]
    assert [tokenizer.decode([token_id]) for token_id in ids] == pieces


def test_the_template_writes_glm_4s_layout(tokenizer) -> None:
    messages = [
        {"role": "system", "content": "", "tools": TOOLS[:1]},
        {"role": "user", "content": "还有货吗？"},
        {"role": "assistant", "metadata": "query_stock", "content": '{"item": "风衣"}'},
        {"role": "observation", "content": '{"stock": 3}'},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "[gMASK]<sop><|system|>\n可用工具\n## query_stock\n"
        + to_json(TOOLS[0]["function"])
        + "<|user|>\n还有货吗？<|assistant|>query_stock\n"
        + '{"item": "风衣"}<|observation|>\n{"stock": 3}<|assistant|>'
    )


def test_a_system_text_follows_the_tools_in_a_block_of_its_own(tokenizer) -> None:
    messages = [{"role": "system", "content": "简短回答", "tools": TOOLS}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.count("## ") == 2
    assert text.endswith("<|system|>\n简短回答")


@pytest.mark.parametrize("extra", [{"tools": None}, {"tools": []}, {"metadata": None}, {"metadata": ""}])
def test_keys_without_a_value_change_nothing_in_the_prompt(tokenizer, extra: dict) -> None:
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}], tokenize=False)
    assert plain == "[gMASK]<sop><|user|>\n你好"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "你好"} | extra], tokenize=False) == plain


def test_the_cache_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    folder = demo_model_path()
    built = (folder / "model.safetensors").stat().st_mtime_ns
    assert demo_model_path() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == built
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("GLMTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "glmtune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "glmtune"


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(GlmtuneError, match="the demo model cannot be written") as caught:
        demo_model_path()
    assert caught.value.fix == "set `GLMTUNE_CACHE` to a folder that you can write to"


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr("glmtune.demo.model.build_demo_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_model_path()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_can_build_the_cache_at_once(folder: Path, tmp_path: Path) -> None:
    code = (
        "import json, os\n"
        f"os.environ['GLMTUNE_CACHE'] = {json.dumps(str(tmp_path))}\n"
        "from glmtune.demo.model import demo_model_path\n"
        "print(demo_model_path())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=300)[0].splitlines()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    (path,) = paths
    assert list(tmp_path.iterdir()) == [Path(path)]
    for name in FILES:
        assert (Path(path) / name).read_bytes() == (folder / name).read_bytes(), name
