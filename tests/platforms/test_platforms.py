"""Every verb where torch was built for a GPU that is not there, and where a system lacks what Windows lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VERBS = [
    "--help", "data check", "data convert", "data inspect", "data prepare", "estimate demo", "train data", "resume out",
    "infer out", "chat out", "eval out", "export out", "request", "serve out",
]  # fmt: skip
CONFIG = """
data_config: {train_file: train.jsonl, val_file: dev.jsonl}
max_input_length: 64
max_output_length: 64
training_args:
  output_dir: out
  max_steps: 2
  learning_rate: 1e-3
  per_device_train_batch_size: 2
  logging_steps: 1
  save_steps: 1
  save_total_limit: 1
  eval_strategy: steps
  eval_steps: 2
  generation_config: {max_new_tokens: 4}
peft_config: {peft_type: LORA, r: 4, lora_alpha: 8, lora_dropout: 0.0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name, first in (("train", 0), ("dev", 10)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"第{n}号还有吗？"},
                    {"role": "assistant", "content": f"有{n}件。"},
                ]
            }
            for n in range(first, first + 6)
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


def environment(*lacking: str, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*(str(HERE / name) for name in lacking), str(ROOT)]),
    } | variables


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["cuda_without_gpu", "bare_system"])
def test_every_verb_works(lacking: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "verbs.py"), str(folder)],
        env=environment(lacking),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    # Ctrl-C is what ends the server.
    told = "\n".join(each["told"] for each in ended if each["code"] not in (0, "length", "stop", 130))
    assert ([each["verb"] for each in ended], told, done.returncode) == (VERBS, "", 0), done.stderr
    by_verb = {each["verb"]: each["told"] for each in ended}
    assert "note: no GPU found: training in float32 on the CPU" in by_verb["train data"]
    assert (folder / "out" / "checkpoint-3" / "manifest.json").is_file()
    assert not (folder / "out" / "checkpoint-2").exists()
    assert (folder / "empty" / "config.json").is_file()
    if lacking == "bare_system":
        assert "note: this system has no lock that ends with a process" in by_verb["train data"]


def run_bare(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment("bare_system", **variables),
        capture_output=True,
        text=True,
        check=False,
    )


def test_several_processes_are_refused_in_one_line_where_a_system_cannot_lead_them(folder: Path) -> None:
    code = "import sys; from glmtune.cli.app import main; main()"
    done = run_bare(code, "train", str(folder / "data"), "demo", str(folder / "c.yaml"), "--nproc", "2")
    assert done.returncode == 2
    assert done.stderr == (
        "error: `--nproc` needs signals and groups of processes, which this system does not have\n"
        "hint: leave it out, and one process trains; or use Linux, on Windows in WSL\n"
    )


def test_no_module_needs_a_name_that_signal_may_lack() -> None:
    names = ", ".join(f"signal.{name}" for name in ("SIGUSR1", "SIGHUP", "SIGQUIT", "pthread_kill", "setitimer"))
    modules = ", ".join(
        f"glmtune.{name}"
        for name in ("cli.app", "processes.launching", "cli.tour", "training.callbacks.stopping", "server.run")
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import signal; del {names}; import {modules}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


TOOLS = '''
import subprocess, sys

def double(number: int) -> int:
    """Doubles.

    Args:
        number: What to double.
    """
    return 2 * number

def hang() -> None:
    """Takes long."""
    import time
    time.sleep(60)
'''


def test_functions_run_where_there_are_no_groups_of_processes(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    code = (
        "import sys\nfrom pathlib import Path\nfrom glmtune.chat.functions import load_tools\n"
        "if __name__ == '__main__':\n"
        "    worker = load_tools(Path(sys.argv[1]), time_limit_seconds=0.5).worker\n"
        "    print(worker.call('double', '{\"number\": 21}'))\n"
        "    print(worker.call('hang', '{}'))\n"
        "    worker.close()"
    )
    done = run_bare(code, str(tmp_path / "tools.py"))
    assert done.stdout.splitlines()[0] == "42", done.stderr
    assert "the time limit" in done.stdout.splitlines()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "start_methods",
    [["spawn"], pytest.param(["fork", "spawn", "forkserver"], marks=pytest.mark.long)],
    ids="-".join,
)
def test_two_processes_encode_what_one_does_however_they_are_started(start_methods: list[str], folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method(sys.argv[2], force=True)\n"
        "    from glmtune.training.setup.preparation import prepare_data\n"
        "    from glmtune.encoded import dataset, row_encoding\n    from glmtune.encoded.store import file_hash\n"
        "    dataset.MIN_ROWS_PER_PROCESS, row_encoding.ROWS_PER_BATCH = 1, 2\n"
        "    path = prepare_data(sys.argv[1] + '/data', 'demo', sys.argv[1] + '/c.yaml', overrides=[sys.argv[3]])\n"
        "    print(*sorted(file_hash(each) for each in path.glob('*/rows.arrow')))"
    )
    found = set()
    for number, (method, processes) in enumerate([("spawn", 1), *((method, 2) for method in start_methods)]):
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), method, f"data_config.num_proc={processes}"],
            env=environment(GLMTUNE_CACHE=str(folder / f"cache-{len(start_methods)}-{number}")),
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert len(found.pop().split()) == 2
