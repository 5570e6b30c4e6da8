"""What a model has room for: its context, and the rows of its embedding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GlmConfig

from glmtune.errors import GlmtuneError
from glmtune.modeling.config_loading import load_model_config
from glmtune.modeling.context import check_vocabulary, context_of
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import load_model


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 32768),
        ({"rope_type": "linear", "factor": 2.0}, 65536),
        ({"rope_type": "dynamic", "factor": 4.0}, 131072),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16384}, 32768),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 2048, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0}, 32768),
    ],
)  # fmt: skip
def test_the_context_is_what_the_positions_reach(rope: dict, limit: int) -> None:
    config = GlmConfig(max_position_embeddings=32768, rope_parameters={"rope_theta": 10000.0, **rope})
    assert context_of(config) == limit


def test_positions_may_be_scaled_as_older_files_say_it(demo_model: str, tmp_path: Path) -> None:
    values = json.loads((Path(demo_model) / "config.json").read_text(encoding="utf-8"))
    del values["rope_parameters"]
    values |= {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert context_of(load_model_config(find_model(tmp_path, needs_weights=False))) == 2 * 8192


@pytest.fixture
def more_tokens(demo_model: str, tmp_path: Path) -> Path:
    """The demo model, whose tokenizer got two tokens more."""
    folder = tmp_path / "more"
    shutil.copytree(demo_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<SKU>", "</SKU>"])
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_without_an_embedding_are_an_error_that_names_its_size(more_tokens: Path) -> None:
    with pytest.raises(GlmtuneError) as caught:
        load_model(find_model(more_tokens))
    assert caught.value.what == (
        "the model has no embedding for the token `<SKU>` (id 1,110) and 1 more: its embedding ends at 1,110 rows "
        "(`vocab_size`)"
    )
    assert caught.value.where == str(more_tokens)
    assert caught.value.fix is not None
    assert "resize_token_embeddings(1112)" in caught.value.fix


def test_an_embedding_with_a_row_for_every_token_is_well(more_tokens: Path) -> None:
    config = load_model_config(find_model(more_tokens))
    tokenizer = AutoTokenizer.from_pretrained(more_tokens)
    for config.vocab_size in (1113, 1112):
        check_vocabulary(tokenizer, config)
    config.vocab_size = 1111
    with pytest.raises(GlmtuneError, match=r"^the model has no embedding for the token `</SKU>` \(id 1,111\): "):
        check_vocabulary(tokenizer, config)
