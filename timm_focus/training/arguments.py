"""The command line of train_focus.py: timm's names and meanings, the paper's recipe as defaults."""
import argparse
from typing import Any, Dict, Union

from timm.loss import LOSS_TYPES
from timm.utils import ParseKwargs

from timm_focus.data.places365 import SIZES, VERSIONS
from timm_focus.demo import SYNTHETIC
from timm_focus.method.checks import BATCH_NORMS, INTERPOLATIONS, MAPS
from timm_focus.method.focus_net import SCORERS
from timm_focus.method.loss import CONSISTENCIES, KL_DETACH, KL_DIRECTIONS
from timm_focus.models import FOCUS_ARGS
from timm_focus.recipes import recipe_table
from timm_focus.utils.parser import Parser

from .checks import METHOD_FLAGS
from .refused import add_refused
from .starts import AUTO, LATEST, RULE, start

__all__ = ['build_parser']

SCHEMES: Dict[str, Dict[str, Any]] = {
    'simple': dict(color_jitter=0., train_interpolation='bilinear'),
    'complex': dict(color_jitter=0.4, train_interpolation='bilinear', scale=[0.08, 1.], ratio=[3. / 4., 4. / 3.]),
}
SCHEMES[AUTO] = SCHEMES['complex']  # what it comes to
RECIPE_SETTINGS: Dict[str, Dict[str, Any]] = {
    'paper': {},  # the parser's defaults
    'timm': dict(
        batch_size=128, epochs=300, opt='sgd', weight_decay=2e-5, no_decay_1d=True, warmup_epochs=5, smoothing=0.1,
        scheme='complex', train_interpolation='random', crop_pct=None, interpolation='', channels_last=False),
}
METRICS = ('top1', 'top5', 'loss')
FOCUS_MODEL_FLAGS = tuple(name.removeprefix('focus_') for name in FOCUS_ARGS)
FOCUS_LOSS_FLAGS = ('alpha', 'beta', 'side_weight', 'consistency', 'kl_direction', 'kl_detach', 'scored_by')


def stage(text: str) -> Union[int, str]:
    """A stage's index or name."""
    try:
        return int(text)
    except ValueError:
        return text


