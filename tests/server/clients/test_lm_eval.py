"""lm-eval over `/v1/completions`: log-likelihoods as a plain forward has them, and texts that go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from serving_rows import PLAIN

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (`pip install 'glmtune[clients]'`)")
pytest.importorskip("tenacity", reason="needs what `lm-eval[api]` brings")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

from glmtune.modeling.finding.model_source import find_model  # noqa: E402
from glmtune.modeling.loading import load_model  # noqa: E402

pytestmark = pytest.mark.slow

ASKED, TOLD = next(iter(PLAIN.items()))
PAIRS = [
    (f"<|user|>\n{ASKED}<|assistant|>\n", TOLD),
    (f"<|user|>\n{ASKED}<|assistant|>\n", "这件"),
    ("这条裙子", "主色为墨绿，沉静耐看。"),
]


@pytest.fixture(scope="module")
def folder(clients_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own, with the tokenizer in it as lm-eval reads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    load_model(find_model(clients_model)).tokenizer.save_pretrained(folder)
    return folder


def client(url: str, folder: Path, **options: Any) -> Any:
    return LocalCompletionsAPI(
        model="tiny",
        base_url=f"{url}/v1/completions",
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        max_length=512,
        max_retries=1,
        **options,
    )


@pytest.mark.parametrize(("num_concurrent", "batch_size"), [(1, 1), (4, 2)])
def test_log_likelihoods_are_those_of_a_plain_forward(
    num_concurrent: int, batch_size: int, url: str, folder: Path, clients_model: Path
) -> None:
    asks = client(url, folder, num_concurrent=num_concurrent, batch_size=batch_size)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number) for number, pair in enumerate(PAIRS)
    ]
    found = asks.loglikelihood(requests)
    loaded = load_model(find_model(clients_model))
    for (context, continuation), (logprob, is_greedy) in zip(PAIRS, found):
        before, behind = asks._encode_pair(context, continuation)
        ids = torch.tensor([before + behind])
        with torch.no_grad():
            logits = loaded.model(input_ids=ids).logits[0, len(before) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(behind)[:, None]).sum().item()
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert is_greedy == (logits.argmax(-1).tolist() == behind)


def task(kind: str, rows: Path, **more: Any) -> dict[str, Any]:
    return {
        "task": f"local_{kind}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{context}}",
        **more,
    }


def test_tasks_over_a_local_file_are_scored(url: str, folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    context = f"<|user|>\n{ASKED}<|assistant|>\n"
    row = {"context": context, "choices": ["这件", TOLD], "gold": 1, "told": TOLD}
    rows.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    shared = {"target_delimiter": "", "num_fewshot": 0}
    chosen = task(
        "multiple_choice",
        rows,
        doc_to_choice="{{choices}}",
        doc_to_target="gold",
        metric_list=[{"metric": "acc"}],
        **shared,
    )
    written = task(
        "generate_until",
        rows,
        doc_to_target="{{told}}",
        metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["。"], "max_gen_toks": 60, "temperature": 0},
        filter_list=[{"name": "whole", "filter": [{"function": "take_first"}]}],
        **shared,
    )
    asks = client(url, folder)
    found = lm_eval.simple_evaluate(
        model=asks, tasks=[chosen, written], log_samples=True, bootstrap_iters=0, cache_requests=False
    )
    assert found["results"]["local_multiple_choice"]["acc,none"] == 1.0
    [sample] = found["samples"]["local_generate_until"]
    asked = {"model": "tiny", "prompt": asks.tok_encode(context), "max_tokens": 60, "temperature": 0, "stop": "。"}
    own = httpx2.post(f"{url}/v1/completions", json=asked, timeout=30).json()
    assert sample["resps"][0][0] == own["choices"][0]["text"]
