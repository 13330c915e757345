"""Refuses settings of train_focus.py that make no sense, with one sentence each."""
import argparse
import math
from typing import Any, Dict, Optional, Tuple

from timm.loss import create_classification_loss

from timm_focus.demo import SYNTHETIC
from timm_focus.utils.errors import SettingsError, sentence

from .criterion import criterion_kwargs, mixes
from .refused import check_refused
from .starts import AUTO

__all__ = ['METHOD_FLAGS', 'check', 'choose_method']

# each method's name in messages, and the flags that choose it; flags that begin with the key go only with that method
FOCUS_TRAINING = ('focus training', '--model focus_{model} or --method focus')
FORMER_DEFAULTS = {'focus_bn': 'shared'}  # of older args.yaml, which name every setting
METHOD_FLAGS = {
    'adl': ('ADL', '--model {model} --method adl'),
    'acol': ('ACoL', '--model {model} --method acol'),
    'masksub': ('MaskSub', '--model {model} --method masksub'),
}

# the least value of each number, and of each number in a list
LEAST = {
    **dict.fromkeys((
        'weight_decay', 'workers', 'recovery_interval', 'warmup_epochs', 'lr', 'lr_base', 'smoothing',
        'mixup', 'cutmix', 'reprob', 'clip_grad', 'focus_alpha', 'focus_beta', 'focus_side_weight',
        'focus_start', 'seed', 'start_epoch', 'aug_repeats', 'momentum', 'min_lr', 'warmup_lr',
        'head_init_scale', 'epoch_repeats', 'aug_splits', 'train_size_probs', 'train_size_schedule_spread',
        'distill_loss_weight', 'task_loss_weight', 'loss_weight_power', 'sheet_images', 'data_timeout'), 0),
    **dict.fromkeys((
        'batch_size', 'grad_accum_steps', 'epochs', 'log_interval', 'val_interval', 'checkpoint_hist',
        'focus_every', 'img_size', 'num_classes', 'in_chans', 'validation_batch_size', 'recount', 'focus_width',
        'lr_base_size', 'train_img_sizes', 'train_batch_sizes', 'train_batches_per_epoch',
        'kd_student_feature_dim', 'kd_teacher_feature_dim', 'images_per_class'), 1),
}
FROM_0_TO_1 = (
    'smoothing', 'reprob', 'mixup_prob', 'mixup_switch_prob', 'hflip', 'vflip', 'drop', 'drop_path', 'drop_block',
    'model_ema_decay', 'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'train_size_random_mix',
    'max_bad_images', 'adl_drop_rate')
ABOVE_0_TO_1 = ('focus_threshold', 'focus_fraction', 'focus_size', 'crop_pct', 'adl_gamma', 'acol_threshold')
ABOVE_0 = ('decay_epochs', 'std', 'kd_temperature')
COUNTS = {'scale': (2,), 'ratio': (2,), 'cutmix_minmax': (2,), 'opt_betas': (2, 3), 'lr_noise': (1, 2)}


def choose_method(model: str, method: Optional[str], named: bool) -> Tuple[str, str]:
    """Return the model and the method of a run.

    Args:
        model: The model of the settings.
        method: The method of the settings, None if it is not set.
        named: Whether the user named the model. The default model is a plain one for methods other than focus.
    """
    if not named and method not in (None, 'focus'):
        model = model.removeprefix('focus_')
    return model, method or ('focus' if model.startswith('focus_') else 'none')


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, given: Dict[str, Any]) -> None:
    """Refuse settings that make no sense.

    Args:
        parser: The parser, for the defaults.
        args: All settings.
        given: The settings that the command line and `--config` give.

    Raises:
        SettingsError: A setting makes no sense. The message says what to do.
    """
    _check_data(args)
    check_refused(parser, args)
    _check_method(parser, args, given)
    _check_numbers(args, given)
    _check_loss(args)
    _check_batches(parser, args)


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return '--' + name.replace('_', '-')


