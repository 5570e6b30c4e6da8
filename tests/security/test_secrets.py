"""A secret stands in nothing that a command writes or prints, however it was given."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml
from command_line import Done, command_line, in_own_process

from glmtune import console, load_config
from glmtune.errors import GlmtuneError
from glmtune.text import secret_values
from glmtune.text.secret_values import hidden, is_secret, masked, masked_argument, masked_arguments, without_secrets

NAMES = [
    *("hub_token", "push_to_hub_token", "token", "api_key", "apikey", "api-key", "password", "passwd", "secret"),
    *("client_secret", "access_key", "credentials", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SWANLAB_API_KEY", "apiKey"),
    *("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "NEPTUNE_API_TOKEN", "MLFLOW_TRACKING_PASSWORD", "accessToken"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "training_args.hub_token", "hub_tokn", "Authorization", "private_key", "tokens"),
    *(
        "webhook",
        "webhook_url",
        "swanlab_lark_webhook_url",
        "slackWebhookUrl",
        "dingtalk_hook",
        "webhooks",
        "SENTRY_DSN",
    ),
    *("lark_secret", "smtp_passwd", "db_pwd", "smtp_pass", "AZURE_STORAGE_CONNECTION_STRING", "auth_key"),
]
OTHERS = [
    *("pad_token", "eos_token", "image_token", "num_virtual_tokens", "max_new_tokens", "tokens_per_batch", "token_dim"),
    *("key", "keys", "monkey", "tokenizer", "TOKENIZERS_PARALLELISM", "include_tokens_per_second", "output_dir"),
    *("num_input_tokens_seen", "hub_model_id", "trainable_token_indices"),
    *("bypass", "forward_pass", "hook", "hooks", "swanlab_notification_method", "experiment_key", "string"),
]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test remember its own secrets alone."""
    monkeypatch.setattr(secret_values, "_known", set())


def test_secrets_are_known_by_their_names() -> None:
    assert [name for name in NAMES if not is_secret(name)] == []
    assert [name for name in OTHERS if is_secret(name)] == []


ARGUMENTS = {
    "--set=training_args.hub_token=S": "--set=training_args.hub_token=***",
    "training_args.hub_token =S": "training_args.hub_token =***",
    "training_args.hub_token= S": "training_args.hub_token=***",
    "training_args={hub_token: S, max_steps: 1}": "training_args={hub_token:***",
    'training_args={"hub_token": "S"}': 'training_args={"hub_token":***',
    "training_args={'hub_token' : S}": "training_args={'hub_token' :***",
    "training_args={a: {b: {api_key: S}}}": "training_args={a: {b: {api_key:***",
    "training_args.hub_tokn=S": "training_args.hub_tokn=***",
    "https://user:S@host/x": "https://***@host/x",
    "https://host/x?access_token=S&y=1": "https://host/x?access_token=***",
    "https://host/x?y=1&sig=S": "https://host/x?y=1&sig=***",
    "postgres://user:p@S@host/x": "postgres://***@host/x",
    "https://hooks.slack.com/services/T/B/S": "https://hooks.slack.com/***",
    "see https://open.larksuite.com/open-apis/bot/v2/hook/S now": (
        "see https://open.larksuite.com/open-apis/bot/v2/hook/*** now"
    ),
    "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=S": "https://qyapi.weixin.qq.com/cgi-bin/webhook/***",
    "https://oapi.dingtalk.com/robot/send?access_token=S": "https://oapi.dingtalk.com/robot/send?access_token=***",
    "swanlab_lark_webhook_url=https://host/S": "swanlab_lark_webhook_url=***",
    "--api-key=S": "--api-key=***",
    "training_args.max_steps=3": "training_args.max_steps=3",
    "generation_config={eos_token_id: 3}": "generation_config={eos_token_id: 3}",
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_secret_is_hidden_in_every_spelling(argument: str) -> None:
    assert masked_argument(argument.replace("S", "hush-hush")) == ARGUMENTS[argument]


def test_a_secret_may_be_a_word_of_its_own() -> None:
    assert masked_arguments(["serve", "demo", "--api-key", "hush-hush", "--port", "1"]) == [
        *("serve", "demo", "--api-key", "***", "--port", "1")
    ]


def test_secrets_are_hidden_or_taken_out_however_deep() -> None:
    values = {"a": [{"hub_token": "x" * 9, "b": 1}], "password": None, "url": "https://u:p@h", "eos_token": "</s>"}
    assert hidden(values) == {
        "a": [{"hub_token": "***", "b": 1}],
        "password": None,
        "url": "https://***@h",
        "eos_token": "</s>",
    }
    assert without_secrets(values) == {"a": [{"b": 1}], "url": "https://***@h", "eos_token": "</s>"}


def test_the_environments_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("HF_TOKEN", "SWANLAB_API_KEY", "WANDB_API_KEY", "MY_PASSWORD")):
        monkeypatch.setenv(name, f"hush-{number}-hush")
        assert masked(f"asked with hush-{number}-hush") == "asked with ***"
        assert "hush" not in str(GlmtuneError(f"401 for hush-{number}-hush", where=f"hush-{number}-hush"))


