"""Opens the images that a command line names, in every layout that training reads."""
import argparse
import os
from typing import Any, List, NamedTuple, Sequence

from timm_focus.utils import shown

__all__ = ['Opened', 'add_data_arguments', 'open_data']


class Opened(NamedTuple):
    """A set of images.

    Attributes:
        name: Its name in results.
        place: Its path or address, by which results recognise it.
        dataset: A `SceneDataset`.
    """
    name: str
    place: str
    dataset: Any


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that describe the images, named as in training, and --split as in timm's validate.py."""
    group = parser.add_argument_group('data')
    group.add_argument('--dataset', default='', metavar='NAME', help="hfds/NAME_OR_FOLDER (Hugging Face's, parquet "
                       'files, save_to_disk), wds/NAME, torch/NAME, places365 or folder, as in training (default: what '
                       'a folder or a tar file holds)')
    group.add_argument('--split', default='', help="split, such as train or 'train[80%%:]' (default: validation; all "
                       'images of a folder without splits)')
    group.add_argument('--input-key', metavar='KEY', help='key of the images in hfds/ (default: the only column of '
                       'images)')
    group.add_argument('--target-key', metavar='KEY', help='key of the classes in hfds/ and wds/ (default: the only '
                       'column of classes)')
    group.add_argument('--dataset-download', action='store_true', help='let a torch/ data set download')
    group.add_argument('--dataset-trust-remote-code', action='store_true', help='let a hfds/ data set run its own code')


def open_data(
        args: argparse.Namespace,
        paths: Sequence[str],
        apart: str = '',
        labelled: bool = False,
) -> List[Opened]:
    """Open the images that a command line names.

    Args:
        args: Arguments with the flags of `add_data_arguments`.
        paths: Folders and tar files that are named; with `--dataset` there may be none.
        apart: A folder to skip: the one that the command writes into.
        labelled: Whether images need classes.

    Raises:
        ValueError: No data is named, two sets have the same name, or there are no such images.
        OSError: Something cannot be read.
        ImportError: A library is not installed.
    """
    from timm_focus.data import open_images

    if not paths and not args.dataset:
        raise ValueError('No images are named: give a folder, a tar file or --dataset.')
    kind, _, rest = args.dataset.partition('/')
    found: List[Opened] = []
    for path in paths or ['']:
        # what hfds/ is given beside its name is where it keeps what it downloads
        source = rest if rest and (kind.lower() == 'hfds' or not path) else path
        dataset = open_images(
            path, args.dataset, args.split, apart or None, labelled, input_key=args.input_key,
            target_key=args.target_key, download=args.dataset_download,
            trust_remote_code=args.dataset_trust_remote_code)
        found.append(Opened(os.path.basename(os.path.abspath(source)), _place(source), dataset))
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'Two of the folders are called {shown(name)}, by which results go: give links of other '
                             'names.')
    return found


def _place(source: str) -> str:
    return os.path.abspath(source) if os.path.exists(source) else source
