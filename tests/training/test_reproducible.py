"""Batches are a function of seed and epoch, whoever loads them and wherever the epoch begins."""
import pytest
import torch
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import IterableDataset
from torch.utils.data.distributed import DistributedSampler

from timm_focus.training import ReproducibleLoader
from timm_focus.training.reproducible import derive_seed, seed_all

# what of a batch is drawn where: in the worker, in its collation, in this process
KINDS = {
    'augmented': dict(),
    'mixed': dict(mixes=True),
    'erased': dict(re_prob=0.8, re_mode='pixel'),
    'all': dict(mixes=True, re_prob=0.8, re_mode='pixel'),
}


@pytest.fixture
def make(image_folder):
    """`make(...)` is a timm loader of 24 images in batches of 4, with its DataLoader made reproducible."""
    def loader(seed=0, workers=0, prefetcher=True, mixes=False, sampler=None, rank=0, **kwargs):
        dataset = create_dataset('', root=str(image_folder), split='train', is_training=True)
        collate_fn = FastCollateMixup(mixup_alpha=1., cutmix_alpha=1., num_classes=2) if mixes else None
        outer = create_loader(
            dataset, input_size=(3, 32, 32), batch_size=4, is_training=True, use_prefetcher=prefetcher,
            color_jitter=0.4, auto_augment='rand-m9-mstd0.5', num_workers=workers, collate_fn=collate_fn,
            device=torch.device('cpu'), **kwargs)
        inner = outer.loader if prefetcher else outer
        if sampler is not None:
            inner = torch.utils.data.DataLoader(
                inner.dataset, batch_size=4, sampler=sampler(inner.dataset), collate_fn=inner.collate_fn)
        inner = ReproducibleLoader(inner, seed, rank)
        if prefetcher:
            outer.loader = inner
        return (outer if prefetcher else inner), inner
    return loader


def batches(loader, epoch, start_batch=0):
    outer, inner = loader
    inner.set_epoch(epoch, start_batch)
    result = []
    for x, target in outer:
        result.append((x.clone(), target.clone()))
        torch.rand(3)  # what the training step draws in between
    return result


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) and torch.equal(s, t) for (x, s), (y, t) in zip(a, b))


@pytest.mark.parametrize('prefetcher, kind', [(True, 'augmented'), (True, 'mixed'), (True, 'erased'), (True, 'all'),
                                              (False, 'augmented'), (False, 'erased')])
def test_batches_are_a_function_of_seed_and_epoch(make, prefetcher, kind):
    def fresh(seed=0):
        return make(seed, prefetcher=prefetcher, **KINDS[kind])

    expected = batches(fresh(), epoch=1)
    assert len(expected) == 6 and expected[0][0].shape == (4, 3, 32, 32)
    torch.manual_seed(123)
    loader = fresh()
    batches(loader, epoch=0)  # what came before does not matter
    assert same(batches(loader, epoch=1), expected)
    for other in (batches(fresh(), epoch=2), batches(fresh(seed=1), epoch=1)):
        assert not any(torch.equal(x, y) for (x, _), (y, _) in zip(other, expected))


@pytest.mark.parametrize('prefetcher', [True, False])
def test_batches_do_not_depend_on_the_number_of_workers(make, prefetcher):
    kind = KINDS['all' if prefetcher else 'erased']
    alone, helped = (make(workers=n, prefetcher=prefetcher, **kind) for n in (0, 2))
    assert helped[1].persistent_workers
    for epoch, start_batch in ((0, 0), (1, 0), (2, 3), (3, 0)):  # the workers live on
        assert same(batches(helped, epoch, start_batch), batches(alone, epoch, start_batch)), (epoch, start_batch)


@pytest.mark.parametrize('k', [1, 4, 6])
@pytest.mark.parametrize('prefetcher', [True, False])
def test_an_epoch_can_begin_in_the_middle(make, prefetcher, k):
    loader = make(prefetcher=prefetcher, **KINDS['all' if prefetcher else 'erased'])
    full = batches(loader, epoch=3)
    assert same(batches(loader, epoch=3, start_batch=k), full[k:])
    assert same(batches(loader, epoch=3), full)  # and from the beginning again
    assert len(loader[0]) == 6


