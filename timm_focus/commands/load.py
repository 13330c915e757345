"""Models and images that a command line names."""
import argparse
import difflib
import os
from typing import Any, Dict, List, NamedTuple, Optional

__all__ = ['Loaded', 'add_model_arguments', 'load_model', 'load_models', 'open_images']

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


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which models, and how they are fed."""
    parser.add_argument('--model', action='append', default=[], metavar='NAME',
                        help='timm name, or torchvision:NAME; once for each model')
    parser.add_argument('--checkpoint', action='append', default=[], metavar='PATH', help='weights of each --model: a '
                        "file, or the folder of a run; a run's checkpoint needs no --model")
    parser.add_argument('--pretrained', action='store_true', help="download timm's weights, without a checkpoint")
    parser.add_argument('--img-size', type=int, metavar='N', help="height and width (default: the model's)")
    parser.add_argument('--device', default='', help='device (default: cuda if there is one, else cpu)')
    parser.add_argument('-b', '--batch-size', type=int, default=64, help='images at a time (default: 64)')
    parser.add_argument('-j', '--workers', type=int, default=2, help='processes that load images (default: 2)')


def load_models(args: argparse.Namespace) -> List[Loaded]:
    """The models that the flags name, on their device.

    Raises:
        ValueError: None is named, or something of them makes no sense.
    """
    import torch

    if not args.model and not args.checkpoint:
        raise ValueError('No model is named: give --model NAME, or the --checkpoint of a run.')
    if args.model and args.checkpoint and len(args.model) != len(args.checkpoint):
        raise ValueError(f'There are {len(args.model)} --model and {len(args.checkpoint)} --checkpoint: give one of '
                         'each for every model.')
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    pairs = zip(args.model or [None] * len(args.checkpoint), args.checkpoint or [None] * len(args.model))
    loaded = [load_model(name, checkpoint, args.pretrained, args.img_size) for name, checkpoint in pairs]
    names = [one.name for one in loaded]
    for one in loaded:
        if names.count(one.name) > 1:
            raise ValueError(f'{one.name} is named twice: results go by these names.')
        try:
            one.model.to(device)
        except RuntimeError as e:
            raise ValueError(f'--device is {device}, which cannot be used: {e}') from e
    return loaded


def load_model(
        name: Optional[str] = None,
        checkpoint: Optional[str] = None,
        pretrained: bool = False,
        img_size: Optional[int] = None,
) -> Loaded:
    """A model by its name, its checkpoint or both.

    Args:
        name: timm's, of a focus model its backbone is meant, or 'torchvision:NAME'; not needed with a checkpoint that
            train_focus.py or timm's train.py wrote.
        checkpoint: File of weights, or folder of a run, whose best are taken.
        pretrained: Load timm's weights where there is no checkpoint.
        img_size: Height and width of the input.

    Raises:
        ValueError: There is no such model or checkpoint, or they do not go together.
    """
    import timm
    from timm.data import resolve_data_config
    from timm.models import clean_state_dict
    from timm.utils import load_checkpoint_metadata

    state, settings, record = None, {}, {}
    if checkpoint is not None:
        path = _checkpoint_file(checkpoint)
        try:
            if path.endswith('.safetensors'):
                from safetensors.torch import load_file
                state = load_file(path)
            else:
                state = load_checkpoint_metadata(path)
        except Exception as e:  # whatever a damaged file makes a reader say
            raise ValueError(f'The checkpoint {path} cannot be read: {type(e).__name__}: {e}') from e
        settings = vars(state['args']) if isinstance(state.get('args'), argparse.Namespace) else {}
        name = name or state.get('arch')
        # the running average, unless the run kept it unvalidated
        ema = '_ema' if state.get('state_dict_ema') and not settings.get('model_ema_force_cpu') else ''
        record = dict(path=path, settings=settings, epoch=state.get('epoch'), metric=state.get('metric'),
                      heads=state.get(f'task_state{ema}') or {})
        state = clean_state_dict(state.get(f'state_dict{ema}') or state)
        if settings.get('split_bn'):  # the statistics of the augmented splits serve training only
            state = {k: v for k, v in state.items() if '.aux_bn.' not in k}
        if not name:
            raise ValueError(f'The checkpoint {path} does not say which model it is of: give --model, too.')
    shown = name if checkpoint is None else f'{name}@{os.path.basename(os.path.normpath(checkpoint))}'
    if name.startswith(TORCHVISION):
        return Loaded(shown, *_torchvision_model(name, state, img_size), [], record)

    plain = name.removeprefix('focus_')
    if ':' not in plain and not timm.is_model(plain):
        near = difflib.get_close_matches(plain.split('.')[0], timm.list_models(), 1)
        raise ValueError(f'timm knows no model {plain}.' + (f' Did you mean {near[0]}?' if near else ''))
    kwargs = {k: settings[k] for k in ('in_chans', 'num_classes') if settings.get(k) is not None}
    if settings.get('gp'):
        kwargs['global_pool'] = settings['gp']
    size = dict(img_size=img_size or settings.get('img_size'))
    kwargs.update(settings.get('model_kwargs') or {})
    if state is not None and 'num_classes' not in kwargs:
        classifier = timm.get_pretrained_cfg_value(plain, 'classifier') if ':' not in plain else None
        weight = state.get(f'{classifier}.weight') if isinstance(classifier, str) else None
        if weight is not None:
            kwargs['num_classes'] = len(weight)
    try:
        resolved = timm.models.resolve_model_input_args(plain, size, **kwargs)
        model = timm.create_model(pretrained=pretrained and state is None, **resolved)
    except (RuntimeError, TypeError, AssertionError) as e:
        raise ValueError(f'The model {plain} cannot be made: {e}') from e
    if state is not None:
        _load_state(model, state, f'{checkpoint} into {plain}')
    asked = {k: settings.get(k) for k in ('crop_pct', 'interpolation', 'mean', 'std', 'input_size')}
    config = resolve_data_config({**asked, **size}, model=model)
    labels = settings.get('label_names') or (model.pretrained_cfg or {}).get('label_names') or []
    return Loaded(shown, model.eval(), config, list(labels), record)


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


def _torchvision_model(name: str, state: Optional[Dict[str, Any]], img_size: Optional[int]) -> tuple:
    import torchvision
    short = name.removeprefix(TORCHVISION)
    if short not in torchvision.models.list_models(module=torchvision.models):
        near = difflib.get_close_matches(short, torchvision.models.list_models(module=torchvision.models), 1)
        raise ValueError(f'torchvision knows no model {short}.' + (f' Did you mean {near[0]}?' if near else ''))
    kwargs = {}
    if state is not None:
        kwargs['num_classes'] = len(list(state.values())[-1])  # the classifier's bias comes last
    model = torchvision.models.get_model(short, weights=None, **kwargs)
    if state is not None:
        _load_state(model, state, f'The checkpoint into {name}')
    size = img_size or 224
    return model.eval(), dict(
        input_size=(3, size, size), interpolation='bilinear', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        crop_pct=0.875, crop_mode='center')


def open_images(path: str) -> Any:
    """The images of a folder as a data set: its validation split if it has splits, else all that are in it.

    Raises:
        ValueError: There are none.
    """
    import numpy as np
    from timm.data import get_img_extensions

    from timm_focus.data import ImageIndex, SceneDataset, create_dataset
    from timm_focus.data.places365 import find_places365

    if not os.path.isdir(path):
        raise ValueError(f'There is no folder {path}.')
    splits = ('validation', 'val', 'valid', 'eval', 'evaluation')
    if any(os.path.isdir(os.path.join(path, split)) for split in splits) or find_places365(path):
        return create_dataset('', path, 'validation')
    extensions = get_img_extensions(as_set=True)
    names = sorted(
        os.path.relpath(os.path.join(folder, name), path) for folder, _, files in os.walk(path) for name in files
        if os.path.splitext(name)[1].lower() in extensions)
    if not names:
        raise ValueError(f'There are no images in {path}: files {", ".join(get_img_extensions())} are looked for.')
    encoded = [os.fsencode(name) for name in names]
    offsets = np.cumsum([0, *map(len, encoded)])
    index = ImageIndex(os.path.abspath(path), np.frombuffer(b''.join(encoded), np.uint8), offsets,
                       np.zeros(len(names), np.int32), ['image'])
    return SceneDataset(index, f'images in {path}')
