"""Makes a model with its weights from a run, a checkpoint or a name."""
import difflib
import functools
import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import timm
from timm.data import create_transform, resolve_data_config
from timm.models import resolve_model_input_args
from torch import nn

from timm_focus.baselines import create_acol
from timm_focus.data.images import image_mode as mode_of
from timm_focus.data.transforms import fit_channels
from timm_focus.method import HEADS, FocusNet
from timm_focus.models import FOCUS_ARGS
from timm_focus.models.weights import argument_of, misfit, native_state, shapes_of
from timm_focus.utils.errors import as_settings_error
from timm_focus.utils.text import brief

from .checkpoint import INPUT_SIZE, Checkpoint, State, is_input_size, is_source, read_checkpoint

__all__ = [
    'Loaded', 'check_name', 'check_plain', 'image_mode', 'load_heads', 'load_model', 'load_run', 'model_arguments']

TORCHVISION = 'torchvision:'
# entries of pretrained_cfg about the origin of weights, which are wrong once other weights are loaded
ORIGIN = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'custom_load')


class Loaded(NamedTuple):
    """A model, with the transform of its images.

    Attributes:
        name: The given name, for messages and tables.
        model: The model, in evaluation mode.
        data_config: timm's data configuration: input size, mean, std, interpolation, crop.
        label_names: Names of its classes; [] if they are not known.
        checkpoint: 'path', 'settings', 'epoch', 'metric' and 'heads' of its checkpoint; {} without one.
        input_img_mode: Pillow's mode to read images in; '' for the run's mode, or else by the channels.
    """
    name: str
    model: Any
    data_config: Dict[str, Any]
    label_names: List[str]
    checkpoint: Dict[str, Any] = {}
    input_img_mode: str = ''


def model_arguments(name: str, settings: Mapping[str, Any]) -> Dict[str, Any]:
    """Arguments with which `timm.create_model` makes the plain model of a run from its settings.

    Args:
        name: timm's name of the model, hf-hub:user/name or local-dir:PATH.
        settings: Settings of train_focus.py or timm's train.py. For missing ones, the model's own are used.

    Raises:
        ValueError: The settings contradict each other.
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
    """Load a model by its name, its checkpoint or both.

    Args:
        name: timm's name (for a focus model, its backbone is loaded), 'torchvision:NAME', or 'hf-hub:user/name' or
            'local-dir:FOLDER', which are also checkpoints. Not needed if the checkpoint gives it.
        checkpoint: File of weights, folder of a run (its best epoch) or of an export, or 'hf-hub:user/name'.
        pretrained: Load timm's or torchvision's weights if there is no checkpoint.
        img_size: Height and width of the input.
        heads: Keep the heads of focus training if the checkpoint has them; the model is then a `FocusNet`.

    Raises:
        ValueError: There is no such model or checkpoint, or they do not match.
    """
    if checkpoint is None and is_source(name):
        checkpoint = name
    found = read_checkpoint(checkpoint) if checkpoint is not None else None
    settings = dict(found.settings) if found else {}
    name = name or (found.arch if found else '')
    if not name:
        raise ValueError(f'The checkpoint {found.path} does not say which model it is of: give --model, too.' if found
                         else 'No model is named.')
    about: Dict[str, Any] = {}
    if found:
        about = dict(path=found.path, settings=found.settings, epoch=found.epoch, metric=found.metric,
                     heads=found.heads)
    shown = name
    if checkpoint is not None and checkpoint != name:
        shown = f'{name}@{os.path.basename(os.path.normpath(checkpoint))}'
    if img_size is not None:
        settings.update(img_size=img_size, input_size=None)
    plain = name.removeprefix('focus_')
    check_name(plain)
    if name.startswith(TORCHVISION):
        return Loaded(shown, *_torchvision_model(name, found, pretrained, img_size), [], about)
    what = f'{checkpoint} into {plain}'
    model = _plain_model(plain, settings, found, pretrained, what)
    config = _data_config(model, settings, found.path if found else plain)
    labels = settings.get('label_names') or (getattr(model, 'pretrained_cfg', None) or {}).get('label_names') or []
    if heads and found and found.heads:
        model = _with_heads(model, found, what)
    return Loaded(shown, model.eval(), config, list(labels), about)


def load_run(path: str) -> nn.Module:
    """Load the model of a run with its best weights, in evaluation mode.

    Args:
        path: Folder of the run, a checkpoint of it, its export, or 'hf-hub:user/name'.

    Returns:
        The `FocusNet` with its heads for a run of focus training, to train further or to explain; the plain model for
        other runs. Its `pretrained_cfg` has the transform of its images and the names of its classes.

    Raises:
        ValueError: There is no such run, or it is damaged.
    """
    loaded = load_model(checkpoint=path, heads=True)
    plain = loaded.model.backbone if isinstance(loaded.model, FocusNet) else loaded.model
    if getattr(plain, 'pretrained_cfg', None) is not None:
        plain.pretrained_cfg.update(
            loaded.data_config, **(dict(label_names=loaded.label_names) if loaded.label_names else {}))
    return loaded.model


def check_name(name: str) -> None:
    """Refuse a name that is no model of timm or, after 'torchvision:', of torchvision.

    Raises:
        ValueError: There is no such model; the message gives the nearest name.
    """
    if is_source(name):
        return
    library, known = 'timm', timm.list_models()
    if name.startswith(TORCHVISION):
        import torchvision

        library, name = 'torchvision', name.removeprefix(TORCHVISION)
        known = torchvision.models.list_models(module=torchvision.models)
    if name not in known and not (library == 'timm' and timm.is_model(name)):  # is_model knows tags, too
        near = difflib.get_close_matches(name.split('.')[0], known, 1)
        raise ValueError(f'{library} knows no model {name}.' + (f' Did you mean {near[0]}?' if near else ''))


def _plain_model(
        name: str,
        settings: Dict[str, Any],
        found: Optional[Checkpoint],
        pretrained: bool,
        what: str,
) -> nn.Module:
    """Make a timm model or an ACoL model, with or without weights."""
    of_model = {k: v for k, v in (settings.get('model_kwargs') or {}).items() if not k.startswith('focus_')}
    with as_settings_error(f'The model {name} cannot be made'):
        arguments = model_arguments(name, {**settings, 'model_kwargs': of_model})
        plain = arguments.pop('model_name')
        if settings.get('method') == 'acol':
            model: nn.Module = create_acol(plain, **arguments)
        elif found is None:
            return timm.create_model(plain, pretrained=pretrained, **arguments)
    if found is None:
        return model
    with as_settings_error(f'{what} does not go'):
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
    """The data configuration of a model: from the settings, else the model's default."""
    names = ('crop_pct', 'crop_mode', 'interpolation', 'mean', 'std', 'input_size', 'img_size')
    with as_settings_error(f'{path} says of its images what cannot be done'):
        config = resolve_data_config({k: settings.get(k) for k in names}, model=model)
        if not is_input_size(config['input_size']):
            raise ValueError(f'an input_size {brief(config["input_size"])}, where {INPUT_SIZE} belongs')
        fit_channels(config, getattr(model, 'in_chans', config['input_size'][0]))
        create_transform(**config, is_training=False)
    return config


