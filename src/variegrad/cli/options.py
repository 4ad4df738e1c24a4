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

if TYPE_CHECKING:
    from variegrad import problems

Number = int | float


class Command(TyperCommand):
    """A command that says which of two values counts, and refuses an empty value or an option in place of a value."""

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
        for param, times in Counter(order).items():
            if getattr(param, "is_flag", False):
                continue
            found = given.get(param.name)
            values = found if isinstance(found, list | tuple) else [found]
            if times > len(values):  # the last counts, as in every shell script that adds to "$@"; but not in silence
                sys.stderr.write(f"variegrad: {param.opts[0]} is given {times} times; the last, {found}, counts\n")
            for value in values:
                if value == "":
                    raise typer.BadParameter("must not be empty.", ctx=ctx, param=param)
                if str(value).startswith("--"):
                    raise typer.BadParameter(f"needs a value; the next option, {value}, follows.", ctx=ctx, param=param)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            param = error.param
            typed = None if param is None else given.get(param.name)
            if isinstance(typed, str) and typed not in error.message:
                error.message = f"{error.message.rstrip('.')}; got {typed!r}."
            raise

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
    """A check of a number.

    Args:
        least: the smallest value allowed.
        above: what it must exceed.
        most: the largest value allowed.
        below: what it must stay under.

    Returns:
        A callback for an option; None, where nothing was typed, passes.
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
    if os.environ.get("RANK", "0") != "0":  # of several workers the first tries
        return path
    made: list[Path] = []
    try:
        standing = next(place for place in (path, *path.parents) if place.exists())
        if not standing.is_dir():
            raise typer.BadParameter(f"{path}: {standing} is a file; name a folder.")
        for place in reversed([place for place in (path, *path.parents) if not place.exists()]):
            place.mkdir()
            made.append(place)
        with tempfile.TemporaryFile(dir=path) as trial:
            trial.write(b"\0" * 4096)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise typer.BadParameter(f"{path}: cannot be written into ({reason}).") from error
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
    return None if path is None else path.expanduser()


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
            f"{option} {folder}: holds {found[0]} of an earlier run. Name another folder, or add --overwrite."
        )


def step_size_of(step_size: float | None, learning_rate: float | None, batch_size: int) -> float | None:
    """γ of the summed gradient, from whichever of the two options was given.

    Args:
        step_size: γ.
        learning_rate: of the mean gradient, γ·B.
        batch_size: B.

    Returns:
        γ, or None where neither was given.

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
        raise ValueError(f"{problem.name}: the training set holds no examples.")
    if weights is not None:
        load_weights(problem.model, weights)
    return problem


Problem = Annotated[
    str,
    typer.Argument(
        help="A built-in problem (variegrad list), a LIBSVM file, or a function of yours: mine.py:problem or "
        "package.module:function."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the starting weights and of all draws.", callback=number(least=0))]
DataRoot = Annotated[
    str | None,
    typer.Option(help="Folder of data files. Default: VARIEGRAD_DATA, else ~/.cache/variegrad."),
]
MaxExamples = Annotated[
    int | None, typer.Option(help="Use at most this many training examples.", callback=number(least=1))
]
StepSize = Annotated[
    float | None,
    typer.Option(
        help="γ of the SUMMED gradient (learning rate ÷ batch size). Default: the problem's own.",
        callback=number(above=0),
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Learning rate of the MEAN gradient, instead of --step-size.", callback=number(above=0)),
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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results that the folder holds already.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
