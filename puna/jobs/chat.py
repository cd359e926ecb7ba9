"""A conversation with a model: what a person says, the answer as it is written, and both remembered."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from puna.generation.decode import generate
from puna.generation.sampling import Sampler, SamplingSettings
from puna.jobs.load import load
from puna.jobs.machine import choose_device
from puna.planning.settings import Base
from puna.tokens.chat import Message, encode_chat

__all__ = ["chat"]


def chat(
    model: str | Path,
    turns: Iterable[str],
    *,
    adapter: str | Path | None = None,
    max_new_tokens: int = 512,
    sampling: SamplingSettings | None = None,
    base: Base | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    on_text: Callable[[str], None],
) -> list[Message]:
    """Answer each turn in the light of those before; the model is loaded before the first is asked for.

    Args:    turns: what the person says, one after the other. on_text: given each piece of an answer as soon as it is
             certain, and "\\n" after each answer. base, dtype: as those of load.
    Returns: the whole conversation.
    Errors:  UsageError where the conversation outgrows the context. BadData, FormatError of the chat template.
    """
    loaded = load(model, adapter=adapter, device=choose_device(device), base=base, dtype=dtype, integer_products=True)
    messages: list[Message] = []
    sampler = Sampler(SamplingSettings() if sampling is None else sampling)
    for turn in turns:
        messages.append(Message("user", turn))
        prompt = encode_chat(loaded.tokenizer, messages, add_generation_prompt=True).ids
        answer = generate(
            loaded.llama, loaded.tokenizer, prompt, sampler, max_new_tokens=max_new_tokens, on_text=on_text
        )
        on_text("\n")
        messages.append(Message("assistant", answer.text))
    return messages