def test_each_kind_of_drawing_is_at_work(make):
    """Without this the tests above could compare batches that nothing random had touched."""
    plain = batches(make(**KINDS['augmented']), 0)
    mixed = batches(make(**KINDS['mixed']), 0)
    erased = batches(make(**KINDS['erased']), 0)
    assert not same(plain, erased) and mixed[0][1].ndim == 2 and plain[0][1].ndim == 1
    assert len({float(target.max(1).values.min()) for _, target in mixed}) > 1  # another lambda each time
    assert all(torch.equal(s, t) for (_, s), (_, t) in zip(plain, erased))  # the order does not depend on it


def test_an_epoch_gives_each_image_once(make):
    outer, inner = make()
    for epoch in range(2):
        inner.set_epoch(epoch)
        keys = [key for batch in inner.batch_sampler for key in batch]
        assert sorted(keys) == [(epoch, i) for i in range(24)] and keys != sorted(keys)
    _, other = make(seed=1)
    other.set_epoch(1)
    assert [key for batch in other.batch_sampler for key in batch] != keys


def test_each_image_is_augmented_anew_in_each_epoch_and_run(make):
    def images(seed, epoch):
        outer, inner = make(seed=seed)
        inner.set_epoch(epoch)
        indices = [index for batch in inner.batch_sampler for _, index in batch]
        return dict(zip(indices, torch.cat([x for x, _ in batches((outer, inner), epoch)])))

    first = images(0, 0)
    for other in (images(0, 1), images(1, 0)):
        assert not any(torch.equal(first[i], other[i]) for i in range(24))


def test_processes_share_the_images_and_erase_on_their_own(make):
    def loader(rank, seed=0):
        return make(seed=seed, rank=rank, sampler=lambda d: DistributedSampler(d, 2, rank), **KINDS['erased'])

    first, second = (loader(rank) for rank in (0, 1))
    keys = []
    for _, inner in (first, second):
        inner.set_epoch(5)
        keys.append([i for batch in inner.batch_sampler for _, i in batch])
    assert len(keys[0]) == 12 and sorted(keys[0] + keys[1]) == list(range(24))
    _, other = loader(0, seed=1)
    other.set_epoch(5)
    assert [i for batch in other.batch_sampler for _, i in batch] != keys[0]  # the seed orders them, too
    assert same(batches(first, 5), batches(loader(0), 5))
    assert not same(batches(first, 5), batches(first, 6))


def test_repeated_augmentation_draws_each_copy_anew(make):
    def copies(rank):
        outer, inner = make(rank=rank, sampler=lambda d: RepeatAugSampler(d, 2, rank, num_repeats=3, selected_round=0))
        inner.set_epoch(0)
        keys = [key for batch in inner.batch_sampler for key in batch]
        return keys, torch.cat([x for x, _ in batches((outer, inner), 0)])

    seen = {}
    for rank in (0, 1):
        keys, images = copies(rank)
        assert len(keys) == len(images) == 12
        for (_, index, *_), image in zip(keys, images):
            seen.setdefault(index, []).append(image)
    repeated = [images for images in seen.values() if len(images) > 1]
    assert len(repeated) >= 6
    assert all(not torch.equal(images[0], images[1]) for images in repeated)
    assert torch.equal(copies(1)[1], copies(1)[1])


def test_a_seed_is_the_same_on_every_machine():
    assert derive_seed(42, 'sample', 3, 7) == 7948794926271440245
    assert 0 <= derive_seed(42) < 2 ** 63
    assert len({derive_seed(0, 'step', e, b) for e in range(20) for b in range(20)}) == 400
    assert derive_seed(1, 23) != derive_seed(12, 3) and derive_seed('a', 'b') != derive_seed('ab')


def test_seed_all_seeds_every_generator():
    import random

    import numpy as np

    def draw(*parts):
        seed_all(*parts)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first, other = draw(0, 'step', 1), draw(0, 'step', 2)
    assert draw(0, 'step', 1) == first
    assert all(a != b for a, b in zip(first, other))


def test_an_iterable_data_set_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(TypeError, match='iterable'):
        ReproducibleLoader(torch.utils.data.DataLoader(Stream()), 0)
