"""`timm-focus models`: cost and receptive field of models, and the feature that a CAM head taps."""
import argparse
import fnmatch
import os
import sys
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from timm_focus.utils.errors import sentence
from timm_focus.utils.processes import shield_workers

from .load import positive
from .rf import receptive_field_columns
from .table import add_format, write_rows

__all__ = ['add_parser', 'describe_model']

# columns and their widths, negative for text; the width of names depends on the names
WIDTHS = dict(
    parameters=13, multiply_adds=17, input=-11, receptive_field=15, channels=8, height=6, width=5, feature=-32,
    through=-32)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'models', help='parameters, multiply-adds, receptive field and tapped feature of models',
        description='List the timm models that can be trained with a focus_ before their name. Parameters and '
                    'multiply-adds are those of the plain model: its heads exist only in training. Nothing is '
                    'computed or downloaded: the models have no weights here.',
        epilog='Columns: receptive_field is that of the last feature before the global pool, in pixels of the input; '
               'if it is infinite, through names the module that makes it so (head, if the model pools by attention). '
               'feature, channels, height and width are those of the feature that the CAM head taps.',
        examples=("timm-focus models 'resnet*' --img-size 224 --format csv",))
    parser.add_argument('pattern', nargs='?', default='*', metavar='PATTERN', help="names, as in timm.list_models: "
                        "'resnet*' (default: all, which takes minutes)")
    parser.add_argument('--img-size', type=positive, metavar='N', help="height and width (default: the model's)")
    parser.add_argument('--num-classes', type=positive, default=365, metavar='N',
                        help='number of classes (default: 365, those of Places365)')
    parser.add_argument('-j', '--workers', type=int, default=_cores(), metavar='N',
                        help='number of processes (default: one for each core, at most 8)')
    add_format(parser)
    parser.set_defaults(run=run)


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)


def run(args: argparse.Namespace) -> None:
    """Print a line for each model as soon as it is made."""
    import timm

    focused = [name.removeprefix('focus_') for name in timm.list_models('focus_*')]
    names = [name for name in focused if fnmatch.fnmatch(name, args.pattern)]
    if not names:
        raise ValueError(f'No model is called {args.pattern}: timm.list_models() names them, * stands for anything.')
    widths = dict(model=-max(map(len, names)), **WIDTHS)
    if not write_rows(_describe(names, args), args, widths):
        raise ValueError('None of the models could be described.')


def _describe(names: List[str], args: argparse.Namespace) -> Iterator[Dict[str, Any]]:
    """Yield a row for each model that can be described; name the others on standard error."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    workers = min(args.workers, len(names) // 8)  # for a few models, starting processes would take longer than the work
    dataset: Any = _Rows(names, args.num_classes, args.img_size)  # it needs no torch at import
    rows = shield_workers(DataLoader(dataset, batch_size=None, num_workers=workers))
    with tqdm(rows, unit='model', disable=None) as bar:
        for name, row, why in bar:
            if row is None:
                bar.write(f'{name} is left out: {why}', file=sys.stderr)
                continue
            with bar.external_write_mode():
                yield row


class _Rows:
    """A data set of models, so that worker processes make the rows: (name, row, None), or (name, None, why not)."""

    def __init__(self, names: List[str], num_classes: int, img_size: Optional[int]):
        self.names, self.num_classes, self.img_size = names, num_classes, img_size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tuple[str, Optional[Dict[str, Any]], Optional[str]]:
        name = self.names[i]
        try:
            return name, describe_model(name, self.num_classes, self.img_size), None
        except Exception as e:  # one model must not keep the others from being listed
            return name, None, f'{type(e).__name__}: {sentence(e, 200)}'


def describe_model(name: str, num_classes: int, img_size: Optional[int] = None) -> Dict[str, Any]:
    """Make a row of the list, from a model without weights."""
    import timm
    import torch
    from timm.data import resolve_data_config

    from timm_focus.analysis import multiply_adds
    from timm_focus.method import default_stage

    kwargs = timm.models.resolve_model_input_args(name, dict(img_size=img_size), num_classes=num_classes)
    with torch.device('meta'):
        model = timm.create_model(**kwargs).eval()
    size = resolve_data_config(dict(img_size=img_size), model=model)['input_size']
    info: Any = getattr(model.feature_info, 'info', model.feature_info)
    stage = default_stage(info)
    try:
        with torch.no_grad():
            tap, = model.forward_intermediates(
                torch.zeros(1, *size, device='meta'), indices=[stage], norm=False, output_fmt='NCHW',
                intermediates_only=True, stop_early=True)
        channels, height, width = tap.shape[1:]
    except RuntimeError:  # one that reads its grid off its positions, which are no numbers here (Gemma4Vit)
        told = info[stage]
        channels, height, width = told['num_chs'], *(side // told['reduction'] for side in size[1:])
    field = _receptive_field(model, size)
    return dict(
        model=name, parameters=sum(p.numel() for p in model.parameters()), multiply_adds=multiply_adds(model, size),
        input='x'.join(map(str, size)), receptive_field=field['receptive_field'], channels=channels,
        height=height, width=width, feature=info[stage]['module'], through=field['through'])


def _receptive_field(model: Any, size: Sequence[int]) -> Dict[str, Any]:
    """Trace a model's receptive field on images of a size; where it is too small to tell, on larger ones."""
    for input_size in (size, None):
        try:
            return receptive_field_columns(model, size=input_size)
        except ValueError:  # the image is too small to tell, or there is no sliding window
            pass
    return dict(receptive_field=None, through=None)
