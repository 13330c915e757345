#!/usr/bin/env python3
"""Train scene classifiers that look at more of the picture, or any timm model for comparison.

    python train_focus.py                                                     # drawn scenes, a few minutes on a CPU
    python train_focus.py /data/places365 --model focus_densenet121 --amp
    torchrun --nproc-per-node 4 -m train_focus /data/places365 --model focus_resnet50 --amp

A model named focus_<name> is trained by the method of "See More for Scene" (NeurIPS 2021), any other by its classifier
alone; the loop is the same. What comes out is a plain timm model. Flags are named as in timm's train.py.
"""
import contextlib
import difflib
import functools
import logging
import os
import pickle
import sys
from datetime import datetime

import timm
import torch
import torch.distributed as dist
from PIL import ImageMode
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader, resolve_data_config
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.layers import convert_sync_batchnorm
from timm.models import create_model, get_model_args, resolve_model_input_args, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import (
    NativeScaler, distribute_bn, get_outdir, init_distributed_device, setup_default_logging, unwrap_model,
    update_summary)
from timm.utils.summary import trim_summary

import timm_focus  # registers focus_<name>
from timm_focus.analysis import focus_sheet
from timm_focus.baselines import HideAndSeek
from timm_focus.data import synthetic_scenes, use_simple_crop
from timm_focus.training import (
    FocusCheckpointSaver, ReproducibleLoader, build_parser, create_task, parse_args, resume, seed_all, train_one_epoch,
    validate)
from timm_focus.training.arguments import FOCUS_MODEL_FLAGS, SYNTHETIC
from timm_focus.training.checkpoint import Progress
from timm_focus.training.task import classifiers, mixes

_logger = logging.getLogger('train')

parser = build_parser()


class SettingsError(ValueError):
    """The settings, the data or a checkpoint make no sense: one sentence, exit code 2."""


@contextlib.contextmanager
def explained(sentence):
    """Turn what a library says of the settings into one sentence."""
    try:
        yield
    except SettingsError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError,
            TypeError, ValueError, pickle.UnpicklingError) as e:
        raise SettingsError(f'{sentence}: {" ".join(str(e).split())[:500] or type(e).__name__}') from e


def _parse_args():
    return parse_args(parser, sys.argv[1:])


