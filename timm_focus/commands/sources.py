"""Finds the images that a command line names, names the files made of each, and places a network's input in it."""
import argparse
import math
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from timm_focus.utils import shown

from .data import open_data

__all__ = ['Placement', 'Source', 'SourceImages', 'file_source', 'find_images', 'find_sources', 'place']

LONGEST_STEM = 200  # bytes; file systems allow 255 with the ending


class Source(NamedTuple):
    """An image, and the names of the files that are made of it.

    Attributes:
        path: Path of its file, or a name for an image that is no file of its own.
        base: Path of files made of it, from the output folder, without the ending.
        name: Its path from the folder that was given, or the name of its file.
        label: Name of its class, which is that of its folder, if it is in a data set.
        dataset: The set of images that it belongs to, None for a single file.
        number: Its number in that set.
    """
    path: str
    base: str
    name: str
    label: str
    dataset: Optional[Any] = None
    number: int = 0

    def read(self, mode: str, upright: bool = True) -> Any:
        """Read the image in a mode of Pillow, turned as its EXIF orientation says, or as it is in the file.

        Raises:
            OSError: It cannot be read.
        """
        from timm_focus.data import read_image

        if self.dataset is None:
            return read_image(self.path, mode, upright)
        self.dataset.input_img_mode = mode
        return self.dataset.read(self.number, upright)[0]


class Placement(NamedTuple):
    """Position of the input of a network in its image: x = x0 + x_scale * (x of the input), and y likewise."""
    x0: float = 0.
    y0: float = 0.
    x_scale: float = 1.
    y_scale: float = 1.

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Tuple[float, float, float, float]:
        """Return a box of the input in pixels of the image."""
        return (self.x0 + self.x_scale * x0, self.y0 + self.y_scale * y0,
                self.x0 + self.x_scale * x1, self.y0 + self.y_scale * y1)


def find_images(args: argparse.Namespace, paths: Sequence[str], apart: str = '') -> List[Source]:
    """Find the images of files, folders and data sets, in order.

    Names mirror the paths from the given folder. If several folders are given, names begin with the folder's name.

    Args:
        args: Arguments with the flags of `add_data_arguments`.
        paths: Image files, and folders and archives as `open_data` takes them.
        apart: Folder to skip.

    Raises:
        ValueError: Something is not there.
    """
    from timm_focus.data.readers import label_names

    found: List[Source] = []
    prefixes: Set[str] = set()
    for path in paths or ['']:
        is_image = os.path.isfile(path) and not path.endswith('.tar')
        if args.dataset and is_image:
            raise ValueError(f'--dataset is of folders and archives, and {path} is a file: leave one of them out.')
        if args.dataset or not path or os.path.isdir(path) or path.endswith('.tar'):
            dataset = open_data(args, [path] if path else [], apart=apart)[0].dataset
            prefix = ''
            if len(paths) > 1:
                prefix = _unused(os.path.basename(os.path.realpath(path)) or 'images', lambda p: p.lower() in prefixes)
                prefixes.add(prefix.lower())
            names, targets = label_names(dataset.reader), dataset.reader.targets
            for i in range(len(dataset)):
                relative, full = dataset.filename(i), dataset.filename(i, absolute=True)
                if path and os.path.isabs(full) and not os.path.isabs(path):  # the path as it was given
                    full = os.path.normpath(os.path.join(path, os.path.relpath(full, os.path.abspath(path))))
                labelled = len(names) > 1 and targets is not None
                label = names[targets[i]] if labelled else _folder_name(full)
                name = os.path.join(prefix, relative)
                found.append(Source(full, name, name, label, dataset, i))
        elif os.path.exists(path):
            found.append(file_source(path))
        else:
            raise ValueError(f'There is no file or folder {path}.')
    return found


def file_source(path: str) -> Source:
    """Return the source of a single image file."""
    return Source(path, os.path.basename(path), os.path.basename(path), _folder_name(path))


