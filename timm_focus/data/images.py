"""Reads image files of every format and mode, and says which files are images."""
import errno
import logging
import os
import stat
import warnings
from typing import BinaryIO, FrozenSet, List, Optional, Union

from PIL import Image, ImageMode, ImageOps
from timm.data import get_img_extensions

from timm_focus.utils import shown
from timm_focus.utils.errors import sentence

__all__ = ['FORMATS', 'image_endings', 'image_formats', 'image_mode', 'open_regular', 'read_image']

_logger = logging.getLogger(__name__)

# Pillow tells a format by what is in a file, whatever its ending is. These it reads by itself, where it starts
# Ghostscript for EPS, draws WMF by Windows, and knows of HDF5, GRIB, BUFR and MPEG no more than their names. HEIF and
# JXL are of packages that add them to Pillow.
FORMATS = (
    'JPEG', 'PNG', 'WEBP', 'AVIF', 'GIF', 'BMP', 'TIFF', 'JPEG2000', 'HEIF', 'JXL', 'MPO', 'PPM', 'TGA', 'DIB', 'DDS',
    'ICO', 'ICNS', 'PCX', 'PSD', 'QOI', 'SGI', 'SUN', 'XBM', 'XPM')


def image_formats() -> List[str]:
    """Pillow's names of the formats that are read: those of `FORMATS` that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def image_endings() -> FrozenSet[str]:
    """Endings of image files, in lower case with the dot: of the formats that are read, and those added to timm's."""
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    return frozenset(endings | get_img_extensions(as_set=True))


def image_mode(channels: int, asked: Optional[str] = None) -> str:
    """Pillow's mode of images with this many channels: the one that is asked for, else L for 1 and RGB for 3.

    Raises:
        ValueError: It has another number of channels, Pillow has no such mode, or none is asked for where it must be.
    """
    if asked:
        try:
            n = len(ImageMode.getmode(asked).bands)
        except KeyError:
            raise ValueError(f'Pillow knows no image mode {asked}: give one such as RGB, L, RGBA or CMYK.') from None
        if n != channels:
            raise ValueError(f'The model takes images of {channels} channels, but mode {asked} has {n}.')
        return asked
    modes = {1: 'L', 3: 'RGB'}
    if channels not in modes:
        several = {2: 'LA', 4: 'RGBA or CMYK'}
        way = 'take a model of 1 to 4'
        if channels in several:
            way = (f'ask for a mode of {channels} channels, such as {several[channels]}, by --input-img-mode, or take '
                   'a model of 1 or 3 channels')
        raise ValueError(f'The model takes images of {channels} channels, where files give 1 (L) or 3 (RGB): {way}.')
    return modes[channels]


def open_regular(path: Union[str, os.PathLike]) -> BinaryIO:
    """Open a regular file for reading; others, such as a pipe, which would have to be waited for, are refused.

    Raises:
        OSError: It is none, or cannot be opened.
    """
    def opener(path: str, flags: int) -> int:
        descriptor = os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError('it is no regular file')
        return descriptor

    return open(path, 'rb', opener=opener)


def read_image(file: Union[str, os.PathLike, BinaryIO], mode: str = 'RGB', upright: bool = False) -> Image.Image:
    """Read an image: of an animation its first picture, of one with transparency its colours as if it had none.

    Args:
        file: Path, or a file open for reading.
        mode: Pillow mode to convert to. 16 bits of grey become 8 by scaling, where Pillow cuts off what is above 255.
        upright: Turn it as its EXIF orientation says. timm does not, in training and in evaluation.

    Raises:
        OSError: It is not there, is no image, is damaged or too large: a sentence that says which. What the system says
            has its `errno`; what the image says has none.
    """
    if isinstance(file, (str, os.PathLike)):
        with open_regular(file) as opened:
            return read_image(opened, mode, upright)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # said below, in words
            image = Image.open(file, formats=image_formats())
        with image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                name = shown(str(getattr(file, 'name', 'An image')))
                _logger.warning(f'{name} is read, though its {width:,} x {height:,} pixels are more than the '
                                f'{Image.MAX_IMAGE_PIXELS:,} that Pillow calls safe.')
            return _convert(ImageOps.exif_transpose(image) if upright else image, mode)
    except Image.DecompressionBombError as e:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise OSError(f'it has more than {most:,} pixels, which Pillow refuses: make it smaller') from e
    except Image.UnidentifiedImageError as e:
        raise OSError('it is no image of a format that is read') from e
    except OSError as e:
        if e.errno not in (None, errno.EINVAL):  # damaged files have readers look before their beginning
            raise
        raise OSError(f'it is damaged ({shown(sentence(e))})') from e
    except Exception as e:  # whatever damaged files make Pillow's many readers say
        raise OSError(f'it is damaged ({shown(sentence(e))})') from e


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == 'I' or image.mode.startswith('I;16'):  # of some formats, 16 bits come as 32
        image = image.convert('I').point(lambda value: value * (1 / 257)).convert('L')
    elif image.mode == 'P' and isinstance(image.info.get('transparency'), bytes):  # else Pillow warns
        image = image.convert('RGBA')
    return image.convert(mode)