class ListRecipes(argparse.Action):
    """Prints the recipes and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        print(recipe_table())
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of train_focus.py."""
    parser = Parser(
        prog='train_focus.py',
        description='Train timm models that look at more of the picture, or any timm model for comparison.',
        examples=('python train_focus.py DIR --model focus_resnet18 --experiment scenes',
                  'torchrun --nproc-per-node 4 train_focus.py DIR --model focus_resnet50 --amp'))
    flag = argparse.BooleanOptionalAction

    g = parser.add_argument_group('Data')
    g.add_argument('data', nargs='?', metavar='DIR', help='folder with train and val (or validation)')
    g.add_argument('--data-dir', metavar='DIR', help='the same as DIR')
    g.add_argument('--dataset', default='', help="timm data set type and name; 'places365' or 'folder' force one, "
                   f"'{SYNTHETIC}' is the built-in drawn scenes (default: what the folder holds)")
    g.add_argument('--train-split', default='train', help='split to train on')
    g.add_argument('--val-split', default='validation', help="split to validate on, '' for none")
    g.add_argument('--train-num-samples', type=int, help='samples of the training split, for iterable data sets '
                   '(default: as the data set says)')
    g.add_argument('--val-num-samples', type=int, help='samples of the validation split, for iterable data sets '
                   '(default: as the data set says)')
    g.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ data sets download')
    g.add_argument('--class-map', default='', help="file with one class name a line, in the order of their indices "
                   "(default: the names of the folders, in timm's order)")
    g.add_argument('--places-version', choices=VERSIONS, help='Places365-Standard or -Challenge, where both are there '
                   '(default: whichever is there)')
    g.add_argument('--places-size', choices=SIZES, help='256 px or large images of Places365, where both are there '
                   '(default: whichever is there)')
    g.add_argument('--train-list', metavar='FILE', help="train on these images alone: lines '<path> <label>', "
                   "paths from the training folder (default: all)")
    g.add_argument('--images-per-class', type=int, metavar='N', help='train on N random images of each class '
                   '(default: all)')
    g.add_argument('--subset-seed', type=int, default=0, help='seed of the choice of --images-per-class')
    g.add_argument('--max-bad-images', type=float, default=0.001, metavar='SHARE', help='end the run if more than this '
                   'share of the images cannot be read')
    g.add_argument('--data-timeout', type=float, default=300., metavar='SECONDS', help='wait so long for data that is '
                   'gone, as with a network disk, before the run ends with a recovery checkpoint')
    g.add_argument('--input-img-mode', help='image mode to convert to (default: RGB, or L with one channel)')
    g.add_argument('--input-key', help="key of the images in hfds/ and wds/ data sets (default: timm's guess)")
    g.add_argument('--target-key', help="key of the labels in hfds/ and wds/ data sets (default: timm's guess)")
    g.add_argument('--dataset-trust-remote-code', action='store_true', help="let a hfds/ data set run its own code")

    g = parser.add_argument_group('Model')
    g.add_argument('--model', default='focus_resnet50', help="timm model; 'focus_<name>' is trained by focus training "
                   '(default: focus_resnet50, or resnet50 by another --method)')
    g.add_argument('--method', choices=('focus', 'none', *METHOD_FLAGS),
                   help="focus wraps any model, 'hf-hub:...' too; adl, acol and masksub are its rivals (default: by "
                   "the model's name)")
    g.add_argument('--pretrained', action='store_true', help='start from the pretrained weights of timm')
    g.add_argument('--pretrained-path', help='load these in place of the pretrained weights')
    g.add_argument('--pretrained-cfg-overlay', nargs='*', default={}, action=ParseKwargs,
                   help="entries of timm's pretrained cfg to replace, as key=value")
    g.add_argument('--initial-checkpoint', default='', help='start from the weights of this checkpoint')
    g.add_argument('--resume', default='', help="continue this checkpoint, or 'auto' for the last one of --experiment")
    g.add_argument('--no-resume-opt', action='store_true', help='resume the weights only')
    g.add_argument('--num-classes', type=int, help='number of classes (default: as many as the data has)')
    g.add_argument('--gp', help="global pool of the model ('avg', 'max', 'avgmax', 'catavgmax'; default: the model's)")
    g.add_argument('--img-size', type=int, help="height and width of the input (default: the model's)")
    g.add_argument('--in-chans', type=int, help="channels of the input (default: the model's)")
    g.add_argument('--input-size', nargs=3, type=int, metavar='N', help="channels, height and width of the input "
                   "(default: the model's)")
    g.add_argument('--crop-pct', type=float, default=0.875, help='share of the image that evaluation crops')
    g.add_argument('--mean', type=float, nargs='+', help="mean of the normalisation, a number a channel (default: the "
                   "model's)")
    g.add_argument('--std', type=float, nargs='+', help="standard deviation of the normalisation (default: the "
                   "model's)")
    g.add_argument('--interpolation', default='bilinear', help='resizing in evaluation')
    g.add_argument('--channels-last', action=flag, default=True, help='channels_last memory format')
    g.add_argument('--grad-checkpointing', action='store_true', help='recompute activations to save memory')
    g.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='more model arguments, key=value')
    g.add_argument('--head-init-scale', type=float, help="scale the new classifier's weights (default: as the model "
                   "starts it)")
    g.add_argument('--head-init-bias', type=float, help="set the new classifier's bias (default: as the model starts "
                   "it)")
    g.add_argument('--drop', type=float, default=0., help='dropout rate')
    g.add_argument('--drop-path', type=float, help="stochastic depth rate (default: the model's)")
    g.add_argument('--drop-connect', type=float, help='old name of --drop-path')
    g.add_argument('--drop-block', type=float, help="drop block rate (default: the model's)")
    g.add_argument('--bn-momentum', type=float, help="momentum of BatchNorm (default: the model's)")
    g.add_argument('--bn-eps', type=float, help="epsilon of BatchNorm (default: the model's)")
    g.add_argument('--split-bn', action='store_true', help='BatchNorm of its own for each augmentation split')
    g.add_argument('--sync-bn', action='store_true', help='share BatchNorm statistics between processes')
    g.add_argument('--dist-bn', default='reduce', choices=('reduce', 'broadcast', ''),
                   help='spread BatchNorm statistics between processes after each epoch')

    g = parser.add_argument_group('Focus training')
    g.add_argument('--focus-stage', type=stage, help='feature the CAM head taps, by name or index '
                   '(default: the last before the last down-sampling)')
    g.add_argument('--focus-threshold', type=float, default=0.7, help='gamma: erase where the map reaches it')
    g.add_argument('--focus-width', type=int, help="width of the CAM head (default: the feature's)")
    g.add_argument('--focus-interpolation', default='bilinear', choices=INTERPOLATIONS,
                   help='how the map is enlarged to the image')
    g.add_argument('--focus-bn', choices=BATCH_NORMS, help='BatchNorm in the erased pass (default: shared, or clean '
                   'with a smaller --focus-size)')
    g.add_argument('--focus-map', default='cam', choices=MAPS, help='what erases')
    g.add_argument('--focus-share', type=float, help="erase this share of each image, in place of what reaches gamma "
                   "(default: 0.5 of a grid and of tokens, else what reaches gamma)")
    g.add_argument('--focus-size', type=float, default=1., help='side of the erased image over that of the original '
                   '(cost: 1 + its square)')
    g.add_argument('--focus-drop-tokens', action='store_true', help="leave what is erased out of a transformer's "
                   'tokens, in place of its pixels (cost: 2 - share)')
    g.add_argument('--focus-every', type=int, default=1, metavar='N', help='erase in every Nth step of an epoch (cost: '
                   '1 + 1 / N)')
    g.add_argument('--focus-fraction', type=float, default=1., help='share of each batch that is erased (cost: '
                   '1 + f)')
    g.add_argument('--focus-start', type=start, default=0, metavar='EPOCH', help='epoch that begins to erase images; '
                   "before it a step is plain training's, and the CAM head learns beside it. 'auto': "
                   + RULE.replace('%', '%%') + f', if {LATEST} then; until then, and otherwise, plain training')
    g.add_argument('--focus-recompute', action='store_true', help='keep the activations of one pass, not of two: by '
                   'two backward passes in turn where the consistency loss does not train main (--focus-kl-detach '
                   'main, --focus-beta 0, attention mining), else for one more forward in time')
    g.add_argument('--focus-copy-head', action='store_true', help='begin the erased head as a copy of the main '
                   'classifier, when images begin to be erased')
    g.add_argument('--focus-alpha', type=float, default=1., help='weight of the erased loss')
    g.add_argument('--focus-beta', type=float, default=2., help='weight of the consistency loss')
    g.add_argument('--focus-side-weight', type=float, default=1., help='weight of the side loss')
    g.add_argument('--focus-consistency', default='kl', choices=CONSISTENCIES, help='what binds the two predictions')
    g.add_argument('--focus-kl-direction', default='erased_main', choices=KL_DIRECTIONS, help='direction of the KL')
    g.add_argument('--focus-kl-detach', choices=[c for c in KL_DETACH if c], help='branch that the KL does not train')
    g.add_argument('--focus-scored-by', default='erased_head', choices=SCORERS, help='classifier of the erased image')

    g = parser.add_argument_group('What the paper compares with')
    g.add_argument('--has', action='store_true', help='Hide-and-Seek on the images, with any model')
    g.add_argument('--adl-gamma', type=float, default=0.9, help='drop where the attention reaches this share of its '
                   'maximum')
    g.add_argument('--adl-drop-rate', type=float, default=0.75, help='chance that ADL drops, else it weighs')
    g.add_argument('--adl-modules', nargs='+', metavar='NAME', help='modules after which ADL comes (default: the first '
                   'block of each of the last two stages, and the last block)')
    g.add_argument('--acol-threshold', type=float, default=0.6, help="erase where the true class's map reaches it")
    g.add_argument('--masksub-share', type=float, default=0.5, help='share of each image that is masked')

    g = parser.add_argument_group('Distillation (of plain models)')
    g.add_argument('--kd-model-name', help='timm model that teaches, with its pretrained weights')
    g.add_argument('--kd-distill-type', default='logit', choices=('logit', 'feature', 'token'), help='what it teaches')
    g.add_argument('--kd-loss-type', default='kl', choices=('kl',), help='loss of logit distillation')
    g.add_argument('--distill-loss-weight', type=float, help='weight of the distillation loss (default: 1, or what the '
                   "task loss's leaves of 1)")
    g.add_argument('--task-loss-weight', type=float, help='weight of the classification loss (default: 1)')
    g.add_argument('--kd-temperature', type=float, default=4., help='temperature of the softmax')
    g.add_argument('--kd-student-feature-dim', type=int, help="the student's feature width (default: found)")
    g.add_argument('--kd-teacher-feature-dim', type=int, help="the teacher's feature width (default: found)")
    g.add_argument('--kd-token-distill-type', default='soft', choices=('soft', 'hard'), help='targets of token '
                   'distillation')

    g = parser.add_argument_group('Optimizer')
    g.add_argument('-b', '--batch-size', type=int, default=256, help='images a step and process')
    g.add_argument('-vb', '--validation-batch-size', type=int,
                   help='images a step and process in validation (default: as in training)')
    g.add_argument('--grad-accum-steps', type=int, default=1, help='batches whose gradients make one update')
    g.add_argument('--opt', default='momentum', help="timm optimizer; timm's sgd is Nesterov")
    g.add_argument('--opt-eps', type=float, help="epsilon of the optimizer (default: the optimizer's)")
    g.add_argument('--opt-betas', type=float, nargs='+', help="betas of the optimizer (default: the optimizer's)")
    g.add_argument('--momentum', type=float, default=0.9, help='momentum of the optimizer')
    g.add_argument('--weight-decay', type=float, default=2e-4, help='weight decay')
    g.add_argument('--no-decay-1d', action='store_true', help="timm's habit: no weight decay on norms and biases")
    g.add_argument('--clip-grad', type=float, help='clip gradients at this')
    g.add_argument('--clip-mode', default='norm', choices=('norm', 'value', 'agc'), help='how to clip')
    g.add_argument('--layer-decay', type=float, help='learning rate decay from layer to layer')
    g.add_argument('--layer-decay-min-scale', type=float, default=0.,
                   help='lowest scale that --layer-decay gives a layer')
    g.add_argument('--layer-decay-no-opt-scale', type=float, help='freeze layers below this scale')
    g.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs,
                   help='more optimizer arguments as key=value')

    g = parser.add_argument_group('Schedule')
    g.add_argument('--sched', default='cosine', help="timm scheduler, 'none' for none")
    g.add_argument('--sched-on-updates', action='store_true', help='step the schedule by update, not by epoch')
    g.add_argument('--lr', type=float, help='learning rate (default: by --lr-base)')
    g.add_argument('--lr-base', type=float, default=0.1, help='learning rate = lr base * (global batch / base size)')
    g.add_argument('--lr-base-size', type=int, default=256, help='global batch that --lr-base is for')
    g.add_argument('--lr-base-scale', default='', choices=('', 'linear', 'sqrt'), help='how the rate grows with the '
                   'batch (default: sqrt for adaptive optimizers, else linear)')
    g.add_argument('--lr-noise', type=float, nargs='+', help='epochs between which to add noise to the rate')
    g.add_argument('--lr-noise-pct', type=float, default=0.67, help='limit of the noise, as a share of the rate')
    g.add_argument('--lr-noise-std', type=float, default=1., help='standard deviation of the noise')
    g.add_argument('--lr-cycle-mul', type=float, default=1., help='length of a cycle over that of the one before')
    g.add_argument('--lr-cycle-decay', type=float, default=0.5, help='height of a cycle over that of the one before')
    g.add_argument('--lr-cycle-limit', type=int, default=1, help='number of cycles')
    g.add_argument('--lr-k-decay', type=float, default=1., help='k of cosine and poly')
    g.add_argument('--lr-decay-fn', help='shape of the decay of wsd and rsqrt')
    g.add_argument('--lr-stable-timescale', type=float, help='timescale of rsqrt')
    g.add_argument('--warmup-lr', type=float, default=1e-5, help='learning rate at the start of the warm-up')
    g.add_argument('--min-lr', type=float, default=0., help='learning rate at the end')
    g.add_argument('--epochs', type=int, default=40, help='passes over the training images')
    g.add_argument('--epoch-repeats', type=float, default=0., help='repeat the data this often an epoch')
    g.add_argument('--start-epoch', type=int, help="number of the first epoch (default: 0, or the checkpoint's)")
    g.add_argument('--stop-epoch', type=int, help='end after this many epochs of the schedule (default: after all)')
    g.add_argument('--save-epochs', type=int, nargs='+', help='keep a milestone after these numbers of epochs')
    g.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], help='epochs of multistep')
    g.add_argument('--decay-epochs', type=float, default=90., help='interval of step')
    g.add_argument('--warmup-epochs', type=int, default=0, help='epochs of warm-up')
    g.add_argument('--warmup-prefix', action='store_true', help='warm-up comes on top of the epochs')
    g.add_argument('--cooldown-epochs', type=int, default=0, help='epochs at the last learning rate')
    g.add_argument('--patience-epochs', type=int, default=10, help='patience of plateau')
    g.add_argument('--decay-rate', '--dr', type=float, default=0.1, help='factor of step')

    g = parser.add_argument_group('Augmentation')
    g.add_argument('--scheme', default='simple', choices=tuple(SCHEMES), help="the paper's: simple is a random crop "
                   "of 7/8 and a flip; complex a random resized crop, a flip and colour jitter. 'auto': simple, and "
                   'complex from ' + RULE.replace('%', '%%'))
    g.add_argument('--no-aug', action='store_true', help='centre crop, nothing else')
    g.add_argument('--train-crop-mode', choices=('rrc', 'rkrc', 'rkrr'), help="timm's crop in place of the scheme's "
                   "(default: the scheme's crop)")
    g.add_argument('--scale', type=float, nargs='+', metavar='PCT', help="area of timm's crop (default: the scheme's)")
    g.add_argument('--ratio', type=float, nargs='+', metavar='RATIO', help="aspect of timm's crop (default: the "
                   "scheme's)")
    g.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    g.add_argument('--vflip', type=float, default=0., help='probability of a vertical flip')
    g.add_argument('--color-jitter', type=float, default=0., help='colour jitter (default: by the scheme)')
    g.add_argument('--color-jitter-prob', type=float, help='probability of colour jitter')
    g.add_argument('--grayscale-prob', type=float, help='probability of grey')
    g.add_argument('--gaussian-blur-prob', type=float, help='probability of blur')
    g.add_argument('--aa', help="AutoAugment policy: 'rand-...', 'augmix-...', 'v0', 'original'")
    g.add_argument('--aug-repeats', type=float, default=0., help='repeated augmentation, with several processes')
    g.add_argument('--aug-splits', type=int, default=0, help='copies of each batch, the first of them not augmented '
                   '(0, or 2 and more)')
    g.add_argument('--reprob', type=float, default=0., help='probability of random erasing')
    g.add_argument('--remode', default='pixel', choices=('const', 'rand', 'pixel'),
                   help='what random erasing fills with')
    g.add_argument('--recount', type=int, default=1, help='how many areas random erasing erases')
    g.add_argument('--resplit', action='store_true', help='no random erasing in the first augmentation split')
    g.add_argument('--mixup', type=float, default=0., help='alpha of mixup')
    g.add_argument('--cutmix', type=float, default=0., help='alpha of cutmix')
    g.add_argument('--cutmix-minmax', type=float, nargs='+', help='least and largest share of cutmix')
    g.add_argument('--mixup-prob', type=float, default=1., help='probability of mixup or cutmix')
    g.add_argument('--mixup-switch-prob', type=float, default=0.5, help='probability of cutmix where both are on')
    g.add_argument('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem'),
                   help='what mixup and cutmix are drawn for')
    g.add_argument('--mixup-off-epoch', type=int, default=0,
                   help='epoch from which mixup and cutmix are off (0: never)')
    g.add_argument('--train-interpolation', default='bilinear', help='resizing in training')

    g = parser.add_argument_group('Loss')
    g.add_argument('--smoothing', type=float, default=0., help='label smoothing')
    g.add_argument('--loss', choices=LOSS_TYPES, help='classification loss (default: ce)')
    g.add_argument('--bce-loss', action='store_true', help='the same as --loss bce')
    g.add_argument('--jsd-loss', action='store_true', help='the same as --loss jsd, with --aug-splits')
    g.add_argument('--bce-sum', action='store_true', help='sum binary cross-entropy over the classes')
    g.add_argument('--bce-target-thresh', type=float, help='binarise soft targets above this')
    g.add_argument('--bce-pos-weight', type=float, help='the same as --loss-pos-weight')
    g.add_argument('--loss-class-weight', help="weight of each class in bce: numbers, a file, 'inv_freq' or "
                   "'effective_num'")
    g.add_argument('--loss-pos-weight', help="weight of positives in bce: numbers, a file, or 'neg_pos'")
    g.add_argument('--loss-weight-power', type=float, default=1., help='exponent of neg_pos and inv_freq')
    g.add_argument('--class-stats', metavar='FILE', help='JSON with pos_counts and num_samples, for weights by name')
    g.add_argument('--poly-epsilon', type=float, default=2., help='coefficient of poly')
    g.add_argument('--poly-gamma', type=float, default=0., help='focusing of poly with several labels')

    g = parser.add_argument_group('Scheduled resolution')
    g.add_argument('--train-img-sizes', type=int, nargs='+', metavar='N', help='sizes of which each batch has one')
    g.add_argument('--train-batch-sizes', type=int, nargs='+', metavar='N', help="each size's batch size (default: "
                   "--batch-size for all)")
    g.add_argument('--train-size-probs', type=float, nargs='+', metavar='P', help="each size's weight (default: equal)")
    g.add_argument('--train-size-schedule', default='constant', choices=('constant', 'progressive'),
                   help='progressive goes from the first size to the last')
    g.add_argument('--train-size-schedule-spread', type=float, default=0.65, help='how many sizes at a time, as a '
                   'standard deviation')
    g.add_argument('--train-size-random-mix', type=float, default=0.1, help='share of batches of any size')
    g.add_argument('--train-batches-per-epoch', '--train-steps-per-epoch', type=int, metavar='N',
                   help='batches an epoch (default: what the data gives)')
    g.add_argument('--variable-batch-loss-scale', default='none', choices=('none', 'sqrt', 'linear'),
                   help='scale the loss by the batch over --batch-size')

    g = parser.add_argument_group('Running average of the weights')
    g.add_argument('--model-ema', action='store_true', help='keep an exponential moving average and validate it')
    g.add_argument('--model-ema-force-cpu', action='store_true',
                   help='keep the average in main memory, and do not validate it')
    g.add_argument('--model-ema-decay', type=float, default=0.9998, help='decay of the running average')
    g.add_argument('--model-ema-warmup', action='store_true', help='let the decay rise to --model-ema-decay')

    g = parser.add_argument_group('Device')
    g.add_argument('--device', help='device (default: cuda if there is one, else cpu)')
    g.add_argument('--amp', action='store_true', help='automatic mixed precision')
    g.add_argument('--amp-dtype', choices=('float16', 'bfloat16'),
                   help='type of --amp (default: float16 on cuda, bfloat16 on cpu)')
    g.add_argument('--model-dtype', choices=('float32', 'float16', 'bfloat16'), help='type of weights and images, '
                   'without --amp (default: float32)')
    g.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the training step '
                   'and validation')
    g.add_argument('--torchcompile-mode', metavar='MODE', help="torch.compile's mode")
    g.add_argument('--fast-norm', action='store_true', help="timm's faster, less exact norms under --amp")
    g.add_argument('--device-modules', nargs='+', metavar='MODULE', help='modules to import for other devices')
    g.add_argument('--no-ddp-bb', action='store_true', help='do not broadcast buffers between processes')
    g.add_argument('--synchronize-step', action='store_true', help='wait for the device after each step')
    g.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    g.add_argument('-j', '--workers', type=int, default=4, help='worker processes that load images; without the '
                   'flag no more than there are cores')
    g.add_argument('--pin-mem', action='store_true', help='pin memory for transfers to the device')
    g.add_argument('--no-prefetcher', action='store_true', help="do without timm's prefetcher")
    g.add_argument('--worker-seeding', default='all', choices=('all', 'part'), help='what workers seed with iterable '
                   'data sets; the draws of others are functions of --seed')
    g.add_argument('--use-multi-epochs-loader', action='store_true', help='validation workers look ahead to the next '
                   'epoch; all workers live on anyway')

    g = parser.add_argument_group('Run')
    g.add_argument('-c', '--config', action='append', metavar='FILE', help='YAML file of settings, or the name of a '
                   'recipe; of several, later ones override earlier ones')
    g.add_argument('--list-recipes', action=ListRecipes, nargs=0, default=argparse.SUPPRESS, help="list the recipes, "
                   "the rows of the paper's tables and today's habits, and end")
    g.add_argument('--recipe', default='paper', choices=tuple(RECIPE_SETTINGS), help="timm sets timm's defaults")
    g.add_argument('--dry-run', action='store_true', help='say what would be trained on what and what that takes, '
                   'measured by two steps; keep nothing')
    g.add_argument('--verbose', action='store_true', help='have a dry run show all settings, not only those that '
                   'differ from the defaults')
    g.add_argument('--seed', type=int, default=42, help='seed of everything random')
    g.add_argument('--log-interval', type=int, default=50, help='batches between lines of the log')
    g.add_argument('--val-interval', type=int, default=1, help='epochs between validations')
    g.add_argument('--recovery-interval', type=int, default=0, help='batches between recovery checkpoints (0: none)')
    g.add_argument('--checkpoint-hist', type=int, default=10, help='how many epoch checkpoints to keep')
    g.add_argument('--output', default='', metavar='DIR', help='where runs are kept (default: ./output/train)')
    g.add_argument('--experiment', default='', metavar='NAME', help='folder of this run in there (default: the time '
                   'and the model)')
    g.add_argument('--overwrite', action='store_true', help='lose the run that is in the folder, or with --resume what '
                   'came after that checkpoint')
    g.add_argument('--eval-metric', default='top1', choices=METRICS, help='metric that ranks checkpoints')
    g.add_argument('--tensorboard', action='store_true', help='log to TensorBoard, in the folder of the run')
    g.add_argument('--log-wandb', action='store_true', help='log to Weights & Biases')
    g.add_argument('--wandb-project', metavar='NAME', help="project at Weights & Biases (default: W&B's own)")
    g.add_argument('--wandb-tags', nargs='+', default=[], metavar='TAG', help="the run's tags at Weights & Biases")
    g.add_argument('--wandb-resume-id', default='', metavar='ID',
                   help='run at Weights & Biases to go on with, with --resume')
    g.add_argument('--save-images', action='store_true', help='keep a batch as it is trained on, every log interval')
    g.add_argument('--focus-save-images', action='store_true',
                   help='draw original, map, kept area and erased image of some at every validation')
    g.add_argument('--sheet-images', type=int, default=8, metavar='N',
                   help='how many images focus.png, what a focus model looks at, is drawn of (0: it is not)')

    add_refused(parser)
    return parser
