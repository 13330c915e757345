"""Runs that were never trained, and a page of them: what they say is drawn here, of parts of a real photograph."""
import importlib

import numpy as np
from matplotlib import cbook
from PIL import Image

from timm_focus.report import Comparison, Gallery, Measured, Run, Shown, build_page, choose, listed_confusions

HOSTILE = '</script><img src=x onerror="window.hacked=1">'
EPOCHS, SIDE = 6, 80


def run(name, method='classifier alone', passes=1., epochs=EPOCHS, top1=50., **changed):
    """What a run says of itself."""
    settings = {**dict(model=name, epochs=epochs, seed=0, lr=0.1), **changed.pop('settings', {})}
    rows = [dict(epoch=float(e), train_loss=3 * 0.8 ** e, eval_loss=2.5 * 0.85 ** e, eval_top1=top1 - 10 * 0.7 ** e,
                 lr=0.1) for e in range(epochs)]
    given = dict(
        name=name, model='resnet10t', method=method, settings=settings, rows=rows,
        work=[passes * (e + 1) for e in range(epochs)], epoch=epochs - 2, epochs=epochs, planned=epochs,
        passes=passes * epochs, images=1000, seconds=8000., parameters=5_000_000, multiply_adds=90_000_000,
        input_size=(3, 64, 64))
    return Run(**{**given, **changed})


def measured(target, right, n_classes, seed=0, maps=True):
    """What a run says of images of which it is right on some."""
    rng = np.random.default_rng(seed)
    right = np.asarray(right)
    prediction = np.where(right, target, (target + rng.integers(1, n_classes, len(target))) % n_classes)
    if not maps:
        return Measured(prediction, {}, right, right)
    cam, random = (np.stack([right & (rng.random(len(target)) < p) for p in ps])
                   for ps in ((.8, .5, .3), (.9, .8, .6)))
    return Measured(prediction, {}, right, right, cam, random, rng.random(len(target)).astype(np.float32), (4, 4), True)


def compared(n=120, maps=True):
    """Two runs on images of four classes, one of a hostile name."""
    rng = np.random.default_rng(1)
    target = np.arange(n) % 4
    runs = [run('plain'), run('scenes', 'focus training', 2., top1=55., settings=dict(method='focus'))]
    return Comparison(
        runs, [measured(target, rng.random(n) < p, 4, k, maps) for k, p in enumerate((.5, .7))], target,
        ['beach', HOSTILE, 'forest', 'street'], 'photos')


def gallery(what, n=30):
    """Pictures of some of the images."""
    address = importlib.import_module('timm_focus.report.measure')._address
    with cbook.get_sample_data('grace_hopper.jpg') as f:
        photo = Image.open(f).convert('RGB')
    rng = np.random.default_rng(2)
    indices = choose(what, n, [c for _, found in listed_confusions(what) for c in found])
    views = [[address(photo.crop((5 * j, 5 * j, 5 * j + 200, 5 * j + 200)).resize((SIDE, SIDE))) for j in range(n)]]
    shown = [[Shown((int(m.prediction[i]), .6), (int(what.target[i]), .3),
                    rng.integers(0, 256, (4, 4), np.uint8), .75) for i in indices] for m in what.measured]
    names = [f'{HOSTILE} {i}.jpg' for i in indices]
    return Gallery(indices, names, views, [0, 0], shown, [.7, .7], [(124, 116, 104)] * 2, [True, True])


def page(**kwargs):
    what = compared(**kwargs)
    return build_page(what, gallery(what), ['Nothing but this.'], ['A map of 4 x 4.'])
