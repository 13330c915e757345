#!/usr/bin/env python3
"""Accuracy of focus training against plain training, Hide-and-Seek and its own ablations, on any folders of images.

    python benchmarks/accuracy.py --scenes /data/miniplaces40 --tier 1 --minutes 100
    python benchmarks/accuracy.py --scenes /data/miniplaces40 --objects /data/imagenette10 --list
    python benchmarks/accuracy.py --report

Each cell of the matrix below is a run of train_focus.py, of which the last epoch counts, never the best on the
validation images; then `timm-focus validate` and `timm-focus area` measure it. What is found is kept in
benchmarks/results/<data>/<model>-<method>-<seed>, and a cell that is there is not run again. A cell under way is in
`--output`, and goes on from there after SIGTERM, Ctrl-C or the end of `--minutes`; so that nothing is lost where that
folder does not last, no cell is begun that will not be done in time (`--begin-all` begins it all the same). Flags after
`--` go to train_focus.py. Choose them with `--held-back`, which validates on a share of the training images.
"""
import argparse
import contextlib
import csv
import datetime
import fcntl
import functools
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
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from header import processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks/results'


class Method(NamedTuple):
    """How a model is trained: flags, passes of an image through the network a step, epochs over those of `plain`."""
    flags: str
    passes: float = 2
    times: int = 1


METHODS = {
    'plain': Method('--model {}', 1),
    'plain_2x': Method('--model {}', 1, 2),
    'has': Method('--model {} --has', 1),
    'has_2x': Method('--model {} --has', 1, 2),
    'focus': Method('--model focus_{}'),
    'focus_half': Method('--model focus_{} --focus-fraction 0.5', 1.5),
    'focus_random': Method('--model focus_{} --focus-map random'),
    'side': Method('--model focus_{} --focus-alpha 0 --focus-beta 0', 1),
    'side_cpc': Method('--model focus_{} --focus-beta 0'),
    'side_ipc': Method('--model focus_{} --focus-alpha 0'),
    'attention_mining': Method('--model focus_{} --focus-consistency attention_mining'),
    'last_stage': Method('--model focus_{} --focus-stage -1'),
    'mean_map': Method('--model focus_{} --focus-map mean'),
    'gamma_0.5': Method('--model focus_{} --focus-threshold 0.5'),
    'gamma_0.9': Method('--model focus_{} --focus-threshold 0.9'),
    'clean_bn': Method('--model focus_{} --focus-bn clean'),
    'kl_main_erased': Method('--model focus_{} --focus-kl-direction main_erased'),
    'kl_symmetric': Method('--model focus_{} --focus-kl-direction symmetric'),
    'detach_main': Method('--model focus_{} --focus-kl-detach main'),
    'detach_erased': Method('--model focus_{} --focus-kl-detach erased'),
}
COMPARED = ('plain', 'plain_2x', 'has', 'has_2x', 'focus', 'focus_half', 'focus_random')


class Block(NamedTuple):
    """Cells that share a tier, a kind of data and a model; `rate` is images a second and pass, on two CPU cores."""
    tier: int
    kind: str
    model: str
    methods: Sequence[str]
    seeds: int
    epochs: int
    rate: Optional[float]
    img_size: int = 64
    flags: str = '--batch-size 64 --weight-decay 5e-4'
    weights: bool = False  # starts from the file of --weights


MATRIX = (
    Block(1, 'scenes', 'shufflenetv2_x1_5', COMPARED, 3, 20, 250),
    Block(2, 'scenes', 'shufflenetv2_x1_5', [m for m in METHODS if m not in COMPARED], 1, 20, 250),
    Block(3, 'scenes', 'resnet10t', ('plain', 'plain_2x', 'has', 'focus'), 2, 20, 170),
    Block(3, 'scenes', 'tf_efficientnet_lite0', ('plain', 'plain_2x', 'focus'), 3, 5, 75, 96,
          '--batch-size 64 --weight-decay 1e-4 --lr 0.01', True),
    Block(3, 'objects', 'shufflenetv2_x1_5', ('plain', 'plain_2x', 'focus'), 3, 30, 250),
)


class Claim(NamedTuple):
    """A sentence that holds if each contrast does: the sum of means by weight of a column is above a margin."""
    text: str
    kind: str
    contrasts: Sequence[Tuple[Dict[str, float], str, float]]


def _beats(a: str, b: str, column: str = 'top1') -> Tuple[Dict[str, float], str, float]:
    return {a: 1, b: -1}, column, 0


