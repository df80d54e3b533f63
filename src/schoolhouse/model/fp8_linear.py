"""Training in fp8, put into a network from outside: its layers, optimizer and checkpoints stay as they are.

Source: arXiv 2412.19437, section 3.3.1: in fp8 are the products of linear layers, in the network's type embedding,
output head, routers, norms and attention.
"""

from __future__ import annotations

from torch import Tensor, nn

from schoolhouse.kernels.fp8_linear import linear
from schoolhouse.model.fp8 import linears_for_fp8


class Fp8Linear(nn.Linear):
    """`nn.Linear` with fp8 operands in its product and in those of its gradients. The weight itself is not rounded."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K) to (..., N) of the same dtype."""
        return linear(x, self.weight, self.bias)


def train_in_fp8(model: nn.Module) -> int:
    """Let each layer of `linears_for_fp8` multiply in fp8, experts too, and return how many there are.

    Parameters stay the same objects: an optimizer made before goes on with them, and what is saved is what was saved.
    """
    layers = list(linears_for_fp8(model))
    for name, old in layers:
        new = Fp8Linear(old.in_features, old.out_features, old.bias is not None, device="meta")
        new.weight, new.bias = old.weight, old.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, new.train(old.training))
    return len(layers)
