import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_focus.demo import pieces, scenes
from timm_focus.demo.scenes import (
    SCENES, draw_scene, draw_scene_with_mask, picture_seed, synthetic_scenes, write_synthetic_scenes,
)
from timm_focus.demo.classes import COMPOSITIONS

SMALL = dict(train_per_class=2, val_per_class=1, size=32)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


# Only the drawing files, by their folder: importing timm_focus with torch and timm takes much longer than drawing.
WRITE_WHEN_TOLD = """
import sys, types
sys.modules['drawing'] = types.ModuleType('drawing')
sys.modules['drawing'].__path__ = [sys.argv[1]]
from drawing.scenes import write_synthetic_scenes
print('ready', flush=True)
sys.stdin.readline()
write_synthetic_scenes(sys.argv[2], train_per_class=6, val_per_class=2, size=32)
"""

# Mean colours at seed 0. Where they change, the pictures have, and scenes.VERSION must too.
VERSION_1 = {
    'beach': (190, 193, 184),
    'bedroom': (178, 145, 119),
    'desert': (168, 153, 138),
    'forest': (99, 102, 80),
    'harbour': (110, 112, 113),
    'kitchen': (169, 160, 164),
    'mountain': (114, 97, 71),
    'street': (145, 142, 133),
}


def test_eight_sorted_classes():
    assert len(SCENES) == 8 and list(SCENES) == sorted(set(SCENES))


@pytest.mark.parametrize('scene', SCENES)
@pytest.mark.parametrize('size', [32, 57, 96, 224])
def test_every_scene_at_every_size(scene, size):
    for seed in range(3):
        image = draw_scene(scene, seed, size)
        assert image.mode == 'RGB' and image.size == (size, size)
        assert np.asarray(image).std() > 5


@pytest.mark.parametrize('scene', SCENES)
def test_pure_function_of_scene_and_seed(scene):
    state = random.getstate()
    first = draw_scene(scene, 11, 48).tobytes()
    random.seed(99)
    np.random.seed(99)
    assert draw_scene(scene, 11, 48).tobytes() == first
    assert draw_scene(scene, 12, 48).tobytes() != first
    random.setstate(state)
    draw_scene(scene, 13, 48)
    assert random.getstate() == state


def test_another_size_shows_the_same_scene():
    for scene in SCENES:
        large = np.asarray(draw_scene(scene, 5, 192).reduce(4), dtype=float)
        small = np.asarray(draw_scene(scene, 5, 48), dtype=float)
        other = np.asarray(draw_scene(scene, 6, 48), dtype=float)
        assert abs(large - small).mean() < 12 < abs(other - small).mean()


def test_pictures_of_this_version():
    assert scenes.VERSION == 1
    for scene, colour in VERSION_1.items():
        np.testing.assert_allclose(np.asarray(draw_scene(scene, 0), dtype=float).mean((0, 1)), colour, atol=1)


def test_every_piece_can_be_drawn():
    for recipe in COMPOSITIONS.values():
        for piece in [*recipe.grounds, *recipe.pieces]:
            for seed in range(5):
                pen = pieces.Pen(random.Random(seed), 64)
                recipe.backdrop(pen)
                piece(pen)


def test_most_pieces_belong_to_several_classes():
    owners = {}
    for scene, recipe in COMPOSITIONS.items():
        for piece in {**recipe.grounds, **recipe.pieces}:
            owners.setdefault(piece, set()).add(scene)
        assert all(0 < probability < 1 for probability in recipe.pieces.values())
    assert sum(len(scenes) > 1 for scenes in owners.values()) > 0.8 * len(owners)


