"""What a checkpoint holds: files of known names, and nothing else that a library might look for and load.

transformers, accelerate and PEFT look for many names in a checkpoint, pickles and whole folders of them (`optimizer_0`,
`pytorch_model_fsdp_0`) among them. glmtune writes none of those, so one of them was put there by somebody else. A
manifest does not help: whoever puts a file there can write a manifest that fits.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from glmtune.errors import GlmtuneError
from glmtune.modeling.finding.links import refuse_links

STATE = re.compile(
    r"asked\.json|loss_window\.json|manifest\.json|trainer_state\.json|README\.md"
    r"|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth"
)
"""What a run goes on with; `optimizer.bin` is that of FSDP, `scaler.pt` that of fp16."""

MODEL = re.compile(
    r"(adapter_|generation_|preprocessor_|video_preprocessor_|processor_)?config\.json"
    r"|adapter_model\.safetensors|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)

TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|entity_vocab|normalizer)\.json"
    r"|[\w.-]+\.(txt|model|tiktoken|vocab|jinja)"
)
"""Its vocabulary has other names in every tokenizer that is not a fast one; all of them are text or protobuf."""

ZERO_FOLDER = re.compile(r"global_step\d+")
ZERO_STATE = re.compile(r"optimizer-\d+-of-\d+\.safetensors|engine\.json|scheduler\.pt")
TEMPLATE_FOLDER = "additional_chat_templates"
TEMPLATE = re.compile(r"[\w.-]+\.jinja")
CODE = re.compile(r"[A-Za-z_]\w*\.py")

NOT_READ = re.compile(r"\.DS_Store|\._.+|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+|\.gitattributes")
"""What systems leave in folders that they show or share; nothing looks for such names."""


def refuse_unknown_files(checkpoint: Path, *, may_hold_code: bool = False) -> None:
    """Raise where a checkpoint holds what no run of glmtune writes; to be asked before anything in it is opened.

    Args:
        checkpoint: The folder.
        may_hold_code: Whether the run's model brings its own Python code, which is saved with it.
    """
    refuse_links(checkpoint)
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
        if not (_is_known_folder(name) if is_folder else _is_known_file(name, may_hold_code)):
            what = "folder" if is_folder else "file"
            raise GlmtuneError(
                f"checkpoint `{checkpoint.name}` is refused: the {what} `{name}` is none that glmtune writes",
                where=str(path),
                fix="take it away, if you know who put it there; or choose another with `--checkpoint STEP`",
            )


def _is_known_folder(name: str) -> bool:
    return bool(ZERO_FOLDER.fullmatch(name)) or name == TEMPLATE_FOLDER


def _is_known_file(name: str, may_hold_code: bool) -> bool:
    folder, _, last = name.rpartition("/")
    if NOT_READ.fullmatch(last):
        return True
    if ZERO_FOLDER.fullmatch(folder):
        return bool(ZERO_STATE.fullmatch(last))
    if folder == TEMPLATE_FOLDER:
        return bool(TEMPLATE.fullmatch(last))
    if folder:
        return False
    return bool(
        STATE.fullmatch(last)
        or MODEL.fullmatch(last)
        or TOKENIZER.fullmatch(last)
        or (may_hold_code and CODE.fullmatch(last))
    )
