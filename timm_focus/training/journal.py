"""Reports on a run: the start and the end of its log, its numbers and its pictures."""
import argparse
import logging
import os
import shlex
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

import timm
import torch
from timm.data import create_loader
from timm.models import get_model_args
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.utils.data import IterableDataset, Subset

from timm_focus.analysis import focus_sheet, multiply_adds
from timm_focus.baselines import ACoL, AcolNet, MaskSub, adl_modules, trace_maps
from timm_focus.method import FocusNet
from timm_focus.utils.errors import as_settings_error
from timm_focus.utils.modes import evaluating
from timm_focus.utils.warned import warned

from .batches import advice_on_batches
from .checks import METHOD_FLAGS
from .data import Images
from .starts import AUTO, LATEST, RULE, Start
from .summary import Summary

__all__ = ['Journal', 'conclude', 'describe', 'describe_cost', 'draw_sheet']

_logger = logging.getLogger('train')


class Journal:
    """Writes the numbers of each epoch into `summary.csv` and to the dashboards that the settings ask for.

    Args:
        args: Settings of the run.
        folder: Folder of the run.
        name: Name of the run.
        start_epoch: Epoch that the run goes on with. Rows of this epoch and of later ones are dropped.
        eval_names: Names of the metrics of validation. In epochs without validation their columns are empty.

    Raises:
        SettingsError: A dashboard is not installed, or cannot be reached.
    """

    def __init__(
            self,
            args: argparse.Namespace,
            folder: str,
            name: str,
            start_epoch: int,
            eval_names: Sequence[str],
    ):
        self.eval_names = eval_names
        self.tensorboard, self.wandb = None, None
        self.summary = Summary(os.path.join(folder, 'summary.csv'), start_epoch)
        if args.tensorboard:
            with as_settings_error("--tensorboard cannot be had, pip install 'timm_focus[tensorboard]' installs it"):
                from torch.utils.tensorboard import SummaryWriter
                self.tensorboard = SummaryWriter(folder, purge_step=start_epoch)
        if args.log_wandb:
            with as_settings_error("--log-wandb cannot be had, pip install 'timm_focus[wandb]' installs it"):
                import wandb
                resumed = dict(resume='must', id=args.wandb_resume_id) if args.wandb_resume_id else {}
                self.wandb = wandb.init(
                    project=args.wandb_project, name=name, config=vars(args), tags=args.wandb_tags, dir=folder,
                    **resumed)

    def write(
            self,
            epoch: int,
            train_metrics: Dict[str, float],
            eval_metrics: Optional[Dict[str, float]],
            lr: float,
            **more: Any,
    ) -> None:
        """Write the numbers of an epoch; `more` goes only into summary.csv."""
        columns: Mapping[str, Any] = eval_metrics or dict.fromkeys(self.eval_names, '')
        self.summary.add(dict(
            epoch=epoch, **{f'train_{k}': v for k, v in train_metrics.items()},
            **{f'eval_{k}': v for k, v in columns.items()}, lr=lr, **more))
        scalars = {f'train/{k}': v for k, v in train_metrics.items()}
        scalars.update({f'eval/{k}': v for k, v in (eval_metrics or {}).items()}, lr=lr)
        if self.tensorboard is not None:
            with warned(f'TensorBoard has nothing of epoch {epoch}', _logger):
                try:
                    for name, value in scalars.items():
                        self.tensorboard.add_scalar(name, value, epoch)
                    self.tensorboard.flush()
                except OSError as e:  # the numbers are safe in summary.csv
                    _logger.warning(f'TensorBoard has no more of this run, whose log there cannot be written: {e}')
                    self.tensorboard = None
        if self.wandb is not None:
            with warned(f'Weights & Biases has nothing of epoch {epoch}', _logger):  # keys as timm names them
                self.wandb.log({'epoch': epoch, **{k.replace('/', '_'): v for k, v in scalars.items()}})

    def close(self) -> None:
        if self.tensorboard is not None:
            with warned('TensorBoard is not closed', _logger):
                self.tensorboard.close()
        if self.wandb is not None:
            with warned('Weights & Biases is not closed', _logger):
                self.wandb.finish()


def _headline(args: argparse.Namespace) -> str:
    """Say which model is trained by which method, and whether it is the default."""
    rivals = {method: called for method, (called, _) in METHOD_FLAGS.items()}
    how = {'focus': 'focus training', 'none': 'its classifier alone', **rivals}
    text = f'Training {args.model} by {how[args.method]}'
    if 'model' in args.given:
        return text
    plain = args.model.removeprefix('focus_')
    return f'{text}, as no --model is given' + (
        f' (--model {plain} trains it by its classifier alone)' if plain != args.model else '')


