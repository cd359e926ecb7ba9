"""The executable `puna`: finds the verb, runs it, and turns every ending into an exit code.

0 done; 1 it failed or a check answered no; 2 the command or the recipe was wrong; 128 + n stopped by signal n.
A failure prints `error:` and `hint:` on stderr, and with --json one object on stdout; never a traceback.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from puna import __version__
from puna.errors import Interrupted, PunaError, UsageError

__all__ = ["app", "main", "run"]

app = App(
    name="puna",
    help="Puna carries a Llama through its whole life: train, adapt, compress, evaluate, generate, and plan it all.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=""),
    help_format="plaintext",
)
for _name, _help in {
    "demo": "The main job, end to end, on this Python's own documents or on yours.",
    "doctor": "What this machine is, its measured rates, and the choices that follow.",
    "plan": "Exact counts and predicted memory, before anything is loaded.",
    "tokens": "Learn a tokenizer; encode, decode; build token shards.",
    "train": "Pretrain a model, from scratch or continued.",
    "adapt": "Fine-tune a model with LoRA; merge an adapter.",
    "compress": "Low-rank or int8 weights, with what they cost in nats.",
    "evaluate": "The likelihood of a text.",
    "generate": "Continue a text, token by token.",
    "weights": "What a checkpoint is.",
}.items():
    app.command(f"puna.cli.{_name}:app", name=_name, help=_help)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    _prepare_environment()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(list(arguments), exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return 0
    except CycloptsError as error:
        return _fail(_usage(error), arguments)
    except PunaError as error:
        return _fail(error, arguments)
    except KeyboardInterrupt:
        return _fail(Interrupted("stopped by SIGINT; what was saved before is whole"), arguments)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the reader has left; nothing more can be said
        return 1
    except OSError as error:
        return _fail(PunaError(f"{error.filename or 'input'}: {error.strerror or error}"), arguments)
    except Exception as error:  # the last resort: a bug is reported as one, not as a traceback
        if os.environ.get("PUNA_DEBUG"):
            raise
        return _fail(PunaError(f"{type(error).__name__}: {error}", "a bug: PUNA_DEBUG=1 shows where"), arguments)


def _fail(error: PunaError, arguments: Sequence[str]) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    if "--json" in arguments:
        facts = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": facts}, ensure_ascii=False))
    return error.exit_code


def _usage(error: CycloptsError) -> UsageError:
    message = " ".join(str(error).split())
    verb = " ".join(error.command_chain or ())
    return UsageError(message, f"puna {verb} --help".replace("  ", " "))


def _terminate(signum: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM; what was saved before is whole", "", signum)


def _prepare_environment() -> None:
    """Nothing is downloaded and nobody is told: set before any library is imported."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
        "MPLCONFIGDIR": os.path.join(tempfile.gettempdir(), f"puna-matplotlib-{os.getuid()}"),  # noqa: PTH118
        "TOKENIZERS_PARALLELISM": "true",
    }.items():
        os.environ.setdefault(name, value)