CLAIMS = (
    Claim('Focus beats plain at equal epochs', 'scenes', [_beats('focus', 'plain')]),
    Claim('Focus beats plain at equal compute', 'scenes', [_beats('focus', 'plain_2x')]),
    Claim('Focus beats HaS at equal compute', 'scenes', [_beats('focus', 'has_2x')]),
    Claim('Focus needs the CAM: a random region of the same size does worse', 'scenes',
          [_beats('focus', 'focus_random')]),
    Claim('Focus adds nothing (less than half a point) or hurts on objects, at equal epochs', 'objects',
          [({'plain': 1, 'focus': -1}, 'top1', -0.5)]),
    Claim('Focus adds nothing (less than half a point) or hurts on objects, at equal compute', 'objects',
          [({'plain_2x': 1, 'focus': -1}, 'top1', -0.5)]),
    Claim('Focus enlarges the coverage ratio', 'scenes', [_beats('focus', 'plain', 'coverage')]),
    Claim('Focus loses less accuracy when the quarter that it relies on most is erased', 'scenes',
          [_beats('plain', 'focus', 'lost_25')]),
    Claim('IPC beats CPC, and CPC beats the side loss alone', 'scenes',
          [_beats('side_ipc', 'side_cpc'), _beats('side_cpc', 'side')]),
    Claim('Half of each batch keeps most of the gain', 'scenes',
          [_beats('focus', 'plain'), ({'focus_half': 1, 'focus': -0.5, 'plain': -0.5}, 'top1', 0)]),
)
COLUMNS = ('data', 'kind', 'model', 'method', 'seed', 'epochs', 'passes', 'images', 'seconds', 'n_val', 'top1', 'top5',
           'coverage', 'coverage_map', 'lost_10', 'lost_25', 'lost_50', 'random_10', 'random_25', 'random_50',
           'erasing_map')
# half of a 95 % interval over the standard error, by degrees of freedom from 1: Student's t at 0.975
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


class Stopped(Exception):
    """The time is over."""


class Failed(Exception):
    """A run ended with an error."""


# what is to be run

class Cell(NamedTuple):
    """A run, and where its results go.

    Attributes:
        base: Flags that all cells of the model on these data share, and the number of images.
        flags: All that train_focus.py is given but the data and where to write.
    """
    block: Block
    data: str
    path: Path
    method: str
    seed: int
    base: str
    flags: List[str]
    n_train: int
    results: Path
    run: Path

    @property
    def epochs(self) -> int:
        return self.block.epochs * METHODS[self.method].times

    @property
    def work(self) -> float:
        """Images that pass through the network in training."""
        return self.n_train * self.epochs * METHODS[self.method].passes

    @property
    def record(self) -> Optional[Dict[str, Any]]:
        """What `cell.json` holds, None if the cell is not done."""
        path = self.results / 'cell.json'
        return json.loads(path.read_text()) if path.exists() else None

    def __str__(self) -> str:
        return f'{self.data} {self.results.name}'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    argv = list(sys.argv[1:] if argv is None else argv)
    argv, more = (argv[:argv.index('--')], argv[argv.index('--') + 1:]) if '--' in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog='Flags after -- go to train_focus.py.')
    parser.add_argument('--scenes', metavar='DIR', help='folder of scenes, with train/<class>/ and val/<class>/')
    parser.add_argument('--objects', metavar='DIR', help='the same of objects, for tier 3')
    parser.add_argument('--weights', metavar='FILE', help='ImageNet weights of tf_efficientnet_lite0, for tier 3')
    parser.add_argument('--tier', type=int, nargs='+', choices=(1, 2, 3), default=[1, 2, 3],
                        help='1 compares the methods, 2 ablates, 3 has other models and data (default: all)')
    parser.add_argument('--methods', nargs='+', choices=tuple(METHODS), metavar='NAME', help='these alone')
    parser.add_argument('--model', help="timm model in place of the tiers', from scratch")
    parser.add_argument('--seeds', type=int, metavar='N', help='seeds 0 to N - 1 (default: 3, 1 in tier 2)')
    parser.add_argument('--epochs', type=int, metavar='N', help='epochs of a plain cell (default: 20; 30 on objects; 5 '
                        'from ImageNet weights)')
    parser.add_argument('--img-size', type=int, metavar='N', help='height and width (default: 64; 96 from ImageNet '
                        'weights)')
    parser.add_argument('--held-back', type=float, nargs='?', const=0.2, metavar='SHARE', help='for choosing '
                        'settings: validate on this share of the training images (0.2), train on the others, keep the '
                        'results in --output')
    parser.add_argument('--minutes', type=float, help='stop then (default: when all is done)')
    parser.add_argument('--begin-all', action='store_true', help='begin cells that will not be done in time, too')
    parser.add_argument('--list', action='store_true', help='show cells, states and times, and run nothing')
    parser.add_argument('--report', action='store_true', help='write tables and figure of the results, and run nothing')
    parser.add_argument('--output', default='output/accuracy', metavar='DIR', help='where cells under way are '
                        '(default: output/accuracy)')
    parser.add_argument('--results', metavar='DIR', help='where results are (default: benchmarks/results)')
    parser.add_argument('-j', '--workers', type=int, default=1, help='processes that load images (default: 1)')
    parser.add_argument('--device', help='device (default: cuda if there is one, else cpu)')
    args = parser.parse_args(argv)
    args.more = more
    held_back = Path(args.output) / 'held_back'
    args.results = Path(args.results or (held_back if args.held_back else RESULTS)).resolve()
    args.output = Path(args.output).resolve()
    if not (args.report or args.scenes or args.objects):
        parser.error('No data is named: give --scenes DIR, --objects DIR or both, or --report.')
    for name, low in (('seeds', 1), ('epochs', 1), ('img_size', 33)):  # a last map of one place ranks no pixels
        value = getattr(args, name)
        if value is not None and value < low:
            parser.error(f'--{name.replace("_", "-")} is {value}: give {low} or more.')
    if args.held_back and not 0 < args.held_back < 1:
        parser.error(f'--held-back is {args.held_back:g}: give a share between 0 and 1.')
    return args