def describe(
        args: argparse.Namespace,
        model: Any,
        dataset_train: Images,
        dataset_eval: Optional[Images],
        loader_train: Any,
        data_config: Dict[str, Any],
        num_epochs: int,
) -> None:
    """Log what is trained, on which data and how."""
    _logger.info(_headline(args))
    if args.method == 'focus' and args.focus_start == AUTO:
        _logger.info(f'Images are erased from {RULE}, if {LATEST} then; until then, and otherwise, plain training.')
    if args.scheme == AUTO:
        _logger.info(f'Images are cropped by the simple scheme, and by the complex one from {RULE}.')
    parameters = sum(p.numel() for p in (model.backbone if isinstance(model, MaskSub) else model).parameters())
    detail = ''
    if args.method == 'focus':
        plain = sum(p.numel() for p in model.backbone.parameters())
        feature = model.feature_info[model.stage]
        detail = (f', {plain:,} of them in the backbone; CAM head on {feature["module"]} (index {model.stage}, '
                  f'{feature["num_chs"]} channels, reduction {feature["reduction"]})')
    if isinstance(model, ACoL):
        kept = sum(p.numel() for p in model.network.parameters())
        detail = f', {kept:,} of them in the features and head A, which are kept'
    if adl_modules(model):
        detail = f', with ADL after {", ".join(adl_modules(model))}'
    if args.method in ('adl', 'acol'):
        backbone = model.network.backbone if isinstance(model, ACoL) else model
        final, _, _ = trace_maps(backbone, data_config['input_size'])
        if final.shape[2] * final.shape[3] == 1:
            _logger.warning(
                f'The last feature map of an image of {"x".join(map(str, data_config["input_size"][1:]))} has one '
                f'place, of which --method {args.method} can erase no part: give larger images.')
    _logger.info(f'Model: {args.model}, {args.num_classes} classes, {parameters:,} parameters{detail}')
    _logger.info(
        f'Data: {len(dataset_train):,} training images, '
        f'{len(dataset_eval) if dataset_eval is not None else 0:,} validation images, {args.num_classes} classes')
    for split, dataset in (('Training', dataset_train), ('Validation', dataset_eval)):
        if dataset is not None:
            by_timm = f'{args.dataset or args.data_dir}, read by timm'
            _logger.info(f'{split} images: {getattr(dataset, "found", by_timm)}')
    _logger.info('Input: ' + ', '.join(f'{k} {v}' for k, v in data_config.items()))
    if args.train_img_sizes:
        batches = args.train_batch_sizes or [args.batch_size] * len(args.train_img_sizes)
        _logger.info(f'Resolution: {args.train_size_schedule} schedule of ' + ', '.join(
            f'{n} x {size} px' for n, size in zip(batches, args.train_img_sizes)))
    processes = f' on each of {args.world_size} processes' if args.world_size > 1 else ''
    _logger.info(
        f'Training: {num_epochs} epochs of {len(loader_train)} batches of {args.batch_size} images{processes}, '
        f'{args.opt} at {args.lr:.4g}, scheme {args.scheme}, on {args.device}')
    if not (isinstance(dataset_train, IterableDataset) or args.train_img_sizes or args.aug_repeats):
        advice = advice_on_batches(
            len(dataset_train), len(loader_train), args.batch_size * args.world_size, num_epochs, args.grad_accum_steps)
        if advice:
            _logger.warning(advice)


def describe_cost(model: nn.Module, input_size: Sequence[int]) -> None:
    """Log what a model costs at inference, and the size of the feature that a CAM head taps."""
    plain = model.backbone if isinstance(model, FocusNet) else model
    with warned('The multiply-adds cannot be counted', _logger):
        _logger.info(f'Cost at inference: {multiply_adds(plain, input_size):,} multiply-adds an image')
    if isinstance(model, FocusNet) and not isinstance(model, MaskSub):
        tap = tap_size(model, input_size)
        feature = model.feature_info[model.stage]['module']
        _logger.info(f'Tapped feature: {feature}, {tap[0]} channels of {tap[1]} x {tap[2]}')


