"""Pictures, films and sounds beside the text: a row with any is refused, since the model would not see them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from glmtune.data.conversation import RowError

from .fields import says_nothing

_ENDING = (
    r"(_?(path|file|filename|name|url|uri|link|src|source|id|base64|b64|byte|bytes|binary|blob|data|token|feature|feat"
    r"|embedding|tensor|array|list|dir|folder|content|input)s?)*(_?\d+)?"
)
_MEDIA = re.compile(
    r"(.*_)?(image|img|picture|pic|photo|photograph|screenshot|video|audio|speech|waveform|spectrogram|pixel_value"
    rf"|wav|mp3|mp4|jpe?g|png|gif|webp|flac)s?{_ENDING}"
    r"|.*(图片|图像|照片|相片|截图|插图|配图|视频|音频|语音|录音)(文件|路径|地址|链接|列表|编号|数据|名)?s?(_?(path|url|id))?(_?\d+)?"
)
_PERHAPS_MEDIA = re.compile(
    r"(.*_)?(media|multimedia|frame|figure|fig|diagram|chart|plot|thumbnail|cover|clip|film|movie|recording|sound|voice"
    rf"|attachment|visual|sketch|drawing|scan|camera|附件|媒体)s?{_ENDING}"
    r"|(.*_)?(image|img|picture|pic|photo|video|audio)s?_.*|.*图"
)
"""Names of much else, too: what stands there decides."""
_MEDIA_VALUE = re.compile(
    r"data:(image|video|audio)/.*|\S(.*\S)?\.(jpe?g|png|gif|bmp|webp|tiff?|svg|heic|mp4|avi|mov|mkv|webm|wav|mp3|flac"
    r"|ogg|m4a|aac|npy)([?#]\S*)?",
    re.IGNORECASE | re.DOTALL,
)
MAX_NAME = 4096
"""Characters of the name of a file."""


@lru_cache(maxsize=1024)
def is_media_key(key: str) -> bool:
    """Whether a key names something to see or hear, such as `images`, `video_path` or `input_audio`."""
    return _MEDIA.fullmatch(_plain_name(key)) is not None


@lru_cache(maxsize=1024)
def _may_be_media_key(key: str) -> bool:
    return _PERHAPS_MEDIA.fullmatch(_plain_name(key)) is not None


def _plain_name(key: str) -> str:
    return re.sub(r"[-\s.]+", "_", key.strip().lower())


def is_media_value(value: Any) -> bool:
    """Whether a value is something to see or hear, or the name of a file that holds such."""
    if isinstance(value, str):
        is_data = value[:11].lower().startswith(("data:image/", "data:video/", "data:audio/"))
        return is_data or (len(value) <= MAX_NAME and _MEDIA_VALUE.fullmatch(value.strip()) is not None)
    if isinstance(value, list):
        return any(map(is_media_value, value))
    return isinstance(value, dict) and any(is_media_value(each) for each in value.values())


def refuse_media(item: dict[str, Any], name: str, keys: Iterable[str] | None = None) -> None:
    """Raise where a row or a message holds something to see or hear.

    Args:
        item: The row, or the message.
        name: Which one it is, for the error.
        keys: Those to look at; all where None.
    """
    for key in item if keys is None else keys:
        if is_media_key(key):
            is_media = item[key] is not False and item[key] != 0 and not says_nothing(item[key])
        else:
            is_media = _may_be_media_key(key) and is_media_value(item[key])
        if is_media:
            raise RowError(f"{name} has `{key}`; expected text alone: the model would not see or hear it")
