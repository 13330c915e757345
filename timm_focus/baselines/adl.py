"""ADL (Attention-based Dropout Layer): drop the strongest region of a feature map in training, or weight the map.

What it does
    ADL comes after some modules of a convolutional network. The mean over the channels of their output, the attention,
    shows where the network looks. At each step, each of these layers either drops the strongest region, so that the
    network must use the rest, or multiplies the map by the sigmoid of its attention, so that the strongest counts
    more. One random draw per layer and forward pass decides, for the whole batch (of each process, if several).
    The loss is that of plain training. In evaluation there is no layer: model and state dict are the plain ones.

Hyper-parameters
    gamma      0.9   drop where the attention reaches this share of its maximum in the image.
    drop_rate  0.75  probability of dropping instead of weighting.
    modules          modules that ADL comes after; by default the first block of each of the last two stages and the
                     last block (layer3.0, layer4.0 and layer4.2 of ResNet50).

Cost
    One forward and one backward pass, as in plain training: no second pass, no parameters, no state. A mean and
    a product of each chosen map are computed.

When not to use it
    With networks without a map of channels, such as vision transformers (refused). After a module whose output is as
    often negative as positive, where a share of the maximum says little. ADL was made to find whole objects by a
    classifier, and costs some accuracy there.

Source
    J. Choe and H. Shim, 'Attention-based Dropout Layer for Weakly Supervised Object Localization', CVPR 2019; here as
    a baseline that 'See More for Scene' compares with.
"""
import difflib
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from .maps import trace_maps

__all__ = ['adl_modules', 'apply_adl', 'drop_attention', 'insert_adl']

GAMMA = 0.9
DROP_RATE = 0.75


def apply_adl(x: Tensor, drop: Tensor, gamma: float = GAMMA) -> Tensor:
    """Drops the strongest region of each map, or weights the map; the deterministic half of `drop_attention`.

    The gradient goes through the weights, not through the choice of the region. Nothing is rescaled.

    Args:
        x: feature maps `[B, C, h, w]`.
        drop: boolean `[]`, whether to drop.
        gamma: positions are dropped where the attention reaches this share of its maximum in the image.

    Returns:
        A new tensor like `x`.
    """
    attention = x.mean(1, keepdim=True)
    keep = attention < gamma * attention.amax((2, 3), keepdim=True)
    return x * torch.where(drop, keep.to(x.dtype), attention.sigmoid())


def drop_attention(
        x: Tensor,
        gamma: float = GAMMA,
        drop_rate: float = DROP_RATE,
        generator: Optional[torch.Generator] = None,
) -> Tensor:
    """Drops the strongest region of each map of a batch, or weights all maps (ADL, Choe and Shim, CVPR 2019).

    Args:
        x: feature maps `[B, C, h, w]` of a floating dtype.
        gamma: positions are dropped where the attention reaches this share of its maximum; above 0 and at most 1.
        drop_rate: probability of dropping, between 0 and 1.
        generator: random generator for the draw; None for the device's default generator.

    Returns:
        A new tensor like `x`.

    Raises:
        ValueError: if `x` is not a floating `[B, C, h, w]` tensor, or a setting is out of range.
    """
    _check_settings(gamma, drop_rate)
    if not torch.is_tensor(x) or x.ndim != 4 or not x.is_floating_point():
        given = f'{x.dtype} of shape {tuple(x.shape)}' if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f'x must be a floating [B, C, h, w] tensor, got {given}.')
    draw = torch.rand((), generator=generator, device=generator.device if generator is not None else x.device)
    return apply_adl(x, (draw < drop_rate).to(x.device), gamma)


class _Layer:
    """`drop_attention` as a forward hook that only acts when its module is in training."""

    def __init__(self, name: str, gamma: float, drop_rate: float):
        self.name = name
        self.gamma = gamma
        self.drop_rate = drop_rate

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Optional[Tensor]:
        return drop_attention(output, self.gamma, self.drop_rate) if module.training else None


