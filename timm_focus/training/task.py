"""Training tasks: timm's, and those of methods with heads of their own."""
import argparse
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type

import torch
from timm.loss import create_classification_loss
from timm.task import (
    ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask, TrainingTask)
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timm_focus.baselines import ACoL, MaskSub, MaskSubLoss, insert_adl
from timm_focus.method import HEADS, FocusLoss, FocusNet
from timm_focus.method.focus_net import FocusOutput
from timm_focus.method.heads import classifiers, copy_classifier
from timm_focus.utils.errors import SettingsError, as_settings_error

from .arguments import FOCUS_LOSS_FLAGS
from .criterion import criterion_kwargs

__all__ = ['AcolTask', 'FocusTask', 'create_task']


class TaskWithHeads(TrainingTask):
    """Trains one model that consists of a network, and of heads that exist only in training.

    The network is what is evaluated, and what checkpoints have under 'state_dict'. The heads are the task's own state.

    Attributes:
        trainable_module: The model, bare, compiled, or in DistributedDataParallel.
        loss: The loss, bare or compiled.
        model_type: Type of the model.
        network_name: Name of the attribute of the model that is the network.
        head_names: Names of the attributes of the model that are heads.
        run_name: Words for a run of this task, for messages.
    """

    trainable_module: Any
    loss: Any
    model_type: Type[nn.Module]
    network_name: str
    head_names: Tuple[str, ...]
    run_name: str

    def prepare_distributed(self, device_ids: Optional[List[int]] = None, **ddp_kwargs: Any) -> 'TaskWithHeads':
        """Wrap the model, network and heads together, in DistributedDataParallel."""
        self._ddp_kwargs = dict(ddp_kwargs, device_ids=device_ids)
        self.trainable_module = DistributedDataParallel(self.trainable_module, **self._ddp_kwargs)
        return self

    def compile(  # type: ignore[override]  # timm's, which returns a model, is another function than torch's
            self,
            backend: str = 'inductor',
            mode: Optional[str] = None,
            **compile_kwargs: Any,
    ) -> nn.Module:
        """Compile training, loss and evaluation, before `prepare_distributed`; return the compiled network."""
        network = getattr(unwrap_model(self.trainable_module), self.network_name)
        compiled: Any = torch.compile(network, backend=backend, mode=mode, **compile_kwargs)
        self.eval_model = compiled
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.loss = torch.compile(self.loss, backend=backend, mode=mode, **compile_kwargs)
        return compiled

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        """Return the network of the model, or of its running average, which is evaluated, saved and published."""
        model = super().get_eval_model(module=module, ema=ema)
        inner = unwrap_model(model) if model is not None else None
        return getattr(inner, self.network_name) if isinstance(inner, self.model_type) else model

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> Dict[str, Dict[str, Tensor]]:
        """Return the state of the heads, which the network's state dict does not have."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return {}
        model = unwrap_model(module)
        return {head: getattr(model, head).state_dict() for head in self.head_names}

    def load_task_state(
            self,
            state: Optional[Dict[str, Dict[str, Tensor]]],
            strict: bool = True,
            module: Optional[nn.Module] = None,
            ema: bool = False,
    ) -> None:
        """Load what `get_task_state` returned.

        Raises:
            RuntimeError: A head is missing, as in a plain model's checkpoint, and `strict` is True.
            ValueError: The state is no dict.
        """
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            raise RuntimeError('There is no running average to load task state into: call setup_ema() first.')
        state = {} if state is None else state
        if not isinstance(state, dict):
            raise ValueError(f'its heads are a {type(state).__name__}, not tensors by name')
        for head in self.head_names:
            if head in state:
                getattr(unwrap_model(module), head).load_state_dict(state[head], strict=strict)
            elif strict:
                raise RuntimeError(
                    f'The checkpoint has no {head}, so it is not of {self.run_name}: start from it by '
                    '--initial-checkpoint, which gives it new heads.')

    def get_clip_parameters(self, exclude_head: bool = False) -> Iterator[nn.Parameter]:
        """Return the parameters whose gradients are clipped; `exclude_head` leaves out classifiers and heads."""
        model = unwrap_model(self.trainable_module)
        spared = set()
        if exclude_head:
            heads = (getattr(model, head) for head in self.head_names)
            spared = {id(p) for c in (*classifiers(model), *heads) for p in c.parameters()}
        return (p for p in model.parameters() if id(p) not in spared)


class FocusTask(TaskWithHeads):
    """Focus training as a training task of timm.

    The backbone, a plain timm model, is evaluated, and saved under 'state_dict'. The heads are the task's own state.
    The model runs only the branches that the loss uses.

    Args:
        model: The model to train.
        loss: The loss; by default Eq. 3 with the paper's weights.
        device: Device of the task's tensors.
        dtype: Type of the task's tensors.
        verbose: Log what is trained.
        every: Erase images in every Nth step of an epoch.
    """

    model_type: Type[nn.Module] = FocusNet
    head_names: Tuple[str, ...] = HEADS
    network_name, run_name = 'backbone', 'a focus run'

    def __init__(
            self,
            model: FocusNet,
            loss: Optional[FocusLoss] = None,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
            every: int = 1,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.every = every
        self.loss = (loss if loss is not None else FocusLoss()).to(self.device)
        model.set_branches(self.loss.uses_side, self.loss.uses_erased, self.loss.scorer)
        self.erasing = self.loss.uses_erased
        self.trainable_module = model

    def forward(
            self,
            input: Tensor,
            target: Tensor,
            backward: Optional[Callable[[Tensor], None]] = None,
    ) -> Dict[str, Tensor]:
        """Run the forward pass of a training step.

        With `focus_recompute`, and a loss whose terms on the erased image train nothing through the first pass, a step
        has two backward passes, one after the other. This runs the first, so that its activations are freed before the
        second pass begins. The gradients are those of a single backward pass, up to rounding.

        Args:
            input: Images `[B, C, H, W]`.
            target: Targets `[B]` or `[B, K]`.
            backward: Function that runs the backward pass of a part of the loss, scaled as in the step. Without it
                there is one backward pass, which the caller runs.

        Returns:
            The terms of `FocusLoss`, with 'loss'. 'to_go' is the part of the loss whose backward pass the caller has to
            run, if it is not all of it. 'erased_fraction' is the mean share of pixels erased. 'output' are the main
            logits `[B, K]`.
        """
        model = unwrap_model(self.trainable_module)
        erases = self.erasing and model.erases_now
        if erases and model.recompute and self.loss.separable and backward is not None:
            main, terms = self._in_turn(input, target, backward)
        else:
            output = self.trainable_module(input)
            main, terms = output.main, self.loss(output, target, erases)
        if self.loss.uses_erased:
            terms['erased_fraction'] = model.erased_fraction if erases else torch.zeros_like(terms['main_loss'])
        return {**terms, 'output': main}

    def _in_turn(
            self,
            input: Tensor,
            target: Tensor,
            backward: Callable[[Tensor], None],
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Run both passes, and the first backward pass; return main logits and terms, with 'to_go' of the second."""
        with self.no_sync():  # processes exchange the gradients of both passes once
            main, side, keep = self.trainable_module(input, in_turn=True)
            terms = self.loss(FocusOutput(main, side, None), target, False)
            backward(terms['loss'])
        main, terms = main.detach(), {name: term.detach() for name, term in terms.items()}
        erased_loss, consistency_loss = self.loss.on_erased(main, self.trainable_module(input, keep), target)
        to_go = self.loss.weighted(erased_loss, consistency_loss)
        terms.update(loss=terms['loss'] + to_go.detach(), erased_loss=erased_loss, consistency_loss=consistency_loss,
                     to_go=to_go)
        return main, terms

    def training_step(
            self,
            input: Tensor,
            target: Tensor,
            batch: int,
            backward: Callable[[Tensor], None],
    ) -> Dict[str, Tensor]:
        """Run `forward` on a batch, given its number in the epoch. In every Nth batch images are erased."""
        unwrap_model(self.trainable_module).erase_in_this_step(batch % self.every == 0)
        return self(input, target, backward)

    def copy_head(self) -> None:
        """Make the erased head begin as a copy of the main classifier.

        Raises:
            ValueError: The main classifier is no linear layer.
        """
        model = unwrap_model(self.trainable_module)
        copy_classifier(model.backbone, model.erased_head)

    def get_clip_parameters(self, exclude_head: bool = False) -> Iterator[nn.Parameter]:
        """Return the parameters whose gradients are clipped: without the heads until images are erased."""
        heads = {id(p) for h in self.head_names for p in getattr(unwrap_model(self.trainable_module), h).parameters()}
        clipped = super().get_clip_parameters(exclude_head)
        return (p for p in clipped if not (self.waits and id(p) in heads))

    @property
    def waits(self) -> bool:
        """Whether images will be erased only later. Until then a step is one of plain training."""
        return self.loss.uses_erased and not self.erasing

    def set_erasing(self, enable: bool = True) -> None:
        """Choose whether images are erased, if the loss uses erased images.

        If they are not, the backbone takes the step of plain training, and the CAM head learns beside it.
        """
        enable = bool(enable and self.loss.uses_erased)
        if enable == self.erasing:
            return
        self.erasing = enable
        loss = self.loss
        unwrap_model(self.trainable_module).set_branches(loss.uses_side, enable, loss.scorer, apart=self.waits)
        if isinstance(self.trainable_module, DistributedDataParallel):
            # it waits for those gradients that were required when it was made, and now others are required
            self.trainable_module = DistributedDataParallel(self.trainable_module.module, **self._ddp_kwargs)


