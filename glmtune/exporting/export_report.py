"""What a user is told at the end of an export: whether it is the same model, and what can load it."""

from __future__ import annotations

from .merging import ADAPTER, FULL, MERGED
from .run import Exported


def report(exported: Exported) -> list[str]:
    """Return the lines."""
    lines = [_made(exported), *_figures(exported)]
    if exported.gguf is not None:
        lines.append(f"GGUF: {exported.gguf.name}, not checked (llama.cpp is needed for that)")
    if exported.url is not None:
        lines.append(f"uploaded to {exported.url} (private unless it was there before)")
    return [*lines, *_ways_out(exported)]


def _made(exported: Exported) -> str:
    shards = sorted(exported.folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in shards)
    files = f"{len(shards)} file{'s' if len(shards) > 1 else ''} of {_readable(size)}"
    method = exported.method
    what = {
        MERGED: f"the {method.name} adapter is merged into {exported.dtype} weights, {files}",
        FULL: f"a full model in {exported.dtype}, {files}",
        ADAPTER: f"a {method.name} adapter, which cannot be merged, {files}; it needs its base model `{exported.base}`",
    }
    return f"{exported.folder}: {what[method.kind]}"


def _readable(num_bytes: int) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= one:
            return f"{num_bytes / one:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _figures(exported: Exported) -> list[str]:
    check = exported.check
    same = check.num_prompts - len(check.differences)
    line = f"greedy answers: {same} of {check.num_prompts} are the same as before ({exported.prompts})"
    if check.differences:
        line += "; the others turn where two tokens were as close as rounding brings them"
    lines = [line]
    figure = f"largest logit difference: {check.distance.largest:.4g}"
    if check.distance.largest:
        figure += f" (rounding the same weights at random: {check.rounding.largest:.4g}"
        if exported.adapter_effect is not None:
            figure += f"; the adapter itself: {exported.adapter_effect.largest:.4g}"
        figure += ")"
    lines.append(figure)
    if exported.adapter_effect is not None and exported.adapter_effect.typical < 2 * check.distance.typical:
        lines.append(
            f"the adapter changes little more than rounding to {exported.dtype} does: "
            "`--dtype float32` keeps what it has learned"
        )
    return lines


def _ways_out(exported: Exported) -> list[str]:
    folder = exported.folder
    if exported.method.kind == ADAPTER:
        return [
            f"glmtune serves it: `glmtune serve {folder}`",
            f"plain PEFT loads it: `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({exported.base!r}), "
            f"{str(folder)!r})`; vLLM cannot",
        ]
    ways = [f"`glmtune serve {folder}`", f"`vllm serve {folder}`", f"`transformers serve {folder}`"]
    if exported.gguf is not None:
        ways.append(f"`llama-server -m {exported.gguf}`")
    return [f"it can be served with {', '.join(ways[:-1])} or {ways[-1]}"]