@torch.inference_mode()
def tap_size(model: FocusNet, input_size: Sequence[int]) -> List[int]:
    """Return channels, height and width of the feature that the CAM head taps."""
    parameter = next(model.parameters())
    x = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    with evaluating(model):
        features = model.backbone.forward_intermediates(
            x, indices=[model.stage], norm=False, stop_early=False, output_fmt='NCHW', intermediates_only=True)
    return list(features[0].shape[1:])


def conclude(
        args: argparse.Namespace,
        task: TrainingTask,
        output_dir: str,
        metric_name: str,
        best_metric: Optional[float],
        best_epoch: Optional[int],
        dataset_eval: Optional[Images],
        data_config: Dict[str, Any],
        autos: Iterable[Start] = (),
) -> None:
    """Log the best result and how to load it, and draw what the network looks at."""
    if best_metric is not None:
        _logger.info(f'Best {metric_name}: {best_metric:.4f} (epoch {best_epoch})')
    for start in autos:
        _logger.info(start.conclusion(args.last_epoch))
    draw_sheet(args, task, dataset_eval, data_config, os.path.join(output_dir, 'focus.png'))
    best = os.path.join(output_dir, 'model_best.pth.tar')
    if not os.path.exists(best):
        return
    _logger.info(f'Compare it with another run: timm-focus report {shlex.quote(output_dir)} OTHER_RUN')
    with warned('How to load it cannot be told', _logger):
        told = _how_to_load(args, unwrap_model(task.get_eval_model()), best)
        if told:
            _logger.info(told)


def _how_to_load(args: argparse.Namespace, network: Any, best: str) -> str:
    """Return code that loads the best weights of a run, '' if its architecture is not recorded."""
    plain = network.backbone if isinstance(network, AcolNet) else network
    architecture = (getattr(plain, 'pretrained_cfg', None) or {}).get('architecture')
    if not architecture:
        return ''
    with torch.device('meta'):
        default = get_model_args(timm.create_model(architecture))
    kwargs = {k: v for k, v in get_model_args(plain).items() if k not in default or default[k] != v}
    if plain is not network:
        given = {**kwargs, 'num_classes': args.num_classes, 'checkpoint_path': best}
        listed = ''.join(f', {k}={v!r}' for k, v in given.items())
        return ('ACoL classifies by a head of its own, so what is kept is no plain timm model. Load it: '
                f'from timm_focus.baselines import create_acol; create_acol({architecture!r}{listed})')
    listed = ''.join(f', {k}={v!r}' for k, v in {'num_classes': args.num_classes, **kwargs}.items())
    needs = 'import timm_focus; ' if architecture.startswith('shufflenetv2_') else ''
    line = f'timm.create_model({architecture!r}{listed}, checkpoint_path={best!r})'
    unlike = ', strict=False' if args.split_bn else ''  # it also has the statistics of the other splits
    if args.model_ema and args.model_ema_force_cpu:  # the running average was not validated
        unlike += ', use_ema=False'
    if unlike:
        line = (f'model = timm.create_model({architecture!r}{listed}); '
                f'timm.models.load_checkpoint(model, {best!r}{unlike})')
    return f'Load it with timm: {needs}{line}'


def draw_sheet(
        args: argparse.Namespace,
        task: TrainingTask,
        dataset: Optional[Images],
        data_config: Dict[str, Any],
        path: str,
) -> None:
    """Draw what a focus model erases of some images, spread over the data set. A failure only gives a warning."""
    model, n = unwrap_model(task.get_trainable_module()), args.sheet_images
    if not n or args.method != 'focus' or dataset is None or isinstance(dataset, IterableDataset) \
            or data_config['input_size'][0] not in (1, 3):
        return
    with warned(f'{path} cannot be drawn', _logger):
        picks = [i * len(dataset) // n for i in range(min(n, len(dataset)))]
        parameter = next(model.parameters())
        picked: Any = Subset(dataset, picks)
        # the transform of the validation loader is the data set's own; this one only stacks and normalises
        images, targets = next(iter(create_loader(
            picked, input_size=data_config['input_size'], batch_size=len(picks),
            mean=data_config['mean'], std=data_config['std'], num_workers=0, use_prefetcher=args.prefetcher,
            device=parameter.device)))
        named = dict(enumerate(args.label_names))
        names = [str(named.get(k, k)) for k in range(model.num_classes)]
        focus_sheet(
            model, images.to(parameter), path, data_config['mean'], data_config['std'],
            [names[t] for t in targets.tolist()], names)
        _logger.info(f'What it looks at: {path}')
