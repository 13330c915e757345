"""Makes the data sets of a run, and reproducible timm loaders for them."""
import argparse
import contextlib
import datetime
import functools
import logging
import os
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Tuple, Union

import numpy as np
import timm.data
import torch
import torch.distributed as dist
from timm.data import AugMixDataset, FastCollateMixup, IterableImageDataset, Mixup, create_loader
from timm.data.scheduled_sampler import ScheduledTransformDataset

from timm_focus.data import SceneDataset, create_dataset, use_simple_crop, write_list
from timm_focus.data.dataset import FOLDER, PLACES365, STREAMS, found_name
from timm_focus.data.images import image_endings, image_mode
from timm_focus.data.libraries import forbid_programs
from timm_focus.data.readers import PartReader, label_names
from timm_focus.data.tars import class_info
from timm_focus.data.transforms import ComplexLater, fit_channels, posterizing
from timm_focus.demo import SYNTHETIC
from timm_focus.utils import some, write_whole
from timm_focus.utils.errors import SettingsError, as_settings_error, refused
from timm_focus.utils.processes import shield_workers
from timm_focus.utils.text import check_names

from .criterion import mixes
from .reproducible import ReproducibleLoader, SeededDataset
from .settings import Settings
from .starts import AUTO

__all__ = [
    'check_readable', 'create_datasets', 'create_loaders', 'fit_images', 'keep_lists', 'set_complex', 'set_epoch']

_logger = logging.getLogger('train')

Images = Union[SceneDataset, IterableImageDataset]


def create_datasets(args: Settings) -> Tuple[Settings, Images, Optional[Images]]:
    """Make the data sets of a run.

    Returns:
        The settings with the folder of drawn scenes, and the number and the names of the classes; the training data;
        and the validation data, None without a validation split.

    Raises:
        SettingsError: A folder, a split or the classes do not fit the settings.
    """
    if args.dataset == SYNTHETIC:
        from timm_focus.demo.scenes import synthetic_scenes

        with _first_here(args), as_settings_error('The drawn scenes cannot be kept'):
            args = args.completed(data_dir=str(synthetic_scenes()))
    source = _find_source(args)
    with _first_here(args):  # it caches the index of a large tree for the others
        streams = source.partition('/')[0].lower() in (*STREAMS, 'wds')
        train, val = (_streams if streams else _numbered)(args, source)
    names = label_names(train.reader)
    with refused():
        check_names(names)
    if len(names) == 1 or (not names and args.num_classes == 1):
        one = names[0] if names else 'by --num-classes 1'
        raise SettingsError(
            f'There is one class, {one}, and a classifier tells classes apart: give images of two or more.')
    args = args.completed(label_names=names)
    _tell_empty_classes(args, dict(training=train, validation=val))
    n_classes = len(names) or class_info(getattr(train.reader, 'info', None))[1]
    if args.num_classes is None:
        args = args.completed(num_classes=n_classes)
        if n_classes is None and args.rank == 0:
            _logger.warning("The data does not tell how many classes it has, so they are the model's: "
                            'give --num-classes.')
    elif n_classes is not None and args.num_classes < n_classes:
        raise SettingsError(
            f'--num-classes is {args.num_classes}, but the data has {n_classes} classes: leave the flag out.')
    elif n_classes is not None and args.num_classes > n_classes and args.rank == 0:
        _logger.warning(f'--num-classes is {args.num_classes}, but the data has {n_classes} classes: '
                        f'{args.num_classes - n_classes} outputs learn nothing. Leave the flag out.')
    return args, train, val


@contextlib.contextmanager
def _first_here(args: argparse.Namespace) -> Iterator[None]:
    """Let the first process of each machine go before the others."""
    if not args.distributed:
        yield
        return
    # over gloo, as NCCL gives up after ten minutes, and a slow disk takes longer for millions of files
    group: Any = dist.new_group(backend='gloo', timeout=datetime.timedelta(days=1))
    if args.local_rank != 0:
        dist.barrier(group)
    yield
    if args.local_rank == 0:
        dist.barrier(group)


def _find_source(args: argparse.Namespace) -> str:
    """Return the name of the data set: 'places365', 'folder', '' to find out which of these it is, or a library's."""
    name = args.dataset.lower()
    if name == SYNTHETIC or name in ('imagefolder', 'image_folder'):  # timm's other names for a folder
        name = FOLDER
    name = name if name in ('', FOLDER, PLACES365) else args.dataset
    with refused():
        name = found_name(args.data_dir or '', name)
    return name


