"""The two kinds of text that the demo learns from: the standard library's sources, and the language reference.

Both belong to the Python that runs it. Where the reference is not installed, the library's docstrings stand in.
"""

import ast
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from puna.errors import BadData
from puna.text.corpus import Corpus, Document, cut_documents, read_documents, split_documents

__all__ = ["DemoText", "Parts", "first_kind", "gather_text", "second_kind", "split_text", "tell_left_out"]

_LEFT_OUT = {
    "__pycache__",
    "encodings",  # generated tables, hundreds of lines alike
    "idlelib",
    "lib2to3",
    "pydoc_data",  # the second kind of text
    "site-packages",
    "test",
    "tests",
}
_PIECE_BYTES, _SMALLEST_PIECE_BYTES = 1 << 14, 1 << 9
_PIECES = 200  # so many pieces a small text is cut into, so that some can be held out
_SHORT_BYTES = 200
_HELD_OUT = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoText:
    """Both kinds of documents; the names are keys of report labels."""

    corpus: Corpus
    documents: tuple[Document, ...]
    name: str
    second: tuple[Document, ...]
    second_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Documents to learn from and held-out ones: of the text that is trained on (old), and of the second kind (new)."""

    old: tuple[Document, ...]
    old_held_out: tuple[Document, ...]
    new: tuple[Document, ...]
    new_held_out: tuple[Document, ...]


def gather_text(folder: Path | None) -> DemoText:
    """The user's folder, or the standard library; and the second kind of text. Errors: BadData."""
    second_name, second = _second_kind(_library())
    corpus, documents = first_kind(folder)
    name = "text.python" if folder is None else "text.folder"
    return DemoText(corpus=corpus, documents=documents, name=name, second=second, second_name=second_name)


def first_kind(folder: Path | None) -> tuple[Corpus, tuple[Document, ...]]:
    """What was read of the user's folder or file, or of the standard library, and its documents. Errors: BadData."""
    if folder is None:
        corpus = read_documents([_library()], "library", exclude=_is_left_out)
        return corpus, corpus.documents
    corpus = read_documents([folder])
    return corpus, cut_documents(corpus.documents, _piece_bytes(corpus))


def second_kind() -> tuple[Document, ...]:
    """The documents of the language reference. Errors: BadData."""
    return _second_kind(_library())[1]


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def split_text(text: DemoText, seed: int) -> Parts:
    """Hold out a share of both kinds. Errors: BadData where there is too little."""
    old, old_held_out = split_documents(text.documents, _HELD_OUT, seed=seed)
    new, new_held_out = split_documents(text.second, _HELD_OUT, minimum=3, seed=seed)
    return Parts(old=old, old_held_out=old_held_out, new=new, new_held_out=new_held_out)


def tell_left_out(corpus: Corpus, tell: Callable[[str], None]) -> None:
    """Say what was given and did not become a document: nothing disappears silently."""
    if corpus.skipped:
        tell(f"  {len(corpus.skipped)} files are no text and left out, first {corpus.skipped[0]}")
    if corpus.bad_lines:
        tell(f"  {corpus.bad_lines} lines cannot be read and are left out, first {corpus.bad_places[0]}")


def _piece_bytes(corpus: Corpus) -> int:
    text_bytes = sum(len(document.text.encode()) for document in corpus.documents)
    return min(_PIECE_BYTES, max(_SMALLEST_PIECE_BYTES, text_bytes // _PIECES))


def _is_left_out(path: Path) -> bool:
    return path.name in _LEFT_OUT or (path.is_file() and path.suffix != ".py")


def _second_kind(library: Path) -> tuple[str, tuple[Document, ...]]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        return "text.docstrings", _docstrings(library)
    documents = [Document(text=text, source="reference", name=name) for name, text in sorted(topics.items())]
    return "text.reference", cut_documents(documents, _PIECE_BYTES)


def _docstrings(library: Path) -> tuple[Document, ...]:
    """Docstrings of modules, classes and functions, one document a file."""
    documents = []
    for source in read_documents([library], "library", exclude=_is_left_out).documents:
        try:
            nodes = list(ast.walk(ast.parse(source.text)))
        except (SyntaxError, ValueError):
            continue
        text = "\n\n".join(_docstrings_of(nodes))
        if len(text) >= _SHORT_BYTES:
            documents.append(Document(text=text, source="docstrings", name=source.name))
    if not documents:
        raise BadData("this Python has neither a language reference nor docstrings", "give text with --text DIR")
    return tuple(documents)


def _docstrings_of(nodes: Sequence[ast.AST]) -> list[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    found = (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))
    return [text for text in found if text]
