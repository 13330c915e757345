"""`timm-focus rf`: receptive fields."""
import argparse
import math
from typing import Any

from .load import positive
from .table import add_format, write_table

__all__ = ['add_parser', 'receptive_field_columns']


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'rf', help='receptive field of models',
        description='Print the receptive field of models: which pixels of the image one position of a feature map can '
                    'see.',
        epilog='Columns, in pixels of the input: receptive_field is the number of pixels in a row that one position '
               'sees, stride the distance from one position to the next, and start the first pixel that position 0 '
               'sees, negative if it looks over the border. So position p sees receptive_field pixels from '
               'start + p * stride on. If a position sees the whole image (inf), through names '
               'the first module that makes it so, such as squeeze-and-excite or attention; --through-global gives '
               'the size without such modules. In models that pool by attention, such as resnet50_clip, the pool '
               'comes first (inf, through head); name a feature before it with --feature. Two numbers are for rows '
               'and columns.',
        examples=('timm-focus rf shufflenetv2_x1_5 resnet18 torchvision:vgg16',))
    parser.add_argument('models', nargs='+', metavar='MODEL', help='timm names, or torchvision:NAME')
    parser.add_argument('--feature', metavar='NAME', help="a submodule, or an index into timm's feature_info (default: "
                        'the last before the global pool)')
    parser.add_argument('--through-global', action='store_true', help='leave global operations out, such as '
                        'squeeze-and-excite and attention, instead of calling the field infinite')
    parser.add_argument('--img-size', type=positive, metavar='N', help='height and width of the image to trace on')
    add_format(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a line for each model."""
    from timm_focus.runs import load_model

    feature = int(args.feature) if args.feature and args.feature.isdigit() else args.feature
    rows = []
    for name in args.models:
        loaded = load_model(name)
        size = (loaded.data_config['input_size'][0], args.img_size, args.img_size) if args.img_size else None
        rows.append({'model': name, **receptive_field_columns(loaded.model, feature, args.through_global, size)})
    write_table(rows, args)


def receptive_field_columns(model: Any, feature: Any = None, through_global: bool = False, size: Any = None) -> dict:
    """Return size, stride and start of a receptive field, and the global operation that makes it infinite."""
    from timm_focus.receptive import receptive_field

    field = receptive_field(model, feature, through_global=through_global, input_size=size)
    return dict(
        receptive_field=_number(field.size), stride=_number(field.stride), start=_number(field.start),
        through=field.through if not through_global else None)


def _number(value: Any) -> Any:
    """Return a number for a table; for a pair of rows and columns, both."""
    if isinstance(value, tuple):
        return ' x '.join(str(_number(v)) for v in value)
    return value if math.isfinite(value) else str(value)