def _numbered(args: argparse.Namespace, name: str) -> Tuple[Images, Optional[Images]]:
    """Make data sets whose images can be read by number."""
    common = dict(
        version=args.places_version, size=args.places_size, class_map=args.class_map or None, input_key=args.input_key,
        target_key=args.target_key, download=args.dataset_download, trust_remote_code=args.dataset_trust_remote_code)
    with refused((ImportError, ValueError, OSError)):
        train = create_dataset(
            name, args.data_dir or '', args.train_split, image_list=args.train_list,
            images_per_class=args.images_per_class, subset_seed=args.subset_seed, **common)
    _be_patient(args, train)
    if not args.val_split:
        return train, None
    try:
        # classes are those of training: a class without validation images must not shift the numbers after it
        val = create_dataset(
            name, args.data_dir or '', args.val_split, class_names=label_names(train.reader), **common)
    except (ValueError, OSError) as e:
        raise SettingsError(f"{e} (--val-split '' does without validation.)") from e
    _be_patient(args, val)
    return train, val


def _be_patient(args: argparse.Namespace, dataset: SceneDataset) -> None:
    """Tell a data set how many bad images end a run, and how long to wait for data that is gone."""
    dataset.most_bad = int(args.max_bad_images * len(dataset))
    dataset.patience = args.data_timeout


class _Stream(IterableImageDataset):
    """timm's data set of a stream. In its workers Pillow starts no other program to open an image."""

    def __iter__(self) -> Iterator[Any]:
        forbid_programs()
        return super().__iter__()


def _streams(args: argparse.Namespace, name: str) -> Tuple[Images, Optional[Images]]:
    """Make data sets that timm reads as streams."""
    for flag in ('places_version', 'places_size', 'train_list', 'images_per_class'):
        if getattr(args, flag) is not None:
            raise SettingsError(f'--{flag.replace("_", "-")} is of images with numbers, and {args.dataset or name} is '
                                'a stream: leave it out.')
    input_key = args.input_key
    if not input_key and name.lower().startswith('wds/'):  # timm would drop all but jpg, png, webp
        input_key = ';'.join(sorted(ending[1:] for ending in image_endings()))
    common = dict(
        name=name, root=args.data_dir, download=args.dataset_download, seed=args.seed, input_key=input_key,
        target_key=args.target_key, trust_remote_code=args.dataset_trust_remote_code, class_map=args.class_map)

    def load(split: str, flag: str, **kwargs: Any) -> Images:
        with as_settings_error(f'--{flag} {split} of {args.data_dir or args.dataset} cannot be read'):
            stream = timm.data.create_dataset(split=split, **common, **kwargs)
            return _Stream(stream.reader.root if hasattr(stream.reader, 'root') else '', reader=stream.reader)

    train = load(
        args.train_split, 'train-split', is_training=True, batch_size=args.batch_size, repeats=args.epoch_repeats,
        num_samples=args.train_num_samples)
    if not args.val_split:
        return train, None
    return train, load(
        args.val_split, 'val-split', batch_size=args.validation_batch_size or args.batch_size,
        num_samples=args.val_num_samples)


def _tell_empty_classes(args: argparse.Namespace, datasets: Dict[str, Optional[Images]]) -> None:
    """Log which classes have no images, if the data set knows it."""
    for split, dataset in datasets.items():
        targets = getattr(getattr(dataset, 'reader', None), 'targets', None)
        if targets is None or not args.label_names:
            continue
        counts = np.bincount(targets, minlength=len(args.label_names))
        empty = [name for name, count in zip(args.label_names, counts) if not count]
        if empty and args.rank == 0:
            _logger.warning(
                f'{len(empty)} of the {len(args.label_names)} classes have no {split} images: {some(empty)}.')


def fit_images(
        args: argparse.Namespace,
        data_config: Dict[str, Any],
        dataset_train: Images,
        dataset_eval: Optional[Images],
) -> None:
    """Adapt data sets and `data_config`, in place, to the number of channels of the model.

    Raises:
        SettingsError: Images cannot have these channels.
    """
    with refused():
        mode = image_mode(args.in_chans, args.input_img_mode)
    fit_channels(data_config, args.in_chans)
    for dataset in filter(None, (dataset_train, dataset_eval)):
        holder = dataset.reader if isinstance(dataset, IterableImageDataset) else dataset
        holder.input_img_mode = mode


def keep_lists(args: argparse.Namespace, dataset: Images, folder: str) -> None:
    """Write the classes of a run, one a line, and the chosen training images into its folder."""
    if args.label_names:
        write_whole(os.path.join(folder, 'classes.txt'), ''.join(f'{name}\n' for name in args.label_names))
    if not (args.images_per_class or args.train_list):
        return
    path = os.path.join(folder, 'train.txt')
    if isinstance(dataset.reader, PartReader):  # images without files are named by their numbers
        pairs = zip(dataset.reader.indices.tolist(), dataset.reader.targets.tolist())
        write_whole(path, ''.join(f'{i} {target}\n' for i, target in pairs))
    else:
        write_list(dataset.reader.index, path)


