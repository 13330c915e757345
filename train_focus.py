#!/usr/bin/env python3
"""Train scene classifiers that look at more of the picture, or any timm model for comparison.

    python train_focus.py                                                     # drawn scenes, a few minutes on a CPU
    python train_focus.py /data/places365 --model focus_densenet121 --amp
    torchrun --nproc-per-node 4 -m train_focus /data/places365 --model focus_resnet50 --amp

A model named focus_<name> is trained by the method of "See More for Scene" (NeurIPS 2021), any other model by its
classifier alone, in the same loop. The result is a plain timm model. Flags are named as in timm's train.py.
"""
import functools
import logging
import os
import signal
import sys
from typing import Any

# make waiting threads sleep: by default torch's spin, and take cores from the processes that load images
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # read when torch is loaded

import torch
import torch.distributed as dist
import yaml
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import distribute_bn, setup_default_logging

from timm_focus.baselines import HideAndSeek
from timm_focus.data.dataset import BadImages, DataError, DataLost
from timm_focus.release import HubError, add_publication_flags, note_images, planned_publication, push_run
from timm_focus.training import (
    AUTO, FocusCheckpointSaver, Interrupted, Interruption, Journal, Progress, RunFolder, SettingsError, Start,
    TwoSteps, as_settings_error, build_model, build_parser, changed_settings, check_order, check_readable,
    check_sizes, check_smallest_batch, check_teacher_sizes, conclude, create_datasets, create_loaders,
    create_task, decide, default_lr, describe, describe_cost, describe_training, differing, draw_sheet,
    fit_images, found, keep_lists, note_data, parse_args, read_kept, resume, seed_all, set_complex,
    set_epoch, set_up_device, train_one_epoch, validate)
from timm_focus.training.saver import load as load_checkpoint, restore_buffers
from timm_focus.utils import FileError, write_whole
from timm_focus.utils.errors import refused
from timm_focus.utils.memory_format import use_channels_last
from timm_focus.utils.secrets import discreet

_logger = logging.getLogger('train')

parser = build_parser()
hub_flags = parser.add_argument_group('Hugging Face Hub')
hub_flags.add_argument('--push-to-hub', metavar='USER/NAME', help='publish the best weights there when the run is done')
add_publication_flags(hub_flags, prefix='hub-')


