"""A run on disk: its files, its settings, which of its weights count, its heads, its class names, its model."""
import argparse
import difflib
import functools
import json
import logging
import numbers
import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from timm.models import (
    clean_state_dict, get_model_args, load_checkpoint, parse_model_name, resolve_model_input_args)
from torch import Tensor, nn

from timm_focus.baselines import create_acol
from timm_focus.data.images import image_mode as mode_of
from timm_focus.data.transforms import fit_channels
from timm_focus.data.places365 import CATEGORIES
from timm_focus.method import HEADS, FocusNet
from timm_focus.models import FOCUS_ARGS
from timm_focus.models.weights import argument_of, misfit, native_state, shapes_of, tensors_by
from timm_focus.utils.errors import explained
from timm_focus.utils.weight_files import read_weight_file

__all__ = [
    'Checkpoint', 'Loaded', 'check_name', 'check_plain', 'class_names', 'find_checkpoint', 'image_mode',
    'is_source', 'load_heads', 'load_model', 'load_run', 'model_arguments', 'parse_checkpoint', 'read_checkpoint',
    'read_class_names', 'start_from']

_logger = logging.getLogger(__name__)

RUN_FILES = ('model_best.pth.tar', 'last.pth.tar')
EXPORT_CONFIG, EXPORT_WEIGHTS, EXPORT_HEADS = 'config.json', 'model.safetensors', 'focus_heads.safetensors'
TORCHVISION, LOCAL, HUB = 'torchvision:', 'local-dir:', 'hf-hub:'
STATES = ('state_dict', 'model', 'model_state_dict')  # what other scripts call it
MOST_PIXELS = 8192 ** 2  # of an image; a checkpoint that asks for more would fill the memory
# where weights came from, which they do not any more
ORIGIN = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'custom_load')
State = Dict[str, Tensor]


class Checkpoint(NamedTuple):
    """What a file of weights says.

    Attributes:
        path: The file.
        arch: The model's name, '' if it does not say.
        settings: Of train_focus.py or timm's train.py, {} of others.
        epoch: That it is of, None if it does not say.
        metric: By which it was ranked, None if it does not say.
        state: Weights that count, of the plain model.
        heads: States of the heads of focus training of these weights, {} without.
    """
    path: str
    arch: str
    settings: Dict[str, Any]
    epoch: Optional[int]
    metric: Optional[float]
    state: State
    heads: Dict[str, State]


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


# what is on disk

def is_source(name: Optional[str]) -> bool:
    """Whether a model's name is one of timm's that say where its weights are, too: hf-hub:user/name, local-dir:PATH."""
    return bool(name) and name.startswith((LOCAL, HUB, 'hf_hub:'))


def find_checkpoint(path: str) -> str:
    """The file of weights that is meant by a path, that of the best epoch if it is the folder of a run.

    Raises:
        ValueError: There is none.
    """
    if not os.path.isdir(path):
        if not os.path.isfile(path):
            raise ValueError(f'There is no checkpoint {path}.')
        return path
    for name in RUN_FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise ValueError(f'The folder {path} has neither {" nor ".join(RUN_FILES)}: name a file.')


def read_checkpoint(path: str) -> Checkpoint:
    """What a file of weights, the folder of a run, an export or a repository of the Hub says.

    Args:
        path: A file, a folder of a run or of an export, local-dir:FOLDER, or hf-hub:user/name.

    Raises:
        ValueError: There is none, it is damaged, or it is no checkpoint: which part of it, and why.
    """
    if not is_source(path) and all(os.path.isfile(os.path.join(path, f)) for f in (EXPORT_CONFIG, EXPORT_WEIGHTS)):
        path = LOCAL + path
    if is_source(path):
        return _read_source(path)
    file = find_checkpoint(path)
    return parse_checkpoint(read_weight_file(file), file)


