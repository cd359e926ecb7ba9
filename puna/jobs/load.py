"""puna.load(path): a model with its tokenizer, ready to be called and to generate, with or without an adapter."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from puna.adaptation.targets import attach_adapter
from puna.arch.config import ModelConfig
from puna.arch.presets import PRESETS
from puna.errors import CheckpointMismatch, UsageError, unknown_name
from puna.generation.decode import Completion, generate
from puna.generation.sampling import Sampler, SamplingSettings
from puna.model.llama import Llama
from puna.tokens.tokenizer import Tokenizer, load_tokenizer
from puna.weights.adapters import ADAPTER_CONFIG, load_adapter, read_base_path
from puna.weights.folder import load_folder, weights_sha256
from puna.weights.headers import CONFIG_FILE, find_folder, read_header

__all__ = ["LoadedModel", "find_base", "find_model", "load"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DEFAULT_NEW_TOKENS = 128


class LoadedModel(nn.Module):
    """A Llama with its tokenizer; `notices` says what was ignored or could not be checked while loading."""

    def __init__(self, llama: Llama, tokenizer: Tokenizer | None, notices: Sequence[str] = ()) -> None:
        super().__init__()
        self.llama = llama
        self.notices = tuple(notices)
        self._tokenizer = tokenizer

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self.llama.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights. Raises: UsageError where there is none; ids still go in and logits out."""
        if self._tokenizer is None:
            raise UsageError("the model's folder has no tokenizer.json", "put the tokenizer's files beside the weights")
        return self._tokenizer

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text or a turn."""
        return self.tokenizer.eos_ids

    def forward(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV in float32."""
        return self.llama(ids_BT)

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


def load(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a run folder, a Hugging Face folder, or an adapter together with the base that it names.

    Args:   adapter: a run folder or a PEFT folder to attach; everything else is frozen then.
    Raises: UsageError: no weights there. FormatError: broken files. CheckpointMismatch: changed files, another base.
    """
    if adapter is None and _is_adapter(Path(path)):
        path, adapter = find_base(path), path
    folder = find_model(path)
    llama = load_folder(folder, device, dtype)
    stored = read_header(folder).stored
    notices = list(stored.notices)
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    if tokenizer is not None and not set(stored.eos_ids) <= set(tokenizer.eos_ids):
        notices.append(f"{folder}: config.json ends at ids {stored.eos_ids}, the tokenizer at {tokenizer.eos_ids}")
    if adapter is not None:
        notices += _attach(llama, folder, Path(adapter))
    return LoadedModel(llama, tokenizer, notices)


def find_model(path: str | Path) -> Path:
    """The folder that holds a model's weights: a Hugging Face folder, or a run folder's `model/`.

    Raises: UsageError: a preset or a config.json (no weights), a hub's name, an adapter, nothing there; each with a way on.
            FormatError: a folder or file of another format.
    """
    place = Path(path)
    if not place.exists():
        raise _nothing_there(str(path), place)
    if _is_adapter(place):
        raise UsageError(f"{path} is an adapter, not a model", "name its base, and this one with --adapter")
    if place.is_file() and place.suffix == ".json":
        raise _no_weights(f"{path} is a configuration and")
    return find_folder(place)


def find_base(adapter: str | Path) -> Path:
    """The base model that an adapter names. Raises: UsageError where that is not here."""
    base = read_base_path(Path(adapter))
    if base is None:
        raise UsageError(f"{adapter}: the base model that it names is not here", "name the base model as well")
    return find_model(base)


def _is_adapter(path: Path) -> bool:
    """Whether an adapter, and no model, is what a path holds."""
    holds_model = any((path / part / CONFIG_FILE).is_file() for part in ("", "model"))
    return not holds_model and any((path / part / ADAPTER_CONFIG).is_file() for part in ("", "adapter"))


def _attach(llama: Llama, base: Path, path: Path) -> list[str]:
    """Attach an adapter after comparing the base that it was trained on; what could not be compared is said."""
    adapter = load_adapter(path)
    if adapter.base_sha256 is not None and adapter.base_sha256 != weights_sha256(base):
        raise CheckpointMismatch(
            f"{path}: trained on other weights than those of {base}", "name the base that the adapter was trained on"
        )
    attach_adapter(llama, adapter)
    return [] if adapter.base_sha256 else [f"{path}: does not say which weights it was trained on"]


def _nothing_there(name: str, path: Path) -> UsageError:
    if name in PRESETS:
        return _no_weights(f"'{name}' is a preset and")
    if _HUB_NAME.fullmatch(name) and not path.parent.exists():
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
