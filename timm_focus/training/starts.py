"""Decides when a run begins to train in a harder way: to erase images (`--focus-start`), or to crop them as the complex
scheme does (`--scheme auto`)."""
import logging
from typing import Any, Dict, Iterable, Optional, Union

__all__ = ['AUTO', 'KNOWN', 'LATEST', 'RULE', 'Start', 'found', 'start']

_logger = logging.getLogger('train')

AUTO = 'auto'
KNOWN = 75  # percent of the training images
RULE = (f'the epoch after the first in which the main classifier knew {KNOWN} % of the training images (gave them '
        'their label, as they came augmented)')
LATEST = 'at least half of the epochs are left'
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
        latest: The last epoch that 'auto' may find, or None.

    Attributes:
        epoch: The epoch; None while it is not found.
    """

    def __init__(
            self,
            name: str,
            setting: Union[int, str],
            found: Optional[int] = None,
            latest: Optional[int] = None,
    ):
        self.name, self.latest = name, latest
        self.is_late = False
        self.flag, self.harder = WORDS[name]
        self.is_auto = setting == AUTO
        self.epoch = found if self.is_auto else int(setting)

    def has_come(self, epoch: int) -> bool:
        """Return whether training is harder in an epoch."""
        return self.epoch is not None and epoch >= self.epoch

    def look(self, epoch: int, metrics: Dict[str, float]) -> None:
        """Decide from the numbers of a trained epoch whether the next one begins."""
        if not self.is_auto or self.epoch is not None or self.is_late:
            return
        if metrics['top1'] < KNOWN - 1e-3:  # sums of several processes may differ in their last digit after a resume
            return
        knew = f'in epoch {epoch} the main classifier knew {metrics["top1"]:.1f} % of the training images'
        self.is_late = self.latest is not None and epoch >= self.latest
        if self.is_late:
            _logger.info(f'No images are {self.harder}: {knew}, and by then fewer than half of the epochs are left.')
        else:
            self.epoch = epoch + 1
            _logger.info(f'Images are {self.harder} from epoch {self.epoch} on: {knew}.')

    def conclusion(self, epochs: int) -> str:
        """Say in a sentence what 'auto' found in a run of so many epochs."""
        if self.has_come(epochs - 1):
            return f'{self.flag} auto: images were {self.harder} from epoch {self.epoch} on.'
        by_when = 'before the last epoch' if self.latest is None else f'while {LATEST.replace("are", "were")}'
        return (f'{self.flag} auto: no images were {self.harder}, as the main classifier did not know {KNOWN} % of the '
                f'training images {by_when}.')


def found(autos: Iterable[Start]) -> Dict[str, Any]:
    """Return the epoch that each has found, by its name; None while it is not found."""
    return {begins.name: begins.epoch for begins in autos}
