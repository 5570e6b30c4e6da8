"""The folder for what is kept between commands: one user's, or a group's; nobody else may write there.

Rights are those that the umask leaves, but never more than 0775: who may write into it decides what later commands
read. What stands in it is found by name, so that files of other names are left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from glmtune.console import notice
from glmtune.errors import GlmtuneError, require

from .user_paths import user_path

FOLDER_MODE, FILE_MODE = 0o775, 0o664
"""At most."""
HAS_OWNERS = "getuid" in vars(os)
"""Whether files belong to users by number, and their modes say who may write."""
ELSEWHERE = "set `GLMTUNE_CACHE` to a folder that you can write to"


def cache_folder() -> Path:
    """Return `$GLMTUNE_CACHE`, else `glmtune` in the user's cache folder."""
    if os.environ.get("GLMTUNE_CACHE"):
        return user_path(os.environ["GLMTUNE_CACHE"])
    try:
        return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "glmtune"
    except GlmtuneError:
        raise GlmtuneError(
            "there is no folder for what is kept between commands: this user has no home folder (`HOME` is not set)",
            fix=ELSEWHERE,
        ) from None


def make_folder(folder: Path) -> Path:
    """Return a folder of the cache, which is made where it is missing.

    Raises:
        GlmtuneError: Everybody may write into it, and it is not ours to change that.
    """
    missing = [folder, *folder.parents]
    for path in reversed(missing[: next((at for at, path in enumerate(missing) if path.is_dir()), 0)]):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=FOLDER_MODE)
    close_to_others(folder)
    return folder


def private_folder(name: str) -> Path:
    """Return a folder of this user alone, for caches of other libraries that trust whatever they find.

    Raises:
        GlmtuneError: It belongs to another user, is a link, or others may write into it.
    """
    owner = f"-{os.getuid()}" if HAS_OWNERS else ""
    folder = make_folder(cache_folder()) / f"{name}{owner}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_ours = not HAS_OWNERS or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    if not stat.S_ISDIR(found.st_mode) or not is_ours:
        raise GlmtuneError(f"`{folder}` is not a folder that you alone may write to", fix=f"remove it, or {ELSEWHERE}")
    return folder


def lent_folder(name: str) -> Path:
    """Return a folder for another library's cache: in ours, or one for this process alone where that cannot be."""
    try:
        return private_folder(name)
    except (OSError, GlmtuneError) as error:
        reason = error.what if isinstance(error, GlmtuneError) else f"{error.strerror or error}"
        notice(f"nothing is kept for {name} between commands: {reason}")
    folder = tempfile.mkdtemp(prefix=f"glmtune-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def require_matplotlib() -> None:
    """Raise where matplotlib is not installed; have it keep its fonts in our cache. The user's settings stay."""
    if importlib.util.find_spec("matplotlib") is None:
        require("matplotlib", extra="report")
    if "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = str(lent_folder("matplotlib"))
        with contextlib.suppress(GlmtuneError):  # no home folder, no settings
            settings = user_path(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "matplotlib" / "matplotlibrc"
            if settings.is_file():
                os.environ.setdefault("MATPLOTLIBRC", str(settings))


def close_to_others(path: Path) -> None:
    """Take from everybody the right to write to a file or folder, which a umask of 000 gives."""
    found = path.stat()
    if not HAS_OWNERS or not found.st_mode & stat.S_IWOTH:
        return
    if found.st_uid != os.getuid() or found.st_mode & stat.S_ISVTX:  # such as /tmp, where it has to stay
        raise GlmtuneError(
            f"everybody may write to `{path}`, and what stands there is read by later commands",
            fix=f"have its owner take that right away (`chmod o-w`), or {ELSEWHERE}",
        )
    os.chmod(path, stat.S_IMODE(found.st_mode) & ~stat.S_IWOTH)


def share(folder: Path) -> None:
    """Give a folder and whatever is in it the rights that the umask leaves: some libraries write for one user alone."""
    umask = _umask()
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        most = FOLDER_MODE if stat.S_ISDIR(mode) else FILE_MODE
        os.chmod(path, most & ~umask | mode & stat.S_ISGID)


def aside(path: Path) -> Path:
    """Return a name beside a path that nobody else has, and nobody can foresee."""
    return path.with_name(f".{path.name}-{secrets.token_hex(8)}")


def write_file(path: Path, content: bytes) -> None:
    """Put a file into the cache: whole or not at all, whoever else writes it meanwhile, and through no link."""
    make_folder(path.parent)
    staged = aside(path)
    try:
        with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
            file.write(content)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove an entry of the cache that is damaged, or of no use; a link goes itself.

    Raises:
        GlmtuneError: It is another user's.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        going = aside(path)
        path.rename(going)  # at once: others see all of it or nothing
        shutil.rmtree(going, ignore_errors=True)
    except OSError as error:
        raise GlmtuneError(
            f"`{path}` is damaged, and cannot be removed: {error.strerror or error}",
            fix=f"have its owner remove it, or {ELSEWHERE}",
        ) from None


def lock_mode() -> int:
    """Return the mode of a lock that the group may use, as the umask allows."""
    return FILE_MODE & ~_umask()


def _umask() -> int:
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    return umask