def test_evidence_is_spread_over_the_image():
    # For each pixel, how far class means lie apart in units of their own sampling error: present in every part.
    pictures = np.stack([
        np.stack([np.asarray(draw_scene(scene, seed, 32), dtype=float) for seed in range(60)]) for scene in SCENES
    ])
    means = pictures.mean(1)
    errors = pictures.std(1) / np.sqrt(60)
    half = slice(None, 16), slice(16, None)
    for a in range(len(SCENES)):
        apart = np.zeros((32, 32))
        for b in range(len(SCENES)):
            distance = abs(means[a] - means[b]) / np.sqrt(errors[a] ** 2 + errors[b] ** 2)
            apart = np.maximum(apart, distance.max(-1))
        for part in half:
            assert (apart[part] > 3).mean() > 0.7, SCENES[a]
            assert (apart[:, part] > 3).mean() > 0.7, SCENES[a]


def test_no_single_region_of_colour_settles_the_class():
    # The nearest class mean of one eighth of the picture is right clearly less often than that of the whole.
    def features(seeds):
        return np.stack([[np.asarray(draw_scene(s, k, 16), dtype=float) for k in seeds] for s in SCENES])

    train, test = features(range(60)), features(range(1000, 1030))

    def accuracy(window):
        means = train[(slice(None), slice(None), *window)].mean(1).reshape(len(SCENES), -1)
        seen = test[(slice(None), slice(None), *window)].reshape(len(SCENES), 30, -1)
        nearest = ((seen[:, :, None] - means) ** 2).sum(-1).argmin(-1)
        return (nearest == np.arange(len(SCENES))[:, None]).mean()

    corners = [accuracy((slice(y, y + 5), slice(x, x + 5))) for y in (0, 6, 11) for x in (0, 6, 11)]
    assert max(corners) < 0.5
    assert accuracy((slice(None), slice(None))) < 0.6


def test_tree_layout_and_contents(tmp_path):
    root = write_synthetic_scenes(tmp_path / 'deep' / 'set', train_per_class=3, val_per_class=2, size=40)
    assert root == tmp_path / 'deep' / 'set'
    for split, count in (('train', 3), ('val', 2)):
        assert sorted(p.name for p in (root / split).iterdir()) == list(SCENES)
        for scene in SCENES:
            files = sorted((root / split / scene).iterdir())
            assert [f.name for f in files] == [f'{k:04d}.png' for k in range(count)]
            assert all(Image.open(f).size == (40, 40) for f in files)
    assert [p.name for p in root.parent.iterdir()] == ['set']
    pictures = [data for name, data in contents(root).items() if name.endswith('.png')]
    assert len(set(pictures)) == len(pictures) == 40


def test_pictures_depend_on_seed_split_class_and_index_only(tmp_path):
    few = contents(write_synthetic_scenes(tmp_path / 'few', **SMALL))
    again = contents(write_synthetic_scenes(tmp_path / 'again', **SMALL))
    more = contents(write_synthetic_scenes(tmp_path / 'more', train_per_class=3, val_per_class=2, size=32))
    other = contents(write_synthetic_scenes(tmp_path / 'other', **SMALL, seed=1))
    assert few == again
    pictures = [name for name in few if name.endswith('.png')]
    assert all(few[name] == more[name] and few[name] != other[name] for name in pictures)


def test_written_pictures_are_those_of_their_seed(tmp_path):
    root = write_synthetic_scenes(tmp_path / 'set', **SMALL, seed=7)
    for split, index in (('train', 1), ('val', 0)):
        for scene in SCENES:
            written = Image.open(root / split / scene / f'{index:04d}.png')
            assert written.tobytes() == draw_scene(scene, picture_seed(split, index, 7), 32).tobytes()


def test_second_call_does_not_draw(tmp_path, monkeypatch):
    root = write_synthetic_scenes(tmp_path / 'set', **SMALL)
    monkeypatch.setitem(scenes._KINDS, 'scenes', None)
    assert write_synthetic_scenes(tmp_path / 'set', **SMALL) == root


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path):
    leftover = tmp_path / '.set-0123' / 'train' / 'beach'
    leftover.mkdir(parents=True)
    (leftover / '0000.png').write_bytes(b'half')
    root = write_synthetic_scenes(tmp_path / 'set', **SMALL)
    assert len(list(root.rglob('*.png'))) == 24
    assert contents(root) == contents(write_synthetic_scenes(tmp_path / 'clean', **SMALL))


