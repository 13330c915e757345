"""Flags of timm's train.py that this script refuses: their defaults are accepted, other values get an explanation."""
import argparse
from typing import Any, Dict, NamedTuple

from timm_focus.utils.errors import SettingsError

__all__ = ['REFUSED', 'add_refused', 'check_refused']


class Refused(NamedTuple):
    """A refused flag: arguments of `add_argument`, the reason, and a value that is accepted beside the default."""
    arguments: Dict[str, Any]
    reason: str
    harmless: Any = None


SEVERAL_LABELS = "focus training erases what one label relies on: with several an image, train by timm's own script."
NAFLEX = 'NaFlex loaders give patches of many shapes, and what is erased is a region of an image: leave it out.'
SWITCH = dict(action='store_true')

REFUSED = {
    'task': Refused(dict(default='classification', choices=('classification', 'multilabel')), SEVERAL_LABELS),
    'target_format': Refused({}, SEVERAL_LABELS),
    'multilabel_threshold': Refused(dict(type=float, default=0.5), SEVERAL_LABELS),
    'torchscript': Refused(SWITCH, 'torch has deprecated TorchScript: give --torchcompile.'),
    'fuser': Refused(dict(default='', choices=('', 'te', 'old', 'nvfuser')),
                     'it chooses how TorchScript fuses operations, which torch has deprecated: give --torchcompile.'),
    'tta': Refused(dict(type=int, default=0), 'it averages outputs of neighbouring images, and no data set here has an '
                   'image several times in a row: leave it out.', harmless=1),
    'naflex_loader': Refused(SWITCH, NAFLEX),
    'naflex_patchify_channels_first': Refused(SWITCH, NAFLEX),
    'naflex_train_seq_lens': Refused(dict(type=int, nargs='+', default=[128, 256, 576, 784, 1024]), NAFLEX),
    'naflex_max_seq_len': Refused(dict(type=int, default=576), NAFLEX),
    'naflex_patch_sizes': Refused(dict(type=int, nargs='+'), NAFLEX),
    'naflex_patch_size_probs': Refused(dict(type=float, nargs='+'), NAFLEX),
    'naflex_loss_scale': Refused(dict(default='linear', choices=('none', 'sqrt', 'linear')), NAFLEX),
}


def add_refused(parser: argparse.ArgumentParser) -> None:
    """Let a parser understand the refused flags; its help does not show them."""
    for name, refused in REFUSED.items():
        parser.add_argument(f'--{name.replace("_", "-")}', help=argparse.SUPPRESS, **refused.arguments)


def check_refused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that are not at their defaults.

    Raises:
        SettingsError: A flag is refused; the message says why.
    """
    for name, refused in REFUSED.items():
        if getattr(args, name) not in (parser.get_default(name), refused.harmless):
            raise SettingsError(f'--{name.replace("_", "-")} is not for this script: {refused.reason}')
