"""A limited child process, for what comes from elsewhere and must be read by a library that may hang, grow or crash.

The child is one of our modules, which calls `serve(answer)` once its imports are done. Requests and answers are lines of
JSON over one socket pair, which is the child's stdin; what libraries print goes nowhere. The child has no secrets in its
environment, writes to no file, has no network where the kernel allows, and has limits on memory and processor time.
Whatever goes wrong in there is `ChildFailed` out here, and the next request meets a fresh child. docs/reliability.md 4.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

__all__ = ["Child", "ChildFailed", "serve"]

MAX_ANSWER_BYTES = 64 << 20

_ROOT = Path(__file__).resolve().parent.parent
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # where an interpreter finds its libraries
_OUT_OF_MEMORY = 77  # the child's exit code
_MAX_FILES = 64
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # linux/sched.h


class ChildFailed(Exception):
    """The child gave no answer, and was killed; `reason` says why ("took longer than 2 s")."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Child:
    """A process that answers requests one by one. It starts at the first, and anew after a failure.

    Args: module: calls `serve`. memory_bytes: beyond what its imports take. cpu_seconds: of one process, imports included.
    """

    def __init__(self, module: str, *, memory_bytes: int, cpu_seconds: int) -> None:
        self._command = [sys.executable, "-P", "-m", module, str(memory_bytes), str(cpu_seconds)]
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def ask(self, request: object, seconds: float) -> Any:
        """Send a request and wait for its answer, both JSON; a start counts towards `seconds`.

        Errors: ChildFailed: no start, no answer in time, a crash, an answer that is too long or no JSON.
        """
        deadline = time.monotonic() + seconds
        line = json.dumps(request).encode() + b"\n"
        try:
            return json.loads(self._exchange(line, deadline))
        except TimeoutError:
            self.close()
            raise ChildFailed(f"took longer than {seconds:g} s") from None
        except (ValueError, RecursionError):
            self.close()
            raise ChildFailed("answered with something other than JSON") from None
        except BaseException:  # after an interrupt, too, the answer to come would be taken for the next one's
            self.close()
            raise

    def close(self) -> None:
        """Kill the child, if there is one, and wait until it is gone."""
        if self._running is not None:
            process, connection = self._running
            self._running = None
            connection.close()
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, request: bytes, deadline: float) -> bytes:
        """Errors: TimeoutError, ChildFailed."""
        if self._running is None:
            self._running = _start(self._command)
        process, connection = self._running
        answer = bytearray()
        with suppress(ConnectionError):
            connection.settimeout(_left(deadline))
            connection.sendall(request)
            while piece := connection.recv(1 << 20):
                answer += piece
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ChildFailed(f"answered with more than {MAX_ANSWER_BYTES:,} bytes")
                if answer.endswith(b"\n"):
                    return bytes(answer)
                connection.settimeout(_left(deadline))
        raise ChildFailed(_ending(process))


def serve(answer: Callable[[Any], Any]) -> None:
    """Be the child: take on the limits that `Child` passed as arguments, then answer line by line until stdin ends."""
    memory_bytes, cpu_seconds = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _leave_the_network()
    _limit(memory_bytes, cpu_seconds)
    try:
        with os.fdopen(sys.stdin.fileno(), "wb", closefd=False) as answers:
            for line in sys.stdin.buffer:
                answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
                answers.flush()
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)


def _start(command: list[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """One thread only, since a process with more may not have a namespace of its own."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    nowhere = subprocess.DEVNULL
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                return subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=nowhere, stderr=nowhere,
                    cwd="/", env=environment, start_new_session=True,
                ), ours  # fmt: skip
            except BaseException:
                ours.close()
                raise
    except OSError as error:
        raise ChildFailed(f"did not start: {error.strerror}") from None


def _left(deadline: float) -> float:
    """Seconds until the deadline. Errors: TimeoutError."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a child came to its end, which it reaches within moments of closing its connection."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(1)
    match process.returncode:
        case None:
            return "stopped answering"
        case code if code == _OUT_OF_MEMORY:
            return "ran out of memory"
        case code if code < 0:
            return f"ended by signal {-code}"
        case code:
            return f"ended with code {code}"


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_CORE: 0,
    }
    sizes = Path("/proc/self/statm")
    if sizes.exists():  # elsewhere no limit on the address space holds
        limits[resource.RLIMIT_AS] = int(sizes.read_text().split()[0]) * resource.getpagesize() + memory_bytes
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))


def _leave_the_network() -> None:
    """Move to a network namespace without interfaces, root's or one's own; Linux alone has them, and may forbid it."""
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare is not None and unshare(_CLONE_NEWNET) != 0:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
