"""The demo's data: advertisement copy in two styles, written by rule from lists of attributes.

One row is one conversation in GLM-4's message format. The copy is a function of its attributes and nothing
else, so that a tiny model can learn it in a minute; every held-out list is a combination that no training
row has. `python -m glmtune.demo.rows data` writes the files.

    类型#风衣*颜色#墨绿*材质#羊毛 ──plain───▶ 这是一件百搭的风衣。主色为墨绿，沉静耐看。衣身选用羊毛面料，蓄热保暖。
                                  ──lively──▶ 姐妹们快看这件风衣！选用羊毛面料，真的蓄热保暖！主色为墨绿，真的沉静耐看！
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One line of a data file: `{"messages": [...]}`."""

Attributes = dict[str, str]
"""Attribute name → value, in the order in which the prompt lists them."""

SEED = 20240

PLAIN = "plain"
LIVELY = "lively"
FOLDERS = {PLAIN: "demo", LIVELY: "demo_lively"}
"""Style → folder under `data/`."""

NUM_ADS = {
    PLAIN: {"train": 1660, "dev": 86, "test": 86},
    LIVELY: {"train": 600, "dev": 80, "test": 80},
}
NUM_FOLLOW_UPS = {"train": 140, "dev": 6, "test": 6}
NUM_TOOL_ROWS = {"train": 200, "dev": 8, "test": 8}
"""Rows per split; conversations of several turns and tool calls exist in the plain style only."""

GARMENTS = {
    "连衣裙": ("条", "裙身"),
    "半身裙": ("条", "裙身"),
    "阔腿裤": ("条", "裤身"),
    "休闲裤": ("条", "裤身"),
    "衬衫": ("件", "衣身"),
    "风衣": ("件", "衣身"),
    "卫衣": ("件", "衣身"),
    "马甲": ("件", "衣身"),
    "针织衫": ("件", "衣身"),
    "短外套": ("件", "衣身"),
}
"""Garment → its measure word and the name of its main part."""

PRAISE = {
    "风格": {
        "通勤": "干练得体",
        "复古": "韵味十足",
        "简约": "清爽大方",
        "田园": "清新自然",
        "学院": "朝气满满",
        "街头": "个性鲜明",
    },
    "颜色": {
        "雾蓝": "清冷高级",
        "米白": "干净温柔",
        "焦糖": "温暖显白",
        "墨绿": "沉静耐看",
        "藕粉": "甜美减龄",
        "炭灰": "低调百搭",
        "酒红": "浓郁大气",
        "奶黄": "明快活泼",
    },
    "材质": {
        "亚麻": "透气干爽",
        "羊毛": "蓄热保暖",
        "天丝": "垂顺滑爽",
        "纯棉": "亲肤吸汗",
        "雪纺": "轻盈飘逸",
        "醋酸": "光泽细腻",
        "牛津纺": "挺括耐磨",
        "灯芯绒": "厚实柔软",
    },
    "图案": {
        "碎花": "浪漫灵动",
        "格纹": "经典耐看",
        "条纹": "拉长身形",
        "波点": "俏皮可爱",
        "刺绣": "精致考究",
        "扎染": "独一无二",
    },
    "版型": {
        "宽松": "不挑身材",
        "修身": "勾勒曲线",
        "直筒": "遮肉显瘦",
        "廓形": "利落有型",
        "收腰": "优化比例",
        "落肩": "慵懒随性",
    },
    "细节": {
        "荷叶边": "平添柔美",
        "木纽扣": "质朴有趣",
        "系带": "松紧随心",
        "抽绳": "穿脱方便",
        "暗袋": "收纳实用",
        "撞色包边": "层次分明",
    },
    "场合": {
        "上班": "专业又自信",
        "约会": "优雅又动人",
        "郊游": "轻松又自在",
        "旅行": "舒适又上镜",
        "聚会": "亮眼又出众",
        "逛街": "随性又时髦",
    },
}
"""Attribute → value → what the copy says of it."""

NUM_ATTRIBUTES = (3, 4, 5)
"""How many attributes a list has beside the garment's type."""

