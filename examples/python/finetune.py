"""Fine-tune from Python: train, score, ask, and export what was trained. Run it in the root of the repository.

python examples/python/finetune.py                                       # the embedded model, on any machine
python examples/python/finetune.py zai-org/glm-4-9b-chat-hf data/my-rows   # a real one, on a GPU
"""

from __future__ import annotations

import sys

from glmtune import GlmtuneError, evaluate, export, generate, load_config, train


def main(model: str = "demo", data_dir: str = "data/demo") -> None:
    # Any key of the file can be set here, as with `--set` on the command line.
    config = load_config(
        "configs/lora.yaml",
        [
            "training_args.output_dir=runs/from-python",
            "training_args.max_steps=6",
            "training_args.save_steps=6",
            "training_args.logging_steps=2",
            "training_args.eval_strategy=no",
            "data_config.test_file=null",
        ],
    )
    run = train(data_dir, model, config)  # the folder of the run, which stands for its last checkpoint

    scores = evaluate(run, f"{data_dir}/dev.jsonl", limit=4, max_new_tokens=16)
    print("loss", scores.metrics["loss"])
    print("first answer", scores.predictions[0].prediction)

    print("asked", generate(run, ["类型#衬衫*颜色#焦糖"], max_new_tokens=16))

    export(run, "runs/from-python-merged")  # a folder that other tools load without glmtune


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except GlmtuneError as error:  # whatever a user can mend: what is wrong, where, and the next command
        sys.exit(f"error: {error}")