def parse_checkpoint(found: Dict[str, Any], path: str) -> Checkpoint:
    """What the content of a file of weights says.

    The weights that count are those of the running average, unless the run kept it unvalidated on the CPU.

    Args:
        found: Of `read_weight_file`: a checkpoint of timm, with 'state_dict', one of other scripts, or a state dict.
        path: The file, for messages.

    Raises:
        ValueError: It is no checkpoint: which part of it, and why.
    """
    args, arch = found.get('args'), found.get('arch')
    settings = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    for name, (wanted, right) in SETTINGS.items():
        value = settings.get(name)
        if value is not None and not right(value):
            raise ValueError(f'The checkpoint {path} has the setting {name} {_shown(value)}, where {wanted} belongs.')
    if not isinstance(arch, (str, type(None), Tensor)):  # in a state dict it may be a weight
        raise ValueError(f'The checkpoint {path} is of the model {_shown(arch)}, which is no name.')
    average = '' if settings.get('model_ema_force_cpu') else next(
        (name for name in ('state_dict_ema', 'model_ema') if found.get(name) is not None), '')
    name = average or next((name for name in STATES if not isinstance(found.get(name), (Tensor, type(None)))), '')
    if not name and 'state_dict' in found:
        name = 'state_dict'
    state = clean_state_dict(_tensors(found[name] if name else found, path, name))
    if settings.get('split_bn'):  # the statistics of the augmented splits serve training only
        state = {k: v for k, v in state.items() if '.aux_bn.' not in k}
    heads = found.get('task_state_ema' if average == 'state_dict_ema' else 'task_state') if name else None
    if heads is not None and not isinstance(heads, dict):
        raise ValueError(f'The checkpoint {path} has a task_state that is {_shown(heads)}, no heads by name.')
    heads = heads if all(head in (heads or {}) for head in HEADS) else {}
    heads = {head: _tensors(heads[head], path, head) for head in HEADS if heads}
    parts = {part: _under(f'{part}.', state) for part in ('backbone', *HEADS)}
    if all(parts.values()):  # the state dict of a FocusNet
        state, heads = parts.pop('backbone'), parts
    epoch, metric = found.get('epoch'), found.get('metric')
    return Checkpoint(
        path, arch if isinstance(arch, str) else '', settings,
        epoch if isinstance(epoch, int) else None, float(metric) if isinstance(metric, (int, float)) else None,
        state, heads)


def _read_source(source: str) -> Checkpoint:
    """An export, here or on the Hub, as a checkpoint."""
    config = _source_file(source, EXPORT_CONFIG)
    weights = _source_file(source, EXPORT_WEIGHTS) or _source_file(source, 'pytorch_model.bin')
    if config is None or weights is None:
        raise ValueError(f'{source} has no {EXPORT_CONFIG if config is None else EXPORT_WEIGHTS}: it is no model of '
                         "timm's.")
    try:
        with open(config, encoding='utf-8') as f:
            focus = json.load(f).get('focus') or {}
        settings = {k: v for k, v in focus.items() if k in FOCUS_ARGS}
    except (AttributeError, OSError, ValueError) as e:
        raise ValueError(f'{config} cannot be read: {_sentence(e)}') from e
    state = _tensors(clean_state_dict(read_weight_file(weights)), weights, '')
    heads: Dict[str, State] = {}
    file = _source_file(source, EXPORT_HEADS) if focus else None
    if file is not None:
        found = _tensors(read_weight_file(file), file, '')
        heads = {head: _under(f'{head}.', found) for head in HEADS}
    return Checkpoint(weights, source, settings, None, None, state, heads)


def _source_file(source: str, name: str) -> Optional[str]:
    """A file of an export, downloaded if it has to be; None if it has none of this name."""
    kind, place = parse_model_name(source)
    if kind == 'local-dir':
        path = os.path.join(place, name)
        return path if os.path.isfile(path) else None
    repo_id, _, revision = place.partition('@')
    try:
        return hf_hub_download(repo_id, name, revision=revision or None)
    except RepositoryNotFoundError as e:
        raise ValueError(f'{source} is not on the Hub, or the token may not see it: check the name.') from e
    except EntryNotFoundError as e:
        if type(e).__name__ == 'LocalEntryNotFoundError':  # it cannot be asked
            raise ValueError(f'The Hub cannot be reached for {source}, and there is no copy of it here.') from e
        return None
    except Exception as e:  # of the client and of its HTTP library, whose texts may show addresses with a key
        raise ValueError(f'{source} cannot be had from the Hub: {type(e).__name__}.') from e


