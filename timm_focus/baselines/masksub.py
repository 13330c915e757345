"""MaskSub: train on the image, and train its masked copy to match the network's answer to the whole image.

What it does
    Half of each image, in random cells of a grid of 7 x 7, is set to zero, and the masked image makes a second pass.
    Its target is the same classifier's answer to the whole image, through which no gradient goes:

        L = (CE(main, y) + CE(masked, softmax(main))) / 2

    Transformers with patch drop in timm do not process the masked tokens: these are dropped after the position
    embedding. Each pass has its own backward pass, so only the activations of one pass are kept. In evaluation and in
    what is saved, the model is the plain timm model.

    Compared with focus training, it has one classifier and no side loss, erases at random, and only trains the masked
    image's answer to agree. Its gradients are half those of `--focus-map grid --focus-scored-by main --focus-alpha 0
    --focus-beta 1 --focus-side-weight 0 --focus-kl-direction main_erased --focus-kl-detach main`.

Hyper-parameters
    share  0.5  share of the cells or tokens that are masked.

Cost
    Two forward and two backward passes, or 1.5 of each for a transformer with dropped tokens; activations of one pass.

When not to use it
    In short runs: MaskSub is regularisation, and hurts a network that does not know its training images by heart yet.
    With a model whose BatchNorm must not see masked images, which count in its statistics.

Source
    'Masking meets Supervision: A Strong Learning Alliance' (MaskSub), CVPR 2025; written anew from its description.
"""
from typing import Any, Callable, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from timm_focus.method import FocusLoss, FocusNet
from timm_focus.method.cam import at_least_float32, without_autocast
from timm_focus.method.tokens import FAMILIES

__all__ = ['MaskSub', 'MaskSubLoss']

SHARE = 0.5


class MaskSub(FocusNet):
    """A timm model with a second pass of masked images: a `FocusNet` that does not use its heads.

    Args:
        network: The timm model.
        share: Share of each image to mask, between 0 and 1.

    Raises:
        TypeError, ValueError: See `FocusNet`.
    """

    def __init__(self, network: nn.Module, share: float = SHARE):
        super().__init__(network, focus_map='grid', focus_share=share, focus_drop_tokens=isinstance(network, FAMILIES),
                         focus_recompute=True)
        self.set_branches(side=False, erased=True, scored_by='main')

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)  # only the backbone recomputes


class MaskSubLoss(FocusLoss):
    """The loss of MaskSub for the output of a `MaskSub`; 'erased_loss' is the loss of the masked images.

    Args:
        criterion: Loss of logits and targets for whole images; by default cross-entropy.
    """

    def __init__(self, criterion: Optional[Callable[[Tensor, Tensor], Tensor]] = None):
        super().__init__(alpha=1., beta=0., side_weight=0., scored_by='main', criterion=criterion)

    def forward(self, output: Any, target: Tensor, erasing: bool = True) -> Any:
        terms = super().forward(output, target, erasing)
        return {**terms, 'loss': terms['loss'] / 2}

    def on_erased(self, main: Tensor, erased: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
        with without_autocast(erased):
            said = at_least_float32(main[:erased.shape[0]]).detach().softmax(1)
            loss = F.cross_entropy(at_least_float32(erased), said)
        return loss, loss.new_zeros(())

    def weighted(self, erased_loss: Tensor, consistency_loss: Tensor) -> Tensor:
        return super().weighted(erased_loss, consistency_loss) / 2
