"""What the tokenizers library makes where nothing else is asked for: GPT-2's pattern, special tokens first."""

from collections.abc import Iterable

import tokenizers

__all__ = ["learn_gpt2_json"]


def learn_gpt2_json(lines: Iterable[str], vocab_size: int, specials: list[str]) -> str:
    """A tokenizer.json, learned from a few lines."""
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(lines, trainer)
    text: str = learned.to_str()
    return text
