#!/usr/bin/env python3
"""Compares the accuracy of focus training with plain training, its rivals and its ablations, on any folders of images.

    python benchmarks/accuracy.py --scenes /data/miniplaces40 --tier 1 --minutes 100
    python benchmarks/accuracy.py --scenes /data/miniplaces40 --objects /data/imagenette10 --weights lite0.pth --list
    python benchmarks/accuracy.py --scenes /data/miniplaces40 --methods plain --held-back -- --weight-decay 1e-3
    python benchmarks/accuracy.py --report

Each cell of accuracy_matrix.py is a run of train_focus.py. Its last epoch counts, never the best on the validation
images. `timm-focus validate` and `timm-focus area` then measure it. Results are kept in
benchmarks/results/<data>/<model>-<method>-<seed>, and a cell with results is not run again.

An unfinished cell is in `--output`, and goes on from there after SIGTERM, Ctrl-C or the end of `--minutes`. A cell that
would not finish in time is not begun, so that nothing is lost if that folder is temporary; `--begin-all` begins it,
too.

Flags after `--` go to train_focus.py. Choose them with `--held-back`, which validates on a share of the training
images.

Images are read as they are. A copy of 128-pixel JPEGs at the size of training would save about 3 % of the time. On a
CPU with matrix units for bfloat16 (AMX), `--amp` makes resnet10t 1.4 times as fast, and shufflenetv2_x1_5 slower
(0.75). On other CPUs it makes them two to three times slower.
"""
import argparse
import contextlib
import csv
import datetime
import fcntl
import gzip
import io
import json
import math
import os
import platform
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from accuracy_matrix import MATRIX, METHODS, Block
from header import processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks/results'
SET_HERE = ('--model', '--method', '--epochs', '--img-size', '--seed', '--pretrained-path', '--workers', '-j',
            '--device', '--val-interval', '--checkpoint-hist', '--output', '--experiment', '--resume', '--config', '-c')
NOTED = 10.  # the time that a cell has taken is written every so many seconds, so a kill loses no more of it


class Stopped(Exception):
    """The time is over."""


class Failed(Exception):
    """A run ended with an error."""


# what is to be run

