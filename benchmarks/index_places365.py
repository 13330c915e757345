#!/usr/bin/env python3
"""Measures time and memory of indexing a data set of the size of Places365, from its list and from a tree of folders.

    python benchmarks/index_places365.py --files 100000

Each figure comes from a fresh process that has imported the package. The script makes up the list and the files; the
files are empty.
"""
import argparse
import os
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

# This process imports nothing large, because the peak of a process that it starts is at least its own.

ROOT = '/data/places365/data_256'
CATEGORIES = Path(__file__).parent.parent / 'timm_focus' / 'data' / 'places365_categories.txt'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--lines', type=int, default=1_803_460, help='lines of the list (default: 1803460)')
    parser.add_argument('--files', type=int, default=100_000, help='files of the tree (default: 100000)')
    parser.add_argument('--workers', type=int, default=4, help='processes that read all paths (default: 4)')
    return parser.parse_args()


def fresh(function, *args):
    """Call the function in a process of its own, and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def peak():
    """Return the most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(function, *args, **kwargs):
    began = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - began


def images(n):
    """Yield folder, file name and label of n images in 365 classes of equal size."""
    names = CATEGORIES.read_text().split()
    for label, name in enumerate(names):
        for i in range(n // len(names) + (label < n % len(names))):
            yield f'{name[0]}/{name}', f'{i + 1:08d}.jpg', label


def as_index(path):
    from timm_focus.data.index import read_list
    return read_list(path, ROOT, n_classes=365)


def as_tuples(path):
    """Read a list of (path, target), which is how timm and torchvision keep images."""
    with open(path) as f:
        return [(os.path.join(ROOT, name.lstrip('/')), int(label)) for name, label in map(str.split, f)]


def read(how, path):
    """Return the seconds that reading takes, and the peak of memory before and after in MiB."""
    import timm_focus.data.index  # noqa: F401
    before = peak()
    _, seconds = timed(how, path)
    return seconds, before, peak()


def draw(path):
    """Return the seconds that drawing the paper's Places365-small takes."""
    from timm_focus.data.index import subset
    return timed(subset, as_index(path), 1000, 0)[1]


def memory(pids):
    """Return the memory that these processes have together in MiB; shared memory counts once (PSS)."""
    lines = [line for pid in pids for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith('Pss:')) / 1024


def read_all_paths(data, barrier):
    for _ in range(2):  # all have started; all are measured
        barrier.wait()
    if isinstance(data, list):
        for _ in data:
            pass
    else:
        for i in range(len(data)):
            data.path(i), data.target(i)
    for _ in range(2):  # all have read; all are measured
        barrier.wait()


def work(how, path, n):
    """Return the memory of n workers and their parent in MiB, before and after the workers have read all paths."""
    import timm_focus.data.index  # noqa: F401
    data = how(path)
    context = get_context('fork')
    barrier = context.Barrier(n + 1)
    workers = [context.Process(target=read_all_paths, args=(data, barrier)) for _ in range(n)]
    for worker in workers:
        worker.start()
    pids = [os.getpid(), *(worker.pid for worker in workers)]
    measured = []
    for _ in range(2):
        barrier.wait()
        measured.append(memory(pids))
        barrier.wait()
    for worker in workers:
        worker.join()
    return measured


def make_tree(root, n):
    folders = set()
    for folder, name, _ in images(n):
        if folder not in folders:
            os.makedirs(os.path.join(root, folder))
            folders.add(folder)
        open(os.path.join(root, folder, name), 'x').close()
    for folder, *_ in os.walk(root):
        os.utime(folder, (1e9, 1e9))  # the cache trusts folders that did not change lately


def scan(name, root):
    """Return the seconds that a scan takes, and the peak of memory before and after in MiB."""
    from timm.data.readers.reader_image_folder import find_images_and_targets

    from timm_focus.data import index
    before = peak()
    function = find_images_and_targets if name == 'timm' else getattr(index, name)
    _, seconds = timed(function, root, **({} if name == 'timm' else {'nested': True}))
    return seconds, before, peak()


def main():
    args = parse_args()
    print(f'{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, '
          f'Python {platform.python_version()}, numpy {metadata.version("numpy")}, timm {metadata.version("timm")}; '
          f'one run of each')
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'list.txt')
        with open(path, 'w') as f:
            f.writelines(f'/{place}/{name} {label}\n' for place, name, label in images(args.lines))
        print(f'a list of {args.lines:,} lines, {os.path.getsize(path) / 2 ** 20:.0f} MiB')
        for title, how in (('read_list', as_index), ('list of tuples', as_tuples)):
            seconds, before, after = fresh(read, how, path)
            print(f'  {title}: {seconds:.2f} s, peak {after:.0f} MiB, of which {before:.0f} by the imports')
        print(f'  subset of 1000 a class: {fresh(draw, path):.2f} s')
        for title, how in (('ImageIndex', as_index), ('list of tuples', as_tuples)):
            before, after = fresh(work, how, path, args.workers)
            print(f'  {args.workers} workers and their parent with {title}: {before:.0f} MiB, '
                  f'{after:.0f} once all have read all paths, {(after - before) / args.workers:+.0f} each')

        root = os.path.join(folder, 'tree')
        os.environ['XDG_CACHE_HOME'] = os.path.join(folder, 'cache')
        make_tree(root, args.files)
        print(f'a tree of {args.files:,} files in 365 nested folders, read from memory')
        for title, name in (
                ("timm's find_images_and_targets", 'timm'), ('scan_folder', 'scan_folder'),
                ('cached_scan, first time', 'cached_scan'), ('cached_scan, second time', 'cached_scan')):
            seconds, before, after = fresh(scan, name, root)
            print(f'  {title}: {seconds:.3f} s, {after - before:.0f} MiB above the imports at the peak')


if __name__ == '__main__':
    main()
