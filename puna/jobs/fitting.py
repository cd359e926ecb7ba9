"""Whether a run's plan fits the memory that is there, asked before any weight is read; and what would fit instead.

A plan is what the tensors need. Where the C library's own slack could exceed the memory beside them, it is told to keep none.
"""

from dataclasses import fields, replace

import torch

from puna.arch.config import ModelConfig
from puna.errors import DoesNotFit
from puna.jobs.c_heap import LARGEST_SLACK, give_back_freed
from puna.jobs.machine import available_bytes
from puna.planning.fit import Fit, fit_memory
from puna.planning.memory import (
    PROCESS_BYTES,
    RUNTIME_BYTES,
    STREAM_BUFFERS,
    Memory,
    peak_memory,
    streamed_layer_bytes,
)
from puna.planning.settings import Settings
from puna.report.numbers import human_bytes

__all__ = ["device_memory", "ensure_fits"]

_LARGEST = 3
_FLAGS = {
    "checkpointing": "--set training.checkpoint_activations=true",
    "base": "--base {}",
    "seq": "--seq {}",
    "streamed_layers": "--set streamed_layers={}",
    "streamed_embedding": "--set streamed_embedding=true",
}


def ensure_fits(
    config: ModelConfig,
    settings: Settings,
    device: torch.device,
    *,
    resume: bool = False,
    anyway: bool = False,
    memory_bytes: int | None = None,
) -> None:
    """Refuse a run whose planned peak is larger than the memory, naming the plan's largest terms and what would fit; where it
    fits, but closely, have freed memory given back at once.

    Args:   resume: the recipe holds, so that few settings may change.
            anyway: go on all the same. memory_bytes: what there is; None: what the device has free now.
    Errors: DoesNotFit.
    """
    there = available_bytes(device) if memory_bytes is None else memory_bytes
    plan = device_memory(config, settings, device)
    if anyway or plan.total <= there:
        if device.type == "cpu" and there < (1 + LARGEST_SLACK) * plan.total:
            give_back_freed()
        return
    raise DoesNotFit(
        f"planned peak: expected at most the {human_bytes(there)} that are free on {device}, "
        f"got {human_bytes(plan.total)}: {_largest_terms(plan)}",
        f"{_remedy(config, settings, device, there, resume=resume)}; --anyway goes on all the same",
    )


def device_memory(config: ModelConfig, settings: Settings, device: torch.device) -> Memory:
    """The peak of a run in the memory of its device.

    On a CPU host memory is the device: streamed layers lie there too, beside the copies that compute, unless they are
    mapped, for pages of a file give way to anything else.
    """
    if device.type != "cpu":
        return peak_memory(config, replace(settings, mapped=False), RUNTIME_BYTES)
    resident = replace(settings, streamed_layers=0, streamed_embedding=False)
    plan = peak_memory(config, resident, PROCESS_BYTES)
    copies = min(settings.streamed_layers, STREAM_BUFFERS) * streamed_layer_bytes(config, settings)
    return replace(plan, weights=copies + plan.weights)


def _largest_terms(plan: Memory) -> str:
    sizes = {item.name: getattr(plan, item.name) for item in fields(plan) if item.name != "total"}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST]
    return ", ".join(f"{name} {human_bytes(sizes[name])}" for name in largest if sizes[name])


def _remedy(config: ModelConfig, settings: Settings, device: torch.device, there: int, *, resume: bool) -> str:
    """The flags with which the run would fit, or those of the smallest memory that would do."""
    found = _fit(config, settings, device, there)
    flags = _flags(settings, found.settings)
    if resume:  # the run's recipe holds but for this one
        is_enough = found.fits and list(flags) == ["checkpointing"]
        return f"{flags['checkpointing']} fits" if is_enough else "end other programs, or go on where there is more"
    words = " ".join(flags.values())
    if found.fits:
        return f"{words} fits"
    needed = found.memory.total - RUNTIME_BYTES + _runtime(device)
    smallest = human_bytes(needed)
    return f"the least that would do is {smallest}" + (f" with {words}" if words else "") + "; or take a smaller model"


def _fit(config: ModelConfig, wanted: Settings, device: torch.device, there: int) -> Fit:
    """Settings that fit: one micro-batch as it is, or else smaller ones, several to a step."""
    room, streams = there + RUNTIME_BYTES - _runtime(device), device.type != "cpu"
    found = fit_memory(config, wanted, room, streams=streams)
    if found.fits and found.settings.batch == wanted.batch:
        return found
    return fit_memory(config, replace(wanted, accumulates=wanted.batch > 1), room, streams=streams)


def _flags(wanted: Settings, found: Settings) -> dict[str, str]:
    """What to add to the command, by the setting that differs; a smaller micro-batch leaves the gradient as it is."""
    flags = {}
    if found.batch != wanted.batch:
        part = next(rows for rows in range(found.batch, 0, -1) if wanted.batch % rows == 0)
        flags["batch"] = f"--set training.micro_batch={part}"
    for name, words in _FLAGS.items():
        value = getattr(found, name)
        if value != getattr(wanted, name):
            flags[name] = words.format(value)
    return flags


def _runtime(device: torch.device) -> int:
    return PROCESS_BYTES if device.type == "cpu" else RUNTIME_BYTES
