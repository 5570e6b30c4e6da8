"""A checkpoint as a folder that every tool can load: the adapter merged, all stop tokens set, the result checked.

checkpoint ──load──▶ unmerged ──ask──▶ answers ─────────────────────────┐
                         └──merge, save──▶ hidden folder ──load anew──▶ the same answers? ──▶ OUT

The unmerged model is gone from memory before the exported one is loaded.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from glmtune.console import notice, quiet_libraries, say
from glmtune.errors import GlmtuneError, RunFailure, nearest
from glmtune.files.durable import put_in_place
from glmtune.files.new_file import refuse_broken_link
from glmtune.files.user_paths import refuse_unreadable_name, user_path
from glmtune.modeling.finding.model_source import CHECKPOINT_NAME, ModelSource, find_model
from glmtune.modeling.loading import default_device
from glmtune.modeling.out_of_memory import memory_errors_explained
from glmtune.python_arguments import expect_paths

from . import gguf as gguf_file
from .export_check import Check, Difference, Distance, compare
from .merging import (
    ADAPTER,
    TrainedMethod,
    Written,
    check_base,
    free_memory,
    method_of,
    name_base,
    question_ids,
    write_model,
)
from .model_card import CardFacts, model_card, read_record, run_folder_of
from .push import check_push, push

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHARD_SIZE = re.compile(r"[1-9]\d*(KB|MB|GB|TB)")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export has made."""

    folder: Path
    method: TrainedMethod
    base: str
    """Where the base model is; the model itself where there is no other."""
    dtype: str
    prompts: str
    """Where the prompts of the check come from, in words."""
    check: Check
    adapter_effect: Distance | None
    """How far the adapter moves the logits; None where none was merged."""
    gguf: Path | None = None
    url: str | None = None
    """Of the repository that it was uploaded to."""

    def __repr__(self) -> str:
        """Return where the folder is, and what it holds."""
        return f"<Exported: {self.method.name} in {self.dtype}, {self.folder}>"


@quiet_libraries()
@memory_errors_explained("exporting", "export on the CPU: `CUDA_VISIBLE_DEVICES= glmtune export ...`")
def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    base_model: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    prompts: str | Path | None = None,
    gguf: str | None = None,
    push_to: str | None = None,
    trust_remote_code: bool = False,
) -> Exported:
    """Write a checkpoint as a folder for other tools, and check that it answers as the checkpoint does.

    Args:
        checkpoint: A checkpoint, a run folder (its last checkpoint), a model folder, a hub name or `demo`.
        out: Absent, or an empty folder. It is there when all is right, and not before.
        base_model: Where the base model of an adapter is now, if it has moved.
        dtype: `bfloat16`, `float16` or `float32`; None is that of the base model's files.
        max_shard_size: Largest file of weights, such as `5GB`.
        prompts: A file of prompts for the check; None takes rows of the run's data, or a few questions.
        gguf: Also write a GGUF file of this type: one of `glmtune.exporting.gguf.TYPES`.
        push_to: Also upload to this repository of a hub.
        trust_remote_code: Run code that the model brings along.

    Raises:
        GlmtuneError: Something that the user can mend, told before anything is computed.
        RunFailure: The exported model is another model, and nothing is left of it; or what follows has failed.
    """
    expect_paths(out=out, prompts=prompts)
    out = user_path(out)
    refuse_broken_link(out)
    folder = out.resolve()  # a link to an empty folder is filled, not replaced
    refuse_unreadable_name(folder, "export")
    _check_options(folder, dtype, max_shard_size)
    if push_to is not None:
        check_push(push_to)
    source = find_model(checkpoint, base_model=base_model)
    method = method_of(source)
    _check_method(method, dtype)
    converter = _find_converter(gguf, method)
    check_base(source, method, trust_remote_code=trust_remote_code)
    run_folder = run_folder_of(source.adapter or Path(source.base))
    record = read_record(run_folder) if run_folder else {}
    with _written_aside(folder) as staged:
        written = write_model(
            source,
            method,
            staged,
            dtype=DTYPES[dtype] if dtype else None,
            max_shard_size=max_shard_size,
            prompts=user_path(prompts) if prompts is not None else None,
            record=record,
            trust_remote_code=trust_remote_code,
        )
        free_memory()
        check = _check(written, source, method, staged, trust_remote_code)
        facts = CardFacts(
            name=folder.name,
            base=_base_name(source, record),
            kind=method.kind,
            method=method.name,
            dtype=str(written.dtype).removeprefix("torch."),
            prompts=written.prompts,
            check=check,
        )
        _make_public(staged, model_card(facts, record, run_folder, _step(source)))
        if push_to is not None and method.kind == ADAPTER and Path(source.base).is_absolute():
            name_base(staged, facts.base)
            notice(f"`adapter_config.json` names the base model `{facts.base}`: its path is this machine's alone")
    file = gguf_file.convert(converter, folder, str(gguf)) if converter else None
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return Exported(
        folder=out,
        method=method,
        base=source.base,
        dtype=facts.dtype,
        prompts=written.prompts,
        check=check,
        adapter_effect=written.adapter_effect,
        gguf=file,
        url=push(folder, push_to, files) if push_to is not None else None,
    )


