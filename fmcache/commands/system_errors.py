"""What a command prints when the system refuses something: a full disk, missing rights, a path that is not there."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

from fmcache.shortage import KEPT

_HINTS = {
    errno.ENOSPC: f"free disk space, or choose another folder (--work, --into); {KEPT}",
    errno.EDQUOT: f"free space within your quota, or choose another folder (--work, --into); {KEPT}",
    errno.EACCES: f"check your access rights, or choose another folder (--work, --manifest); {KEPT}",
    errno.EPERM: f"check your access rights, or choose another folder (--work, --manifest); {KEPT}",
    errno.EROFS: f"the file system is read-only: choose another folder (--work, --manifest); {KEPT}",
    errno.ENOENT: "check the path and the current folder",
    errno.ENOTDIR: "a folder in this path is a file: check the path",
    errno.EISDIR: "this is a folder, but a file is needed: check the path",
    errno.ENAMETOOLONG: "choose a shorter name or folder",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or use fewer --workers",
    errno.EFBIG: f"allow larger files (ulimit -f), or choose another folder (--work, --into); {KEPT}",
    errno.ENOMEM: f"use fewer --workers, or close other programs that use memory; {KEPT}",
    errno.EIO: "the disk or the network drive failed: try again, or copy the files elsewhere",
}
_DOING = {
    "open": "open",
    **dict.fromkeys(("read_bytes", "read_text"), "read"),
    **dict.fromkeys(("write_bytes", "write_text", "write", "fsync", "save"), "write"),
    **dict.fromkeys(("mkdir", "makedirs"), "make the folder"),
    **dict.fromkeys(("iterdir", "scandir"), "list the folder"),
    **dict.fromkeys(("replace", "rename"), "rename"),
    **dict.fromkeys(("unlink", "rmdir"), "remove"),
    **dict.fromkeys(("stat", "exists", "is_dir", "is_file"), "look at"),
}
"""Functions of the standard library, as named in a traceback, and the verb that messages use for each."""


def system_error_text(error: OSError) -> str:
    """Return a message: the failed action, its file, the system's reason, and the next step."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    doing = next((_DOING[f.name] for f in frames if f.name in _DOING and not f.filename.startswith(ours)), "")
    subject = f" {error.filename}" if error.filename else ""
    if error.filename2:
        subject += f" to {error.filename2}"
    lines = [f"the system refused{f' to {doing}' if doing else ''}{subject}: {error.strerror or error}"]
    if hint := _HINTS.get(error.errno or 0):
        lines.append(f"  next: {hint}")
    return "\n".join(lines)
