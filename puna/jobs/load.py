"""puna.load(path): a model with its tokenizer, ready to be called, to generate and to embed, with or without an adapter."""

import difflib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from puna.adaptation.targets import attach_adapter, detach, put_back
from puna.arch.config import ModelConfig
from puna.arch.presets import PRESETS
from puna.errors import CheckpointMismatch, PunaError, UsageError, unknown_name
from puna.evaluation.embedding import Pool, embed_texts
from puna.generation.decode import Completion, generate
from puna.generation.sampling import Sampler, SamplingSettings
from puna.model.linears.adapter import Adapter
from puna.model.linears.int8 import Int8Linear, Int8WeightLinear
from puna.model.linears.kind import AnyLinear
from puna.model.linears.narrow import NarrowLinear
from puna.model.linears.rounded import rounded
from puna.model.llama import Llama
from puna.model.surgery import named_linears, replace_linear
from puna.planning.settings import BASES, Base
from puna.tokens.tokenizer import Tokenizer
from puna.weights.adapters import ADAPTER_CONFIG, load_adapter, read_base_path
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.headers import find_checkpoint, is_hub_name, read_header
from puna.weights.loading import load_llama, weights_sha256
from puna.weights.meta import MetaSettings
from puna.weights.vocabulary import tokenizer_of

__all__ = [
    "LoadedModel",
    "find_base",
    "find_model",
    "is_adapter",
    "load",
    "load_adapter_for",
    "unproven",
]

_DEFAULT_NEW_TOKENS = 128


class LoadedModel(nn.Module):
    """A Llama with its tokenizer; `notices` says what was ignored or could not be checked while loading, and what embed cut."""

    def __init__(
        self, llama: Llama, tokenizer: Tokenizer | None, header: CheckpointHeader, notices: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.llama = llama
        self.notices = tuple(notices)
        self._tokenizer, self._header = tokenizer, header
        self._base_sha256 = cache(lambda: weights_sha256(header))

    @property
    def base_sha256(self) -> str:
        """The digest of the weights as they are stored."""
        return self._base_sha256()

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self.llama.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights. Raises: UsageError where there is none; ids still go in and logits out."""
        if self._tokenizer is None:
            raise UsageError(
                "the model has no tokenizer.json or tokenizer.model", "put the tokenizer's files beside the weights"
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer came with the weights."""
        return self._tokenizer is not None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text or a turn."""
        return self.tokenizer.eos_ids

    def forward(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV in float32."""
        return self.llama(ids_BT)

    def use_adapter(self, path: str | Path | None) -> None:
        """Put another adapter beside the base, or none, without reading the base again; the weights stay frozen.

        Raises: CheckpointMismatch: an adapter of another base. FormatError. What stood there is then back.
        """
        if path is not None:
            self.config.require_llama(self._header.path)
        adapter = None if path is None else load_adapter_for(self._header, Path(path), self._base_sha256)
        before = detach(self.llama)
        if adapter is None:
            return
        try:
            attach_adapter(self.llama, adapter)
        except PunaError:
            put_back(self.llama, before)
            raise
        self.notices += unproven(adapter, path)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = _DEFAULT_NEW_TOKENS,
        stop: Sequence[str] = (),
        **settings: Any,
    ) -> Completion:
        """Continue a text. Args: settings: fields of SamplingSettings (temperature, top_k, top_p, min_p, seed)."""
        known = SamplingSettings.__dataclass_fields__
        for name in settings.keys() - known:
            raise unknown_name("setting", name, known)
        ids, sampler = self.tokenizer.encode(prompt, bos=True), Sampler(SamplingSettings(**settings))
        return generate(self.llama, self.tokenizer, ids, sampler, max_new_tokens=max_new_tokens, stop=stop)

    def embed(self, texts: Sequence[str], pool: Pool = "mean") -> Tensor:
        """Texts as vectors_ND of length 1 in float32 on the CPU: the mean of their states, or the last one.

        A text longer than the context is cut to it, and `notices` says so. Raises: UsageError, BadData, NonFiniteLoss.
        """
        embedded = embed_texts(self.llama, self.tokenizer, texts, pool)
        self.notices = tuple(dict.fromkeys((*self.notices, *embedded.notices)))
        return embedded.vectors_ND


def load(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    device: torch.device | str = "cpu",
    base: Base | None = None,
    dtype: torch.dtype | None = None,
    meta: MetaSettings | None = None,
    mapped: bool = False,
    integer_products: bool = False,
) -> LoadedModel:
    """Load a run, a Hugging Face or Meta folder, a GGUF file, or an adapter together with the base that it names.

    Args:   adapter: a run folder or a PEFT folder to attach; everything else is frozen then.
            base: how the blocks' Linears are held. int8 and nf4 round each as it is read, whatever kind it was stored as:
            the dense model never stands in memory. Else what is stored in int8 or as factors stays so. None: in `dtype`.
            dtype: of all other weights, and of the products; None: that of a dense base, else float32; beside int8 and
            nf4 bfloat16 where the file's embedding has at most 16 bits a number, which is what `puna plan` counts, else
            float32. A bfloat16 base in float32: each product widens its weight.
            meta: what a Meta folder does not say itself. mapped: leave matrices in their file (load_llama).
            integer_products: int8 Linears, stored so or rounded here, round their input too, and multiply in integers;
            without it they are what their dense weights say.
    Raises: UsageError: no weights there. FormatError: broken files. CheckpointMismatch: changed files, another base.
    """
    if adapter is None and is_adapter(Path(path)):
        path, adapter = find_base(path), path
    header = read_header(find_model(path), meta)
    if not header.tensors:
        raise _no_weights(f"{path} holds a vocabulary and")
    tokenizer, stored = tokenizer_of(header), header.stored
    notices = list(stored.notices)
    if tokenizer is not None and not set(stored.eos_ids) <= set(tokenizer.eos_ids):
        notices.append(
            f"{path}: the model's settings end at ids {stored.eos_ids}, the tokenizer at {tokenizer.eos_ids}"
        )
    if base in ("bfloat16", "int8", "nf4") or mapped:
        header.config.require_llama(path)
    dtype = _dtype(header, base, dtype)
    llama = load_llama(header, device, dtype, _rounding(base, dtype, mapped=mapped), mapped=mapped)
    if integer_products:
        _multiply_in_integers(llama)
    model = LoadedModel(llama, tokenizer, header, notices)
    if adapter is not None:
        model.use_adapter(adapter)
    return model


