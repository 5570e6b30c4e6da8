"""Serving through vLLM where it is installed: this module only says to it what it does not know of GLM-4 by itself.

Written from vLLM's documentation and source (0.20, the first that takes transformers 5, to 0.32), and tried with 0.32
on a CPU.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from glmtune.chatformat.rendering import ChatRenderer
from glmtune.chatformat.replies import ARGUMENT_TAGS, JSON_TAGS, ROLE_LINE, reply_layout
from glmtune.console import notice, say
from glmtune.errors import GlmtuneError
from glmtune.files.cache_files import cache_folder, write_file
from glmtune.modeling.adapting.adapter_config import adapter_config
from glmtune.modeling.config_loading import load_family, load_tokenizer
from glmtune.modeling.finding.model_source import ModelSource
from glmtune.modeling.loading import stop_token_ids
from glmtune.text.secret_values import masked_arguments

from .vllm_template import glm4_template

BACKENDS = ("auto", "transformers", "vllm")
PLUGIN = Path(__file__).with_name("vllm_tool_parser.py")
PARSERS = {ROLE_LINE: "glm4_role_line", ARGUMENT_TAGS: "glm45", JSON_TAGS: "hermes"}
"""How a model writes its calls, and vLLM's name of what reads them; the first one is our plugin's."""

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` takes."""


def takes_vllm(backend: str, sources: Sequence[ModelSource], *, is_quantized: bool = False) -> bool:
    """Return whether vLLM serves, or raise where it was asked for and cannot."""
    if backend not in BACKENDS:
        raise GlmtuneError(f"`--backend` is `{backend}`; expected one of: {', '.join(BACKENDS)}")
    if backend == "transformers":
        return False
    is_asked_for = backend == "vllm"
    reason = _why_not(sources, is_asked_for=is_asked_for)
    if reason is None and is_quantized:
        reason = "`--quantization` is bitsandbytes' by transformers; vLLM's own is among `--vllm-args`"
    if is_asked_for and reason is not None:
        raise GlmtuneError(f"vLLM cannot serve this: {reason}", fix="leave out `--backend vllm`")
    if reason is not None and importlib.util.find_spec("vllm") is not None:
        notice(f"served without vLLM: {reason}")
    return reason is None


def _why_not(sources: Sequence[ModelSource], *, is_asked_for: bool) -> str | None:
    if importlib.util.find_spec("vllm") is None:
        return "`vllm` is not installed"
    if not torch.cuda.is_available() and not (is_asked_for and _is_built_for_cpus()):
        return "there is no GPU"
    for source in sources:
        if source.adapter is not None and _peft_type(source.adapter) != "LORA":
            return f"the adapter `{source.adapter}` is not LoRA, and vLLM knows no other"
    return None


def _is_built_for_cpus() -> bool:
    """Return what vLLM itself goes by: the end of its version, as in `0.32.0+cpu`."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False


def vllm_command(
    source: ModelSource,
    name: str,
    adapters: Mapping[str, ModelSource],
    *,
    host: str,
    port: int,
    max_length: int | None,
    max_rows: int,
    origins: Sequence[str] = (),
    trust_remote_code: bool = False,
    more: Sequence[str] = (),
) -> list[str]:
    """Return vLLM's command line: adapters, stop tokens, GLM-4's way to write messages and the reader of tool calls.

    Args:
        source: The checkpoint.
        name: What requests call it.
        adapters: Others on the same base model, by what requests call them.
        host: Address to listen at.
        port: Port there.
        max_length: Tokens of prompt and answer together; the model's own limit where it is None.
        max_rows: Answers written at once.
        origins: Those whose pages may ask from a browser.
        trust_remote_code: Whether to run code that the model brings along.
        more: Further options of vLLM, which override what is above.
    """
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    family = load_family(source, trust_remote_code=trust_remote_code)
    renderer = ChatRenderer(tokenizer, family)
    layout = reply_layout(renderer)
    lora = {name: source.adapter} if source.adapter else {}
    lora |= {other: found.adapter for other, found in adapters.items() if found.adapter}
    own_settings = _own_settings(source.base)
    stops = stop_token_ids(own_settings, tokenizer, family)
    settings = own_settings.to_diff_dict() | {"eos_token_id": stops}
    settings_file = _write_file(json.dumps(settings, indent=2, sort_keys=True) + "\n", "generation_config.json")
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", source.base]
    command += ["--host", host, "--port", str(port), "--max-num-seqs", str(max_rows)]
    command += ["--allowed-origins", json.dumps(list(origins))]  # pages of any, if nothing were said
    # Where the checkpoint is an adapter, the base model goes by its own name.
    command += ["--served-model-name", name if source.adapter is None else source.base]
    command += ["--tokenizer", source.tokenizer, "--generation-config", str(settings_file.parent)]
    if layout.calls is not None:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", PARSERS[layout.calls]]
        command += ["--exclude-tools-when-tool-choice-none"]
        if layout.calls == ROLE_LINE:
            template_file = _write_file(glm4_template(renderer), "chat_template.jinja")
            command += ["--tool-parser-plugin", str(PLUGIN), "--chat-template", str(template_file)]
            # vLLM would look into the template for how it takes texts, and cannot see through what ours does first.
            command += ["--chat-template-content-format", "string"]
    if lora:
        rank = max(int(getattr(adapter_config(folder), "r", 8)) for folder in lora.values())
        command += ["--enable-lora", "--max-lora-rank", str(next((size for size in RANKS if size >= rank), rank))]
        command += ["--lora-modules", *(f"{key}={folder}" for key, folder in lora.items())]
    if max_length is not None:
        command += ["--max-model-len", str(max_length)]
    if trust_remote_code:
        command += ["--trust-remote-code"]
    return [*command, *more]


def run_vllm(command: Sequence[str], api_key: str | None) -> None:
    """Become vLLM; the key goes through the environment, where other users do not see it."""
    environment = dict(os.environ)
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    say(f"serving with vLLM: {' '.join(masked_arguments(command[1:]))}")
    os.execve(command[0], list(command), environment)


def _own_settings(base: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(base)
    except OSError:  # a model need not have any
        return GenerationConfig()


def _write_file(text: str, name: str) -> Path:
    """Write a file for vLLM to read, and return where it lies: a folder for each text."""
    file = cache_folder() / "vllm" / hashlib.sha256(text.encode()).hexdigest()[:16] / name
    write_file(file, text.encode())
    return file


def _peft_type(folder: Path) -> str:
    return str(adapter_config(folder).peft_type).rpartition(".")[2]
