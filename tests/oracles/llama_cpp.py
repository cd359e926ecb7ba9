"""llama.cpp as an oracle: its own converter and quantiser make files, and it says what it thinks of them and of ours.

`make oracles` builds its environment under .oracles/ and calls `main`, which leaves small fixtures beside this file. What
takes minutes to build is thus asked once, and compared with on every push; where .oracles/ is present, the nightly tests
ask again.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from puna.weights.folder import save_folder
from tests.oracles.models import IDS, SHAPES, TEXTS, build_model, write_gguf_file

__all__ = ["CONVERTED", "FIXTURES", "QUANTISED", "ask", "is_built", "make_theirs"]

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures"
ANSWERS = FIXTURES / "llama_cpp.json"
PYTHON = ROOT / ".oracles" / "llama" / "bin" / "python"
CONVERTER = ROOT / ".oracles" / "llama.cpp" / "convert_hf_to_gguf.py"
CONVERTED = {"f16": "grouped, tied", "q8_0": "llama 3.1"}  # outtype -> shape
QUANTISED = {"q4_k_m": 15, "q4_0": 2}  # llama.cpp's file types, of a model whose rows are whole blocks
WIDE = "wide rows"
_PIECES = 384


def is_built() -> bool:
    """Whether `make oracles` was run here."""
    return PYTHON.exists() and CONVERTER.exists()


def ask(paths: dict[str, Path], quantize: list[tuple[Path, Path, int]] = ()) -> dict[str, dict]:  # type: ignore[assignment]
    """What llama.cpp says of each file, by its name in `paths`, after it has quantised others."""
    asked = [{"path": str(path), "ids": IDS, "greedy": 32, "texts": TEXTS} for path in paths.values()]
    request = {"quantize": [[str(old), str(new), kind] for old, new, kind in quantize], "ask": asked}
    script = Path(__file__).with_name("llama_cpp_says.py")
    done = subprocess.run([PYTHON, "-P", script], input=json.dumps(request), capture_output=True, text=True, check=True)
    return dict(zip(paths, json.loads(done.stdout), strict=True))


def make_theirs(folder: Path) -> tuple[dict[str, Path], list[tuple[Path, Path, int]]]:
    """Files of llama.cpp's converter, by name, and what its quantiser is to make of one of them."""
    made = {}
    for outtype, shape in CONVERTED.items():
        made[f"converted-{outtype}"] = _convert(shape, outtype, folder)
    wide = _convert(WIDE, "f32", folder)
    jobs = [(wide, folder / f"quantised-{name}.gguf", kind) for name, kind in QUANTISED.items()]
    return made | {f"quantised-{name}": folder / f"quantised-{name}.gguf" for name in QUANTISED}, jobs


def _convert(shape: str, outtype: str, folder: Path) -> Path:
    source, target = folder / f"{shape} for {outtype}", folder / f"converted-{outtype}.gguf"
    save_folder(build_model(shape), source)
    _train_sentencepiece(source)
    command = [sys.executable, CONVERTER, source, "--outfile", target, "--outtype", outtype]
    subprocess.run(command, check=True, capture_output=True)
    return target


def _train_sentencepiece(folder: Path) -> None:
    """A Llama-2-like tokenizer.model beside the weights; the converter knows byte-level vocabularies by their hash only."""
    import sentencepiece

    lines = (f"The llama number {n} walks {n * n} steps, and {n % 7} of them are uphill." for n in range(300))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(folder / "tokenizer"), vocab_size=_PIECES, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    (folder / "MANIFEST.json").unlink()


def main(folder: Path) -> None:
    """Make every file, ask llama.cpp, keep what it says and the files that it made."""
    FIXTURES.mkdir(exist_ok=True)
    ours = {name: write_gguf_file(name, folder) for name in SHAPES if name != WIDE}
    theirs, jobs = make_theirs(folder)
    answers = ask(ours | theirs, jobs)
    for name, path in ours.items():
        answers[name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name, path in theirs.items():
        (FIXTURES / f"{name}.gguf").write_bytes(path.read_bytes())
    for answer in answers.values():  # every eighth position says enough, and the fixture stays small
        answer["logits"] = [[float(f"{value:.7g}") for value in row] for row in answer["logits"][::8]]
    ANSWERS.write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
