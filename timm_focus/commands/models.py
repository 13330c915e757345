"""`timm-focus models`: what models cost and see, and what a CAM head taps."""
import argparse
import fnmatch
import sys
from typing import Any, Dict

from .rf import receptive_field_columns
from .load import positive
from .table import add_format, write_table

__all__ = ['add_parser']


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'models', help='parameters, multiply-adds, receptive field and tapped feature of models',
        description='List the timm models that can be trained with a focus_ before their name. Parameters and '
                    'multiply-adds are those of the plain model: its heads exist only in training.')
    parser.add_argument('pattern', nargs='?', default='*', metavar='PATTERN', help="names, as in timm.list_models: "
                        "'resnet*' (default: all, which takes an hour)")
    parser.add_argument('--img-size', type=positive, metavar='N', help="height and width (default: the model's)")
    parser.add_argument('--num-classes', type=positive, default=365, metavar='N', help='classes (default: 365, Places365)')
    add_format(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a line for each model."""
    import timm

    focused = [name.removeprefix('focus_') for name in timm.list_models('focus_*')]
    names = [name for name in focused if fnmatch.fnmatch(name, args.pattern)]
    if not names:
        raise ValueError(f'No model is called {args.pattern}: timm.list_models() names them, * stands for anything.')
    rows = []
    for name in names:
        try:
            rows.append(describe_model(name, args.num_classes, args.img_size))
        except Exception as e:  # of one among many: the others are listed
            print(f'{name} is left out: {type(e).__name__}: {" ".join(str(e).split())[:200]}', file=sys.stderr)
    if not rows:
        raise ValueError('None of the models could be described.')
    write_table(rows, args)


def describe_model(name: str, num_classes: int, img_size: Any = None) -> Dict[str, Any]:
    """A row of the list."""
    import timm
    import torch
    from timm.data import resolve_data_config

    from timm_focus.analysis import multiply_adds
    from timm_focus.method import default_stage

    kwargs = timm.models.resolve_model_input_args(name, dict(img_size=img_size), num_classes=num_classes)
    model = timm.create_model(**kwargs).eval()
    size = resolve_data_config(dict(img_size=img_size), model=model)['input_size']
    info = getattr(model.feature_info, 'info', model.feature_info)
    stage = default_stage(info)
    with torch.inference_mode():
        tap, = model.forward_intermediates(
            torch.zeros(1, *size), indices=[stage], norm=False, stop_early=False, output_fmt='NCHW',
            intermediates_only=True)
    try:
        field = receptive_field_columns(model)
    except ValueError:  # not a sliding window
        field = dict(receptive_field=None, through=None)
    return dict(
        model=name, parameters=sum(p.numel() for p in model.parameters()), multiply_adds=multiply_adds(model, size),
        input='x'.join(map(str, size)), receptive_field=field['receptive_field'], through=field['through'],
        feature=info[stage]['module'], channels=tap.shape[1], height=tap.shape[2], width=tap.shape[3])