def find_sources(
        args: argparse.Namespace,
        paths: Sequence[str],
        output: str,
        endings: Sequence[str],
        reserved: Sequence[str],
) -> List[Source]:
    """Find the images of files, folders and data sets, and give each a name of its own below the output folder.

    Images that would have the same name (`1.jpg` and `1.png`) are numbered.

    Args:
        args, paths: See `find_images`.
        output: Folder of the files that are made; images in it are skipped.
        endings: Endings of the files that are made of each image.
        reserved: Names of other files that are made there.

    Raises:
        ValueError: Something is not there, or a file would be made among the images, or outside of the output folder.
    """
    found = find_images(args, paths, output)
    for source in found:  # archives and data sets of others may use any name
        if os.path.isabs(source.name) or os.pardir in source.name.split(os.sep):
            raise ValueError(f'The image {shown(source.path)} is called {shown(source.name)}, so that what is made of '
                             f'it would lie outside of --output {output}: give it another name.')
    folders = {os.path.dirname(source.name) for source in found}
    inputs = {os.path.realpath(folder): folder for folder in {os.path.dirname(source.path) for source in found}}
    for folder in folders:
        made_in = os.path.realpath(os.path.join(output, folder))
        if made_in in inputs:
            raise ValueError(f'--output {output} would write among the images in {inputs[made_in] or "."}: give '
                             'another folder.')
    taken = {name.lower() for name in reserved}  # for some file systems A.png is a.png
    for folder in folders:
        while folder:
            taken.add(folder.lower())
            folder = os.path.dirname(folder)
    sources = []
    for source in found:
        folder, name = os.path.split(source.name)
        stem = os.fsdecode(os.fsencode(os.path.splitext(name)[0])[:LONGEST_STEM])
        base = _unused(os.path.join(folder, stem), lambda b: any((b + e).lower() in taken for e in endings))
        taken.update((base + e).lower() for e in endings)
        sources.append(source._replace(base=base))
    return sources


def _folder_name(path: str) -> str:
    return os.path.basename(os.path.dirname(os.path.abspath(path)))


def _unused(name: str, is_used: Any) -> str:
    """Return the name, with a number if it is used already."""
    tried, n = name, 1
    while is_used(tried):
        n += 1
        tried = f'{name}-{n}'
    return tried


class SourceImages:
    """A data set of images as dicts: `i`, `x`, `placement`, `size` and `whole`, a smaller copy; or `i` and `why` not.

    Images are shown and measured upright, as their EXIF orientation says.

    Args:
        sources: The images.
        transform: timm's evaluation transform.
        mode: Pillow's mode of the model's images.
        longest: Length of the longer side of the copies in pixels.
    """

    def __init__(self, sources: Sequence[Source], transform: Any, mode: str, longest: int):
        self.sources, self.transform, self.mode, self.longest = sources, transform, mode, longest

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: int) -> Dict[str, Any]:
        import numpy as np

        try:
            image = self.sources[i].read(self.mode)
            x, placement = place(image, self.transform)
        except OSError as e:
            return dict(i=i, why=e.strerror or str(e))
        size = image.size
        image.thumbnail((self.longest, self.longest))
        return dict(i=i, x=x, placement=placement, size=size, whole=np.array(image))


def place(image: Any, transform: Any) -> Tuple[Any, Placement]:
    """Transform an image by timm's evaluation transform; return the result, and its placement in the image.

    Raises:
        OSError: The image is so narrow that enlarging it to the network's input would fill the memory.
    """
    from PIL import Image
    from timm.data.transforms import CenterCropOrPad
    from torchvision.transforms import CenterCrop

    at, most = Placement(), Image.MAX_IMAGE_PIXELS or math.inf
    narrow = max(image.size) / min(image.size)
    for step in transform.transforms:
        if not isinstance(image, Image.Image):
            image = step(image)
            continue
        width, height = image.size
        if narrow * _shortest(step) ** 2 > most:
            raise OSError(f'with {width:,} x {height:,} pixels it is too narrow to be enlarged')
        image = step(image)
        if not isinstance(image, Image.Image):
            continue
        if isinstance(step, (CenterCrop, CenterCropOrPad)):  # both pad, then crop, and round in the same way
            x, y = (round((old - new) / 2) if old > new else -((new - old) // 2)
                    for old, new in ((width, image.width), (height, image.height)))
            at = at._replace(x0=at.x0 + at.x_scale * x, y0=at.y0 + at.y_scale * y)
        else:
            at = at._replace(x_scale=at.x_scale * width / image.width, y_scale=at.y_scale * height / image.height)
    return image, at


def _shortest(step: Any) -> int:
    """Return the length to which a step of the transform may bring the short side of an image."""
    size = getattr(step, 'size', 0)
    return max(size) if isinstance(size, (tuple, list)) else size
