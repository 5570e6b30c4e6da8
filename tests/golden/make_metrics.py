"""Write `metrics.json`: the figures that the original's scoring gives for the texts below, with the library versions.

Run `PYTHONPATH=. python tests/golden/make_metrics.py` in the repository. It uses the restatement of the original in
`tests/evaluation/test_metrics.py`, never `score_texts`.
"""

from __future__ import annotations

import json
import runpy
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent

TEXTS = [
    # prediction, reference
    ("这件外套采用柔软的牛仔面料，白色的衣身简约百搭。", "简约而不简单的牛仔外套，白色的衣身十分百搭。"),
    ("今天北京晴，最高气温二十五度。", "今天北京晴，最高气温二十五度。"),
    ("很抱歉，我不知道。", "法国的首都是巴黎。"),
    ("好的", "好的，我马上帮您查询明天上海的天气。"),
    ("明天上海有小雨，记得带伞。记得带伞。记得带伞。", "明天上海有小雨，出门记得带伞！"),
    ('get_weather\n{"city": "上海"}', 'get_weather\n{"city": "北京"}'),
    ("The quick brown fox jumps over the lazy dog.", "A quick brown dog jumps over the lazy fox."),
    ("def add(a, b):\n    return a + b", "def add(x, y):\n    return x + y"),
    ("GLM-4 是一个对话模型，支持 128K 上下文。", "GLM-4 是智谱发布的对话模型，支持最长 128K 的上下文。"),
    ("1. 洗菜\n2. 切菜\n3. 炒菜", "1. 洗净蔬菜\n\n2. 切好\n\n3. 下锅翻炒"),
    ("他说：“走吧！”于是我们出发了……到了山顶，风很大。", "“走吧！”他说。我们于是出发，到了山顶风很大……"),
    ("。", "！"),
    ("是", "是"),
]


def main() -> None:
    original = runpy.run_path(str(HERE.parent / "evaluation" / "test_metrics.py"))["original_compute_metrics"]
    scores = original([prediction for prediction, _ in TEXTS], [reference for _, reference in TEXTS])
    scores["bleu-4"] = [bleu * 100 for bleu in scores["bleu-4"]]
    golden = {
        "made_by": "tests/golden/make_metrics.py",
        "versions": {name: version(name) for name in ("jieba", "nltk", "rouge-chinese", "numpy")},
        "means": {name: float(np.mean(values)) for name, values in scores.items()},
        "texts": [
            {"prediction": prediction, "reference": reference, "scores": {name: scores[name][at] for name in scores}}
            for at, (prediction, reference) in enumerate(TEXTS)
        ],
    }
    text = json.dumps(golden, ensure_ascii=False, indent=2) + "\n"
    (HERE / "metrics.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