def test_nothing_is_left_when_drawing_fails(tmp_path, monkeypatch):
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return draw_scene_with_mask(*args)

    monkeypatch.setitem(scenes._KINDS, 'scenes', failing)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_scenes(tmp_path / 'set', **SMALL)
    assert not list(tmp_path.iterdir())


def test_another_run_finishing_first_wins(tmp_path, monkeypatch):
    replace = scenes.os.replace

    def overtaken(draft, root):
        monkeypatch.setattr(scenes.os, 'replace', replace)
        write_synthetic_scenes(root, **SMALL)
        replace(draft, root)

    monkeypatch.setattr(scenes.os, 'replace', overtaken)
    root = write_synthetic_scenes(tmp_path / 'set', **SMALL)
    assert len(list(root.rglob('*.png'))) == 24
    assert [p.name for p in tmp_path.iterdir()] == ['set']


def test_concurrent_processes(tmp_path):
    command = [sys.executable, '-c', WRITE_WHEN_TOLD, str(Path(scenes.__file__).parent), str(tmp_path / 'set')]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    workers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ['ready\n'] * 2
    for worker in workers:
        worker.stdin.write('go\n')
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
    assert [worker.returncode for worker in workers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ['set']
    assert len(list((tmp_path / 'set').rglob('*.png'))) == 64


def test_an_empty_folder_is_filled_and_anything_else_is_refused(tmp_path):
    (tmp_path / 'set').mkdir()
    root = write_synthetic_scenes(tmp_path / 'set', **SMALL)
    assert (root / 'val').is_dir()
    with pytest.raises(FileExistsError, match='holds something else'):
        write_synthetic_scenes(root, **SMALL, seed=1)

    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('keep')
    (tmp_path / 'file').write_text('keep')
    for name in ('mine', 'file'):
        with pytest.raises(FileExistsError, match=re.escape(str(tmp_path / name))):
            write_synthetic_scenes(tmp_path / name, **SMALL)
    assert contents(tmp_path / 'mine') == {'notes.txt': b'keep'}


def test_cache_folder_names_all_parameters(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scenes, 'write_synthetic_scenes', lambda root, *args: asked.append(root) or root)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    synthetic_scenes()
    for change in ({'train_per_class': 3}, {'val_per_class': 3}, {'size': 33}, {'seed': 3}):
        synthetic_scenes(**change)
    monkeypatch.setattr(scenes, 'VERSION', scenes.VERSION + 1)
    synthetic_scenes()
    assert len(set(asked)) == 6
    assert {root.parent for root in asked} == {tmp_path / 'xdg' / 'timm_focus'}
    assert synthetic_scenes(tmp_path / 'here').parent == tmp_path / 'here'
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert synthetic_scenes().parent == tmp_path / 'home' / '.cache' / 'timm_focus'


def test_cache_is_rendered_once(tmp_path, monkeypatch):
    root = synthetic_scenes(tmp_path, **SMALL)
    assert len(list(root.rglob('*.png'))) == 24
    monkeypatch.setitem(scenes._KINDS, 'scenes', None)
    assert synthetic_scenes(str(tmp_path), **SMALL) == root


def test_bad_scene_and_size():
    with pytest.raises(ValueError, match=f"Unknown scene 'moon'; allowed are {', '.join(SCENES)}"):
        draw_scene('moon', 0)
    with pytest.raises(ValueError, match='size must be at least 8 pixels, got 7'):
        draw_scene('beach', 0, 7)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_bad_counts(tmp_path, split):
    with pytest.raises(ValueError, match=f'{split}_per_class must be at least 1, got 0'):
        write_synthetic_scenes(tmp_path / 'set', **{**SMALL, f'{split}_per_class': 0})
    assert not list(tmp_path.iterdir())
