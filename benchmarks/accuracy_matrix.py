"""Lists what benchmarks/accuracy.py runs, and the claims that it compares with the results."""
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

__all__ = ['CLAIMS', 'MATRIX', 'METHODS', 'Block', 'Claim', 'Method']


class Method(NamedTuple):
    """How a model is trained.

    Attributes:
        flags: Flags of train_focus.py, with {} for the name of the plain model.
        passes: Passes of an image through the network in a step. For `--focus-start auto` these are the passes once
            erasing has begun; the record of a cell has their mean over its epochs.
        times: Number of epochs over that of `plain`.
    """
    flags: str
    passes: float = 2
    times: float = 1


def _equal(flags: str, passes: float) -> Method:
    """Focus training at the compute of two plain epochs."""
    return Method(f'--model focus_{{}} {flags}', passes, 2 / passes)


METHODS = {
    'plain': Method('--model {}', 1),
    'plain_2x': Method('--model {}', 1, 2),
    'plain_4x': Method('--model {}', 1, 4),
    'has': Method('--model {} --has', 1),
    'has_2x': Method('--model {} --has', 1, 2),
    'focus': Method('--model focus_{}'),
    'focus_2x': Method('--model focus_{}', 2, 2),
    'focus_half': Method('--model focus_{} --focus-fraction 0.5', 1.5),
    'focus_random': Method('--model focus_{} --focus-map random'),
    'cutmix_2x': Method('--model {} --cutmix 1', 1, 2),
    'side': Method('--model focus_{} --focus-alpha 0 --focus-beta 0', 1),
    'side_cpc': Method('--model focus_{} --focus-beta 0'),
    'side_ipc': Method('--model focus_{} --focus-alpha 0'),
    'attention_mining': Method('--model focus_{} --focus-consistency attention_mining'),
    'last_stage': Method('--model focus_{} --focus-stage -1'),
    'mean_map': Method('--model focus_{} --focus-map mean'),
    'gamma_0.5': Method('--model focus_{} --focus-threshold 0.5'),
    'gamma_0.9': Method('--model focus_{} --focus-threshold 0.9'),
    'clean_bn': Method('--model focus_{} --focus-bn clean'),
    'kl_main_erased': Method('--model focus_{} --focus-kl-direction main_erased'),
    'kl_symmetric': Method('--model focus_{} --focus-kl-direction symmetric'),
    'detach_main': Method('--model focus_{} --focus-kl-detach main'),
    'detach_erased': Method('--model focus_{} --focus-kl-detach erased'),
    # cheaper second passes, later ones and other ones
    'auto': Method('--model focus_{} --focus-start auto', 2, 1.5),
    'auto_detached': Method('--model focus_{} --focus-start auto --focus-kl-detach main', 2, 1.5),
    'auto_copied': Method('--model focus_{} --focus-start auto --focus-copy-head', 2, 1.5),
    'auto_main': Method('--model focus_{} --focus-start auto --focus-scored-by main --focus-kl-detach main', 2, 1.5),
    'copied': Method('--model focus_{} --focus-copy-head'),
    'main': Method('--model focus_{} --focus-scored-by main'),
    'main_detached': Method('--model focus_{} --focus-scored-by main --focus-kl-detach main'),
    'quarter': _equal('--focus-fraction 0.25', 1.25),
    'every_4th': _equal('--focus-every 4', 1.25),
    'size_0.75': _equal('--focus-size 0.75', 1.5625),
    'size_0.5': _equal('--focus-size 0.5', 1.25),
    'half_tokens': _equal('--focus-drop-tokens', 1.5),
    'masksub': Method('--model {} --method masksub'),
    'randaugment_2x': Method('--model {} --aa rand-m9-mstd0.5', 1, 2),
    'crops_2x': Method('--model {} --scheme complex', 1, 2),
    'crops_auto_2x': Method('--model {} --scheme auto', 1, 2),
    'mixup_cutmix_2x': Method('--model {} --mixup 0.2 --cutmix 1', 1, 2),
    'focus_cutmix': Method('--model focus_{} --cutmix 1'),
    'focus_crops': Method('--model focus_{} --scheme complex'),
    'both_auto': Method('--model focus_{} --scheme auto --focus-start auto', 2, 2),
    'share_cam': Method('--model focus_{} --focus-share 0.3'),
    'share_mean': Method('--model focus_{} --focus-share 0.3 --focus-map mean'),
    'share_random': Method('--model focus_{} --focus-share 0.3 --focus-map random'),
    'share_grid': Method('--model focus_{} --focus-share 0.3 --focus-map grid'),
}
COMPARED = ('plain', 'focus', 'plain_2x', 'focus_random', 'has', 'has_2x', 'focus_half')
LONGER = ('plain_4x', 'focus_2x')
ON_A_GPU = ('plain_2x', 'focus', 'focus_random', 'cutmix_2x')  # all of equal compute
SCREENED = (  # all at the compute of two plain epochs, or less
    'plain_2x', 'focus', 'auto', 'auto_detached', 'auto_copied', 'auto_main', 'detach_main', 'copied', 'main_detached',
    'quarter', 'every_4th', 'size_0.75', 'masksub', 'cutmix_2x', 'randaugment_2x', 'crops_2x', 'crops_auto_2x',
    'mixup_cutmix_2x', 'focus_cutmix', 'focus_crops', 'both_auto')
