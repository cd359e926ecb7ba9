"""Learn a byte-level BPE: from 256 bytes, join the most frequent neighbours again and again.

Ties go to the smallest pair of ids, so the result depends on the texts alone: not on their order, on threads or on hash
seeds. The vocabulary is bytes (0-255), merges in the order learned, specials. formats.md section 2.
Source: Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2; pre-tokeniser and special names of Llama 3.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as TokenizerFile

from puna.errors import BadData, UsageError
from puna.files import staged_folder
from puna.tokens.byte_level import BYTE_CHARACTERS, LLAMA3_PATTERN
from puna.tokens.special_names import BOS, EOS, SPECIALS
from puna.tokens.tokenizer import PLAIN_CONFIG, Tokenizer, load_tokenizer, tokenizer_from_json

__all__ = ["learn_tokenizer", "tokenizer_at"]


def learn_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of exactly `vocab_size` ids from texts.

    Errors: UsageError below 256 bytes and the specials; BadData where the texts do not hold enough different pairs.
    """
    smallest = len(BYTE_CHARACTERS) + len(SPECIALS)
    if vocab_size < smallest:
        raise UsageError(
            f"vocabulary size: expected at least {smallest} (256 bytes and {len(SPECIALS)} specials), got {vocab_size}",
            "8192 suits a few megabytes of text",
        )
    vocab, merges = _learn(texts, vocab_size - len(SPECIALS))
    largest = len(vocab) + len(SPECIALS)
    if largest < vocab_size:
        raise BadData(
            f"vocabulary size: these texts support at most {largest} tokens, got {vocab_size}",
            f"ask for {largest} or fewer, or add text",
        )
    file = _assemble(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    file.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    begin = file.token_to_id(BOS)
    file.post_processor = processors.TemplateProcessing(  # what transformers puts before a text, as Llama 3 does
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, begin)]
    )
    return tokenizer_from_json(file.to_str(pretty=True), _config(file))


def tokenizer_at(folder: Path, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder, or where there is none yet one learned from the texts. Errors: as learn_tokenizer; DiskFull."""
    if not folder.exists():
        learned = learn_tokenizer(texts, vocab_size)
        with staged_folder(folder) as staged:
            learned.save(staged)
    return load_tokenizer(folder)


def _learn(texts: Iterable[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary by name and the merges in order, as byte characters."""
    learner = _assemble(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(BYTE_CHARACTERS),  # specials are numbered first and in order: id i is byte i
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def _assemble(model: models.BPE) -> TokenizerFile:
    file = TokenizerFile(model)
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    file.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    file.decoder = decoders.ByteLevel()
    return file


def _config(file: TokenizerFile) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        **PLAIN_CONFIG,
        "bos_token": BOS,
        "eos_token": EOS,
        "added_tokens_decoder": {str(file.token_to_id(name)): {"content": name, **flags} for name in SPECIALS},
    }
