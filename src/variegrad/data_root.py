"""Where data files are looked for, and the message if they are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "VARIEGRAD_DATA"
FETCHED = ("mnist", "fashion-mnist", "cifar10", "a9a")  # what variegrad.problems.fetch knows


class DataNotFound(FileNotFoundError):  # noqa: N818 - it says what happened
    """Data files are missing; the message says where they were looked for and the ways to get them."""


SPARSE = {  # names that the file of a sparse problem may have, before how it is packed
    "a9a": ("a9a.svm", "a9a", "a9a.txt", "a9a.libsvm"),
    "news20": ("news20.svm", "news20", "news20.scale", "news20_tfidf.svm"),
}


def root_folder(given: str | Path | None = None) -> Path:
    """The folder that data files are looked for in.

    Args:
        given: the folder, if the caller names one.

    Returns:
        That folder, else the one named by the environment variable VARIEGRAD_DATA, or ~/.cache/variegrad.
    """
    return Path(given or os.environ.get(VARIABLE) or "~/.cache/variegrad").expanduser()


def find(problem: str, root: Path, folders: Sequence[str], files: Sequence[Sequence[str]]) -> list[Path]:
    """The files of a problem, all in the first folder below `root` that holds every one of them.

    Args:
        problem: its name, for the message.
        root: the data root.
        folders: places below it, best first; "" is the root itself.
        files: for each file wanted, the names that it may have, best first.

    Returns:
        One path for each file wanted.

    Raises:
        DataNotFound: if no folder holds them all.
    """
    missing: dict[Path, list[str]] = {}
    for folder in (root / name for name in folders):
        found = [next((folder / name for name in names if (folder / name).is_file()), None) for names in files]
        paths = [path for path in found if path is not None]
        if len(paths) == len(files):
            return paths
        if paths:
            missing[folder] = [names[0] for names, path in zip(files, found, strict=True) if path is None]
    raise DataNotFound(_advice(problem, root, folders, files, missing))


def find_sparse(name: str, root: Path) -> Path:
    """The training file of a built-in sparse problem, in LIBSVM's format.

    Args:
        name: "a9a" (32,561 people of the Adult census data, 123 binary features) or "news20" (20 Newsgroups, words).
        root: the data root; `sparse`, the name, `libsvm` in it and the root itself are searched.

    Returns:
        Its path.

    Raises:
        DataNotFound: if it is not there.

    Source: Platt 1998, from the UCI Adult data; Lang 1995; LIBSVM's collection.
    """
    names = [stem + packed for stem in SPARSE[name] for packed in (".gz", "", ".bz2", ".xz", ".zst", ".zip")]
    return find(name, root, ["sparse", name, "libsvm", ""], [names])[0]


def find_file(name: str, root: Path) -> Path:
    """A data file by the path that was typed, here or below the data root.

    Args:
        name: as typed.
        root: the data root.

    Returns:
        Its path.

    Raises:
        DataNotFound: if there is none; the message says how to get it if it is known how.
        ValueError: if it is a folder.
    """
    path = next((path for path in (Path(name).expanduser(), root / name) if path.exists()), None)
    if path is None:
        known = next((data for data in FETCHED if Path(name).name.startswith(data)), None)
        hint = f" To download it: {_fetching(known, root)}" if known else ""
        raise DataNotFound(f"{name}: no such file, neither here ({Path.cwd()}) nor in the data root {root}.{hint}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass a file in it, such as a LIBSVM file.")
    check_regular(path)
    return path


def check_regular(path: Path) -> None:
    """Refuse a pipe, socket or device, which would be waited for or never end.

    Args:
        path: of a file or folder; nothing at it passes.

    Raises:
        ValueError: if it is none of these.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: is a pipe or device, not a regular file.")


def _fetching(problem: str, root: Path) -> str:
    return f'python -c "from variegrad.problems import fetch; fetch({problem!r}, {str(root)!r})"'


def _advice(
    problem: str, root: Path, folders: Sequence[str], files: Sequence[Sequence[str]], missing: dict[Path, list[str]]
) -> str:
    wanted = ", ".join(names[0] for names in files)
    below = ", ".join(name for name in folders if name)
    partly = "".join(f" {folder} lacks {', '.join(names)}." for folder, names in missing.items())
    absent = "" if root.is_dir() else f" {root} is not a folder."
    download = f", or download them: {_fetching(problem, root)}" if problem in FETCHED else "."
    return (
        f"{problem} needs the files {wanted}. Looked in {root}{f' and below it in {below}' if below else ''}.{absent}"
        f"{partly} Pass the folder that contains them as --data-root DIR (data_root=DIR in Python) or set "
        f"{VARIABLE}=DIR{download}"
    )
