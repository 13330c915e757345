"""The product of focus training: the plain timm model."""
import timm
from timm.models import get_model_args
from timm.utils import unwrap_model
from torch import nn

from timm_focus.utils.errors import sentence

from .focus_net import FocusNet
from .sharding import gathered

__all__ = ['export_backbone']


def export_backbone(model: nn.Module) -> nn.Module:
    """The product of focus training: a fresh plain timm model with the backbone's weights.

    Args:
        model: A `FocusNet` or its backbone, also inside DDP, `torch.compile` or timm's EMA, in any memory format. Of a
            model that FSDP2 has sharded, all its processes must call this.

    Returns:
        A model of `timm.create_model` under the plain architecture name, rebuilt from the backbone's recorded
        arguments, in evaluation mode, contiguous, on the device and in the dtype of the source; it shares no memory
        with it.

    Raises:
        ValueError: The architecture is not recorded, or what is recorded does not rebuild the backbone.
    """
    model = unwrap_model(model)
    backbone = unwrap_model(model.backbone) if isinstance(model, FocusNet) else model
    cfg = dict(getattr(backbone, 'pretrained_cfg', None) or {})
    architecture = cfg.get('architecture')
    if not architecture:
        raise ValueError(
            f"{type(backbone).__name__} does not record its architecture: make it by timm.create_model, "
            "or set pretrained_cfg['architecture'] to its timm name.")
    # get_model_args knows what was changed since construction, _model_args the drop rates
    args = {**getattr(backbone, '_model_args', {}), **get_model_args(backbone)}
    plain = timm.create_model(architecture, pretrained=False, pretrained_cfg=cfg, **args)
    like = next(p for p in backbone.parameters() if p.is_floating_point())
    plain = plain.to(device=like.device, dtype=like.dtype)
    try:
        plain.load_state_dict(gathered(backbone.state_dict()))
    except RuntimeError as e:
        first = sentence(e, 200)  # of what can be hundreds of names
        raise ValueError(
            f'The recorded arguments of {architecture}, {args}, do not rebuild this backbone, which was changed after '
            f'it was made: {first} ...') from e
    return plain.eval()
