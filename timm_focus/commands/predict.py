"""`timm-focus predict`: the most probable classes of images."""
import argparse
import os
import sys
import time
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from timm_focus.runs import Loaded, class_names, image_mode
from timm_focus.utils import open_whole, shown
from timm_focus.utils.processes import shield_workers
from timm_focus.utils.text import one_line, writable

from .checks import count_classes
from .data import add_data_arguments
from .load import add_model_arguments, check_single, load_models, positive
from .sources import Source, file_source, find_images, place
from .table import write_rows

__all__ = ['add_parser']

FORMATS = ('table', 'csv', 'jsonl', 'parquet')
ROWS = 10_000  # rows of a parquet file that are written together


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'predict', help='the most probable classes of images, with their probabilities',
        description='Name the most probable classes of images, with their probabilities, by any model of timm, a run, '
                    'an export or a repository of the Hub. Images are prepared as in validation. Those that cannot be '
                    'read are named and counted on standard error.',
        examples=('timm-focus predict photo.jpg DIR --checkpoint output/train/scenes',
                  'timm-focus predict DIR --model resnet18 --pretrained --topk 5 --output answers.csv',
                  "find DIR -name '*.jpg' | timm-focus predict - --checkpoint hf-hub:user/name --format jsonl"))
    parser.add_argument('images', nargs='*', metavar='IMAGE_OR_FOLDER', help='image files, folders of images, or tar '
                        'files; if they have splits, the validation split; - reads paths from standard input, one a '
                        'line')
    parser.add_argument('--topk', type=positive, default=3, metavar='K',
                        help='number of classes for each image (default: 3)')
    parser.add_argument('--format', choices=FORMATS, help='table, CSV, JSON lines or parquet, which needs --output '
                        '(default: by the ending of --output, else table)')
    parser.add_argument('--output', metavar='FILE', help='where to write, whole or not at all (default: standard '
                        'output)')
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Name the classes of images, a batch at a time."""
    check_single(args)
    args.format = _format(args)
    if args.format == 'parquet':
        _pyarrow()
    sources = _find(args)
    loaded, = load_models(args)
    n_classes, _ = count_classes(loaded, needs_map=False)
    names = [one_line(name) if args.format == 'table' else str(name) for name in class_names(loaded, n_classes)]
    rows = _Rows(args, loaded, sources, names)
    if args.output:
        with open_whole(args.output, 'wb' if args.format == 'parquet' else 'w') as f:
            _write(rows, args, f)
    else:
        _write(rows, args, sys.stdout)
    rows.conclude()


def _format(args: argparse.Namespace) -> str:
    """Return the format, from the flag or from the ending of the file.

    Raises:
        ValueError: The file exists already, or parquet would be printed.
    """
    ending = os.path.splitext(args.output or '')[1].removeprefix('.').lower()
    found = args.format or (ending if ending in FORMATS else 'table')
    if found == 'parquet' and not args.output:
        raise ValueError('--format parquet is of bytes, which no terminal shows: give --output FILE.parquet, too.')
    if args.output and os.path.lexists(args.output):
        raise ValueError(f'{args.output} is there already: give another --output, or remove it.')
    return found


def _find(args: argparse.Namespace) -> List[Source]:
    """Find the images that are named; `-` stands for those on standard input.

    Raises:
        ValueError: There are none, or something on the command line is not there. Paths from standard input are checked
            when they are read.
    """
    found: List[Source] = []
    for i, path in enumerate(args.images):
        if path != '-':
            found += find_images(args, [path])
        elif '-' not in args.images[:i]:
            for line in sys.stdin.buffer:
                given = os.fsdecode(line.rstrip(b'\r\n'))
                if os.path.isdir(given) or (given.endswith('.tar') and os.path.exists(given)):
                    found += find_images(args, [given])
                elif given:
                    found.append(file_source(given))
    if not args.images:
        found = find_images(args, [])  # images of --dataset
    if not found:
        raise ValueError('No images are named on standard input: give a path a line.')
    return found


class _Inputs:
    """A data set of images as the network takes them: `(i, x, '')`, or `(i, None, why)` for one that cannot be read."""

    def __init__(self, sources: Sequence[Source], transform: Any, mode: str):
        self.sources, self.transform, self.mode = sources, transform, mode

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: int) -> Tuple[int, Any, str]:
        try:
            return i, place(self.sources[i].read(self.mode, upright=False), self.transform)[0], ''
        except OSError as e:
            return i, None, e.strerror or str(e)


class _Batch(NamedTuple):
    """Images of a batch and their numbers, and the images that cannot be read, with the reasons."""
    indices: List[int]
    x: Any
    unread: List[Tuple[int, str]]


def _together(items: Sequence[Tuple[int, Any, str]]) -> _Batch:
    import torch

    good = [(i, x) for i, x, _ in items if x is not None]
    return _Batch([i for i, _ in good], torch.stack([x for _, x in good]) if good else None,
                  [(i, why) for i, x, why in items if x is None])


class _Rows:
    """Yields a row for each image, as its batch comes; names those that cannot be read on standard error.

    Args:
        args: Arguments of the command.
        loaded: The model.
        sources: The images.
        names: Names of the model's classes.
    """

    def __init__(self, args: argparse.Namespace, loaded: Loaded, sources: Sequence[Source], names: Sequence[str]):
        self.args, self.loaded, self.sources, self.names = args, loaded, sources, names
        self.k = min(args.topk, len(names))
        self.n, self.seconds = 0, 0.
        self.unread: List[str] = []

    @property
    def widths(self) -> Dict[str, int]:
        """Return the columns and their widths in a table."""
        if self.args.format != 'table':
            return dict.fromkeys(
                ['image', *(f'{what}_{j}' for j in range(1, self.k + 1) for what in ('class', 'probability'))], 0)
        longest = max(map(len, self.names)) + len(' 100.0 %')
        return dict(image=-max(len(one_line(source.path)) for source in self.sources),
                    **{f'class {j}': -longest for j in range(1, self.k + 1)})

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        from timm.data import create_transform
        from torch.utils.data import DataLoader
        from tqdm import tqdm

        args, loaded = self.args, self.loaded
        inputs: Any = _Inputs(
            self.sources, create_transform(**loaded.data_config, is_training=False), image_mode(loaded))
        workers = args.workers if len(inputs) > args.batch_size else 0
        loader = shield_workers(DataLoader(inputs, args.batch_size, num_workers=workers, collate_fn=_together))
        began = time.perf_counter()
        with tqdm(total=len(inputs), desc=shown(loaded.name), unit='image', disable=None) as bar:
            for batch in loader:
                for i, why in batch.unread:
                    path = self.sources[i].path
                    self.unread.append(path)
                    bar.write(shown(f'{path} is left out: {why}.'), file=sys.stderr)
                rows = self._rows(batch) if batch.indices else []
                bar.update(len(rows) + len(batch.unread))
                self.n += len(rows)
                self.seconds = time.perf_counter() - began
                with bar.external_write_mode():
                    yield from rows

    def _rows(self, batch: _Batch) -> List[Dict[str, Any]]:
        import torch

        device = next(self.loaded.model.parameters()).device
        with torch.inference_mode():
            logits = self.loaded.model(batch.x.to(device)).float()
            if not logits.isfinite().all():
                raise ValueError(f'{self.loaded.name} answers with numbers that are not finite: its training diverged, '
                                 'or its weights are damaged.')
            top = logits.softmax(1).topk(self.k)
        return [self._row(i, zip(classes, probabilities)) for i, classes, probabilities in zip(
            batch.indices, top.indices.tolist(), top.values.tolist())]

    def _row(self, i: int, answers: Iterator[Tuple[int, float]]) -> Dict[str, Any]:
        row: Dict[str, Any] = dict(image=self.sources[i].path)
        for j, (k, probability) in enumerate(answers, 1):
            if self.args.format == 'table':
                row[f'class {j}'] = f'{self.names[k]} {probability:.1%}'
            else:
                row.update({f'class_{j}': self.names[k], f'probability_{j}': round(probability, 6)})
        return row

    def conclude(self) -> None:
        """Print how many images there were, and the speed.

        Raises:
            ValueError: No image could be read.
        """
        if not self.n:
            raise ValueError(f'None of {len(self.sources):,} images can be read.')
        rate = self.n / self.seconds if self.seconds else 0
        text = f'{self.n:,} images in {self.seconds:.1f} s, {rate:,.0f} a second'
        if self.unread:
            text += f'; {len(self.unread):,} of {len(self.sources):,} cannot be read and are left out'
        print(text, file=sys.stderr)


# files

def _write(rows: _Rows, args: argparse.Namespace, file: IO) -> None:
    if args.format == 'parquet':
        _write_parquet(rows, file)
    else:
        write_rows(rows, args, rows.widths, file)
    if not rows.n:
        rows.conclude()  # no file is written


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise ImportError("Parquet files take pyarrow: pip install 'timm_focus[parquet]'") from e
    return pyarrow


def _write_parquet(rows: _Rows, file: IO) -> None:
    pa = _pyarrow()
    kinds = {True: pa.float64(), False: pa.string()}
    schema = pa.schema([(name, kinds[name.startswith('probability')]) for name in rows.widths])

    def flush(some: List[Dict[str, Any]]) -> None:
        texts = [{k: writable(v) if isinstance(v, str) else v for k, v in row.items()} for row in some]
        writer.write_table(pa.Table.from_pylist(texts, schema))

    with pa.parquet.ParquetWriter(file, schema) as writer:
        kept: List[Dict[str, Any]] = []
        for row in rows:
            kept.append(row)
            if len(kept) == ROWS:
                flush(kept)
                kept = []
        if kept:
            flush(kept)