def test_the_folder_of_a_shell_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/someone")
    assert masked("in /home/someone/x") == "in /home/someone/x"


SOURCE = """\
model_name_or_path: demo
stage: sft
dataset: mine
use_swanlab: true
swanlab_lark_webhook_url: https://open.larksuite.com/open-apis/bot/v2/hook/hush-hook
swanlab_lark_secret: hush-lark
notes: tell https://hooks.slack.com/services/T0/B0/hush-slack of it
flash_attn: https://user:hush-user@localhost/x
deepspeed: https://user:hush-zero2@localhost/zero2.json
"""


def test_no_secret_of_another_tools_file_is_written_or_printed(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(SOURCE, encoding="utf-8")
    arguments = "".join(" --" + line.replace(": ", " ", 1) for line in SOURCE.splitlines()[:6])
    (tmp_path / "theirs.sh").write_text(f"llamafactory-cli train{arguments}\n", encoding="utf-8")
    room = tmp_path / "room"
    room.mkdir()
    done = [
        command_line("init", "--from", f"../theirs.{kind}", "--output", f"{kind}.yaml", cwd=room)
        for kind in ("yaml", "sh")
    ]
    assert [each.returncode for each in done] == [0, 0]
    assert "not translated: swanlab_lark_webhook_url: '...' (" in done[0].stderr
    assert b"hush" not in written(room, *done)


def written(folder: Path, *done: Done) -> bytes:
    """Return everything that lies in a folder, with its names, and what commands have printed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = "\n".join(map(str, folder.rglob("*"))).encode()
    printed = "".join(each.stdout + each.stderr for each in done).encode()
    return b"\n".join([names, printed, *(path.read_bytes() for path in files)])


def test_no_secret_is_in_what_a_run_writes_and_prints(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("HF_TOKEN", "SWANLAB_API_KEY", "WANDB_API_KEY", "COMET_API_KEY", "A_PASSWORD")):
        monkeypatch.setenv(name, f"hush-env-{number}")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:hush-url@localhost")
    room = tmp_path / "room"
    room.mkdir()
    settings = {
        "output_dir": "run",
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "eval_strategy": "no",
        "report_to": ["tensorboard"] if importlib.util.find_spec("tensorboard") else ["none"],
        "hub_token": "hush-yaml",
        "hub_model_id": "https://user:hush-id@localhost/x",
        "lr_scheduler_kwargs": {},
    }
    config = {"data_config": {"train_file": "train.jsonl"}, "training_args": settings, "peft_config": None}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    overrides = ["--set=training_args.hub_token=hush-equals", "--set", "training_args.hub_token =hush-blank"]
    trained = command_line("train", demo_data, "demo", path, *overrides, cwd=room)
    assert trained.returncode == 0, trained.stderr
    change = ["--set", "training_args.max_steps=3", "--set", "training_args.hub_token=hush-resume"]
    refused = command_line("resume", "run", *change, cwd=room)
    assert "--set 'training_args.hub_token=***'" in refused.stderr
    resumed = command_line("resume", "run", *change, "--accept-changes", cwd=room)
    assert resumed.returncode == 0, resumed.stderr
    checked = command_line("export", "run", "out", cwd=room)
    everything = written(room, trained, refused, resumed, checked)
    assert len(everything) > 100_000
    assert b"hush" not in everything
    argv = yaml.safe_load((room / "run" / "run.yaml").read_text(encoding="utf-8"))["argv"]
    assert argv[-3:] == ["--set=training_args.hub_token=***", "--set", "training_args.hub_token =***"]


def test_trackers_and_logs_are_told_no_secret(tmp_path: Path) -> None:
    from glmtune.training.setup.arguments import training_arguments

    path = tmp_path / "c.yaml"
    settings = "{hub_token: hush-hush, lr_scheduler_kwargs: {api_key: hush-deep}, use_cpu: true}"
    path.write_text(f"data_config: {{train_file: a}}\ntraining_args: {settings}\npeft_config: null\n", encoding="utf-8")
    arguments = training_arguments(load_config(path), tmp_path / "run", print)
    assert arguments.lr_scheduler_kwargs == {"api_key": "hush-deep"}
    for told in (arguments.to_dict(), arguments.to_sanitized_dict(), arguments.to_json_string(), str(arguments)):
        assert "hush" not in str(told)


WRONG = {
    "a wrong type": (["--set", "training_args.hub_token=[hush-hush]"], ""),
    "a section": (["--set", "training_args={hub_token: hush-hush, no_such_key: 1}"], ""),
    "a broken section": (["--set", "training_args={hub_token: hush-hush"], ""),
    "a slip": (["--set", "training_args.hub_tokn=hush-hush"], ""),
    "no key": (["--set", "hub_token"], ""),
    "broken YAML": ([], "training_args:\n  hub_token: hush-hush\n  x: [\n"),
    "an alias": ([], "training_args:\n  hub_token: *hush-hush\n"),
    "a tag": ([], "training_args:\n  hub_token: !hush-hush x\n"),
    "quotes": ([], "training_args: {hub_token: 'hush-hush', x: }}\n"),
    "another section": ([], "data_config: {train_file: a, hub_token: hush-hush}\n"),
    "deep": ([], "data_config: {train_file: a, columns: {x: {api_key: [hush-hush]}}}\n"),
    "a path": ([], "data_config: {train_file: a}\ntraining_args: {output_dir: 'https://u:hush-hush@h'}\nx: 1\n"),
}


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_no_secret_is_in_an_error(arguments: list[str], text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text or "data_config: {train_file: a.jsonl}\npeft_config: null\n", encoding="utf-8")
    done = command_line("train", ".", "demo", path, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "hush" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["a tag", "a section"])
def test_no_secret_is_in_a_traceback(name: str, tmp_path: Path, program: Path) -> None:
    arguments, text = WRONG[name]
    (tmp_path / "c.yaml").write_text(text or "data_config: {train_file: a.jsonl}\n", encoding="utf-8")
    done = in_own_process("train", ".", "demo", "c.yaml", *arguments, "--debug", cwd=tmp_path, program=program)
    assert "Traceback" in done.stderr
    assert "hush" not in done.stdout + done.stderr


def test_no_secret_is_in_a_traceback_of_another_library(capsys) -> None:
    secret_values.remember("hush-hush")
    try:
        try:
            raise ValueError("401 for hush-hush")
        except ValueError as error:
            raise RuntimeError("while asking with hush-hush") from error
    except RuntimeError as error:
        console._show_traceback(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    assert "hush" not in told
    assert "ValueError: 401 for ***\n" in told


def test_a_loaded_configuration_keeps_its_token_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data_config: {train_file: a}\ntraining_args: {hub_token: hush-hush}\n", encoding="utf-8")
    config = load_config(path)
    assert config.training_args["hub_token"] == "hush-hush"  # what asks for it gets it
    assert "hush" not in str(config.source)