def check_readable(datasets: Iterable[Optional[Images]], device: torch.device) -> None:
    """Check how many images all processes together could not read so far.

    Raises:
        BadImages: There are more than `--max-bad-images` in a data set.
    """
    for dataset in datasets:
        if isinstance(dataset, SceneDataset):
            bad = dataset.bad.to(device)
            dist.all_reduce(bad, dist.ReduceOp.MAX)
            dataset.check_bad(bad)


def create_loaders(
        args: argparse.Namespace,
        dataset_train: Images,
        dataset_eval: Optional[Images],
        data_config: Dict[str, Any],
        device: torch.device,
) -> Tuple[Any, Any, Optional[Callable]]:
    """Make the loaders of both data sets, and a function that mixes batches if the training loader does not.

    Raises:
        SettingsError: Batches of these settings cannot be made.
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
    trained_on: Any = AugMixDataset(dataset_train, args.aug_splits) if args.aug_splits else dataset_train
    common = dict(
        use_prefetcher=args.prefetcher, mean=data_config['mean'], std=data_config['std'], num_workers=args.workers,
        distributed=args.distributed, pin_memory=args.pin_mem, device=device, worker_seeding=args.worker_seeding,
        img_dtype=getattr(torch, args.model_dtype or 'float32'))
    with posterizing():
        loader_train = create_loader(
            trained_on, input_size=data_config['input_size'], batch_size=args.batch_size, is_training=True,
            no_aug=args.no_aug, re_prob=args.reprob, re_mode=args.remode, re_count=args.recount,
            re_split=args.resplit, train_crop_mode=args.train_crop_mode, scale=args.scale, ratio=args.ratio,
            hflip=args.hflip, vflip=args.vflip, color_jitter=args.color_jitter,
            color_jitter_prob=args.color_jitter_prob, grayscale_prob=args.grayscale_prob,
            gaussian_blur_prob=args.gaussian_blur_prob, auto_augment=args.aa, num_aug_repeats=args.aug_repeats,
            num_aug_splits=args.aug_splits, interpolation=args.train_interpolation, collate_fn=collate_fn,
            input_size_choices=args.train_img_sizes, batch_size_choices=args.train_batch_sizes,
            batch_choice_weights=args.train_size_probs, batch_choice_seed=args.seed,
            batch_choice_schedule=args.train_size_schedule, batch_schedule_epochs=args.epochs,
            batch_schedule_spread=args.train_size_schedule_spread, batch_schedule_random_mix=args.train_size_random_mix,
            num_batches=args.train_batches_per_epoch,
            # a persistent worker would not learn that mixup is off
            persistent_workers=not (collate_fn is not None and args.mixup_off_epoch), **common)
    inner = loader_train.loader if args.prefetcher else loader_train
    timms_crop = args.train_crop_mode or args.scale or args.ratio  # explicit flags win over the simple scheme
    if args.scheme == 'simple' and not args.no_aug and not timms_crop:
        if args.train_img_sizes:
            for transform, size in zip(inner.dataset.transforms, args.train_img_sizes):
                use_simple_crop(transform, (size, size), args.train_interpolation)
        else:
            use_simple_crop(trained_on.transform, data_config['input_size'], args.train_interpolation)
    if args.scheme == AUTO:
        later = functools.partial(
            ComplexLater, interpolation=args.train_interpolation, jitter='color_jitter' in args.given)
        if args.train_img_sizes:
            sizes = zip(inner.dataset.transforms, args.train_img_sizes)
            inner.dataset.transforms = tuple(later(transform, (size, size)) for transform, size in sizes)
        else:
            trained_on.transform = later(trained_on.transform, data_config['input_size'])
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


def set_complex(loader: Any, enable: bool) -> None:
    """Tell the training loader of `--scheme auto` whether the images of the next epoch come in the complex scheme."""
    dataset = getattr(loader, 'loader', loader).dataset
    dataset = dataset.dataset if isinstance(dataset, SeededDataset) else dataset
    for transform in dataset.transforms if isinstance(dataset, ScheduledTransformDataset) else [dataset.transform]:
        transform.set_complex(enable)


def set_epoch(loader: Any, epoch: int, start_batch: int) -> None:
    """Tell the training loader the next epoch, and the batch in it to begin with."""
    inner = getattr(loader, 'loader', loader)
    if isinstance(inner, ReproducibleLoader):
        inner.set_epoch(epoch, start_batch)
    elif hasattr(loader.dataset, 'set_epoch'):
        loader.dataset.set_epoch(epoch)
