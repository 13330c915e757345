"""Measures runs on images: numbers of all images, and pictures of some."""
import base64
import io
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image, features
from timm.data import create_transform
from torch.utils.data import DataLoader, Subset

from timm_focus.analysis import explain, faithfulness, focus_area, plain_model
from timm_focus.analysis.plots import to_pixels
from timm_focus.method import FocusNet
from timm_focus.method.cam import normalize_map
from timm_focus.runs import Loaded, image_mode
from timm_focus.utils.processes import shield_workers

__all__ = ['SHARES', 'Measured', 'Shown', 'explain_images', 'measure', 'thumbnails', 'view']

SHARES = (0.1, 0.25, 0.5)  # shares of the pixels to erase
LONGEST = 160  # pixels along the longer side of a thumbnail
MOST_PLACES = 32  # most places along a side of a map in the page
QUALITY = 72  # of thumbnails, as Pillow counts it


class Measured(NamedTuple):
    """What was measured of a run on N images. S is the number of `SHARES`.

    Attributes:
        prediction: Number of the class with the highest logit, `[N]`. Classes are numbered as in the data; a class that
            only the model has gets a higher number, and is named in `others`.
        others: Names of predicted classes that the data does not have, by their numbers in `prediction`.
        right: Whether the prediction is the true class, bool `[N]`.
        in_top5: Whether the true class has one of the five highest logits, bool `[N]`.
        cam: Whether the prediction is right when each share of the pixels is erased where the map is highest, bool
            `[S, N]`. None for a model without a map, as are the next three.
        random: The same with random regions erased, bool `[S, N]`.
        coverage: Coverage ratio of the focus area, from 0 to 1, `[N]`.
        map_size: Height and width of the last feature map.
        convolutional: Whether convolutions make the last feature map, as in the paper's definition of coverage.
    """
    prediction: np.ndarray
    others: Dict[int, str]
    right: np.ndarray
    in_top5: np.ndarray
    cam: Optional[np.ndarray] = None
    random: Optional[np.ndarray] = None
    coverage: Optional[np.ndarray] = None
    map_size: Optional[Tuple[int, int]] = None
    convolutional: bool = True

    def of(self, indices: np.ndarray) -> 'Measured':
        """Return the same for some of the images."""
        one: Dict[str, Any] = {k: None if getattr(self, k) is None else getattr(self, k)[..., indices]
               for k in ('prediction', 'right', 'in_top5', 'cam', 'random', 'coverage')}
        return self._replace(**one)


class Shown(NamedTuple):
    """What the page shows of one image and one run.

    Attributes:
        answer: Predicted class and its probability.
        after: Predicted class and its probability with the regions of the answer erased.
        map: Map of the answer from 0 to 255, uint8 `[h, w]`.
        kept: Share of the image that is not erased.
    """
    answer: Tuple[int, float]
    after: Tuple[int, float]
    map: np.ndarray
    kept: float


class _Renumbered:
    """Turn a class of the data into the class of the model. A class, so that worker processes can unpickle it."""

    def __init__(self, numbers: Dict[int, int]):
        self.numbers = numbers

    def __call__(self, target: int) -> int:
        return self.numbers[target]


def _loader(loaded: Loaded, dataset: Any, numbers: Dict[int, int], batch_size: int, workers: int) -> DataLoader:
    images: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
    images.transform = create_transform(**loaded.data_config, is_training=False)
    images.input_img_mode = image_mode(loaded)
    images.target_transform = _Renumbered(numbers)
    return shield_workers(DataLoader(dataset, batch_size=batch_size, num_workers=workers))


