"""How long an evaluation with generation takes, beside the original's `predict_with_generate`.

python benchmarks/evaluation.py

The original GLM-4 `finetune.py`, written anew: transformers' `Seq2SeqTrainer.predict` over batches in the order of the
data, padded on the left; what all batches generated is padded and gathered, and scored in one loop at the end. Here:
`score_model`, which computes the loss of the rows besides; the time of that stands apart. Both get the same rows,
tokenized before, the same model and the same options, and must write the same answers.

A model with random weights never stops, and an evaluation of it would measure `max_new_tokens`. The model here knows
the rows by heart: GLM's architecture in small, trained on nothing but them, so that its answers are as long as real
ones and end as real ones do. It is trained with the few thousand tokens that occur in the rows, and then gets GLM-4's
whole vocabulary: the others are never the likeliest, and cost what they cost.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jieba
import numpy as np
import torch
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from results import machine, table, write_section
from rouge_chinese import Rouge
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    GlmConfig,
    GlmForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import ROLE_LINE, ReplyLayout
from glmtune.encoded.collating import collate
from glmtune.encoded.dataset import EncodedData, encode_file
from glmtune.evaluation.evaluate import score_model
from glmtune.evaluation.predictions import GenerationPlan
from glmtune.family import GLM, GLM_STOPS, IGNORE_INDEX
from glmtune.generation.answering import num_reports
from glmtune.generation.generate import generation_config

SHARED = Path(__file__).parents[2] / "shared"
NUM_ROWS = 256
NUM_ROUNDS = 3
VOCABULARY = 151_552
MAX_NEW_TOKENS = 512  # of the original's configurations, like the batch size
BATCH_SIZE = 4
WARM_UP_ROWS = 8

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 428,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "initializer_range": 0.05,
}
KNOWN_BY_HEART = 0.01
"""Loss below which the model gives the rows back; it takes some hundred steps."""


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder that holds AdvertiseGen/dev.jsonl")
    parser.add_argument(
        "--tokenizer", default=str(SHARED / "glm-4-9b-chat"), help="folder or hub name of a GLM-4 model"
    )
    parser.add_argument("--model", type=Path, help="folder that keeps the trained model for the next time")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="fewer for a first look: nothing is written then")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    data = encode_file(arguments.data / "AdvertiseGen" / "dev.jsonl", Encoder(tokenizer, GLM)).first(NUM_ROWS)
    if arguments.model is not None and (arguments.model / "config.json").exists():
        model = GlmForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    else:
        model = widened(learn_by_heart(data), data, tokenizer)
        if arguments.model is not None:
            model.save_pretrained(arguments.model)
    model.eval()
    compare(model, tokenizer, data.first(arguments.rows), arguments.rounds)


def compare(model: GlmForCausalLM, tokenizer: Any, data: EncodedData, num_rounds: int) -> None:
    """Evaluate in turn, and write down how long it took."""
    for evaluate in (original, ours):
        evaluate(model, tokenizer, data.first(WARM_UP_ROWS))
    theirs, mine = [], []
    for _ in range(num_rounds):
        theirs.append(original(model, tokenizer, data))
        mine.append(ours(model, tokenizer, data))
        equal = sum(one == other for one, other in zip(theirs[-1]["texts"], mine[-1]["texts"]))
        print(
            f"{theirs[-1]['seconds']:.1f} s, {mine[-1]['seconds']:.1f} s, {equal} of {len(data.dataset)} answers equal"
        )
    parts = ("answers", "scores", "seconds", "loss")
    rows = [
        [name, *(f"{statistics.median(run[part] for run in runs):.1f} s" for part in parts)]
        for name, runs in (("original", theirs), ("glmtune", mine))
    ]
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(theirs, mine)]
    whole = [one["seconds"] / (other["seconds"] + other["loss"]) for one, other in zip(theirs, mine)]
    lengths = [len(tokenizer(answer)["input_ids"]) for answer in mine[-1]["texts"]]
    text = f"## Evaluation with generation\n\n{table(['', 'answers', 'scores', 'both', 'loss'], rows)}\n\n"
    text += (
        f"**{statistics.median(ratios):.1f} times as fast** ({min(ratios):.1f} to {max(ratios):.1f}). "
        f"{len(data.dataset)} rows of AdvertiseGen, "
        f"batch size {BATCH_SIZE}, `max_new_tokens` {MAX_NEW_TOKENS}, float32, two threads; GLM with "
        f"hidden size {SHAPE['hidden_size']}, {SHAPE['num_hidden_layers']} layers and the vocabulary of "
        f"{VOCABULARY:,}, which knows the rows by heart: its answers have {statistics.mean(lengths):.0f} tokens on "
        f"average, the longest {max(lengths)}. {equal} of {len(lengths)} answers are the same text, ROUGE-L is "
        f"{mine[-1]['rouge-l']:.2f} and {theirs[-1]['rouge-l']:.2f}. Only glmtune computes the loss besides; with "
        f"it {statistics.median(whole):.1f} times. Medians of "
        f"{num_rounds} rounds, in turn. {machine('torch', 'transformers')}.\n\nAgain: `python benchmarks/evaluation.py`"
    )
    if len(data.dataset) == NUM_ROWS:
        write_section("evaluation", text)
    else:
        print(text)


def ours(model: GlmForCausalLM, tokenizer: Any, data: EncodedData) -> dict[str, Any]:
    """Evaluate with glmtune."""
    options = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}
    plan = GenerationPlan(
        config=generation_config(model, options),
        max_input_length=None,
        batch_size=BATCH_SIZE,
        layout=ReplyLayout(calls=ROLE_LINE),
    )
    begin = time.perf_counter()
    num_answer_batches = num_reports(len(data.turns()), BATCH_SIZE)
    loss_ends = [begin]

    def note(done: int, total: int) -> None:
        if done == total - num_answer_batches:
            loss_ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        scores = score_model(model, tokenizer, data, batch_size=BATCH_SIZE, plan=plan, output=path, on_batch=note)
    seconds = time.perf_counter() - loss_ends[-1]
    answers = scores.metrics["generation_seconds"]
    return {
        "loss": loss_ends[-1] - begin,
        "answers": answers,
        "scores": seconds - answers,
        "seconds": seconds,
        "texts": [prediction.prediction for prediction in scores.predictions],
        "rouge-l": scores.metrics["rouge-l"],
    }


def original(model: GlmForCausalLM, tokenizer: Any, data: EncodedData) -> dict[str, Any]:
    """Evaluate as the original does."""
    rows = [
        {"input_ids": turn.prompt_ids, "output_ids": turn.answer_ids} for _, turn in data.turns()
    ]  # tokenized before, as ours
    with tempfile.TemporaryDirectory() as folder:
        trainer = OriginalTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=folder,
                per_device_eval_batch_size=BATCH_SIZE,
                predict_with_generate=True,
                generation_config=GenerationConfig(
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.convert_tokens_to_ids(list(GLM_STOPS)),
                ),
                remove_unused_columns=False,
                use_cpu=True,
                disable_tqdm=True,
                report_to=[],
            ),
            data_collator=OriginalCollator(tokenizer=tokenizer, padding="longest", return_tensors="pt"),
        )
        begin = time.perf_counter()
        output = trainer.predict(rows)  # type: ignore[arg-type]
        answered = time.perf_counter() - begin
        texts, rouge = _original_scores(output.predictions, output.label_ids, tokenizer)
        seconds = time.perf_counter() - begin
    scored = seconds - answered
    return {"loss": 0.0, "answers": answered, "scores": scored, "seconds": seconds, "texts": texts, "rouge-l": rouge}


class OriginalCollator(DataCollatorForSeq2Seq):
    """Pads the references of a batch to the longest of them, the prompts on the left."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        """Return a batch."""
        longest = max(len(feature["output_ids"]) for feature in features)
        pad = self.tokenizer.pad_token_id
        features = [
            feature | {"output_ids": feature["output_ids"] + [pad] * (longest - len(feature["output_ids"]))}
            for feature in features
        ]
        return super().__call__(features, return_tensors)


class OriginalTrainer(Seq2SeqTrainer):
    """Generates for every batch of prompts, and keeps the ids behind the prompt."""

    def prediction_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return no loss, the generated ids and the reference."""
        references = inputs.pop("output_ids")
        inputs.pop("labels", None)  # None: the original has no labels in an evaluation, and computes no loss
        loss, generated, _ = super().prediction_step(model, inputs, *arguments, **options)
        return loss, generated[:, inputs["input_ids"].shape[1] :], references


