"""Image files of every kind, made by Pillow, as the pictures that they show."""
import io
import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from timm_focus.data import SceneDataset, open_images, read_image


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@pytest.fixture
def picture(photo):
    return photo.resize((60, 40))


@pytest.mark.parametrize('ending, big', [('png', False), ('tif', False), ('tif', True)])
def test_16_bits_of_grey_are_scaled(ending, big, tmp_path):
    values = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    path = tmp_path / f'grey.{ending}'
    Image.frombytes('I;16B', (48, 32), values.astype('>u2').tobytes()).save(path) if big else \
        Image.fromarray(values).save(path)
    with Image.open(path) as image:
        assert image.mode.startswith('I;16')
    for mode in ('RGB', 'L'):
        read = np.asarray(read_image(path, mode)).reshape(32, 48, -1)
        assert np.abs(read[..., 0] - values / 257.).max() <= 1 and (read == read[..., :1]).all()
    Image.fromarray(values.astype(np.int32)).save(tmp_path / 'wide.tif')
    assert np.abs(np.asarray(read_image(tmp_path / 'wide.tif', 'L')) - values / 257.).max() <= 1


@pytest.mark.parametrize('mode', ['L', 'CMYK', '1', 'LA', 'RGBA', 'P', 'YCbCr', 'LAB'])
def test_modes_are_read_as_pillow_converts_them(mode, picture, tmp_path):
    ending = {'CMYK': 'jpg', 'YCbCr': 'tif', 'LAB': 'tif'}.get(mode, 'png')
    picture.convert(mode).save(tmp_path / f'a.{ending}')
    with Image.open(tmp_path / f'a.{ending}') as image:
        assert image.mode == mode
        assert np.array_equal(read_image(tmp_path / f'a.{ending}'), image.convert('RGB'))


@pytest.mark.parametrize('transparency', [0, bytes([0] * 10 + [255] * 246)])
def test_a_palette_with_transparency_keeps_its_colours(transparency, picture, tmp_path):
    indexed = picture.quantize(256)
    indexed.save(tmp_path / 'a.png', transparency=transparency)
    read = read_image(tmp_path / 'a.png')
    assert read.mode == 'RGB' and np.array_equal(read, indexed.convert('RGB'))


@pytest.mark.parametrize('ending', ['gif', 'png', 'webp'])
def test_the_first_picture_of_an_animation(ending, picture, tmp_path):
    first, second = Image.new('RGB', (20, 10), 'red'), Image.new('RGB', (20, 10), 'blue')
    first.save(tmp_path / f'a.{ending}', save_all=True, append_images=[second], duration=50,
               **({'lossless': True} if ending == 'webp' else {}))
    with Image.open(tmp_path / f'a.{ending}') as image:
        assert image.n_frames == 2
    assert read_image(tmp_path / f'a.{ending}').getcolors() == [(200, (255, 0, 0))]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright(orientation, picture, tmp_path):
    from PIL import ImageOps
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / 'a.png', exif=exif)
    read = read_image(tmp_path / 'a.png', upright=True)
    assert read.size == ((60, 40) if orientation < 5 else (40, 60))
    turn = {1: 0, 3: 180, 6: 270, 8: 90}.get(orientation)
    if turn is not None:
        assert np.array_equal(read, picture.rotate(turn, expand=True))
    else:
        mirrored = {2: picture, 4: picture.rotate(180), 5: picture.rotate(270, expand=True),
                    7: picture.rotate(90, expand=True)}[orientation]
        assert np.array_equal(read, ImageOps.mirror(mirrored))
    assert np.array_equal(read_image(tmp_path / 'a.png'), picture), 'as timm reads it'


def test_what_is_none_is_told_in_a_sentence(picture, tmp_path, monkeypatch, caplog):
    data = io.BytesIO()
    picture.save(data, 'jpeg')
    (tmp_path / 'cut.jpg').write_bytes(data.getvalue()[:-400])
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'empty.png').write_bytes(b'')
    picture.save(tmp_path / 'whole.png')
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'whole.png').read_bytes()[:1000])
    for name, words in (('cut.jpg', 'it is damaged .*truncated'), ('text.jpg', 'it is no image of a format'),
                        ('empty.png', 'it is no image'), ('cut.png', 'it is damaged')):
        with pytest.raises(OSError, match=words):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / 'nowhere.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / 'whole.png').size == (60, 40)
    assert '60 x 40 pixels are more than the 2,000 that Pillow calls safe' in caplog.text and len(caplog.records) == 1
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(OSError, match='it has more than 2,000 pixels, which Pillow refuses'):
        read_image(tmp_path / 'whole.png')


def test_data_sets_read_alike(picture, tmp_path):
    values = np.full((32, 48), 0x8080, np.uint16)
    Image.fromarray(values).save(tmp_path / 'GREY.PNG')
    picture.save(tmp_path / 'b.webp', lossless=True)
    (tmp_path / 'c.jpeg').write_bytes(b'none')
    dataset = open_images(str(tmp_path))
    assert isinstance(dataset, SceneDataset) and len(dataset) == 3
    assert dataset[0][0].getcolors() == [(48 * 32, (128, 128, 128))], 'not white'
    assert np.array_equal(dataset[1][0], picture)
    assert np.array_equal(dataset[2][0], dataset[0][0]) and dataset.bad.tolist() == [0, 0, 1]