def plan(args: argparse.Namespace) -> List[Cell]:
    """The cells that the flags ask for, seed by seed, so that what is there early can be compared.

    Raises:
        ValueError: Data, weights or results do not serve.
    """
    cells: Dict[Path, Cell] = {}
    data = {kind: _data(args, Path(path)) for kind, path in (('scenes', args.scenes), ('objects', args.objects)) if path}
    for block in MATRIX:
        if block.tier not in args.tier or block.kind not in data or (block.weights and (args.model or not args.weights)):
            continue
        own = dict(epochs=args.epochs, img_size=args.img_size, seeds=args.seeds, model=args.model)
        if args.model or args.img_size:
            own['rate'] = None if args.model else block.rate * (block.img_size / args.img_size) ** 2
        block = block._replace(**{k: v for k, v in own.items() if v is not None or k == 'rate'})
        name, path, n_train, n_val = data[block.kind]
        start = ['--pretrained-path', str(Path(args.weights).resolve())] if block.weights else []
        shared = ['--img-size', str(block.img_size), *shlex.split(block.flags), *args.more]
        base = shlex.join([*shared, *(['from ImageNet weights'] if start else [])])
        base = f'{base}; {block.epochs} epochs; {n_train} training and {n_val} validation images'
        for seed in range(block.seeds):
            for method in block.methods:
                if args.methods and method not in args.methods:
                    continue
                flags = [*shlex.split(METHODS[method].flags.format(block.model)), *shared,
                         '--epochs', str(block.epochs * METHODS[method].times), '--seed', str(seed), *start]
                key = f'{block.model}-{method}-{seed}'
                cell = Cell(block, name, path, method, seed, base, flags, n_train, args.results / name / key,
                            args.output / name / key)
                cells.setdefault(cell.results, cell)
    if args.weights and not Path(args.weights).is_file():
        raise ValueError(f'--weights is {args.weights}, which is no file: give the weights of tf_efficientnet_lite0.')
    if not cells:
        raise ValueError('No cell is left of tiers, methods and data: tier 3 takes --objects and --weights, too.')
    _check_alike(cells.values(), args)
    return sorted(cells.values(), key=lambda cell: (args.tier.index(cell.block.tier), cell.seed))


def _data(args: argparse.Namespace, path: Path) -> Tuple[str, Path, int, int]:
    """Name, folder and numbers of images of a data set, or of its training images alone, part of which are held back."""
    from timm_focus.data import create_dataset

    name, path = path.resolve().name, path.resolve()
    if args.held_back:
        index = create_dataset('', str(path), 'train').reader.index
        name = f'{name}-held-back-{args.held_back:g}'
        path = args.output / 'data' / name
        if not path.exists():
            _hold_back(index, args.held_back, path)
    sizes = [len(create_dataset('', str(path), split)) for split in ('train', 'validation')]
    return name, path, *sizes


