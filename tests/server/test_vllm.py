"""What vLLM is told; vLLM itself is stood in for by the few names that are used of it."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.model_source import ModelSource, find_model
from glmtune.server import run as server
from glmtune.server import vllm


@pytest.fixture(scope="module")
def lora(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(LoraConfig(r=12, target_modules=["q_proj"], task_type="CAUSAL_LM"), demo_model, tmp_path_factory)


@pytest.fixture(scope="module")
def prefix(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), demo_model, tmp_path_factory)


def adapter(config: Any, demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(demo_model), config).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(demo_model).save_pretrained(folder)
    return folder


def test_the_command_names_adapters_stops_and_the_reader_of_calls(lora: Path, demo_model: str) -> None:
    source = find_model(lora)
    command = vllm.vllm_command(
        source, "mine", {"other": source}, host="127.0.0.1", port=8000, max_length=4096, max_rows=16
    )
    settings = Path(command[command.index("--generation-config") + 1])
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    written = json.loads((settings / "generation_config.json").read_text(encoding="utf-8"))
    assert written["eos_token_id"] == sorted(stops)
    template = Path(command[command.index("--chat-template") + 1])
    assert template.read_text(encoding="utf-8").endswith("%}\n{{ '' }}" + tokenizer.chat_template)
    assert command == [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", demo_model,
        "--host", "127.0.0.1", "--port", "8000", "--max-num-seqs", "16", "--allowed-origins", "[]",
        "--served-model-name", demo_model, "--tokenizer", str(lora), "--generation-config", str(settings),
        "--enable-auto-tool-choice", "--tool-call-parser", "glm4_role_line",
        "--exclude-tools-when-tool-choice-none", "--tool-parser-plugin", str(vllm.PLUGIN),
        "--chat-template", str(template), "--chat-template-content-format", "string",
        "--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"mine={lora}", f"other={lora}",
        "--max-model-len", "4096",
    ]  # fmt: skip


def test_a_full_model_is_served_under_its_name(demo_model: str) -> None:
    source = ModelSource(base=demo_model)
    command = vllm.vllm_command(source, "demo", {}, host="::1", port=1, max_length=None, max_rows=1)
    assert command[command.index("--served-model-name") + 1] == "demo"
    assert "--enable-lora" not in command


def test_without_vllm_it_cannot_be_asked_for(demo_model: str) -> None:
    source = ModelSource(base=demo_model)
    assert not vllm.takes_vllm("auto", [source])
    with pytest.raises(GlmtuneError) as caught:
        vllm.takes_vllm("vllm", [source])
    assert str(caught.value) == ("vLLM cannot serve this: `vllm` is not installed\nhint: leave out `--backend vllm`")
    with pytest.raises(GlmtuneError, match=r"`--backend` is `tgi`; expected one of: auto, transformers, vllm"):
        vllm.takes_vllm("tgi", [source])


def test_prefixes_are_served_without_vllm(prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm.torch.cuda, "is_available", lambda: True)
    assert not vllm.takes_vllm("auto", [find_model(prefix)])
    assert capsys.readouterr().err == (
        f"note: served without vLLM: the adapter `{prefix}` is not LoRA, and vLLM knows no other\n"
    )


def test_a_build_for_cpus_serves_where_it_is_asked_for(
    demo_model: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    source = ModelSource(base=demo_model)
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(vllm.importlib.metadata, "version", lambda name: "0.32.0+cpu")
    assert vllm.takes_vllm("vllm", [source])
    assert not vllm.takes_vllm("auto", [source])
    assert capsys.readouterr().err == "note: served without vLLM: there is no GPU\n"
    monkeypatch.setattr(vllm.importlib.metadata, "version", lambda name: "0.32.0")
    with pytest.raises(GlmtuneError, match="vLLM cannot serve this: there is no GPU"):
        vllm.takes_vllm("vllm", [source])


class Command(Exception):
    """Raised in the place of becoming vLLM."""


def test_options_of_vllm_come_last(demo_model: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def run(command: list[str], api_key: str | None) -> None:
        raise Command(command, api_key)

    monkeypatch.setattr(server, "takes_vllm", lambda backend, sources, **_: True)
    monkeypatch.setattr(server, "run_vllm", run)
    with pytest.raises(Command) as caught:
        server.serve(demo_model, host="0.0.0.0", vllm_args="--tensor-parallel-size 8 --port '9 9'")
    command, api_key = caught.value.args
    assert command[-4:] == ["--tensor-parallel-size", "8", "--port", "9 9"]
    assert api_key is None
    assert capsys.readouterr().err == (
        "note: everybody who can reach `0.0.0.0` may use the model; `--api-key` or `$GLMTUNE_API_KEY` ends that\n"
    )
    with pytest.raises(GlmtuneError) as refused:
        server.serve(demo_model, vllm_args="--port '9")
    assert str(refused.value) == "`--vllm-args` cannot be read as words of a shell: No closing quotation"


def test_options_of_vllm_are_not_lost_where_it_does_not_serve(demo_model: str) -> None:
    with pytest.raises(GlmtuneError) as caught:
        server.serve(demo_model, vllm_args="--tensor-parallel-size 8")
    assert str(caught.value) == (
        "`--vllm-args` is for vLLM, which does not serve here\nhint: `--backend vllm` says why; or leave it out"
    )


class Fields(types.SimpleNamespace):
    """Stands for vLLM's pydantic classes."""

    def model_dump(self, exclude_none: bool = False) -> dict[str, Any]:
        return dict(vars(self))


