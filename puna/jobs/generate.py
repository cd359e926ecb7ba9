"""Continue a prompt with a model, and say how fast it went and what it held."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from puna.generation.decode import generate as continue_prompt
from puna.generation.sampling import Sampler, SamplingSettings
from puna.jobs.load import load
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.planning.settings import Base

__all__ = ["GenerateResult", "generate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """What `puna generate --json` prints."""

    text: str
    ids: list[int]
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_bytes: int


def generate(
    model: str | Path,
    prompt: str,
    *,
    adapter: str | Path | None = None,
    max_new_tokens: int = 128,
    sampling: SamplingSettings | None = None,
    stop: Sequence[str] = (),
    base: Base | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    on_text: Callable[[str], None] | None = None,
) -> GenerateResult:
    """Load a model, continue `prompt`; `on_text` is given each piece of text as soon as it is certain.

    Args: base, dtype: as those of load.
    """
    place = choose_device(device)
    peak = PeakMemory(place)
    loaded = load(model, adapter=adapter, device=place, base=base, dtype=dtype, integer_products=True)
    completion = continue_prompt(
        loaded.llama,
        loaded.tokenizer,
        loaded.tokenizer.encode(prompt, bos=True),
        Sampler(SamplingSettings() if sampling is None else sampling),
        max_new_tokens=max_new_tokens,
        stop=stop,
        on_text=on_text,
    )
    return GenerateResult(
        text=completion.text,
        ids=list(completion.ids),
        prompt_tokens=completion.prompt_tokens,
        new_tokens=completion.new_tokens,
        finish_reason=completion.finish_reason,
        prefill_tokens_per_second=completion.prefill_tokens_per_second,
        decode_tokens_per_second=completion.decode_tokens_per_second,
        peak_bytes=peak.growth_bytes(),
    )
