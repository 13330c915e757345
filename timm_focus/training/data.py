"""What a run is trained and validated on: timm's data sets and loaders, made reproducible."""
import argparse
import logging
import os
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.distributed as dist
from PIL import ImageMode
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_dataset, create_loader
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch.utils.data import Dataset

from timm_focus.data import synthetic_scenes, use_simple_crop
from timm_focus.data.synthetic import SYNTHETIC

from .criterion import mixes
from .errors import SettingsError, explained
from .interrupt import shield_workers
from .reproducible import ReproducibleLoader

__all__ = ['create_datasets', 'create_loaders', 'set_epoch']

_logger = logging.getLogger('train')


def create_datasets(args: argparse.Namespace) -> Tuple[Dataset, Optional[Dataset]]:
    """Training and validation data, None without a validation split; fixes the number of classes.

    Raises:
        SettingsError: A folder, a split or the classes are not what the settings say.
    """
    if args.dataset == SYNTHETIC:
        if args.distributed and args.local_rank != 0:
            dist.barrier()
        with explained('The drawn scenes cannot be kept'):
            args.data_dir = str(synthetic_scenes())
        if args.distributed and args.local_rank == 0:
            dist.barrier()
    folder = not args.dataset or args.dataset == SYNTHETIC
    with explained(f'--input-img-mode is {args.input_img_mode}, but Pillow knows it not: give RGB or L'):
        ImageMode.getmode(args.input_img_mode or 'RGB')
    common = dict(
        root=args.data_dir, download=args.dataset_download, seed=args.seed, input_key=args.input_key,
        target_key=args.target_key, trust_remote_code=args.dataset_trust_remote_code,
        input_img_mode=args.input_img_mode or ('L' if args.in_chans == 1 else 'RGB'))
    name = '' if folder else args.dataset

    def load(split: str, flag: str, **kwargs: Any) -> Dataset:
        with explained(f'--{flag} {split} of {args.data_dir or args.dataset} cannot be read'):
            dataset = create_dataset(name, split=split, **common, **kwargs)
        if folder and os.path.realpath(dataset.reader.root) == os.path.realpath(args.data_dir):
            raise SettingsError(
                f'{args.data_dir} has no folder {split}: put the images into <split>/<class>/, or name the split by '
                f'--{flag}' + (" ('' to do without)." if flag == 'val-split' else '.'))
        return dataset

    if folder and not os.path.isdir(args.data_dir):
        raise SettingsError(f'There is no folder {args.data_dir}: name one with train/<class>/ and val/<class>/.')
    train = load(
        args.train_split, 'train-split', is_training=True, class_map=args.class_map, batch_size=args.batch_size,
        repeats=args.epoch_repeats, num_samples=args.train_num_samples)
    classes = getattr(getattr(train, 'reader', None), 'class_to_idx', None) or {}
    val = None
    if args.val_split:
        # the training classes rule: a class without validation images must not shift those after it
        val = load(
            args.val_split, 'val-split', class_map=classes if folder else args.class_map,
            batch_size=args.validation_batch_size or args.batch_size, num_samples=args.val_num_samples)
        if folder:
            found = find_images_and_targets(val.reader.root)[1]
            if not args.class_map and (strange := sorted(set(found) - set(classes))):
                raise SettingsError(
                    f'{len(strange)} of the classes in {val.reader.root} are not in {train.reader.root}, such as '
                    f'{strange[0]}: give both splits the same class folders.')
    n_classes = max(classes.values()) + 1 if classes else None
    if args.num_classes is None:
        args.num_classes = n_classes
    elif n_classes is not None and args.num_classes < n_classes:
        raise SettingsError(
            f'--num-classes is {args.num_classes}, but the data has {n_classes} classes: leave the flag out.')
    return train, val


