"""Makes every random draw of a run a function of the seed and of what it is for.

The augmentation of an image depends on (seed, epoch, index), collating and mixing a batch on (seed, epoch, its first
index), and a step on (seed, epoch, batch, rank). So a run does not depend on the order of its workers, and a run that
was interrupted goes on with the same numbers.
"""
import hashlib
import random
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler
from torch.utils.data.distributed import DistributedSampler

__all__ = ['ReproducibleLoader', 'SeededDataset', 'derive_seed', 'seed_all']

Key = Tuple[Any, ...]  # epoch, index of the image, and with repeated augmentation the number of its copy


def derive_seed(*parts: Any) -> int:
    """Derive a 63-bit seed from numbers and words, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def seed_all(*parts: Any) -> None:
    """Seed Python, numpy and torch, on all devices, by `derive_seed`."""
    seed = _seed_host(*parts)
    torch.manual_seed(seed)


def _seed_host(*parts: Any) -> int:
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.default_generator.manual_seed(seed)  # not manual_seed, which would look for devices in a worker
    return seed


class SeededDataset(Dataset):
    """A map-style data set, indexed by (epoch, index). Its random draws depend only on these and the seed."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> List[Any]:
        samples = []
        for epoch, index, *draw in keys:
            _seed_host(self.seed, 'sample', epoch, index, *draw)
            samples.append(self.dataset[index])
        _seed_host(self.seed, 'collate', *keys[0])  # mixing the batch draws next, in the same process
        return samples


class _EpochBatches:
    """Batches of a batch sampler as (epoch, index), in an order that depends on seed and epoch, from any batch on."""

    def __init__(self, batch_sampler, seed: int, rank: int):
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.rank = rank
        self.sampler = getattr(batch_sampler, 'sampler', None)
        # copies of an image must differ, in one process or several
        self.repeats = isinstance(self.sampler, RepeatAugSampler) or getattr(batch_sampler, 'num_batches', None)
        self.epoch = 0
        self.start_batch = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[List[Key]]:
        _seed_host(self.seed, 'order', self.epoch)
        if isinstance(self.sampler, RandomSampler):  # it may be asked again within an epoch, after other draws
            self.sampler.generator = torch.Generator().manual_seed(derive_seed(self.seed, 'order', self.epoch))
        for i, batch in enumerate(self.batch_sampler):
            if i >= self.start_batch:
                draws = [(self.rank, i, j) if self.repeats else () for j in range(len(batch))]
                yield [(self.epoch, index, *draw) for index, draw in zip(batch, draws)]


class ReproducibleLoader(DataLoader):
    """A copy of a timm loader's DataLoader whose batches are a function of seed and epoch.

    Args:
        loader: The DataLoader of `timm.data.create_loader` in training, over a map-style data set.
        seed: Seed of the run.
        rank: Rank of this process.

    Attributes:
        set_epoch: Call it before each epoch, with the batch to start from.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int = 0):
        if isinstance(loader.dataset, IterableDataset):
            raise TypeError('An iterable data set draws its own order, so its batches cannot be reproduced.')
        self._seed, self._rank = seed, rank
        self._batches = _EpochBatches(loader.batch_sampler, seed, rank)
        if isinstance(self._batches.sampler, DistributedSampler):
            self._batches.sampler.seed = seed  # torch's order depends on the epoch alone
        super().__init__(
            SeededDataset(loader.dataset, seed),
            batch_sampler=self._batches,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            persistent_workers=loader.persistent_workers,
        )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch in it, that the next iteration begins with."""
        self._batches.epoch, self._batches.start_batch = epoch, start_batch
        for sampler in (self._batches.batch_sampler, self._batches.sampler):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # only batches are asked of it
        # timm's prefetcher draws random erasing in this process, right after it gets the batch
        for i, batch in enumerate(super().__iter__(), self._batches.start_batch):
            seed_all(self._seed, 'batch', self._batches.epoch, i, self._rank)
            yield batch
