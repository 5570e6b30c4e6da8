"""What a run's folder asks for is done where its user agrees: code, and figures that are sent away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_checkpoints import rewritten, seal, write_config

from glmtune import export, resume, train
from glmtune.config.run_config import config_from_mapping
from glmtune.demo.model import cache_folder
from glmtune.errors import GlmtuneError
from glmtune.generation.generate import generate
from glmtune.training.distributed.fsdp import fsdp_settings, settled_fsdp
from glmtune.training.distributed.sharding import check_sharding
from glmtune.training.folder.run_folder import read_request
from glmtune.training.setup import consent as consent_module
from glmtune.training.setup.arguments import training_arguments
from glmtune.training.setup.consent import remember
from glmtune.training.setup.preparation import model_source

CODE = "runs code that lies with the model, and that is for you to allow"
SENDING = "sends figures of the run away, and that is for you to allow"

WISHES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a model's code": ({"trust_remote_code": True}, {}, "trust_remote_code: true", CODE),
    "a kernel of the hub": ({"attn_implementation": "evil/kernel"}, {}, "attn_implementation: evil/kernel", CODE),
    "one function of a kernel": (
        {"attn_implementation": "evil/kernel@main:attend"}, {}, "attn_implementation: evil/kernel@main:attend", CODE,
    ),
    "modules that DeepSpeed imports": (
        {}, {"deepspeed": {"torch_autocast": {"enabled": True, "lower_precision_safe_modules": ["evil.Layer"]}}},
        "deepspeed: torch_autocast.lower_precision_safe_modules", CODE,
    ),
    "a tracker": ({}, {"report_to": "wandb"}, "report_to: wandb", SENDING),
    "one of several trackers": ({}, {"report_to": ["tensorboard", "mlflow"]}, "report_to: mlflow", SENDING),
    "every tracker": ({}, {"report_to": "all"}, "report_to: all", SENDING),
    "a space of trackio": ({}, {"report_to": "trackio", "trackio_space_id": "evil/x"}, "report_to: trackio", SENDING),
    "SwanLab's cloud": ({"swanlab": "cloud"}, {}, "swanlab: cloud", SENDING),
    "SwanLab by its name": ({}, {"report_to": "swanlab"}, "report_to: swanlab", SENDING),
    "a monitor of DeepSpeed's": ({}, {"deepspeed": {"wandb": {"enabled": True}}}, "deepspeed: wandb", SENDING),
    "another one": ({}, {"deepspeed": {"comet": {"enabled": True}}}, "deepspeed: comet", SENDING),
}  # fmt: skip
"""Keys at the top and in `training_args`, how they are shown, and what they would do."""


@pytest.mark.parametrize(("top", "arguments", "shown", "consequence"), WISHES.values(), ids=WISHES)
def test_a_folder_cannot_agree_in_its_users_place(
    top: dict[str, Any], arguments: dict[str, Any], shown: str, consequence: str, run: Path
) -> None:
    rewritten(run, top, arguments)
    with pytest.raises(GlmtuneError) as caught:
        resume(run)
    assert caught.value.what == f"the run's folder asks for `{shown}`, which {consequence}"
    assert caught.value.where == str(run)
    assert ("--trust-remote-code" if consequence is CODE else "--allow-sending") in str(caught.value.fix)


@pytest.mark.parametrize(
    ("top", "arguments"),
    [({}, {"report_to": "none"}), ({}, {"report_to": "tensorboard"}), ({"swanlab": "disabled"}, {}),
     ({"attn_implementation": "sdpa"}, {})],
)  # fmt: skip
def test_what_stays_on_the_machine_needs_no_word(top: dict[str, Any], arguments: dict[str, Any], run: Path) -> None:
    rewritten(run, top, arguments)
    try:
        resume(run)
    except GlmtuneError as error:
        assert "is for you to allow" not in error.what  # noqa: PT017 -- TensorBoard may not be installed


def test_a_folder_that_asks_for_an_upload_is_refused(run: Path) -> None:
    rewritten(run, {}, {"push_to_hub": True, "hub_model_id": "evil/x"})
    with pytest.raises(GlmtuneError, match="a run uploads nothing"):
        resume(run)


def model_with_code(folder: Path, demo_model: str, crater: Path) -> Path:
    """Return a model whose classes are its own, and make the crater when they are imported."""
    shutil.copytree(demo_model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "configuration_own.py").write_text(
        f"import os\nos.makedirs({str(crater)!r}, exist_ok=True)\n"
        "from transformers import GlmConfig\n\n\nclass OwnConfig(GlmConfig):\n    pass\n",
        encoding="utf-8",
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import GlmForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnModel(GlmForCausalLM):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="session")
def begun(demo_data: Path, demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The room of a model with code and of a run of it, begun here: this user has agreed to it."""
    room = tmp_path_factory.mktemp("begun")
    model = model_with_code(room / "model", demo_model, room / "crater")
    config = write_config(room / "c.yaml", room / "own", top={"trust_remote_code": True})
    run = train(demo_data, str(model), config)
    shutil.rmtree(run / "checkpoint-4")
    shutil.copytree(model, room / "model as it was")
    return room


