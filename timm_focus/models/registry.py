"""Registers `focus_<name>` with timm for every timm model that classifies."""
import difflib
import inspect
import sys
from typing import Any, Callable, Dict, Optional, Union

import timm
from timm.layers import is_scriptable
from timm.models import DefaultCfg, PretrainedCfg, get_arch_pretrained_cfgs, list_models, register_model

from timm_focus.method import FocusNet

__all__ = ['FOCUS_ARGS', 'create_focus_net', 'register_focus_models']

PREFIX = 'focus_'
FOCUS_ARGS = tuple(p for p in inspect.signature(FocusNet).parameters if p.startswith(PREFIX))
default_cfgs: Dict[str, DefaultCfg] = {}  # where timm's register_model looks for tags and weights


def create_focus_net(
        name: str,
        pretrained: bool = False,
        pretrained_cfg: Union[None, str, Dict[str, Any], PretrainedCfg] = None,
        pretrained_cfg_overlay: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
) -> FocusNet:
    """Make `FocusNet(timm.create_model(name, ...))`. `timm.create_model('focus_' + name, ...)` calls this.

    Args:
        name: Plain architecture name.
        pretrained: Load the backbone's pretrained weights.
        pretrained_cfg: timm's argument for the backbone.
        pretrained_cfg_overlay: timm's argument for the backbone.
        **kwargs: `focus_*` arguments go to `FocusNet`, all others to timm.

    Raises:
        TypeError: A `focus_*` argument is unknown.
        ValueError: The model cannot be focus-trained with these arguments.
    """
    focus_args = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith(PREFIX)}
    for key in focus_args:
        if key not in FOCUS_ARGS:
            near = difflib.get_close_matches(key, FOCUS_ARGS, 1)
            hint = f' Did you mean {near[0]}?' if near else ''
            raise TypeError(f'There is no argument {key}: FocusNet takes {", ".join(FOCUS_ARGS)}.{hint}')
    if kwargs.get('features_only'):
        raise ValueError(
            f'features_only=True has no classifier to focus-train: use the plain model {name} for features.')
    if is_scriptable():
        raise ValueError('scriptable=True cannot script focus training: script the plain model of export_backbone.')
    if kwargs.get('num_classes') == 0:
        raise ValueError(f'num_classes=0 leaves no classifier to focus-train: use the plain model {name} for features.')

    # the registered name, focus_<name>, must not reach the backbone, which is saved and pushed as a plain model
    if isinstance(pretrained_cfg, (dict, PretrainedCfg)):
        cfg = pretrained_cfg if isinstance(pretrained_cfg, dict) else pretrained_cfg.to_dict()
        pretrained_cfg = {**cfg, 'architecture': name}
    if pretrained_cfg_overlay:
        pretrained_cfg_overlay = {k: v for k, v in pretrained_cfg_overlay.items() if k != 'architecture'}
    backbone = timm.create_model(
        name, pretrained=pretrained, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay,
        **kwargs)
    return FocusNet(backbone, **focus_args)


def _entrypoint(name: str) -> Callable[..., FocusNet]:
    def create(pretrained: bool = False, **kwargs: Any) -> FocusNet:
        return create_focus_net(name, pretrained=pretrained, **kwargs)
    create.__name__ = create.__qualname__ = PREFIX + name
    create.__doc__ = f'{name} with focus training heads, see `timm_focus.FocusNet`.'
    return create


def register_focus_models() -> None:
    """Register `focus_<name>` for all models that timm knows now, with their tags and pretrained weights.

    Encoders (`*_enc`) have no classifier and are left out. Other models without one are refused when created.
    """
    module = sys.modules[__name__]
    for name in list_models():
        focus_name = PREFIX + name
        if name.startswith(PREFIX) or name.endswith('_enc') or timm.is_model(focus_name):
            continue
        cfg = DefaultCfg()
        for tagged, pretrained_cfg in get_arch_pretrained_cfgs(name).items():
            tag = tagged.partition('.')[2]
            cfg.tags.append(tag)
            cfg.cfgs[tag] = pretrained_cfg
        if cfg.tags:
            default_cfgs[focus_name] = cfg
        create = _entrypoint(name)
        setattr(module, focus_name, create)  # register_model puts the name into __all__
        register_model(create)
