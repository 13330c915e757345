"""Reads image files of every format and mode, and defines which files are images."""
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

# Pillow recognises a format by the content, whatever the ending. It decodes these formats by itself. EPS is
# not among them, since Pillow starts Ghostscript for it, nor WMF, which only Windows draws, nor HDF5, GRIB, BUFR and
# MPEG, of which Pillow only knows the names. HEIF and JXL need packages that add them to Pillow.
FORMATS = (
    'JPEG', 'PNG', 'WEBP', 'AVIF', 'GIF', 'BMP', 'TIFF', 'JPEG2000', 'HEIF', 'JXL', 'MPO', 'PPM', 'TGA', 'DIB', 'DDS',
    'ICO', 'ICNS', 'PCX', 'PSD', 'QOI', 'SGI', 'SUN', 'XBM', 'XPM')


def image_formats() -> List[str]:
    """Names of the formats in `FORMATS` that this Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def image_endings() -> FrozenSet[str]:
    """Endings of image files, in lower case with the dot: of readable formats, and those added to timm's list."""
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    return frozenset(endings | get_img_extensions(as_set=True))


def image_mode(channels: int, asked: Optional[str] = None) -> str:
    """Pillow's mode for images with this many channels: `asked` if it is given, else L for 1 and RGB for 3.

    Raises:
        ValueError: Pillow has no such mode, it has another number of channels, or `asked` is missing where needed.
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
    """Open a regular file for reading. Anything else is refused, such as a pipe, on which reading could block.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """
    def opener(path: str, flags: int) -> int:
        descriptor = os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError('it is no regular file')
        return descriptor

    return open(path, 'rb', opener=opener)


def read_image(file: Union[str, os.PathLike, BinaryIO], mode: str = 'RGB', upright: bool = False) -> Image.Image:
    """Read an image: the first frame of an animation, and the colours of a transparent image without its alpha.

    Args:
        file: Path, or a file open for reading.
        mode: Pillow mode to convert to. 16-bit grey is scaled to 8 bits, where Pillow would clip at 255.
        upright: Turn the image by its EXIF orientation. timm does not, in training or evaluation.

    Raises:
        OSError: The file is missing, is no image, is damaged or too large: a sentence says which. An error of the
            system has its `errno`; an error of the image has none.
    """
    if isinstance(file, (str, os.PathLike)):
        with open_regular(file) as opened:
            return read_image(opened, mode, upright)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # logged below, in plain words
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
        if e.errno not in (None, errno.EINVAL):  # EINVAL: a damaged file makes readers seek before its start
            raise
        raise OSError(f'it is damaged ({shown(sentence(e))})') from e
    except Exception as e:  # damaged files make Pillow's many readers raise anything
        raise OSError(f'it is damaged ({shown(sentence(e))})') from e


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == 'I' or image.mode.startswith('I;16'):  # some formats give 16 bits as 32
        image = image.convert('I').point(lambda value: value * (1 / 257)).convert('L')
    elif image.mode == 'P' and isinstance(image.info.get('transparency'), bytes):  # else Pillow warns
        image = image.convert('RGBA')
    return image.convert(mode)
