"""Where the cache is, whose files in it are believed, and how its files appear.

What the cache holds is unpickled and run, and can then do whatever this process can. So a file is
believed only if root or this very user owns it, not everybody may write it, and the same holds of
its folder: root may fill a cache for everyone, another user for nobody but himself.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from event_tensor.errors import UserError

VARIABLE = "EVENT_TENSOR_CACHE"
WITHIN_HOME = Path(".cache", "event-tensor")
FILE_MODE, FOLDER_MODE = 0o664, 0o775  # the umask takes more away
PROBE_BYTES = 4096  # a full disk may still take an empty file


def base_directory() -> Path:
    """EVENT_TENSOR_CACHE, else the home directory's cache, else one among the temporary files.

    Raises UserError where the variable begins with a home that nobody has, and where another user
    has taken this one's place among the temporary files.
    """
    if given := os.environ.get(VARIABLE):
        try:
            return Path(given).expanduser()
        except RuntimeError:
            raise UserError(f"{VARIABLE} is {given}, and there is no such home directory; give an "
                            f"absolute path") from None
    home = home_directory()
    if home is None or not can_hold(home / WITHIN_HOME):
        home = substitute_home()
    return home / WITHIN_HOME


def home_directory() -> Path | None:
    """None where the system names none, or one that does not exist."""
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None
    return home if os.path.isdir(home) else None


def can_hold(folder: Path) -> bool:
    """Whether the folder is there, perhaps to read only, or can be made."""
    return os.path.isdir(folder) or may(os.W_OK | os.X_OK, nearest(folder))


def may(mode: int, path: Path) -> bool:
    """Whether this process may read, write or search it, as os.access has these."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))


def substitute_home() -> Path:
    """A directory that serves as a home: of this user alone, among the temporary files. It is made
    where that is possible. Raises UserError where it is another's."""
    import tempfile

    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # none can be written; whoever tries to write a file says so
        temporary = "/tmp"
    path = Path(temporary, f"event-tensor-{os.geteuid()}")
    try:
        path.mkdir(mode=0o700)
    except OSError:  # it may be there
        pass
    try:
        status = path.lstat()
    except OSError:
        return path
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserError(f"{path} must be a directory that user {os.geteuid()} alone can write, and "
                        f"it is not; remove it, or set HOME to a directory of your own")
    return path


def distrust(status: os.stat_result) -> str:
    """Why a file or folder is not believed; "" where it is."""
    if status.st_uid not in (0, os.geteuid()):
        return f"user {status.st_uid} owns it; only root's files and one's own are used"
    if status.st_mode & stat.S_IWOTH:
        return "everybody may write it, so it is not used"
    return ""


def is_believed(file: Path) -> bool:
    """Whether the file exists and is one that `read_file` would read."""
    try:
        require_folder(file.parent)
        return not distrust(file.stat()) and may(os.R_OK, file)
    except OSError:
        return False


def require_folder(folder: Path) -> None:
    """Raises OSError unless it is a folder, no link to one, whose files may be believed."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if why := distrust(status):
        raise PermissionError(errno.EPERM, why, str(folder))


def read_file(path: Path) -> bytes:
    """Raises OSError, also for a file that is not believed: strerror then says why."""
    require_folder(path.parent)
    # a pipe of that name would have its opener wait
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())  # of what is open: the name may mean another file by now
        if why := distrust(status):
            raise PermissionError(errno.EPERM, why, str(path))
        return file.read()


def write_file(path: Path, content: bytes) -> None:
    """Complete or not at all, for all whom the umask lets read it. Raises OSError."""
    require_folder(path.parent)
    temporary = path.with_name(f"tmp{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """With those above it. Raises OSError."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


def write_problem(folder: Path) -> str:
    """Why nothing can be kept in a folder, whether it exists or is still to be made; "" where it
    can."""
    import tempfile

    existing = nearest(folder)
    try:
        if existing == folder:
            require_folder(folder)
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        return error.strerror or str(error)
    return ""