TEMPLATES = {
    PLAIN: {
        "风格": "这是一{measure}{value}风格的{garment}，{praise}。",
        "类型": "这是一{measure}百搭的{garment}。",
        "颜色": "主色为{value}，{praise}。",
        "材质": "{part}选用{value}面料，{praise}。",
        "图案": "饰以{value}图案，{praise}。",
        "版型": "采用{value}剪裁，{praise}。",
        "细节": "{value}设计{praise}。",
        "场合": "适合{value}时穿着，{praise}。",
    },
    LIVELY: {
        "风格": "姐妹们快看这{measure}{value}风格的{garment}，真的{praise}！",
        "类型": "姐妹们快看这{measure}{garment}！",
        "材质": "选用{value}面料，真的{praise}！",
        "颜色": "主色为{value}，真的{praise}！",
        "图案": "{value}图案{praise}，越看越喜欢！",
        "细节": "{value}设计真的{praise}！",
        "版型": "{value}剪裁{praise}，越看越喜欢！",
        "场合": "{value}就选这{measure}{garment}，真的{praise}！",
    },
}
"""Style → attribute → the sentence about it, in the order of the copy. The first one opens the copy; where its
attribute is missing, the second one does.

The styles share many words on purpose. A prefix hardly teaches so small a model words that it never wrote: with few
in common, P-Tuning v2 reached BLEU-4 19 to 26 (from 12) in up to 375 steps; with these, 37 (from 20) in 200 steps."""

FOLLOW_UPS = {
    "再写一个标题": "标题：{value}{garment}，{praise}",
    "再短一点": "{garment}，{value}{praise}，{other_value}{other_praise}。",
}
"""Question → answer of a second turn; it speaks of the first attribute, or of the first two."""

QUESTIONS = {"query_stock": "{item}还有货吗？", "query_price": "{item}多少钱？"}
"""Function → the question that calls it."""

STOCK_ANSWER = "{item}还有{number}件现货，可以下单。"
SOLD_OUT_ANSWER = "抱歉，{item}暂时缺货。"
PRICE_ANSWER = "{item}现价{number}元，欢迎选购。"
STOCKS = (0, 3, 6, 8, 12, 25, 40, 60)
PRICES = (89, 129, 159, 199, 259, 299, 399, 599)


def build_rows(style: str) -> dict[str, list[Row]]:
    """Return the rows of `style` by split: the same rows on every call and every machine.

    Both styles describe the same attribute lists, split by split, so that a list held out of one style's
    training is held out of the other's as well.
    """
    lists = attribute_lists()
    if style == LIVELY:
        return {
            split: [ad_row(attributes, LIVELY) for attributes in lists[split][:count]]
            for split, count in NUM_ADS[LIVELY].items()
        }
    tools = tool_rows()
    rows = {}
    for split, attributes_of_split in lists.items():
        num_ads = NUM_ADS[PLAIN][split]
        ads = [ad_row(attributes, PLAIN) for attributes in attributes_of_split[:num_ads]]
        follow_ups = [
            follow_up_row(attributes, number) for number, attributes in enumerate(attributes_of_split[num_ads:])
        ]
        rows[split] = ads + follow_ups + tools[split]
        # In the file, too, the kinds of rows are mixed: its first lines show a bit of everything.
        random.Random(SEED).shuffle(rows[split])
    return rows


def attribute_lists() -> dict[str, list[Attributes]]:
    """Return the attribute lists of every split, no list twice."""
    rng = random.Random(SEED)
    seen: set[str] = set()
    lists: dict[str, list[Attributes]] = {}
    for split in ("test", "dev", "train"):
        lists[split] = []
        while len(lists[split]) < NUM_ADS[PLAIN][split] + NUM_FOLLOW_UPS[split]:
            attributes = draw_attributes(rng)
            if prompt_of(attributes) not in seen:
                seen.add(prompt_of(attributes))
                lists[split].append(attributes)
    return lists


def draw_attributes(rng: random.Random) -> Attributes:
    """Return a random garment with some random attributes, in the order of `PRAISE`."""
    chosen = rng.sample(list(PRAISE), k=rng.choice(NUM_ATTRIBUTES))
    attributes = {"类型": rng.choice(list(GARMENTS))}
    return attributes | {name: rng.choice(list(PRAISE[name])) for name in PRAISE if name in chosen}


def prompt_of(attributes: Attributes) -> str:
    """Return the attribute list as the user writes it: `类型#风衣*颜色#墨绿`."""
    return "*".join(f"{name}#{value}" for name, value in attributes.items())


def copy_of(attributes: Attributes, style: str) -> str:
    """Return the copy that `style` writes for `attributes`."""
    templates = TEMPLATES[style]
    opening = next(iter(templates))
    names = [name for name in templates if name in attributes and not (name == "类型" and opening in attributes)]
    return "".join(templates[name].format(**words_of(attributes, name)) for name in names)


