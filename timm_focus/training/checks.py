"""What settings of train_focus.py make sense: one sentence for each that do not, and exit code 2."""
import argparse
import math
from typing import Any, Dict

from timm.loss import create_classification_loss

from timm_focus.demo import SYNTHETIC

from .criterion import criterion_kwargs, mixes

__all__ = ['check']

SEVERAL_LABELS = "focus training erases what one label relies on: with several an image, train by timm's own script."
# flags of timm's train.py that are not obeyed, and why
REFUSED = {
    'task': SEVERAL_LABELS,
    'target_format': SEVERAL_LABELS,
    'multilabel_threshold': SEVERAL_LABELS,
    'torchscript': 'torch has deprecated TorchScript: give --torchcompile.',
    'tta': 'it averages outputs of neighbouring images, and no data set here has an image several times in a row: '
           'leave it out.',
    **dict.fromkeys(
        ('naflex_loader', 'naflex_patchify_channels_first', 'naflex_train_seq_lens', 'naflex_max_seq_len',
         'naflex_patch_sizes', 'naflex_patch_size_probs', 'naflex_loss_scale'),
        'NaFlex loaders give patches of many shapes, and what is erased is a region of an image: leave it out.'),
}


# what the flags of a method, which begin with its name, belong to, and how it is asked for
FOCUS_TRAINING = ('focus training', '--model focus_{model} or --method focus')
METHOD_FLAGS = {'adl': ('ADL', '--model {model} --method adl'), 'acol': ('ACoL', '--model {model} --method acol')}


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, given: Dict[str, Any]) -> None:
    """Resolve settings that go by others, and refuse those that make no sense.

    Args:
        parser: Knows the defaults, and ends the program.
        args: All settings; changed in place.
        given: Those of the command line and of `--config`.

    Raises:
        SystemExit: With exit code 2 and one line.
    """
    if args.data is not None and args.data_dir is not None:
        parser.error(f'The data folder is given twice, {args.data} and --data-dir {args.data_dir}: give it once.')
    args.data_dir = args.data_dir if args.data_dir is not None else args.data
    args.data = None  # so that args.yaml, given as --config, names it once
    if args.dataset == SYNTHETIC and args.data_dir is not None:
        parser.error(f'--dataset {SYNTHETIC} draws its own images: leave out the folder {args.data_dir}.')
    if args.data_dir is None and not args.dataset:
        parser.error('No data is given: name a folder with train and val, or --dataset synthetic for drawn scenes.')
    if args.resume == 'auto' and not args.experiment:
        parser.error('--resume auto needs --experiment: it continues the last checkpoint of that run.')
    for name, reason in REFUSED.items():
        value = getattr(args, name)
        if value != parser.get_default(name) and not (name == 'tta' and value == 1):
            parser.error(f'--{name.replace("_", "-")} is not for this script: {reason}')

    is_focus_name = args.model.startswith('focus_')
    if is_focus_name and args.method not in (None, 'focus'):
        what = 'a plain model' if args.method == 'none' else 'a plain model in its own way'
        parser.error(f'--method {args.method} trains {what}: give --model {args.model.removeprefix("focus_")}.')
    args.method = args.method or ('focus' if is_focus_name else 'none')
    for method, (name, remedy) in {'focus': FOCUS_TRAINING, **METHOD_FLAGS}.items():
        foreign = sorted(k for k in given if k.startswith(f'{method}_') and given[k] != parser.get_default(k))
        if foreign and args.method != method:
            names = ', '.join('--' + k.replace('_', '-') for k in foreign)
            plain = args.model.removeprefix('focus_')
            parser.error(f'{names} belongs to {name}: give {remedy.format(model=plain)}.')
    _check_method(parser, args)
    for name, value in vars(args).items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                parser.error(f'--{name.replace("_", "-")} is {number}: give a finite number.')
    for name, low in (
            ('batch_size', 1), ('grad_accum_steps', 1), ('epochs', 1), ('workers', 0), ('log_interval', 1),
            ('val_interval', 1), ('checkpoint_hist', 1), ('img_size', 1), ('num_classes', 1), ('in_chans', 1),
            ('validation_batch_size', 1), ('recovery_interval', 0), ('warmup_epochs', 0), ('lr', 0), ('lr_base', 0),
            ('weight_decay', 0), ('smoothing', 0), ('mixup', 0), ('cutmix', 0), ('reprob', 0), ('clip_grad', 0),
            ('focus_alpha', 0), ('focus_beta', 0), ('focus_side_weight', 0), ('seed', 0), ('start_epoch', 0),
            ('aug_repeats', 0), ('recount', 1), ('momentum', 0), ('min_lr', 0), ('warmup_lr', 0), ('focus_width', 1),
            ('lr_base_size', 1), ('head_init_scale', 0), ('epoch_repeats', 0), ('aug_splits', 0),
            ('train_img_sizes', 1), ('train_batch_sizes', 1), ('train_size_probs', 0),
            ('train_size_schedule_spread', 0), ('train_batches_per_epoch', 1), ('kd_student_feature_dim', 1),
            ('kd_teacher_feature_dim', 1), ('distill_loss_weight', 0), ('task_loss_weight', 0),
            ('loss_weight_power', 0), ('images_per_class', 1), ('focus_start', 0),
    ):
        value = getattr(args, name)
        if value is not None and any(v < low for v in (value if isinstance(value, list) else [value])):
            parser.error(f'--{name.replace("_", "-")} is {value}: give {low} or more.')
    for name in (
            'smoothing', 'reprob', 'mixup_prob', 'mixup_switch_prob', 'hflip', 'vflip', 'drop', 'drop_path',
            'drop_block', 'model_ema_decay', 'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob',
            'drop_connect', 'train_size_random_mix', 'max_bad_images', 'adl_drop_rate'):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            parser.error(f'--{name.replace("_", "-")} is {value}: give a number from 0 to 1.')
    for name, counts in (
            ('scale', [2]), ('ratio', [2]), ('cutmix_minmax', [2]), ('opt_betas', [2, 3]), ('lr_noise', [1, 2])):
        value = getattr(args, name)
        if value is not None and len(value) not in counts:
            parser.error(f'--{name.replace("_", "-")} has {len(value)} values: give {" or ".join(map(str, counts))}.')
    if args.smoothing == 1:
        parser.error('--smoothing is 1: give less, or nothing is left of the label.')
    if args.decay_epochs <= 0:
        parser.error(f'--decay-epochs is {args.decay_epochs}: give a number above 0.')
    if args.std is not None and min(args.std) <= 0:
        parser.error(f'--std is {args.std}: give numbers above 0.')
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        parser.error(f'--start-epoch is {args.start_epoch}, but --epochs is {args.epochs}: give a lower number.')
    if args.focus_start >= args.epochs:
        parser.error(f'--focus-start is {args.focus_start}, but --epochs is {args.epochs}: give a lower number, or train '
                     'the side loss alone by --focus-alpha 0 --focus-beta 0.')
    late = [e for e in args.save_epochs or () if not 1 <= e <= args.epochs]
    if late:
        parser.error(f'--save-epochs has {late[0]}: give numbers from 1 to --epochs, {args.epochs}.')
    if args.kd_temperature <= 0:
        parser.error(f'--kd-temperature is {args.kd_temperature}: give a number above 0.')
    for name in ('focus_threshold', 'focus_fraction', 'crop_pct', 'adl_gamma', 'acol_threshold'):
        value = getattr(args, name)
        if value is not None and not 0 < value <= 1:
            parser.error(f'--{name.replace("_", "-")} is {getattr(args, name)}: give a number above 0 and at most 1.')
    _check_loss(parser, args)
    _check_batches(parser, args)


