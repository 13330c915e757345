"""The pixels that tell the class of a drawn picture: what they are, and where, in scenes and in objects."""
import json
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from timm_focus.demo import pictures
from timm_focus.demo.scenes import (
    SCENES, VERSION, draw_object_with_mask, draw_scene, draw_scene_with_mask, picture_seed, synthetic_scenes,
    write_synthetic_scenes,
)
from timm_focus.demo.classes import COMPOSITIONS, TELLING
from timm_focus.demo.pieces import Pen, bed, boats, clouds, palms, sand, sky, stove, wall, window

SMALL = dict(train_per_class=2, val_per_class=1, size=32)
DRAW = pytest.mark.parametrize('draw', [draw_scene_with_mask, draw_object_with_mask])


def masks_of(draw, count=40, size=64):
    """Masks of each class, bool [class, picture, H, W]."""
    return np.stack([[draw(scene, seed, size)[1] for seed in range(count)] for scene in SCENES])


def trimmed(mask):
    """The mask within its bounding box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def box_share(mask):
    """Share of the picture that the bounding box of a mask takes."""
    return trimmed(mask).size / mask.size


def cells(masks):
    """How many cells of a 4x4 grid have more than a tenth of their pixels in each mask."""
    side = masks.shape[-1] // 4
    return (masks.reshape(*masks.shape[:-2], 4, side, 4, side).mean((-3, -1)) > 0.1).sum((-2, -1))


# What tells a class.

def test_what_tells_a_class_is_what_one_would_say():
    assert {sand, palms} <= TELLING['beach'] and not {sky, clouds, boats} & TELLING['beach']
    assert bed in TELLING['bedroom'] and stove in TELLING['kitchen'] and sand in TELLING['desert']
    assert not {wall, window} & (TELLING['bedroom'] | TELLING['kitchen'])
    assert all(len(TELLING[scene]) >= 5 for scene in SCENES)


@pytest.mark.parametrize('scene', SCENES)
def test_what_tells_a_class_doubles_its_odds(scene):
    # Bayes' rule in fractions, for classes of one backdrop that are equally frequent.
    peers = [peer for peer in SCENES if COMPOSITIONS[peer].backdrop is COMPOSITIONS[scene].backdrop]
    odds = Fraction(1, len(peers) - 1)

    def exact(peer, piece):
        recipe = COMPOSITIONS[peer]
        if piece in recipe.grounds:
            return Fraction(str(recipe.grounds[piece])) / sum(Fraction(str(w)) for w in recipe.grounds.values())
        return Fraction(str(recipe.pieces.get(piece, 0)))

    assert COMPOSITIONS[scene].backdrop not in TELLING[scene]
    for piece in [*COMPOSITIONS[scene].grounds, *COMPOSITIONS[scene].pieces]:
        others = sum(exact(peer, piece) for peer in peers if peer != scene)
        assert (piece in TELLING[scene]) == (not others or exact(scene, piece) / others >= 2 * odds)


@pytest.mark.slow
def test_the_telling_pieces_settle_the_class_and_the_others_do_not(monkeypatch):
    # Guesses the class with the highest likelihood of the pieces drawn, among those of the backdrop. Without looking it
    # is right for one picture in four: of six classes under the sky one, and of two in a room one.
    class Seen(frozenset):
        def __contains__(self, piece):
            seen.append(piece)
            return super().__contains__(piece)

    def chance_of_a_right_guess(scene, pieces):
        peers = [peer for peer in SCENES if COMPOSITIONS[peer].backdrop is COMPOSITIONS[scene].backdrop]
        likelihood = {peer: np.prod([COMPOSITIONS[peer].share(piece) for piece in pieces]) for peer in peers}
        best = [peer for peer in peers if np.isclose(likelihood[peer], max(likelihood.values()), rtol=1e-9, atol=0)]
        return (scene in best) / len(best)

    monkeypatch.setattr(pictures, 'TELLING', {scene: Seen(TELLING[scene]) for scene in SCENES})
    from_telling, from_others = [], []
    for scene in SCENES:
        for seed in range(100):
            seen = []
            draw_scene(scene, seed, 8)
            drawn = seen[1:]  # after the backdrop
            from_telling.append(chance_of_a_right_guess(scene, [p for p in drawn if p in TELLING[scene]]))
            from_others.append(chance_of_a_right_guess(scene, [p for p in drawn if p not in TELLING[scene]]))
    assert np.mean(from_telling) > 0.95
    assert np.mean(from_others) < 0.25


# The masks of both kinds.

@DRAW
@pytest.mark.parametrize('size', [8, 33, 96])
def test_pure_function_of_scene_and_seed(draw, size):
    for scene in SCENES:
        image, mask = draw(scene, 5, size)
        again, same = draw(scene, 5, size)
        assert image.mode == 'RGB' and image.size == (size, size)
        assert mask.dtype == bool and mask.shape == (size, size)
        assert image.tobytes() == again.tobytes() and (mask == same).all()
        other, differs = draw(scene, 6, size)
        assert other.tobytes() != image.tobytes() and (differs != mask).any()


@DRAW
def test_another_size_shows_the_same(draw):
    for scene in SCENES:
        large = draw(scene, 5, 192)[1].reshape(48, 4, 48, 4).mean((1, 3)) > 0.5
        small = draw(scene, 5, 48)[1]
        assert (large == small).mean() > 0.93


def test_the_mask_changes_no_picture(monkeypatch):
    with_masks = [draw_scene_with_mask(scene, 3, 48) for scene in SCENES]
    assert [draw_scene(scene, 3, 48).tobytes() for scene in SCENES] == [image.tobytes() for image, _ in with_masks]
    monkeypatch.setattr(pictures, 'TELLING', {scene: frozenset() for scene in SCENES})
    for scene, (image, _) in zip(SCENES, with_masks):
        without, mask = draw_scene_with_mask(scene, 3, 48)
        assert without.tobytes() == image.tobytes() and not mask.any()


@DRAW
def test_recolouring_what_tells_the_class_changes_the_pixels_of_the_mask_and_no_others(draw, monkeypatch):
    class Recolouring(Pen):
        def _layers(self, fill):
            return super()._layers((255, 0, 255) if self.telling else fill)

    monkeypatch.setattr(pictures, '_light', lambda image, rng: image)  # it saturates colours
    seeds = [(scene, seed) for scene in SCENES for seed in range(8)]
    drawn = [draw(*seed, 64) for seed in seeds]
    monkeypatch.setattr(pictures, 'Pen', Recolouring)
    for seed, (image, mask) in zip(seeds, drawn):
        recoloured = draw(*seed, 64)[0]
        assert ((np.asarray(image) != np.asarray(recoloured)).any(-1) == mask).all()


@DRAW
def test_bad_scene_and_size(draw):
    with pytest.raises(ValueError, match=f"Unknown scene 'moon'; allowed are {', '.join(SCENES)}"):
        draw('moon', 0)
    with pytest.raises(ValueError, match='size must be at least 8 pixels, got 7'):
        draw('beach', 0, 7)


# Scenes are wide, objects compact.

@pytest.mark.slow
def test_evidence_is_spread_in_scenes_and_in_one_place_in_objects():
    scenes, objects = masks_of(draw_scene_with_mask), masks_of(draw_object_with_mask)
    assert (scenes.mean((1, 2, 3)) > 0.35).all() and (objects.mean((1, 2, 3)) < 0.2).all()
    assert (scenes.mean((1, 2, 3)) > 2.5 * objects.mean((1, 2, 3))).all()
    assert (cells(scenes).mean(1) > 8).all() and (cells(objects).mean(1) < 7).all()
    assert (cells(scenes).mean(1) > 1.7 * cells(objects).mean(1)).all()
    for a, b in zip(scenes, objects):
        boxes = [np.mean([box_share(mask) for mask in masks if mask.any()]) for masks in (a, b)]
        assert boxes[0] > 0.5 and boxes[0] > 2.5 * boxes[1]


@pytest.mark.parametrize('size', [16, 33, 96])
def test_an_object_is_the_evidence_of_its_scene_in_a_quarter_of_the_picture(size):
    for scene in SCENES:
        for seed in range(10):
            whole = draw_scene_with_mask(scene, seed, size // 2)[1]
            mask = draw_object_with_mask(scene, seed, size)[1]
            assert box_share(mask) <= 0.25
            if whole.any():
                assert (trimmed(whole) == trimmed(mask)).all()


@pytest.mark.slow
def test_objects_lie_anywhere():
    shown = masks_of(draw_object_with_mask, 60).any((0, 1))
    assert shown.mean() > 0.85


@pytest.mark.parametrize('scene, seed', [('bedroom', 374), ('forest', 105), ('street', 360)])
def test_an_object_shows_evidence_where_its_scene_has_none(scene, seed):
    assert not draw_scene_with_mask(scene, seed)[1].any()
    assert draw_object_with_mask(scene, seed)[1].any()


@pytest.mark.parametrize('size', [33, 64])
def test_outside_their_masks_objects_of_all_classes_are_the_same(size):
    for seed in range(10):
        drawn = [draw_object_with_mask(scene, seed, size) for scene in SCENES]
        for (a, mask_a), (b, mask_b) in combinations(drawn, 2):
            outside = ~(mask_a | mask_b)
            assert outside.mean() > 0.5
            assert (np.asarray(a)[outside] == np.asarray(b)[outside]).all()
            assert (np.asarray(a) != np.asarray(b)).any()


@pytest.mark.slow
def test_the_background_of_objects_alone_is_at_chance():
    # Least squares on the colour histogram, which knows no shapes: the outline of what is left out cannot help. Every
    # picture has its own seed, so that no background is seen with two classes.
    train, test = 80, 40

    def histogram(draw, scene, seed, of_mask):
        image, mask = draw(scene, seed, 48)
        red, green, blue = np.moveaxis(np.asarray(image, dtype=int) // 43, -1, 0)
        counts = np.bincount((36 * red + 6 * green + blue)[mask == of_mask], minlength=216)
        return np.sqrt(counts / max(1, counts.sum()))

    def accuracy(draw, of_mask):
        x = np.array([[histogram(draw, scene, 1000 * k + seed, of_mask) for seed in range(train + test)]
                      for k, scene in enumerate(SCENES)])
        x -= x[:, :train].mean((0, 1))
        seen, y = x[:, :train].reshape(-1, 216), np.repeat(np.eye(8) - 1 / 8, train, axis=0)
        weight = np.linalg.solve(seen.T @ seen + np.eye(216), seen.T @ y)
        return ((x[:, train:] @ weight).argmax(-1) == np.arange(8)[:, None]).mean()

    chance, error = 1 / 8, np.sqrt(1 / 8 * 7 / 8 / (8 * test))
    assert accuracy(draw_object_with_mask, True) > 3 * chance
    assert abs(accuracy(draw_object_with_mask, False) - chance) < 3 * error
    # what is left of a scene is little more than its backdrop, which tells rooms from the open
    in_scene, left = accuracy(draw_scene_with_mask, True), accuracy(draw_scene_with_mask, False)
    assert in_scene > 4 * chance and left < in_scene / 1.5


# Written data sets.

@pytest.mark.parametrize('kind, draw', [('scenes', draw_scene_with_mask), ('objects', draw_object_with_mask)])
def test_written_pictures_and_masks(tmp_path, kind, draw):
    root = write_synthetic_scenes(tmp_path / 'set', **SMALL, seed=3, kind=kind, masks=True)
    assert sorted(path.name for path in root.iterdir()) == ['masks', 'synthetic.json', 'train', 'val']
    pictures = sorted(path.relative_to(root) for split in ('train', 'val') for path in (root / split).rglob('*.png'))
    masks = sorted(path.relative_to(root / 'masks') for path in (root / 'masks').rglob('*.png'))
    assert pictures == masks and len(masks) == 24
    for path in pictures:
        split, scene, index = path.parts[0], path.parts[1], int(path.stem)
        image, mask = draw(scene, picture_seed(split, index, 3), 32)
        assert Image.open(root / path).tobytes() == image.tobytes()
        written = np.asarray(Image.open(root / 'masks' / path))
        assert written.dtype == bool and (written == mask).all()


def test_data_sets_without_masks_are_as_before(tmp_path):
    plain = write_synthetic_scenes(tmp_path / 'plain', **SMALL)
    masked = write_synthetic_scenes(tmp_path / 'masked', **SMALL, masks=True)
    assert sorted(path.name for path in plain.iterdir()) == ['synthetic.json', 'train', 'val']
    record = {'version': VERSION, 'train': 2, 'val': 1, 'size': 32, 'seed': 0}
    assert (plain / 'synthetic.json').read_text() == json.dumps(record)
    for path in plain.rglob('*.png'):
        assert path.read_bytes() == (masked / path.relative_to(plain)).read_bytes()


def test_each_kind_has_a_folder_of_its_own(tmp_path):
    options = [{}, {'masks': True}, {'kind': 'objects'}, {'kind': 'objects', 'masks': True}]
    names = [synthetic_scenes(tmp_path, **SMALL, **option).name for option in options]
    plain = f'synthetic-v{VERSION}-train2-val1-size32-seed0'
    assert names == [plain, f'{plain}-masks', f'{plain}-objects', f'{plain}-objects-masks']
    for option in options[1:]:
        with pytest.raises(FileExistsError, match='holds something else'):
            write_synthetic_scenes(tmp_path / plain, **SMALL, **option)


def test_unknown_kind(tmp_path):
    with pytest.raises(ValueError, match="Unknown kind 'things'; allowed are scenes, objects"):
        write_synthetic_scenes(tmp_path / 'set', **SMALL, kind='things')
    assert not list(tmp_path.iterdir())
