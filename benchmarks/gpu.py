#!/usr/bin/env python3
"""Measures in a given time everything that needs a GPU, the most important first.

    python benchmarks/gpu.py --scenes /data/miniplaces40 --pack scenes.tar     # on the machine with the images
    python benchmarks/gpu.py --scenes scenes.tar --budget 500                  # on the machine with the GPU
    python benchmarks/gpu.py --scenes scenes.tar --items loop accuracy --budget 300

It needs the checkout, torch and timm, and installs nothing. Each item is a process with a time limit. An item that has
too little time left, or lacks something, is left out, and the report says so.

`report.md` and `report.json` in `--output` list all items and are written before and after each, so a run that is cut
off leaves what it found, and says what is missing. `log.txt` has the output of the processes, and `accuracy.tar.gz` the
results of benchmarks/accuracy.py. `--device cpu` tries everything in tiny sizes, on a few of the images.
"""
import argparse
import contextlib
import csv
import datetime
import importlib.util
import json
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (1, 0, 31)  # the least version of timm
LOG = 4 * 2 ** 20  # log.txt does not grow beyond about so many bytes
FEW = 32  # images of each split that a trial on the CPU reads, but at least one of each class
Row = Dict[str, Any]


class Missing(Exception):
    """Something that an item needs is not there; the message says what."""


class Sizes(NamedTuple):
    """Sizes of all items: large enough for a GPU, or tiny for a trial on the CPU.

    Attributes:
        train: Flags of the two training commands.
        train_model: Model that they train.
        models: Models whose steps are measured.
        compiled: Models whose compiled steps are measured.
        step: Flags of step_cost.py.
        loop: Flags of loop_speed.py.
        workers: Numbers of workers to compare.
        accuracy: Flags of accuracy.py.
    """
    train: str
    train_model: str
    models: Sequence[str]
    compiled: Sequence[str]
    step: str
    loop: str
    workers: Sequence[int]
    accuracy: str


SIZES = {
    'cuda': Sizes(
        '--epochs 3', 'resnet18',
        ('resnet18', 'resnet50', 'densenet121', 'shufflenetv2_x1_5', 'vit_small_patch16_224', 'convnext_tiny'),
        ('resnet18', 'vit_small_patch16_224'), '-b 64 --steps 6',
        '--model focus_resnet18 --img-size 128 -b 128 --steps 48 --epochs 3 --repeats 1', (2, 4, 8, 16),
        '-j 12'),
    'cpu': Sizes(
        '--epochs 1 --img-size 32 -b 8 -j 0 --log-interval 1', 'test_resnet', ('test_resnet',), (),
        '-b 2 --steps 1 --img-size 32 --num-classes 4 --kinds focus',
        '--model focus_test_resnet --img-size 32 -b 4 --steps 3 --repeats 1', (0,),
        '--model test_resnet -j 0 --img-size 40 --epochs 1 --seeds 1 --methods focus -- --batch-size 8'),
}


class Bench:
    """What items need to run: the device, the time that is left, the images, and a way to start processes."""

    def __init__(self, args: argparse.Namespace, work: Path):
        self.device = args.device
        self.sizes = SIZES[args.device.split(':')[0]]
        self.output = Path(args.output)
        self.work = work
        self.deadline = time.monotonic() + args.budget
        self.scenes = unpack(Path(args.scenes), work) if args.scenes else None
        if self.scenes is not None and self.device == 'cpu':
            self.scenes = few(self.scenes, work)
        self.log = self.output / 'log.txt'
        self.is_cut_off = False

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def folder(self) -> str:
        if self.scenes is None:
            raise Missing('it needs images: give --scenes.')
        return str(self.scenes)

    def call(self, seconds: float, *command: str) -> Tuple[Optional[int], str]:
        """Run a command of this checkout; return its exit code (None if the time limit ended it) and its output."""
        path = self.work / 'said.txt'
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1', 'TQDM_DISABLE': '1'}
        with open(path, 'wb') as f:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=f, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment, cwd=self.work, start_new_session=True)
            code: Optional[int] = None
            try:
                code = process.wait(max(seconds, 1))
            except subprocess.TimeoutExpired:
                pass
            except KeyboardInterrupt:  # the item reports what it has so far, and no other begins
                self.is_cut_off = True
            finally:
                end(process)
        said = path.read_text(errors='replace')
        if not self.log.exists() or self.log.stat().st_size < LOG:
            with open(self.log, 'a') as f:
                f.write(f'$ {shown(command)}\n{said[-LOG // 8:]}\n')
        return code, said