def _check_options(folder: Path, dtype: str | None, max_shard_size: str) -> None:
    """Raise where an option cannot be meant, or the folder is in use."""
    if dtype is not None and dtype not in DTYPES:
        raise GlmtuneError(
            f"`{dtype}` is no dtype for weights{nearest(dtype, list(DTYPES))}",
            fix=f"expected one of {', '.join(f'`{name}`' for name in DTYPES)}",
        )
    if not SHARD_SIZE.fullmatch(max_shard_size):
        raise GlmtuneError(f"`{max_shard_size}` is no size of a file", fix="write it as `500MB` or `5GB`")
    if folder.is_dir() and any(folder.iterdir()):
        raise GlmtuneError(f"`{folder}` is not empty", fix="choose another folder, or empty it")
    if folder.exists() and not folder.is_dir():
        raise GlmtuneError(f"`{folder}` is a file", fix="choose another name")
    if not folder.parent.is_dir():
        raise GlmtuneError(f"folder `{folder.parent}` does not exist", fix="make it first")


def _check_method(method: TrainedMethod, dtype: str | None) -> None:
    """Raise where an adapter that stays one is to get another dtype."""
    if dtype is not None and method.kind == ADAPTER:
        raise GlmtuneError(
            f"`--dtype` has no meaning for a {method.name} adapter: its base model stays as it is", fix="leave it out"
        )


def _find_converter(gguf: str | None, method: TrainedMethod) -> list[str] | None:
    """Return the command of the converter to GGUF, where one is asked for; raises where it could not be used."""
    if gguf is None:
        return None
    gguf_file.check_type(gguf)
    if method.kind == ADAPTER:
        raise GlmtuneError(
            f"a {method.name} adapter cannot become a GGUF file: it is no part of the weights",
            fix="leave out `--gguf`",
        )
    return gguf_file.find_converter()


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that takes its place when all is well, and is gone when not."""
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
            staged = Path(aside) / folder.name
            staged.mkdir()
            yield staged
            put_in_place(staged, folder)  # an empty folder gives way
    except (OSError, SafetensorError) as error:
        raise RunFailure(
            f"`{folder}` cannot be written: {error}", fix="free some space, or choose another disk"
        ) from error


def _make_public(staged: Path, card: str) -> None:
    """Write the card; and let everybody read the weights who may read it, since they are written for their owner."""
    path = staged / "README.md"
    path.write_text(card, encoding="utf-8")
    for weights in staged.glob("*.safetensors"):
        shutil.copymode(path, weights)


def _check(
    written: Written, source: ModelSource, method: TrainedMethod, staged: Path, trust_remote_code: bool
) -> Check:
    """Load the written folder as any other program would, and compare; raises where it is another model."""
    say("loading what was written, without glmtune, and asking it the same")
    options: dict[str, Any] = {"dtype": "auto", "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(staged, trust_remote_code=trust_remote_code)
        if method.kind == ADAPTER:
            model: Any = AutoModelForCausalLM.from_pretrained(source.base, **options)
            model.generation_config = GenerationConfig.from_pretrained(staged)
            model = PeftModel.from_pretrained(model, str(staged))
        else:
            model = AutoModelForCausalLM.from_pretrained(staged, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RunFailure(f"plain transformers cannot load what was written: {error}") from error
    if question_ids(tokenizer) != written.questions:
        raise RunFailure("the tokenizer makes other ids of the same questions once it is saved and loaded")
    check = compare(written.answers, model.to(default_device()).eval(), tokenizer, written.changed)
    for difference in check.differences:
        notice(_describe(difference))
    if not check.is_faithful:
        raise RunFailure(
            f"the exported model is not the same model: its logits differ by up to {check.distance.largest:.4g} "
            f"(typically {check.distance.typical:.2g}), where rounding the same weights at random makes "
            f"{check.rounding.largest:.4g} (typically {check.rounding.typical:.2g}); nothing was kept",
            fix="see the differing answers above; if the adapter is sound, please report this with the versions of "
            "peft and transformers",
        )
    return check


def _describe(difference: Difference) -> str:
    gap = "" if difference.gap == float("inf") else f"; their logits were {difference.gap:.4g} apart"
    return (
        f"answer {difference.number} differs from token {difference.token} on: {difference.before} before, "
        f"{difference.after} after{gap}"
    )


def _base_name(source: ModelSource, record: Mapping[str, Any]) -> str:
    """Return what people call the base model: never a path of this machine."""
    name = str(record.get("asked", {}).get("model", source.base))
    return Path(name).name if Path(name).is_absolute() else name


def _step(source: ModelSource) -> int | None:
    """Return the training step of a checkpoint."""
    match = CHECKPOINT_NAME.fullmatch((source.adapter or Path(source.base)).name)
    return int(match[1]) if match else None
