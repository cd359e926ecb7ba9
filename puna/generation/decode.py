"""The decode loop: prompt -> cache -> logits of the last position -> id -> text, until it stops.

The prompt is read in one pass (prefill); then every step reads one token and everything in the cache. The head, the
widest product of a small model, is applied to the last position only.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from puna.errors import UsageError
from puna.generation.kv_cache import KVCache
from puna.generation.sampling import Sampler
from puna.generation.stopping import StopScanner
from puna.model.llama import Llama
from puna.tokens.streaming import TextStream
from puna.tokens.tokenizer import Tokenizer

__all__ = ["Completion", "generate", "greedy_ids", "stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came after a prompt.

    text: without EOS and without the stop string, never ending inside a character.
    ids:  every sampled id, EOS and the tokens of a stop string included.
    finish_reason: "stop", at EOS or a stop string; "length", at max_new_tokens or the end of the context.
    prefill_seconds: from the prompt to the first id. decode_seconds: the model's and the sampler's for all further ids.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: Literal["stop", "length"]
    prefill_seconds: float
    decode_seconds: float

    @property
    def new_tokens(self) -> int:
        """Sampled ids."""
        return len(self.ids)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read, over the time to the first id."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Ids after the first, over the time they took; 0 when there was only one."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else 0.0


def generate(
    model: Llama,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> Completion:
    """Continue a prompt; `on_text` is given each piece of text as soon as it is certain. Arguments as `stream`."""
    pieces = stream(model, tokenizer, prompt_ids, sampler, max_new_tokens=max_new_tokens, stop=stop)
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return end.value
        if on_text is not None:
            on_text(piece)


@torch.inference_mode()
def stream(
    model: Llama,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> Generator[str, None, Completion]:
    """Yield the text as it becomes certain, whole characters only; the generator's return value is the Completion.

    Args:   prompt_ids: empty: BOS alone.
            max_new_tokens: cut to what the context has room for after the prompt.
            stop: generation ends where one of these strings is complete.
    Raises: UsageError: no token to start from, ids of another vocabulary, or no room in the context.
    """
    prompt = _checked_prompt(model, tokenizer, prompt_ids, max_new_tokens)
    limit = min(max_new_tokens, model.config.max_seq_len - len(prompt))
    model.eval()
    cache = KVCache(model.config, len(prompt) + limit, dtype=model.dtype, device=model.device)
    characters, scanner = TextStream(tokenizer), StopScanner(stop)
    unread, ids, pieces, seconds = prompt, list[int](), list[str](), list[float]()
    is_end = False
    while not (is_end or scanner.is_found or len(ids) == limit):
        began = time.perf_counter()
        logits_V = _next_logits(model, unread, cache)[: tokenizer.vocab_size]  # some checkpoints pad the vocabulary
        next_id = sampler(logits_V)
        seconds.append(time.perf_counter() - began)
        ids.append(next_id)
        unread = [next_id]
        is_end = next_id in tokenizer.eos_ids
        if not is_end and (piece := scanner.push(characters.push(next_id))):
            pieces.append(piece)
            yield piece
    if piece := scanner.finish():  # but never what `characters` still holds: part of a character
        pieces.append(piece)
        yield piece
    return Completion(
        text="".join(pieces),
        ids=tuple(ids),
        prompt_tokens=len(prompt),
        finish_reason="stop" if is_end or scanner.is_found else "length",
        prefill_seconds=seconds[0],
        decode_seconds=sum(seconds[1:], 0.0),
    )


@torch.inference_mode()
def greedy_ids(
    model: Llama, prompt_ids: Sequence[int], tokens: int, choose: Callable[[Tensor], int] | None = None
) -> list[int]:
    """The likeliest id after a prompt, `tokens` times; without a tokenizer nothing ends it.

    Args: choose: finds it from hidden_D, the head's input, instead of the head (a preview head).
    """
    model.eval()
    cache = KVCache(model.config, len(prompt_ids) + tokens, dtype=model.dtype, device=model.device)
    unread, ids = list(prompt_ids), list[int]()
    while len(ids) < tokens:
        hidden_D = _next_hidden(model, unread, cache)
        unread = [int(model.lm_head(hidden_D[None]).argmax()) if choose is None else choose(hidden_D)]
        ids += unread
    return ids


def _next_logits(model: Llama, ids: Sequence[int], cache: KVCache) -> Tensor:
    """logits_V in float32 of the token after `ids`, which the cache now holds too."""
    return model.lm_head(_next_hidden(model, ids, cache)[None])[0].float()


def _next_hidden(model: Llama, ids: Sequence[int], cache: KVCache) -> Tensor:
    """hidden_D of the last of `ids`, which the cache now holds too: what the head reads."""
    return model.hidden(torch.tensor([ids], device=model.device), cache=cache)[0, -1]


def _checked_prompt(model: Llama, tokenizer: Tokenizer, ids: Sequence[int], max_new_tokens: int) -> list[int]:
    """The ids to start from."""
    context, vocabulary = model.config.max_seq_len, model.config.vocab_size
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens: expected at least 1, got {max_new_tokens}", "ask for at least one token")
    prompt = list(ids)
    if not prompt and tokenizer.bos_id is not None:
        prompt = [tokenizer.bos_id]
    if not prompt:
        raise UsageError("prompt: expected at least one token, got none", "this tokenizer has no BOS to start from")
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise UsageError(
            f"prompt: expected ids from 0 to {vocabulary - 1}, got {min(prompt)} to {max(prompt)}",
            "the tokenizer belongs to another model",
        )
    if len(prompt) >= context:
        raise UsageError(
            f"prompt: expected at most {context - 1} tokens (a context of {context}, one for the answer), got {len(prompt)}",
            "shorten the prompt, or use a model with a longer context",
        )
    return prompt
