"""The embedded tiny GLM: a complete transformers model folder, built on the spot and from nothing but code.

GLM-4's architecture, special tokens, stop tokens and prompt layout at a million parameters: code that works on
this folder works on a real GLM-4 folder. The weights are random; `make demo` trains them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast

from glmtune.errors import GlmtuneError
from glmtune.family import ASSISTANT, GLM_STOPS, OBSERVATION, SYSTEM, USER
from glmtune.files.cache_files import ELSEWHERE, cache_folder, make_folder, remove, share

from . import rows

END_OF_TEXT = "<|endoftext|>"
PREFIX_TOKENS = ("[gMASK]", "<sop>")
"""What GLM-4 puts before every conversation."""

SPECIAL_TOKENS = [
    END_OF_TEXT,
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    SYSTEM,
    USER,
    ASSISTANT,
    OBSERVATION,
]
"""GLM-4's text tokens, in its order."""

MAX_VOCAB_SIZE = 2048
"""More than there are words in the rows, so that each one becomes a token."""

SEED = 1234
MAX_LENGTH_TOKENS = 8192

ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    # transformers' 0.02 is meant for wide models. After 200 steps the loss was 0.66 with it, and 0.12 with 0.05.
    "initializer_range": 0.05,
}

# GLM-4's layout. `tools` stands inside a message, and may be None there: Arrow fills missing keys so.
# A newline right after a block tag would be dropped (transformers sets `trim_blocks`), hence `{{ '\n' }}`.
CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{% for item in messages %}"
    "{% if item['tools'] %}<|system|>\n可用工具"
    "{% for tool in item['tools'] %}"
    "{{ '\\n## ' + tool['function']['name'] + '\\n' }}{{ tool['function'] | tojson }}"
    "{% endfor %}"
    "{% endif %}"
    "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] or '' }}\n{{ item['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_demo_model(folder: Path) -> None:
    """Write a model folder to `folder`; the same versions of the libraries always write the same weights."""
    tokenizer = build_tokenizer()
    stop_ids = tokenizer.convert_tokens_to_ids(list(GLM_STOPS))
    config = GlmConfig(
        **ARCHITECTURE,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_ids,
    )
    model = random_model(config)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=128, eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_model(config: GlmConfig) -> GlmForCausalLM:
    """Return a model with reproducible random weights, and leave torch's random state as it was."""
    # Only the CPU's generator is seeded and restored: `torch.manual_seed` would also reseed every GPU.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(SEED)
        return GlmForCausalLM(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer whose tokens are the words of the demo's rows.

    Trained on words, not on rows: from whole rows BPE makes tokens of whole sentences, the attributes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*rows.words(), "可用工具"], trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    # As GLM-4's tokenizer does: plain text comes back behind the prefix unless `add_special_tokens=False`.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*PREFIX_TOKENS, "$A"],
        pair=[*PREFIX_TOKENS, "$A", "$B"],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in PREFIX_TOKENS],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        extra_special_tokens=SPECIAL_TOKENS,
        padding_side="left",
        model_max_length=MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


DIGESTS = ".digests.json"


def demo_model_path() -> Path:
    """Return the folder of the demo model in the user's cache; the first call builds it, without a network."""
    folder = cache_folder() / f"demo-{fingerprint()}"
    if is_whole(folder):
        return folder
    try:
        make_folder(folder.parent)
        if os.path.lexists(folder):
            remove(folder)
        # Built aside and renamed: the folder is complete or absent, also where two processes build it at once.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as building:
            built = Path(building) / "model"
            build_demo_model(built)
            (built / DIGESTS).write_text(json.dumps(digests(built)), encoding="utf-8")
            share(built)
            try:
                os.rename(built, folder)
            except OSError:
                if not folder.is_dir():  # or else another process was faster, with the same bytes
                    raise
    except OSError as error:
        raise GlmtuneError(f"the demo model cannot be written: {error}", where=str(folder), fix=ELSEWHERE) from error
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the model's files are those that were written."""
    try:
        return not folder.is_symlink() and json.loads((folder / DIGESTS).read_bytes()) == digests(folder)
    except (OSError, ValueError, RecursionError):
        return False


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.iterdir()) if path.name != DIGESTS]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def fingerprint() -> str:
    """Return a hash of all that determines the model's bytes: its source and the libraries' versions."""
    versions = [tokenizers.__version__, transformers.__version__, torch.__version__]
    digest = hashlib.sha256(json.dumps(versions).encode())
    for source in (rows.__file__, __file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]
