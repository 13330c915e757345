"""The base class of readers that give images by number."""
from typing import Any, Dict, Optional, Tuple

import numpy as np
from timm.data.readers.reader import Reader

__all__ = ['NumberedReader']


class NumberedReader(Reader):
    """A timm reader that gives images by number, and knows their classes without opening one.

    Attributes:
        root: Folder or archive of the images.
        targets: Class of each image, `[N]`; None if only the images tell.
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
        """Bytes of image i; -1 if it has no file of its own."""
        raise NotImplementedError
