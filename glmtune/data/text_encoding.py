"""Text that is not UTF-8: which encoding it is most likely in, and the command that mends the file."""

from __future__ import annotations

import codecs
import re
import shlex
import unicodedata
from pathlib import Path

MIN_CHARACTERS = 3
"""Of two bytes each; below, the guess would be as good as any other."""
MIN_SHARE = 0.8
"""Of the characters that have to be common ones of the encoding."""
MIN_KOREAN_CHARACTERS = 12
"""All Korean syllables are common Chinese characters in GB 18030: so many without any other are no chance."""

_HIGH_RUNS = re.compile(rb"[\x80-\xff]+")
# Characters of two bytes, and those of them that stand in most texts: signs, and the first of the two levels.
_GB = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")
_GB_COMMON = re.compile(rb"[\xa1-\xa9\xb0-\xd7][\xa1-\xfe]")
_BIG5_COMMON = re.compile(rb"[\xa1-\xc6][\x40-\x7e\xa1-\xfe]")
_KANA = re.compile("[\u3041-\u30fe]")
_HANGUL = re.compile("[\uac00-\ud7a3]")

ENCODINGS = {
    "GB18030": "GB 18030 (GBK), as Chinese Windows writes",
    "BIG5": "Big5, as Windows writes in Taiwan and Hong Kong",
    "CP932": "Shift JIS, as Japanese Windows writes",
    "CP949": "EUC-KR, as Korean Windows writes",
    "CP1252": "Windows-1252 (Latin-1), as Windows writes in western Europe",
}
"""Names that `iconv` and Python know: what to call them."""


def guess_encoding(sample: bytes) -> str | None:
    """Return a key of `ENCODINGS` for bytes that are not UTF-8; None where nothing fits well."""
    runs = _HIGH_RUNS.findall(sample)
    if not runs:
        return None
    shares = {"GB18030": _share(sample, "gb18030", _GB_COMMON), "BIG5": _share(sample, "big5hkscs", _BIG5_COMMON)}
    japanese, korean = _decoded(sample, "cp932"), _decoded(sample, "cp949")
    if japanese is not None and len(_KANA.findall(japanese)) > 0.25 * _num_foreign(japanese):
        return "CP932"
    if korean is not None and shares["GB18030"] == 1 and _is_korean(korean):
        return "CP949"
    best = max(shares, key=lambda name: shares[name])
    if shares[best] >= MIN_SHARE:
        return best
    num_single = sum(len(run) == 1 for run in runs)
    return "CP1252" if num_single >= 0.7 * len(runs) and _is_western(b"".join(runs)) else None


def utf8_command(path: Path, encoding: str) -> str:
    """Return the command that writes a file in another encoding as UTF-8 beside it."""
    source, target = shlex.quote(str(path)), shlex.quote(str(path.with_name(f"utf8-{path.name}")))
    packer = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    if packer:
        return f"{packer} -dc {source} | iconv -f {encoding} -t UTF-8 | {packer} > {target}"
    return f"iconv -f {encoding} -t UTF-8 {source} > {target}"


def _decoded(sample: bytes, codec: str) -> str | None:
    """Return the sample as text, without a character that its end cuts off; None where it is none."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return None


def _share(sample: bytes, codec: str, common: re.Pattern[bytes]) -> float:
    """Return which share of the characters are common in an encoding; 0 where the sample is not in it."""
    text = _decoded(sample, codec)
    if text is None:
        return 0.0
    num_characters = _num_foreign(text)
    if num_characters < MIN_CHARACTERS:
        return 0.0
    pairs = [pair for pair in _GB.findall(sample) if common.fullmatch(pair)]
    return len(pairs) / num_characters


def _num_foreign(text: str) -> int:
    return sum(character > "\x7f" for character in text)


def _is_korean(text: str) -> bool:
    return len(_HANGUL.findall(text)) >= max(MIN_KOREAN_CHARACTERS, 0.97 * _num_foreign(text))


def _is_western(raw: bytes) -> bool:
    """Whether the bytes are letters and signs of western European text."""
    text = _decoded(raw, "cp1252")
    if text is None:
        return False
    letters = sum(unicodedata.category(character)[0] in "LP" or character in "€£°§©®™" for character in text)
    return letters >= MIN_SHARE * len(text)