def create_loaders(
        args: argparse.Namespace,
        dataset_train: Dataset,
        dataset_eval: Optional[Dataset],
        data_config: Dict[str, Any],
        device: torch.device,
) -> Tuple[Any, Any, Optional[Callable]]:
    """Loaders of both data sets, and what mixes batches where the training loader does not.

    Raises:
        SettingsError: Batches that cannot be made.
    """
    mixup_fn, collate_fn = None, None
    if mixes(args):
        mixup_args = dict(
            mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
            num_classes=args.num_classes)
        odd = [n for n in (args.train_batch_sizes or [args.batch_size]) if n % 2]
        if odd:
            flag = '--train-batch-sizes' if args.train_batch_sizes else '--batch-size'
            raise SettingsError(f'{flag} is {odd[0]}: mixup and cutmix pair images, give an even number.')
        if args.prefetcher:
            collate_fn = FastCollateMixup(**mixup_args)
        else:
            mixup_fn = Mixup(**mixup_args)
    if args.aug_repeats and not args.distributed:
        raise SettingsError(
            '--aug-repeats repeats images over processes: start several with torchrun, or leave it out.')
    if args.aug_splits:
        dataset_train = AugMixDataset(dataset_train, num_splits=args.aug_splits)
    common = dict(
        use_prefetcher=args.prefetcher, mean=data_config['mean'], std=data_config['std'], num_workers=args.workers,
        distributed=args.distributed, pin_memory=args.pin_mem, device=device, worker_seeding=args.worker_seeding,
        img_dtype=getattr(torch, args.model_dtype or 'float32'))
    loader_train = create_loader(
        dataset_train, input_size=data_config['input_size'], batch_size=args.batch_size, is_training=True,
        no_aug=args.no_aug, re_prob=args.reprob, re_mode=args.remode, re_count=args.recount, re_split=args.resplit,
        train_crop_mode=args.train_crop_mode, scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
        color_jitter=args.color_jitter, color_jitter_prob=args.color_jitter_prob, grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob, auto_augment=args.aa, num_aug_repeats=args.aug_repeats,
        num_aug_splits=args.aug_splits, interpolation=args.train_interpolation, collate_fn=collate_fn,
        input_size_choices=args.train_img_sizes, batch_size_choices=args.train_batch_sizes,
        batch_choice_weights=args.train_size_probs, batch_choice_seed=args.seed,
        batch_choice_schedule=args.train_size_schedule, batch_schedule_epochs=args.epochs,
        batch_schedule_spread=args.train_size_schedule_spread, batch_schedule_random_mix=args.train_size_random_mix,
        num_batches=args.train_batches_per_epoch,
        # a worker that lives on would not hear that mixup is off
        persistent_workers=not (collate_fn is not None and args.mixup_off_epoch), **common)
    inner = loader_train.loader if args.prefetcher else loader_train
    timms_crop = args.train_crop_mode or args.scale or args.ratio  # explicit flags win over the simple scheme
    if args.scheme == 'simple' and not args.no_aug and not timms_crop:
        if args.train_img_sizes:
            for transform, size in zip(inner.dataset.transforms, args.train_img_sizes):
                use_simple_crop(transform, (size, size), args.train_interpolation)
        else:
            use_simple_crop(dataset_train.transform, data_config['input_size'], args.train_interpolation)
    if isinstance(inner.dataset, torch.utils.data.IterableDataset):
        _logger.warning('An iterable data set shuffles by itself: this run cannot be repeated or resumed exactly.')
    else:
        inner = ReproducibleLoader(inner, args.seed, args.rank)
        if args.prefetcher:
            loader_train.loader = inner
        else:
            loader_train = inner
    shield_workers(inner)
    if not len(loader_train):
        raise SettingsError(
            f'--batch-size is {args.batch_size}, but there are only {len(dataset_train)} training images for '
            f'{args.world_size} process(es): give a smaller batch.')
    loader_eval = None
    if dataset_eval is not None:
        loader_eval = create_loader(
            dataset_eval, input_size=data_config['input_size'],
            batch_size=args.validation_batch_size or args.batch_size, is_training=False,
            interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'],
            crop_mode=data_config['crop_mode'], use_multi_epochs_loader=args.use_multi_epochs_loader, **common)
        shield_workers(loader_eval.loader if args.prefetcher else loader_eval)
    return loader_train, loader_eval, mixup_fn


def set_epoch(loader: Any, epoch: int, start_batch: int) -> None:
    """Tell the training loader which epoch comes, and the batch in it to begin with."""
    inner = getattr(loader, 'loader', loader)
    if isinstance(inner, ReproducibleLoader):
        inner.set_epoch(epoch, start_batch)
    elif hasattr(loader.dataset, 'set_epoch'):
        loader.dataset.set_epoch(epoch)
