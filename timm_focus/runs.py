"""A run on disk: its files, its settings, which of its weights count, its heads, its class names, its model."""
import argparse
import difflib
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.models import clean_state_dict

from timm_focus.baselines import create_acol
from timm_focus.data.images import image_mode as mode_of
from timm_focus.data.transforms import fit_channels
from timm_focus.method import HEADS, FocusNet
from timm_focus.models import FOCUS_ARGS
from timm_focus.utils.weight_files import read_weight_file

__all__ = ['Loaded', 'check_plain', 'class_names', 'image_mode', 'load_model']

RUN_FILES = ('model_best.pth.tar', 'last.pth.tar')
TORCHVISION = 'torchvision:'


class Loaded(NamedTuple):
    """A model and how it wants its images.

    Attributes:
        name: As it was given, for people.
        model: In evaluation mode.
        data_config: timm's: input size, mean, std, interpolation, crop.
        label_names: Names of its classes, [] if unknown.
        record: Of a checkpoint, its 'path', the run's 'settings', 'epoch' and 'metric', and the 'heads' of these
            weights.
    """
    name: str
    model: Any
    data_config: Dict[str, Any]
    label_names: List[str]
    record: Dict[str, Any] = {}


def load_model(
        name: Optional[str] = None,
        checkpoint: Optional[str] = None,
        pretrained: bool = False,
        img_size: Optional[int] = None,
        heads: bool = False,
) -> Loaded:
    """A model by its name, its checkpoint or both.

    Args:
        name: timm's, of a focus model its backbone is meant, or 'torchvision:NAME'; not needed with a checkpoint that
            train_focus.py or timm's train.py wrote.
        checkpoint: File of weights, or folder of a run, whose best are taken.
        pretrained: Load timm's or torchvision's weights where there is no checkpoint.
        img_size: Height and width of the input.
        heads: Keep the heads of focus training where the checkpoint has them: the model is a `FocusNet` then.

    Raises:
        ValueError: There is no such model or checkpoint, or they do not go together.
    """
    state, settings, head_state, record = None, {}, {}, {}
    if checkpoint is not None:
        path = _checkpoint_file(checkpoint)
        state = read_weight_file(path)
        settings = vars(state['args']) if isinstance(state.get('args'), argparse.Namespace) else {}
        name = name or state.get('arch')
        record = dict(path=path, settings=settings, epoch=state.get('epoch'), metric=state.get('metric'))
        state, head_state = _parts(state, settings)
        record['heads'] = head_state
        if not name:
            raise ValueError(f'The checkpoint {path} does not say which model it is of: give --model, too.')
    shown = name if checkpoint is None else f'{name}@{os.path.basename(os.path.normpath(checkpoint))}'
    if name.startswith(TORCHVISION):
        return Loaded(shown, *_torchvision_model(name, state, pretrained, img_size), [], record)

    plain = name.removeprefix('focus_')
    if ':' not in plain and not timm.is_model(plain):
        near = difflib.get_close_matches(plain.split('.')[0], timm.list_models(), 1)
        raise ValueError(f'timm knows no model {plain}.' + (f' Did you mean {near[0]}?' if near else ''))
    kwargs = {k: settings[k] for k in ('in_chans', 'num_classes') if settings.get(k) is not None}
    if settings.get('gp'):
        kwargs['global_pool'] = settings['gp']
    size = dict(img_size=img_size or settings.get('img_size'))
    kwargs.update({k: v for k, v in (settings.get('model_kwargs') or {}).items() if not k.startswith('focus_')})
    if state is not None and ':' not in plain:
        for key, layer, axis in (('num_classes', 'classifier', 0), ('in_chans', 'first_conv', 1)):
            module = timm.get_pretrained_cfg_value(plain, layer)
            weight = state.get(f'{module}.weight') if isinstance(module, str) else None
            if weight is not None and weight.ndim == (4 if key == 'in_chans' else weight.ndim):
                kwargs.setdefault(key, weight.shape[axis])
    try:
        resolved = timm.models.resolve_model_input_args(plain, size, **kwargs)
        if settings.get('method') == 'acol':
            model = create_acol(resolved.pop('model_name'), **resolved)
        else:
            model = timm.create_model(pretrained=pretrained and state is None, **resolved)
    except (RuntimeError, TypeError, AssertionError) as e:
        raise ValueError(f'The model {plain} cannot be made: {e}') from e
    if state is not None:
        _load_state(model, state, f'{checkpoint} into {plain}')
    asked = {k: settings.get(k) for k in ('crop_pct', 'crop_mode', 'interpolation', 'mean', 'std', 'input_size')}
    config = resolve_data_config({**asked, **size}, model=model)
    fit_channels(config, kwargs.get('in_chans') or config['input_size'][0])
    labels = settings.get('label_names') or (model.pretrained_cfg or {}).get('label_names') or []
    if heads and head_state:
        model = _with_heads(model, head_state, settings, f'{checkpoint} into {name}')
    return Loaded(shown, model.eval(), config, list(labels), record)


