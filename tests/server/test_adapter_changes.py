"""Adapters that are loaded and unloaded while the server runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from serving_rows import PLAIN, THANKS
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmtune import generate
from glmtune.errors import GlmtuneError
from glmtune.modeling import loading
from glmtune.modeling.finite import check_finite
from glmtune.server.run import serve

ASKED, TOLD = next(iter(PLAIN.items()))
PROMPTS = [*PLAIN, THANKS]
KINDS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "wide": LoraConfig(r=8, target_modules=["o_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def folder(tool_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained adapters with random weights, and others that must not be loaded."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, (name, config) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        get_peft_model(AutoModelForCausalLM.from_pretrained(tool_model), config).save_pretrained(str(folder / name))
        AutoTokenizer.from_pretrained(tool_model).save_pretrained(folder / name)
    for name in ("pickled", "narrow"):
        (folder / name).mkdir()
        for file in (folder / "lora").glob("adapter_*"):
            (folder / name / file.name).write_bytes(file.read_bytes())
    (folder / "pickled" / "adapter_model.safetensors").rename(folder / "pickled" / "adapter_model.bin")
    settings = folder / "narrow" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"r": 4', '"r": 3'))
    return folder


@pytest.fixture
def changing(tool_model: Path, folder: Path, serve_in_thread) -> Iterator[str]:
    with serve_in_thread(tool_model, adapter_folder=folder, max_length=8000, max_batch_tokens=8000) as url:
        yield url


def load(url: str, name: str, path: Any = None) -> httpx2.Response:
    body = {"lora_name": name, "lora_path": str(path or name)}
    return httpx2.post(f"{url}/v1/load_lora_adapter", json=body, timeout=60)


def unload(url: str, name: str) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=60)


def ask(url: str, name: str, prompt: str = ASKED) -> str | None:
    body = {"model": name, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 12}
    answered = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    return answered["choices"][0]["message"]["content"] if "choices" in answered else None


def names(url: str) -> list[str]:
    return [model["id"] for model in httpx2.get(f"{url}/v1/models").json()["data"]]


def test_adapters_come_and_go_and_each_answers_as_alone(changing: str, tool_model: Path, folder: Path) -> None:
    alone = {
        name: generate(path, PROMPTS, max_new_tokens=12, do_sample=False)
        for name, path in {"tiny": tool_model, **{kind: folder / kind for kind in KINDS}}.items()
    }
    assert len(set(map(tuple, alone.values()))) == len(alone)

    def told(name: str) -> list[str | None]:
        return [ask(changing, name, prompt) for prompt in PROMPTS]

    for _ in range(2):  # again, when all of them have gone
        for name in KINDS:
            loaded = load(changing, name, folder / name if name == "wide" else name)
            assert (loaded.status_code, loaded.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
            assert told("tiny") == alone["tiny"]
        assert names(changing) == ["tiny", *KINDS]
        assert {name: told(name) for name in alone} == alone
        for name in KINDS:
            assert unload(changing, name).text == f"Success: LoRA adapter '{name}' removed successfully."
            assert ask(changing, name) is None
            assert told("tiny") == alone["tiny"]
        assert names(changing) == ["tiny"]


def test_an_adapter_of_an_old_name_meets_nothing_that_was_kept(changing: str, folder: Path) -> None:
    long = ASKED * 30

    def usage(name: str) -> int:
        body = {"model": name, "messages": [{"role": "user", "content": long}], "temperature": 0, "max_tokens": 12}
        told = httpx2.post(f"{changing}/v1/chat/completions", json=body, timeout=60).json()
        answers.append(told["choices"][0]["message"]["content"])
        return int(told["usage"]["prompt_tokens_details"]["cached_tokens"])

    answers: list[str] = []
    for kind in ("lora", "wide"):
        assert load(changing, "name", kind).status_code == 200
        assert usage("name") == 0
        assert usage("name") > 100
        assert unload(changing, "name").status_code == 200
    alone = [generate(folder / kind, [long], max_new_tokens=12, do_sample=False)[0] for kind in ("lora", "wide")]
    assert answers == [alone[0], alone[0], alone[1], alone[1]]


def test_answers_go_on_while_adapters_come_and_their_own_goes(changing: str) -> None:
    assert load(changing, "lora").status_code == 200
    client = openai.OpenAI(base_url=f"{changing}/v1", api_key="none", max_retries=0)
    options: Any = {"temperature": 0, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
    whole = client.completions.create(model="lora", prompt=ASKED, **options).choices[0].text
    stream = client.completions.create(model="lora", prompt=ASKED, stream=True, **options)
    text = next(stream).choices[0].text
    assert load(changing, "wide").status_code == 200
    assert unload(changing, "lora").status_code == 200
    assert ask(changing, "lora") is None
    assert text + "".join(chunk.choices[0].text for chunk in stream) == whole
    deadline = time.monotonic() + 20
    while load(changing, "lora").status_code != 200:  # its weights go when its last answer is written
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_does_not_fit_changes_nothing(changing: str) -> None:
    for _ in range(2):
        refused = load(changing, "narrow")
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("the adapter does not fit the base model")
        assert ask(changing, "tiny") == TOLD
        assert names(changing) == ["tiny"]
    assert load(changing, "lora").status_code == 200
    before = ask(changing, "lora")
    assert load(changing, "narrow").status_code == 400
    assert (ask(changing, "tiny"), ask(changing, "lora")) == (TOLD, before)


def test_nothing_is_loaded_but_safetensors_of_the_folder(changing: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for file in (folder / "lora").glob("adapter_*"):
        (outside / file.name).write_bytes(file.read_bytes())
    (folder / "link").symlink_to(outside)
    (folder / "linked").mkdir()
    for file in outside.iterdir():
        (folder / "linked" / file.name).symlink_to(file)
    elsewhere = "adapters are loaded only from the folder of `--allow-adapter-changes`"
    refused: dict[Any, tuple[int, str]] = {
        outside: (403, elsewhere),
        f"../{outside.name}": (403, elsewhere),
        "/nowhere": (403, elsewhere),
        "link": (403, elsewhere),
        "linked": (403, elsewhere),
        "pickled": (404, "`lora_path` has no `adapter_model.safetensors`"),
        "none": (404, "`lora_path` has no `adapter_config.json`"),
        "a\0b": (400, "`lora_path` is no path"),
    }
    for path, expected in refused.items():
        response = load(changing, "new", path)
        assert (response.status_code, response.json()["error"]["message"]) == expected
    assert names(changing) == ["tiny"]


def test_names_are_given_once_and_the_checkpoint_stays(changing: str) -> None:
    assert load(changing, "lora").status_code == 200
    assert [load(changing, name, "lora").status_code for name in ("lora", "tiny", "")] == [400, 400, 400]
    assert [unload(changing, name).status_code for name in ("other", "tiny")] == [404, 400]


def test_it_is_off_unless_it_is_allowed_and_behind_the_key(tool_model: Path, folder: Path, serve_in_thread) -> None:
    with serve_in_thread(tool_model) as url:
        assert [load(url, "lora").status_code, unload(url, "lora").status_code] == [404, 404]
    with serve_in_thread(tool_model, adapter_folder=folder, api_key="secret") as url:
        assert [load(url, "lora").status_code, unload(url, "lora").status_code] == [401, 401]


def test_the_folder_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError) as caught:
        serve("demo", allow_adapter_changes=tmp_path / "none")
    assert caught.value.what == f"`--allow-adapter-changes` is `{tmp_path / 'none'}`, which is no folder"


def test_an_adapters_files_are_read_beside_the_answers(changing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[str] = []

    def noted(path: Path) -> None:
        readers.append(threading.current_thread().name)
        check_finite(path)

    monkeypatch.setattr(loading, "check_finite", noted)
    for name in ("lora", "wide", "prefix"):
        assert load(changing, name).status_code == 200
    assert len(readers) == 3
    assert "engine" not in readers