def measure(
        loaded: Loaded,
        dataset: Any,
        numbers: Dict[int, int],
        names: Sequence[str],
        n_classes: int,
        *,
        maps: bool = True,
        batch_size: int = 64,
        workers: int = 2,
        progress: Callable[[int], Any] = lambda n: None,
) -> Measured:
    """Measure a run on all images of a data set. Each image is read once.

    Args:
        loaded: The run's model.
        dataset: A `SceneDataset`. Its `bad` says afterwards which images could not be read.
        numbers: The model's class for each class of the data.
        names: Names of the model's classes.
        n_classes: Number of classes of the data.
        maps: Whether to measure maps; the model must have class maps of more than one place.
        batch_size: Images at a time.
        workers: Number of processes that load images.
        progress: Called after each batch with its number of images.
    """
    model = plain_model(loaded.model)
    device = next(model.parameters()).device
    coverage: List[np.ndarray] = []
    convolutional = True

    def batches() -> Iterator[Any]:
        nonlocal convolutional
        for x, target in _loader(loaded, dataset, numbers, batch_size, workers):
            if maps:
                area = focus_area(model, x.to(device))
                coverage.append(area.coverage.cpu().numpy())
                convolutional = area.convolutional
            yield x, target
            progress(len(x))

    found = faithfulness(model, batches(), SHARES if maps else ())
    own = found.prediction.numpy()
    back = {theirs: ours for ours, theirs in numbers.items()}
    strange = [k for k in np.unique(own).tolist() if k not in back]
    others = {n_classes + k: names[k] for k in strange}
    prediction = np.array([back.get(k, n_classes + k) for k in own.tolist()], dtype=np.int64)
    right, top5 = (found.prediction == found.target).numpy(), found.in_top5.numpy()
    if not maps:
        return Measured(prediction, others, right, top5)
    return Measured(
        prediction, others, right, top5, found.cam.numpy(), found.random.numpy(), np.concatenate(coverage),
        found.map_size, convolutional)


def explain_images(
        loaded: Loaded,
        dataset: Any,
        numbers: Dict[int, int],
        n_classes: int,
        indices: Sequence[int],
        *,
        batch_size: int = 64,
        workers: int = 2,
        progress: Callable[[int], Any] = lambda n: None,
) -> Tuple[List[Shown], float, bool]:
    """Find where a run looks in some images, and what it answers with that erased.

    Args:
        loaded: The run's model.
        dataset: A `SceneDataset`.
        numbers: The model's class for each class of the data.
        n_classes: Number of classes of the data.
        indices: Numbers of the images in the data set.
        batch_size: Images at a time.
        workers: Number of processes that load images.
        progress: Called after each batch with its number of images.

    Returns:
        What to show of each image; the threshold from which on the map is erased; and whether the map decides what is
        erased, which is not so for a model with `focus_map='random'`.
    """
    device = next(loaded.model.parameters()).device
    back = {theirs: ours for ours, theirs in numbers.items()}
    shown: List[Shown] = []
    threshold = 0.7
    for x, _ in _loader(loaded, Subset(dataset, list(indices)), numbers, batch_size, workers):
        found = explain(loaded.model, x.to(device))
        threshold = found.threshold
        height, width = (min(side, MOST_PLACES) for side in found.map.shape[1:])
        values = torch.nn.functional.adaptive_avg_pool2d(found.map[:, None], (height, width))[:, 0]
        maps = (normalize_map(values) * 255).round().byte().cpu().numpy()
        before, after = (logits.float().softmax(1).max(1) for logits in (found.logits, found.erased_logits))
        for j in range(len(x)):
            answer, rest = ((back.get(int(p.indices[j]), n_classes + int(p.indices[j])), float(p.values[j]))
                            for p in (before, after))
            shown.append(Shown(answer, rest, maps[j], float(found.keep[j].float().mean())))
        progress(len(x))
    return shown, threshold, not (isinstance(loaded.model, FocusNet) and loaded.model.map_kind == 'random')


# thumbnails

def view(loaded: Loaded) -> Tuple[Any, ...]:
    """Return how a run crops and scales images. Runs with equal views have the same thumbnails."""
    config = loaded.data_config
    channels, height, width = config['input_size']
    return channels, image_mode(loaded), config['crop_pct'], config['crop_mode'], round(height / width, 3)


def thumbnails(loaded: Loaded, dataset: Any, indices: Sequence[int]) -> Iterator[str]:
    """Yield small pictures, in `data:` addresses, of images as a run crops them.

    Args:
        loaded: The run's model, which takes images of one or three channels.
        dataset: A `SceneDataset`.
        indices: Numbers of images that can be read.
    """
    config = dict(loaded.data_config)
    channels, *sides = config['input_size']
    scale = LONGEST / max(sides)
    config['input_size'] = (channels, *(max(1, round(side * scale)) for side in sides))
    transform = create_transform(**config, is_training=False)
    dataset.input_img_mode = image_mode(loaded)
    for i in indices:
        pixels = to_pixels(transform(dataset.read(i)[0])[None], config['mean'], config['std'])[0]
        yield _address(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))


def _address(image: Image.Image) -> str:
    """Return an image as a `data:` address."""
    kind = 'webp' if features.check('webp') else 'jpeg'
    out = io.BytesIO()
    image.save(out, kind, quality=QUALITY)
    return f'data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}'