def _original_scores(predicted: np.ndarray, references: np.ndarray, tokenizer: Any) -> tuple[list[str], float]:
    """Return the answers and ROUGE-L of one row after the other; special tokens and padding are not scored, as here."""
    answers: list[str] = []
    scores: dict[str, list[float]] = {"rouge-1": [], "rouge-2": [], "rouge-l": [], "bleu-4": []}
    for ids, reference_ids in zip(predicted, references):
        texts = [_text(tokenizer, part) for part in (ids, reference_ids)]
        words, reference_words = (list(jieba.cut(text)) for text in texts)
        answers.append(texts[0])
        for name, score in Rouge().get_scores(" ".join(words), " ".join(reference_words))[0].items():
            scores[name].append(round(score["f"] * 100, 4))
        bleu = sentence_bleu([reference_words], words, smoothing_function=SmoothingFunction().method3)
        scores["bleu-4"].append(bleu)
    return answers, float(np.mean(scores["rouge-l"]))


def _text(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids[ids != IGNORE_INDEX], skip_special_tokens=True).strip()


def learn_by_heart(data: EncodedData) -> GlmForCausalLM:
    """Return a model of the tokens that occur in the rows, trained until it knows them."""
    places = {token: place for place, token in enumerate(_tokens_of(data))}
    rows = [
        {
            "input_ids": [places[token] for token in row["input_ids"]],
            "labels": [places[token] if token != IGNORE_INDEX else IGNORE_INDEX for token in row["labels"]],
        }
        for row in data.dataset
    ]
    torch.manual_seed(0)
    model = GlmForCausalLM(GlmConfig(**SHAPE, vocab_size=len(places), pad_token_id=0, eos_token_id=None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    mean = 10.0
    for step in range(2000):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 20) * (1 if mean > 0.5 else 0.3)
        batch = collate([rows[place] for place in torch.randperm(len(rows))[:16]], 0)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        loss = model(**inputs, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 0:
            print(f"learning the rows by heart: step {step}, loss {loss.item():.3f}", flush=True)
        if mean < KNOWN_BY_HEART:
            break
    return model


def widened(model: GlmForCausalLM, data: EncodedData, tokenizer: Any) -> GlmForCausalLM:
    """Return the model with GLM-4's vocabulary; a token that occurs in no row has logit 0."""
    tokens = _tokens_of(data)
    stops = tokenizer.convert_tokens_to_ids(list(GLM_STOPS))
    config = GlmConfig(**SHAPE, vocab_size=VOCABULARY, pad_token_id=tokenizer.pad_token_id, eos_token_id=stops)
    whole = GlmForCausalLM(config)
    weights = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wide = torch.zeros(VOCABULARY, SHAPE["hidden_size"])
        wide[tokens] = weights[name]
        weights[name] = wide
    whole.load_state_dict(weights)
    whole.generation_config.eos_token_id = stops
    whole.generation_config.pad_token_id = tokenizer.pad_token_id
    return whole


def _tokens_of(data: EncodedData) -> list[int]:
    return sorted({token for row in data.dataset for token in row["input_ids"]})


if __name__ == "__main__":
    main()
