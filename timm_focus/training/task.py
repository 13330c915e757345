"""What is trained and how: timm's training tasks, and the one for focus training."""
import argparse
from typing import Any, Dict, Iterator, List, Optional

import torch
from timm.loss import create_classification_loss
from timm.task import ClassificationTask, TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timm_focus.method import FocusLoss, FocusNet

from .arguments import FOCUS_LOSS_FLAGS

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
        self.trainable_module = model

    def forward(self, input: Tensor, target: Tensor) -> Dict[str, Tensor]:
        """One training pass of images `[B, C, H, W]` and targets `[B]` or `[B, K]`.

        Returns:
            The terms of `FocusLoss`, with 'loss' to go backward from; 'erased_fraction', the mean share of the pixels
            erased; and the main logits as 'output' `[B, K]`.
        """
        output = self.trainable_module(input)
        terms = self.loss(output, target)
        if output.erased is not None:
            terms['erased_fraction'] = unwrap_model(self.trainable_module).erased_fraction
        return {**terms, 'output': output.main}

    def prepare_distributed(self, device_ids: Optional[List[int]] = None, **ddp_kwargs: Any) -> 'FocusTask':
        """Wrap the model, backbone and heads together, in DistributedDataParallel."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: Optional[str] = None, **compile_kwargs: Any) -> nn.Module:
        """Compile training and evaluation before `prepare_distributed`; returns the compiled backbone."""
        backbone = unwrap_model(self.trainable_module).backbone
        self.eval_model = torch.compile(backbone, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
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
    criterion_kwargs = dict(
        loss_type='bce' if args.bce_loss else 'ce',
        smoothing=args.smoothing,
        soft_targets=mixes(args),
        **(dict(bce_target_thresh=args.bce_target_thresh, bce_sum=args.bce_sum, pos_weight=args.bce_pos_weight)
           if args.bce_loss else {}),
    )
    if args.method == 'focus':
        weights = {name: getattr(args, f'focus_{name}') for name in FOCUS_LOSS_FLAGS}
        loss = FocusLoss(**weights, criterion=create_classification_loss(**criterion_kwargs))
        return FocusTask(model, loss, device=device)
    return ClassificationTask(model, criterion_kwargs=criterion_kwargs, device=device, verbose=False)


def mixes(args: argparse.Namespace) -> bool:
    """Whether batches are mixed, so that targets are soft."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
