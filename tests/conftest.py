"""What every test may lean on: one thread, no network, one seeded tiny model, the shared data where it is present."""

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from puna.arch.config import ModelConfig
from puna.arch.presets import find_preset
from puna.model.init import initialise
from puna.model.llama import Llama

torch.set_num_threads(1)

settings.register_profile("push", deadline=None, max_examples=50)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("PUNA_COUNTS", "push"))

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tiny_config() -> ModelConfig:
    """4 query heads on 2 key-value heads, 2 layers, 512 tokens of vocabulary."""
    return find_preset("tiny").config


@pytest.fixture
def build_llama(tiny_config: ModelConfig) -> Callable[..., Llama]:
    """`build_llama(seed=0, **changes)`: a Llama of the tiny preset with the changes, and weights worth testing with."""

    def build(seed: int = 0, **changes: Any) -> Llama:
        model = initialise(Llama(replace(tiny_config, **changes)), seed)
        return _enliven(model, seed).eval()

    return build


@pytest.fixture
def tiny(build_llama: Callable[..., Llama]) -> Llama:
    """The seeded tiny model."""
    return build_llama()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real texts, tokenizers and checkpoints; skips where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data is not here")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that reaches beyond this machine, even where the code under test swallows the error."""
    attempts: list[str] = []

    def guard(original: Callable[..., Any], host_of: Callable[..., object]) -> Callable[..., Any]:
        def guarded(*args: Any, **named: Any) -> Any:
            host = host_of(*args, **named)
            if not _is_local(host):
                attempts.append(str(host))
                raise ConnectionRefusedError(f"tests have no network: {host}")
            return original(*args, **named)

        return guarded

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guard(getattr(socket.socket, name), lambda _, address: _host(address)))
    monkeypatch.setattr(socket.socket, "sendto", guard(socket.socket.sendto, lambda _, *args: _host(args[-1])))
    monkeypatch.setattr(socket, "getaddrinfo", guard(socket.getaddrinfo, lambda host, *_, **__: host))
    yield
    assert not attempts, f"this test tried to reach {attempts}"


def _host(address: object) -> object:
    return address[0] if isinstance(address, tuple) else None  # a Unix socket's address is a path


def _is_local(host: object) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return host is None or text in ("", "localhost")
    return address.is_loopback or address.is_unspecified


@torch.no_grad()
def _enliven(model: Llama, seed: int) -> Llama:
    """Bring every matrix to the size at which unit inputs give unit outputs, and every gain away from 1.

    At the starting scale attention is all but uniform and the blocks all but nothing: errors there would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.add_(torch.empty(weight.shape).normal_(0.0, 0.1, generator=generator))
        else:
            weight.mul_(weight.shape[1] ** -0.5 / weight.std())
    return model
