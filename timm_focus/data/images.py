"""An image file as the picture that it shows, whatever it keeps it as."""
import logging
import os
import warnings
from typing import BinaryIO, Union

from PIL import Image, ImageOps

__all__ = ['read_image']

_logger = logging.getLogger(__name__)


def read_image(file: Union[str, os.PathLike, BinaryIO], mode: str = 'RGB', upright: bool = False) -> Image.Image:
    """Read an image: of an animation its first picture, of one with transparency its colours as if it had none.

    Args:
        file: Path, or a file open for reading.
        mode: Pillow mode to convert to. 16 bits of grey become 8 by scaling, where Pillow cuts off what is above 255.
        upright: Turn it as its EXIF orientation says. timm does not, in training and in evaluation.

    Raises:
        OSError: It is not there, is no image, is damaged or too large: a sentence that says which.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # said below, in words
            image = Image.open(file)
        with image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                _logger.warning(
                    f'{getattr(file, "name", file)} is read, though its {width:,} x {height:,} pixels are more than '
                    f'the {Image.MAX_IMAGE_PIXELS:,} that Pillow calls safe.')
            return _convert(ImageOps.exif_transpose(image) if upright else image, mode)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Image.DecompressionBombError as e:
        most = 2 * Image.MAX_IMAGE_PIXELS
        raise OSError(f'it has more than {most:,} pixels, which Pillow refuses: make it smaller') from e
    except Image.UnidentifiedImageError as e:
        raise OSError('it is no image that Pillow knows') from e
    except Exception as e:  # whatever damaged files make Pillow's many readers say
        raise OSError(f'it is damaged ({" ".join(str(e).split()) or type(e).__name__})') from e


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == 'I' or image.mode.startswith('I;16'):  # of some formats, 16 bits come as 32
        image = image.convert('I').point(lambda value: value * (1 / 257)).convert('L')
    elif image.mode == 'P' and isinstance(image.info.get('transparency'), bytes):  # else Pillow warns
        image = image.convert('RGBA')
    return image.convert(mode)
