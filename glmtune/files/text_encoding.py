"""Text that is to be UTF-8: what else it most likely is where it is not, and the command that mends it."""

from __future__ import annotations

import codecs
import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from glmtune.errors import GlmtuneError

from .file_kinds import refuse_irregular

MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""First bytes of text in other encodings, the longer ones first."""
MIN_CHARACTERS = 3
"""Of two bytes each; below, the guess would be as good as any other."""
MIN_CERTAIN_CHARACTERS = 100
"""Letters: so many leave no doubt."""
MIN_TYPICAL_SHARE = 0.12
"""Of the letters, by `TYPICAL`: ten rows of Chinese instructions or advertising had 0.18 and more, of keywords 0.04."""
MAX_DAMAGED_SHARE = 0.02
"""Of the lines of a file that is judged by the others."""
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
CODECS = {"GB18030": "gb18030", "BIG5": "big5hkscs", "CP932": "cp932", "CP949": "cp949"}
"""Python's names of those in which most bytes are no text, so that they can be told."""

TYPICAL = {
    "GB18030": (
        "gb18030",
        "的一是不了在人有我他这个们来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然"
        "家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实请问吗呢吧您款件",
    ),
    "BIG5": (
        "big5hkscs",
        "的一是不了在人有我他這個們來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然"
        "家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實請問嗎呢吧您款件",
    ),
    "CP932": ("cp932", "のにはをたがでとしてるなもいかられあこまだすさんっうくきよりどせけねおつそわえめちやばみ"),
    "EUC-JP": ("euc_jp", "のにはをたがでとしてるなもいかられあこまだすさんっうくきよりどせけねおつそわえめちやばみ"),
    "CP949": (
        "cp949",
        "이다는을가에의한로고하도기지사나리자어서를인그시대스라해일보부아습니요있주니으게수여정전제면오세만",
    ),
}
"""By encoding: Python's name of it, and the characters that texts in it are full of. EUC-JP is no key of `ENCODINGS`:
it is here so that nothing else takes its bytes for text of its own."""

LARGEST_BYTES = 64 << 20
"""Of a file that is read as a whole and holds settings, or the descriptions of tools."""


def read_utf8(path: Path, at_most: int = LARGEST_BYTES) -> str:
    """Return the text of a file, without a byte order mark; raises an error that names the encoding it seems to be.

    `OSError` passes: what a missing file means, the caller knows.

    Args:
        path: Of a file; what is no file, such as a pipe, is an error.
        at_most: Bytes that it may have.
    """
    refuse_irregular(path, "write its text to a file first, and name that")
    with path.open("rb") as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise GlmtuneError(f"the file is larger than {at_most >> 20} MiB", where=str(path), fix="give the right file")
    try:
        return _with_plain_newlines(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what, encoding = seeming(content)
        raise GlmtuneError(
            f"the file is not UTF-8{what}",
            where=f"{path}:{line}",
            fix=f"save it as UTF-8, such as by `{utf8_command(path, encoding)}`",
        ) from None


def seeming(content: bytes) -> tuple[str, str]:
    """Return what to add to "is not UTF-8", and the name that `iconv` has for the encoding, or that stands for it."""
    encoding = marked_encoding(content) or guess_encoding(content)
    if encoding is None:
        return "", "ENCODING"
    return f": it seems to be {'GBK' if encoding == 'GB18030' else encoding}", encoding


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding that the first bytes of a text tell; None where they tell none."""
    marked = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)
    # Without a mark in front every other byte of a Latin character, such as `{` and `"`, is 0.
    if marked is None and len(head) > 3:
        if head[1] == head[3] == 0 and head[0] and head[2]:
            return "UTF-16LE"
        if head[0] == head[2] == 0 and head[1] and head[3]:
            return "UTF-16BE"
    return marked


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
    if _share(sample, "gb18030", _GB_COMMON, min_characters=1) == 1:
        return "GB18030"  # a word or two: bytes of other languages hardly ever fall into the common characters alone
    num_single = sum(len(run) == 1 for run in runs)
    return "CP1252" if num_single >= 0.7 * len(runs) and _is_western(b"".join(runs)) else None


def certain_encoding(sample: bytes) -> str | None:
    """Return what bytes that are not UTF-8 can only be; None where there is any doubt.

    Most bytes are text in several encodings, one of them nonsense. What tells them apart is how often the characters
    stand there that every text of a language is full of: the encoding must have many of its own language's, and no
    other a fourth as many. So are a file that was joined from two encodings, and one of a few words, in doubt.
    """
    lines = [line for line in sample.split(b"\n")[:-1] or [sample] if not line.isascii()]
    if not lines or sum(map(is_utf8, lines)) > MAX_DAMAGED_SHARE * len(lines):
        return None
    shares = {name: _typical_share(lines, name) for name in TYPICAL}
    best, rival = sorted(shares, key=lambda name: -shares[name])[:2]
    is_clear = shares[best] >= MIN_TYPICAL_SHARE and shares[rival] <= shares[best] / 4
    return best if is_clear and best in CODECS else None


def _typical_share(lines: Sequence[bytes], encoding: str) -> float:
    """Return which share of the letters are typical of the language that is written so; 0 where the lines are no text.

    A few lines that are damaged say nothing about the others.
    """
    codec, typical = TYPICAL[encoding]
    texts = [text for text in (_decoded(line, codec) for line in lines) if text is not None]
    if len(texts) < (1 - MAX_DAMAGED_SHARE) * len(lines):
        return 0.0
    letters = [letter for text in texts for letter in text if letter > "\x7f" and letter.isalpha()]
    if len(letters) < MIN_CERTAIN_CHARACTERS:
        return 0.0
    return sum(letter in typical for letter in letters) / len(letters)


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


def _share(sample: bytes, codec: str, common: re.Pattern[bytes], *, min_characters: int = MIN_CHARACTERS) -> float:
    """Return which share of the characters are common in an encoding; 0 where the sample is not in it."""
    text = _decoded(sample, codec)
    if text is None:
        return 0.0
    num_characters = _num_foreign(text)
    if num_characters < min_characters:
        return 0.0
    pairs = [pair for pair in _GB.findall(sample) if common.fullmatch(pair)]
    return len(pairs) / num_characters


def is_utf8(raw: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def _with_plain_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