def _dtype(header: CheckpointHeader, base: Base | None, asked: torch.dtype | None) -> torch.dtype:
    """The type of what is not quantised. Errors: UsageError: an unknown base, another type than a dense base's own."""
    if base is not None and base not in BASES:
        raise unknown_name("base", base, BASES)
    if base in ("int8", "nf4"):
        table = header.expected()[0].name  # the embedding comes first
        is_wide = any(tensor.name == table and tensor.dtype in ("F32", "F64") for tensor in header.tensors)
        return asked or (torch.float32 if is_wide else torch.bfloat16)
    own = torch.bfloat16 if base == "bfloat16" else torch.float32
    if base is not None and asked not in (None, own, torch.float32):
        raise UsageError(
            f"base {base}: expected products in {own}, got {asked}", "leave out the precision, or take base int8 or nf4"
        )
    return asked or own


def _rounding(base: Base | None, dtype: torch.dtype, *, mapped: bool) -> Callable[[Tensor], AnyLinear] | None:
    """What makes each block Linear of its dense weight; None: it stays dense, in `dtype`."""
    if base == "bfloat16" and dtype == torch.float32 and not mapped:
        return lambda weight_oi: NarrowLinear(weight_oi.to(torch.bfloat16))
    return partial(rounded, to=base) if base in ("int8", "nf4") else None


def _multiply_in_integers(llama: Llama) -> None:
    """Have every int8 Linear round its input too."""
    for path, linear in named_linears(llama):
        if isinstance(linear, Int8WeightLinear):
            replace_linear(llama, path, Int8Linear(linear.weight, linear.scale))


def find_model(path: str | Path) -> Path:
    """Where a model's weights are: a Hugging Face or Meta folder, a GGUF file, or a run folder's `model/`.

    Raises: UsageError: a preset or a config.json (no weights), a hub's name, an adapter, nothing there; each with a way on.
            FormatError: a folder or file of another format.
    """
    place = Path(path)
    if not place.exists():
        raise _nothing_there(str(path), place)
    if is_adapter(place):
        raise UsageError(f"{path} is an adapter, not a model", "name its base, and this one with --adapter")
    if place.is_file() and place.suffix == ".json":
        raise _no_weights(f"{path} is a configuration and")
    return find_checkpoint(place)


def find_base(adapter: str | Path) -> Path:
    """The base model that an adapter names. Raises: UsageError where that is not here."""
    base = read_base_path(Path(adapter))
    if base is None:
        raise UsageError(f"{adapter}: the base model that it names is not here", "name the base model as well")
    return find_model(base)


def is_adapter(path: Path) -> bool:
    """Whether an adapter, and no model, is what a path holds."""
    holds_model = any((path / part / "config.json").is_file() for part in ("", "model"))
    return not holds_model and any((path / part / ADAPTER_CONFIG).is_file() for part in ("", "adapter"))


def load_adapter_for(base: CheckpointHeader, path: Path, sha256: Callable[[], str] | None = None) -> Adapter:
    """Read an adapter of a base. Raises: CheckpointMismatch: it says that it was trained on other weights.

    Args: sha256: gives the hash of the base's weights; None: it is formed anew.
    """
    adapter = load_adapter(path)
    if adapter.base_sha256 is not None and adapter.base_sha256 != (sha256() if sha256 else weights_sha256(base)):
        raise CheckpointMismatch(
            f"{path}: trained on other weights than those of {base.path}",
            "name the base that the adapter was trained on",
        )
    return adapter


def unproven(adapter: Adapter | None, path: str | Path | None) -> tuple[str, ...]:
    """A notice of an adapter that carries no hash of its base; none where it does, or there is no adapter."""
    if adapter is None or adapter.base_sha256 is not None:
        return ()
    return (f"{path}: does not say which weights it was trained on",)


def _nothing_there(name: str, path: Path) -> UsageError:
    if name in PRESETS:
        return _no_weights(f"'{name}' is a preset and")
    if is_hub_name(name) and not path.parent.exists():
        return UsageError(
            f"{name}: no such folder; models are not downloaded",
            f"hf download {name} --local-dir {path.name}, then name that folder",
        )
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return UsageError(
        f"{name}: no such file or folder",
        f"did you mean {path.with_name(near[0])}?" if near else "name a run folder or a Hugging Face folder",
    )


def _no_weights(subject: str) -> UsageError:
    return UsageError(f"{subject} has no weights", "train a model first (puna train), or name a folder with weights")