def _parts(checkpoint: Dict[str, Any], settings: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """State of the plain model in a checkpoint, and of the heads of focus training by name, {} without; of the running
    average, unless the run kept it unvalidated."""
    kind = '_ema' if checkpoint.get('state_dict_ema') and not settings.get('model_ema_force_cpu') else ''
    state = clean_state_dict(checkpoint.get(f'state_dict{kind}') or checkpoint)
    if settings.get('split_bn'):  # the statistics of the augmented splits serve training only
        state = {k: v for k, v in state.items() if '.aux_bn.' not in k}
    heads = checkpoint.get(f'task_state{kind}') or {}
    if not all(head in heads for head in HEADS):
        heads = {}
    parts = {part: {k.removeprefix(f'{part}.'): v for k, v in state.items() if k.startswith(f'{part}.')}
             for part in ('backbone', *HEADS)}
    if all(parts.values()):  # the state dict of a FocusNet
        return parts.pop('backbone'), parts
    return state, heads


def _with_heads(model: Any, heads: Dict[str, Any], settings: Dict[str, Any], what: str) -> Any:
    """A plain model with the heads that it was trained with, and their settings."""
    conv = heads['cam_head'].get('conv.weight')
    kwargs = {k: settings[k] for k in FOCUS_ARGS if settings.get(k) is not None}
    focused = FocusNet(model, **{**kwargs, 'focus_width': None if conv is None else len(conv)})
    for head in HEADS:
        _load_state(getattr(focused, head), heads[head], f'{head} of {what}')
    return focused


def check_plain(loaded: Loaded) -> None:
    """See that a model is one that timm alone can load.

    Raises:
        ValueError: It is ACoL's.
    """
    if loaded.record.get('settings', {}).get('method') == 'acol':
        raise ValueError(
            f'{loaded.name} classifies with a head of ACoL, which no timm model has: keep its checkpoint, which '
            'timm_focus.baselines.create_acol loads.')


def image_mode(loaded: Loaded) -> str:
    """Pillow's mode of the images that a model takes: the one that its run read them in, else by their channels.

    Raises:
        ValueError: They have neither one channel nor three, and no run says how to read them.
    """
    return mode_of(loaded.data_config['input_size'][0], loaded.record.get('settings', {}).get('input_img_mode'))


def class_names(loaded: Loaded, num_classes: int) -> List[str]:
    """A name for each class: the checkpoint's, ImageNet's where one of its sets has as many, or numbers."""
    if len(loaded.label_names) == num_classes:
        return [str(name) for name in loaded.label_names]
    subset = infer_imagenet_subset(dict(num_classes=num_classes))
    if subset:
        return ImageNetInfo(subset).label_descriptions()
    return [f'class {i}' for i in range(num_classes)]


def _checkpoint_file(checkpoint: str) -> str:
    if not os.path.isdir(checkpoint):
        if not os.path.isfile(checkpoint):
            raise ValueError(f'There is no checkpoint {checkpoint}.')
        return checkpoint
    for name in RUN_FILES:
        if os.path.isfile(os.path.join(checkpoint, name)):
            return os.path.join(checkpoint, name)
    raise ValueError(f'The folder {checkpoint} has neither {" nor ".join(RUN_FILES)}: name a file.')


def _load_state(model: Any, state: Dict[str, Any], what: str) -> None:
    """Load weights, or say which keys and shapes are in the way."""
    own = model.state_dict()
    absent, strange = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [f'{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}' for k in own
              if k in state and state[k].shape != own[k].shape]
    if absent or strange or shapes:
        parts = [f'{len(items)} {kind}, such as {items[0]}' for items, kind in (
            (absent, 'are missing'), (strange, 'are unknown'), (shapes, 'have other shapes')) if items]
        raise ValueError(
            f'{what} does not go, it is of another architecture: of {len(own)} tensors {"; ".join(parts)}.')
    model.load_state_dict(state)


def _torchvision_model(
        name: str,
        state: Optional[Dict[str, Any]],
        pretrained: bool,
        img_size: Optional[int],
) -> Tuple[Any, Dict[str, Any]]:
    import torchvision

    short = name.removeprefix(TORCHVISION)
    if short not in torchvision.models.list_models(module=torchvision.models):
        near = difflib.get_close_matches(short, torchvision.models.list_models(module=torchvision.models), 1)
        raise ValueError(f'torchvision knows no model {short}.' + (f' Did you mean {near[0]}?' if near else ''))
    kwargs = {}
    if state is not None:
        kwargs['num_classes'] = len(list(state.values())[-1])  # the classifier's bias comes last
    size, config = 224, dict(
        interpolation='bilinear', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.875)
    weights = torchvision.models.get_model_weights(short).DEFAULT if pretrained and state is None else None
    if weights:  # evaluated as they were published
        preset = weights.transforms()
        size = preset.crop_size[0]
        config = dict(interpolation=preset.interpolation.value, mean=tuple(preset.mean), std=tuple(preset.std),
                      crop_pct=size / preset.resize_size[0])
    model = torchvision.models.get_model(short, weights=weights, **kwargs)
    if state is not None:
        _load_state(model, state, f'The checkpoint into {name}')
    size = img_size or size
    return model.eval(), dict(config, input_size=(3, size, size), crop_mode='center')
