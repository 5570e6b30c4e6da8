"""What the tiny model of these tests has learnt by heart."""

from __future__ import annotations

import json
from typing import Any

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "query_price",
            "description": "查询价格",
            "parameters": {"type": "object", "properties": {"item": {"type": "string"}}},
        },
    }
]
ITEMS = {"墨绿羊毛风衣": 299, "雾蓝亚麻衬衫": 89, "焦糖灯芯绒马甲": 159}
PLAIN = {
    "类型#裙*颜色#墨绿": "这条裙子主色为墨绿，沉静耐看。",
    "类型#风衣*材质#羊毛": "这件风衣选用羊毛面料，蓄热保暖。",
}

THANKS, REPLY = "谢谢", "这件风衣沉静耐看，欢迎选购。"
"""Asked where tools are offered, and answered without one."""


def question(item: str) -> dict[str, str]:
    return {"role": "user", "content": f"{item}多少钱？"}


def call(item: str) -> dict[str, Any]:
    arguments = json.dumps({"item": item}, ensure_ascii=False)
    function = {"name": "query_price", "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "call_1", "function": function}],
    }


def result(item: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": "call_1", "content": json.dumps({"price": ITEMS[item]})}


def answer(item: str) -> dict[str, str]:
    return {"role": "assistant", "content": f"{item}现价{ITEMS[item]}元，欢迎选购。"}


def rows_by_heart(tools: list[dict[str, Any]] = TOOLS) -> list[dict[str, Any]]:
    """Return rows of training: plain answers, and a call, its result and the answer, with these tools offered."""
    rows: list[dict[str, Any]] = [
        {"messages": [question(item), call(item), result(item), answer(item)], "tools": tools} for item in ITEMS
    ]
    rows += [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in PLAIN.items()
    ]
    thanks = [{"role": "user", "content": THANKS}, {"role": "assistant", "content": REPLY}]
    rows.append({"messages": thanks, "tools": tools})
    return rows
