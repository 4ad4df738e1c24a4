"""The command `variegrad`: one file per subcommand.

Nothing heavy is imported before a command has checked its options, so `--help` and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# Raised on purpose, with a message that says what to do; anything else comes from a user's code or a defect of ours.
EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def main() -> None:
    """Run the command; bad input ends in one line on standard error and exit code 2, never in a traceback.

    Set VARIEGRAD_TRACEBACK=1 to see where an error came from.
    """
    try:
        code = _run()
    except KeyboardInterrupt:
        sys.stderr.write("variegrad: interrupted\n")
        code = 130
    except Exception as error:
        if os.environ.get("VARIEGRAD_TRACEBACK"):
            raise
        interrupted = _interrupted(error)
        if line := "interrupted" if interrupted else _in_one_line(error):
            sys.stderr.write(f"variegrad: {line}\n")
        code = 130 if interrupted else 2
    sys.exit(code)


def _run() -> int:
    from variegrad.cli.app import app  # noqa: PLC0415 - here, so that Ctrl-C while it loads is caught above
    from variegrad.cli.terminal import print_in_any_encoding  # noqa: PLC0415

    print_in_any_encoding()
    given = sys.argv[1:]
    code: int = app(given or ["--help"], standalone_mode=False) or 0
    return code if given else 2


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: an interrupted import may surface as an ImportError."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _in_one_line(error: Exception) -> str:
    if hasattr(error, "format_message"):  # typer's errors
        message = _usage(error)
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", None) or " ".join(["variegrad", *sys.argv[1:2]])
        return message and f"{message.rstrip('.')}. Try: {command} --help"
    message = " ".join(str(error).split())
    if isinstance(error, EXPECTED) and message:
        return message
    return f"{type(error).__name__}: {message} (where: set VARIEGRAD_TRACEBACK=1)"


def _usage(error: Any) -> str:
    param = getattr(error, "param", None)
    said = " ".join(str(getattr(error, "message", "")).split()).removeprefix("Value error, ")
    if param is None or not said:
        return " ".join(error.format_message().split())
    name = max(param.opts, key=len) if param.param_type_name == "option" else str(param.name).upper()
    return f"{name}: {said}"
