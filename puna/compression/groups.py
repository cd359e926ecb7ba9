"""Linears that read one input, as one matrix: q, k, v stacked, gate and up stacked; every other Linear by itself.

A group is named by its members, `layers.0.self_attn.q_proj+k_proj+v_proj`; one of a single member by its path.
"""

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_paths, shares_input

__all__ = ["group_members", "linear_groups"]


def linear_groups(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The paths of each group's members in the order in which they are stacked, by the group's name, layer by layer."""
    groups = {}
    for path in linear_paths(config):
        parent, _, name = path.rpartition(".")
        members = shares_input(name)
        if name == members[0]:
            groups[f"{parent}.{'+'.join(members)}"] = tuple(f"{parent}.{member}" for member in members)
    return groups


def group_members(name: str) -> tuple[str, ...]:
    """The members' paths of a group's name; a Linear's path is its own only member."""
    parent, _, members = name.rpartition(".")
    return tuple(f"{parent}.{member}" for member in members.split("+"))
