"""AdamW over the parameters that train: matrices decay, vectors (norm gains) do not.

Source: Loshchilov & Hutter 2017, arXiv:1711.05101.
"""

from torch import nn
from torch.optim import AdamW

from puna.training.config import TrainingConfig

__all__ = ["build_optimizer", "trainable"]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, each once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build_optimizer(model: nn.Module, config: TrainingConfig) -> AdamW:
    """Fused AdamW; the learning rate is set anew at every step."""
    weights = trainable(model).values()
    groups = [
        {"params": [weight for weight in weights if weight.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
