"""A policy whose weights, gradients and optimiser state are split over ranks: FSDP2, torch's `fully_shard`.

Every rank holds a slice of each weight. A layer is gathered for its forward and its backward pass, and its
gradient is summed over the ranks and split again. The sum, not the mean: weights of tokens are normalised
over the whole update (`loss_weights`), so the ranks' gradients add up to one process's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


class _Whole(nn.Module):
    """All that is trained, as one module whose forward pass is whatever is computed with it: what belongs to
    no layer (embedding, last norm, heads) is gathered around that.
    """

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


class Shards:
    """A model that is split over the ranks of `mesh`, in place. `parts`: the model and its heads."""

    def __init__(self, model: Any, parts: dict[str, nn.Module], mesh: DeviceMesh) -> None:
        """`model`: a causal model of transformers, typed only in part."""
        self._whole = _Whole(parts)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self._whole, mesh=mesh)
        self._modules = [module for module in self._whole.modules() if isinstance(module, FSDPModule)]
        for module in self._modules:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum

    def run(self, compute: Callable[[], T]) -> T:
        """`compute` with the weights at hand; its tensors stand in tuples, lists or dicts. Collective."""
        result: T = self._whole(compute)
        if not torch.is_grad_enabled():
            self._reshard()  # else kept for a backward pass that does not come, and stale after an update
        return result

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every weight is a plain whole tensor. What is kept of it must be copied. Collective."""
        for module in self._modules:
            module.unshard()
        try:
            yield
        finally:
            self._reshard()

    def _reshard(self) -> None:
        for module in self._modules:
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be split over ranks, as one. Collective where it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This rank's slice of a tensor that may be split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, on every rank alike, split as `parameter` is, on its device."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor
