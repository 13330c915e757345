"""What timm asks of a model, answered by the backbone of a `FocusNet`."""
import re
from typing import Any, Callable, Dict, Set, Union

from timm.optim import auto_group_layers
from torch import Tensor, nn

from .heads import CamHead, pre_logits_size
from .sharding import gather_for_calls

__all__ = ['DISTILLED', 'TimmInterface']

DISTILLED = 'Focus training does not go with distilled training, whose two outputs it cannot pair: leave it off.'
_ANCHOR = re.compile(r'(?<![\[\\])\^')  # the ^ that means the beginning, not that of [^...] or \^


def _of_backbone(name: str) -> property:
    return property(lambda self: getattr(self.backbone, name), lambda self, value: setattr(self.backbone, name, value))


class TimmInterface(nn.Module):
    """timm's model interface: attributes and methods of `self.backbone`, with the heads taken care of."""

    backbone: Any  # a timm model
    cam_head: CamHead
    erased_head: nn.Linear

    num_classes = _of_backbone('num_classes')
    num_features = _of_backbone('num_features')
    head_hidden_size = _of_backbone('head_hidden_size')
    in_chans = _of_backbone('in_chans')
    feature_info = _of_backbone('feature_info')
    pretrained_cfg = _of_backbone('pretrained_cfg')
    default_cfg = _of_backbone('default_cfg')

    @property
    def _traits(self) -> Dict[str, Any]:  # where timm's get_model_input_config looks
        return getattr(self.backbone, '_traits', {})

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gather_for_calls(self.backbone)
        return self.backbone.forward_features(x, *args, **kwargs)

    def forward_head(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gather_for_calls(self.backbone)
        return self.backbone.forward_head(x, *args, **kwargs)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any):
        gather_for_calls(self.backbone)
        return self.backbone.forward_intermediates(x, *args, **kwargs)

    def get_classifier(self) -> nn.Module:
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """Give all three heads new classifiers of `num_classes`; other arguments go to the backbone's own.

        `num_classes=0` leaves the backbone without a classifier, for features in evaluation; the other two stay.
        """
        self.backbone.reset_classifier(num_classes, *args, **kwargs)
        if num_classes:
            old = self.cam_head.fc
            device, dtype = old.weight.device, old.weight.dtype
            self.cam_head.fc = nn.Linear(old.in_features, num_classes, device=device, dtype=dtype)
            self.erased_head = nn.Linear(pre_logits_size(self.backbone), num_classes, device=device, dtype=dtype)
            self.set_branches(self.side_branch, self.erased_branch, self.scored_by, self.apart)

    def group_matcher(self, coarse: bool = False) -> Union[Dict[str, Any], Callable[[str], Any]]:
        """The backbone's layer groups; the heads match none and so join the last, as a classifier does."""
        def under_backbone(spec):
            if spec is None:
                return None
            if isinstance(spec, str):
                # a ^ inside could never match behind the prefix, and timm matches from the start anyway
                return rf'backbone\.(?:{_ANCHOR.sub("", spec)})'
            return [(under_backbone(s[0]), s[1]) for s in spec]

        if hasattr(self.backbone, 'group_matcher'):
            own = self.backbone.group_matcher(coarse=coarse)
        else:
            own = auto_group_layers(self.backbone).get  # what timm does where a model has no groups
        if callable(own):
            return lambda name: own(name.removeprefix('backbone.')) if name.startswith('backbone.') else float('inf')
        return {group: under_backbone(spec) for group, spec in own.items()}

    def no_weight_decay(self) -> Set[str]:
        own = self.backbone.no_weight_decay() if hasattr(self.backbone, 'no_weight_decay') else ()
        return {f'backbone.{name}' for name in own}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, as timm's models do.

        Raises:
            ValueError: With `focus_bn='clean'` or `focus_recompute`: its recomputation would run outside the pass that
                keeps the statistics.
        """
        if enable and self.recompute:
            raise ValueError(
                'Gradient checkpointing does not go with focus_recompute, which recomputes by itself: choose one.')
        if enable and self.bn == 'clean':
            raise ValueError(
                "Gradient checkpointing does not go with focus_bn='clean': "
                "choose focus_bn='shared', or no checkpointing.")
        self.backbone.set_grad_checkpointing(enable)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        self.backbone.set_input_size(*args, **kwargs)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Refused: distillation trains two outputs of the backbone, and focus training has one.

        Raises:
            ValueError: `enable` is True.
        """
        if enable:
            raise ValueError(DISTILLED)
        if hasattr(self.backbone, 'set_distilled_training'):
            self.backbone.set_distilled_training(False)