def main():
    setup_default_logging()
    args, args_text = _parse_args()
    device, autocast, loss_scaler = set_up_device(args)
    stop_epoch = args.stop_epoch if args.stop_epoch is not None else args.epochs
    if not 0 < stop_epoch <= args.epochs:
        raise SettingsError(f'--stop-epoch is {args.stop_epoch}: give a number from 1 to --epochs, {args.epochs}.')

    # data, model and task
    dataset_train, dataset_eval = create_datasets(args)
    seed_all(args.seed, 'model')  # every rank alike: DDP would copy rank 0's anyway
    model = build_model(args)
    with explained('--input-size, --mean and --std do not go together, a number a channel'):
        data_config = resolve_data_config(vars(args), model=model)
    with explained('The augmentation or interpolation cannot be made'):
        loader_train, loader_eval, mixup_fn = create_loaders(args, dataset_train, dataset_eval, data_config, device)
    model.to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        args.dist_bn = ''  # the statistics are the same everywhere
        model = convert_sync_batchnorm(model)  # timm's: torch's would lose the activations that timm fuses into norms
    task = create_task(model, args, device=device)
    augment = HideAndSeek() if args.has else None

    # optimizer and schedule
    if args.lr is None:
        args.lr = default_lr(args)
    metric_name = args.eval_metric if loader_eval is not None else 'loss'
    updates_per_epoch = -(-len(loader_train) // args.grad_accum_steps)
    with explained('The optimizer or schedule cannot be made'):
        optimizer = create_optimizer_v2(
            model, **optimizer_kwargs(args), **args.opt_kwargs, filter_bias_and_bn=args.no_decay_1d)
        lr_scheduler, num_epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args, decreasing_metric=metric_name == 'loss'),
            updates_per_epoch=updates_per_epoch)
    if args.stop_epoch is None:
        stop_epoch = num_epochs
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
            device=torch.device('cpu') if args.model_ema_force_cpu else None)

    # where to begin
    start, resume_path = Progress(args.start_epoch or 0, 0, (args.start_epoch or 0) * updates_per_epoch), args.resume
    if args.resume == 'auto':
        resume_path = find_last(os.path.join(args.output or './output/train', args.experiment))
    if resume_path:
        try:
            start = resume(task, resume_path, *(() if args.no_resume_opt else (optimizer, loss_scaler, lr_scheduler)))
        except ValueError as e:
            raise SettingsError(str(e)) from e
        if args.start_epoch is not None:
            start = Progress(args.start_epoch, 0, args.start_epoch * updates_per_epoch)
        elif not start.updates:  # of a checkpoint that another script wrote
            start = start._replace(updates=start.epoch * updates_per_epoch)
        if args.rank == 0:
            _logger.info(f'Resuming {resume_path} at epoch {start.epoch}, batch {start.batch}.')
    if lr_scheduler is not None and (start.epoch or start.batch):
        if args.sched_on_updates:
            lr_scheduler.step_update(start.updates)
        elif args.sched != 'plateau':
            lr_scheduler.step(start.epoch)
    if args.distributed:
        task.prepare_distributed(
            device_ids=[device] if device.type == 'cuda' else None,
            **(dict(broadcast_buffers=False) if args.no_ddp_bb else {}))

    saver, summary, output_dir = None, None, None
    if args.rank == 0:
        name = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}'
        with explained(f'--output {args.output or "./output/train"} cannot be written'):
            output_dir = get_outdir(args.output or './output/train', name)
        saver = FocusCheckpointSaver(
            model=model, task=task, optimizer=optimizer, args=args, amp_scaler=loss_scaler, checkpoint_dir=output_dir,
            recovery_dir=output_dir, decreasing=metric_name == 'loss', max_history=args.checkpoint_hist)
        saver.scheduler = lr_scheduler
        if resume_path and os.path.realpath(os.path.dirname(resume_path)) == os.path.realpath(output_dir):
            saver.load_state_dict_from_checkpoint(resume_path)
        summary = os.path.join(output_dir, 'summary.csv')
        trim_summary(summary, start.epoch)
        write_whole(os.path.join(output_dir, 'args.yaml'), args_text)
        describe(args, model, dataset_train, dataset_eval, loader_train, data_config, num_epochs, output_dir)

    # train
    best_metric, best_epoch = (saver.best_metric, saver.best_epoch) if saver is not None else (None, None)
    args.last_epoch = stop_epoch
    eval_metrics = None
    for epoch in range(start.epoch, stop_epoch):
        progress = start if epoch == start.epoch else Progress(epoch, 0, epoch * updates_per_epoch)
        set_epoch(loader_train, epoch, progress.batch)
        if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
            for mixer in (loader_train, mixup_fn):
                if mixer is not None:
                    mixer.mixup_enabled = False
        train_metrics = train_one_epoch(
            task, loader_train, optimizer, args, progress, device, autocast, loss_scaler, lr_scheduler, saver, augment,
            mixup_fn)
        if args.distributed and args.dist_bn:
            distribute_bn(task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
            if task.has_ema() and not args.model_ema_force_cpu:
                distribute_bn(task.get_trainable_module(ema=True), args.world_size, args.dist_bn == 'reduce')

        milestone = args.save_epochs is not None and epoch + 1 in args.save_epochs
        eval_metrics = None
        if loader_eval is not None and ((epoch + 1) % args.val_interval == 0 or milestone or epoch + 1 == stop_epoch):
            validate_on = functools.partial(
                validate, loader=loader_eval, task=task, args=args, device=device, autocast=autocast)
            eval_metrics = validate_on(task.get_eval_model())
            if task.has_ema() and not args.model_ema_force_cpu:
                eval_metrics = validate_on(task.get_eval_model(ema=True), name='Validate (EMA)')
        metric = eval_metrics[metric_name] if eval_metrics else train_metrics['loss'] if loader_eval is None else None
        lr = sum(group['lr'] for group in optimizer.param_groups) / len(optimizer.param_groups)
        if lr_scheduler is not None:
            lr_scheduler.step(epoch + 1, metric)
        if saver is not None:
            # an epoch that is not validated has a row, too, of the same columns
            columns = dict.fromkeys(task.create_evaluator().metric_names, '') if loader_eval is not None else None
            update_summary(epoch, train_metrics, eval_metrics or columns, summary, lr=lr)
            saver.progress = Progress(epoch + 1, 0, (epoch + 1) * updates_per_epoch)
            best_metric, best_epoch = saver.save_checkpoint(epoch, metric=metric)
            if milestone:
                saver.save_milestone(epoch + 1)

    if args.rank == 0:
        classes = getattr(getattr(dataset_train, 'reader', None), 'class_to_idx', None) or {}
        conclude(args, task, output_dir, metric_name, best_metric, best_epoch, dataset_eval, classes, data_config)
    if args.distributed:
        dist.destroy_process_group()


def set_up_device(args):
    """Choose and prepare the device: `(device, autocast, loss_scaler)`; adds rank and world size to the settings."""
    args.prefetcher = not args.no_prefetcher
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise SettingsError(f'--device is {args.device}, but torch finds no CUDA device: leave it out, or give cpu.')
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if args.sync_bn and not args.device.startswith('cuda'):
        raise SettingsError('--sync-bn needs GPUs: leave it out on the CPU, where --dist-bn averages the statistics.')
    with explained(f'--device is {args.device}, which cannot be used'):
        device = init_distributed_device(args)
    logging.getLogger().setLevel(logging.INFO if args.rank == 0 else logging.WARNING)
    logging.getLogger('matplotlib').setLevel(logging.WARNING)
    autocast, loss_scaler = contextlib.nullcontext, None
    if args.amp:
        dtype = args.amp_dtype or ('float16' if device.type == 'cuda' else 'bfloat16')
        if dtype == 'float16' and device.type == 'cpu':
            raise SettingsError('--amp-dtype float16 needs a GPU: on the CPU give bfloat16.')
        autocast = functools.partial(torch.autocast, device_type=device.type, dtype=getattr(torch, dtype))
        if dtype == 'float16':
            loss_scaler = NativeScaler(device=device.type)
    return device, autocast, loss_scaler


def create_datasets(args):
    """Training and validation data, `None` without a validation split; fixes the number of classes."""
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

    def load(split, flag, **kwargs):
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


def build_model(args):
    """The model that the settings name, wrapped for focus training if they ask for it."""
    focus_args = {f'focus_{name}': getattr(args, f'focus_{name}') for name in FOCUS_MODEL_FLAGS}
    sourced = ':' in args.model
    if not sourced and not timm.is_model(args.model):
        near = difflib.get_close_matches(args.model.split('.')[0], timm.list_models(), 1)
        hint = f' Did you mean {near[0]}?' if near else ''
        raise SettingsError(f'timm knows no model {args.model}: timm.list_models() names them.{hint}')
    kwargs = dict(
        num_classes=args.num_classes, drop_rate=args.drop, drop_path_rate=args.drop_path,
        drop_block_rate=args.drop_block, global_pool=args.gp, bn_momentum=args.bn_momentum, bn_eps=args.bn_eps,
        in_chans=args.in_chans)
    if args.initial_checkpoint and not os.path.isfile(args.initial_checkpoint):
        raise SettingsError(f'There is no checkpoint {args.initial_checkpoint} to start from.')
    overlay = dict(args.pretrained_cfg_overlay)
    if args.pretrained_path:
        overlay.update(file=args.pretrained_path, num_classes=-1)  # -1: the file's classifier is not asked for
    wrapped = args.method == 'focus' and (sourced or not args.model.startswith('focus_'))
    with explained(f'The model {args.model} cannot be made'):
        kwargs = resolve_model_input_args(args.model, vars(args), **{**kwargs, **args.model_kwargs})
        if args.method == 'focus' and not wrapped:
            kwargs.update(focus_args)
        model = create_model(
            pretrained=args.pretrained or bool(args.pretrained_path), pretrained_cfg_overlay=overlay or None,
            checkpoint_path=args.initial_checkpoint, **kwargs)
        if wrapped:
            model = timm_focus.FocusNet(model, **focus_args)
    if args.num_classes is None:
        args.num_classes = model.num_classes
    with torch.no_grad():
        for name, p in (item for c in classifiers(model) for item in c.named_parameters()):
            if args.head_init_scale is not None:
                p.mul_(args.head_init_scale)
            if args.head_init_bias is not None and name.endswith('bias'):
                p.fill_(args.head_init_bias)
    if args.grad_checkpointing:
        with explained(f'--grad-checkpointing does not go with {args.model}'):
            model.set_grad_checkpointing(enable=True)
    return model


def create_loaders(args, dataset_train, dataset_eval, data_config, device):
    """Loaders of both data sets, and what mixes batches where the training loader does not."""
    mixup_fn, collate_fn = None, None
    if mixes(args):
        mixup_args = dict(
            mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
            num_classes=args.num_classes)
        if args.batch_size % 2:
            raise SettingsError(
                f'--batch-size is {args.batch_size}: mixup and cutmix pair images, give an even number.')
        if args.prefetcher:
            collate_fn = FastCollateMixup(**mixup_args)
        else:
            mixup_fn = Mixup(**mixup_args)
    if args.aug_repeats and not args.distributed:
        raise SettingsError(
            '--aug-repeats repeats images over processes: start several with torchrun, or leave it out.')
    common = dict(
        input_size=data_config['input_size'], use_prefetcher=args.prefetcher, mean=data_config['mean'],
        std=data_config['std'], num_workers=args.workers, distributed=args.distributed, pin_memory=args.pin_mem,
        device=device)
    loader_train = create_loader(
        dataset_train, batch_size=args.batch_size, is_training=True, no_aug=args.no_aug, re_prob=args.reprob,
        re_mode=args.remode, re_count=args.recount, train_crop_mode=args.train_crop_mode, scale=args.scale,
        ratio=args.ratio, hflip=args.hflip, vflip=args.vflip, color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob, grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob, auto_augment=args.aa, num_aug_repeats=args.aug_repeats,
        interpolation=args.train_interpolation, collate_fn=collate_fn,
        # a worker that lives on would not hear that mixup is off
        persistent_workers=not (collate_fn is not None and args.mixup_off_epoch), **common)
    timms_crop = args.train_crop_mode or args.scale or args.ratio  # explicit flags win over the simple scheme
    if args.scheme == 'simple' and not args.no_aug and not timms_crop:
        use_simple_crop(dataset_train.transform, data_config['input_size'], args.train_interpolation)
    inner = loader_train.loader if args.prefetcher else loader_train
    if isinstance(inner.dataset, torch.utils.data.IterableDataset):
        _logger.warning('An iterable data set shuffles by itself: this run cannot be repeated or resumed exactly.')
    else:
        reproducible = ReproducibleLoader(inner, args.seed, args.rank)
        if args.prefetcher:
            loader_train.loader = reproducible
        else:
            loader_train = reproducible
    if not len(loader_train):
        raise SettingsError(
            f'--batch-size is {args.batch_size}, but there are only {len(dataset_train)} training images for '
            f'{args.world_size} process(es): give a smaller batch.')
    loader_eval = None
    if dataset_eval is not None:
        loader_eval = create_loader(
            dataset_eval, batch_size=args.validation_batch_size or args.batch_size, is_training=False,
            interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'],
            crop_mode=data_config['crop_mode'], **common)
    return loader_train, loader_eval, mixup_fn


def set_epoch(loader, epoch, start_batch):
    """Tell the training loader which epoch comes, and the batch in it to begin with."""
    inner = getattr(loader, 'loader', loader)
    if isinstance(inner, ReproducibleLoader):
        inner.set_epoch(epoch, start_batch)
    elif hasattr(loader.dataset, 'set_epoch'):
        loader.dataset.set_epoch(epoch)


def default_lr(args):
    """Learning rate for the global batch, of --lr-base: linear, or by the square root for adaptive optimizers."""
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    scale = args.lr_base_scale
    if not scale:
        scale = 'sqrt' if any(o in args.opt.lower() for o in ('ada', 'lamb')) else 'linear'
    return args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)