def _check_method(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What goes with focus training and with ACoL, and with which types and devices."""
    name = {'focus': 'focus training', 'acol': 'ACoL'}.get(args.method)
    if name:
        refused = [
            ('kd-model-name', args.kd_model_name, 'a model has a loss of its own and is not distilled'),
            ('jsd-loss', args.jsd_loss or args.loss == 'jsd', 'the losses of the branches are of single images'),
            ('split-bn', args.split_bn, 'what is erased is not of the augmentation splits')]
        if args.method == 'acol':
            mixing = next((flag for flag in ('mixup', 'cutmix', 'cutmix_minmax') if getattr(args, flag)), 'mixup')
            refused += [
                (mixing.replace('_', '-'), mixes(args), 'the map of the one true class says what is erased'),
                ('gp', args.gp, 'the logits are the means of maps'),
                ('drop', args.drop, "heads of its own take the place of the model's")]
        for flag, wrong, reason in refused:
            if wrong:
                plain = args.model.removeprefix('focus_')
                parser.error(f'--{flag} does not go with {name}, where {reason}: train {plain} with it.')
    if args.amp and args.model_dtype not in (None, 'float32'):
        parser.error(f'--model-dtype {args.model_dtype} does not go with --amp, which needs float32 weights: give one.')
    if args.method == 'acol' and args.push_to_hub:
        parser.error('--push-to-hub does not go with --method acol, whose classifier no timm model has: leave it out.')
    if args.wandb_resume_id and not args.resume:
        parser.error('--wandb-resume-id needs --resume: it goes on with a run that a checkpoint goes on with.')
    if args.drop_connect is not None:
        if args.drop_path not in (None, args.drop_connect):
            parser.error(f'--drop-path {args.drop_path} and --drop-connect {args.drop_connect} are the same: give one.')
        args.drop_path = args.drop_connect


def _check_loss(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Resolve the names of losses, and have timm try to make the one that is asked for."""
    for loss in ('bce', 'jsd'):
        if getattr(args, f'{loss}_loss'):
            if args.loss not in (None, loss):
                parser.error(f'--loss {args.loss} and --{loss}-loss contradict each other: give one.')
            args.loss = loss
    if args.bce_pos_weight is not None:
        if args.loss_pos_weight not in (None, str(args.bce_pos_weight)):
            parser.error(f'--loss-pos-weight {args.loss_pos_weight} and --bce-pos-weight {args.bce_pos_weight} are the '
                         'same: give one.')
        args.loss_pos_weight = str(args.bce_pos_weight)
    try:
        create_classification_loss(**criterion_kwargs(args))
    except (OSError, TypeError, ValueError) as e:
        parser.error(f'The loss cannot be made: {" ".join(str(e).split())}')


def _check_batches(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What batches are made of: augmentation splits, mixing, scheduled resolutions."""
    if args.aug_splits == 1:
        parser.error('--aug-splits is 1: give 0, or 2 and more.')
    if args.aug_splits and mixes(args):
        parser.error('--aug-splits does not go with mixup or cutmix, which mix images of different splits: give one.')
    if args.aug_splits and args.no_prefetcher:
        parser.error('--aug-splits does not go with --no-prefetcher: leave one out.')
    if args.split_bn and not (args.aug_splits or args.resplit):
        parser.error('--split-bn needs splits of the batch: give --aug-splits or --resplit.')
    sizes = args.train_img_sizes
    if sizes is None:
        for name in ('train_batch_sizes', 'train_size_probs', 'train_batches_per_epoch', 'train_size_schedule'):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f'--{name.replace("_", "-")} needs --train-img-sizes, the sizes that it is about.')
        return
    for name in ('train_batch_sizes', 'train_size_probs'):
        values = getattr(args, name)
        if values is not None and len(values) != len(sizes):
            parser.error(f'--{name.replace("_", "-")} has {len(values)} values: give {len(sizes)}, one for each of '
                         '--train-img-sizes.')
    if args.train_size_probs is not None and not sum(args.train_size_probs):
        parser.error('--train-size-probs is 0 for each size: give one of them more.')
    if args.train_size_schedule == 'progressive' and len(sizes) < 2:
        parser.error('--train-size-schedule progressive needs two of --train-img-sizes, or more.')
    if args.aug_splits:
        parser.error('--aug-splits does not go with --train-img-sizes: give one.')
