"""What a topic is shown on: a model that runs, or the bare sizes of one that does not, and a text in its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import parameter_count
from puna.arch.presets import PRESETS
from puna.errors import UsageError
from puna.jobs.load import find_model, load
from puna.jobs.machine import available_bytes
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer
from puna.weights.headers import read_header

__all__ = ["Subject", "find_subject", "small_tokenizer"]

_SENTENCES = {"en": "The cat sleeps on the sofa.", "zh": "貓在沙發上睡覺。"}
_LEARNED_FROM = (
    "The", "the", " cat", " sleeps", " on", " the", " sofa", "貓", "在", "沙發", "上", "睡覺", "。", "猫", "沙发", "睡觉",
)  # fmt: skip
_MOST_RANDOM = 50_000_000  # parameters of a preset that is given random weights
_MOST_TOKENS = 16
_SMALL_VOCABULARY = 304
_SPARE = 2  # of the free memory, what a model's float32 weights may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Args: llama, tokenizer: None where only sizes are known. ids: the tokens shown. rank: asked for. notices: to be said."""

    name: str
    config: ModelConfig
    llama: Llama | None
    tokenizer: Tokenizer | None
    text: str
    ids: Sequence[int]
    rank: int | None
    notices: tuple[str, ...]

    @property
    def ids_BT(self) -> Tensor:  # noqa: N802 - named for its axes
        """The tokens as a batch of one."""
        return torch.tensor([list(self.ids)])

    @property
    def pieces(self) -> tuple[str, ...]:
        """What each token stands for: its text, or its bytes where they are part of a character; else the words."""
        if self.tokenizer is None:
            return tuple(self.text.split()[: len(self.ids)])
        names = {index: name for name, index in self.tokenizer.specials.items()}
        return tuple(names[each] if each in names else _shown(self.tokenizer.decode_bytes([each])) for each in self.ids)

    @property
    def sizes(self) -> dict[str, int]:
        """What the names of axes stand for."""
        config = self.config
        return {
            "n": len(self.ids), "d": config.dim, "h": config.n_heads, "g": config.n_kv_heads, "d_h": config.head_dim,
            "f": config.ffn_dim, "V": config.vocab_size, "L": config.n_layers, "r": self.rank or 16,
            "h*d_h": config.q_dim, "g*d_h": config.kv_dim, "d_h/2": config.head_dim // 2, "q": config.heads_per_group,
        }  # fmt: skip


def find_subject(model: str | None, text: str | None, rank: int | None, lang: str) -> Subject:
    """What was named, else the newest run under runs/, else `tiny` with random weights.

    Errors: UsageError, FormatError: as load; an empty text, a rank below 1.
    """
    if text is not None and not text.strip():
        raise UsageError("text: expected some words, got none", "leave out --text for a sentence of ours")
    if rank is not None and rank < 1:
        raise UsageError(f"rank: expected at least 1, got {rank}", "16 is common")
    name = model if model is not None else _newest_run()
    words = _SENTENCES[lang] if text is None else text
    if name in PRESETS:
        config = PRESETS[name].config
        if parameter_count(config) > _MOST_RANDOM:
            return _of_sizes(name, config, words, rank, f"{name} is a preset without weights: shapes and counts only")
        named = f"{name}, random weights, seed 0"
        return _running(named, initialise(Llama(config), seed=0), small_tokenizer(), words, rank, ())
    header = read_header(find_model(name))
    if 4 * parameter_count(header.config) * _SPARE > available_bytes(torch.device("cpu")):
        return _of_sizes(name, header.config, words, rank, f"{name} is too large to run here: shapes and counts only")
    loaded = load(name, dtype=torch.float32)
    return _running(name, loaded.llama, loaded.tokenizer, words, rank, loaded.notices)


def _newest_run() -> str:
    """The folder of the model that was written last under runs/, or `tiny`."""
    found = [path.parent for place in ("*", "*/train") for path in Path("runs").glob(f"{place}/model/config.json")]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else "tiny"


def _running(
    name: str, llama: Llama, tokenizer: Tokenizer, text: str, rank: int | None, notices: tuple[str, ...]
) -> Subject:
    ids = tokenizer.encode(text, bos=True)
    if len(ids) > _MOST_TOKENS:
        notices = (*notices, f"the text has {len(ids)} tokens; the first {_MOST_TOKENS} are shown")
    return Subject(
        name=name, config=llama.config, llama=llama.eval(), tokenizer=tokenizer, text=text, ids=ids[:_MOST_TOKENS],
        rank=rank, notices=notices,
    )  # fmt: skip


def _of_sizes(name: str, config: ModelConfig, text: str, rank: int | None, why: str) -> Subject:
    words = range(len(text.split()))  # without a tokenizer a word is a token
    return Subject(
        name=name, config=config, llama=None, tokenizer=None, text=text, ids=tuple(words)[:_MOST_TOKENS], rank=rank,
        notices=(why,),
    )  # fmt: skip


def small_tokenizer() -> Tokenizer:
    """One that knows the words of our sentences, and any other text as bytes."""
    return learn_tokenizer(_LEARNED_FROM, vocab_size=_SMALL_VOCABULARY)


def _shown(part: bytes) -> str:
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return _bytes(part)
    return "".join(each if each.isprintable() else _bytes(each.encode()) for each in text)


def _bytes(part: bytes) -> str:
    return "".join(f"<{byte:02X}>" for byte in part)
