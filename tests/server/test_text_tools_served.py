"""A model that has learnt GLM-4's `python` by heart: asked by clients, forced, streamed, and in a chat that runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from glmtune.chat.chat_model import local_answers
from glmtune.chat.chat_server import server_answers
from glmtune.chat.interpreter import Interpreter
from glmtune.training.run import train

CODE = "total = 6 * 7\nprint(total)"
QUESTION = {"role": "user", "content": "六乘七是多少？"}
ANSWER = "六乘七是42。"
PYTHON = [{"type": "python"}]
DESCRIBED = "{% if tool['type'] == 'python' %}\n## python\n执行代码。{% else %}"


@pytest.fixture(scope="module")
def checkpoint(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python-model")
    base = folder / "base"
    shutil.copytree(demo_model, base)
    template = base / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    opening = "{% for tool in item['tools'] %}"
    assert opening in text
    body = text.split(opening)[1].split("{% endfor %}")[0]
    template.write_text(text.replace(body, f"{DESCRIBED}{body}{{% endif %}}"), encoding="utf-8")
    call = {"role": "assistant", "metadata": "python", "content": CODE}
    told = [{"role": "observation", "content": "42"}, {"role": "assistant", "content": ANSWER}]
    row = {"messages": [QUESTION, call, *told], "tools": PYTHON}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    settings = {"output_dir": str(folder / "run"), "max_steps": 40, "save_steps": 40, "learning_rate": 3e-3}
    config = {
        "data_config": {"train_file": "train.jsonl"},
        "max_input_length": 256,
        "max_output_length": 64,
        "training_args": {**settings, "lr_scheduler_type": "linear", "save_only_model": True},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return train(folder, str(base), folder / "config.yaml") / "checkpoint-40"


@pytest.fixture(scope="module")
def address(checkpoint: Path, serve_in_thread: Any) -> Iterator[str]:
    with serve_in_thread(checkpoint) as url:
        yield url


def ask(address: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [QUESTION], "tools": PYTHON, "temperature": 0, **fields}
    done = httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    return {"status": done.status_code, **done.json()}


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "python"}}])
def test_a_call_comes_as_a_function_with_a_text(choice: Any, address: str) -> None:
    answer = ask(address, tool_choice=choice)
    [told] = answer["choices"]
    [call] = told["message"]["tool_calls"]
    assert (told["finish_reason"], told["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == "python"
    assert json.loads(call["function"]["arguments"]) == {"input": CODE}
    back = [QUESTION, told["message"], {"role": "tool", "tool_call_id": call["id"], "content": "42"}]
    assert ask(address, messages=back)["choices"][0]["message"]["content"] == ANSWER


def test_other_tools_that_the_model_does_not_know_are_told(address: str) -> None:
    answer = ask(address, tools=[{"type": "web_search"}])
    assert answer["status"] == 400
    assert "of type `web_search`, is one that this model's chat template does not show" in answer["error"]["message"]


@pytest.mark.parametrize("place", ["here", "server"])
def test_a_chat_runs_it(place: str, checkpoint: Path, address: str, talk: Any, tmp_path: Path, capsys) -> None:
    answers = server_answers(f"{address}/v1") if place == "server" else local_answers(str(checkpoint))
    with closing(Interpreter(tmp_path / "files", time_limit_seconds=60)) as kernel:
        chat = talk(answers, QUESTION["content"], "y", interpreter=kernel)
    assert [message["content"] for message in chat.history if message["role"] == "tool"] == ["42"]
    written = capsys.readouterr()
    assert written.out == f"{ANSWER}\n"
    assert "-> python\n   total = 6 * 7\n   print(total)\nrun it? [y/N] y\n<- 42\n" in written.err