def _check_data(args: argparse.Namespace) -> None:
    """Check the flags of the data, and those of going on with a run."""
    if args.dataset == SYNTHETIC and args.data_dir is not None:
        raise SettingsError(f'--dataset {SYNTHETIC} draws its own images: leave out the folder {args.data_dir}.')
    if args.data_dir is None and not args.dataset:
        raise SettingsError(
            'No data is given: name a folder with train and val, or --dataset synthetic for drawn scenes.')
    if args.resume == 'auto' and not args.experiment:
        raise SettingsError('--resume auto needs --experiment: it continues the last checkpoint of that run.')
    if args.wandb_resume_id and not args.resume:
        raise SettingsError('--wandb-resume-id needs --resume: it goes on with a run that a checkpoint goes on with.')


def _check_method(parser: argparse.ArgumentParser, args: argparse.Namespace, given: Dict[str, Any]) -> None:
    """Check that the flags go with the model and the method."""
    plain = args.model.removeprefix('focus_')
    if plain != args.model and args.method != 'focus':
        what = 'a plain model' if args.method == 'none' else 'a plain model in its own way'
        raise SettingsError(f'--method {args.method} trains {what}: give --model {plain}.')
    for method, (called, remedy) in {'focus': FOCUS_TRAINING, **METHOD_FLAGS}.items():
        foreign = sorted(k for k in given if k.startswith(f'{method}_')
                         and given[k] not in (parser.get_default(k), FORMER_DEFAULTS.get(k, ())))
        if foreign and args.method != method:
            names = ', '.join(map(flag, foreign))
            raise SettingsError(f'{names} belongs to {called}: give {remedy.format(model=plain)}.')

    name = {'focus': 'focus training', 'acol': 'ACoL', 'masksub': 'MaskSub'}.get(args.method)
    refused = []
    if name:
        refused = [
            ('kd_model_name', args.kd_model_name, 'a model has a loss of its own and is not distilled'),
            ('jsd_loss', args.loss == 'jsd', 'the losses of the branches are of single images'),
            ('split_bn', args.split_bn, 'erased images belong to no augmentation split')]
    if args.method == 'acol':
        mixing = next((k for k in ('mixup', 'cutmix', 'cutmix_minmax') if getattr(args, k)), 'mixup')
        refused += [
            (mixing, mixes(args), 'the map of the one true class says what is erased'),
            ('gp', args.gp, 'the logits are the means of maps'),
            ('drop', args.drop, "heads of its own take the place of the model's")]
    for k, wrong, reason in refused:
        if wrong:
            raise SettingsError(
                f'{flag(k)} does not go with {name}, where {reason}: train {plain} with it (--model {plain}).')
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise SettingsError(
            f'--model-dtype {args.model_dtype} does not go with --amp, which needs float32 weights: give one.')


