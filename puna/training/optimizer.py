"""AdamW over the parameters that train: matrices decay, vectors (norm gains) do not. Or Muon for the blocks' matrices.

    AdamW: w -= rate (m / (sqrt(v) + eps) + decay w)       Loshchilov & Hutter 2017, arXiv:1711.05101

One rate and one decay serve both. An adapter's B may learn at a rate of its own: LoRA+, Hayou et al. 2024, arXiv:2402.12354.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from puna.training.config import TrainingConfig
from puna.training.muon import Muon

__all__ = ["build_optimizer", "moment_names", "trainable"]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, each once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """Fused AdamW, or Muon and AdamW together; the learning rate is set anew at every step."""
    weights = trainable(model)
    orthogonal = {
        name: weight
        for name, weight in weights.items()
        if config.optimizer == "muon" and ".layers." in f".{name}" and weight.dim() == 2
    }
    others = {name: weight for name, weight in weights.items() if name not in orthogonal}
    faster = {name for name in others if config.lora_b_ratio != 1 and name.endswith(".B")}
    matrices = {name for name, weight in others.items() if weight.dim() >= 2}
    groups = [
        {"params": [others[name] for name in others if name in matrices - faster], "weight_decay": config.weight_decay},
        {"params": [others[name] for name in others if name not in matrices], "weight_decay": 0.0},
        {
            "params": [others[name] for name in others if name in faster],
            "weight_decay": config.weight_decay,
            "rate_ratio": config.lora_b_ratio,
        },
    ]
    adamw = AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    if not orthogonal:
        return adamw
    muon = Muon(orthogonal.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return _Together(adamw, muon)


def moment_names(optimizer: Optimizer, weight: nn.Parameter) -> tuple[str, ...]:
    """What the optimizer keeps of a parameter between two steps."""
    is_adamw = not isinstance(optimizer, _Together) or optimizer.is_adamws(weight)
    return ("exp_avg", "exp_avg_sq", "step") if is_adamw else ("momentum_buffer",)


class _Together(Optimizer):
    """Two optimizers over different parameters that share their groups and their state with this one."""

    def __init__(self, adamw: AdamW, muon: Muon) -> None:
        super().__init__([*adamw.param_groups, *muon.param_groups], {})
        self._parts = adamw, muon
        self._adamws = {id(weight) for group in adamw.param_groups for weight in group["params"]}
        for part in self._parts:
            part.state = self.state

    def is_adamws(self, weight: nn.Parameter) -> bool:
        """Whether AdamW updates a parameter."""
        return id(weight) in self._adamws

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Let both update their parameters."""
        for part in self._parts:
            part.step()
        return None if closure is None else closure()
