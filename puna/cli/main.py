"""The executable `puna`: runs a verb and turns every ending into an exit code.

0 done; 1 it failed or a check answered no; 2 the command or the recipe was wrong; 128 + n stopped by signal n.
A failure prints `error:` and `hint:` on stderr, and with --json one object on stdout; never a traceback.
This file imports little, so that signals are answered while the rest is being imported.
"""

import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from puna.errors import Interrupted, PunaError, UsageError

__all__ = ["main", "run"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPED = 128


def main() -> None:
    """Entry point of the console script."""
    code = run(sys.argv[1:])
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # what had to be done is done: nothing changes the exit code any more
    if code > _STOPPED:  # after a KeyboardInterrupt inside C code the interpreter would end by the signal itself
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    stop = _Stop()
    with _listening(stop):
        try:
            code = _call(arguments)
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except (Exception, KeyboardInterrupt) as error:
            if os.environ.get("PUNA_DEBUG"):
                raise
            code = _fail(_explain(error, stop.signum), arguments)
    return code if stop.signum is None else _STOPPED + stop.signum


class _Stop:
    """The first signal raises KeyboardInterrupt wherever the program stands, the second ends it at once.

    It remembers the first: a library that swallows the exception cannot change the exit code.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(_STOPPED + self.signum)
        self.signum = signum
        raise KeyboardInterrupt


@contextmanager
def _listening(stop: _Stop) -> Iterator[None]:
    previous = {signum: signal.signal(signum, stop) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _call(arguments: Sequence[str]) -> int:
    """Find the verb and run it. A verb returns None, or the exit code of a check."""
    _prepare()
    for argument in arguments:
        if not _is_utf8(argument):
            raise UsageError(f"expected arguments in UTF-8, got {os.fsencode(argument)!r}")
    from puna.cli.verbs import app

    code = app(list(arguments), exit_on_error=False, print_error=False)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _prepare() -> None:
    """Nothing is downloaded, nobody is told, and what is printed is UTF-8 whatever the terminal's locale says."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
        "MPLCONFIGDIR": os.path.join(tempfile.gettempdir(), f"puna-matplotlib-{os.getuid()}"),  # noqa: PTH118
        "TOKENIZERS_PARALLELISM": "true",
    }.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _explain(error: BaseException, signum: int | None) -> PunaError:
    """The failure as a person understands it. After a signal any error may be its doing."""
    if isinstance(error, Interrupted):
        return error
    if signum is not None or isinstance(error, KeyboardInterrupt):
        stopped_by = signal.Signals(signal.SIGINT if signum is None else signum)
        return Interrupted(f"stopped by {stopped_by.name}; what was saved before is whole", "", stopped_by)
    from cyclopts.exceptions import CycloptsError

    if isinstance(error, PunaError):
        return error
    if isinstance(error, CycloptsError):
        return UsageError(" ".join(str(error).split()), " ".join(("puna", *(error.command_chain or ()), "--help")))
    if isinstance(error, OSError):
        return PunaError(
            ": ".join(filter(None, (error.filename and str(error.filename), error.strerror or str(error))))
        )
    return PunaError(f"{type(error).__name__}: {error}", "a bug: PUNA_DEBUG=1 shows where")


def _fail(error: PunaError, arguments: Sequence[str]) -> int:
    try:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        if "--json" in arguments:
            print(json.dumps({"error": error.facts()}, ensure_ascii=False), flush=True)
    except BrokenPipeError:  # the reader has left; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return error.exit_code


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
