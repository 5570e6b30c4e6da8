"""For mkdocs: the words of the search come from jieba's dictionary, read without a word and without a file behind.

jieba says on stderr that it reads, and keeps what it read in the folder for temporary files, from where it would also
take what somebody else has put there.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import jieba


def on_startup(**_: Any) -> None:
    """Read the dictionary before material's search asks for it."""
    jieba.setLogLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        jieba.dt.tmp_dir = folder
        jieba.initialize()