def find_last(folder):
    """The checkpoint of a run's folder that got furthest, '' if there is none."""
    candidates = [os.path.join(folder, f) for f in (os.listdir(folder) if os.path.isdir(folder) else ())
                  if f == 'last.pth.tar' or (f.startswith('recovery-') and f.endswith('.pth.tar'))]
    return max(candidates, key=os.path.getmtime, default='')


def write_whole(path, text):
    """Write a file whole or not at all."""
    with open(f'{path}.tmp', 'w') as f:
        f.write(text)
    os.replace(f'{path}.tmp', path)


def describe(args, model, dataset_train, dataset_eval, loader_train, data_config, num_epochs, output_dir):
    """Say at the start of the log what is trained, on what and how."""
    parameters = sum(p.numel() for p in model.parameters())
    detail = ''
    if isinstance(model, timm_focus.FocusNet):
        plain = sum(p.numel() for p in model.backbone.parameters())
        feature = model.feature_info[model.stage]
        detail = (f', {plain:,} of them in the backbone; CAM head on {feature["module"]} (index {model.stage}, '
                  f'{feature["num_chs"]} channels, reduction {feature["reduction"]})')
    _logger.info(f'Model: {args.model}, {args.num_classes} classes, {parameters:,} parameters{detail}')
    _logger.info(
        f'Data: {args.data_dir or args.dataset}, {len(dataset_train):,} training images, '
        f'{len(dataset_eval) if dataset_eval is not None else 0:,} validation images')
    _logger.info('Input: ' + ', '.join(f'{k} {v}' for k, v in data_config.items()))
    _logger.info(
        f'Training: {num_epochs} epochs of {len(loader_train)} batches of {args.batch_size} x {args.world_size}, '
        f'{args.opt} at {args.lr:.4g}, scheme {args.scheme}, on {args.device}; the run is kept in {output_dir}')


