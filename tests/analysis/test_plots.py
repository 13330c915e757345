"""What pictures of explanations show and say."""
import re

import matplotlib
import numpy as np
import pytest

from timm_focus.analysis.plots import Picture, explanation_plot


@pytest.fixture
def picture():
    """An image of 200 x 100 of which the network sees the middle; the left half of that is erased."""
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    keep = np.ones((64, 64), bool)
    keep[:, :32] = False
    return Picture(
        name='photo.jpg', size=(200, 100), whole=np.zeros((100, 200, 3), np.uint8), crop=(50, 0, 150, 100),
        boxes=[(50, 0, 100, 100)], image=image, heat=np.linspace(1, 0, 64)[None].repeat(64, 0), keep=keep,
        erased=np.where(keep[..., None], image, np.uint8(128)), area=np.eye(8, dtype=bool), label='beach',
        before=[('beach', 0.9), ('desert', 0.1)], after=[('desert', 0.6), ('beach', 0.4)], threshold=0.7,
        by='resnet18, map of layer4', truth='desert')


def test_a_picture_says_what_each_of_its_parts_is(picture, tmp_path):
    with matplotlib.rc_context({'svg.fonttype': 'none'}):  # words as words
        explanation_plot(picture, tmp_path / 'a.svg')
    words = re.findall(r'<text[^>]*>([^<]*)</text>', (tmp_path / 'a.svg').read_text())
    for line in ('photo.jpg', 'true class: desert, answer wrong', 'activation map: beach', 'erased, 50%', 'kept, 50%',
                 'focus area, 12% of 8 x 8', 'of the image', 'of what is kept', '≥ 0.7 erased', '90.0%', '60.0%',
                 'what the network sees', 'around a piece of what is erased', 'border of what is erased'):
        assert line in words, (line, words)
    with matplotlib.rc_context({'svg.fonttype': 'none'}):
        explanation_plot(picture._replace(truth='beach', crop=(0, 0, 200, 100)), tmp_path / 'b.svg')
    text = (tmp_path / 'b.svg').read_text()
    assert 'true class: beach, answer right' in text and 'what the network sees' not in text


def test_what_is_erased_and_what_is_kept_are_where_their_titles_say(picture, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr('timm_focus.analysis.plots.save_figure', lambda figure, path: figures.append(figure))
    explanation_plot(picture, tmp_path / 'a.png')
    shown = {ax.get_title().split(',')[0].split(':')[0]: ax.images for ax in figures[0].axes if ax.get_title()}
    erased, kept = (np.asarray(shown[name][0].get_array()) for name in ('erased', 'kept'))
    assert (erased[:, :32] == picture.image[:, :32]).all() and (erased[:, 32:] == 255).all()
    assert (kept == picture.erased).all() and (kept[:, :32] == 128).all()
    assert (np.asarray(shown['activation map'][1].get_array()) == picture.heat).all()
