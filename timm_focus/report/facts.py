"""What a run says of itself, without an image: settings, numbers of its epochs, costs."""
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
LARGEST = 1e100  # of a number that is drawn
METHODS = dict(none='classifier alone', focus='focus training', adl='ADL', acol='ACoL')
# where a run is and what it is called, which tells no method from another
OWN = (*IDENTITY, *PLACES, 'given', 'label_names')


class Run(NamedTuple):
    """A run, or a checkpoint from elsewhere.

    Attributes:
        name: What the page calls it.
        model: timm's name of its model.
        method: By what it was trained, in words, '' if it does not say.
        settings: Those that may be shown, {} if it has none.
        rows: Numbers of its epochs, by column of summary.csv.
        work: Passes of an image up to each of these, None if it does not say.
        epoch: Of the weights that count, None if they do not say.
        epochs: That it has trained, None if it does not say.
        planned: That it was to train.
        passes: Of an image through the network in its training, over all epochs, None if it does not say.
        images: In an epoch, None if it does not say.
        seconds: That it took, None if it does not say.
        parameters: Of the plain model.
        multiply_adds: Of one image at inference, None if they cannot be counted.
        input_size: Channels, height and width.
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
        """What runs share that differ in their seed alone; its name without settings."""
        same = {k: v for k, v in self.settings.items() if k not in (*OWN, 'seed')}
        return json.dumps(same, sort_keys=True, default=str) if same else f'name {self.name}'

    @property
    def plain(self) -> bool:
        """Whether it was trained by its classifier alone."""
        return self.method in ('', METHODS['none'])

    def best(self, column: str = 'eval_top1') -> Optional[float]:
        """What its own validation measured of the weights that count."""
        found = {row['epoch']: row.get(column, math.nan) for row in self.rows}
        value = found.get(self.epoch, math.nan) if self.epoch is not None else math.nan
        return value if math.isfinite(value) else None


def read_run(name: str, loaded: Loaded) -> Run:
    """What a run says of itself.

    Args:
        name: What to call it.
        loaded: Its model.
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
    """Settings that a run's args.yaml names, as they turned out, or all."""
    try:
        with open(os.path.join(home, 'args.yaml'), encoding='utf-8') as f:
            given = yaml.safe_load(f)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        given = None
    names = given if settings and isinstance(given, dict) else settings
    return {str(k): settings.get(k, names[k]) for k in names if k not in OWN}


def _rows(home: str) -> List[Dict[str, float]]:
    """Numbers of each epoch; what is none, as of an epoch that was not validated, or none to draw, is left out."""
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
    """Seconds and images, which train_focus.py notes in run.json."""
    try:
        with open(os.path.join(home, 'run.json'), encoding='utf-8') as f:
            found = json.load(f)
        return {k: found[k] for k in ('seconds', 'images')
                if isinstance(found.get(k), (int, float)) and not isinstance(found[k], bool) and found[k] > 0}
    except (OSError, ValueError, AttributeError):
        return {}


def _passes(settings: Dict[str, Any], rows: List[Dict[str, float]], epochs: Optional[int]) -> Optional[float]:
    """Passes of an image through the network in epochs of training: two a step while images are erased, or less."""
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
    """How many of the first epochs erased nothing; summary.csv says when `--focus-start auto` began."""
    if given == 'auto':
        given = next((row['focus_start'] for row in rows if 'focus_start' in row), epochs)
    return min(int(given or 0), epochs)


def _multiply_adds(model: Any, size: Tuple[int, int, int]) -> Optional[int]:
    try:
        return multiply_adds(model, size)
    except Exception:  # whatever a model says that does not run without numbers
        return None
