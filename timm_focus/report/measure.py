"""What a run says of images: all of them in numbers, some of them in pictures."""
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

SHARES = (0.1, 0.25, 0.5)  # of the pixels that are erased
LONGEST = 160  # pixels of a thumbnail
MOST_PLACES = 32  # along a side of a map in the page
QUALITY = 72


class Measured(NamedTuple):
    """What a run says of N images, in the numbers of the data's classes.

    Attributes:
        prediction: Class with the highest logit, `[N]`; that it is none of the data's is told by `others`.
        others: Names of classes of the model that the data does not have, by the numbers in `prediction`.
        right: Whether it is the true class, bool `[N]`.
        in_top5: Whether that is among the five highest, bool `[N]`.
        cam: Right with the highest of its map erased, bool `[S, N]`, None without a map.
        random: Right with random regions erased, bool `[S, N]`, None without a map.
        coverage: Coverage ratio of the focus area, `[N]`, None without a map.
        map_size: Height and width of the last feature map, None without a map.
        convolutional: Whether it is one of convolutions, whose coverage ratio is the paper's.
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
        """What it says of some of the images."""
        one: Dict[str, Any] = {k: None if getattr(self, k) is None else getattr(self, k)[..., indices]
               for k in ('prediction', 'right', 'in_top5', 'cam', 'random', 'coverage')}
        return self._replace(**one)


class Shown(NamedTuple):
    """What a page shows of an image and a run.

    Attributes:
        answer: Class and probability.
        after: Those without what is erased.
        map: Map of the answer from 0 to 255, uint8 `[h, w]`.
        kept: Share of the image that is kept.
    """
    answer: Tuple[int, float]
    after: Tuple[int, float]
    map: np.ndarray
    kept: float


class _Renumbered:
    """Class of a model by the class of a data set; for the processes that load."""

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
    """What a run says of all images of a data set; each is read once.

    Args:
        loaded: The run.
        dataset: A `SceneDataset`, whose `bad` says afterwards which images could not be read.
        numbers: Class of the model by class of the data.
        names: Names of the model's classes.
        n_classes: Number of the data's classes.
        maps: Whether the run has a map of a class, and more than one place in it.
        batch_size: Images at a time.
        workers: Processes that load them.
        progress: Told of each batch how many images it has.
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
    """Measure what a run relies on in some images.

    Returns:
        The images; the threshold above which the map is erased; and whether the map decides what is erased, which it
        does not for a run with `focus_map='random'`.
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
    """What of an image a run sees: runs of one view have the same thumbnails."""
    config = loaded.data_config
    channels, height, width = config['input_size']
    return channels, image_mode(loaded), config['crop_pct'], config['crop_mode'], round(height / width, 3)


def thumbnails(loaded: Loaded, dataset: Any, indices: Sequence[int]) -> Iterator[str]:
    """What a run sees of images, as small pictures in `data:` addresses.

    Args:
        loaded: The run, with one channel or three.
        dataset: A `SceneDataset`.
        indices: Of images that can be read.
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
    kind = 'webp' if features.check('webp') else 'jpeg'
    out = io.BytesIO()
    image.save(out, kind, quality=QUALITY)
    return f'data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}'
