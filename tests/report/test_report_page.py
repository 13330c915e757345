"""The page as a file: whole, small, and nobody's program."""
import base64
import hashlib
import html
import json
import re

import pytest
from pages import HOSTILE, compared, page, run

from timm_focus.report import Comparison, build_page, page_images
from timm_focus.report.charts import BOTTOM, HEIGHT, Series, line_chart, ticks


@pytest.fixture(scope='module')
def text():
    return page()


def test_it_needs_nothing_but_itself(text):
    outside = re.sub(r'data:image/\w+;base64,[\w+/=]+', '', text)
    assert not re.search(r'(src|href)="(?!#|data:)', outside) and '@import' not in outside and 'url(' not in outside
    assert set(re.findall(r'https?://[^\s"\']+', outside)) == {'http://www.w3.org/2000/svg'}, 'a name, no address'


def test_its_policy_allows_its_own_script_and_style_alone(text):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src 'none'" in policy and 'unsafe' not in policy
    for tag in ('style', 'script'):
        content = re.search(rf'<{tag}>(.*?)</{tag}>', text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r'\sstyle="', text) and not re.search(r'\son\w+="', text)


def test_names_are_text(text):
    assert HOSTILE not in text and html.escape('</script><img') in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert data['classes']['1'] == HOSTILE and data['images'][0]['n'].startswith(HOSTILE)


def test_it_says_what_it_shows(text, tmp_path):
    (tmp_path / 'a.html').write_text(text)
    assert page_images(tmp_path / 'a.html') == 30
    (tmp_path / 'b.html').write_text('<html>')
    assert page_images(tmp_path / 'b.html') is None


def test_everything_that_was_asked_for_is_there(text):
    for words in ('points better', '2.00 x', 'Settings in which they differ', '2 h 13 min', 'passes of an image',
                  'scenes minus plain', 'Confusions that changed most', 'Coverage ratio of the focus area',
                  'Top-1 with a share of each image erased', 'Nothing but this.', 'A map of 4 x 4.', 'noscript'):
        assert words in text, words
    assert text.count('<figure class="chart">') == 3 + 2


def test_without_images_the_rest_is_there():
    what = compared()
    bare = build_page(Comparison(what.runs, [], what.target[:0], []), None, ['The gallery: no images.'])
    assert 'The gallery: no images.' in bare and 'id="curves"' in bare and 'id="settings"' in bare
    assert not re.search('id="(gallery|classes|looks)"', bare)


def test_without_maps_and_for_one_run():
    what = compared(maps=False)
    assert 'id="looks"' not in build_page(what) and 'id="classes"' in build_page(what)
    alone = Comparison(what.runs[:1], what.measured[:1], what.target, what.classes)
    text = build_page(alone)
    assert 'Most frequent confusions' in text and 'id="settings"' not in text


def test_curves_of_runs_that_have_none():
    what = Comparison([run('a')._replace(rows=[], work=[])], [], compared().target[:0], [])
    assert 'id="curves"' not in build_page(what)
    one = run('a')
    one = one._replace(rows=one.rows[:1], work=one.work[:1])
    assert 'class="dot' in build_page(Comparison([one], [], what.target, []))


@pytest.mark.parametrize('low, high, found', [
    (0, 10, [0, 2.5, 5, 7.5, 10]), (48.2, 51.7, [48, 49, 50, 51, 52]), (0.5, 0.5, None), (0, 1e-5, None),
    (-1, 1, None)])
def test_ticks_are_round_and_reach_around(low, high, found):
    marks = ticks(low, high)
    assert found is None or marks == found
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 8


@pytest.mark.parametrize('xs, marks', [
    ((0, 1), ['0', '1']), ((0, 12), ['0', '5', '10']), ((0, 1.5), ['0', '0.5', '1', '1.5']), ((3,), ['3'])])
def test_epochs_have_whole_marks(xs, marks):
    chart = line_chart('A', [Series(0, 'a', [(x, 10. + x) for x in xs])], 'epoch')
    found = re.findall(rf' y="{HEIGHT - BOTTOM + 16}[^>]*>([^<]+)<', chart.svg)
    assert found == marks


def test_a_chart_is_within_its_frame():
    chart = line_chart('A', [Series(0, 'a', [(0, 1.), (1, 99.5)]), Series(1, 'b', [(0, 3.), (5, 20.)])], 'epoch', True)
    points = [list(map(float, p.split())) for d in re.findall(r' d="M([^"]+)"', chart.svg) for p in d.split('L')]
    assert all(chart.data['left'] <= x <= chart.data['right'] and chart.data['top'] - 1 <= y <= chart.data['bottom']
               for x, y in points)
