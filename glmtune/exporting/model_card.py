"""The model card: what an exported model is, and what the run that made it has recorded. No paths of the machine."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import glmtune
from glmtune.compat import PLAIN_PEFT_LOSES_PREFIX
from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.links import refuse_links
from glmtune.modeling.finding.run_record import read_run_file
from glmtune.reports.metrics_file import METRICS_FILE, read_logs

from .export_check import Check
from .merging import METHOD_NAMES

ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "seed",
)
SETTINGS = ("max_input_length", "max_output_length", "train_on", "combine", "packing", "quantization")
PACKAGES = ("torch", "transformers", "peft")
LARGEST_SHOWN = 1e300


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says beside what the run has recorded."""

    name: str
    base: str
    """As people call it: a hub name, or a folder's own name."""
    kind: str
    """`merged`, `full` or `adapter`."""
    method: str
    dtype: str
    prompts: str
    """Where the sample prompts of the check come from."""
    check: Check


def run_folder_of(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint lies in."""
    return checkpoint.parent if (checkpoint.parent / "run.yaml").is_file() else None


def read_record(run_folder: Path) -> dict[str, Any]:
    """Return a run's `run.yaml`."""
    path = run_folder / "run.yaml"
    refuse_links(run_folder, [path.name, METRICS_FILE])
    record = read_run_file(path)
    if not isinstance(record, dict):
        raise GlmtuneError("`run.yaml` cannot be read: it holds no mapping", where=str(path))
    _check_record(record, path)
    return record


def _check_record(record: Mapping[str, Any], path: Path) -> None:
    """Raise where a part that the card is written from is of another kind."""
    asked = record.get("asked", {})
    config = asked.get("config", {}) if isinstance(asked, dict) else None
    files = record.get("data", {})
    parts = {
        "asked": asked,
        "asked.config": config,
        "asked.config.data_config": config.get("data_config", {}) if isinstance(config, dict) else None,
        "resolved_training_args": record.get("resolved_training_args", {}),
        "packages": record.get("packages", {}),
        "data": files,
    }
    wrong = next((name for name, part in parts.items() if not isinstance(part, dict)), None)
    if wrong is None and not all(_is_file_record(file) for split in files.values() for file in _listed(split)):
        wrong = "data"
    if wrong is not None:
        raise GlmtuneError(f"`run.yaml` cannot be read: `{wrong}` is not what a run writes", where=str(path))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_file_record(file: Any) -> bool:
    return isinstance(file, dict) and "path" in file and isinstance(file.get("weight", 1), (int, float))


def model_card(facts: CardFacts, record: Mapping[str, Any], run_folder: Path | None, step: int | None) -> str:
    """Return the card's text; `record` is the run's `run.yaml`, `step` the checkpoint's."""
    lines = [*_front_matter(facts), f"# {facts.name}", "", _summary(facts), ""]
    lines += ["## Use", "", "```python", *_usage(facts), "```", ""]
    if facts.method == METHOD_NAMES["PREFIX_TUNING"]:
        lines += [PLAIN_PEFT_LOSES_PREFIX, ""]
    if run_folder is not None:
        lines += _training(record, run_folder, step)
    lines += ["## Check of the export", "", *_check(facts), ""]
    lines += ["## Exported with", "", *_versions({name: importlib.metadata.version(name) for name in PACKAGES}), ""]
    return "\n".join(lines)


def _front_matter(facts: CardFacts) -> list[str]:
    """Return what a hub reads; it refuses a base model that is no name of its own."""
    is_adapter = facts.kind == "adapter"
    matter: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["glmtune"],
    }
    if facts.base.count("/") == 1:
        matter |= {"base_model": facts.base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    return ["---", yaml.safe_dump(matter, sort_keys=False).strip(), "---", ""]


def _summary(facts: CardFacts) -> str:
    what = {
        "merged": f"`{facts.base}` with a {facts.method} adapter merged into its weights ({facts.dtype})",
        "full": f"`{facts.base}`, all of its weights ({facts.dtype})",
        "adapter": f"a {facts.method} adapter of `{facts.base}`, which is needed beside it",
    }[facts.kind]
    return f"This is {what}."


def _usage(facts: CardFacts) -> list[str]:
    if facts.kind == "adapter":
        return [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{facts.base}", dtype="auto")',
            'model.generation_config = GenerationConfig.from_pretrained("THIS_FOLDER")',
            'model = PeftModel.from_pretrained(model, "THIS_FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        ]
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
    ]


def _training(record: Mapping[str, Any], run_folder: Path, step: int | None) -> list[str]:
    config = record.get("asked", {}).get("config", {})
    lines = ["## Training", ""]
    lines += _table(("setting", "value"), _settings(record, config, step))
    lines += ["### Data", "", *_table(("split", "file", "weight", "sha256"), _data(record))]
    figures = [*_evaluations(run_folder, step)]
    if figures:
        lines += ["### Evaluation", "", *_table(("step", "figures"), figures)]
    return [*lines, "### Packages", "", *_versions(record.get("packages", {})), ""]


def _settings(record: Mapping[str, Any], config: Mapping[str, Any], step: int | None) -> Iterator[Sequence[str]]:
    """Yield the main settings of a run, as they were resolved."""
    if step is not None:
        yield "step", str(step)
    arguments = dict(record.get("resolved_training_args", {}))
    # transformers writes down both, and heeds one.
    arguments.pop("num_train_epochs" if arguments.get("max_steps", -1) > 0 else "max_steps", None)
    for values, keys in ((arguments, ARGUMENTS), (config, SETTINGS)):
        for key in keys:
            if values.get(key) is not None:
                yield key, str(values[key])
    yield "processes", str(record.get("world_size", 1))
    if config.get("peft_config"):
        yield "peft_config", json.dumps(config["peft_config"], ensure_ascii=False)
    if record.get("started"):
        yield "started", str(record["started"])


def _data(record: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for split, entries in record.get("data", {}).items():
        for entry in entries:
            name = str(entry["path"])
            shown = Path(name).name if Path(name).is_absolute() else name
            yield split, shown, f"{entry.get('weight', 1):g}", str(entry.get("sha256") or "")


def _evaluations(run_folder: Path, step: int | None) -> Iterator[Sequence[str]]:
    """Yield the last evaluation up to the checkpoint's step and, where it is another, the one with the lowest loss."""
    logs = [log for log in read_logs(run_folder / METRICS_FILE) if _is_number(log.get("eval_loss"))]
    found = [log for log in logs if step is None or log["step"] <= step]
    if not found:
        return
    last, best = found[-1], min(found, key=lambda line: line["eval_loss"])
    yield str(last["step"]), _figures(last)
    if best["step"] != last["step"]:
        yield f"{best['step']} (lowest loss)", _figures(best)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_SHOWN


def _figures(line: Mapping[str, Any]) -> str:
    skipped = ("runtime", "_seconds", "per_second")
    figures = {
        key.removeprefix("eval_"): value
        for key, value in line.items()
        if key.startswith("eval_") and not key.endswith(skipped) and _is_number(value)
    }
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _check(facts: CardFacts) -> Iterator[str]:
    check = facts.check
    same = check.num_prompts - len(check.differences)
    yield f"- prompts: {facts.prompts}"
    yield f"- greedy answers that are the same before and after: {same} of {check.num_prompts}"
    yield f"- largest difference of a logit: {check.distance.largest:.4g}"
    if check.distance.largest:
        yield f"- largest difference that rounding the same weights at random makes: {check.rounding.largest:.4g}"


def _versions(packages: Mapping[str, str]) -> list[str]:
    return [
        " ".join(f"- {name} {version}".split())
        for name, version in {"glmtune": glmtune.__version__, **packages}.items()
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows), ""]
