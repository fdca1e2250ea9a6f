"""Muon with today's refinements for the matrices of the blocks, AdamW for everything else.

Sources: Muon, Jordan et al. 2024; the polynomials of Polar Express, Amsel et al. 2025
(arXiv:2505.16932); the normalization of rows, NorMuon, Li et al. 2025 (arXiv:2510.05491); cautious
weight decay, Chen et al. 2025 (arXiv:2510.12402); the momentum that warms up, modded-nanogpt.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gpt2ckpt import extend

# Of a degree-5 polynomial p(s) = a s + b s^3 + c s^5 of the singular values, for each iteration.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SAFETY = 1.02  # the singular values must not exceed 1 by rounding


@dataclass
class ModernMuonConfig:
    """Learning rates are those of the peak; the schedule scales both."""

    lr: float = 0.02  # of the matrices of the blocks
    adamw_lr: float = 3e-3  # of embeddings, output layer and scalars
    weight_decay: float = 0.05  # of the matrices of the blocks, times their learning rate
    momentum: float = 0.95
    momentum_warmup: int = 100  # steps in which the momentum grows from 0.85
    row_decay: float = 0.95  # of the running mean square of each row; 0: rows are not normalized
    betas: list[float] = field(default_factory=lambda: [0.8, 0.95])  # of AdamW
    eps: float = 1e-10  # of AdamW


@extend.optimizer("modern_muon", ModernMuonConfig)
def build(config: ModernMuonConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the parameters with two or more dimensions in `model.blocks`, and AdamW."""
    matrices = [p for p in model.blocks.parameters() if p.ndim >= 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(
        matrices,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        momentum_warmup=config.momentum_warmup,
        row_decay=config.row_decay,
    )
    beta1, beta2 = config.betas
    adamw = torch.optim.AdamW(
        others, config.adamw_lr, (beta1, beta2), config.eps, weight_decay=0.0, fused=True
    )
    return [muon, adamw]


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalized momentum of each matrix.

    A parameter with more than two dimensions is a batch of matrices. Matrices of one shape are
    processed together. Each has the state `momentum`, of its shape, `row_square`, of its shape
    with one column, and `step`, the number of its steps.
    """

    def __init__(self, parameters: list[nn.Parameter], **settings: float) -> None:
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(tuple(parameter.shape[-2:]), []).append(parameter)
            for parameters in shapes.values():
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        updates = [self._momentum(parameter, group) for parameter in parameters]
        directions = orthogonalize(torch.cat(updates)).split([len(each) for each in updates])
        rows, columns = parameters[0].shape[-2:]
        size = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, direction in zip(parameters, directions, strict=True):
            update = direction.view_as(parameter)
            if group["row_decay"]:
                update = self._normalize_rows(parameter, update, group["row_decay"])
            # Cautious decay: only values that the update also moves towards zero.
            shrinks = parameter * update > 0
            parameter.sub_(parameter * shrinks, alpha=group["lr"] * group["weight_decay"])
            parameter.sub_(update, alpha=size)

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the momentum; return Nesterov's, as a batch of matrices."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(parameter)
            state["row_square"] = torch.zeros_like(parameter[..., :1])
        state["step"] += 1
        warm = min(float(state["step"]) / max(group["momentum_warmup"], 1), 1.0)
        momentum = 0.85 + (group["momentum"] - 0.85) * warm
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum).view(-1, *parameter.shape[-2:])

    def _normalize_rows(self, parameter: Tensor, update: Tensor, decay: float) -> Tensor:
        """Divide each row by its running root mean square; keep the norm of the matrix."""
        state = self.state[parameter]
        square = state["row_square"].lerp_(update.square().mean(-1, keepdim=True), 1 - decay)
        correction = 1 - decay ** float(state["step"])
        normalized = update / (square / correction).sqrt().add_(1e-10)
        before, after = (part.norm(dim=(-2, -1), keepdim=True) for part in (update, normalized))
        return normalized * (before / after.add_(1e-10))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices [N, R, C] with the same singular vectors, and singular values near 1."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x.float() if x.device.type == "cpu" else x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * SAFETY + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
