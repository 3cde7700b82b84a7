"""Which files a name or a pattern means, and how a file is named in a line."""

import errno
import fnmatch
import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_resnet.errors import InputError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of images in a folder, in any case
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Found:
    """What a pattern matches, each kind in the order of its names, and in ``errors`` what could not be searched."""

    files: list[Path]
    folders: list[Path]
    special: list[Path]
    errors: list[InputError]


def find(pattern: str) -> Found:
    """Return what a name or a glob (``**`` goes into folders) matches; `InputError` where that is no file.

    A folder means the images in it and below it: the files whose names end as those of images do.
    """
    path, shown = Path(pattern), printable(pattern)
    if os.path.isdir(path):
        matches, errors = _expand(path / "**")
        matches = [match for match in matches if match.suffix.lower() in SUFFIXES and not os.path.isdir(match)]
        if not matches and not errors:
            raise InputError(f"images={shown}: no image is in that folder or below it ({' '.join(SUFFIXES)})")
    else:
        matches, errors = ([path], []) if os.path.isfile(path) else _expand(path)
    folders = [match for match in matches if os.path.isdir(match)]
    special = [match for match in matches if is_special(match)]
    files = sorted({*matches}.difference(folders, special))
    if files:
        return Found(files, folders, special, errors)
    hint = "give a file or a quoted pattern such as 'photos/*.jpg'"
    raise errors[0] if errors else InputError(f"images={shown}: no file matches; {hint}")


def _expand(pattern: Path) -> tuple[list[Path], list[InputError]]:
    """Return what a glob matches, and an error for each folder below which it could not look.

    The standard library's passes over these in silence, and follows links in circles. Here ``**`` follows none.
    """
    found, errors = set[Path](), dict[Path, InputError]()
    pending = [(Path(pattern.anchor), pattern.parts[bool(pattern.anchor) :])]
    while pending:  # and no recursion: folders may be deeper than Python's stack
        place, parts = pending.pop()
        if not parts:
            found.add(place)
            continue
        try:
            if parts[0] != "**":
                pending += [(place / name, parts[1:]) for name in _names(place, parts[0])]
                continue
            pending.append((place, parts[1:] or ("*",)))
            folders = [place / name for name in _names(place, "*") if os.path.isdir(place / name)]
        except OSError as error:
            if error.errno not in NOT_THERE:
                errors[place] = InputError(f"{printable(place)} cannot be searched ({error.strerror})")
            continue
        links = [folder for folder in folders if folder.is_symlink()]
        errors |= {link: InputError(f"{printable(link)} is a link to a folder, and ** follows none") for link in links}
        pending += [(folder, parts) for folder in folders if folder not in errors]
    return sorted(found), [errors[place] for place in sorted(errors)]


def _names(folder: Path, wanted: str) -> list[str]:
    """Return the names in a folder that a part of a glob matches; hidden ones only where it begins with a dot too."""
    if glob.escape(wanted) == wanted:
        os.lstat(folder / wanted)
        return [wanted]
    names = fnmatch.filter(os.listdir(folder), wanted)
    return [name for name in names if wanted.startswith(".") or not name.startswith(".")]


def is_special(path: Path) -> bool:
    """Say whether this is a pipe, a socket or a device, of which reading may wait for ever or find no end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # reading it says why
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def printable(name: Path | str) -> str:
    """Return a file's name for one line of a terminal: control and undecodable characters as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(name))


def first_of(files: Sequence[Path]) -> str:
    """Name the first of some files, and say how many more there are."""
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return f"{printable(files[0])}{more}"
