"""How a package is named that another library lacks."""

from __future__ import annotations

import pytest

from glmtune.errors import install_hint

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
