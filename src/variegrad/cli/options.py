"""What all commands share: options that are checked before any work, and errors that name the option as it was typed.

An option's number is checked while the command line is read. A folder to write into is tried out at once (a file is
made in it and removed), because a report that cannot be written should be known before the run, not after it.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from variegrad.data_root import check_regular

if TYPE_CHECKING:
    from variegrad import problems

Number = int | float
NOT_A_NUMBER = {
    "valid integer": "must be a whole number.",  # as the various versions of typer have it
    "valid number": "must be a number.",
    "valid float": "must be a number.",
}
LARGEST_SEED = 2**63 - 1  # what torch's generators take


class Command(TyperCommand):
    """A command that says which of two values is used, and refuses an empty value or an option in place of a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Args:
            ctx: of the command.
            args: as typed.

        Returns:
            What is left of them.

        Raises:
            typer.BadParameter: if an option has no value of its own.
        """
        given: Any
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        param: Any
        notices: list[str] = []
        for param, times in Counter(order).items():
            if getattr(param, "is_flag", False):
                continue
            found = given.get(param.name)
            values = found if isinstance(found, list | tuple) else [found]
            if times > len(values):  # the last is used, as in every shell script that adds to "$@"; but not in silence
                notices.append(f"variegrad: {param.opts[0]} is given {times} times; the last, {found}, is used\n")
            for value in values:
                if "\0" in str(value):
                    raise typer.BadParameter("must not contain a zero byte.", ctx=ctx, param=param)
                if value == "":
                    raise typer.BadParameter("must not be empty.", ctx=ctx, param=param)
                if str(value).startswith("--"):
                    raise typer.BadParameter(f"needs a value; the next option, {value}, follows.", ctx=ctx, param=param)
        try:
            left: list[str] = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            param = error.param
            typed = None if param is None else given.get(param.name)
            for part, rule in NOT_A_NUMBER.items():
                if part in error.message:
                    error.message = rule
            if isinstance(typed, str) and typed not in error.message and "; got " not in error.message:
                error.message = f"{error.message.rstrip('.')}; got {typed!r}."
            raise
        sys.stderr.write("".join(notices))
        return left

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C while its modules load leaves one line.

        Args:
            ctx: of the command.

        Returns:
            What the command returns.

        Raises:
            typer.Exit: with code 130, if it was interrupted.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("variegrad: interrupted\n")
            raise typer.Exit(130) from None


def number(
    *, least: Number = -math.inf, above: Number = -math.inf, most: Number = math.inf, below: Number = math.inf
) -> Callable[[Any], Any]:
    """A check for a number.

    Args:
        least: the smallest value allowed.
        above: what it must exceed.
        most: the largest value allowed.
        below: what it must stay under.

    Returns:
        A callback for an option; None, if nothing was typed, passes.
    """
    limits: list[tuple[Callable[[Number], bool], str, Number]] = [
        (lambda value: value >= least, "at least", least),
        (lambda value: value > above, "more than", above),
        (lambda value: value <= most, "at most", most),
        (lambda value: value < below, "less than", below),
    ]
    limits = [limit for limit in limits if math.isfinite(limit[2])]
    rule = " and ".join(f"{said} {limit}" for _, said, limit in limits) or "finite"

    def check(value: Any) -> Any:
        if value is None:
            return None
        if not math.isfinite(value) or not all(holds(value) for holds, _, _ in limits):
            raise typer.BadParameter(f"must be {rule}; got {value}.")
        return value

    return check


def writable_folder(path: Path | None) -> Path | None:
    """Refuse a folder that cannot be written into; it is tried, and what was made for that is removed again.

    Args:
        path: the folder, which need not exist; None passes.

    Returns:
        The path.

    Raises:
        typer.BadParameter: if it is a file, or nothing can be written there.
    """
    if path is None:
        return None
    path = path.expanduser()
    if os.environ.get("RANK", "0") != "0":  # of several workers only the first tries
        return path
    made: list[Path] = []
    try:
        nearest = next(place for place in (path, *path.parents) if place.exists())
        if not nearest.is_dir():
            raise typer.BadParameter(f"{path}: {nearest} is not a folder.")
        for place in reversed([place for place in (path, *path.parents) if not place.exists()]):
            place.mkdir()
            made.append(place)
        with tempfile.TemporaryFile(dir=path) as trial:
            trial.write(b"\0" * 4096)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise typer.BadParameter(f"{path}: cannot be written to ({reason}).") from error
    finally:
        for place in reversed(made):
            place.rmdir()
    return path


def writable_file(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written: its folder is tried.

    Args:
        path: of the file, which need not exist; None passes.

    Returns:
        The path.

    Raises:
        typer.BadParameter: if it is a folder, or nothing can be written there.
    """
    if path is None:
        return None
    path = path.expanduser()
    if _there(path, Path.exists) and not _there(path, Path.is_file):
        raise typer.BadParameter(f"{path}: is not a file.")
    if (not _there(path, Path.exists) and len(path.name.encode()) > 255) or "\0" in str(path):
        raise typer.BadParameter(f"{path}: no file can have this name.")
    writable_folder(path.parent)
    return path


