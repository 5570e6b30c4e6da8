"""What a run needs before it starts: the model found, its tokenizer loaded, the rows read and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import ReplyLayout, reply_layout
from glmtune.config.generation_options import unknown_ids
from glmtune.config.run_config import AnyConfig, RunConfig, as_config
from glmtune.console import notice, quiet_libraries, say
from glmtune.encoded.dataset import EncodedData
from glmtune.encoded.inspection import format_text
from glmtune.encoded.store import encoded_folder
from glmtune.errors import GlmtuneError
from glmtune.evaluation.own_metrics import OwnMetrics, load_metrics
from glmtune.evaluation.predictions import has_calls
from glmtune.evaluation.tool_calls import CALL_METRIC_NAMES
from glmtune.family import Family, family_of
from glmtune.files.user_paths import expand, user_path
from glmtune.generation.generate import note_short_context
from glmtune.kernels.arithmetic import Arithmetic
from glmtune.modeling.adapting.starts import check_start
from glmtune.modeling.config_loading import load_family, load_model_config, load_tokenizer
from glmtune.modeling.context import check_vocabulary, context_of, vocabulary_of
from glmtune.modeling.finding.model_source import ModelSource, check_weight_files, find_model
from glmtune.modeling.quantization import check_quantized_can_be_read
from glmtune.python_arguments import expect_paths
from glmtune.training.folder.run_folder import DataRecord, RunRequest
from glmtune.training.methods.method import Method
from glmtune.training.methods.sft import SFT

from .run_data import RunFiles, as_records, find_run_files, load_data


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything a run needs that can be had without a process group: done before one starts, which would time out."""

    request: RunRequest
    method: Method
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    family: Family
    stop_ids: frozenset[int]
    """Ids that the labels teach to stop with."""
    layout: ReplyLayout
    """How the model writes tool calls."""
    data_files: DataRecord
    own_metrics: OwnMetrics | None = None
    """The user's, whose file has been run."""
    data: dict[str, EncodedData]
    """By split: `train`, and `val` and `test` where the configuration has rows for them."""
    arithmetic: Arithmetic | None = None
    """What a CPU multiplies in; None where there is nothing to choose, and before it is chosen."""


def prepare_run(request: RunRequest, files: RunFiles | None = None, *, method: Method = SFT) -> Prepared:
    """Find the model, load its tokenizer, read and encode the data; its files are looked for where none are given."""
    config = request.config
    check_start(config.peft_config)
    own_metrics = load_metrics(config.metrics) if config.metrics is not None else None
    source = model_source(request)
    files = files or find_run_files(request.data_dir, config)
    check_weight_files(source)
    trust = config.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    model_config = load_model_config(source, trust_remote_code=trust)
    check_quantized_can_be_read(model_config, source.base)
    check_vocabulary(tokenizer, model_config)
    limit = context_of(model_config)
    _check_lengths(config, limit)
    _check_generation(config, model_config, limit)
    family = family_of(model_config.model_type)
    encoder = method.encoder(tokenizer, family, config)
    data = load_data(files, config, encoder)
    layout = reply_layout(encoder.renderer)
    _check_metric(config, data.get("val"), tokenizer, layout)
    first = data["train"].dataset[0]
    text = format_text(tokenizer, first["input_ids"], first["labels"])
    say(*f"first row, trained parts in [[ ]]: {text}".split("\n"))
    return Prepared(
        request=request,
        method=method,
        source=source,
        tokenizer=tokenizer,
        family=family,
        stop_ids=frozenset(encoder.stop_ids),
        layout=layout,
        data_files=as_records(files),
        data=data,
        own_metrics=own_metrics,
    )


