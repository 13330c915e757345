"""Models that a command line names."""
import argparse
from typing import List

from timm_focus.runs import Loaded, load_model

__all__ = ['add_model_arguments', 'load_models', 'positive']


def positive(text: str) -> int:
    """A flag's number from 1 on; what else is given is told."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is given, where 1 or more is allowed')
    return int(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which models, and how they are fed."""
    parser.add_argument('--model', action='append', default=[], metavar='NAME',
                        help='timm name, or torchvision:NAME; once for each model')
    parser.add_argument('--checkpoint', action='append', default=[], metavar='PATH', help='weights of each --model: a '
                        "file, or the folder of a run; a run's checkpoint needs no --model")
    parser.add_argument('--pretrained', action='store_true', help="download timm's or torchvision's weights, "
                        'without a checkpoint')
    parser.add_argument('--img-size', type=positive, metavar='N', help="height and width (default: the model's)")
    parser.add_argument('--device', default='', help='device (default: cuda if there is one, else cpu)')
    parser.add_argument('-b', '--batch-size', type=positive, default=64, help='images at a time (default: 64)')
    parser.add_argument('-j', '--workers', type=int, default=2, help='processes that load images (default: 2)')


def load_models(args: argparse.Namespace, heads: bool = False) -> List[Loaded]:
    """The models that the flags name, on their device; with heads, see `load_model`.

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
    loaded = [load_model(name, checkpoint, args.pretrained, args.img_size, heads) for name, checkpoint in pairs]
    names = [one.name for one in loaded]
    for one in loaded:
        if names.count(one.name) > 1:
            raise ValueError(f'{one.name} is named twice: results go by these names.')
        try:
            one.model.to(device, memory_format=torch.channels_last)
        except RuntimeError as e:
            raise ValueError(f'--device is {device}, which cannot be used: {e}') from e
    return loaded