def conclude(args, task, output_dir, metric_name, best_metric, best_epoch, dataset_eval, classes, data_config):
    """Say what was reached and how to load it, and draw what the network looks at."""
    if best_metric is not None:
        _logger.info(f'Best {metric_name}: {best_metric:.4f} (epoch {best_epoch})')
    model = unwrap_model(task.get_trainable_module())
    drawable = dataset_eval is not None and not isinstance(dataset_eval, torch.utils.data.IterableDataset) \
        and data_config['input_size'][0] in (1, 3)
    if isinstance(model, timm_focus.FocusNet) and drawable:
        sheet = os.path.join(output_dir, 'focus.png')
        draw_sheet(model, dataset_eval, classes, data_config, args.prefetcher, sheet)
        _logger.info(f'What it looks at: {sheet}')
    plain = unwrap_model(task.get_eval_model())
    architecture = (getattr(plain, 'pretrained_cfg', None) or {}).get('architecture')
    best = os.path.join(output_dir, 'model_best.pth.tar')
    if architecture and os.path.exists(best):
        with torch.device('meta'):
            default = get_model_args(timm.create_model(architecture))
        kwargs = {k: v for k, v in get_model_args(plain).items() if k not in default or default[k] != v}
        listed = ''.join(f', {k}={v!r}' for k, v in {'num_classes': args.num_classes, **kwargs}.items())
        needs = 'import timm_focus; ' if architecture.startswith('shufflenetv2_') else ''
        _logger.info(f'Load it with timm: {needs}timm.create_model({architecture!r}{listed}, checkpoint_path={best!r})')


def draw_sheet(model, dataset, classes, data_config, prefetcher, path, n=8):
    """Draw what a focus model erases of n images, spread over the data set."""
    picks = [i * len(dataset) // n for i in range(min(n, len(dataset)))]
    device = next(model.parameters()).device
    # the transform of the validation loader is the data set's own; this one only stacks and normalises
    images, targets = next(iter(create_loader(
        torch.utils.data.Subset(dataset, picks), input_size=data_config['input_size'], batch_size=len(picks),
        mean=data_config['mean'], std=data_config['std'], num_workers=0, use_prefetcher=prefetcher, device=device)))
    names = {index: name for name, index in classes.items()}
    focus_sheet(model, images.to(device), path, data_config['mean'], data_config['std'],
                [str(names.get(t, t)) for t in targets.tolist()])


def cli():
    try:
        main()
    except SettingsError as e:
        print(f'train_focus.py: error: {e}', file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as e:  # the run diverged
        print(f'train_focus.py: error: {e}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    cli()