class MaskSubTask(FocusTask):
    """MaskSub as a training task of timm: focus training without heads, with `MaskSubLoss` and two passes in turn."""

    model_type, head_names, run_name = MaskSub, (), 'a MaskSub run'


class AcolTask(TaskWithHeads):
    """ACoL as a training task of timm. Features and head A are evaluated and saved; head B is the task's own state.

    Args:
        model: The model to train.
        loss: The classification loss of each head; cross-entropy by default.
        device: Device of the task's tensors.
        dtype: Type of the task's tensors.
        verbose: Log what is trained.
    """

    model_type, head_names = ACoL, ('head_b',)
    network_name, run_name = 'network', 'an ACoL run'

    def __init__(
            self,
            model: ACoL,
            loss: Optional[nn.Module] = None,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.loss = (loss if loss is not None else nn.CrossEntropyLoss()).to(self.device)
        self.trainable_module = model

    def forward(self, input: Tensor, target: Tensor) -> Dict[str, Tensor]:
        """Run the forward pass of a training step on images `[B, C, H, W]` and classes `[B]`.

        Returns:
            'a_loss' and 'b_loss' of the heads, and 'loss', their sum; 'erased_fraction', the mean share of the feature
            map that is erased; and the logits of head A as 'output' `[B, K]`.
        """
        a, b, erased_fraction = self.trainable_module(input, target)
        a_loss, b_loss = self.loss(a, target), self.loss(b, target)
        return {'loss': a_loss + b_loss, 'a_loss': a_loss, 'b_loss': b_loss, 'erased_fraction': erased_fraction,
                'output': a}


def create_task(
        model: Any,
        args: argparse.Namespace,
        device: Optional[torch.device] = None,
) -> TrainingTask:
    """Make the training task that the settings ask for.

    Args:
        model: A `FocusNet` for `args.method` 'focus', a `MaskSub` for 'masksub', an `ACoL` for 'acol', any timm model
            for 'none', and a convolutional one for 'adl', which this inserts into it.
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
        task = FocusTask(model, loss, device=device, every=args.focus_every)
        if args.focus_copy_head:
            with as_settings_error('--focus-copy-head cannot be had'):
                task.copy_head()
        return task
    if args.method == 'masksub':
        return MaskSubTask(model, MaskSubLoss(create_classification_loss(**kwargs)), device=device)
    if args.method == 'acol':
        return AcolTask(model, create_classification_loss(**kwargs), device=device)
    if args.method == 'adl':
        with as_settings_error(f'{args.model} cannot be trained by ADL'):
            insert_adl(model, args.adl_modules, args.adl_gamma, args.adl_drop_rate)
    common: Dict[str, Any] = dict(criterion_kwargs=kwargs, device=device, verbose=False)
    if args.kd_model_name:
        with as_settings_error(f'{args.model} cannot learn from --kd-model-name {args.kd_model_name}'):
            return create_distillation_task(model, args, **common)
    return ClassificationTask(model, **common)


def create_distillation_task(model: nn.Module, args: argparse.Namespace, **common: Any) -> TrainingTask:
    """Make timm's task for a plain model that also learns from another model."""
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