def _check_lengths(config: RunConfig, limit: int | None) -> None:
    """Raise where a row may be longer than what the model was made for."""
    num_virtual = (config.peft_config or {}).get("num_virtual_tokens", 0)
    asked = config.max_input_length + config.max_output_length + num_virtual
    if limit is None or asked <= limit:
        return
    parts = f"`max_input_length` ({config.max_input_length:,}) and `max_output_length` ({config.max_output_length:,})"
    if num_virtual:
        parts += f", with {num_virtual:,} virtual tokens,"
    raise GlmtuneError(
        f"{parts} are {asked:,} tokens together, and the model's context ends at {limit:,}",
        fix="lower them; rows are then cut or left out as `truncation` says",
    )


def _check_generation(config: RunConfig, model_config: PretrainedConfig, limit: int | None) -> None:
    """Raise where answers need a token that the model does not have; say where they cannot be as long as asked."""
    vocabulary = vocabulary_of(model_config)
    for problem in unknown_ids(config.generation_config, vocabulary) if vocabulary is not None else ():
        key = f"training_args.generation_config.{problem.option}"
        raise GlmtuneError(f"`{key}` {problem.message}", where=key, fix=problem.fix)
    if config.training_args["predict_with_generate"]:
        note_short_context(config.generation_config, limit)


def _check_metric(
    config: RunConfig, data: EncodedData | None, tokenizer: PreTrainedTokenizerBase, layout: ReplyLayout
) -> None:
    """Raise where the best model is to be told by its tool calls, and no row to evaluate on has one."""
    metric = (config.training_args.get("metric_for_best_model") or "").removeprefix("eval_")
    if metric not in CALL_METRIC_NAMES or data is None or has_calls(tokenizer, data, layout, config.max_input_length):
        return
    raise GlmtuneError(
        f"`training_args.metric_for_best_model`: `{metric}` cannot be measured: no row to evaluate on calls a function",
        fix="add rows with tool calls to the validation file, or choose another metric",
    )


@quiet_libraries()
def prepare_data(data_dir: str | Path, model: str, config: AnyConfig, *, overrides: Sequence[str] = ()) -> Path:
    """Encode and keep the rows of a run without training, and return the folder where they are kept.

    A run with the same rows, model and configuration then starts at once, on this machine or on others that share
    the folder. The arguments are those of `train`; of the model only the tokenizer and the configuration are needed.
    """
    expect_paths(data_dir=data_dir)
    config = as_config(config, overrides)
    for line in config.notices:
        notice(line)
    source = find_model(absolute(model), needs_weights=False)
    trust = config.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    encoder = Encoder.from_config(tokenizer, load_family(source, trust_remote_code=trust), config)
    load_data(find_run_files(user_path(data_dir), config), config, encoder)
    return encoded_folder()


def model_source(request: RunRequest) -> ModelSource:
    """Return what to load: the model, or the checkpoint that the run starts from."""
    source = find_model(request.model, base_model=request.base_model if request.init_from is None else None)
    if request.init_from is None:
        # Training from an adapter's checkpoint without saying how could mean two things.
        if source.adapter is not None:
            raise GlmtuneError(
                f"`{request.model}` is an adapter's checkpoint, not a model",
                fix=f"to train it further: `glmtune train DATA_DIR {source.base} CONFIG --init-from {request.model}`",
            )
        return source
    start = find_model(request.init_from, base_of_adapter=request.base_model or request.model)
    if start.adapter is None:
        raise GlmtuneError(
            f"`--init-from {request.init_from}` is a whole model, not an adapter",
            fix=f"give it in the place of MODEL: `glmtune train DATA_DIR {request.init_from} CONFIG`",
        )
    if request.config.peft_config is None:
        raise GlmtuneError(
            f"`--init-from {request.init_from}` is an adapter, but the configuration trains all weights",
            fix="use a configuration with `peft_config`; or a whole model in the place of MODEL",
        )
    return start


def absolute(name: str) -> str:
    """Make a local path independent of where the next command is run; leave names as they are."""
    name = expand(str(name))
    return str(Path(name).resolve()) if Path(name).exists() else name
