"""A process that has imported everything and done nothing yet: it forks one trainer an order, and ends it as ordered.

Orders and answers are lines of JSON on stdin and stdout. An order is {recipe, out, said} and may hold
{point, at}: die by SIGKILL at the at-th passage of a point below; {signal, after}: be sent a signal after so many
seconds; {stop}: be sent SIGTERM after a step; {poison}: reads, counted from 0, whose gradient is infinite; {file_bytes}:
no file may grow beyond; {fail, code}: the n-th call that changes the disk fails. The answer is {status, seconds, calls}.
"""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, which takes five times as long as a run

from puna import files
from puna.errors import PunaError
from puna.jobs import held_out
from puna.jobs import train as job
from puna.jobs.recipe import dump_recipe, fill, read_recipe
from puna.jobs.train_recipe import TrainRecipe
from puna.training import checkpoint, loop
from puna.training.batches import RowSource
from puna.training.events import StepEvent

Order = dict[str, Any]


class Trainers:
    """The test's side of the process."""

    def __init__(self, **environment: str) -> None:
        command, root = [sys.executable, __file__], Path(__file__).parents[2]
        changes = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(root), **environment}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **changes}
        )

    def __call__(self, recipe: TrainRecipe, out: Path, **order: Any) -> Order:
        """Train, or go on, in a process of its own; how it ended, and what it said last."""
        path, said = out.with_name(f"{out.name}.toml"), out.with_name(f"{out.name}.said")
        out.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_recipe(recipe))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"recipe": str(path), "out": str(out), "said": str(said), **order}),
            file=self._process.stdin, flush=True,
        )  # fmt: skip
        return {**json.loads(self._process.stdout.readline()), "said": said.read_text()}

    def close(self) -> None:
        """End the process, which ends when its orders do."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def trainers(**environment: str) -> Iterator[Trainers]:
    """The process while the block runs."""
    running = Trainers(**environment)
    try:
        yield running
    finally:
        running.close()


def main() -> None:
    """Serve orders until there are no more."""
    for line in sys.stdin:
        order, started = json.loads(line), time.monotonic()
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os._exit(_work(order, writer))
        os.close(writer)
        status = _watch(child, order)
        calls = os.read(reader, 64)
        os.close(reader)
        print(
            json.dumps({"status": status, "seconds": time.monotonic() - started, "calls": int(calls or 0)}), flush=True
        )


def _watch(child: int, order: Order) -> int:
    """Wait for the child, and send its signal when the time has come. Here, so that it cannot hit another process."""
    if "signal" in order:
        until = time.monotonic() + order["after"]
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.Signals[order["signal"]])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _work(order: Order, writer: int) -> int:
    """Train in the child; return its exit code."""
    with Path(order["said"]).open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(order.get("threads", 1))
    job.write_unfinished_report = job.write_run_report = lambda *_, **__: None  # pages have tests of their own
    held_out._SAMPLE_TOKENS = held_out._WINDOWS = 4
    counter = _arm(order)
    observers = (_stop_after(order["stop"]),) if "stop" in order else ()
    try:
        recipe = fill(TrainRecipe, read_recipe(Path(order["recipe"])))
        job.train(recipe, order["out"], resume=True, tensorboard=False, observers=observers)
        code = 0
    except PunaError as error:
        print(f"{type(error).__name__}: {error.message}", flush=True)
        code = error.exit_code
    except OSError as error:
        print(f"OSError: {error.strerror}", flush=True)
        code = 1
    os.write(writer, str(counter[0]).encode())
    return code


def _stop_after(step: int) -> Callable[[object], None]:
    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def _arm(order: Order) -> list[int]:
    """Lay the order's traps; the number of calls that changed the disk is counted in what is returned."""
    if "poison" in order:
        _poison(set(order["poison"]))
    if "file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    if "point" in order:
        _POINTS[order["point"]](_At(order["at"]))
    return _count_and_fail(order.get("fail", 0), getattr(errno, order.get("code", "EIO")))


