"""Folders of training pictures with captions, as the tools of the ecosystem lay them out.

What a picture's caption is, in this order: its entry in a metadata file of its folder or of one around it (`METADATA`),
the text file beside it (`x.txt`, `x.caption`: kohya and others), the words of its folder's name (`10_a photo of a cat`,
kohya; the number says how often a picture comes in one round, 0 never), or the empty text. A text file's ending is
found in any case, as a picture's is.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import TrainingError
from ..images import FORMATS
from .examples import (
    CAPTIONS,
    MAX_BYTES,
    MAX_CAPTION,
    OTHER_SUFFIXES,
    SUFFIXES,
    Duplicates,
    Example,
    Look,
    Remembered,
    Scan,
    decoded,
    fault_of,
    in_threads,
    is_text,
    look,
    stamp_of,
)

MAX_METADATA = 1 << 30  # bytes of a file that has a line for each picture
MAX_OBJECT = 1 << 26  # of one that is a single value, which has to be in memory whole: some 300,000 captions
MAX_LINE = 1 << 20  # characters
WORDS = ("text", "caption", "prompt")  # what tools call a caption
_REPEATS = re.compile(r"(\d{1,4})_(.*)")


def scan(folder: str | Path, remembered: Remembered | None = None) -> Scan:
    """Look at every picture of a folder and of the folders in it, in the order of their names.

    Left out, with the reason: files that are no picture of `images.FORMATS` or are broken, pictures with a side under
    16 pixels or more than 67 million pixels, copies of a picture that came before (by content), captions over 32,000
    characters, pictures of a folder `0_name` (kohya's: never), names in the metadata without a picture. Links that lead
    out of the folder are not followed; a caption that is one stops everything.
    Raises TrainingError where there is no folder, no picture to learn from, or a caption that can't be read.
    """
    root = Path(folder)
    if not (str(folder) and os.path.isdir(root)):  # unlike Path.is_dir it takes any name
        what = "is a file" if os.path.isfile(root) else "is no folder"
        raise TrainingError(f"{str(folder)[:200]!r} {what}; give a folder of pictures and their captions")
    remembered = remembered or Remembered(None)
    try:
        files = list(_files(root))
    except OSError as error:
        raise TrainingError(f"{str(error.filename)[:200]!r} can't be read ({error.strerror})") from error
    tables, texts = _Tables(root), _Texts(root)
    examples: list[Example] = []
    left_out: list[tuple[Path, str]] = []
    copies = Duplicates()
    for path, found in zip(files, _looks(root, files, remembered), strict=True):
        named = tables.caption(path)
        if isinstance(found, str):
            left_out.append((path, found))
            continue
        width, height, digest, frames = found
        repeats, words = _folder_words(path.parent) if path.parent != root else (1, "")
        caption = named if named is not None else texts.beside(path)
        caption = words if caption is None else caption
        never = None if repeats else "its folder's name says 0 times"
        why = never or copies.of(digest, str(path.relative_to(root))) or fault_of(caption)
        if why is not None:
            left_out.append((path, why))
        else:
            examples.append(Example(path, caption, width, height, repeats, digest, frames=frames))
    left_out += tables.not_there()
    if not examples:
        why = f"; {left_out[0][0].name}: {left_out[0][1]}" if left_out else ""
        raise TrainingError(f"{str(root)[:200]!r} holds no picture to learn from ({', '.join(FORMATS)}){why}")
    return Scan(tuple(examples), tuple(left_out))


def _files(root: Path) -> Iterator[Path]:
    """All that is named like a picture under `root`, hidden files and folders left out, in the order of their names."""

    def fail(error: OSError) -> None:
        raise error

    for name, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and file.lower().endswith(SUFFIXES + OTHER_SUFFIXES):
                yield Path(name) / file


def _looks(root: Path, files: Sequence[Path], remembered: Remembered) -> Iterator[Look]:
    """What there is to say of each file, what is known from before included."""

    def one(path: Path) -> tuple[str, Look | None, Look]:
        """The file's stamp, what is remembered of it, and what it is."""
        try:
            if _leads_out(path, root):
                return "", None, "a link that leads out of the folder"
            if not path.is_file():  # a pipe would be waited for
                return "", None, "is no file"
            stamp = stamp_of(path)
            if (known := remembered.find(str(path.absolute()), stamp)) is not None:
                found: Look = known if isinstance(known, str) else (known[0], known[1], known[2], known[3])
                return stamp, found, found
            if not is_text(str(path)):
                return "", None, "its name is not UTF-8; rename it"
            if path.suffix.lower() in OTHER_SUFFIXES:
                return stamp, None, f"is none of {', '.join(FORMATS)}; convert it"
            size = path.stat().st_size
            return stamp, None, look(path.read_bytes()) if size <= MAX_BYTES else f"{size:,} bytes are too many"
        except OSError as error:
            return "", None, f"can't be read ({error.strerror or type(error).__name__})"

    for path, (stamp, known, found) in zip(files, in_threads(one, files), strict=True):
        if known is None and stamp:
            remembered.keep(str(path.absolute()), stamp, found)
        yield found
    remembered.save()


def _leads_out(path: Path, root: Path) -> bool:
    """Whether a file of a folder is a link to something outside of it. (Links to folders are not walked into.)"""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _is_there(file: Path, root: Path) -> bool:
    """Whether a folder has such a file of texts. Raises TrainingError where it is a link that leads out of it."""
    if _leads_out(file, root):
        raise TrainingError(f"{str(file)[:200]!r} is a link that leads out of the folder; put the text itself there")
    return file.is_file()


class _Texts:
    """The text files beside pictures, whatever the case of their endings; the usual spelling first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[Path, dict[str, str]] = {}

    def beside(self, path: Path) -> str | None:
        """A picture's caption, None if there is none. Raises TrainingError."""
        names = self._names(path.parent)
        for suffix in CAPTIONS:
            name = names.get(path.stem + suffix)
            if name is not None and _is_there(path.with_name(name), self.root):
                return _text(path.with_name(name), 4 * MAX_CAPTION + 4).strip()
        return None

    def _names(self, folder: Path) -> Mapping[str, str]:
        """A text file's name with its ending in small letters -> as it is."""
        if folder not in self._folders:
            found: dict[str, str] = {}
            try:
                names = sorted(os.listdir(folder))
            except OSError as error:
                raise TrainingError(f"{str(folder)[:200]!r} can't be read ({error.strerror})") from error
            for name in names:
                stem, ending = os.path.splitext(name)
                if (usual := ending.lower()) in CAPTIONS:
                    found[stem + usual] = name if ending == usual else found.get(stem + usual, name)
            self._folders[folder] = found
        return self._folders[folder]


def _text(file: Path, most: int) -> str:
    """The text of a file, no more than about `most` bytes of it. Raises TrainingError."""
    try:
        with file.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise TrainingError(f"{str(file)[:200]!r} can't be read ({error.strerror})") from error
    if len(data) > most:  # too long whatever it says; its last character may be cut
        return data.decode("utf-8-sig", "replace")
    return decoded(data, str(file))


def _table(file: Path, most: int) -> str:
    """The text of a metadata file. Raises TrainingError where it can't be read, or has more than `most` bytes."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise TrainingError(f"{str(file)[:200]!r} can't be read ({error.strerror})") from error
    if size > most:
        other = "; use metadata.jsonl, which has a line for each picture" if most == MAX_OBJECT else ""
        raise TrainingError(f"{str(file)[:200]!r} has {size:,} bytes, and at most {most:,} are read{other}")
    return _text(file, most)


class _Tables:
    """The metadata files of a folder and of the folders in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tables: dict[Path, _Table] = {}

    def caption(self, path: Path) -> str | None:
        """What the nearest metadata file says of a picture; None if it says nothing."""
        place = path.parent
        while True:
            if place not in self._tables:
                self._tables[place] = _Table.of(place, self.root)
            caption = self._tables[place].take(path.relative_to(place))
            if caption is not None or place == self.root:
                return caption
            place = place.parent

    def not_there(self) -> list[tuple[Path, str]]:
        """The pictures that metadata files name and that were not asked for."""
        found = []
        for place, table in self._tables.items():
            for name in table.untaken():
                why = "leads out of the folder" if _outside(name) else "is not there"
                found.append((place / name[:200], f"is named in {table.file}, and {why}"))
        return found


@dataclass(slots=True)
class _Table:
    """A folder's metadata file: the names of pictures, relative to it, and their captions."""

    file: str
    captions: Mapping[str, str]
    taken: set[str]

    @classmethod
    def of(cls, place: Path, root: Path) -> _Table:
        """The first of `METADATA` that a folder has; an empty one where it has none."""
        for name, read in METADATA.items():
            file = place / name
            if _is_there(file, root):
                return cls(name, read(file), set())
        if (place / "metadata.parquet").is_file():
            raise TrainingError(f"{str(place / 'metadata.parquet')[:200]!r} is not read; save it as metadata.jsonl")
        return cls("", {}, set())

    def take(self, relative: Path) -> str | None:
        """The caption of a picture, under its name with or without the ending."""
        for key in (relative.as_posix(), relative.with_suffix("").as_posix()):
            if key in self.captions:
                self.taken.add(key)
                return self.captions[key]
        return None

    def untaken(self) -> list[str]:
        return [name for name in self.captions if name not in self.taken]


def _outside(name: str) -> bool:
    return name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts or "\0" in name or len(name) > 4096


def _lines(file: Path) -> Mapping[str, str]:
    """`metadata.jsonl` of Hugging Face's imagefolder: {"file_name": ..., "text": ...} in each line."""
    captions: dict[str, str] = {}
    for number, line in enumerate(_table(file, MAX_METADATA).split("\n"), 1):
        if len(line) > MAX_LINE:
            raise TrainingError(
                f"line {number} of {str(file)[:200]!r} has {len(line):,} characters; at most {MAX_LINE:,} are read"
            )
        if line.strip():
            try:
                row = json.loads(line)
                name = row["file_name"]
                text = next((row[word] for word in WORDS if word in row), None)
                if not isinstance(name, str) or not isinstance(text, str | None):
                    raise TypeError
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise TrainingError(
                    f'line {number} of {str(file)[:200]!r} is not {{"file_name": ..., "text": ...}}; correct it'
                ) from None
            if text is not None:
                _add(captions, name, text, f"line {number} of {str(file)[:200]!r}")
    return captions


def _add(captions: dict[str, str], name: str, text: str, where: str) -> None:
    """Note a picture's caption. Raises TrainingError where it has another one already: one would be lost."""
    if captions.setdefault(_plain(name), text) != text:
        raise TrainingError(f"{where} names {name[:200]!r} again, with another text; put them into one")


def _columns(file: Path) -> Mapping[str, str]:
    """`metadata.csv` of Hugging Face's imagefolder: a column file_name and a column text."""
    captions: dict[str, str] = {}
    try:
        rows = csv.DictReader(io.StringIO(_table(file, MAX_METADATA), newline=""), strict=True)
        column = next((word for word in WORDS if word in (rows.fieldnames or ())), None)
        if "file_name" not in (rows.fieldnames or ()) or column is None:
            raise TrainingError(
                f"{str(file)[:200]!r} needs a first line with file_name and text; it has "
                f"{', '.join(rows.fieldnames or ())[:200]!r}"
            )
        for row in rows:
            name, text = row["file_name"], row[column]
            where = f"line {rows.line_num} of {str(file)[:200]!r}"
            if name is None or text is None:
                raise TrainingError(f"{where} has too few columns; correct it")
            if None in row:  # a comma in a caption would cut it
                raise TrainingError(f"{where} has too many columns; put a text with commas between quotes")
            _add(captions, name, text, where)
    except csv.Error as error:
        raise TrainingError(f"{str(file)[:200]!r} is no CSV ({error}); correct it, or use metadata.jsonl") from error
    return captions


def _entries(file: Path) -> Mapping[str, str]:
    """kohya's metadata: {"name": {"caption": ..., "tags": ...}}, names with or without their ending, full or relative.

    Tags follow the caption after a comma, as kohya's tools have it.
    """
    try:
        found = json.loads(_table(file, MAX_OBJECT))
        captions: dict[str, str] = {}
        for key, row in found.items():
            texts = [row[word] for word in ("caption", "tags") if row.get(word)]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
            name = Path(key)
            if name.is_absolute() and name.is_relative_to(file.parent.absolute()):
                key = name.relative_to(file.parent.absolute()).as_posix()
            if texts:
                captions[_plain(key)] = ", ".join(texts)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise TrainingError(
            f'{str(file)[:200]!r} is not {{"picture": {{"caption": ..., "tags": ...}}}}, kohya\'s metadata; correct it'
        ) from None
    return captions


# The files that are read for captions, the first that a folder has.
METADATA: Mapping[str, Callable[[Path], Mapping[str, str]]] = {
    "metadata.jsonl": _lines,
    "metadata.csv": _columns,
    "metadata.json": _entries,
    "meta_lat.json": _entries,
    "meta_cap.json": _entries,
    "meta_clean.json": _entries,
}


def _plain(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def _folder_words(folder: Path) -> tuple[int, str]:
    """kohya's folder names: "10_a cat" says ten times, and "a cat" where a picture has no caption of its own."""
    match = _REPEATS.fullmatch(folder.name)
    return (int(match[1]), match[2]) if match else (1, "")