class Cell(NamedTuple):
    """A run, and where its results go.

    Attributes:
        block: The block of the matrix that the cell belongs to.
        data: Name of the data.
        path: Folder of the data.
        method: Name of the training method, a key of `METHODS`.
        seed: Seed of the run.
        base: In words, what all cells of the model on these data share: flags, epochs and numbers of images.
        flags: Flags of train_focus.py, without the data, the weights to start from and where to write.
        start: Flags that name the weights to start from, [] without.
        n_train: Number of training images.
        results: Folder of its results.
        run: Folder of its run.
    """
    block: Block
    data: str
    path: Path
    method: str
    seed: int
    base: str
    flags: List[str]
    start: List[str]
    n_train: int
    results: Path
    run: Path

    @property
    def epochs(self) -> int:
        return round(self.block.epochs * METHODS[self.method].times)

    @property
    def work(self) -> float:
        """Number of passes of images through the network in training."""
        return self.n_train * self.epochs * METHODS[self.method].passes

    @property
    def record(self) -> Optional[Dict[str, Any]]:
        """The content of `cell.json`, None if the cell is not done."""
        path = self.results / 'cell.json'
        return json.loads(path.read_text()) if path.exists() else None

    def __str__(self) -> str:
        return f'{self.data} {self.results.name}'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    argv = list(sys.argv[1:] if argv is None else argv)
    argv, more = (argv[:argv.index('--')], argv[argv.index('--') + 1:]) if '--' in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog='Flags after -- go to train_focus.py.')
    parser.add_argument('--scenes', metavar='DIR', help='folder of scenes, with train/<class>/ and val/<class>/')
    parser.add_argument('--objects', metavar='DIR', help='folder of objects, of the same layout, for tier 3')
    parser.add_argument('--weights', metavar='FILE', help='ImageNet weights of tf_efficientnet_lite0, or of --model, '
                        'to fine-tune in tier 3')
    parser.add_argument('--tier', type=int, nargs='+', choices=range(1, 8), default=[1, 2, 3],
                        help='1 compares the methods, 2 ablates, 3 has other models and data, 4 is for a GPU, 5 and 6 '
                        'screen second passes and rivals, 7 compares maps at one share (default: 1 2 3)')
    parser.add_argument('--methods', nargs='+', choices=tuple(METHODS), metavar='NAME',
                        help='run only these methods')
    parser.add_argument('--model', help='timm model instead of those of the tiers, from scratch or from --weights')
    parser.add_argument('--seeds', type=int, metavar='N', help='seeds 0 to N - 1 (default: 3, 1 in tier 2)')
    parser.add_argument('--epochs', type=int, metavar='N', help='epochs of a plain cell (default: 20; 10 of '
                        'resnet10t; 30 on objects; 5 from ImageNet weights)')
    parser.add_argument('--img-size', type=int, metavar='N', help='height and width of images (default: 64; 96 '
                        'from ImageNet weights; 128 in tier 4)')
    parser.add_argument('--held-back', type=float, nargs='?', const=0.2, metavar='SHARE', help='for choosing '
                        'settings: validate on this share of the training images (0.2), train on the others, keep the '
                        'results in --output')
    parser.add_argument('--minutes', type=float, help='stop after this time (default: when all is done)')
    parser.add_argument('--begin-all', action='store_true', help='also begin cells that will not be done in time')
    only = parser.add_mutually_exclusive_group()
    only.add_argument('--list', action='store_true', help='show cells, states and times, and run nothing')
    only.add_argument('--report', action='store_true', help='write tables and figure of the results, and run nothing')
    only.add_argument('--curves', metavar='DIR', help='draw accuracy against passes, of results (--results DIR/1, '
                      'DIR/2 ...) of several numbers of epochs, and run nothing')
    parser.add_argument('--output', default='output/accuracy', metavar='DIR', help='folder of unfinished '
                        'cells (default: output/accuracy)')
    parser.add_argument('--results', metavar='DIR', help='folder of results (default: benchmarks/results)')
    parser.add_argument('-j', '--workers', type=int, default=1, help='processes that load images (default: 1)')
    parser.add_argument('--device', help='device (default: cuda if there is one, else cpu)')
    args = parser.parse_args(argv)
    args.more = more
    held_back = Path(args.output) / 'held_back'
    args.results = Path(args.results or (held_back if args.held_back else RESULTS)).resolve()
    args.output = Path(args.output).resolve()
    if not (args.report or args.curves or args.scenes or args.objects):
        parser.error('No data is named: give --scenes DIR, --objects DIR or both, or --report.')
    if args.curves and not Path(args.curves).is_dir():
        parser.error(f'--curves is {args.curves}, which is no folder: give one with folders of results.')
    for name, low in (('seeds', 1), ('epochs', 1), ('img_size', 33)):  # at 32 px the last map has one place
        value = getattr(args, name)
        if value is not None and value < low:
            parser.error(f'--{name.replace("_", "-")} is {value}: give {low} or more.')
    if args.held_back and not 0 < args.held_back < 1:
        parser.error(f'--held-back is {args.held_back:g}: give a share between 0 and 1.')
    return args


