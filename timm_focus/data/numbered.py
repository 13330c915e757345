"""What the readers of images by number have in common."""
from typing import Any, Dict, Optional, Tuple

import numpy as np
from timm.data.readers.reader import Reader

__all__ = ['NumberedReader']


class NumberedReader(Reader):
    """A reader of timm's that gives images by number, and tells their classes without opening one.

    Attributes:
        root: Where the images are.
        targets: Their classes, `[N]`; None where nothing but the images tells.
        class_to_idx: Names and numbers of the classes.
    """
    root: str
    targets: Optional[np.ndarray]
    class_to_idx: Dict[str, int]

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        """Image i, as an open file or a Pillow image, and its class."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def size(self, i: int) -> int:
        """Bytes of image i, -1 where it has no file of its own."""
        raise NotImplementedError