@pytest.fixture
def own_run(begun: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that run; the model beside it may be changed."""
    shutil.rmtree(begun / "crater", ignore_errors=True)
    yield Path(shutil.copytree(begun / "own", tmp_path / "own"))
    shutil.rmtree(begun / "model")
    shutil.copytree(begun / "model as it was", begun / "model")


@pytest.fixture
def crater(begun: Path) -> Path:
    """The folder that the model's code makes."""
    return begun / "crater"


def test_a_users_own_run_goes_on_without_a_word_and_a_strangers_copy_does_not(
    own_run: Path, crater: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stranger = Path(shutil.copytree(own_run, tmp_path / "copy"))
    with monkeypatch.context() as patch:
        patch.setattr(consent_module, "cache_folder", lambda: tmp_path / "of another user")
        with pytest.raises(GlmtuneError, match="the run's folder asks for `trust_remote_code: true`"):
            resume(stranger)
        assert not crater.exists()
    assert resume(own_run) == own_run


def test_the_word_on_the_command_line_is_enough_and_is_kept(
    own_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(consent_module, "cache_folder", lambda: tmp_path / "of another user")
    assert resume(own_run, trust_remote_code=True) == own_run
    shutil.rmtree(own_run / "checkpoint-4")
    assert resume(own_run) == own_run
    assert (own_run / "checkpoint-4").is_dir()


def test_an_override_is_such_a_word(own_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(consent_module, "cache_folder", lambda: tmp_path / "of another user")
    assert resume(own_run, overrides=["trust_remote_code=true"]) == own_run


def change_code(run: Path, model: Path) -> None:
    (model / "configuration_own.py").open("a", encoding="utf-8").write("# another line\n")


def change_classes(run: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["auto_map"]["AutoModelForCausalLM"] = "evil/repository--modeling.Model"
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")


def change_model(run: Path, model: Path) -> None:
    other = shutil.copytree(model, run.with_name("other"))
    change_code(run, Path(other))
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    record["asked"]["model"] = str(other)
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")


def change_settings(run: Path, model: Path) -> None:
    rewritten(run, {}, {"learning_rate": 0.5})


@pytest.mark.parametrize("change", [change_code, change_classes, change_model, change_settings])
def test_what_has_changed_is_asked_for_anew(
    change: Callable[[Path, Path], None], own_run: Path, begun: Path, crater: Path
) -> None:
    change(own_run, begun / "model")
    with pytest.raises(GlmtuneError, match="the run's folder asks for `trust_remote_code: true`"):
        resume(own_run)
    assert not crater.exists()


def test_a_full_checkpoint_with_code_of_its_own_is_asked_for_anew(
    demo_data: Path, demo_model: str, tmp_path: Path
) -> None:
    model = model_with_code(tmp_path / "model", demo_model, tmp_path / "crater")
    config = write_config(tmp_path / "c.yaml", tmp_path / "own", top={"trust_remote_code": True, "peft_config": None})
    run = train(demo_data, str(model), config)
    shutil.rmtree(run / "checkpoint-4")
    (run / "checkpoint-2" / "configuration_own.py").open("a", encoding="utf-8").write("# another line\n")
    seal(run / "checkpoint-2")
    with pytest.raises(GlmtuneError, match="the run's folder asks for `trust_remote_code: true`"):
        resume(run)


@pytest.mark.parametrize("where", ["the run", "its checkpoint"])
def test_other_verbs_take_no_word_from_a_run_folder(
    where: str, demo_data: Path, demo_model: str, tmp_path: Path
) -> None:
    crater = tmp_path / "crater"
    model = model_with_code(tmp_path / "model", demo_model, crater)
    config = write_config(tmp_path / "c.yaml", tmp_path / "own", top={"trust_remote_code": True, "peft_config": None})
    run = train(demo_data, str(model), config)
    shutil.rmtree(crater)
    code = run / "checkpoint-4" / "configuration_own.py"
    code.write_text(code.read_text(encoding="utf-8") + "# another module\n", encoding="utf-8")
    model = run if where == "the run" else run / "checkpoint-4"
    # transformers knows models of this type itself, and takes its own classes where it may not take the model's.
    assert generate(str(model), ["a"], max_new_tokens=1)
    assert export(str(model), tmp_path / "out").folder.is_dir()
    assert not crater.exists()
    assert generate(str(model), ["a"], max_new_tokens=1, trust_remote_code=True)
    assert crater.is_dir()


@pytest.mark.parametrize("forged", ["empty", "of another run", "a link"])
def test_a_record_that_somebody_else_has_made_says_nothing(forged: str, own_run: Path, tmp_path: Path) -> None:
    record = record_of(own_run)
    content = record.read_text(encoding="ascii")
    record.unlink()
    if forged == "a link":
        (tmp_path / "elsewhere").write_text(content, encoding="ascii")
        record.symlink_to(tmp_path / "elsewhere")
    else:
        record.write_text("" if forged == "empty" else "0" * 64, encoding="ascii")
    with pytest.raises(GlmtuneError, match="is for you to allow"):
        resume(own_run)
    record.unlink()
    record.write_text(content, encoding="ascii")
    record.chmod(0o600)


def record_of(run: Path) -> Path:
    request = read_request(run)[0]
    return cache_folder() / "asked-for" / consent_module._digest(request, model_source(request))


@pytest.mark.skipif("geteuid" not in vars(os), reason="this system has no owners of files")
def test_a_record_of_another_user_says_nothing(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(GlmtuneError, match="is for you to allow"):
        resume(own_run)


def test_records_are_the_users_own_and_made_only_where_one_is_needed(own_run: Path, run: Path) -> None:
    record = record_of(own_run)
    assert record.stat().st_mode & 0o077 == 0
    assert record.parent.stat().st_mode & 0o077 == 0
    before = set(record.parent.iterdir())
    request = read_request(run)[0]
    remember(request, model_source(request))
    assert set(record.parent.iterdir()) == before


BOTH = ({"fsdp_state_dict_type": "SHARDED_STATE_DICT", "state_dict_type": "FULL_STATE_DICT"},
        {"state_dict_type": "FULL_STATE_DICT", "fsdp_state_dict_type": "SHARDED_STATE_DICT"},
        {"fsdp_fsdp_state_dict_type": "SHARDED_STATE_DICT", "state_dict_type": "FULL_STATE_DICT"},
        {"fsdp_version": 1, "version": 2})  # fmt: skip


def sharded(given: Any) -> None:
    settings = {"output_dir": "x", "fsdp": True, "fsdp_config": given}
    source = {"data_config": {"train_file": "a"}, "training_args": settings, "peft_config": None}
    check_sharding(config_from_mapping(source, where="run.yaml"))


@pytest.mark.parametrize("given", BOTH)
def test_a_setting_of_fsdp_in_both_spellings_is_refused(given: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GlmtuneError, match=r"`training_args\.fsdp_config` has `\w+` twice, as `\w+` and as `fsdp_\w+`"):
        sharded(given)


@pytest.mark.parametrize(
    "given", [{"state_dict_type": "SHARDED_STATE_DICT"}, {"fsdp_state_dict_type": "SHARDED_STATE_DICT"},
              {"fsdp_fsdp_state_dict_type": "LOCAL_STATE_DICT"}, {"state_dict_type": 2}],
)  # fmt: skip
def test_a_divided_state_is_refused_in_every_spelling(given: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GlmtuneError, match=r"`training_args\.fsdp_config\.state_dict_type` is `"):
        sharded(given)


def test_what_is_passed_on_is_what_was_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settled_fsdp({"fsdp_reshard_after_forward": True}) == {
        "reshard_after_forward": True, "version": 2, "state_dict_type": "FULL_STATE_DICT",
    }  # fmt: skip
    assert fsdp_settings({}) == {}
    config = config_from_mapping(
        {
            "data_config": {"train_file": "a"},
            "training_args": {"output_dir": "x", "fsdp": True, "fsdp_config": {"fsdp_cpu_offload": False}},
            "peft_config": None,
        },
        where="run.yaml",
    )
    for name in ("FSDP_STATE_DICT_TYPE", "FSDP_VERSION", "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    arguments = training_arguments(config, tmp_path, lambda line: None)
    assert arguments.fsdp_config["state_dict_type"] == "FULL_STATE_DICT"
