"""What a run is judged by while it learns: each source's held-out text, and what the model writes after its first words.

Both leave the run as it was: nothing is learned, and a sample draws from a generator of its own, the same at every step,
so that two samples of a run differ by what was learned between them.
"""

import math
from collections.abc import Mapping, Sequence

from puna.evaluation.perplexity import evaluate_windows
from puna.generation.decode import generate
from puna.generation.sampling import Sampler, SamplingSettings
from puna.model.batch import Batch
from puna.model.llama import Llama
from puna.tokens.shards import Shards
from puna.tokens.tokenizer import Tokenizer
from puna.training.batches import ordered_windows
from puna.training.config import TrainingConfig
from puna.training.events import HeldOut, SampleEvent

__all__ = ["first_words", "hold_out", "judge", "windows_to_judge", "write_sample"]

_SHARE, _MINIMUM = 100, 10  # of the documents are held out: one in 100, at least 10
_WINDOWS = 64  # of each source
_PROMPT_TOKENS, _SAMPLE_TOKENS = 8, 40
_TEMPERATURE = 0.8
_HALF_A_CHARACTER = "\ufffd"


def hold_out(shards: Shards) -> tuple[Shards, Shards]:
    """A source without the last 1 % of its documents, at least 10, and those. Errors: BadData for too few."""
    return shards.split(max(_MINIMUM, len(shards.document_ends) // _SHARE))


def windows_to_judge(parts: Mapping[str, Shards], config: TrainingConfig) -> dict[str, list[Batch]]:
    """The first windows of each source's held-out text. Errors: BadData."""
    return {name: ordered_windows(part, config.seq, config.micro_batch, _WINDOWS) for name, part in parts.items()}


def judge(model: Llama, windows: Mapping[str, Sequence[Batch]]) -> HeldOut:
    """Mean nats over the targets of all sources' windows, and over those of each. Errors: BadData, NonFiniteLoss."""
    found = {name: evaluate_windows(model, batches) for name, batches in windows.items()}
    nats = math.fsum(nats for each in found.values() for nats in each.window_nats)
    targets = sum(each.tokens for each in found.values())
    return HeldOut(nats=nats / targets, by_source={name: each.nats_per_token for name, each in found.items()})


def first_words(shards: Shards, tokenizer: Tokenizer, context: int) -> list[int]:
    """The first ids of a text's first document, at most 8 and at least 1, without half a character."""
    room = min(_PROMPT_TOKENS, int(shards.document_ends[0]) - 1, context - 1)
    ids: list[int] = shards.window(0, max(1, room)).tolist()
    while len(ids) > 1 and tokenizer.decode(ids).endswith(_HALF_A_CHARACTER):
        ids.pop()
    return ids


def write_sample(model: Llama, tokenizer: Tokenizer, prompt: Sequence[int], step: int, seed: int) -> SampleEvent:
    """What the model writes after a prompt in at most 40 tokens, drawn at temperature 0.8 from the seed."""
    sampler = Sampler(SamplingSettings(temperature=_TEMPERATURE, seed=seed))
    written = generate(model, tokenizer, prompt, sampler, max_new_tokens=_SAMPLE_TOKENS)
    words = prompt[1:] if prompt[0] == tokenizer.bos_id else prompt
    return SampleEvent(step=step, prompt=tokenizer.decode(words), text=written.text)
