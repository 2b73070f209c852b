"""Removing what a program left, however deep: `shutil.rmtree` ends in a RecursionError at some thousand folders."""

from __future__ import annotations

import os

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_tree(path: str) -> None:
    """Removes a folder with all that is in it; nothing if it is not there. What made it must have ended.

    One folder is open at a time, and the way back is its `..`: no depth is too great, no path too long, and no link is
    followed.

    Raises:
        OSError: something in it could not be removed.
    """
    try:
        here = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    try:
        folders = [_emptied_of_files(here)]
        """The folders that are left, in every folder from the outermost one to `here`."""
        while True:
            if folders[-1]:
                inner = folders[-1][-1]
                os.chmod(inner, 0o700, dir_fd=here)  # a program may have made folders that it cannot enter itself
                here = _moved(here, inner)
                folders.append(_emptied_of_files(here))
                continue
            folders.pop()
            if not folders:
                break
            here = _moved(here, "..")
            os.rmdir(folders[-1].pop(), dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(path)


def _moved(here: int, name: str) -> int:
    """The folder of that name, in place of the one that was open."""
    there = os.open(name, _FOLDER, dir_fd=here)
    os.close(here)
    return there


def _emptied_of_files(folder: int) -> list[str]:
    """Removes the folder's files and links; gives the names of the folders in it."""
    with os.scandir(folder) as entries:
        is_folder = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    for name in is_folder:
        if not is_folder[name]:
            os.unlink(name, dir_fd=folder)
    return [name for name in is_folder if is_folder[name]]