def _tensors(found: Any, path: str, name: str) -> State:
    """A state dict that is one.

    Raises:
        ValueError: It is none.
    """
    what = f'its {name}' if name else 'it'
    if not isinstance(found, dict) or not found:
        raise ValueError(f'The checkpoint {path} has no weights: {what} is {_shown(found)}.')
    for key, value in found.items():
        if not isinstance(key, str):
            raise ValueError(f'The checkpoint {path} has no weights by names: {what} has the key {_shown(key)}.')
        if not isinstance(value, Tensor):
            raise ValueError(f'The checkpoint {path} has no weights by names: {key} of {what} is {_shown(value)}.')
        if value.layout != torch.strided or value.is_quantized:
            kind = 'quantized' if value.is_quantized else 'sparse'
            raise ValueError(f'The checkpoint {path} has {kind} weights, such as {key}, which no model here takes.')
    return found


def _under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _shown(value: Any) -> str:
    text = ' '.join(repr(value).split())
    return text if len(text) <= 60 else f'{text[:57]}...'


def _sentence(e: BaseException) -> str:
    return ' '.join(str(e).split())[:500] or type(e).__name__


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0


def _size(value: Any) -> bool:
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    return all(map(_whole, sides)) and len(sides) == 2 and sides[0] * sides[1] <= MOST_PIXELS


def _several(value: Any, kind: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(v, kind) for v in value)


_TEXT = 'text', lambda v: isinstance(v, str)
_NUMBERS = 'one number or more', lambda v: _several(v, numbers.Real)
_NAMED = 'values by names', lambda v: isinstance(v, dict) and all(isinstance(k, str) for k in v)
# what settings must be, which make a model and its images
SETTINGS: Dict[str, Tuple[str, Any]] = dict(
    num_classes=('a number from 1 on', _whole), in_chans=('a number from 1 on', _whole),
    img_size=(f'a size of at most {MOST_PIXELS:,} pixels', _size),
    input_size=(f'channels, height and width of at most {MOST_PIXELS:,} pixels',
                lambda v: isinstance(v, (list, tuple)) and len(v) == 3 and _whole(v[0]) and _size(list(v[1:]))),
    model_kwargs=_NAMED, pretrained_cfg_overlay=_NAMED, label_names=('names', lambda v: _several(v, str)),
    mean=_NUMBERS, std=_NUMBERS, crop_pct=('a number', lambda v: isinstance(v, numbers.Real)), gp=_TEXT,
    interpolation=_TEXT, crop_mode=_TEXT, method=_TEXT)


# models

def model_arguments(name: str, settings: Mapping[str, Any]) -> Dict[str, Any]:
    """Arguments of `timm.create_model` by which settings make the plain model that they name.

    Args:
        name: timm's, or hf-hub:user/name or local-dir:PATH.
        settings: Of train_focus.py or timm's train.py; those that are not there are the model's own.

    Raises:
        ValueError: They contradict each other.
    """
    overlay = {k: v for k, v in (settings.get('pretrained_cfg_overlay') or {}).items() if k not in ORIGIN}
    kwargs = dict(
        num_classes=settings.get('num_classes'), in_chans=settings.get('in_chans'), global_pool=settings.get('gp'),
        drop_rate=settings.get('drop'), drop_path_rate=settings.get('drop_path'),
        drop_block_rate=settings.get('drop_block'), bn_momentum=settings.get('bn_momentum'),
        bn_eps=settings.get('bn_eps'), pretrained_cfg_overlay=overlay or None)
    return resolve_model_input_args(name, dict(settings), **{**kwargs, **(settings.get('model_kwargs') or {})})