def end(process: subprocess.Popen) -> None:
    """End a process and all that it started: first with SIGTERM, so that runs keep a checkpoint, then with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            if number == signal.SIGTERM:
                time.sleep(0.2)


def shown(command: Sequence[str]) -> str:
    return shlex.join(['python', *command]).replace(f'{ROOT}/', '')


class Item(NamedTuple):
    """One measurement.

    Attributes:
        name: Name for `--items`.
        title: Title in the report.
        least: Seconds that it needs at least; with less time left it is not begun.
        most: Seconds after which it is ended.
        run: Called with the bench and the seconds that it may take; returns its state, a note and rows of a table.
    """
    name: str
    title: str
    least: float
    most: float
    run: Callable[[Bench, float], Tuple[str, str, List[Row]]]


# the items

def tests(bench: Bench, seconds: float) -> Tuple[str, str, List[Row]]:
    """Run the tests marked cuda."""
    if importlib.util.find_spec('pytest') is None:
        raise Missing('pytest is not installed.')
    code, said = bench.call(
        seconds, '-m', 'pytest', '-m', 'cuda', '-o', 'addopts=', '-p', 'no:cacheprovider', '-v', '-rs', '--color=no',
        '--tb=short', '--rootdir', str(ROOT), *([] if bench.device != 'cpu' else ['--rehearse']),
        str(ROOT / 'tests/runs/test_cuda.py'))
    found = re.findall(r'^\S*test_cuda\.py::(\S.*?) (PASSED|FAILED|ERROR|SKIPPED)', said, re.M)
    reasons = re.findall(r'^(?:E   +(.*)|SKIPPED \[\d+\] \S+ (.*))$', said, re.M)
    rows = [dict(test=name, result=result.lower()) for name, result in dict(found).items()]
    results = [row['result'] for row in rows]
    why = ', '.join(f'{results.count(each)} {each}' for each in dict.fromkeys(sorted(results))) or 'none was run'
    why += ''.join(f'; {a or b}' for a, b in reasons[:6])
    return state_of(code, said), f'{why}.', rows


LOAD = """
import sys, time, torch, timm
expression, device = sys.argv[1:]
model = eval(expression.removeprefix('import timm_focus; ')).eval().to(device)
size = model.pretrained_cfg['input_size']
with torch.no_grad():
    shape = tuple(model(torch.zeros(2, *size, device=device)).shape)
