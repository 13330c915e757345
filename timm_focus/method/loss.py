"""The loss of "See More for Scene" (Eq. 3), each term by name, with the switches of its Tables 6 and 7.

    L = CE(main) + side_weight CE(side) + alpha CE(erased) + beta KL(erased || main)

| Table 7                          | alpha | beta | side_weight |
|----------------------------------|-------|------|-------------|
| baseline                         | 0     | 0    | 0           |
| side                             | 0     | 0    | 1           |
| side + CPC (category-level)      | 1     | 0    | 1           |
| side + IPC (instance-level)      | 0     | 2    | 1           |
| side + CPC + IPC, the default    | 1     | 2    | 1           |

Eq. 3 prints the KL term as -q log(q / p), which would push the two predictions apart; section 4 asks for the same
prediction of both images, so its sign is turned.
"""
import functools
import math
from typing import Callable, Dict, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from timm_focus.utils.renamed import renamed

from .cam import at_least_float32, without_autocast
from .focus_net import SCORERS, FocusOutput

__all__ = ['FocusLoss', 'attention_mining', 'kl_consistency']

KL_DIRECTIONS = ('erased_main', 'main_erased', 'symmetric')
KL_DETACH = (None, 'main', 'erased')
CONSISTENCIES = ('kl', 'attention_mining')


def kl_consistency(
        main: Tensor,
        erased: Tensor,
        direction: str = 'erased_main',
        detach: Optional[str] = None,
) -> Tensor:
    """Instance-level consistency: divergence between the predictions of the original and the erased image (Eq. 3).

    Computed from log-probabilities on both sides: with probabilities as the target, a probability that underflows
    to 0 gives a gradient of NaN.

    Args:
        main: Logits of the original images, `[n, K]`; their softmax is p.
        erased: Logits of the erased images, `[n, K]`; their softmax is q.
        direction: 'erased_main' for KL(q || p), 'main_erased' for KL(p || q), 'symmetric' for the mean of the two.
        detach: Which branch gets no gradient: None, 'main' or 'erased'.

    Returns:
        Mean over the n images, a scalar tensor in nats.
    """
    log_p = F.log_softmax(at_least_float32(main), dim=1)
    log_q = F.log_softmax(at_least_float32(erased), dim=1)
    log_p = log_p.detach() if detach == 'main' else log_p
    log_q = log_q.detach() if detach == 'erased' else log_q
    kl = functools.partial(F.kl_div, reduction='batchmean', log_target=True)  # kl(log_p, log_q) is KL(q || p)
    if direction == 'symmetric':
        return (kl(log_p, log_q) + kl(log_q, log_p)) / 2
    return kl(log_p, log_q) if direction == 'erased_main' else kl(log_q, log_p)


def attention_mining(erased: Tensor, target: Tensor) -> Tensor:
    """Attention mining loss (Table 6, after GAIN): mean probability that the erased images keep at the true class.

    Args:
        erased: Logits of the erased images by the main classifier, `[n, K]`.
        target: Class indices `[n]`, or soft targets `[n, K]`.

    Returns:
        A scalar tensor in 0 to 1, for class indices.
    """
    probability = at_least_float32(erased).softmax(1)
    if target.ndim == 1:
        return probability.gather(1, target[:, None]).mean()
    return (probability * target).sum(1).mean()