def _hold_back(index: Any, share: float, path: Path) -> None:
    """A folder of links: of each class, a random share as `val`, the others as `train`."""
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
                             f'of which there are {len(images)}: give another share.')
        for split, part in (('val', images[:cut]), ('train', images[cut:])):
            folder = partial / split / index.class_names[target].replace('/', '-')
            folder.mkdir(parents=True)
            for i in part:
                (folder / f'{i}{Path(index.path(i)).suffix}').symlink_to(index.path(i))
    partial.rename(path)


def _check_alike(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Results of a model are compared, so all are of one base: no folder may hold another's."""
    for folder, file in ((args.results, 'cell.json'), (args.output, 'progress.json')):
        for model, data, base in {(c.block.model, c.data, c.base) for c in cells}:
            for path in sorted((folder / data).glob(f'{model}-*/{file}')):
                found = json.loads(path.read_text())['base']
                if found != base:
                    raise ValueError(f'{path.parent} is of other settings ({found}) than now ({base}): remove it, or '
                                     'give another --results and --output.')


# running

def estimate(cell: Cell, cells: Sequence[Cell]) -> Optional[float]:
    """Seconds that a cell will still take: by those of the model that are done, else by the block's rate."""
    rates = [found['work'] / (found['seconds'] + found['evaluation_seconds']) for found in (
        other.record for other in cells if (other.block.model, other.block.img_size) == (
            cell.block.model, cell.block.img_size)) if found]
    rate = statistics.median(rates) if rates else cell.block.rate
    return None if rate is None else cell.work / rate * (1 - _epochs_done(cell) / cell.epochs)


def _epochs_done(cell: Cell) -> int:
    summary = cell.run / 'summary.csv'
    return max(len(summary.read_text().splitlines()) - 1, 0) if summary.exists() else 0


def show(cells: Sequence[Cell]) -> None:
    """Print the cells with states and times, and the time that each tier still takes."""
    left: Dict[int, float] = {}
    for cell in cells:
        done, seconds = cell.record, estimate(cell, cells)
        state, spent = 'to do', f'{seconds / 60:.0f} min' if seconds is not None else 'unknown time'
        if done:
            state, spent = 'done', f'took {(done["seconds"] + done["evaluation_seconds"]) / 60:.0f} min'
        elif _epochs_done(cell):
            state = f'{_epochs_done(cell)} of {cell.epochs} epochs'
        print(f'tier {cell.block.tier}  {str(cell):60}  {state:16}  {spent}')
        if not done:
            left[cell.block.tier] = left.get(cell.block.tier, 0) + (seconds or math.nan)
    for tier, seconds in left.items():
        print(f'tier {tier}: {seconds / 3600:.1f} h to do')


@contextlib.contextmanager
def held(cell: Cell) -> Iterator[Optional[Any]]:
    """A lock on a cell, which its process inherits, or None if another has it."""
    cell.run.mkdir(parents=True, exist_ok=True)
    with open(cell.run / 'lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock = None
        yield lock


def run_cell(cell: Cell, args: argparse.Namespace, deadline: float, lock: Any) -> None:
    """Train a cell, or go on with it, measure it and keep what was found.

    Raises:
        Stopped: The deadline passed.
        Failed: It ended with an error.
    """
    path = cell.run / 'progress.json'
    progress = json.loads(path.read_text()) if path.exists() else dict(base=cell.base, seconds=0., trained=False)
    more = ['--workers', str(args.workers), *(['--device', args.device] if args.device else [])]
    every = max(cell.epochs // 5, 1)  # of the validations the last one counts
    command = [sys.executable, str(ROOT / 'train_focus.py'), str(cell.path), *cell.flags, *more, '--val-interval',
               str(every), '--checkpoint-hist', '1', '--output', str(cell.run.parent), '--experiment', cell.run.name]
    if not progress['trained']:
        _write(path, json.dumps(progress))
        began = time.perf_counter()
        try:
            call([*command, '--resume', 'auto'], cell.run / 'log.txt', deadline, lock)
            progress['trained'] = True
        finally:
            progress['seconds'] += time.perf_counter() - began
            _write(path, json.dumps(progress))
    began = time.perf_counter()
    measure(cell, more)
    seconds = time.perf_counter() - began
    keep(cell, args, command, progress['seconds'], seconds)


def call(command: Sequence[str], log: Path, deadline: float, lock: Any) -> None:
    """Run a command until it ends or the time does; it is then asked to end, and waited for."""
    with open(log, 'ab') as f:  # in a session of its own: Ctrl-C reaches it once, by way of this process
        process = subprocess.Popen(
            command, stdout=f, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[lock.fileno()])
    try:
        code = process.wait(None if math.isinf(deadline) else max(deadline - time.monotonic(), 0))
    except BaseException as e:
        process.terminate()
        process.wait()
        if isinstance(e, subprocess.TimeoutExpired):
            raise Stopped from None
        raise
    if code:
        lines = log.read_text(errors='replace').strip().splitlines()
        raise Failed(f'exit code {code}, {log}: {lines[-1] if lines else "empty"}')


def measure(cell: Cell, more: Sequence[str]) -> None:
    """Accuracy, whole and under erasing, and coverage, of the last epoch's weights, on the validation images."""
    from timm_focus.commands.main import main

    of = [str(cell.path), '--checkpoint', str(cell.run / 'last.pth.tar'), *more]
    wide = max(cell.block.img_size, 128)  # whose last map is 4 x 4 where the network reduces by 32
    for words in (['validate', *of, '--output', str(cell.run / 'validate')],
                  ['area', *of, '--img-size', str(wide), '--output', str(cell.run / 'area')]):
        with open(cell.run / 'log.txt', 'a') as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                main(words)
            except SystemExit as e:
                raise Failed(f'timm-focus {words[0]}, exit code {e.code}, {log.name}') from e


def keep(cell: Cell, args: argparse.Namespace, command: Sequence[str], seconds: float, measuring: float) -> None:
    """Write the results of a cell, without this machine's paths, `cell.json` last."""
    import timm
    import torch

    names = {str(cell.path): 'DIR', str(cell.run.parent): 'output/accuracy', str(ROOT): '.', sys.executable: 'python'}
    if args.weights:
        names[str(Path(args.weights).resolve())] = 'WEIGHTS'

    def neutral(text: str) -> str:
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        return text.replace('./train_focus.py', 'train_focus.py')

    cell.results.mkdir(parents=True, exist_ok=True)
    for source in ('summary.csv', 'args.yaml', 'validate/validate.json', 'area/area.json'):
        _write(cell.results / Path(source).name, neutral((cell.run / source).read_text()))
    coverage = {row['image']: row['coverage'] for row in _rows((cell.run / 'area/area.csv').read_text())}
    rows = [{**row, 'coverage': coverage[row['image']]} for row in _rows((cell.run / 'validate/images.csv').read_text())]
    columns = [name for name in rows[0] if name != 'model']
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n', extrasaction='ignore')
    writer.writeheader()
    writer.writerows(rows)
    (cell.results / 'images.csv.gz').write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    _write(cell.results / 'cell.json', json.dumps(dict(
        data=cell.data, kind=cell.block.kind, model=cell.block.model, method=cell.method, seed=cell.seed,
        epochs=cell.epochs, passes=METHODS[cell.method].passes, images=cell.n_train * cell.epochs, work=cell.work,
        seconds=round(seconds, 1), evaluation_seconds=round(measuring, 1), base=cell.base,
        command=neutral(shlex.join(command)), date=str(datetime.date.today()), processor=processor(),
        cores=len(os.sched_getaffinity(0)), threads=torch.get_num_threads(), python=platform.python_version(),
        torch=torch.__version__, timm=timm.__version__), indent=2) + '\n')


def _write(path: Path, text: str) -> None:
    from timm_focus.training.files import write_whole

    write_whole(str(path), text)


def _rows(text: str) -> List[Dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def run_all(cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """Run what is not done, one after the other; returns the exit code."""
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
            if lock is None:
                print(f'{cell}: another process has it', flush=True)
                continue
            print(f'{cell}: about {seconds / 60:.0f} min' if seconds else f'{cell}: unknown time', flush=True)
            try:
                run_cell(cell, args, deadline, lock)
            except Stopped:
                print(f'{cell}: stopped after {_epochs_done(cell)} of {cell.epochs} epochs, and goes on next time')
                late += 1
            except Failed as e:
                print(f'{cell}: {e}', file=sys.stderr, flush=True)
                failed += 1
                if 'exit code 2' in str(e):  # settings that are refused: the others' will be
                    break
            else:
                found = json.loads((cell.results / 'validate.json').read_text())[0]
                print(f'{cell}: top-1 {found["top1"]:.2f} %, {cell.record["seconds"] / 60:.1f} min', flush=True)
                shutil.rmtree(cell.run)
    if late:
        print(f'{late} cells take longer than the time that is left.')
    return 1 if failed else 0


# statistics

class Interval(NamedTuple):
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.low:+.2f} to {self.high:+.2f}'


class Difference(NamedTuple):
    """A contrast of means, with 95 % intervals over seeds and over images, None where they cannot be had."""
    value: float
    seeds: Optional[Interval]
    images: Optional[Interval]

    def answer(self, margin: float = 0.) -> str:
        """'yes' if both intervals lie above the margin, 'no' if both lie below, else 'undecided'."""
        if self.seeds is None or self.images is None:
            return 'undecided'
        if min(self.seeds.low, self.images.low) > margin:
            return 'yes'
        return 'no' if max(self.seeds.high, self.images.high) < margin else 'undecided'


Images = Dict[Tuple[str, int], Dict[str, np.ndarray]]  # by method and seed: columns, a value an image, in percent


def contrast(rows: Sequence[Dict[str, Any]], images: Images, weights: Dict[str, float], column: str) -> Difference:
    """Sum of the methods' means by weight, of the cells of one model on one data set.

    Over seeds: Student's t, with the variance within methods pooled over all methods of `rows` (as in an analysis of
    variance with one factor), so that a method with a single seed has an interval, too. Over images: bootstrap, paired,
    as all cells see the same images, each averaged over its method's seeds.
    """
    values: Dict[str, List[float]] = {}
    for row in rows:
        values.setdefault(row['method'], []).append(float(row[column]))
    value = sum(w * statistics.fmean(values[m]) for m, w in weights.items())
    freedom = sum(len(v) - 1 for v in values.values())
    seeds = None
    if freedom:
        variance = sum((x - statistics.fmean(v)) ** 2 for v in values.values() for x in v) / freedom
        half = T[min(freedom, len(T)) - 1] * math.sqrt(variance * sum(w * w / len(values[m]) for m, w in weights.items()))
        seeds = Interval(value - half, value + half)
    cells = {m: [found[column] for (method, _), found in images.items() if method == m] for m in weights}
    if not all(len(cells[m]) == len(values[m]) for m in weights):
        return Difference(value, seeds, None)
    each = sum(w * np.mean(cells[m], axis=0) for m, w in weights.items())
    means = each[_resamples(len(each))].mean(1)
    return Difference(value, seeds, Interval(*np.percentile(means, (2.5, 97.5)).tolist()))


@functools.lru_cache(1)
def _resamples(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=(2000, n), dtype=np.int32)


# the report

def load(results: Path) -> Tuple[List[Dict[str, Any]], Dict[Tuple[str, str], Images]]:
    """Rows of all cells in order, and their images by data set and model.

    Raises:
        ValueError: Cells that are to be compared were measured on different images.
    """
    rows, images, names = [], {}, {}
    for path in sorted(results.glob('*/*/cell.json')):
        cell = json.loads(path.read_text())
        area = json.loads((path.parent / 'area.json').read_text())[0]
        validated = json.loads((path.parent / 'validate.json').read_text())[0]
        table = sorted(_rows(gzip.decompress((path.parent / 'images.csv.gz').read_bytes()).decode()),
                       key=lambda row: row['image'])
        listed = [row['image'] for row in table]
        if names.setdefault(cell['data'], listed) != listed:
            raise ValueError(f'{path.parent} was measured on other images than the cells before it: remove one of them.')
        found = {name: 100 * np.array([float(row[name]) for row in table]) for name in table[0] if name not in (
            'image', 'label', 'prediction')}
        columns = dict(top1=found['correct'], top5=found['correct_top5'], coverage=found['coverage'])
        for name, flags in found.items():  # points lost with what the model relies on erased, and with random regions
            if name.startswith('correct_cam_'):
                columns[name.replace('correct_cam', 'lost')] = found['correct'] - flags
            if name.startswith('correct_random_'):
                columns[name.replace('correct_random', 'random')] = found['correct'] - flags
        images.setdefault((cell['data'], cell['model']), {})[cell['method'], cell['seed']] = columns
        sizes = dict(coverage_map=area['map_size'], erasing_map=validated['map_size'])
        values = {**cell, **{name: f'{v.mean():.4f}' for name, v in columns.items()}, 'n_val': len(table),
                  **{name: 'x'.join(map(str, size)) for name, size in sizes.items()}}
        rows.append({name: values[name] for name in COLUMNS})
    return rows, images


def asked(kind: str, model: str) -> Dict[str, int]:
    """Seeds that the matrix has of each method, of the first tier's if it does not have the model."""
    blocks = [b for b in MATRIX if b.kind == kind and b.model == model] or [b for b in MATRIX if b.tier == 1]
    return {method: block.seeds for block in blocks for method in block.methods}


def groups(rows: Sequence[Dict[str, Any]]) -> Dict[Tuple[str, str, str], List[Dict[str, Any]]]:
    """Cells by kind of data, data set and model: those that are compared."""
    found: Dict[Tuple[str, str, str], List[Dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row['kind'], row['data'], row['model']), []).append(row)
    return found


def judge(rows: Sequence[Dict[str, Any]], images: Dict[Tuple[str, str], Images]) -> List[Dict[str, str]]:
    """Each claim held against the results, for each data set and model of which the matrix has what it needs."""
    judged = []
    grouped = groups(rows)
    for claim in CLAIMS:
        needed = {method for weights, _, _ in claim.contrasts for method in weights}
        places = [key for key in grouped if key[0] == claim.kind and needed <= set(asked(claim.kind, key[2]))]
        for kind, data, model in places:
            cells, seeds = grouped[kind, data, model], asked(kind, model)
            have = {m: sum(row['method'] == m for row in cells) for m in needed}
            row = dict(claim=claim.text, where=f'{data}, {model}', answer='not run', figures='', seeds='', images='')
            if all(have.values()):
                found = [(contrast(cells, images.get((data, model), {}), weights, column), margin)
                         for weights, column, margin in claim.contrasts]
                answers = [difference.answer(margin) for difference, margin in found]
                row['answer'] = 'no' if 'no' in answers else 'yes' if set(answers) == {'yes'} else 'undecided'
                row['figures'] = '; '.join(_signed(weights, difference.value) for (weights, _, _), (difference, _) in zip(
                    claim.contrasts, found))
                row['seeds'] = '; '.join(str(d.seeds or 'one seed') for d, _ in found)
                row['images'] = '; '.join(str(d.images or 'none') for d, _ in found)
            row['cells'] = ', '.join(f'{m} {have[m]}' for m in METHODS if m in needed)
            short = [m for m in needed if have[m] < seeds[m]]
            if short and row['answer'] != 'not run':
                row['answer'] += ', incomplete'
            judged.append(row)
        if not places:
            judged.append(dict(claim=claim.text, where=claim.kind, answer='not run', figures='', seeds='', images='',
                               cells=''))
    return judged


def _signed(weights: Dict[str, float], value: float) -> str:
    terms = ' '.join(f'{"+" if w > 0 else "-"} {"" if abs(w) == 1 else f"{abs(w):g} "}{m}' for m, w in weights.items())
    return f'{terms.removeprefix("+ ")} = {value:+.2f}'


def _table(rows: Sequence[Dict[str, str]]) -> str:
    lines = [list(rows[0]), ['---'] * len(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def method_rows(rows: Sequence[Dict[str, Any]], images: Images) -> List[Dict[str, str]]:
    """A row for each method of one model on one data set."""
    def mean(cells: Sequence[Dict[str, Any]], column: str, sd: bool = False) -> str:
        values = [float(cell[column]) for cell in cells]
        return f'{statistics.fmean(values):.2f}' + (f' ± {statistics.stdev(values):.2f}' if sd and len(values) > 1 else '')

    table = []
    for method in METHODS:
        cells = [row for row in rows if row['method'] == method]
        if not cells:
            continue
        against = dict.fromkeys(('to plain', 'over seeds', 'over images'), '')
        if method != 'plain' and any(row['method'] == 'plain' for row in rows):
            found = contrast(rows, images, {method: 1, 'plain': -1}, 'top1')
            against = {'to plain': f'{found.value:+.2f}', 'over seeds': found.seeds or 'one seed',
                       'over images': found.images or 'none'}
        one = cells[0]
        table.append({
            'method': f'`{method}`', 'seeds': len(cells), 'epochs': one['epochs'],
            'compute': f'{float(one["epochs"]) * float(one["passes"]):g}', 'top-1': mean(cells, 'top1', True), **against,
            'top-5': mean(cells, 'top5', True), f'coverage, {one["coverage_map"]} map': mean(cells, 'coverage', True),
            f'25 % erased by CAM, {one["erasing_map"]} map': f'-{mean(cells, "lost_25")}',
            'by chance': f'-{mean(cells, "random_25")}',
            'minutes': f'{statistics.fmean(float(cell["seconds"]) for cell in cells) / 60:.1f}'})
    return table


def draw(rows: Sequence[Dict[str, Any]], path: Path) -> None:
    """Top-1 against compute: a point for each method, with the spread of its seeds."""
    from matplotlib.figure import Figure

    grouped = groups(rows)
    figure = Figure(figsize=(7, 4.5 * len(grouped)), layout='constrained')
    for ax, ((_, data, model), cells) in zip(figure.subplots(len(grouped), squeeze=False)[:, 0], grouped.items()):
        for k, method in enumerate(m for m in METHODS if any(cell['method'] == m for cell in cells)):
            found = [cell for cell in cells if cell['method'] == method]
            tops = [float(cell['top1']) for cell in found]
            x = float(found[0]['epochs']) * float(found[0]['passes'])
            mean = statistics.fmean(tops)
            ax.errorbar([x], [mean], [[mean - min(tops)], [max(tops) - mean]], fmt='os^Dv'[k // 10], capsize=3,
                        color=f'C{k % 10}', label=method + (' (one seed)' if len(tops) == 1 else ''))
        ax.set(xlabel='passes over the training images (epochs x passes a step)', ylabel='top-1, %',
               title=f'{data}, {model}')
        ax.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120, metadata={'Software': None})


def report(results: Path) -> None:
    """Write `cells.csv`, `README.md` and `accuracy.png` of all cells that are done.

    Raises:
        ValueError: There are none.
    """
    rows, images = load(results)
    if not rows:
        raise ValueError(f'There are no results in {results}: run some cells first.')
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    _write(results / 'cells.csv', text.getvalue())
    rows = _rows((results / 'cells.csv').read_text())  # what is claimed is read off it
    judged = judge(rows, images)
    parts = [INTRODUCTION, '## Claims\n', _table(judged), READING]
    for (kind, data, model), cells in groups(rows).items():
        seeds = asked(kind, model)
        have = {m: sum(cell['method'] == m for cell in cells) for m in seeds}
        missing = [f'{m} ({have[m]} of {n})' for m, n in seeds.items() if have[m] < n]
        example = next(results.glob(f'{data}/{model}-*/cell.json'))
        cell = json.loads(example.read_text())
        parts += [f'## {data}, {model}\n', _table(method_rows(cells, images[data, model])),
                  f'Incomplete, seeds run: {", ".join(missing)}.\n' if missing else 'All cells of the matrix are run.\n',
                  f'Settings: {cell["base"]}. {cell["processor"]}, {cell["cores"]} cores, torch {cell["torch"]}, timm '
                  f'{cell["timm"]}. A cell:\n\n```\n{cell["command"]}\n```\n']
    _write(results / 'README.md', '\n'.join(parts))
    draw(rows, results / 'accuracy.png')
    print(f'{results / "README.md"}, cells.csv and accuracy.png beside it')
    for row in judged:
        print(f'{row["answer"]:22} {row["claim"]} ({row["where"]}): {row["figures"]}')


INTRODUCTION = """# Accuracy

Written by `python benchmarks/accuracy.py --report` from the folders beside this page, one for each run: its settings,
its epochs, its accuracy and what it says of each validation image; all runs in one table: [cells.csv](cells.csv). The
weights are those of the last epoch; nothing was chosen on the validation images.

![Top-1 against compute](accuracy.png)
"""
READING = """
Differences are in percentage points, with 95 % intervals. Over seeds: Student's t, by the variance within methods, pooled
over all methods of the same model and data, which takes the spread of seeds to be the same for all; that is where the
interval of a method with one seed comes from. Over images: bootstrap of the validation images, paired, with the means
over seeds. A claim is answered yes if both intervals lie above its margin (0; half a point where it says so), no if both
lie below, else undecided; each interval is of its own claim, not of all at once. Compute is epochs times passes of an
image through the network in a step. Coverage is in percent, at images of 128 px or more; its map, and the one that
ranks the erased pixels, are the network's last.
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        if args.report:
            report(args.results)
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
        print('Stopped: the cell under way goes on next time.', file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == '__main__':
    sys.exit(main())
