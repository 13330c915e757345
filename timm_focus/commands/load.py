"""Loads the models that a command line names."""
import argparse
import logging
from typing import List

import torch

from timm_focus.runs import Loaded, check_name, is_source, load_model, read_class_names
from timm_focus.utils.errors import sentence
from timm_focus.utils.memory_format import use_channels_last

__all__ = ['add_model_arguments', 'check_single', 'load_models', 'positive']

_logger = logging.getLogger(__name__)


def positive(text: str) -> int:
    """Parse a flag's whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is given, where 1 or more is allowed')
    return int(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name models, and that say how their images are prepared."""
    parser.add_argument('--model', action='append', default=[], metavar='NAME',
                        help='timm name, hf-hub:user/name, local-dir:FOLDER, or torchvision:NAME; once for each model')
    parser.add_argument('--checkpoint', action='append', default=[], metavar='PATH', help='weights of each --model: a '
                        'file, the folder of a run or of an export, or hf-hub:user/name; a run needs no --model')
    parser.add_argument('--pretrained', action='store_true', help="download timm's or torchvision's weights "
                        'instead of a checkpoint')
    parser.add_argument('--random-weights', action='store_true', help='use a --model that was never trained')
    parser.add_argument('--class-map', metavar='FILE', help='names of the classes, one a line (default: those in '
                        'the checkpoint, else those of ImageNet or Places365 if their number fits)')
    parser.add_argument('--input-img-mode', default='', metavar='MODE', help="Pillow's mode to read images in, such as "
                        'RGBA (default: that of the run, else RGB, or L with one channel)')
    parser.add_argument('--img-size', type=positive, metavar='N', help="height and width (default: the model's)")
    parser.add_argument('--device', default='', help='device (default: cuda if there is one, else cpu)')
    parser.add_argument('-b', '--batch-size', type=positive, default=64, help='images at a time (default: 64)')
    parser.add_argument('-j', '--workers', type=int, default=2, help='processes that load images (default: 2)')


def check_single(args: argparse.Namespace) -> None:
    """Check that at most one model is named.

    Raises:
        ValueError: Several are named.
    """
    if max(len(args.model), len(args.checkpoint)) > 1:
        raise ValueError(f'{args.command} takes one model: run it once for each, with an --output of its own.')


def load_models(args: argparse.Namespace, heads: bool = False, distinct: bool = True) -> List[Loaded]:
    """Load the models that the flags name, each under a name of its own, on their device.

    Raises:
        ValueError: No model is named, its weights would be random, or a flag makes no sense.
    """
    if not args.model and not args.checkpoint:
        raise ValueError('No model is named: give --model NAME, or the --checkpoint of a run.')
    if args.model and args.checkpoint and len(args.model) != len(args.checkpoint):
        raise ValueError(f'There are {len(args.model)} --model and {len(args.checkpoint)} --checkpoint: give one of '
                         'each for every model.')
    device = _device(args.device)
    if not args.checkpoint and not args.pretrained and not args.random_weights:
        for name in args.model:
            if not is_source(name):
                check_name(name)
                raise ValueError(f'{name} would have random weights: give its --checkpoint or --pretrained, or '
                                 '--random-weights if that is meant.')
    pairs = zip(args.model or [None] * len(args.checkpoint), args.checkpoint or [None] * len(args.model))
    loaded = [load_model(name, checkpoint, args.pretrained, args.img_size, heads) for name, checkpoint in pairs]
    if args.class_map:
        loaded = [_named(one, args.class_map) for one in loaded]
    loaded = [one._replace(input_img_mode=args.input_img_mode) for one in loaded]
    names = [one.name for one in loaded]
    for one in loaded:
        if distinct and names.count(one.name) > 1:
            raise ValueError(f'{one.name} is named twice: results go by these names.')
        one.model.to(device)
        why = use_channels_last(one.model, torch.zeros(1, *one.data_config['input_size'], device=device))
        if why:
            _logger.warning(f'{one.name} cannot be run with channels last, so it is run without, which may take '
                            f'longer: {why}')
    return loaded


def _device(name: str) -> torch.device:
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        return torch.zeros(1, device=name).device
    except (AssertionError, RuntimeError) as e:
        raise ValueError(f'--device is {name}, which cannot be used: {sentence(e, 200)}') from e


def _named(loaded: Loaded, class_map: str) -> Loaded:
    """Return the model with the names of its classes from a file."""
    names, n = read_class_names(class_map), getattr(loaded.model, 'num_classes', None)
    if n not in (None, len(names)):
        raise ValueError(f'--class-map {class_map} has {len(names)} names, but {loaded.name} knows {n} classes: give '
                         'a file with one name for each.')
    return loaded._replace(label_names=names)