def load_model(
        name: Optional[str] = None,
        checkpoint: Optional[str] = None,
        pretrained: bool = False,
        img_size: Optional[int] = None,
        heads: bool = False,
) -> Loaded:
    """A model by its name, its checkpoint or both.

    Args:
        name: timm's, of a focus model its backbone is meant; 'torchvision:NAME'; or 'hf-hub:user/name' or
            'local-dir:FOLDER', which are checkpoints as well. Not needed with a checkpoint that says it.
        checkpoint: File of weights; folder of a run, whose best are taken, or of an export; or 'hf-hub:user/name'.
        pretrained: Load timm's or torchvision's weights where there is no checkpoint.
        img_size: Height and width of the input.
        heads: Keep the heads of focus training where the checkpoint has them: the model is a `FocusNet` then.

    Raises:
        ValueError: There is no such model or checkpoint, or they do not go together.
    """
    if checkpoint is None and is_source(name):
        checkpoint = name
    found = read_checkpoint(checkpoint) if checkpoint is not None else None
    settings = dict(found.settings) if found else {}
    name = name or (found.arch if found else '')
    if not name:
        raise ValueError(f'The checkpoint {found.path} does not say which model it is of: give --model, too.' if found
                         else 'No model is named.')
    record: Dict[str, Any] = {}
    if found:
        record = dict(path=found.path, settings=found.settings, epoch=found.epoch, metric=found.metric,
                      heads=found.heads)
    shown = name
    if found and checkpoint != name:
        shown = f'{name}@{os.path.basename(os.path.normpath(checkpoint))}'
    if img_size is not None:
        settings.update(img_size=img_size, input_size=None)
    plain = name.removeprefix('focus_')
    check_name(plain)
    if name.startswith(TORCHVISION):
        return Loaded(shown, *_torchvision_model(name, found, pretrained, img_size), [], record)
    what = f'{checkpoint} into {plain}'
    model = _plain_model(plain, settings, found, pretrained, what)
    config = _data_config(model, settings, found.path if found else plain)
    labels = settings.get('label_names') or (model.pretrained_cfg or {}).get('label_names') or []
    if heads and found and found.heads:
        model = _with_heads(model, found, what)
    return Loaded(shown, model.eval(), config, list(labels), record)