def plan(args: argparse.Namespace) -> List[Cell]:
    """Return the cells that the flags ask for, seed by seed, so that methods can be compared early.

    Raises:
        ValueError: Data, weights or earlier results cannot be used.
    """
    from timm_focus.training import build_parser, parse_args

    cells: Dict[Path, Cell] = {}
    parser = build_parser()
    if args.weights and not Path(args.weights).is_file():
        raise ValueError(f'--weights is {args.weights}, which is no file: give weights of the model.')
    _check_model(args.model)
    clash = [word for word in args.more if word.split('=')[0] in SET_HERE]
    if clash:
        raise ValueError(f'{clash[0]} after -- is set by this script: leave it out, or give it before --.')
    named = {kind: Path(path) for kind, path in dict(scenes=args.scenes, objects=args.objects).items() if path}
    blocks = [block._replace(methods=[m for m in block.methods if not args.methods or m in args.methods])
              for block in MATRIX if block.tier in args.tier and block.kind in named and (
                  block.weights == bool(args.weights) if args.model else args.weights or not block.weights)]
    first = {block.kind: block.methods[0] for block in reversed(blocks) if block.methods}
    data = {kind: _data(args, path, first.get(kind, 'plain')) for kind, path in named.items()}
    if len({name for name, *_ in data.values()}) < len(data):
        raise ValueError('The folders of --scenes and --objects have the same name, which names their results: give a '
                         'link of another name.')
    for block in blocks:
        own = dict(epochs=args.epochs, img_size=args.img_size, seeds=args.seeds, model=args.model)
        if args.model or args.img_size:
            own['rate'] = None if args.model or not block.rate else block.rate * (block.img_size / args.img_size) ** 2
        block = block._replace(**{k: v for k, v in own.items() if v is not None or k == 'rate'})
        name, path, n_train, n_val = data[block.kind]
        start = ['--pretrained-path', str(Path(args.weights).resolve())] if block.weights else []
        shared = ['--img-size', str(block.img_size), *shlex.split(block.flags), *args.more]
        base = shlex.join([*shared, *(['from ImageNet weights'] if start else [])])
        base = f'{base}; {block.epochs} epochs; {n_train} training and {n_val} validation images'
        for seed in range(block.seeds):
            for method in block.methods:
                flags = [*shlex.split(METHODS[method].flags.format(block.model)), *shared,
                         '--epochs', str(round(block.epochs * METHODS[method].times)), '--seed', str(seed)]
                key = f'{block.model}-{method}-{seed}'
                cell = Cell(block, name, path, method, seed, base, flags, start, n_train, args.results / name / key,
                            args.output / name / key)
                cells.setdefault(cell.results, cell)
                parse_args(parser, [str(path), *flags, *start])  # refuses mistaken flags before any run
    if not cells:
        raise ValueError('These tiers, methods, data and weights leave no cell: tiers 1 and 2 train on --scenes from '
                         'scratch, tier 3 also on --objects and from --weights; --model with --weights fine-tunes.')
    _check_alike(cells.values(), args)
    return sorted(cells.values(), key=lambda cell: (args.tier.index(cell.block.tier), cell.seed))


def _check_model(name: Optional[str]) -> None:
    import timm

    import timm_focus  # noqa: F401  registers shufflenetv2_*

    if name is not None and (not timm.is_model(name) or name.startswith('focus_')):
        raise ValueError(f'--model is {name}: give the timm name of a plain model; its focus_ model is made of it.')


def _data(args: argparse.Namespace, path: Path, method: str) -> Tuple[str, Path, int, int]:
    """Return the name, the folder and the numbers of training and validation images of a data set.

    With `--held-back` both are parts of its training images. The flags after `--` are read as those of a run of
    `method`, because some go with focus training alone.
    """
    from timm_focus.data import create_dataset
    from timm_focus.training import build_parser, parse_args

    name, path, parser = path.resolve().name, path.resolve(), build_parser()
    flags = shlex.split(METHODS[method].flags.format(args.model or parser.get_default('model').removeprefix('focus_')))
    given, _ = parse_args(parser, [str(path), *flags, *args.more])
    version = dict(version=given.places_version, size=given.places_size)
    if args.held_back:
        index = create_dataset(given.dataset, str(path), 'train', **version).reader.index
        name = f'{name}-held-back-{args.held_back:g}'
        path = args.output / 'held_back_data' / name
        if not path.exists():
            _hold_back(index, args.held_back, path)
        version = {}
    train = create_dataset(
        given.dataset, str(path), 'train', image_list=given.train_list, images_per_class=given.images_per_class,
        subset_seed=given.subset_seed, **version)
    return name, path, len(train), len(create_dataset(given.dataset, str(path), 'validation', **version))