def insert_adl(
        model: nn.Module,
        modules: Optional[Sequence[str]] = None,
        gamma: float = GAMMA,
        drop_rate: float = DROP_RATE,
) -> List[str]:
    """Inserts ADL after modules of a model, whose parameters, state dict and evaluation do not change.

    The layers are forward hooks, so copies of the model have them, too (a running average, another process, a compiled
    model). Insert them before compiling.

    Args:
        model: a convolutional timm model; changed in place.
        modules: names of modules with outputs `[B, C, h, w]`. By default these are the first block of each of the last
            two stages of timm's `feature_info`, and the last block. The blocks of a stage are its members, if all have
            one type and the output shape of the stage; otherwise the stage counts as one block.
        gamma: positions are dropped where the attention reaches this share of its maximum; above 0 and at most 1.
        drop_rate: probability of dropping, between 0 and 1.

    Returns:
        The names of the modules that ADL comes after.

    Raises:
        ValueError: if a name is not a module with a map, the model already has ADL or is not convolutional, or a
            setting is out of range.
    """
    _check_settings(gamma, drop_rate)
    if adl_modules(model):
        raise ValueError(f'The model has ADL already, after {", ".join(adl_modules(model))}: take a new one.')
    final, outputs, _ = trace_maps(model)
    names = _default_modules(model, final, outputs) if modules is None else list(dict.fromkeys(modules))
    if not names:
        raise ValueError('ADL is to come after no module: name one, or leave the default.')
    known = dict(model.named_modules())
    for name in names:
        if name not in known or not name:
            near = difflib.get_close_matches(name, known, 3)
            hint = f'did you mean {", ".join(near)}?' if near else 'model.named_modules() names them.'
            raise ValueError(f'{type(model).__name__} has no module {name!r}, after which ADL could come: {hint}')
        if not _is_map(outputs.get(name)):
            maps = [n for n, output in outputs.items() if n and _is_map(output)]
            near = difflib.get_close_matches(name, maps, 3) or maps[-3:]
            raise ValueError(f'The module {name} gives no map [B, C, h, w] for ADL: such do {", ".join(near)}.')
    for name in names:
        module = known[name]
        # gradient checkpointing calls the members of a Sequential, not the Sequential
        while type(module).forward is nn.Sequential.forward and len(module):
            module = module[-1]
        module.register_forward_hook(_Layer(name, gamma, drop_rate))
    return names


def adl_modules(model: nn.Module) -> List[str]:
    """Names of the modules that ADL comes after, in the order of the model; [] without ADL."""
    return [hook.name for module in model.modules() for hook in module._forward_hooks.values()
            if isinstance(hook, _Layer)]


def _default_modules(model: nn.Module, final: Tensor, outputs: Dict[str, Any]) -> List[str]:
    info = model.feature_info
    stages = [f['module'] for f in getattr(info, 'info', info)][-2:]
    if len(stages) < 2 or not all(_is_map(outputs.get(stage)) for stage in stages):
        raise ValueError(
            f'{type(model).__name__} does not tell the maps of its last two stages, after which ADL comes: name '
            'modules yourself, by --adl-modules.')
    before, last = (_blocks(model, stage, outputs) for stage in stages)
    return list(dict.fromkeys([before[0], last[0], last[-1]]))


def _blocks(model: nn.Module, stage: str, outputs: Dict[str, Any]) -> List[str]:
    module: Any = model.get_submodule(stage)
    prefix = stage
    if isinstance(getattr(module, 'blocks', None), nn.Module):
        module, prefix = module.blocks, f'{stage}.blocks'
    names = [f'{prefix}.{child}' for child, _ in module.named_children()]
    alike = len({type(child) for child in module.children()}) == 1
    if alike and all(_is_map(outputs.get(n)) and outputs[n].shape == outputs[stage].shape for n in names):
        return names
    return [stage]


def _is_map(output: Any) -> bool:
    return torch.is_tensor(output) and output.ndim == 4 and output.is_floating_point()


def _check_settings(gamma: float, drop_rate: float) -> None:
    if not 0 < gamma <= 1:
        raise ValueError(f'gamma must lie above 0 and be at most 1, got {gamma!r}.')
    if not 0 <= drop_rate <= 1:
        raise ValueError(f'drop_rate must lie between 0 and 1, got {drop_rate!r}.')
