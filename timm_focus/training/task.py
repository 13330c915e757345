"""What is trained and how: timm's training tasks, and the one for focus training."""
import argparse
from typing import Any, Dict, Iterator, List, Optional

import torch
from timm.loss import create_classification_loss
from timm.task import (
    ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask, TrainingTask)
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timm_focus.method import FocusLoss, FocusNet

from .arguments import FOCUS_LOSS_FLAGS
from .criterion import criterion_kwargs
from .errors import SettingsError, explained

__all__ = ['FocusTask', 'create_task']

HEADS = ('cam_head', 'erased_head')


class FocusTask(TrainingTask):
    """Focus training as a task of timm's: the model, its loss, and what of it is evaluated and saved.

    The backbone, a plain timm model, is what is evaluated and checkpointed under 'state_dict'; the heads are the task's
    own state. The model runs only the branches that the loss uses.

    Args:
        model: The model to train.
        loss: Its loss; Eq. 3 with the paper's weights by default.
        device: Device of the task's tensors.
        dtype: Type of the task's tensors.
        verbose: Log what is trained.
    """

    def __init__(
            self,
            model: FocusNet,
            loss: Optional[FocusLoss] = None,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.loss = (loss if loss is not None else FocusLoss()).to(self.device)
        model.set_branches(self.loss.uses_side, self.loss.uses_erased, self.loss.erased_by)
        self.erasing = self.loss.uses_erased
        self.trainable_module = model

    def forward(self, input: Tensor, target: Tensor) -> Dict[str, Tensor]:
        """One training pass of images `[B, C, H, W]` and targets `[B]` or `[B, K]`.

        Returns:
            The terms of `FocusLoss`, with 'loss' to go backward from; 'erased_fraction', the mean share of the pixels
            erased; and the main logits as 'output' `[B, K]`.
        """
        output = self.trainable_module(input)
        terms = self.loss(output, target, self.erasing)
        if self.erasing:
            terms['erased_fraction'] = unwrap_model(self.trainable_module).erased_fraction
        elif self.loss.uses_erased:
            terms['erased_fraction'] = torch.zeros_like(terms['loss'])
        return {**terms, 'output': output.main}

    def set_erasing(self, enable: bool = True) -> None:
        """Choose whether images are erased, if the loss uses that; without, a step is one pass."""
        enable = bool(enable and self.loss.uses_erased)
        if enable == self.erasing:
            return
        self.erasing = enable
        loss = self.loss
        unwrap_model(self.trainable_module).set_branches(loss.uses_side, enable, loss.erased_by)
        if isinstance(self.trainable_module, DistributedDataParallel):
            # it waits for the gradients that were asked for when it was made, and these are others now
            self.trainable_module = DistributedDataParallel(self.trainable_module.module, **self._ddp_kwargs)

    def prepare_distributed(self, device_ids: Optional[List[int]] = None, **ddp_kwargs: Any) -> 'FocusTask':
        """Wrap the model, backbone and heads together, in DistributedDataParallel."""
        self._ddp_kwargs = dict(ddp_kwargs, device_ids=device_ids)
        self.trainable_module = DistributedDataParallel(self.trainable_module, **self._ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: Optional[str] = None, **compile_kwargs: Any) -> nn.Module:
        """Compile both passes, the loss and evaluation before `prepare_distributed`; returns the compiled backbone."""
        backbone = unwrap_model(self.trainable_module).backbone
        self.eval_model = torch.compile(backbone, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.loss = torch.compile(self.loss, backend=backend, mode=mode, **compile_kwargs)
        return self.eval_model

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        """The backbone of the model, or of its running average: what is evaluated, saved and shipped."""
        model = super().get_eval_model(module=module, ema=ema)
        inner = unwrap_model(model) if model is not None else None
        return inner.backbone if isinstance(inner, FocusNet) else model

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> Dict[str, Dict[str, Tensor]]:
        """State of the two heads, which the backbone's state dict leaves out."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return {}
        model = unwrap_model(module)
        return {head: getattr(model, head).state_dict() for head in HEADS}

    def load_task_state(
            self,
            state: Optional[Dict[str, Dict[str, Tensor]]],
            strict: bool = True,
            module: Optional[nn.Module] = None,
            ema: bool = False,
    ) -> None:
        """Load what `get_task_state` gave.

        Raises:
            RuntimeError: A head is missing, as in a plain model's checkpoint, and `strict` is True.
        """
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            raise RuntimeError('There is no running average to load task state into: call setup_ema() first.')
        for head in HEADS:
            if head in (state or {}):
                getattr(unwrap_model(module), head).load_state_dict(state[head], strict=strict)
            elif strict:
                raise RuntimeError(
                    f'The checkpoint has no {head}, so it is not of a focus run: start from it by '
                    '--initial-checkpoint, which gives it new heads.')

    def get_clip_parameters(self, exclude_head: bool = False) -> Iterator[nn.Parameter]:
        """Parameters whose gradients are clipped; adaptive clipping spares the three classifiers with their heads."""
        model = unwrap_model(self.trainable_module)
        spared = set()
        if exclude_head:
            spared = {id(p) for c in (*classifiers(model), model.cam_head, model.erased_head) for p in c.parameters()}
        return (p for p in model.parameters() if id(p) not in spared)


def classifiers(model: nn.Module) -> List[nn.Module]:
    """The classifying layers of a timm model: one, two of distilled ones, none if it does not tell."""
    own = model.get_classifier() if hasattr(model, 'get_classifier') else ()
    return list(own) if isinstance(own, (tuple, list, nn.ModuleList)) else [own]


def create_task(
        model: nn.Module,
        args: argparse.Namespace,
        device: Optional[torch.device] = None,
) -> TrainingTask:
    """The training task that the settings ask for: the only branch on the method.

    Args:
        model: `FocusNet` for `args.method` 'focus', any timm model for 'none'.
        args: Settings of train_focus.py.
        device: Device of the task's tensors.
    """
    kwargs = criterion_kwargs(args)
    for kind in ('class_weight', 'pos_weight'):
        if isinstance(kwargs[kind], Tensor) and len(kwargs[kind]) != args.num_classes:
            raise SettingsError(f'--loss-{kind.replace("_", "-")} has {len(kwargs[kind])} entries but the model has '
                                f'{args.num_classes} classes: give one for each class.')
    if args.method == 'focus':
        weights = {name: getattr(args, f'focus_{name}') for name in FOCUS_LOSS_FLAGS}
        loss = FocusLoss(**weights, criterion=create_classification_loss(**kwargs))
        return FocusTask(model, loss, device=device)
    common = dict(criterion_kwargs=kwargs, device=device, verbose=False)
    if args.kd_model_name:
        with explained(f'{args.model} cannot learn from --kd-model-name {args.kd_model_name}'):
            return create_distillation_task(model, args, **common)
    return ClassificationTask(model, **common)


def create_distillation_task(model: nn.Module, args: argparse.Namespace, **common: Any) -> TrainingTask:
    """timm's task for a plain model that learns from another one, too."""
    common.update(
        teacher_model=args.kd_model_name, distill_loss_weight=args.distill_loss_weight,
        task_loss_weight=args.task_loss_weight, dtype=getattr(torch, args.model_dtype or 'float32'))
    if args.kd_distill_type == 'logit':
        return LogitDistillationTask(
            model, loss_type=args.kd_loss_type, temperature=args.kd_temperature, **common)
    if args.kd_distill_type == 'feature':
        return FeatureDistillationTask(
            model, student_feature_dim=args.kd_student_feature_dim, teacher_feature_dim=args.kd_teacher_feature_dim,
            **common)
    return TokenDistillationTask(
        model, distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **common)
