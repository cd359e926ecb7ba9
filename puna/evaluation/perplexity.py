"""The likelihood of a text: summed nats of its ids, window by window.

    nats per token = -(1/N) sum ln p(id_t | the ids of its window before t);  perplexity = exp of that
    bits per byte  = sum of nats / (ln 2 * UTF-8 bytes)

A window is N ids, preceded by BOS, which is context only: every id counts, once. A tokenizer without BOS puts the id
before the window in that place instead, so that only the first id of each text goes uncounted. With a stride below N
windows overlap, and ids that an earlier window has counted are context only.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from puna.errors import BadData, NonFiniteLoss, UsageError
from puna.model.batch import Batch
from puna.model.llama import Llama
from puna.model.loss import token_nats
from puna.tokens.tokenizer import Tokenizer

__all__ = ["Likelihood", "evaluate_text", "evaluate_windows"]

_DEFAULT_WINDOW = 512
_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """How likely a model finds a text, window by window, so that two models can be compared in pairs.

    window_nats, window_tokens: each window's summed nats and counted ids.
    bytes, characters: UTF-8 bytes and characters of the text; None where only ids were given.
    """

    window_nats: tuple[float, ...]
    window_tokens: tuple[int, ...]
    bytes: int | None
    characters: int | None
    seconds: float

    @property
    def nats(self) -> float:
        """Summed over all counted ids."""
        return math.fsum(self.window_nats)

    @property
    def tokens(self) -> int:
        """Counted ids."""
        return sum(self.window_tokens)

    @property
    def nats_per_token(self) -> float:
        """Mean over all counted ids, whatever window they stand in."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Bits of the whole text over its UTF-8 bytes; comparable between tokenizers."""
        assert self.bytes is not None, "the text's bytes were not given"
        return self.nats / (math.log(2) * self.bytes)

    @property
    def bits_per_character(self) -> float:
        """Bits of the whole text over its characters."""
        assert self.characters is not None, "the text's characters were not given"
        return self.nats / (math.log(2) * self.characters)

    @property
    def tokens_per_second(self) -> float:
        """Counted ids over the time it took."""
        return self.tokens / self.seconds


def evaluate_text(
    model: Llama, tokenizer: Tokenizer, *texts: str, window: int | None = None, stride: int | None = None
) -> Likelihood:
    """The likelihood of one or more texts; no window crosses from one to the next.

    Args:   window: ids in a window; None: 512, or the context less one for BOS where that is shorter.
            stride: ids from the start of a window to the next one's; None: the window, without overlap.
    Raises: UsageError: a window beyond the context, or a stride that would skip ids. BadData: nothing to count.
    """
    context = model.config.max_seq_len
    window = min(_DEFAULT_WINDOW, context - 1) if window is None else window
    stride = window if stride is None else stride
    if not 1 <= window <= context:
        raise UsageError(f"window: expected 1 to the context of {context}, got {window}", "choose a shorter window")
    if not 1 <= stride <= window:
        raise UsageError(f"stride: expected 1 to the window of {window}, got {stride}", "a longer one would skip ids")
    windows = [each for text in texts for each in _windows(tokenizer.encode(text), tokenizer.bos_id, window, stride)]
    rows = max(1, _BATCH_TOKENS // window)
    batches = (_pad(windows[start : start + rows]) for start in range(0, len(windows), rows))
    return evaluate_windows(
        model,
        batches,
        text_bytes=sum(len(text.encode()) for text in texts),
        text_characters=sum(len(text) for text in texts),
    )


@torch.inference_mode()
def evaluate_windows(
    model: Llama, batches: Iterable[Batch], *, text_bytes: int | None = None, text_characters: int | None = None
) -> Likelihood:
    """The likelihood of batches of windows, one window a row; what a batch does not keep is context only.

    Args:   text_bytes, text_characters: the sizes of the text behind the ids, where they are known.
    Raises: BadData: no target is kept. NonFiniteLoss: the model gives no numbers.
    """
    began = time.perf_counter()
    model.eval()
    nats: list[float] = []
    tokens: list[int] = []
    for batch in batches:
        batch = batch.to(model.device)
        hidden_BTD = model.hidden(batch.ids_BT, batch.positions_BT, batch.documents_BT)
        nats_BT = token_nats(model.lm_head, hidden_BTD, batch.targets_BT).double()
        keep_BT = torch.ones_like(nats_BT, dtype=torch.bool) if batch.keep_BT is None else batch.keep_BT
        nats += nats_BT.where(keep_BT, 0.0).sum(1).tolist()
        tokens += keep_BT.sum(1).tolist()
    if sum(tokens) == 0:
        raise BadData("evaluation: expected at least one id with context, got none", "give a longer text")
    if not math.isfinite(sum(nats)):
        raise NonFiniteLoss(
            f"evaluation: expected finite nats, got {sum(nats)}",
            "the model's weights are damaged, or overflow in 16 bits: try --precision float32",
        )
    return Likelihood(
        window_nats=tuple(nats),
        window_tokens=tuple(tokens),
        bytes=text_bytes,
        characters=text_characters,
        seconds=time.perf_counter() - began,
    )


def _windows(ids: Sequence[int], bos_id: int | None, window: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Each window's ids behind the one that is context only, and how many ids at its end it is the first to count."""
    counted = first = 0 if bos_id is not None else 1
    for start in range(first, len(ids), stride):
        end = min(start + window, len(ids))
        context = ids[start - 1] if bos_id is None else bos_id
        yield [context, *ids[start:end]], end - counted
        counted = end
        if end == len(ids):
            return


def _pad(windows: Sequence[tuple[list[int], int]]) -> Batch:
    """Windows as the rows of a batch, shorter ones filled up at the right, where no id before can see it."""
    width = max(len(ids) for ids, _ in windows)
    ids_BS = torch.zeros(len(windows), width, dtype=torch.int64)
    keep_BT = torch.zeros(len(windows), width - 1, dtype=torch.bool)
    for row, (ids, counted) in enumerate(windows):
        ids_BS[row, : len(ids)] = torch.tensor(ids)
        keep_BT[row, len(ids) - 1 - counted : len(ids) - 1] = True
    return Batch(ids_BT=ids_BS[:, :-1], targets_BT=ids_BS[:, 1:], keep_BT=keep_BT)