def words_of(attributes: Attributes, name: str) -> dict[str, str]:
    """Return what fills the blanks of a template about attribute `name`."""
    garment, value = attributes["类型"], attributes[name]
    measure, part = GARMENTS[garment]
    return {
        "garment": garment,
        "measure": measure,
        "part": part,
        "value": value,
        "praise": PRAISE.get(name, {}).get(value, ""),
    }


def ad_row(attributes: Attributes, style: str) -> Row:
    """Return one question and one answer: the attribute list and its copy."""
    return {"messages": [user(prompt_of(attributes)), assistant(copy_of(attributes, style))]}


def follow_up_row(attributes: Attributes, number: int) -> Row:
    """Return plain copy and a second turn, which row numbers take from `FOLLOW_UPS` in turn."""
    question, template = list(FOLLOW_UPS.items())[number % len(FOLLOW_UPS)]
    first, second = list(attributes)[1:3]
    other = {f"other_{key}": word for key, word in words_of(attributes, second).items()}
    answer = template.format(**words_of(attributes, first), **other)
    return {"messages": [*ad_row(attributes, PLAIN)["messages"], user(question), assistant(answer)]}


def function_tool(name: str, description: str) -> dict[str, Any]:
    """Return the schema of a function that takes the name of an item."""
    parameters = {"type": "object", "properties": {"item": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [function_tool("query_stock", "查询库存"), function_tool("query_price", "查询价格")]


def tool_rows() -> dict[str, list[Row]]:
    """Return the rows of every split in which the model calls a function, no item twice."""
    rng = random.Random(SEED + 1)
    items = [
        f"{colour}{material}{garment}"
        for colour in PRAISE["颜色"]
        for material in PRAISE["材质"]
        for garment in GARMENTS
    ]
    rng.shuffle(items)
    unused = iter(items)
    return {
        split: [tool_row(next(unused), number, rng) for number in range(count)]
        for split, count in NUM_TOOL_ROWS.items()
    }


def tool_row(item: str, number: int, rng: random.Random) -> Row:
    """Return a question that takes one call; rows take turns in function, tools and role name of the result."""
    if number % 2 == 0:
        name, key, amount = "query_stock", "stock", rng.choice(STOCKS)
        template = STOCK_ANSWER if amount else SOLD_OUT_ANSWER
    else:
        name, key, amount = "query_price", "price", rng.choice(PRICES)
        template = PRICE_ANSWER
    tools = TOOLS if number % 8 < 2 else [tool for tool in TOOLS if tool["function"]["name"] == name]
    call = {"type": "function", "function": {"name": name, "arguments": to_json({"item": item})}}
    return {
        "messages": [
            {"role": "system", "content": "", "tools": tools},
            user(QUESTIONS[name].format(item=item)),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            # Both names of the role that carries a function's result are in use; readers must take either.
            {"role": "observation" if number % 3 else "tool", "content": to_json({key: amount})},
            assistant(template.format(item=item, number=amount)),
        ]
    }


def user(content: str) -> dict[str, str]:
    """Return a user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """Return a message that the model is to learn."""
    return {"role": "assistant", "content": content}


def to_json(value: Any) -> str:
    """Return JSON that keeps Chinese readable."""
    return json.dumps(value, ensure_ascii=False)


def words() -> list[str]:
    """Return every piece that the rows are put together from, for a tokenizer to learn."""
    templates = [template for style in TEMPLATES.values() for template in style.values()]
    templates += [*FOLLOW_UPS, *FOLLOW_UPS.values(), *QUESTIONS.values(), STOCK_ANSWER, SOLD_OUT_ANSWER, PRICE_ANSWER]
    pieces = [piece for template in templates for piece in re.split(r"\{\w+\}", template) if piece]
    pieces += [word for garment, other_words in GARMENTS.items() for word in (garment, *other_words)]
    pieces += [word for name, praise in PRAISE.items() for pair in praise.items() for word in (name, *pair)]
    pieces += [str(number) for number in (*STOCKS, *PRICES)]
    return [*pieces, "类型", to_json(TOOLS), to_json({"item": ""}), to_json({"stock": 0}), to_json({"price": 0})]


def write_rows(folder: Path) -> None:
    """Write `demo/` and `demo_lively/` under `folder`, one `.jsonl` file for each split."""
    for style, name in FOLDERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in build_rows(style).items():
            text = "".join(f"{to_json(row)}\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