SHARES = ('share_cam', 'share_mean', 'share_random', 'share_grid')  # does the map matter?
FIRST = [m for m in METHODS if list(METHODS).index(m) <= list(METHODS).index('detach_erased')]
FINE_TUNING = '--batch-size 64 --weight-decay 1e-4 --lr 0.01'
BFLOAT16 = '--batch-size 64 --weight-decay 5e-4 --amp --amp-dtype bfloat16'  # rates below are those of cores with AMX
AMP = '--batch-size 128 --weight-decay 5e-4 --amp'
VIT = ('--batch-size 64 --opt adamw --lr 1e-3 --weight-decay 0.05 --warmup-epochs 2 '
       '--model-kwargs patch_size=8 depth=6')


class Block(NamedTuple):
    """Cells that share a tier, a kind of data and a model.

    `epochs` are those of plain training. `rate` is how many images pass through the network a second on two CPU cores.
    """
    tier: int
    kind: str
    model: str
    methods: Sequence[str]
    seeds: int
    epochs: int
    rate: Optional[float]
    img_size: int = 64
    flags: str = '--batch-size 64 --weight-decay 5e-4'
    weights: bool = False  # start from the file of --weights


MATRIX = (
    Block(1, 'scenes', 'shufflenetv2_x1_5', COMPARED, 3, 20, 250),
    Block(2, 'scenes', 'shufflenetv2_x1_5', [m for m in FIRST if m not in COMPARED + LONGER + ON_A_GPU], 1, 20, 250),
    Block(3, 'scenes', 'resnet10t', ('plain', 'plain_2x', 'has', 'focus'), 2, 10, 370, flags=BFLOAT16),
    Block(3, 'scenes', 'resnet10t', LONGER, 1, 10, 370, flags=BFLOAT16),
    Block(3, 'scenes', 'tf_efficientnet_lite0', ('plain', 'plain_2x', 'focus'), 3, 5, 75, 96, FINE_TUNING, True),
    Block(3, 'scenes', 'tf_efficientnet_lite0', LONGER, 1, 5, 75, 96, FINE_TUNING, True),
    Block(3, 'objects', 'shufflenetv2_x1_5', ('plain', 'plain_2x', 'focus'), 3, 30, 250),
    Block(4, 'scenes', 'resnet18', ON_A_GPU, 3, 20, None, 128, AMP),
    Block(4, 'scenes', 'resnet34', ON_A_GPU, 3, 20, None, 128, AMP),
    Block(5, 'scenes', 'resnet10t', SCREENED, 1, 10, None),  # float32, as not every CPU has matrix units
    Block(5, 'scenes', 'tf_efficientnet_lite0', SCREENED, 1, 2, 75, 96, FINE_TUNING, True),
    Block(6, 'scenes', 'vit_tiny_patch16_224', ('plain_2x', 'focus', 'half_tokens', 'auto', 'masksub', 'cutmix_2x'), 1,
          20, None, flags=VIT),
    Block(7, 'scenes', 'resnet10t', SHARES, 3, 10, None, 128),
)


class Claim(NamedTuple):
    """A sentence that holds if each of its contrasts holds.

    A contrast is (weight of each method, column, margin). It holds if the weighted sum of the methods' means of that
    column is above the margin.
    """
    text: str
    kind: str
    contrasts: Sequence[Tuple[Dict[str, float], str, float]]


def _beats(a: str, b: str, column: str = 'top1') -> Tuple[Dict[str, float], str, float]:
    return {a: 1, b: -1}, column, 0


CLAIMS = (
    Claim('Focus beats plain at equal epochs', 'scenes', [_beats('focus', 'plain')]),
    Claim('Focus beats plain at equal compute', 'scenes', [_beats('focus', 'plain_2x')]),
    Claim('Focus beats plain at equal compute when both train twice as long', 'scenes',
          [_beats('focus_2x', 'plain_4x')]),
    Claim('Focus beats HaS at equal compute', 'scenes', [_beats('focus', 'has_2x')]),
    Claim('Focus needs the CAM: a random region of the same size does worse', 'scenes',
          [_beats('focus', 'focus_random')]),
    Claim('Focus adds nothing (less than half a point) or hurts on objects, at equal epochs', 'objects',
          [({'plain': 1, 'focus': -1}, 'top1', -0.5)]),
    Claim('Focus adds nothing (less than half a point) or hurts on objects, at equal compute', 'objects',
          [({'plain_2x': 1, 'focus': -1}, 'top1', -0.5)]),
    Claim('Focus enlarges the coverage ratio', 'scenes', [_beats('focus', 'plain', 'coverage')]),
    Claim('Focus loses less accuracy when the quarter that it relies on most is erased', 'scenes',
          [_beats('plain', 'focus', 'lost_25')]),
    Claim('IPC beats CPC, and CPC beats the side loss alone', 'scenes',
          [_beats('side_ipc', 'side_cpc'), _beats('side_cpc', 'side')]),
    Claim('Half of each batch keeps most of the gain', 'scenes',
          [_beats('focus', 'plain'), ({'focus_half': 1, 'focus': -0.5, 'plain': -0.5}, 'top1', 0)]),
)