def load_run(path: str) -> nn.Module:
    """The model of a run with its best weights, in evaluation mode.

    Args:
        path: Folder of the run; or a checkpoint of it, its export, or 'hf-hub:user/name'.

    Returns:
        The `FocusNet` of a run of focus training, heads and all, to go on with or to be explained; of other runs their
        plain model. Its `pretrained_cfg` says how its images are prepared and what its classes are called.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    loaded = load_model(checkpoint=path, heads=True)
    plain = loaded.model.backbone if isinstance(loaded.model, FocusNet) else loaded.model
    if getattr(plain, 'pretrained_cfg', None) is not None:
        plain.pretrained_cfg.update(
            loaded.data_config, **(dict(label_names=loaded.label_names) if loaded.label_names else {}))
    return loaded.model


def check_name(name: str) -> None:
    """Refuse what is no name of a model of timm or, after 'torchvision:', of torchvision.

    Raises:
        ValueError: It is none; the next like it.
    """
    if is_source(name):
        return
    library, known = 'timm', timm.list_models()
    if name.startswith(TORCHVISION):
        import torchvision

        library, name = 'torchvision', name.removeprefix(TORCHVISION)
        known = torchvision.models.list_models(module=torchvision.models)
    if name not in known and not (library == 'timm' and timm.is_model(name)):  # which knows tags, too
        near = difflib.get_close_matches(name.split('.')[0], known, 1)
        raise ValueError(f'{library} knows no model {name}.' + (f' Did you mean {near[0]}?' if near else ''))


def _plain_model(
        name: str,
        settings: Dict[str, Any],
        found: Optional[Checkpoint],
        pretrained: bool,
        what: str,
) -> nn.Module:
    """timm's model, or ACoL's, with weights or without."""
    of_model = {k: v for k, v in (settings.get('model_kwargs') or {}).items() if not k.startswith('focus_')}
    with explained(f'The model {name} cannot be made'):
        arguments = model_arguments(name, {**settings, 'model_kwargs': of_model})
        plain = arguments.pop('model_name')
        if settings.get('method') == 'acol':
            model = create_acol(plain, **arguments)
        elif found is None:
            return timm.create_model(plain, pretrained=pretrained, **arguments)
    if found is None:
        return model
    with explained(f'{what} does not go'):
        if settings.get('method') == 'acol':
            why = misfit({k: tuple(v.shape) for k, v in model.state_dict().items()}, found.state)
            if why:
                raise ValueError(f'it is of another architecture: {why}')
            state = found.state
        else:
            create = functools.partial(timm.create_model, plain, **arguments)
            for argument in ('num_classes', 'in_chans'):
                if argument not in arguments and misfit(shapes_of(create, **arguments), found.state):
                    told = argument_of(create, argument, found.state)
                    arguments.update({argument: told} if told else {})
            arguments.setdefault('num_classes', arguments['pretrained_cfg']['num_classes'])
            state = native_state(plain, found.state, **arguments)
            model = timm.create_model(plain, **arguments)
        model.load_state_dict(state)
    return model


def _data_config(model: nn.Module, settings: Mapping[str, Any], path: str) -> Dict[str, Any]:
    """How settings want the images of a model, else as it wants them itself."""
    names = ('crop_pct', 'crop_mode', 'interpolation', 'mean', 'std', 'input_size', 'img_size')
    with explained(f'{path} says of its images what cannot be done'):
        config = resolve_data_config({k: settings.get(k) for k in names}, model=model)
        fit_channels(config, getattr(model, 'in_chans', config['input_size'][0]))
        create_transform(**config, is_training=False)
    return config


def _with_heads(model: nn.Module, found: Checkpoint, what: str) -> FocusNet:
    """A plain model with the heads that it was trained with, and their settings."""
    width = found.heads['cam_head'].get('conv.weight')
    kwargs = {k: found.settings[k] for k in FOCUS_ARGS if found.settings.get(k) is not None}
    with explained(f'The heads of {what} do not go'):
        focused = FocusNet(model, **{**kwargs, 'focus_width': None if width is None else len(width)})
        load_heads(focused, found.heads)
    return focused


def load_heads(model: FocusNet, heads: Mapping[str, State]) -> None:
    """Give a model the heads of a checkpoint.

    Raises:
        ValueError: They are of another model, or of other `focus_*` arguments.
    """
    for name in HEADS:
        head = getattr(model, name)
        why = misfit({k: tuple(v.shape) for k, v in head.state_dict().items()}, heads[name])
        if why:
            raise ValueError(f'{name} is of another model: {why}')
        head.load_state_dict(heads[name])


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
    """A name for each class: the checkpoint's, those of ImageNet or Places365 where there are as many, or numbers."""
    if len(loaded.label_names) == num_classes:
        return [str(name) for name in loaded.label_names]
    if num_classes == len(CATEGORIES):
        return list(CATEGORIES)
    subset = infer_imagenet_subset(dict(num_classes=num_classes))
    if subset:
        return ImageNetInfo(subset).label_descriptions()
    return [f'class {i}' for i in range(num_classes)]


def read_class_names(path: str) -> List[str]:
    """Names of classes, one a line in the order of their indices; Places365's list, with its indices, is read, too.

    Raises:
        ValueError: There are none, or a name stands there twice.
    """
    try:
        with open(path, encoding='utf-8') as f:
            names = [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f'The names of classes in {path} cannot be read: {_sentence(e)}') from e
    numbered = [re.fullmatch(r'/\w/(\S+) (\d+)', name) for name in names]
    if names and all(numbered) and [int(m[2]) for m in numbered] == list(range(len(names))):
        names = [m[1] for m in numbered]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or not names:
        raise ValueError(f'{path} has {f"{twice[0]} twice" if twice else "no lines"}: give a name of a class a line.')
    return names


def _torchvision_model(
        name: str,
        found: Optional[Checkpoint],
        pretrained: bool,
        img_size: Optional[int],
) -> Tuple[Any, Dict[str, Any]]:
    import torchvision

    short = name.removeprefix(TORCHVISION)
    create = functools.partial(torchvision.models.get_model, short)
    size, config = 224, dict(
        interpolation='bilinear', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.875)
    weights = torchvision.models.get_model_weights(short).DEFAULT if pretrained and not found else None
    if weights:  # evaluated as they were published
        preset = weights.transforms()
        size = preset.crop_size[0]
        config = dict(interpolation=preset.interpolation.value, mean=tuple(preset.mean), std=tuple(preset.std),
                      crop_pct=size / preset.resize_size[0])
    if found:
        with explained(f'{found.path} into {name} does not go'):
            num_classes = argument_of(create, 'num_classes', found.state)
            if num_classes:
                create = functools.partial(create, num_classes=num_classes)
            why = misfit(shapes_of(create), found.state)
            if why:
                raise ValueError(f'it is of another architecture: {why}')
            model = create()
            model.load_state_dict(found.state)
    else:
        model = create(weights=weights)
    size = img_size or size
    return model.eval(), dict(config, input_size=(3, size, size), crop_mode='center')


