"""Decides when a run begins to train in a harder way: to erase images (`--focus-start`), or to crop them as the complex
scheme does (`--scheme auto`)."""
import logging
from typing import Any, Dict, Iterable, Optional, Union

__all__ = ['AUTO', 'KNOWN', 'RULE', 'Start', 'found', 'start']

_logger = logging.getLogger('train')

AUTO = 'auto'
KNOWN = 75  # percent of the training images
RULE = (f'the epoch after the first in which the main classifier knew {KNOWN} % of the training images (gave them '
        'their label, as they came augmented)')
WORDS = {'focus_start': ('--focus-start', 'erased'), 'complex_start': ('--scheme', 'cropped by the complex scheme')}


def start(text: str) -> Union[int, str]:
    """Parse the setting: an epoch, or 'auto'."""
    return AUTO if text == AUTO else int(text)


class Start:
    """The epoch from which a run trains in a harder way.

    'auto' uses the mean accuracy over the training images of all processes, which the log and summary.csv show as top1.
    It costs nothing, and is the same on every rank and after a resume.

    Args:
        name: Its name in checkpoints and in summary.csv, 'focus_start' or 'complex_start'.
        setting: The epoch, or 'auto'.
        found: The epoch that 'auto' had found before a resume, or None.

    Attributes:
        epoch: The epoch; None while it is not found.
    """

    def __init__(self, name: str, setting: Union[int, str], found: Optional[int] = None):
        self.name = name
        self.flag, self.harder = WORDS[name]
        self.is_auto = setting == AUTO
        self.epoch = found if self.is_auto else int(setting)

    def has_come(self, epoch: int) -> bool:
        """Return whether training is harder in an epoch."""
        return self.epoch is not None and epoch >= self.epoch

    def look(self, epoch: int, metrics: Dict[str, float]) -> None:
        """Decide from the numbers of a trained epoch whether the next one begins."""
        # sums of several processes may differ in their last digit after a resume
        if self.is_auto and self.epoch is None and metrics['top1'] >= KNOWN - 1e-3:
            self.epoch = epoch + 1
            _logger.info(f'Images are {self.harder} from epoch {self.epoch} on: in epoch {epoch} the main classifier '
                         f'knew {metrics["top1"]:.1f} % of the training images.')

    def conclusion(self, epochs: int) -> str:
        """Say in a sentence what 'auto' found in a run of so many epochs."""
        if self.has_come(epochs - 1):
            return f'{self.flag} auto: images were {self.harder} from epoch {self.epoch} on.'
        return (f'{self.flag} auto: no images were {self.harder}, as the main classifier did not know {KNOWN} % of the '
                'training images before the last epoch.')


def found(autos: Iterable[Start]) -> Dict[str, Any]:
    """Return the epoch that each has found, by its name; None while it is not found."""
    return {begins.name: begins.epoch for begins in autos}