def scratch_folder(path: Path | None) -> Path | None:
    """Refuse a folder for temporary files that does not exist or cannot be written into.

    Args:
        path: the folder; None passes.

    Returns:
        The path.

    Raises:
        typer.BadParameter: if it is no such folder.
    """
    if path is not None and not _there(path, Path.is_dir):
        raise typer.BadParameter(f"{path}: no such folder.")
    return writable_folder(path)


def _there(path: Path, test: Callable[[Path], bool]) -> bool:
    try:
        return test(path.expanduser())
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def data_folder(path: str | None) -> str | None:
    """Refuse a data root that is a file.

    Args:
        path: the folder, which need not exist: the message about missing data says how to fill it; None passes.

    Returns:
        The path.

    Raises:
        typer.BadParameter: if it is not a folder.
    """
    if path is not None and _there(Path(path), Path.exists) and not _there(Path(path), Path.is_dir):
        raise typer.BadParameter(f"{path}: is not a folder.")
    return path


def existing_folder(path: Path) -> Path:
    """Refuse a folder that does not exist or cannot be written into.

    Args:
        path: the folder.

    Returns:
        The path.

    Raises:
        typer.BadParameter: if it is no such folder.
    """
    found = writable_folder(existing(path))
    assert found is not None
    return found


def existing(path: Path | None) -> Path | None:
    """Refuse a path at which nothing is.

    Args:
        path: of a file or folder; None passes.

    Returns:
        The path.

    Raises:
        typer.BadParameter: if there is nothing.
    """
    if path is not None and not _there(path, Path.exists):
        raise typer.BadParameter(f"{path}: no such file or folder.")
    if path is None:
        return None
    try:
        check_regular(path.expanduser())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return path.expanduser()


def refuse_used(option: str, folder: Path | None, results: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder that holds the results of an earlier run, which would be replaced.

    Args:
        option: as typed, for the message.
        folder: where this run will write; None passes.
        results: names of files that a finished run leaves.
        overwrite: whether replacing them was asked for.

    Raises:
        ValueError: if one of them is there.
    """
    if folder is None or overwrite:
        return
    if found := [name for name in results if (folder / name).exists()]:
        raise ValueError(
            f"{option} {folder}: holds {found[0]} of an earlier run. Choose another folder, or add --overwrite."
        )


def step_size_of(step_size: float | None, learning_rate: float | None, batch_size: int) -> float | None:
    """γ of the summed gradient, from whichever of the two options was given.

    Args:
        step_size: γ.
        learning_rate: of the mean gradient, γ·B.
        batch_size: B.

    Returns:
        γ, or None if neither was given.

    Raises:
        ValueError: if both were.
    """
    if step_size is not None and learning_rate is not None:
        raise ValueError("--step-size and --learning-rate: give one of them (learning rate = step size × batch size).")
    return learning_rate / batch_size if learning_rate is not None else step_size


def loaded(
    name: str, seed: int, data_root: str | None, max_examples: int | None, weights: Path | None
) -> problems.Problem:
    """The problem that was asked for, at the weights that were asked for.

    Args:
        name: as typed.
        seed: of its starting weights.
        data_root: where data files are.
        max_examples: at most this many training examples.
        weights: a file of weights to start from.

    Returns:
        The problem.

    Raises:
        ValueError: if there is no such problem, its data are missing, it is empty, or the weights are of another model.
    """
    from variegrad.problems import load  # noqa: PLC0415 - torch takes seconds to import
    from variegrad.problems.subset import size  # noqa: PLC0415
    from variegrad.problems.weights import load_weights  # noqa: PLC0415

    problem = load(name, seed=seed, data_root=data_root, max_examples=max_examples)
    if size(problem.train) == 0:
        raise ValueError(f"{problem.name}: the training set has no examples.")
    if weights is not None:
        load_weights(problem.model, weights)
    return problem


Problem = Annotated[
    str,
    typer.Argument(
        help="A built-in problem (see `variegrad list`), a LIBSVM file, or your own function that returns a Problem: "
        "mine.py:problem or package.module:function."
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="Seed of the initial weights and of all random draws.", callback=number(least=0, most=LARGEST_SEED)
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        help="Folder of the data files. Default: the environment variable VARIEGRAD_DATA, or ~/.cache/variegrad.",
        callback=data_folder,
    ),
]
MaxExamples = Annotated[
    int | None, typer.Option(help="Use at most this many training examples.", callback=number(least=1))
]
StepSize = Annotated[
    float | None,
    typer.Option(
        help="Step size γ of the SUMMED gradient (learning rate ÷ batch size). Default: the problem's own.",
        callback=number(above=0),
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Learning rate of the MEAN loss; give this or --step-size.", callback=number(above=0)),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Start from these weights: a folder of `variegrad train --out`, a .safetensors file, or a state dict "
        "saved by torch.",
        callback=existing,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(help="Write report.html, its pictures and its numbers into this folder.", callback=writable_folder),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are already in the folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
