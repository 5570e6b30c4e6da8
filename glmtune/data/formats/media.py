"""Pictures, films and sounds beside the text: a row with any is refused, since the model would not see them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from glmtune.data.conversation import RowError

from .fields import says_nothing

_MEDIA = re.compile(
    r"(.*_)?(image|img|picture|photo|video|audio|speech|pixel_value)s?"
    r"(_?(path|file|filename|url|uri|id|base64|b64|byte|data|token)s?)?"
)


@lru_cache(maxsize=1024)
def is_media_key(key: str) -> bool:
    """Whether a key names something to see or hear, such as `images`, `video_path` or `input_audio`."""
    return _MEDIA.fullmatch(key.strip().lower().replace("-", "_")) is not None


def refuse_media(item: dict[str, Any], name: str, keys: Iterable[str] | None = None) -> None:
    """Raise where a row or a message holds something to see or hear.

    Args:
        item: The row, or the message.
        name: Which one it is, for the error.
        keys: Those to look at; all where None.
    """
    for key in item if keys is None else keys:
        if is_media_key(key) and item[key] is not False and not says_nothing(item[key]):
            raise RowError(f"{name} has `{key}`; expected text alone: the model would not see or hear it")
