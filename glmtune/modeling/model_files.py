"""The files of a model's folder, looked at before anything heavy is imported: whole, of their kind, and of one model.

Only the beginning of a file of weights is read: eight bytes, the length of its header, and the header itself, a JSON
object that says where in the file every weight stands (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")
POINTED_TO = (".json", ".safetensors", ".model", ".jinja", ".txt")
"""Endings of files that git-lfs may hold elsewhere."""
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
FLOATS = ("F64", "F32", "F16", "BF16")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
TOKEN_IDS = ("eos_token_id", "pad_token_id", "bos_token_id")
AGAIN = "download it again"


def check_configs(folder: Path) -> None:
    """Raise where a configuration of a model is none, or a file is a pointer to what was not downloaded."""
    for path in sorted(folder.iterdir()):
        if path.suffix in POINTED_TO and path.is_file():
            _check_is_no_pointer(path)
    configs = {name: read_config(folder / name) for name in CONFIGS if (folder / name).is_file()}
    for name in ("config.json", "generation_config.json"):
        _check_token_ids(folder / name, configs.get(name, {}))
    config = configs.get("config.json", {})
    _check_sizes(folder / "config.json", config)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and not tokenizer.stat().st_size:
        raise GlmtuneError("`tokenizer.json` is empty", where=str(tokenizer), fix=AGAIN)


def check_weights(folder: Path) -> None:
    """Raise where a file of a model's weights is missing, not whole, or no such file."""
    is_rounded = bool(read_config(folder / "config.json").get("quantization_config"))
    for path in _weight_files(folder):
        check_weight_file(path, is_rounded=is_rounded)


def read_config(path: Path) -> dict[str, Any]:
    """Return the object that a configuration of transformers or PEFT holds; raises where it holds none."""
    _check_is_no_pointer(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise GlmtuneError(f"`{path.name}` is not UTF-8: {error}", where=str(path), fix=AGAIN) from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        empty = not path.stat().st_size
        is_marked = path.read_bytes().startswith(b"\xef\xbb\xbf")
        raise GlmtuneError(
            f"`{path.name}` is empty" if empty else f"`{path.name}` is not JSON: {what}",
            where=str(path),
            fix="save it as UTF-8 without a byte order mark" if is_marked else AGAIN,
        ) from None
    if not isinstance(value, dict):
        raise GlmtuneError(f"`{path.name}` holds no JSON object", where=str(path), fix=AGAIN)
    return value


def check_weight_file(path: Path, *, is_rounded: bool = False) -> None:
    """Raise unless a safetensors file is as long as its header says, and holds weights in a type to compute with.

    Args:
        path: The file.
        is_rounded: Whether the model's configuration says how its weights are rounded; other types are right then.
    """
    _check_is_no_pointer(path)
    size = path.stat().st_size
    header, num_header_bytes = _header(path, size)
    ends = [0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, end = str(entry["dtype"]), int(entry["data_offsets"][1])
        except (TypeError, LookupError, ValueError):
            raise _no_weights(path) from None
        ends.append(end)
        if kind not in FLOATS and name.endswith(".weight") and not is_rounded:
            raise GlmtuneError(
                f"weight `{name}` is of type `{kind}`, and `config.json` does not say how it is rounded",
                where=str(path),
                fix="take the model's unrounded weights, or its own `config.json`",
            )
    expected = 8 + num_header_bytes + max(ends)
    if size != expected:
        raise GlmtuneError(
            f"`{path.name}` is damaged: it has {size:,} bytes, and its own header says {expected:,}",
            where=str(path),
            fix=AGAIN,
        )


def _check_is_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        raise GlmtuneError(
            f"`{path.name}` is a pointer of git-lfs, not the file itself",
            where=str(path),
            fix=f"run `git lfs pull` in `{path.parent}`, or download the file",
        )


def _header(path: Path, size: int) -> tuple[Mapping[str, Any], int]:
    """Return the header of a file of weights, and its length in bytes."""
    if not size:
        raise GlmtuneError(f"`{path.name}` is empty", where=str(path), fix=AGAIN)
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= MAX_HEADER_BYTES:
            raise _no_weights(path)
        if length > size - 8:
            raise GlmtuneError(
                f"`{path.name}` is damaged: it has {size:,} bytes, and its header alone should have {length:,}",
                where=str(path),
                fix=AGAIN,
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _no_weights(path) from None
    if not isinstance(header, dict):
        raise _no_weights(path)
    return header, length


def _no_weights(path: Path) -> GlmtuneError:
    return GlmtuneError(f"`{path.name}` is no safetensors file", where=str(path), fix=AGAIN)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers reads; raises where the index names one that is not there."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
        if not (folder / WEIGHTS).is_file() and any("-of-" in path.name for path in found):
            raise GlmtuneError(
                f"the model's weights are in several files, and their index `{INDEX}` is missing",
                where=str(folder),
                fix=AGAIN,
            )
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else found
    places = read_config(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise GlmtuneError(
            f"`{INDEX}` says of no weight where it is (`weight_map`)", where=str(folder / INDEX), fix=AGAIN
        )
    names = sorted(set(places.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise GlmtuneError(
            f"{len(missing)} of the model's {len(names)} files of weights are missing, `{missing[0]}` among them",
            where=str(folder / INDEX),
            fix="download them",
        )
    return [folder / name for name in names]


def _check_token_ids(path: Path, config: Mapping[str, Any]) -> None:
    """Raise where the id of a special token is none; an end token may be several."""
    for key in TOKEN_IDS:
        value = config.get(key)
        ids = value if isinstance(value, list) else [value]
        wrong = [each for each in ids if each is not None and (not isinstance(each, int) or isinstance(each, bool))]
        if wrong:
            raise GlmtuneError(
                f"`{key}` is {json.dumps(wrong[0], ensure_ascii=False)}; expected the number of a token",
                where=str(path),
                fix="write the token's id, as `tokenizer.json` has it under `added_tokens`",
            )


def _check_sizes(path: Path, config: Mapping[str, Any]) -> None:
    """Raise where a size of the model is no number above 0, or what is said of its rounding no object."""
    for key in SIZES:
        value = config.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise GlmtuneError(
                f"`{key}` is {json.dumps(value, ensure_ascii=False)}; expected a whole number above 0",
                where=str(path),
                fix="take the model's own `config.json`",
            )
    rounding = config.get("quantization_config")
    if rounding is not None and not isinstance(rounding, dict):
        raise GlmtuneError("`quantization_config` is no object", where=str(path), fix="take the model's own file")
