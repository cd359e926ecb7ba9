"""The texts of the demo: this Python's own, or a folder of any size in any language."""

import shutil
import sysconfig
from pathlib import Path

import pytest

from puna.errors import BadData
from puna.jobs import demo_text
from puna.jobs.demo_text import gather_text
from puna.text.corpus import split_documents


def test_the_library_is_gathered_without_its_tests_and_the_reference_beside_it() -> None:
    text = gather_text(None)
    assert len(text.documents) > 100
    assert not [document.name for document in text.documents if "/test/" in document.name]
    assert all(document.name.endswith(".py") for document in text.documents)
    assert {document.source for document in text.documents} == {"library"}
    assert text.second_name == "text.reference"
    assert not {document.text for document in text.second} & {document.text for document in text.documents}


def test_docstrings_stand_in_for_a_missing_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("ast.py", "json/decoder.py", "this.py"):
        shutil.copy(library / name, tmp_path)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})

    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(demo_text, "import_module", missing)
    text = gather_text(None)
    assert text.second_name == "text.docstrings"
    assert [Path(document.name).name for document in text.second] == ["ast.py", "decoder.py"]
    assert "Simple JSON" in text.second[1].text


@pytest.mark.parametrize("size", [12_000, 100_000, 1_000_000])
def test_one_file_of_any_size_is_cut_so_that_some_can_be_held_out(size: int, tmp_path: Path) -> None:
    line = "床前明月光，疑是地上霜。"
    lines = (f"{number} {line}\n" for number in range(size // len(line.encode())))
    (tmp_path / "poems.txt").write_text("".join(lines), encoding="utf-8")
    text = gather_text(tmp_path)
    train, held_out = split_documents(text.documents, 0.04)
    assert len(train) > len(held_out) >= 10
    assert "".join(document.text for document in text.documents) == (tmp_path / "poems.txt").read_text(encoding="utf-8")


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\0")
    with pytest.raises(BadData, match="no readable text"):
        gather_text(tmp_path)