def _hold_back(index: Any, share: float, path: Path) -> None:
    """Make a folder of links: a random share of each class as `val`, the other images as `train`."""
    partial = path.with_name(f'{path.name}.tmp')
    shutil.rmtree(partial, ignore_errors=True)
    by_class: Dict[int, List[int]] = {}
    for i in range(len(index)):
        by_class.setdefault(index.target(i), []).append(i)
    for target, images in by_class.items():
        random.Random(0).shuffle(images)
        cut = round(share * len(images))
        if not 0 < cut < len(images):
            raise ValueError(f'--held-back {share:g} leaves one part without images of {index.class_names[target]}, '
                             f'which has {len(images)}: give another share.')
        for split, part in (('val', images[:cut]), ('train', images[cut:])):
            folder = partial / split / index.class_names[target].replace('/', '-')
            folder.mkdir(parents=True)
            for i in part:
                (folder / f'{i}{Path(index.path(i)).suffix}').symlink_to(index.path(i))
    partial.rename(path)


def _check_alike(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Check that earlier cells of the same model and data have the same settings, as they are compared.

    Raises:
        ValueError: A folder has a cell of other settings.
    """
    for folder, file in ((args.results, 'cell.json'), (args.output, 'progress.json')):
        for model, data, base in {(c.block.model, c.data, c.base) for c in cells}:
            for path in sorted((folder / data).glob(f'{model}-*/{file}')):
                found = json.loads(path.read_text())
                flags = {c.results.name: c.flags for c in cells if c.data == data}.get(path.parent.name, found['flags'])
                if found['base'] != base or found['flags'] != flags:
                    raise ValueError(
                        f'{path.parent} is of other settings ({shlex.join(found["flags"])}; {found["base"]}) than now '
                        f'({shlex.join(flags)}; {base}): remove it, or give another --results and --output.')


# running

def estimate(cell: Cell, cells: Sequence[Cell]) -> Optional[float]:
    """Return how many seconds a cell will still take, from finished cells of its model, else from its block's rate."""
    rates = [found['work'] / (found['seconds'] + found['evaluation_seconds']) for found in (
        other.record for other in cells if (other.block.model, other.block.img_size) == (
            cell.block.model, cell.block.img_size)) if found]
    rate = statistics.median(rates) if rates else cell.block.rate
    return None if rate is None else cell.work / rate * (1 - _epochs_done(cell) / cell.epochs)


def _epochs_done(cell: Cell) -> int:
    summary = cell.run / 'summary.csv'
    return max(len(summary.read_text().splitlines()) - 1, 0) if summary.exists() else 0


def show(cells: Sequence[Cell]) -> None:
    """Print each cell with its state and time, and the time that each tier still takes."""
    left: Dict[int, float] = {}
    for cell in cells:
        done, seconds = cell.record, estimate(cell, cells)
        state, spent = 'to do', _minutes(seconds)
        if done:
            state, spent = 'done', f'took {(done["seconds"] + done["evaluation_seconds"]) / 60:.0f} min'
        elif _epochs_done(cell):
            state = f'{_epochs_done(cell)} of {cell.epochs} epochs'
        print(f'tier {cell.block.tier}  {str(cell):60}  {state:16}  {spent}')
        if not done:
            left[cell.block.tier] = left.get(cell.block.tier, 0) + (math.nan if seconds is None else seconds)
    for tier, seconds in left.items():
        print(f'tier {tier}: {"unknown time" if math.isnan(seconds) else f"{seconds / 3600:.1f} h"} to do')


def _minutes(seconds: Optional[float]) -> str:
    return 'unknown time' if seconds is None else f'about {seconds / 60:.0f} min'


@contextlib.contextmanager
def held(cell: Cell) -> Iterator[Optional[Any]]:
    """Yield a lock on a cell, which the process of its run inherits; None if another process has the lock."""
    cell.run.mkdir(parents=True, exist_ok=True)
    with open(cell.run / 'lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock = None
        yield lock


def run_cell(cell: Cell, args: argparse.Namespace, deadline: float, lock: Any) -> None:
    """Train a cell or go on with its training, measure it and keep the results.

    Raises:
        Stopped: The deadline passed.
        Failed: A process of it ended with an error.
    """
    path = cell.run / 'progress.json'
    progress = dict(base=cell.base, flags=cell.flags, seconds=0., trained=False)
    if path.exists():
        progress = json.loads(path.read_text())
    more = ['--workers', str(args.workers), *(['--device', args.device] if args.device else [])]
    every = max(cell.epochs // 5, 1)  # a few validations are enough, as only the last one counts
    command = [sys.executable, str(ROOT / 'train_focus.py'), str(cell.path), *cell.flags, *cell.start, *more,
               '--val-interval', str(every), '--checkpoint-hist', '1', '--output', str(cell.run.parent),
               '--experiment', cell.run.name]
    if not progress['trained']:
        before, began = progress['seconds'], time.perf_counter()

        def note() -> None:
            progress['seconds'] = before + time.perf_counter() - began
            _write(path, json.dumps(progress))

        note()
        try:
            call([*command, '--resume', 'auto'], cell.run / 'log.txt', deadline, lock, note)
            progress['trained'] = True
        finally:
            note()
    began = time.perf_counter()
    measure(cell, more)
    seconds = time.perf_counter() - began
    keep(cell, args, command, progress['seconds'], seconds)


def call(command: Sequence[str], log: Path, deadline: float, lock: Any, note: Callable[[], None]) -> None:
    """Run a command, and call `note` every few seconds. At the deadline, ask the command to end, and wait for it."""
    with open(log, 'ab') as f:  # a session of its own, so that Ctrl-C reaches the command once: through this process
        process = subprocess.Popen(
            command, stdout=f, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[lock.fileno()])
    try:
        code = None
        while code is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Stopped
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(min(left, NOTED))
            note()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        lines = log.read_text(errors='replace').strip().splitlines()
        raise Failed(f'exit code {code}, {log}: {lines[-1] if lines else "empty"}')


def measure(cell: Cell, more: Sequence[str]) -> None:
    """Measure accuracy, accuracy under erasing and coverage of the last epoch's weights on the validation images."""
    from timm_focus.commands.main import main

    of = [str(cell.path), '--checkpoint', str(cell.run / 'last.pth.tar'), *more]
    wide = max(cell.block.img_size, 128)  # a network that reduces by 32 then has a last map of 4 x 4
    for words in (['validate', *of, '--output', str(cell.run / 'validate')],
                  ['area', *of, '--img-size', str(wide), '--output', str(cell.run / 'area')]):
        with open(cell.run / 'log.txt', 'a') as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                main(words)
            except SystemExit as e:
                raise Failed(f'timm-focus {words[0]}, exit code {e.code}, {log.name}') from e


def keep(cell: Cell, args: argparse.Namespace, command: Sequence[str], seconds: float, measuring: float) -> None:
    """Write the results of a cell without the paths of this machine; `cell.json` comes last, and marks it as done."""
    import timm
    import torch

    names = {str(cell.path): 'DIR', str(args.output): 'output/accuracy', str(ROOT): '.', sys.executable: 'python'}
    if args.weights:
        names[str(Path(args.weights).resolve())] = 'WEIGHTS'

    def neutral(text: str) -> str:
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        return text.replace('./train_focus.py', 'train_focus.py')

    passes = mean_passes(cell)
    cell.results.mkdir(parents=True, exist_ok=True)
    for source in ('summary.csv', 'args.yaml', 'validate/validate.json', 'area/area.json'):
        _write(cell.results / Path(source).name, neutral((cell.run / source).read_text()))
    coverage = {row['image']: row['coverage'] for row in _rows(cell.run / 'area/area.csv')}
    validated = _rows(cell.run / 'validate/images.csv')
    rows = [{**row, 'coverage': coverage[row['image']]} for row in validated]
    columns = [name for name in rows[0] if name != 'model']
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n', extrasaction='ignore')
    writer.writeheader()
    writer.writerows(rows)
    (cell.results / 'images.csv.gz').write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    _write(cell.results / 'cell.json', json.dumps(dict(
        data=cell.data, kind=cell.block.kind, model=cell.block.model, method=cell.method, seed=cell.seed,
        epochs=cell.epochs, passes=passes, images=cell.n_train * cell.epochs, work=cell.n_train * cell.epochs * passes,
        seconds=round(seconds, 1), evaluation_seconds=round(measuring, 1), base=cell.base, flags=cell.flags,
        command=neutral(shlex.join(command)), date=str(datetime.date.today()), processor=processor(),
        cores=len(os.sched_getaffinity(0)), threads=torch.get_num_threads(), python=platform.python_version(),
        torch=torch.__version__, timm=timm.__version__), indent=2) + '\n')


def mean_passes(cell: Cell) -> float:
    """Return the passes of a step, as a mean over epochs; with `--focus-start auto` the run found when the second
    began.
    """
    passes, rows = METHODS[cell.method].passes, _rows(cell.run / 'summary.csv')
    if 'focus_start' not in rows[0]:
        return passes
    erased = sum(bool(row['focus_start']) and int(row['epoch']) >= int(row['focus_start']) for row in rows)
    return 1 + (passes - 1) * erased / len(rows)


def _write(path: Path, text: str) -> None:
    from timm_focus.utils import write_whole

    write_whole(str(path), text)


def _rows(path: Path) -> List[Dict[str, str]]:
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


def run_all(cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """Run the cells that are not done, one after the other, and return the exit code."""
    deadline = time.monotonic() + 60 * args.minutes if args.minutes is not None else math.inf
    failed, late = 0, 0
    for cell in cells:
        if cell.record:
            continue
        seconds = estimate(cell, cells)
        left = deadline - time.monotonic()
        if left <= 0 or (not args.begin_all and seconds is not None and 1.1 * seconds > left):
            late += 1
            continue
        with held(cell) as lock:
            if lock is None or cell.record:
                print(f'{cell}: another process runs it', flush=True)
                continue
            print(f'{cell}: {_minutes(seconds)}', flush=True)
            try:
                run_cell(cell, args, deadline, lock)
            except Stopped:
                print(f'{cell}: stopped after {_epochs_done(cell)} of {cell.epochs} epochs, and goes on next time')
                late += 1
            except Failed as e:
                print(f'{cell}: {e}', file=sys.stderr, flush=True)
                failed += 1
                if 'exit code 2' in str(e):  # its settings were refused, and those of other cells will be, too
                    break
            else:
                found = json.loads((cell.results / 'validate.json').read_text())[0]
                print(f'{cell}: top-1 {found["top1"]:.2f} %, {cell.record["seconds"] / 60:.1f} min', flush=True)
    if late:
        print(f'{late} cells would take longer than the time that is left.')
    return 1 if failed else 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM acts as Ctrl-C
    try:
        if args.report:
            from accuracy_report import report

            report(args.results)
            return 0
        if args.curves:
            from accuracy_report import curves

            curves(Path(args.curves))
            return 0
        cells = plan(args)
        if args.list:
            show(cells)
            return 0
        return run_all(cells, args)
    except (ValueError, OSError) as e:
        print(f'accuracy.py: error: {" ".join(str(e).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('Stopped: the unfinished cell goes on next time.', file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == '__main__':
    sys.exit(main())
