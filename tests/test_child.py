"""A child that hangs, grows, floods or dies fails its request within its limits, and the next request meets another."""

import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from puna import child
from puna.child import Child, ChildFailed, serve

MEMORY_BYTES = 256 << 20


def limits(_: object) -> dict[str, int]:
    names = ("RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE")
    return {name: resource.getrlimit(getattr(resource, name))[1] for name in names}


def flood(_: object) -> None:
    for _number in range(4096):
        os.write(0, b"x" * (1 << 20))


def trickle(_: object) -> None:
    while True:
        os.write(0, b"1")
        time.sleep(0.01)


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "echo": lambda value: value,
    "pid": lambda _: os.getpid(),
    "group": lambda _: os.getpgid(0),
    "environment": lambda _: dict(os.environ),
    "folder": lambda _: str(Path.cwd()),
    "interfaces": lambda _: [name for _, name in socket.if_nameindex()],
    "limits": limits,
    "print": lambda value: print("{", value, "\n", flush=True),
    "sleep": lambda seconds: time.sleep(seconds),
    "trickle": trickle,
    "spin": lambda _: sum(iter(int, 1)),
    "grow": lambda size: len(bytearray(size)),
    "flood": flood,
    "signal": lambda number: os.kill(os.getpid(), number),
    "exit": lambda code: os._exit(code),
    "raise": lambda _: {}["nothing"],
    "write": lambda path: Path(path).write_text("x"),
    "not_json": lambda _: os.write(0, b"nonsense\n"),
    "nested": lambda _: os.write(0, b"[" * 100_000 + b"\n"),
}


def answer(request: dict[str, Any]) -> Any:
    return ANSWERS[request["do"]](request["with"])


def ask(child: Child, do: str, value: object = None, seconds: float = 20) -> Any:
    return child.ask({"do": do, "with": value}, seconds)


def is_alive(pid: int) -> bool:
    """Whether a process is there, be it as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def shared() -> Iterator[Child]:
    """A child for tests that leave it alive, or do not mind a start."""
    with Child("tests.test_child", memory_bytes=MEMORY_BYTES, cpu_seconds=60) as child:
        yield child


def test_answers_come_back_whole_and_from_one_process(shared: Child) -> None:
    for value in (None, 0, "línea\n\ud800\u2028", [1.5, {"a": [True]}], "x" * (8 << 20)):
        assert ask(shared, "echo", value) == value
    assert ask(shared, "pid") == ask(shared, "pid") != os.getpid()


def test_what_the_child_prints_is_no_answer(shared: Child) -> None:
    assert ask(shared, "print", "not an answer") is None


def test_the_child_knows_no_secret_and_stands_apart(shared: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.close()
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    environment = ask(shared, "environment")
    assert "secret" not in environment.values()
    assert environment.keys() <= {*child._KEPT, "PYTHONPATH", "OMP_NUM_THREADS", "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    assert ask(shared, "folder") == "/"
    assert ask(shared, "group") == ask(shared, "pid")


def test_the_child_is_limited(shared: Child, tmp_path: Path) -> None:
    assert ask(shared, "limits") == {"RLIMIT_CPU": 60, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}
    with pytest.raises(ChildFailed, match="ended with code 1"):
        ask(shared, "write", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0


def test_the_child_has_no_network_where_the_kernel_allows_that(shared: Child) -> None:
    allowed = subprocess.run(
        [sys.executable, "-c", "import ctypes; exit(ctypes.CDLL(None).unshare(0x50000000) != 0)"], check=False
    )
    if allowed.returncode != 0:
        pytest.skip("the kernel forbids it")
    assert ask(shared, "interfaces") == ["lo"]


@pytest.mark.parametrize(
    ("do", "value", "reason"),
    [
        ("sleep", 60, "took longer than 1 s"),
        ("trickle", None, "took longer than 1 s"),
        ("signal", signal.SIGKILL, "ended by signal 9"),
        ("signal", signal.SIGSEGV, "ended by signal 11"),
        ("exit", 3, "ended with code 3"),
        ("exit", 0, "ended with code 0"),
        ("raise", None, "ended with code 1"),
        ("grow", 4 << 30, "ran out of memory"),
        ("flood", None, "answered with more than 67,108,864 bytes"),
        ("not_json", None, "answered with something other than JSON"),
        ("nested", None, "answered with something other than JSON"),
    ],
)
def test_a_failure_ends_the_child_and_a_fresh_one_answers_next(
    shared: Child, do: str, value: object, reason: str
) -> None:
    if do == "grow" and sys.platform != "linux":
        pytest.skip("no limit on the address space holds here")
    before = ask(shared, "pid")
    started = time.monotonic()
    with pytest.raises(ChildFailed) as failure:
        ask(shared, do, value, seconds=1 if "longer" in reason else 20)
    assert failure.value.reason == reason
    assert time.monotonic() - started < 10
    assert not is_alive(before)
    assert ask(shared, "echo", "again") == "again"


def test_memory_below_the_limit_is_granted(shared: Child) -> None:
    assert ask(shared, "grow", MEMORY_BYTES // 2) == MEMORY_BYTES // 2


def test_processor_time_is_limited() -> None:
    with Child("tests.test_child", memory_bytes=MEMORY_BYTES, cpu_seconds=1) as child, pytest.raises(ChildFailed) as e:
        ask(child, "spin")
    assert e.value.reason in {f"ended by signal {number}" for number in (signal.SIGKILL, signal.SIGXCPU)}


def test_a_child_that_reads_nothing_keeps_nobody_waiting() -> None:
    with Child("timeit", memory_bytes=0, cpu_seconds=60) as child, pytest.raises(ChildFailed):
        child.ask("x" * (64 << 20), 1)


def test_a_module_that_is_not_there_or_an_interpreter_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with Child("tests.nowhere", memory_bytes=0, cpu_seconds=1) as child, pytest.raises(ChildFailed, match="code 1"):
        child.ask(None, 20)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with Child("tests.test_child", memory_bytes=0, cpu_seconds=1) as child, pytest.raises(ChildFailed, match="start"):
        child.ask(None, 20)


def test_an_interrupt_ends_the_child(shared: Child) -> None:
    pid = ask(shared, "pid")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(shared, "sleep", 60, seconds=20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_alive(pid)
    assert ask(shared, "echo", 1) == 1


def test_the_child_ignores_an_interrupt_of_its_own(shared: Child) -> None:
    pid = ask(shared, "pid")
    os.kill(pid, signal.SIGINT)
    assert ask(shared, "pid") == pid


def test_the_child_ends_with_its_parent() -> None:
    code = (
        "import os; from puna.child import Child; c = Child('tests.test_child', memory_bytes=1 << 28, cpu_seconds=60);"
        "print(c.ask({'do': 'pid', 'with': None}, 20), flush=True); os._exit(0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=child._ROOT)
    pid, deadline = int(run.stdout), time.monotonic() + 10
    while is_alive(pid) and is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether it is more than a zombie, which whoever inherited it has yet to reap."""
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] not in ("", "Z")


def test_no_descriptor_and_no_process_is_left(shared: Child) -> None:
    def descriptors() -> list[str]:
        gc.collect()
        return sorted(each.name for each in Path("/dev/fd").iterdir())

    shared.close()
    before, pids = descriptors(), []
    for do, value in (("echo", 1), ("exit", 3), ("signal", 9)):
        pids.append(ask(shared, "pid"))
        with suppress(ChildFailed):
            ask(shared, do, value)
        shared.close()
        shared.close()
    assert descriptors() == before
    assert not any(map(is_alive, pids))


if __name__ == "__main__":
    serve(answer)
