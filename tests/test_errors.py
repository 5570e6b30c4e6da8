"""How errors are shown in a notebook, and how a package is named that is not installed."""

from __future__ import annotations

import pytest

from glmtune.errors import GlmtuneError, install_hint, require

NAMED = {
    "The required package 'scipy' is not installed. Please install it to continue.": "scipy",
    "scikit-learn is required for AdaMSS. Please install it with: pip install scikit-learn": "scikit-learn",
    "Loading a GPTQ quantized model requires optimum (`pip install optimum`)": "optimum",
    "Using `bitsandbytes` 4-bit quantization requires it: `pip install -U bitsandbytes>=0.46.1`": "'glmtune[quant]'",
    "Please install it with `pip install compressed-tensors>=0.15.0`.": "'compressed-tensors>=0.15.0'",
    "requires auto-round library (`pip install 'auto-round>=0.5'`)": "'auto-round>=0.5'",
    "requires AQLM: `pip install aqlm[gpu,cpu]`": "'aqlm[gpu,cpu]'",
    "e.g. `pip install kernels==0.18.2`": "kernels==0.18.2",
}


@pytest.mark.parametrize("message", NAMED)
def test_a_package_that_an_error_names_is_installed_by_one_command(message: str) -> None:
    assert install_hint(ImportError(message)) == f"run `pip install {NAMED[message]}` and try again"


@pytest.mark.parametrize(
    ("module", "package"), [("torchao.quantization", "torchao"), ("swanlab", "'glmtune[swanlab]'")]
)
def test_a_module_that_is_not_found_is_a_package_to_install(module: str, package: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert install_hint(error) == f"run `pip install {package}` and try again"


@pytest.mark.parametrize(
    "error", [ImportError("a GPU is needed"), ValueError("'r' should be positive"), KeyError("FOO")]
)
def test_an_error_that_names_no_package_gives_no_hint(error: Exception) -> None:
    assert install_hint(error) is None


def test_a_notebook_shows_what_where_and_what_to_do() -> None:
    error = GlmtuneError("no rows", where="a.jsonl:1", fix="write some")
    assert error._render_traceback_() == ["error: no rows", "  --> a.jsonl:1", "hint: write some"]


def test_a_notebook_shows_the_traceback_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_DEBUG", "1")
    try:
        raise GlmtuneError("no rows")
    except GlmtuneError as error:
        shown = "".join(error._render_traceback_())
    assert shown.startswith("Traceback (most recent call last):\n")
    assert shown.endswith("GlmtuneError: no rows\n")


def test_a_package_without_an_extra_of_ours_is_installed_by_its_name() -> None:
    with pytest.raises(GlmtuneError) as caught:
        require("no_such_package")
    assert str(caught.value) == (
        "`no_such_package` is not installed\nhint: run `pip install no_such_package` and try again"
    )
