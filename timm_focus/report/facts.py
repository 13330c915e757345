"""Reads what a run records about itself, without looking at images: settings, the numbers of its epochs, costs."""
import json
import math
import os
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import yaml

from timm_focus.analysis import multiply_adds, plain_model
from timm_focus.method import FocusLoss
from timm_focus.release import published_settings
from timm_focus.runs import Loaded, read_summary
from timm_focus.runs.kinds import IDENTITY, PLACES
from timm_focus.utils.text import one_line

__all__ = ['Run', 'read_run']

LOSS = ('alpha', 'beta', 'side_weight', 'consistency', 'kl_direction', 'kl_detach')
LARGEST = 1e100  # numbers from here on are not drawn
METHODS = dict(none='classifier alone', focus='focus training', adl='ADL', acol='ACoL', masksub='MaskSub')
# settings that say where a run is and what it is called, which are no part of its method
OWN = (*IDENTITY, *PLACES, 'given', 'label_names')


class Run(NamedTuple):
    """A run, or a checkpoint from elsewhere. What is not recorded is None, '' or {}.

    Attributes:
        name: Name of the run in the page.
        model: timm's name of its model.
        method: Training method in words, '' if it is not recorded.
        settings: The settings that may be published, {} if none are recorded.
        rows: The numbers of each epoch that summary.csv has, by column.
        work: For each row, how many passes each image had made through the network by the end of that epoch.
        epoch: Number of the epoch (from 0) after which the evaluated weights were saved.
        epochs: Number of epochs that the run has trained.
        planned: Number of epochs that the run was meant to train.
        passes: Passes of each image through the network in training, over all epochs. An epoch with a second pass
            counts as up to two.
        images: Number of training images in an epoch.
        seconds: Duration of training in seconds.
        parameters: Number of parameters of the plain model.
        multiply_adds: Multiply-adds of the plain model for one image, None if they cannot be counted.
        input_size: Channels, height and width of an image.
    """
    name: str
    model: str
    method: str
    settings: Dict[str, Any]
    rows: List[Dict[str, float]]
    work: List[Optional[float]]
    epoch: Optional[int]
    epochs: Optional[int]
    planned: Optional[int]
    passes: Optional[float]
    images: Optional[int]
    seconds: Optional[float]
    parameters: int
    multiply_adds: Optional[int]
    input_size: Tuple[int, int, int]

    @property
    def key(self) -> str:
        """The same text for runs that differ in their seed alone. A run without settings has a key of its own."""
        same = {k: v for k, v in self.settings.items() if k not in (*OWN, 'seed')}
        return json.dumps(same, sort_keys=True, default=str) if same else f'name {self.name}'

    @property
    def plain(self) -> bool:
        """Whether it was trained by its classifier alone, as far as is recorded."""
        return self.method in ('', METHODS['none'])

    def best(self, column: str = 'eval_top1') -> Optional[float]:
        """The number in a column of summary.csv for the epoch of the evaluated weights, None if there is none."""
        found = {row['epoch']: row.get(column, math.nan) for row in self.rows}
        value = found.get(self.epoch, math.nan) if self.epoch is not None else math.nan
        return value if math.isfinite(value) else None


def read_run(name: str, loaded: Loaded) -> Run:
    """Read what a run records about itself, from its checkpoint and the files beside that.

    Args:
        name: Name of the run in the page.
        loaded: Its model, as `load_model` returns it.
    """
    about, model = loaded.checkpoint, plain_model(loaded.model)
    settings, home = about.get('settings') or {}, os.path.dirname(about.get('path') or '')
    rows = _rows(home) if settings else []
    epochs = int(rows[-1]['epoch']) + 1 if rows else None if about.get('epoch') is None else about['epoch'] + 1
    noted = _noted(home) if settings else {}
    size = tuple(loaded.data_config['input_size'])
    planned = settings.get('epochs')
    return Run(
        name, _architecture(loaded), _method(settings), published_settings(_named(settings, home)), rows,
        [_passes(settings, rows, int(row['epoch']) + 1) for row in rows], about.get('epoch'), epochs,
        planned if isinstance(planned, int) else None, _passes(settings, rows, epochs), noted.get('images'),
        noted.get('seconds'), sum(p.numel() for p in model.parameters()), _multiply_adds(model, size), size)


def _architecture(loaded: Loaded) -> str:
    cfg = getattr(plain_model(loaded.model), 'pretrained_cfg', None) or {}
    return one_line(cfg.get('architecture') or loaded.name.partition('@')[0])


def _method(settings: Dict[str, Any]) -> str:
    if not settings:
        return ''
    method = settings.get('method') or ('focus' if str(settings.get('model')).startswith('focus_') else 'none')
    words = METHODS.get(method, one_line(method))
    return f'{words}, Hide-and-Seek' if settings.get('has') else words


def _named(settings: Dict[str, Any], home: str) -> Dict[str, Any]:
    """Return the settings that the run's args.yaml names, with their final values; all settings if there is none."""
    try:
        with open(os.path.join(home, 'args.yaml'), encoding='utf-8') as f:
            given = yaml.safe_load(f)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        given = None
    names = given if settings and isinstance(given, dict) else settings
    return {str(k): settings.get(k, names[k]) for k in names if k not in OWN}


def _rows(home: str) -> List[Dict[str, float]]:
    """Return the numbers of each epoch. Cells without a number that can be drawn are left out."""
    rows = [{one_line(name): _number(text) for name, text in row.items()}
            for row in read_summary(os.path.join(home, 'summary.csv'))]
    found = [{name: value for name, value in row.items() if abs(value) < LARGEST} for row in rows]
    return [row for row in found if 'epoch' in row]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _noted(home: str) -> Dict[str, Any]:
    """Return `seconds` and `images`, as far as train_focus.py has noted them in run.json."""
    try:
        with open(os.path.join(home, 'run.json'), encoding='utf-8') as f:
            found = json.load(f)
        return {k: found[k] for k in ('seconds', 'images')
                if isinstance(found.get(k), (int, float)) and not isinstance(found[k], bool) and found[k] > 0}
    except (OSError, ValueError, AttributeError):
        return {}


def _passes(settings: Dict[str, Any], rows: List[Dict[str, float]], epochs: Optional[int]) -> Optional[float]:
    """Return how many passes each image makes through the network in the first `epochs` epochs.

    There is one pass an epoch, and a second one, of all images or of a part, in epochs that erase.
    """
    if not settings or epochs is None:
        return None
    more, first = 0., 0
    if _method(settings).startswith(METHODS['focus']):
        kwargs = {k: settings[f'focus_{k}'] for k in LOSS if settings.get(f'focus_{k}') is not None}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                erases = FocusLoss(**kwargs).uses_erased
            more = float(settings.get('focus_fraction') or 1.) if erases else 0.
            first = _start(settings.get('focus_start'), rows, epochs)
        except (TypeError, ValueError):  # settings of a checkpoint that somebody else made
            return None
    splits = settings.get('aug_splits')
    return (epochs + more * (epochs - first)) * (splits if isinstance(splits, int) and splits > 1 else 1)


def _start(given: Any, rows: List[Dict[str, float]], epochs: int) -> int:
    """Return how many of the first epochs erase nothing; for `--focus-start auto`, summary.csv says it."""
    if given == 'auto':
        given = next((row['focus_start'] for row in rows if 'focus_start' in row), epochs)
    return min(int(given or 0), epochs)


def _multiply_adds(model: Any, size: Tuple[int, int, int]) -> Optional[int]:
    try:
        return multiply_adds(model, size)
    except Exception:  # a model that cannot run on the meta device may raise anything
        return None