print('loaded', type(model).__name__, sum(p.numel() for p in model.parameters()), shape)
assert not any(name.startswith('timm_focus') for name in sys.modules)
"""


def train(prefix: str) -> Callable:
    def run(bench: Bench, seconds: float) -> Tuple[str, str, List[Row]]:
        """Run a training command as a user types it, and then the line that it prints for loading the result."""
        model, began = prefix + bench.sizes.train_model, time.monotonic()
        command = ['train_focus.py', bench.folder(), '--model', model, '--amp', *shlex.split(bench.sizes.train)]
        code, said = bench.call(
            seconds, str(ROOT / command[0]), *command[1:], '--device', bench.device, '--output', str(bench.work),
            '--experiment', model)
        row: Row = dict(line=shown(command).replace(bench.folder(), 'DIR'))
        rates = [float(rate) for rate in re.findall(r'([\d.]+) img/s', said)]
        waits = [float(share) for share in re.findall(r'waiting (\d+)%', said)]
        if rates:
            later = rates[1:] or rates
            row.update({'img/s': statistics.median(later), 'waiting %': statistics.median(waits[1:] or waits)})
        summary = bench.work / model / 'summary.csv'
        if summary.exists():
            with open(summary, newline='') as f:
                last = list(csv.DictReader(f))[-1]
            row.update({k: float(v) for k, v in last.items() if v and k != 'lr'})
        loads = re.search(r'Load it with timm: (.*)', said)
        if code == 0 and loads:
            _, answer = bench.call(max(seconds - (time.monotonic() - began), 30), '-c', LOAD, loads[1], bench.device)
            row.update(load=loads[1].replace(f'{bench.work}/', ''), loaded=last_line(answer))
            if not row['loaded'].startswith('loaded '):
                return 'failed', f'The line that loads it does not: {row["loaded"]}', [row]
        return state_of(code, said), '' if code == 0 else f'{last_line(said)}', [row]
    return run


SOME = ('--kinds', 'focus', 'focus, recompute', 'focus, fraction 0.5')  # all kinds are measured once, in float16


def step(models: str, *flags: str) -> Callable:
    def run(bench: Bench, seconds: float) -> Tuple[str, str, List[Row]]:
        """Measure what a focus step costs over a plain one."""
        names = getattr(bench.sizes, models)
        if not names:
            raise Missing('it needs a GPU.')
        path = bench.work / 'step.json'
        path.unlink(missing_ok=True)
        code, said = bench.call(
            seconds, str(ROOT / 'benchmarks/step_cost.py'), *names, '--device', bench.device, '--no-counts', '--json',
            str(path), *flags, *shlex.split(bench.sizes.step))
        found = json.loads(path.read_text()) if path.exists() else []
        rows = [{'model': line['model'], 'step': line['kind'], 'ms': 1000 * line['seconds'],
                 'over plain': line['ratio'], 'from': 1000 * line['low'], 'to': 1000 * line['high'],
                 'peak MiB': line['peak_bytes'] / 2 ** 20 if 'peak_bytes' in line else None,
                 'peak over plain': line.get('peak_bytes_ratio')} for line in found]
        return state_of(code, said), '' if code == 0 else f'{len(rows)} rows; {last_line(said)}', rows
    return run


def loop(bench: Bench, seconds: float) -> Tuple[str, str, List[Row]]:
    """Compare train_focus.py with a bare loop in images a second, with several numbers of workers."""
    path = bench.work / 'loop.json'
    cores = len(os.sched_getaffinity(0))
    workers = [n for n in bench.sizes.workers if n <= cores] or [cores]
    amp = ['--amp', '--pin-mem'] if bench.device != 'cpu' else []
    code, said = bench.call(
        seconds, str(ROOT / 'benchmarks/loop_speed.py'), bench.folder(), '--device', bench.device, '--json', str(path),
        *shlex.split(bench.sizes.loop), '-j', *map(str, workers), *amp)
    found = json.loads(path.read_text()) if path.exists() else []
    rows = [{'run': line['kind'], 'img/s': line['rate'], 'from': line['low'], 'to': line['high'],
             'over bare': line['ratio'], 'first line after s': line['first_line']} for line in found]
    return state_of(code, said), f'{cores} cores.' if code == 0 else f'{len(rows)} rows; {last_line(said)}', rows


def accuracy(bench: Bench, seconds: float) -> Tuple[str, str, List[Row]]:
    """Run as many cells of tier 4 of the matrix as there is time for, seed by seed."""
    results = bench.work / 'results'
    code, said = bench.call(
        seconds, str(ROOT / 'benchmarks/accuracy.py'), '--scenes', bench.folder(), '--tier', '4', '--device',
        bench.device, '--minutes', f'{max(seconds - 20, 10) / 60:.2f}', '--results', str(results), '--output',
        str(bench.work / 'accuracy'), *shlex.split(bench.sizes.accuracy))
    rows = []
    for path in sorted(results.glob('*/*/cell.json')):
        found = json.loads(path.read_text())
        validated = json.loads((path.parent / 'validate.json').read_text())[0]
        rows.append({'model': found['model'], 'method': found['method'], 'seed': found['seed'],
                     'passes': found['passes'] * found['epochs'], 'top-1 %': validated['top1'],
                     'seconds': found['seconds'], 'measuring s': found['evaluation_seconds']})
    if results.exists():
        with tarfile.open(bench.output / 'accuracy.tar.gz', 'w:gz') as tar:
            tar.add(results, 'accuracy')
    state = state_of(code, said)
    return state, f'{len(rows)} cells. {last_line(said) if state != "done" or not rows else ""}'.strip(), rows


ITEMS = (
    Item('tests', 'Tests of a GPU', 20, 170, tests),
    Item('train', 'Training, as a user types it', 20, 60, train('focus_')),
    Item('train-plain', 'The plain model by the same line', 20, 45, train('')),
    Item('step', 'A step in float16, with the loss scaler', 15, 90, step('models', '--amp', 'float16')),
    Item('step-bfloat16', 'A step in bfloat16', 15, 45, step('models', '--amp', 'bfloat16', *SOME)),
    Item('step-format', 'A step in float16, not channels_last', 15, 45,
         step('models', '--amp', 'float16', '--no-channels-last', *SOME)),
    Item('loop', 'The loop against a bare one, by workers', 25, 110, loop),
    Item('step-compiled', 'A step in float16, compiled', 60, 120,
         step('compiled', '--amp', 'float16', '--torchcompile', *SOME)),
    Item('step-float32', 'A step in float32', 15, 45, step('models', *SOME)),
    Item('accuracy', 'Accuracy at 128 px, at equal compute', 40, 3600, accuracy),
)


def state_of(code: Optional[int], said: str) -> str:
    return 'stopped at its limit' if code is None else 'done' if code == 0 else 'failed'


def last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else 'it printed nothing.'


# images

def splits_of(source: Path) -> List[Path]:
    """Return the folders of the training and of the validation images.

    Raises:
        Missing: The folder does not have `train/<class>/` and `val/<class>/`.
    """
    splits = [next((source / name for name in names if (source / name).is_dir()), None)
              for names in (('train',), ('val', 'validation'))]
    if None in splits:
        raise Missing(f'{source} has no train and val: give a folder with train/<class>/ and val/<class>/.')
    return [split for split in splits if split is not None]


def pack(source: Path, target: Path, mib: float) -> None:
    """Write images of a folder to one file: the same share of each class and split, as large as there is room for.

    Raises:
        Missing: The folder does not have `train/<class>/` and `val/<class>/`.
    """
    classes = [sorted(path for path in folder.iterdir() if path.is_file())
               for split in splits_of(source) for folder in sorted(split.iterdir()) if folder.is_dir()]
    sizes = [sum(path.stat().st_size + 64 for path in images) for images in classes]  # 64: a compressed header of tar
    share = min(1., mib * 2 ** 20 / max(sum(sizes), 1))
    partial = target.with_name(f'{target.name}.tmp')
    with tarfile.open(partial, 'w:gz', compresslevel=1) as tar:
        for images in classes:
            n = int(share * len(images))
            for k in range(n):
                path = images[k * len(images) // n]  # evenly spread, because neighbours may be alike
                tar.add(path, Path(source.resolve().name) / path.relative_to(source), recursive=False)
    partial.replace(target)
    print(f'{target}: {share:.0%} of the images, {target.stat().st_size / 2 ** 20:.1f} MiB')


def unpack(source: Path, work: Path) -> Path:
    """Return the folder of images; a file is unpacked first.

    Raises:
        Missing: There is no such folder or file.
    """
    if source.is_dir():
        return source.resolve()
    if not source.is_file():
        raise Missing(f'there is no {source}.')
    with tarfile.open(source) as tar:
        tar.extractall(work / 'scenes', filter='data')
    return next((work / 'scenes').iterdir())


def few(source: Path, work: Path) -> Path:
    """Make a folder of links to a few of the images, equally many of each class.

    Raises:
        Missing: The folder does not have `train/<class>/` and `val/<class>/`.
    """
    target = work / 'few' / source.name
    for split in splits_of(source):
        classes = sorted(path for path in split.iterdir() if path.is_dir())
        for folder in classes:
            own = target / split.name / folder.name
            own.mkdir(parents=True)
            for path in sorted(path for path in folder.iterdir() if path.is_file())[:max(FEW // len(classes), 1)]:
                (own / path.name).symlink_to(path)
    return target


# the report

def header(device: str) -> Row:
    import timm
    import torch

    name = torch.cuda.get_device_name() if device.startswith('cuda') else platform.processor() or platform.machine()
    return dict(
        date=str(datetime.date.today()), device=name, cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(), torch=torch.__version__, timm=timm.__version__,
        capability=torch.cuda.get_device_capability() if device.startswith('cuda') else None)


def write_report(head: Row, found: Sequence[Row], output: Path) -> None:
    """Write report.json and report.md, each whole or not at all."""
    for name, text in (('report.json', json.dumps(dict(head, items=found), indent=1) + '\n'),
                       ('report.md', render(head, found))):
        partial = output / f'{name}.tmp'
        partial.write_text(text)
        partial.replace(output / name)


def render(head: Row, found: Sequence[Row]) -> str:
    """Return the report as Markdown: a list of the items, then a table for each."""
    parts = ['# On a GPU' if head['capability'] else '# A trial on the CPU', '',
             f'`{head["command"]}`, {head["date"]}, {head["device"]}, {head["cores"]} cores, Python {head["python"]}, '
             f'torch {head["torch"]}, timm {head["timm"]}.', '',
             table([{'item': item['title'], 'state': item['state'], 'seconds': item['seconds'], 'note': item['why']}
                    for item in found])]
    for item in found:
        if item['rows']:
            parts += [f'## {item["title"]}', '', table(item['rows'])]
    return '\n'.join(parts)


def table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ['---'] * len(columns), *([cell(row.get(name)) for name in columns] for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def cell(value: Any) -> str:
    if value is None:
        return ''
    text = f'{value:.4g}' if isinstance(value, float) else str(value)
    return text.replace('|', '\\|').replace('\n', ' ')


# all of it

def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    names = [item.name for item in ITEMS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--scenes', metavar='PATH', help='folder of scenes, with train/<class>/ and val/<class>/, or '
                        'the file that --pack made of it')
    parser.add_argument('--pack', metavar='FILE', help='write the scenes to this file, and run nothing')
    parser.add_argument('--pack-mib', type=float, default=50, metavar='N', help='largest size of that file in MiB '
                        '(default: 50)')
    parser.add_argument('--budget', type=float, default=500, metavar='SECONDS', help='time for all (default: 500)')
    parser.add_argument('--items', nargs='+', choices=names, metavar='NAME', help='run only these, in this order, of '
                        + ', '.join(names))
    parser.add_argument('--device', default='cuda', help='device; cpu tries everything in tiny sizes (default: cuda)')
    parser.add_argument('--output', default='gpu', metavar='DIR', help='where the report is written (default: gpu)')
    args = parser.parse_args(argv)
    if args.device.split(':')[0] not in SIZES:
        parser.error(f'--device is {args.device}: give cuda or cpu.')
    if args.pack and not args.scenes:
        parser.error('--pack needs --scenes DIR, the images.')
    return args


def check_machine(args: argparse.Namespace) -> None:
    """Raise Missing if nothing can be run on this machine."""
    for name in ('torch', 'timm'):
        if importlib.util.find_spec(name) is None:
            raise Missing(f'{name} is not installed, and this script installs nothing.')
    import timm
    import torch

    version = tuple(int(part) for part in re.findall(r'\d+', timm.__version__)[:3])
    if version < NEEDED:
        raise Missing(f'timm is {timm.__version__}, and {".".join(map(str, NEEDED))} is needed: name its wheel file in '
                      'PYTHONPATH.')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise Missing('torch finds no GPU: --device cpu tries everything in tiny sizes.')


def run_item(item: Item, bench: Bench) -> Row:
    """Run an item, and return its row of the report: state, note, seconds and rows of its table."""
    began, state, why, rows = time.monotonic(), 'skipped', '', []
    if bench.left < item.least:
        why = f'{max(bench.left, 0):.0f} s are left, and it takes {item.least:.0f} s at least.'
    else:
        try:
            most = item.most * (1 if bench.device != 'cpu' else 4)  # a trial on the CPU may share its cores
            state, why, rows = item.run(bench, min(most, bench.left))
        except Missing as e:
            why = str(e)
        except Exception as e:  # an error of this script, which must not keep the other items from running
            state, why = 'failed', f'{type(e).__name__}: {e}'
    if bench.is_cut_off:
        state = 'cut off'
    return row_of(item, state, why, rows, time.monotonic() - began)


def row_of(item: Item, state: str, why: str = '', rows: Sequence[Row] = (), seconds: Optional[float] = None) -> Row:
    return dict(name=item.name, title=item.title, state=state, why=why,
                seconds=None if seconds is None else round(seconds, 1), rows=list(rows))


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises, so that no process is left behind
    try:
        if args.pack:
            pack(Path(args.scenes), Path(args.pack), args.pack_mib)
            return 0
        check_machine(args)
        output = Path(args.output)
        output.mkdir(parents=True, exist_ok=True)
        args.output = output.resolve()
        known = {item.name: item for item in ITEMS}
        with tempfile.TemporaryDirectory(prefix='gpu-') as work:
            bench = Bench(args, Path(work))
            bench.log.unlink(missing_ok=True)
            words = shlex.join(sys.argv[1:] if argv is None else argv)
            head = dict(header(args.device), command=f'python benchmarks/gpu.py {words}')
            found = {name: row_of(known[name], 'not begun') for name in args.items or known}
            for name in found:
                found[name]['state'] = 'under way'
                write_report(head, list(found.values()), bench.output)
                item = found[name] = run_item(known[name], bench)
                write_report(head, list(found.values()), bench.output)
                print(f'{name:16} {item["state"]:20} {item["seconds"]:6.1f} s  {item["why"]}', flush=True)
                if bench.is_cut_off:
                    raise KeyboardInterrupt
    except (Missing, OSError) as e:
        print(f'gpu.py: error: {" ".join(str(e).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'Stopped: the items that were finished are in {args.output}.', file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print((output / 'report.md').read_text())
    return 1 if any(item['state'] == 'failed' for item in found.values()) else 0


if __name__ == '__main__':
    sys.exit(main())
