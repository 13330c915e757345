#!/usr/bin/env python3
"""Measures how much of what tells the class of a drawn picture is erased: by the map of a focus model, and at random.

    python -c "from timm_focus.demo.scenes import *; write_synthetic_scenes('drawn_scenes', size=128, masks=True)"
    python train_focus.py drawn_scenes --model focus_resnet10t --img-size 128 --focus-share 0.3 --experiment cam
    python benchmarks/evidence.py drawn_scenes output/train/cam/last.pth.tar

Drawn pictures come with masks of the pixels that tell their class. Every way erases the same share of each picture: the
map of the model's CAM head for the true class, a smooth random map of its size, and cells of a grid. The table has the
share of the telling pixels that is erased, and the accuracy of the main classifier on the erased pictures.
"""
import argparse
from pathlib import Path
from typing import Dict, Iterator, Tuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import normalize, to_tensor

from header import print_header
from timm_focus.method import FocusNet, erase
from timm_focus.method.cam import normalize_map
from timm_focus.method.erase import keep_mask_share, random_grid, resize_map
from timm_focus.runs import Loaded, load_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', metavar='DIR', help='drawn pictures, written with masks=True')
    parser.add_argument('checkpoint', nargs='+', metavar='RUN', help='run of focus training on them, or checkpoint')
    parser.add_argument('--share', type=float, default=0.3, help='share of each picture that is erased (default: 0.3)')
    args = parser.parse_args()
    if not list(Path(args.folder).glob('masks/val/*/*.png')):
        parser.error(f'{args.folder} has no masks/val/<class>/: give drawn pictures that were written with masks=True.')
    if not 0 < args.share < 1:
        parser.error(f'--share is {args.share:g}: give a number between 0 and 1.')
    return args


def pictures(folder: Path, loaded: Loaded) -> Iterator[Tuple[Tensor, Tensor, Tensor]]:
    """Yield the validation pictures of each class, normalised `[B, 3, H, W]`, their classes and their masks."""
    for label, name in enumerate(loaded.label_names):
        files = sorted((folder / 'val' / name).glob('*.png'))
        masks = [np.asarray(Image.open(folder / 'masks/val' / name / file.name)) for file in files]
        x = torch.stack([to_tensor(Image.open(file)) for file in files])
        yield (normalize(x, loaded.data_config['mean'], loaded.data_config['std']), torch.full((len(x),), label),
               torch.from_numpy(np.stack(masks) > 0)[:, None])


@torch.inference_mode()
def measure(model: FocusNet, x: Tensor, target: Tensor, telling: Tensor, share: float) -> Dict[str, Tuple]:
    """Return for each way to erase the share of the telling pixels that is erased, whether the answers are right, and
    the share of each picture that is erased.
    """
    _, (tap,) = model.backbone.forward_intermediates(
        x, indices=[model.stage], norm=False, stop_early=False, output_fmt='NCHW')
    activation = normalize_map(model.cam_head.activation_map(tap, target))
    size = x.shape[-2:]
    masks = {
        'nothing': torch.ones_like(telling),
        'CAM': keep_mask_share(resize_map(activation, size), share),
        'random': keep_mask_share(resize_map(torch.randn_like(activation), size), share),
        'grid': random_grid(len(x), size, share, x.device)}
    there, found = telling.flatten(1).sum(1), {}
    for name, keep in masks.items():
        gone = (telling & ~keep).flatten(1).sum(1)
        found[name] = (gone[there > 0] / there[there > 0], model.backbone(erase(x, keep)).argmax(1) == target,
                       (~keep).flatten(1).float().mean(1))
    return found


def main() -> None:
    args = parse_args()
    print_header(share=args.share)
    print('run | erased | share of a picture, % | share of the telling pixels, % | top-1, %')
    for path in args.checkpoint:
        torch.manual_seed(0)
        loaded = load_model(checkpoint=path, heads=True)
        if not isinstance(loaded.model, FocusNet):
            raise SystemExit(f'{path} has no CAM head: give a run of focus training.')
        parts = [measure(loaded.model, *batch, args.share) for batch in pictures(Path(args.folder), loaded)]
        for name in parts[0]:
            telling, right, erased = (100 * torch.cat([part[name][i] for part in parts]).float().mean()
                                      for i in range(3))
            print(f'{path} | {name} | {erased:.1f} | {telling:.1f} | {right:.1f}', flush=True)


if __name__ == '__main__':
    main()
