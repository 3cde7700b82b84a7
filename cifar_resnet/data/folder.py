"""Images in folders: one for each class, in train/ and test/ or by themselves."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_resnet.data.divided import Divided
from cifar_resnet.data.files import SUFFIXES, first_of, is_special, printable
from cifar_resnet.data.sources import ImageFiles
from cifar_resnet.errors import InputError
from cifar_resnet.messages import say


@dataclass
class Folder(Divided):
    """The images of ``root/train/CLASS/*`` and ``root/test/CLASS/*``, or of ``root/CLASS/*``, to be divided.

    The folder names are the classes. Files that end in one of `SUFFIXES` are read, in the order of their names, as
    `cifar_resnet.data.images.read` does.

    Args, beside those of `Divided`:
        root: the folder that holds ``train`` and ``test``, of which only what is asked for need be there, or the
            folders of the classes.
        resize: scale images of other sizes, centre-cropping the longer side, instead of refusing them.

    Reading raises `InputError` if a folder is missing or empty, the classes of ``train`` and ``test`` differ where both
    are there, or an image cannot be used.
    """

    root: str
    resize: bool = True

    def _all(self) -> ImageFiles | None:
        if any(os.path.isdir(Path(self.root, split)) for split in ("train", "test")):
            return None
        return self._list([Path(self.root)], Path(self.root))

    def _given(self, split: str) -> ImageFiles:
        # Both are listed, where both are there: what is wrong with either is said before the slow part begins.
        both = Path(self.root, "train"), Path(self.root, "test")
        return self._list([path for path in both if path.name == split or os.path.isdir(path)], Path(self.root, split))

    def _list(self, folders: Sequence[Path], wanted: Path) -> ImageFiles:
        """List folders that need the same classes, and return the images of one of them."""
        try:
            found = [_classes(path) for path in folders]
            classes = found[0]
            odd = ", ".join(sorted(set(classes) ^ set(found[-1])))
            if odd:
                raise InputError(
                    f"{self.root}: train/ and test/ need the same class folders; only in one of them: {odd}"
                )
            if len(classes) < 2:
                raise InputError(f"{folders[0]} has only the class {classes[0]!r}: a classifier needs two or more")
            labelled, special = {path: _images(path, classes) for path in folders}[wanted]
        except OSError as error:
            raise InputError(f"data.root={self.root} cannot be read ({error}): check its permissions") from error
        if special:
            say(f"{first_of(special)}: a pipe, socket or device, skipped")
        files, labels = zip(*labelled, strict=True)
        names = tuple(file.relative_to(self.root).as_posix() for file in files)
        return ImageFiles(Path(self.root), names, np.array(labels, np.int64), classes, self.resize)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; data.root needs one folder a class, in train/ and test/ or by itself"
        )
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in visible:
        if not path.exists():  # a class may be missing
            raise InputError(f"{printable(path)} is a link that leads nowhere: repair or remove it")
    classes = tuple(path.name for path in visible if path.is_dir())
    if not classes:
        named = "; no class can be called train or test" if folder.name in ("train", "test") else ""
        raise InputError(f"{folder} has no class folders; put the images of each class into a folder of its own{named}")
    for name in classes:
        if not name.isprintable():  # figures cannot be drawn with it, which shows only after training
            raise InputError(f"{printable(folder / name)}: the name of a class cannot be printed: rename the folder")
    return classes


def _images(folder: Path, classes: tuple[str, ...]) -> tuple[list[tuple[Path, int]], list[Path]]:
    """Return each image file with its label, in the order of the classes and then of the names; and what is no file."""
    labelled, special = [], []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            named = {each.name: each for each in entries if Path(each).suffix.lower() in SUFFIXES}
        # The folder tells what is a plain file; the rest has to be asked one by one.
        rest = (each for each in named.values() if not each.is_file(follow_symlinks=False))
        odd = {each.name for each in rest if is_special(Path(each))}
        files = sorted(named.keys() - odd)
        if not files:
            raise InputError(f"{folder / name} has no images ({' '.join(SUFFIXES)}); add some, or remove the folder")
        labelled += [(folder / name / file, label) for file in files]
        special += [folder / name / file for file in sorted(odd)]
    return labelled, special
