"""The files of a model's folder, looked at before anything heavy is imported: whole, of their kind, and of one model.

Only the beginning of a file of weights is read: eight bytes, the length of its header, and the header itself, a JSON
object that says where in the file every weight stands (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError

from .model_bounds import check_bounds

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")
POINTED_TO = (".json", ".safetensors", ".model", ".jinja", ".txt")
"""Endings of files that git-lfs may hold elsewhere."""
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
MAX_CONFIG_BYTES = 100_000_000
"""The index of the largest models' weights has some 10 MB."""
PLAIN_NAME = re.compile(r"[\w][\w.+-]*\.safetensors")
EXPLICIT = "transformers_weights"
"""A key of `config.json` that names the file of the weights."""
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}
"""Of a number of each type; types of less than a byte are not among them."""
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
    check_model_config(folder / "config.json", configs.get("config.json", {}))
    check_generation(folder / "generation_config.json", configs.get("generation_config.json", {}))
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and not tokenizer.stat().st_size:
        raise GlmtuneError("`tokenizer.json` is empty", where=str(tokenizer), fix=AGAIN)


def check_model_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise where a `config.json` holds what no model can be built of, before a library tries to."""
    _check_sizes(path, config)
    check_bounds(path, config)
    _check_explicit(path, config)


def _check_explicit(path: Path, config: Mapping[str, Any]) -> None:
    explicit = config.get(EXPLICIT)
    if explicit is not None and not _is_plain_name(explicit):
        raise GlmtuneError(
            f"`{EXPLICIT}` is {json.dumps(explicit)[:80]}; expected the name of a `*.safetensors` file in the folder",
            where=str(path),
            fix="take the key out: other files of weights are pickles, which could run code",
        )


def check_weights(folder: Path) -> None:
    """Raise where a file of a model's weights is missing, not whole, or no such file."""
    config = read_config(folder / "config.json")
    is_quantized = bool(config.get("quantization_config"))
    if config.get(EXPLICIT) is not None:
        check_weight_file(folder / str(config[EXPLICIT]), is_quantized=is_quantized)
    for path in _weight_files(folder):
        check_weight_file(path, is_quantized=is_quantized)


def read_config(path: Path) -> dict[str, Any]:
    """Return the object that a configuration of transformers or PEFT holds; raises where it holds none."""
    _check_is_no_pointer(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise GlmtuneError(f"`{path.name}` has {path.stat().st_size:,} bytes, too many for one", where=str(path))
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


def check_weight_file(path: Path, *, is_quantized: bool = False) -> None:
    """Raise unless a safetensors file is as long as its header says, and holds weights in a type to compute with.

    Args:
        path: The file.
        is_quantized: Whether the model's configuration says how its weights are quantized; other types are right then.
    """
    _check_is_no_pointer(path)
    size = path.stat().st_size
    header, num_header_bytes = _header(path, size)
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, start, end = _entry(path, name, entry)
        places.append((start, end))
        if kind not in FLOATS and name.endswith(".weight") and not is_quantized:
            raise GlmtuneError(
                f"weight `{name}` is of type `{kind}`, and `config.json` does not say how it is quantized",
                where=str(path),
                fix="take the model's unquantized weights, or its own `config.json`",
            )
    expected = 8 + num_header_bytes + max((end for _, end in places), default=0)
    if size != expected:
        raise GlmtuneError(
            f"`{path.name}` is damaged: it has {size:,} bytes, and its own header says {expected:,}",
            where=str(path),
            fix=AGAIN,
        )
    _check_order(path, places)


def _entry(path: Path, name: str, entry: Any) -> tuple[str, int, int]:
    """Return the type of a weight, and where its numbers begin and end; raises where its header contradicts itself."""
    try:
        kind, shape, (start, end) = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
    except (TypeError, LookupError, ValueError):
        raise _no_weights(path) from None
    if any(not isinstance(number, int) or isinstance(number, bool) or number < 0 for number in numbers):
        raise _no_weights(path)
    if end < start or (kind in BYTES and math.prod(shape) * BYTES[kind] != end - start):
        raise GlmtuneError(
            f"`{path.name}` is damaged: weight `{name[:80]}` of the shape {shape[:8]} has {end - start:,} bytes",
            where=str(path),
            fix=AGAIN,
        )
    return kind, start, end


def _check_order(path: Path, places: list[tuple[int, int]]) -> None:
    """Raise where weights share bytes, or leave some out: what stands there is not what any of them says."""
    reached = 0
    for start, end in sorted(places):
        if start != reached:
            raise GlmtuneError(
                f"`{path.name}` is damaged: its weights do not lie end to end", where=str(path), fix=AGAIN
            )
        reached = end


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and PLAIN_NAME.fullmatch(name) is not None


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
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _no_weights(path)
    return header, length


def _no_weights(path: Path) -> GlmtuneError:
    return GlmtuneError(f"`{path.name}` is no safetensors file", where=str(path), fix=AGAIN)


def files_of_index(path: Path) -> list[str]:
    """Return the names of the files that an index of weights names: plain ones of its own folder, or it is refused."""
    places = read_config(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise GlmtuneError(f"`{INDEX}` says of no weight where it is (`weight_map`)", where=str(path), fix=AGAIN)
    names = sorted(set(places.values()))
    foreign = next((name for name in names if not _is_plain_name(name)), None)
    if foreign is not None:
        raise GlmtuneError(
            f"`{INDEX}` names `{foreign[:200]}`; expected names of `*.safetensors` files in the same folder",
            where=str(path),
            fix="convert the weights with transformers' `save_pretrained`: other files could run code",
        )
    return names


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
    names = files_of_index(folder / INDEX)
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


def check_generation(path: Path, config: Mapping[str, Any]) -> None:
    """Raise where no answer can be written with a model's own settings, or none that ends."""
    from glmtune.config.generation_options import absurd_values  # of a room with YAML in it: for models that are there

    problem = next(absurd_values(config), None)
    if problem is not None:
        raise GlmtuneError(
            f"`{path.name}` has a wrong `{problem.option}`: {problem.message}",
            where=str(path),
            fix="take the model's own file, or take the key out",
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