@discreet()
def main() -> None:
    setup_default_logging()
    args, args_text = parse_args(parser, sys.argv[1:])
    args, device, autocast, loss_scaler = set_up_device(args)
    stop_epoch = args.stop_epoch if args.stop_epoch is not None else args.epochs
    if not 0 < stop_epoch <= args.epochs:
        raise SettingsError(f'--stop-epoch is {args.stop_epoch}: give a number from 1 to --epochs, {args.epochs}.')
    if args.push_to_hub:
        with refused():
            publication = planned_publication(args)
    folder = RunFolder(args)
    resume_path, in_place = decide(args, folder.plan)

    # data, model and task
    args, dataset_train, dataset_eval = create_datasets(args)
    seed_all(args.seed, 'model')  # equal on all ranks: DDP would copy rank 0's weights anyway
    args, model = build_model(args)
    with as_settings_error('--input-size, --mean and --std do not go together, a number a channel'):
        data_config = resolve_data_config(vars(args), model=model)
    fit_images(args, data_config, dataset_train, dataset_eval)
    note_data(model, args, data_config)
    with as_settings_error('The augmentation or interpolation cannot be made'):
        loader_train, loader_eval, mixup_fn = create_loaders(args, dataset_train, dataset_eval, data_config, device)
    check_sizes(model, args, data_config['input_size'])
    check_smallest_batch(model, args, data_config['input_size'])
    model_dtype = getattr(torch, args.model_dtype or 'float32')
    model.to(device, model_dtype)
    if args.channels_last:
        why = use_channels_last(model, torch.zeros(1, *data_config['input_size'], device=device, dtype=model_dtype))
        if why:
            args = args.completed(channels_last=False)
            _logger.warning(f'{args.model} cannot be trained with channels last, so it is trained without, which may '
                            f'take longer: {why}')
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    if args.distributed and args.sync_bn:
        model = convert_sync_batchnorm(model)  # timm's: torch's would lose the activations that timm fuses into norms
    task = create_task(model, args, device=device)
    check_teacher_sizes(task, args, data_config['input_size'])
    augment = HideAndSeek() if args.has else None

    # optimizer and schedule
    if args.lr is None:
        args = args.completed(lr=default_lr(args))
    metric_name, ranked_by = 'loss', 'train_loss'
    if loader_eval is not None:
        metric_name, ranked_by = args.eval_metric, f'eval_{args.eval_metric}'
    updates_per_epoch = -(-len(loader_train) // args.grad_accum_steps)
    trainable: Any = task.get_trainable_module()
    with as_settings_error('The optimizer or schedule cannot be made'):
        optimizer = create_optimizer_v2(
            trainable, **optimizer_kwargs(args), **args.opt_kwargs,
            filter_bias_and_bn=args.no_decay_1d)
        lr_scheduler, num_epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args, decreasing_metric=metric_name == 'loss'),
            updates_per_epoch=updates_per_epoch)
    if args.stop_epoch is None:
        stop_epoch = num_epochs
    args = args.completed(last_epoch=stop_epoch)
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
            device=torch.device('cpu') if args.model_ema_force_cpu else None)

    # where to begin
    start = Progress(args.start_epoch or 0, 0, (args.start_epoch or 0) * updates_per_epoch)
    if resume_path:
        with refused():
            state = load_checkpoint(resume_path)
            kept = read_kept(resume_path, state)
            if args.start_epoch is None:
                check_order(kept, args, len(dataset_train))
            training = dict(optimizer=optimizer, loss_scaler=loss_scaler, scheduler=lr_scheduler)
            start = resume(task, resume_path, state=state, **({} if args.no_resume_opt else training))
            del state  # it is as large as the weights and the optimizer
        if args.start_epoch is not None:
            before = {name: epoch for name in ('focus_start', 'complex_start')
                      if (epoch := getattr(start, name)) is not None and epoch <= args.start_epoch}
            start = Progress(args.start_epoch, 0, args.start_epoch * updates_per_epoch, **before)
        elif not start.updates:  # another script wrote the checkpoint
            start = start._replace(updates=start.epoch * updates_per_epoch)
        _logger.info(f'Resuming {resume_path} at epoch {start.epoch}, batch {start.batch}.')
        changed = changed_settings(kept, args, len(dataset_train), yaml.safe_load(args_text))
        if changed:
            _logger.info(f'Changed since: {", ".join(changed)}')
    if lr_scheduler is not None and (start.epoch or start.batch):
        if args.sched_on_updates:
            lr_scheduler.step_update(start.updates)
        elif args.sched != 'plateau':
            lr_scheduler.step(start.epoch)
    if args.torchcompile:
        with as_settings_error(f'--torchcompile {args.torchcompile} cannot be had'):
            for compile_ in (task.compile, task.compile_ema):
                compile_(backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.distributed:
        task.prepare_distributed(
            device_ids=[device] if device.type == 'cuda' else None,
            **(dict(broadcast_buffers=False) if args.no_ddp_bb else {}))
        restore_buffers(task, start.buffers)

    train_on = functools.partial(
        train_one_epoch, task, optimizer=optimizer, args=args, device=device, autocast=autocast,
        loss_scaler=loss_scaler, lr_scheduler=lr_scheduler, augment=augment, mixup_fn=mixup_fn)
    if args.dry_run:
        if args.rank == 0:
            describe(args, model, dataset_train, dataset_eval, loader_train, data_config, num_epochs)
            describe_cost(model, data_config['input_size'])
        steps = TwoSteps(next(iter(loader_train)), device)
        train_on(steps, args=args.completed(last_epoch=1), start=Progress(0, 0, 0))
        if args.rank == 0:
            describe_training(args, model, steps, len(loader_train), stop_epoch, device)
            names = [name for name in yaml.safe_load(args_text) if name != 'given']
            shown = {name: getattr(args, name) for name in names} if args.verbose else differing(parser, args, names)
            print(yaml.safe_dump(shown), end='')
        if args.distributed:
            dist.destroy_process_group()
        return

    # what is kept
    saver, journal = None, None
    finished = bool(resume_path) and start.epoch >= stop_epoch
    if finished:
        _logger.info(f'This run is finished, its {start.epoch} epochs are trained: more --epochs go on with it, and '
                     '--initial-checkpoint begins another from its weights.')
    if in_place or not finished:
        decide(args, functools.partial(folder.begin, start, ranked_by))
        if args.rank == 0:
            saver = FocusCheckpointSaver(
                model=model, task=task, optimizer=optimizer, args=args, amp_scaler=loss_scaler,
                checkpoint_dir=folder.path, recovery_dir=folder.path, decreasing=metric_name == 'loss',
                max_history=args.checkpoint_hist)
            saver.scheduler, saver.run, saver.ranked_by = lr_scheduler, folder.run, ranked_by
            saver.images, saver.milestones = len(dataset_train), args.save_epochs or ()
            saver.take_up(folder.kept)
    if args.rank == 0 and not finished:
        eval_names = task.create_evaluator().metric_names if loader_eval is not None else ()
        journal = Journal(args, folder.path, folder.name, start.epoch, eval_names)
        write_whole(os.path.join(folder.path, 'args.yaml'), args_text)
        keep_lists(args, dataset_train, folder.path)
        note_images(folder.path, args.data_dir)
        describe(args, model, dataset_train, dataset_eval, loader_train, data_config, num_epochs)
        _logger.info(f'The run is kept in {folder.path}')

    # train
    best_metric, best_epoch = (saver.best_metric, saver.best_epoch) if saver is not None else (None, None)
    focus_start = complex_start = None
    if args.method == 'focus':  # an erased head that comes late drags the main classifier down
        focus_start = Start('focus_start', args.focus_start, start.focus_start, latest=num_epochs // 2)
    if args.scheme == AUTO:
        complex_start = Start('complex_start', AUTO, start.complex_start)
    autos = [begins for begins in (complex_start, focus_start) if begins is not None and begins.is_auto]
    with Interruption(args.distributed) as interruption, folder.advice(saver):
        for epoch in range(start.epoch, stop_epoch):
            progress = start if epoch == start.epoch else Progress(epoch, 0, epoch * updates_per_epoch)
            progress = progress._replace(**found(autos))
            set_epoch(loader_train, epoch, progress.batch)
            if complex_start is not None:
                set_complex(loader_train, complex_start.has_come(epoch))
            if focus_start is not None:
                task.set_erasing(focus_start.has_come(epoch))
                if args.focus_copy_head and (epoch, progress.batch) == (focus_start.epoch, 0):
                    task.copy_head()
            if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
                for mixer in (loader_train, mixup_fn):
                    if mixer is not None:
                        mixer.mixup_enabled = False
            train_metrics = train_on(loader_train, start=progress, saver=saver, interruption=interruption)
            if focus_start is not None and (complex_start is None or complex_start.has_come(epoch)):
                focus_start.look(epoch, train_metrics)
            if complex_start is not None:
                complex_start.look(epoch, train_metrics)
            if args.distributed and args.dist_bn:
                distribute_bn(task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
                if task.has_ema() and not args.model_ema_force_cpu:
                    distribute_bn(task.get_trainable_module(ema=True), args.world_size, args.dist_bn == 'reduce')

            milestone = args.save_epochs is not None and epoch + 1 in args.save_epochs
            validates = (epoch + 1) % args.val_interval == 0 or milestone or epoch + 1 == stop_epoch
            eval_metrics = None
            try:
                interruption.check()
                if loader_eval is not None and validates:
                    validate_on = functools.partial(
                        validate, loader=loader_eval, task=task, args=args, device=device, autocast=autocast,
                        interruption=interruption)
                    eval_metrics = validate_on(task.get_eval_model())
                    if task.has_ema() and not args.model_ema_force_cpu:
                        eval_metrics = validate_on(task.get_eval_model(ema=True), name='Validate (EMA)')
            except (Interrupted, DataError):
                if saver is not None:  # the epoch is trained, but not validated
                    saver.save_recovery(epoch, batch_idx=len(loader_train) - 1)
                raise
            if args.focus_save_images and eval_metrics and args.rank == 0:
                path = os.path.join(folder.path, f'focus-{epoch}.png')
                draw_sheet(args, task, dataset_eval, data_config, path)

            metric = eval_metrics[metric_name] if eval_metrics else train_metrics['loss'] if not loader_eval else None
            lr = sum(group['lr'] for group in optimizer.param_groups) / len(optimizer.param_groups)
            if lr_scheduler is not None:
                lr_scheduler.step(epoch + 1, metric)
            if saver is not None:
                journal.write(epoch, train_metrics, eval_metrics, lr, **found(autos))
                buffers = None if args.dist_bn else saver.progress.buffers  # --dist-bn makes them equal everywhere
                saver.progress = Progress(epoch + 1, 0, (epoch + 1) * updates_per_epoch, None, buffers, **found(autos))
                best_metric, best_epoch = saver.save_checkpoint(epoch, metric=metric)
                folder.note(saver.images)
            if args.distributed:
                check_readable((dataset_train, dataset_eval), device)

    if journal is not None:
        journal.close()
    if saver is not None:
        drawn = None if finished else dataset_eval
        conclude(args, task, folder.path, metric_name, best_metric, best_epoch, drawn, data_config, autos)
    folder.release()
    if args.distributed:
        dist.destroy_process_group()
    if args.push_to_hub and saver is not None:
        push_run(folder.path, publication)


def cli() -> None:
    try:
        main()
    except SettingsError as e:
        parser.error(str(e))
    except BadImages as e:
        parser.error(str(e))
    except (DataLost, FileError, FloatingPointError, HubError) as e:  # not mistakes of the user
        parser.exit(1, f'{parser.prog}: error: {e}\n')
    except Interrupted as e:
        _logger.info(f'Ended by {e}, with a recovery checkpoint: --resume auto, or its path, goes on with it.')
        if dist.is_initialized():
            dist.destroy_process_group()
        sys.exit(128 + e.signal)  # the code that shells expect
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # people press it more than once
        parser.exit(128 + signal.SIGINT, f'{parser.prog}: ended by Ctrl-C at once: --resume auto, or its path, goes on '
                    'with the last checkpoint of the run, if there is one.\n')


if __name__ == '__main__':
    cli()
