"""Files that are not the text their name promises: what their first bytes say they are, and what to do with them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from glmtune.errors import GlmtuneError
from glmtune.files.text_encoding import marked_encoding, utf8_command

HEAD_BYTES = 512
"""So much of a file tells what it is: a tar archive says so at byte 257."""

ZIP, OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
AS_TABLE = "open it and save the table as CSV (UTF-8)"
UNPACK = "unpack it, and name the file of rows that it holds"
TO_ROWS = "write what it holds as JSON, one row a line"
NO_ROWS = "give a file of rows in its place"
WHOLE_PAGE = "download the file itself, not the page that shows it; a login may be needed"

FOREIGN_FILES: dict[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("compressed with gzip", "give it a name that ends with `.gz`"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "give it a name that ends with `.zst`"),
    b"\xfd7zXZ\0": ("compressed with xz", "unpack it with `xz -d`"),
    b"BZh": ("compressed with bzip2", "unpack it with `bzip2 -d`"),
    b"\x04\x22\x4d\x18": ("compressed with LZ4", "unpack it with `lz4 -d`"),
    b"PAR1": ("a parquet file", "give it a name that ends with `.parquet`"),
    b"ARROW1\0\0": ("an Arrow file", "give it a name that ends with `.arrow`"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "give it a name that ends with `.arrow`"),
    b"FEA1": ("a Feather file of the first version", TO_ROWS),
    ZIP: ("a ZIP archive or an Excel file", "unpack it, or save the table as `.csv`"),
    b"PK\x05\x06": ("an empty ZIP archive", NO_ROWS),
    OLE: ("an Excel or Word file of the old kind", AS_TABLE),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", UNPACK),
    b"\x80\x02": ("a pickle of Python, which could run code", TO_ROWS),
    b"\x80\x03": ("a pickle of Python, which could run code", TO_ROWS),
    b"\x80\x04": ("a pickle of Python, which could run code", TO_ROWS),
    b"\x80\x05": ("a pickle of Python, which could run code", TO_ROWS),
    b"\x93NUMPY": ("an array of NumPy", TO_ROWS),
    b"\x89HDF\r\n": ("an HDF5 file", TO_ROWS),
    b"SQLite format 3\0": ("a SQLite database", TO_ROWS),
    b"Obj\x01": ("an Avro file", TO_ROWS),
    b"%PDF-": ("a PDF document", NO_ROWS),
    b"{\\rtf": ("an RTF document", NO_ROWS),
    b"GGUF": ("weights of a model (GGUF)", NO_ROWS),
    b"\x89PNG\r\n": ("a picture (PNG)", NO_ROWS),
    b"\xff\xd8\xff": ("a picture (JPEG)", NO_ROWS),
    b"GIF8": ("a picture (GIF)", NO_ROWS),
    b"RIFF": ("a picture or a sound (RIFF)", NO_ROWS),
    b"\x7fELF": ("a program", NO_ROWS),
    b"version https://git-lfs.github.com/spec/": (
        "a pointer of git-lfs; the rows were not downloaded",
        "run `git lfs pull` in the repository, or download the file itself",
    ),
}
"""First bytes: what such a file is, and what to do."""

MARKUP = {b"<!doctype html": "a web page (HTML)", b"<html": "a web page (HTML)", b"<?xml": "XML"}
IN_ARCHIVES = {
    "xl/": ("an Excel file", AS_TABLE),
    "word/": ("a Word document", NO_ROWS),
    "ppt/": ("a PowerPoint file", NO_ROWS),
}
BY_SUFFIX = {
    ".xlsx": IN_ARCHIVES["xl/"],
    ".xlsm": IN_ARCHIVES["xl/"],
    ".docx": IN_ARCHIVES["word/"],
    ".xls": ("an Excel file of the old kind", AS_TABLE),
    ".doc": ("a Word document of the old kind", NO_ROWS),
}


def refuse_foreign(head: bytes, path: Path, expected: str = "UTF-8 text") -> None:
    """Raise where the first bytes of a file are not those of what was expected, but of something that is known."""
    encoding = marked_encoding(head)
    if encoding:
        what = f"{encoding.removesuffix('LE').removesuffix('BE')} text"
        found: tuple[str, str] | None = what, f"save it as UTF-8: `{utf8_command(path, encoding)}`"
    else:
        found = _kind(head, path)
    if found:
        raise GlmtuneError(f"the file is {found[0]}; expected {expected}", where=str(path), fix=found[1])


def _kind(head: bytes, path: Path) -> tuple[str, str] | None:
    """Return what a file is and what to do with it; None where it may be text."""
    first_bytes = next(filter(head.startswith, FOREIGN_FILES), None)
    if first_bytes in (ZIP, OLE):
        return _office_file(path) or FOREIGN_FILES[first_bytes]
    if first_bytes is not None:
        return FOREIGN_FILES[first_bytes]
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next(((kind, WHOLE_PAGE) for markup, kind in MARKUP.items() if begin.startswith(markup)), None)


def _office_file(path: Path) -> tuple[str, str] | None:
    """Return what an archive is by what it holds, else by its name; None where neither tells."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):  # one that is cut off, or of the old kind
        return BY_SUFFIX.get(path.suffix.lower())
    folders = {f"{name.split('/')[0]}/" for name in names if "/" in name}
    found = next((kind for folder, kind in IN_ARCHIVES.items() if folder in folders), None)
    if found is None and any(name.endswith("/data.pkl") for name in names):
        return "a file of PyTorch's `torch.save`, which could run code", TO_ROWS
    if found is None and names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy", TO_ROWS
    return found or BY_SUFFIX.get(path.suffix.lower()) or ("a ZIP archive", UNPACK)
