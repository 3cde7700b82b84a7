"""Images that a table names, with their classes and perhaps what each is for."""

import csv
import io
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cifar_resnet.data.divided import Divided
from cifar_resnet.data.files import is_special, printable
from cifar_resnet.data.sources import ImageFiles
from cifar_resnet.errors import InputError, one_line


@dataclass
class Table(Divided):
    """The images of a CSV file in UTF-8 with the columns path, label and, if they come divided, split: train or test.

    They are in the order of the table, the classes in that of their names. `InputError` where the table or an image
    cannot be used, with the number of the line.

    Args, beside those of `Divided`:
        csv: the file; the paths in it are relative to its folder.
        resize: scale images of other sizes, centre-cropping the longer side, instead of refusing them.
    """

    csv: str
    resize: bool = True

    def _all(self) -> ImageFiles | None:
        files, splits = self._table
        return None if splits else files

    def _given(self, split: str) -> ImageFiles:
        files, splits = self._table
        rows = np.flatnonzero(np.array(splits) == split)
        if not len(rows):
            raise InputError(f"data.csv={printable(self.csv)}: no image has the split {split}: give it to some")
        return files.subset(rows)

    @cached_property
    def _table(self) -> tuple[ImageFiles, list[str]]:
        """All images, and the part that each belongs to; nothing where the table does not say."""
        shown, place = f"data.csv={printable(self.csv)}", Path(self.csv)
        rows = _read_rows(place, shown)
        files: dict[str, str] = {}
        for line, row in rows:
            if wrong := _fault(row, place.parent, files):
                raise InputError(f"{shown}, line {line}: {wrong}")
            files[os.path.normpath(row["path"])] = row["label"]
        classes, labels = np.unique(list(files.values()), return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"{shown} has {len(files)} images, {len(classes)} classes: a classifier needs two or more")
        names = tuple(map(str, classes))
        images = ImageFiles(place.parent, tuple(files), labels.astype(np.int64), names, self.resize)
        return images, [row["split"] for _, row in rows if "split" in row]


def _read_rows(file: Path, shown: str) -> list[tuple[int, dict[str, str]]]:
    """Return each row with the number of its line, values that are missing as empty texts."""
    try:
        if is_special(file):
            raise OSError("it is a pipe, a socket or a device")
        text = io.StringIO(file.read_text("utf-8-sig"), newline="")
        reader = csv.DictReader(text, restkey="", restval="", skipinitialspace=True, strict=True)
        columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        missing = [name for name in ("path", "label") if name not in columns]
        if missing:
            found = printable(", ".join(columns))[:60] or "nothing"
            raise InputError(
                f"{shown} has no column {missing[0]} but {found}: begin with a line path,label, with commas"
            )
        return [(reader.line_num, {key: str(row[key]).strip() for key in row}) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        what = "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else one_line(error)
        raise InputError(f"{shown} cannot be read as a table ({printable(what)})") from error


def _fault(row: Mapping[str, str], folder: Path, earlier: Container[str]) -> str | None:
    """Return the first thing that is wrong with a row."""
    path, label, split = printable(row["path"]), printable(row["label"]), printable(row.get("split", "train"))
    faults = {
        "more values than columns: put what has a comma in it in quotes": "" in row,
        "no path: name the image": not path,
        "no label: name the class, or leave the image out": not label,
        # figures cannot be drawn with it, which shows only after training
        f"the label {label} cannot be printed: rename the class": label != row["label"],
        f"the split {split!r} is neither train nor test": split not in ("train", "test"),
        f"{path} is in an earlier line too: name each image once": os.path.normpath(row["path"]) in earlier,
        f"{path}: no such file in {printable(folder)}": not os.path.isfile(folder / row["path"]),
    }
    return next((fault for fault, found in faults.items() if found), None)