class FocusLoss(nn.Module):
    """Loss of focus training (Eq. 3 of "See More for Scene").

    Args:
        alpha: Weight of the erased images' classification, the category-level consistency.
        beta: Weight of the divergence between the two predictions, the instance-level consistency.
        side_weight: Weight of the CAM head's classification. 0 leaves the CAM to an untrained head.
        consistency: 'kl' is Eq. 3. 'attention_mining' is Table 6's other row: `alpha` times the probability of the true
            class on the erased image, scored by the main classifier, in place of both terms on the erased image.
        kl_direction: 'erased_main', 'main_erased' or 'symmetric', see `kl_consistency`.
        kl_detach: Which branch the divergence does not train: None, 'main' or 'erased'.
        scored_by: Which classifier scores the erased image: 'erased_head', its own, or 'main'. Attention mining's is
            always 'main'.
        criterion: Loss of logits `[n, K]` and targets for the three classifications; cross-entropy by default. timm's
            own (label smoothing, soft targets, BCE) fit.

    Raises:
        ValueError: A weight is negative or not finite, or a choice is unknown.
    """

    def __init__(
            self,
            alpha: float = 1.,
            beta: float = 2.,
            side_weight: float = 1.,
            consistency: str = 'kl',
            kl_direction: str = 'erased_main',
            kl_detach: Optional[str] = None,
            scored_by: str = 'erased_head',
            criterion: Optional[Callable[[Tensor, Tensor], Tensor]] = None,
    ):
        super().__init__()
        for name, weight in (('alpha', alpha), ('beta', beta), ('side_weight', side_weight)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f'{name} is {weight}: give a finite number, 0 or above.')
        for name, value, allowed in (
                ('consistency', consistency, CONSISTENCIES),
                ('kl_direction', kl_direction, KL_DIRECTIONS),
                ('kl_detach', kl_detach, KL_DETACH),
                ('scored_by', scored_by, SCORERS),
        ):
            if value not in allowed:
                raise ValueError(f'{name} is {value!r}: choose one of {", ".join(map(repr, allowed))}.')
        self.alpha = alpha
        self.beta = beta
        self.side_weight = side_weight
        self.consistency = consistency
        self.kl_direction = kl_direction
        self.kl_detach = kl_detach
        self.scored_by = scored_by
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()

    @property
    def uses_side(self) -> bool:
        """Whether the loss reads `output.side`."""
        return self.side_weight > 0

    @property
    def uses_erased(self) -> bool:
        """Whether the loss reads `output.erased`."""
        return self.alpha > 0 or (self.beta > 0 and self.consistency == 'kl')

    @property
    def scorer(self) -> str:
        """Which classifier scores the erased image: 'erased_head', or 'main' for attention mining."""
        return 'main' if self.consistency == 'attention_mining' else self.scored_by

    erased_by = renamed('scorer')

    @property
    def separable(self) -> bool:
        """Whether the terms on the erased image train nothing through the first pass: the two may go in turn."""
        return self.consistency == 'attention_mining' or self.beta == 0 or self.kl_detach == 'main'

    def forward(self, output: FocusOutput, target: Tensor, erasing: bool = True) -> Dict[str, Tensor]:
        """Terms of the loss, unweighted, and their weighted sum.

        Args:
            output: Logits of `FocusNet` in training: main and side `[B, K]`, erased `[n, K]` of the first n images.
            target: Class indices `[B]`, or soft targets `[B, K]` if the criterion takes them.
            erasing: Whether there are erased images in this step; without, their terms are 0.

        Returns:
            Scalars 'loss', 'main_loss', 'side_loss', 'erased_loss' and 'consistency_loss', in float32 or better. A term
            of weight 0 is 0 and not computed; attention mining's term is the 'erased_loss'.

        Raises:
            ValueError: The loss needs a branch that the model did not run.
            TypeError: The model was in evaluation.
        """
        if isinstance(output, Tensor):
            raise TypeError(
                f'FocusLoss takes the FocusOutput of a FocusNet in training, and got one tensor of shape '
                f'{list(output.shape)}, as the model gives in evaluation: call model.train(), and '
                'model.set_focus_training() if that was turned off.')
        # AMP would cast the criterion's matrix products, if it has any: the loss is in full precision
        with without_autocast(output.main):
            main = at_least_float32(output.main)
            zero = main.new_zeros(())
            main_loss = self.criterion(main, target)
            side_loss, erased_loss, consistency_loss = zero, zero, zero
            if self.uses_side:
                side_loss = self.criterion(at_least_float32(self._branch(output, 'side')), target)
            if self.uses_erased and erasing:
                erased_loss, consistency_loss = self.on_erased(main, self._branch(output, 'erased'), target)
            loss = (
                main_loss + self.side_weight * side_loss
                + self.alpha * erased_loss + self.beta * consistency_loss
            )
        return {
            'loss': loss,
            'main_loss': main_loss,
            'side_loss': side_loss,
            'erased_loss': erased_loss,
            'consistency_loss': consistency_loss,
        }

    def on_erased(self, main: Tensor, erased: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
        """'erased_loss' and 'consistency_loss', unweighted, of main logits `[B, K]` and erased ones `[n, K]`."""
        with without_autocast(erased):
            main, erased, n = at_least_float32(main), at_least_float32(erased), erased.shape[0]
            zero = main.new_zeros(())
            if self.consistency == 'attention_mining':
                return attention_mining(erased, target[:n]), zero
            return (
                self.criterion(erased, target[:n]) if self.alpha > 0 else zero,
                kl_consistency(main[:n], erased, self.kl_direction, self.kl_detach) if self.beta > 0 else zero)

    def weighted(self, erased_loss: Tensor, consistency_loss: Tensor) -> Tensor:
        """The part of the loss that the terms on the erased image make."""
        return self.alpha * erased_loss + self.beta * consistency_loss

    @staticmethod
    def _branch(output: FocusOutput, name: str) -> Tensor:
        logits = getattr(output, name)
        if logits is None:
            raise ValueError(
                f'The loss needs the {name} logits, but the model did not run that branch: call '
                f'model.set_branches({name}=True), or set the weights of its terms to 0.')
        return logits

    def extra_repr(self) -> str:
        return (f'alpha={self.alpha}, beta={self.beta}, side_weight={self.side_weight}, '
                f'consistency={self.consistency!r}, kl_direction={self.kl_direction!r}, kl_detach={self.kl_detach!r}, '
                f'scored_by={self.scored_by!r}')