def _check_numbers(args: argparse.Namespace, given: Dict[str, Any]) -> None:
    """Check the range of each number, and that epochs lie within the run."""
    def numbers(name: str) -> list:
        value = getattr(args, name)
        values = value if isinstance(value, (list, tuple)) else [value]
        return [v for v in values if isinstance(v, (int, float))]

    def refuse_unless(name: str, right: bool, remedy: str) -> None:
        if not right:
            raise SettingsError(f'{flag(name)} is {getattr(args, name)}: give {remedy}.')

    for name in vars(args):
        finite = all(math.isfinite(v) for v in numbers(name) if isinstance(v, float))
        refuse_unless(name, finite, 'a finite number')
    for name, least in LEAST.items():
        refuse_unless(name, all(v >= least for v in numbers(name)), f'{least} or more')
    for name in FROM_0_TO_1:
        refuse_unless(name, all(0 <= v <= 1 for v in numbers(name)), 'a number from 0 to 1')
    for name in ABOVE_0_TO_1:
        refuse_unless(name, all(0 < v <= 1 for v in numbers(name)), 'a number above 0 and at most 1')
    for name in ABOVE_0:
        refuse_unless(name, all(v > 0 for v in numbers(name)), 'a number above 0')
    refuse_unless('smoothing', args.smoothing < 1, 'less, or nothing is left of the label')
    for name, counts in COUNTS.items():
        value = getattr(args, name)
        if value is not None and len(value) not in counts:
            allowed = ' or '.join(map(str, counts))
            raise SettingsError(f'{flag(name)} has {len(value)} values: give {allowed}.')
    for name, advice in (
            ('start_epoch', ''), ('focus_start', ', or train the side loss alone by --focus-alpha 0 --focus-beta 0')):
        value = getattr(args, name)
        if isinstance(value, int) and value >= args.epochs:
            raise SettingsError(
                f'{flag(name)} is {value}, but --epochs is {args.epochs}: give a lower number{advice}.')
    for name in ('focus_share', 'masksub_share'):
        refuse_unless(name, all(0 < v < 1 for v in numbers(name)), 'a number between 0 and 1')
    if args.focus_share is not None and 'focus_threshold' in given:
        raise SettingsError('--focus-share is in place of --focus-threshold: give one.')
    if args.focus_copy_head and (args.focus_scored_by == 'main' or args.focus_consistency == 'attention_mining'):
        raise SettingsError('--focus-copy-head is of the erased head, and here the main classifier scores the erased '
                            'image: leave it out.')
    if args.focus_start == AUTO and args.method == 'focus' and not (args.focus_alpha or args.focus_beta):
        raise SettingsError('--focus-start auto has nothing to start where no images are erased (--focus-alpha 0 '
                            '--focus-beta 0): leave it out.')
    for name, other in (('focus_start', '0'), ('scheme', 'simple')):
        if getattr(args, name) == AUTO and args.epochs < 2:
            raise SettingsError(f'{flag(name)} auto looks at an epoch before it starts, and --epochs is 1: give more '
                                f'epochs, or {flag(name)} {other}.')
    if args.scheme == AUTO:
        for name in ('no_aug', 'train_crop_mode', 'aug_splits'):
            if getattr(args, name):
                raise SettingsError(f'--scheme auto changes the crop during the run, which {flag(name)} does not let '
                                    'it: leave one of them out.')
    late = [e for e in args.save_epochs or () if not 1 <= e <= args.epochs]
    if late:
        raise SettingsError(f'--save-epochs has {late[0]}: give numbers from 1 to --epochs, {args.epochs}.')


def _check_loss(args: argparse.Namespace) -> None:
    """Check the flags of the loss by making it."""
    try:
        create_classification_loss(**criterion_kwargs(args))
    except (OSError, TypeError, ValueError) as e:
        raise SettingsError(f'The loss cannot be made: {sentence(e)}') from e


def _check_batches(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the flags of batches: augmentation splits, mixing, scheduled resolutions."""
    if args.aug_splits == 1:
        raise SettingsError('--aug-splits is 1: give 0, or 2 and more.')
    if args.aug_splits and mixes(args):
        raise SettingsError(
            '--aug-splits does not go with mixup or cutmix, which mix images of different splits: give one.')
    if args.aug_splits and args.no_prefetcher:
        raise SettingsError('--aug-splits does not go with --no-prefetcher: leave one out.')
    if args.split_bn and not (args.aug_splits or args.resplit):
        raise SettingsError('--split-bn needs splits of the batch: give --aug-splits or --resplit.')
    sizes = args.train_img_sizes
    if sizes is None:
        for name in ('train_batch_sizes', 'train_size_probs', 'train_batches_per_epoch', 'train_size_schedule'):
            if getattr(args, name) != parser.get_default(name):
                raise SettingsError(f'{flag(name)} needs --train-img-sizes, the sizes that it is about.')
        return
    for name in ('train_batch_sizes', 'train_size_probs'):
        values = getattr(args, name)
        if values is not None and len(values) != len(sizes):
            raise SettingsError(
                f'{flag(name)} has {len(values)} values: give {len(sizes)}, one for each of --train-img-sizes.')
    if args.train_size_probs is not None and not sum(args.train_size_probs):
        raise SettingsError('--train-size-probs is 0 for each size: give one of them more.')
    if args.train_size_schedule == 'progressive' and len(sizes) < 2:
        raise SettingsError('--train-size-schedule progressive needs two of --train-img-sizes, or more.')
    if args.aug_splits:
        raise SettingsError('--aug-splits does not go with --train-img-sizes: give one.')
