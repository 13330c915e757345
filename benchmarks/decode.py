#!/usr/bin/env python3
"""Measures how many images a second one core prepares for training, from JPEG files, with several decoders.

    python benchmarks/decode.py /data/places365/data_256/a/airfield --img-size 224

Each decoder reads the same files, and is followed by the simple scheme's resize, crop and flip. timm and this project
read with Pillow. If Pillow-SIMD is installed in its place, the first line measures that. The decoders of the last lines
return tensors.
"""
import argparse
import functools
import io
import statistics
import time
from pathlib import Path

import PIL
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import io as tv_io
from torchvision.transforms import v2

from header import print_header, spread
from timm_focus.data import use_simple_crop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', metavar='DIR', help='folder with JPEG files, at any depth')
    parser.add_argument('--img-size', type=int, default=224, help='height and width (default: 224)')
    parser.add_argument('--images', type=int, default=256, help='number of images (default: 256)')
    parser.add_argument('--repeats', type=int, default=7, help='rounds over the images (default: 7)')
    parser.add_argument('--enlarge', type=int, metavar='N', help='first store the images with a short side of N, as '
                        'JPEG of quality 90, because speed depends on the size of files')
    return parser.parse_args()


def by_pillow(transform, data):
    return transform(Image.open(io.BytesIO(data)).convert('RGB'))


def by_pillow_draft(transform, side, data):
    """Read with Pillow's draft mode, which decodes large files at a lower resolution, and gives other pixels."""
    image = Image.open(io.BytesIO(data))
    image.draft('RGB', (side, side))
    return transform(image.convert('RGB'))


def by_torchvision(transform, data):
    return transform(tv_io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), tv_io.ImageReadMode.RGB))


def by_simplejpeg(transform, simplejpeg, data):
    return transform(torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1))


def readers(size):
    """Return the decoders by name, as functions of the bytes of a file."""
    side = round(size * 8 / 7)
    tensors = v2.Compose([
        v2.Resize(side, antialias=True), v2.RandomCrop(size), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    pillow = create_transform(size, is_training=True, color_jitter=0., interpolation='bilinear')
    use_simple_crop(pillow, (size, size))
    found = {
        f'Pillow {PIL.__version__}': functools.partial(by_pillow, pillow),
        'Pillow with draft': functools.partial(by_pillow_draft, pillow, side),
        'torchvision decode_jpeg': functools.partial(by_torchvision, tensors)}
    try:
        import simplejpeg
        found['simplejpeg'] = functools.partial(by_simplejpeg, tensors, simplejpeg)
    except ImportError:
        pass
    return found


def main():
    args = parse_args()
    torch.set_num_threads(1)  # a worker of a loader has one thread
    paths = sorted(Path(args.folder).rglob('*.jpg'))[:args.images]
    files = [path.read_bytes() for path in paths]
    if args.enlarge:
        files = [enlarged(data, args.enlarge) for data in files]
    print_header(images=len(files), size=f'{args.img_size} px', rounds=args.repeats,
                 file=f'{statistics.mean(map(len, files)) / 1024:.1f} KiB, '
                      f'{Image.open(io.BytesIO(files[0])).size} px')
    kinds = readers(args.img_size)
    rates = {name: [] for name in kinds}
    for _ in range(args.repeats + 1):
        for name, read in kinds.items():
            began = time.perf_counter()
            for data in files:
                read(data)
            rates[name].append(len(files) / (time.perf_counter() - began))
    first = statistics.median(next(iter(rates.values()))[1:])
    for name, found in rates.items():
        print(f'{name:24} {spread(found[1:])} img/s, ratio {statistics.median(found[1:]) / first:.2f}')


def enlarged(data, side):
    image = Image.open(io.BytesIO(data)).convert('RGB')
    ratio = side / min(image.size)
    file = io.BytesIO()
    image.resize([round(n * ratio) for n in image.size]).save(file, 'JPEG', quality=90)
    return file.getvalue()


if __name__ == '__main__':
    main()