def _with_heads(model: nn.Module, found: Checkpoint, what: str) -> FocusNet:
    """Wrap a plain model in a `FocusNet`, with the heads and the focus settings of its checkpoint."""
    width = found.heads['cam_head'].get('conv.weight')
    kwargs = {k: found.settings[k] for k in FOCUS_ARGS if found.settings.get(k) is not None}
    with as_settings_error(f'The heads of {what} do not go'):
        focused = FocusNet(model, **{**kwargs, 'focus_width': None if width is None else len(width)})
        load_heads(focused, found.heads)
    return focused


def load_heads(model: FocusNet, heads: Mapping[str, State]) -> None:
    """Give a model the heads of a checkpoint.

    Raises:
        ValueError: The heads belong to another model, or to other `focus_*` arguments.
    """
    for name in HEADS:
        head = getattr(model, name)
        why = misfit({k: tuple(v.shape) for k, v in head.state_dict().items()}, heads[name])
        if why:
            raise ValueError(f'{name} is of another model: {why}')
        head.load_state_dict(heads[name])


def check_plain(loaded: Loaded) -> None:
    """Check that timm alone can load a model.

    Raises:
        ValueError: It is an ACoL model.
    """
    if loaded.checkpoint.get('settings', {}).get('method') == 'acol':
        raise ValueError(
            f'{loaded.name} classifies with a head of ACoL, which no timm model has: keep its checkpoint, which '
            'timm_focus.baselines.create_acol loads.')


def image_mode(loaded: Loaded) -> str:
    """Pillow's mode for a model's images: the requested one, or the run's, or else by the channels.

    Raises:
        ValueError: The images have neither one nor three channels, and no mode is given.
    """
    asked = loaded.input_img_mode or loaded.checkpoint.get('settings', {}).get('input_img_mode')
    return mode_of(loaded.data_config['input_size'][0], asked)


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
    if weights:  # with the published transform
        preset = weights.transforms()
        size = preset.crop_size[0]
        config = dict(interpolation=preset.interpolation.value, mean=tuple(preset.mean), std=tuple(preset.std),
                      crop_pct=size / preset.resize_size[0])
    if found:
        with as_settings_error(f'{found.path} into {name} does not go'):
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
