"""Weights sharded over processes by FSDP2 (`torch.distributed.fsdp.fully_shard`)."""
from typing import Any, Dict

from torch import Tensor, nn

try:
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
except ImportError:  # torch before 2.6, or built without torch.distributed
    FSDPModule = None  # type: ignore[assignment,misc]  # asked for before it is used

__all__ = ['gather_for_calls', 'gathered']

_CALLS = ('forward_intermediates', 'forward_features', 'forward_head')


def gather_for_calls(backbone: nn.Module) -> None:
    """Have a sharded backbone gather its weights for what is called of it beside `forward`, too."""
    if FSDPModule is not None and isinstance(backbone, FSDPModule) and _CALLS[0] not in vars(backbone):
        for name in _CALLS:
            register_fsdp_forward_method(backbone, name)


def gathered(state: Dict[str, Any]) -> Dict[str, Tensor]:
    """A state dict with whole tensors in place of shards; all processes that have a shard must call it."""
    return {name: value.full_tensor() if hasattr(value, 'full_tensor') else value for name, value in state.items()}
