"""Prove that the laws can fail: each patch here breaks one, and the test named in its first line must then fail.

    python tests/mutants/run.py [part of a name ...]

A patch begins with `# kills: tests/model/test_norms.py`. It is applied to a copy of the tree, never to the tree itself.
A mutant counts as killed when its test runs and fails; one that no longer applies, or whose test cannot start, is a
failure of ours. All named tests must first pass on the untouched tree. Exit 0: every mutant was killed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORKERS = 2
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build", "dist")
OUTCOMES = {0: "SURVIVED", 1: "killed"}  # pytest's exit codes; any other: the test could not run


@dataclass(frozen=True)
class Mutant:
    """A patch, and the test that must notice it."""

    patch: Path
    test: str


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    outcome: str
    seconds: float


def main(parts: list[str]) -> int:
    """Judge the mutants whose name contains one of `parts` (none given: all) and print a table."""
    mutants = [read(path) for path in sorted(HERE.glob("*.patch")) if not parts or any(p in path.stem for p in parts)]
    if not mutants:
        print("no mutant has such a name", file=sys.stderr)
        return 2
    with copied_tree() as tree:
        untouched = run_tests(tree, *sorted({mutant.test for mutant in mutants}))
        if untouched.returncode != 0:
            print(
                untouched.stdout, "the named tests fail without any mutant; mend them first", sep="\n", file=sys.stderr
            )
            return 1
    with ThreadPoolExecutor(WORKERS) as pool:
        verdicts = []
        for verdict in pool.map(judge, mutants):
            verdicts.append(verdict)
            print(
                f"{verdict.outcome:<15} {verdict.seconds:5.1f} s  {verdict.mutant.patch.stem:<40} {verdict.mutant.test}",
                flush=True,
            )
    killed = sum(verdict.outcome == "killed" for verdict in verdicts)
    print(f"{killed} of {len(verdicts)} mutants killed")
    return 0 if killed == len(verdicts) else 1


def read(path: Path) -> Mutant:
    """A patch file and the test that its first line names."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    named = re.fullmatch(r"# kills: (tests/\S+)", first)
    if named is None:
        raise SystemExit(f"{path.name}: expected a first line like '# kills: tests/model/test_norms.py', got {first!r}")
    return Mutant(path, named[1])


def judge(mutant: Mutant) -> Verdict:
    """Apply a mutant to a fresh copy of the tree and run its test there."""
    start = time.monotonic()
    with copied_tree() as tree:
        applied = subprocess.run(
            ["patch", "-p1", "--quiet", "--forward", "--input", mutant.patch],
            cwd=tree,
            check=False,
            capture_output=True,
        )
        if applied.returncode != 0:
            outcome = "DOES NOT APPLY"
        else:
            outcome = OUTCOMES.get(run_tests(tree, mutant.test).returncode, "TEST NOT RUN")
    return Verdict(mutant, outcome, time.monotonic() - start)


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of the project beside a link to the shared data, as the original has."""
    with tempfile.TemporaryDirectory(prefix="puna-mutant-") as folder:
        tree = Path(folder) / ROOT.name
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        if (ROOT.parent / "shared").is_dir():
            (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        yield tree


def run_tests(tree: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """pytest on these tests in that tree; a test that hangs for a minute fails."""
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-o", "timeout=60", *tests]
    return subprocess.run(command, cwd=tree, check=False, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