def _poison(reads: set[int]) -> None:
    read, train_step, is_bad = RowSource.batches, loop.train_step, [False]

    def batches(self: RowSource, step: int) -> Any:
        is_bad[0] = step in reads
        return read(self, step)

    def step(model: Any, *arguments: Any, **named: Any) -> Any:
        hook = model.norm.weight.register_hook(lambda gradient: gradient * torch.inf if is_bad[0] else gradient)
        try:
            return train_step(model, *arguments, **named)
        finally:
            hook.remove()

    RowSource.batches, loop.train_step = batches, step


def _count_and_fail(at: int, code: int) -> list[int]:
    count = [0]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                raise OSError(code, os.strerror(code))
            return original(*arguments, **named)

        return call

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (files.shutil, "rmtree")):
        setattr(owner, name, counted(getattr(owner, name)))
    return count


class _At:
    """Dies at its n-th call."""

    def __init__(self, passage: int) -> None:
        self._left = passage

    @property
    def is_next(self) -> bool:
        """Whether the next call is the last."""
        return self._left == 1

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, pattern: str, when: str) -> Callable[[_At], None]:
    """A trap before or after a call whose first argument is a path like this."""

    def lay(die: _At) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            is_meant = Path(arguments[0]).match(pattern)
            if is_meant and when == "before":
                die()
            result = original(*arguments, **named)
            if is_meant and when == "after":
                die()
            return result

        setattr(owner, name, call)

    return lay


def _mid_tensor(die: _At) -> None:
    save = checkpoint.save_file

    def half(tensors: Any, path: Path) -> None:
        save(tensors, path)
        if die.is_next:
            os.truncate(path, path.stat().st_size // 2)
        die()

    checkpoint.save_file = half


def _mid_prune(die: _At) -> None:
    remove = files.shutil.rmtree

    def part(path: Path) -> None:
        if die.is_next:
            sorted(path.iterdir())[0].unlink()
        die()
        remove(path)

    files.shutil.rmtree = part


def _mid_log_line(die: _At) -> None:
    append = files.LineLog.append

    def half(self: files.LineLog, event: Any) -> None:
        append(self, event)
        if die.is_next:
            path = self._path
            os.truncate(path, path.stat().st_size - 20)
        die()

    files.LineLog.append = half


def _in_backward(die: _At) -> None:
    backward = torch.Tensor.backward

    def call(self: torch.Tensor, *arguments: Any, **named: Any) -> None:
        self.register_hook(lambda _: die())
        backward(self, *arguments, **named)

    torch.Tensor.backward = call


def _in_update(die: _At) -> None:
    update = torch.optim.AdamW.step

    def half(self: torch.optim.AdamW, *arguments: Any) -> None:
        if die.is_next:
            del self.param_groups[1:]
        update(self, *arguments)
        die()

    torch.optim.AdamW.step = half


_SECOND = "step_000006.tmp-"  # of the saves; an earlier one stands
_TENSORS = f"{_SECOND}*/state.safetensors"
_MANIFEST = f"{_SECOND}*/{files.MANIFEST}"
_POINTS: dict[str, Callable[[_At], None]] = {
    "after mkdir": _around(Path, "mkdir", f"{_SECOND}*", "after"),
    "mid tensor": _mid_tensor,
    "before fsync": _around(files, "_fsync_file", _TENSORS, "before"),
    "after fsync": _around(files, "_fsync_file", _TENSORS, "after"),
    "before manifest": _around(files, "write_json", _MANIFEST, "before"),
    "after manifest": _around(files, "write_json", _MANIFEST, "after"),
    "before rename": _around(Path, "rename", f"{_SECOND}*", "before"),
    "after rename": _around(Path, "rename", f"{_SECOND}*", "after"),
    "mid prune": _mid_prune,
    "mid log line": _mid_log_line,
    "mid export": _around(files, "_fsync_file", "model.tmp-*/*", "before"),
    "in backward": _in_backward,
    "in the update": _in_update,
    "mid resume": _around(checkpoint, "load_file", "*/state.safetensors", "after"),
}

if __name__ == "__main__":
    main()