class FakeToolParser:
    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        self.prev_tool_call_arr: list[Any] = []
        self.current_tool_id = -1
        self.streamed_args_for_tool: list[str] = []


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = ["DeltaFunctionCall", "DeltaMessage", "DeltaToolCall", "ExtractedToolCallInformation", "FunctionCall"]
    protocol = types.ModuleType("vllm.tool_parsers.hermes_tool_parser")
    for name in [*names, "ToolCall"]:
        setattr(protocol, name, Fields)
    protocol.make_tool_call_id = lambda: "call"
    abstract = types.ModuleType("vllm.tool_parsers.abstract_tool_parser")
    abstract.ToolParser = FakeToolParser
    abstract.ToolParserManager = types.SimpleNamespace(register_module=lambda name: lambda kind: kind)
    parsers = types.ModuleType("vllm.tool_parsers")
    parsers.hermes_tool_parser = protocol
    sampling = types.ModuleType("vllm.sampling_params")
    sampling.StructuredOutputsParams = Fields
    for module in (types.ModuleType("vllm"), parsers, protocol, abstract, sampling):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "glmtune.server.vllm_tool_parser", raising=False)
    from glmtune.server.vllm_tool_parser import Glm4RoleLineParser

    return Glm4RoleLineParser(None)


PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def request(tool_choice: Any = "auto") -> Any:
    tools = [Fields(type="function", function={"name": name, "parameters": PARAMETERS}) for name in ("f", "g.h")]
    open_fields = {"structured_outputs": None, "response_format": None}
    return Fields(tools=tools, tool_choice=tool_choice, skip_special_tokens=True, **open_fields)


@pytest.mark.parametrize(
    ("tool_choice", "names"),
    [("auto", []), ("none", []), (None, []), ("required", ["f", "g.h"]), (Fields(function=Fields(name="f")), ["f"])],
    ids=["auto", "none", "open", "required", "named"],
)
def test_the_plugin_has_answers_begin_with_the_calls_that_are_asked_for(
    parser: Any, tool_choice: Any, names: list[str]
) -> None:
    asked = parser.adjust_request(request(tool_choice))
    assert asked.skip_special_tokens is (tool_choice == "none")
    if not names:
        assert (asked.structured_outputs, asked.response_format) == (None, None)
        return
    wanted = json.loads(asked.structured_outputs.structural_tag)
    assert wanted["type"] == "structural_tag"
    calls = wanted["format"]["elements"] if len(names) > 1 else [wanted["format"]]
    schema = {"type": "json_schema", "json_schema": PARAMETERS}
    assert [call["elements"] for call in calls] == [
        [{"type": "const_string", "value": f"{name}\n"}, schema] for name in names
    ]


@pytest.mark.parametrize("name", ["required", "f"])
def test_what_the_plugin_asks_for_is_a_call_to_vllms_library(parser: Any, name: str, glm_tokenizer: Any) -> None:
    xgrammar = pytest.importorskip("xgrammar", reason="needs `pip install xgrammar`, which vLLM brings along")
    choice = name if name == "required" else Fields(function=Fields(name=name))
    tag = parser.adjust_request(request(choice)).structured_outputs.structural_tag
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(glm_tokenizer, vocab_size=151552))
    compiled = compiler.compile_structural_tag(tag)

    def is_followed(text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        ids = glm_tokenizer.encode(text, add_special_tokens=False)
        return all(matcher.accept_token(token) for token in ids) and matcher.is_terminated()

    assert is_followed('f\n{"a": "北京"}')
    assert is_followed('g.h\n{"a": ""}') is (name == "required")
    for broken in ('f\n{"a": 1}', "f\n{}", "gxh\n{}", "\nThe weather is fine."):
        assert not is_followed(broken), broken


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
def test_the_plugin_refuses_a_call_and_another_answer_at_once(parser: Any, field: str) -> None:
    asked = request("required")
    setattr(asked, field, Fields(type="json_schema"))
    with pytest.raises(ValueError, match="`tool_choice` demands a call"):
        parser.adjust_request(asked)


def test_the_plugin_reads_whole_answers(parser: Any) -> None:
    assert parser.adjust_request(request()).skip_special_tokens is False
    found = parser.extract_tool_calls('\nOne moment.<|assistant|>f\n{"a": 1}<|observation|>', request())
    assert (found.tools_called, found.content) == (True, "One moment.")
    assert [(call.function.name, call.function.arguments) for call in found.tool_calls] == [("f", '{"a": 1}')]
    plain = parser.extract_tool_calls("\nThe answer is\n42", request())
    assert (plain.tools_called, plain.content) == (False, "The answer is\n42")


def test_the_plugin_reads_streams(parser: Any) -> None:
    sent = []
    for delta in ("\nOne ", "moment.", "<|assistant|>", "f", "\n{", '"a": 1', "}", "<|observation|>"):
        message = parser.extract_tool_calls_streaming("", "", delta, [], [], [], request())
        sent.append(None if message is None else (message.content, [call.function for call in message.tool_calls]))
    call = {"name": "f", "arguments": '{"a": 1}'}
    assert sent == [("One", []), (" moment.", []), None, None, None, None, (None, [call]), None]
    assert parser.streamed_args_for_tool == ['{"a": 1}']
