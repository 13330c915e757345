"""Decides when a focus run begins to erase images: `--focus-start`, an epoch or 'auto'."""
import logging
from typing import Dict, Optional, Union

__all__ = ['AUTO', 'KNOWN', 'RULE', 'FocusStart', 'start']

_logger = logging.getLogger('train')

AUTO = 'auto'
KNOWN = 75  # percent of the training images
RULE = (f'the epoch after the first in which the main classifier knew {KNOWN} % of the training images (gave them '
        'their label, as they came augmented), and until then plain training')


def start(text: str) -> Union[int, str]:
    """Parse the setting: an epoch, or 'auto'."""
    return AUTO if text == AUTO else int(text)


class FocusStart:
    """The epoch from which images are erased.

    'auto' uses the mean accuracy over the training images of all processes, which the log and summary.csv show as top1.
    It costs nothing, and is the same on every rank and after a resume.

    Args:
        setting: The epoch, or 'auto'.
        found: The epoch that 'auto' had found before a resume, or None.

    Attributes:
        epoch: The epoch; None while it is not found.
    """

    def __init__(self, setting: Union[int, str], found: Optional[int] = None):
        self.is_auto = setting == AUTO
        self.epoch = found if self.is_auto else int(setting)

    def has_come(self, epoch: int) -> bool:
        """Return whether images are erased in an epoch."""
        return self.epoch is not None and epoch >= self.epoch

    def look(self, epoch: int, metrics: Dict[str, float]) -> None:
        """Decide from the numbers of a trained epoch whether the next one begins to erase."""
        # sums of several processes may differ in their last digit after a resume
        if self.is_auto and self.epoch is None and metrics['top1'] >= KNOWN - 1e-3:
            self.epoch = epoch + 1
            _logger.info(f'Images are erased from epoch {self.epoch} on: in epoch {epoch} the main classifier knew '
                         f'{metrics["top1"]:.1f} % of the training images.')

    def conclusion(self, epochs: int) -> str:
        """Say in a sentence what 'auto' found in a run of so many epochs."""
        if self.has_come(epochs - 1):
            return f'--focus-start auto: images were erased from epoch {self.epoch} on.'
        return (f'--focus-start auto: no images were erased, as the main classifier did not know {KNOWN} % of the '
                'training images before the last epoch.')