# training that starts from weights

def start_from(model: nn.Module, path: str, new_classifier: bool = False) -> str:
    """Give a model that is to be trained the weights of a checkpoint.

    Those of the classifier, and the heads of focus training, are taken where the classes are as many.

    Args:
        model: A plain timm model, or a `FocusNet`.
        path: As `read_checkpoint`; or an original .npz file of a model that timm can read these of.
        new_classifier: Leave the classifier and the heads as they are.

    Returns:
        What was taken, as a sentence.

    Raises:
        ValueError: There is no such checkpoint, or it does not fit: how many tensors do, and the first that do not.
    """
    plain = model.backbone if isinstance(model, FocusNet) else model
    name = plain.pretrained_cfg['architecture']
    if path.endswith(('.npz', '.npy')):
        with explained(f'{path} cannot be read into {name}'):
            load_checkpoint(plain, path)
        return f'The weights of {path} are taken.'
    found = read_checkpoint(path)
    kwargs = {**getattr(plain, '_model_args', {}), **get_model_args(plain)}
    create = functools.partial(timm.create_model, name, **kwargs)
    with explained(f'{path} into {name} does not go'):
        classifier = tensors_by(create, 'num_classes')
        n = argument_of(create, 'num_classes', found.state)
        given = [n] if n is not None else list(dict.fromkeys((
            found.settings.get('num_classes') or plain.num_classes, plain.num_classes, 1000, 0)))
        for i, n in enumerate(given):
            try:
                state = native_state(name, found.state, **{**kwargs, 'num_classes': n})
                break
            except ValueError:
                if i == len(given) - 1:
                    native_state(name, found.state, **{**kwargs, 'num_classes': given[0]})
        kept = n == plain.num_classes and not new_classifier
        if not kept:
            state = {k: v for k, v in state.items() if k not in classifier}
        plain.load_state_dict(state, strict=False)
    total = len(plain.state_dict())
    note = f'{len(state)} of the {total} tensors of {name} are taken from {found.path}'
    if not kept:
        classes = f'has {n} classes in place of {plain.num_classes}' if n != plain.num_classes else 'is not asked for'
        return f'{note}: its classifier {classes}, and a new one is trained.'
    if isinstance(model, FocusNet):
        if not found.heads:
            return f'{note}: it has no heads of focus training, and new ones are trained.'
        try:
            load_heads(model, found.heads)
        except ValueError as e:
            return f'{note}, but not its heads, so new ones are trained: {e}.'
        return f'{note}, and its heads.'
    return f'{note}.'


def _load_with_heads(model: nn.Module, checkpoint_path: str, *args: Any, **kwargs: Any) -> Any:
    """timm's `load_checkpoint`, and for a `FocusNet` the heads, too, where the checkpoint has them."""
    if isinstance(model, FocusNet):
        found = read_checkpoint(str(checkpoint_path))
        why = misfit({k: tuple(v.shape) for k, v in model.backbone.state_dict().items()}, found.state)
        if why:
            raise ValueError(f'{checkpoint_path} does not fit the model: {why}.')
        if found.heads:
            load_heads(model, found.heads)
        else:
            _logger.warning(f'{checkpoint_path} is of a plain model: {", ".join(HEADS)} are not in it and are new.')
        return model.backbone.load_state_dict(found.state)
    return load_checkpoint(model, checkpoint_path, *args, **kwargs)


# create_model('focus_...', checkpoint_path=...) reads the file itself, and hands the model what is plain of it alone
timm.models._factory.load_checkpoint = _load_with_heads
