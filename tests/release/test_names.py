"""Names and labels that somebody else chose, in every file that is written of them: as text, or refused."""
import argparse
import csv
import json
import os
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard

from timm_focus.commands.main import main
from timm_focus.release import Publication, published_settings
from timm_focus.release.card import write_card
from timm_focus.release.export import write_export
from timm_focus.release.publication import is_repo_id
from timm_focus.utils.text import from_csv_cell, one_line

sys.path.insert(0, str(Path(__file__).parents[1] / 'utils'))
from test_text import NAMES

HARMLESS = {'text', 'softbreak', 'text_special', 'code_inline', 'image', 'link_open', 'link_close'}


@pytest.fixture(scope='module')
def model():
    return timm.create_model('test_resnet', num_classes=3)


def write(model, path, name, **kwargs):
    """A card in which a name stands wherever one can."""
    config = timm.data.resolve_data_config({}, model=model)
    publication = Publication(
        'user/name', license='other', license_name=f'mine {name}', license_link='https://x.org/licence',
        dataset=name or 'x', dataset_terms=name, tag='tag')
    write_card(
        path, model, None, publication, data_config={**config, 'interpolation': name, 'crop_mode': name},
        metrics=dict(top1=50.), settings=dict(opt=name, aa=name, seed=0), coverage=None, base_model=name,
        label_names=[name] * 3, files={'args.yaml'}, **kwargs)
    return path.read_text('utf-8')


@pytest.mark.slow
def test_cards(model, tmp_path):
    """Their front matter is what the Hub reads, and their tables and paragraphs are those of any card."""
    markdown_it = pytest.importorskip('markdown_it', reason="pip install -e '.[test]' installs it")
    reader = markdown_it.MarkdownIt('commonmark').enable('table')

    def shape(text):
        body = text.split('\n---\n', 1)[1]
        tokens = reader.parse(body)
        inline = [child for token in tokens if token.type == 'inline' for child in token.children]
        assert {child.type for child in inline} <= HARMLESS
        links = [child.attrGet('href') for child in inline if child.type == 'link_open']
        return [token.type for token in tokens], links, [child.type for child in inline if child.type == 'image']

    plain = shape(write(model, tmp_path / 'plain.md', 'plain'))
    for name in NAMES:
        text = write(model, tmp_path / 'card.md', name)
        data = ModelCard(text).data
        front = yaml.safe_load(text.split('---\n')[1])
        assert data.license == front['license'] == 'other' and re.fullmatch(r'[a-z0-9.-]+', front['license_name'])
        result = front['model-index'][0]['results'][0]
        assert result['dataset']['name'] == one_line(name or 'x')
        assert re.fullmatch(r'[\w./-]+', result['dataset']['type'])
        assert result['metrics'][0]['value'] == 0.5 and set(front) <= {
            'license', 'license_name', 'license_link', 'library_name', 'pipeline_tag', 'tags', 'datasets', 'base_model',
            'metrics', 'model-index'}
        types, links, images = shape(text)
        if one_line(name):  # a setting that is empty has no row
            assert types == plain[0], name
        if not is_repo_id(name):  # which is a link to the weights that these started from
            assert links == plain[1] and images == plain[2], name


def test_settings_and_labels(model, tmp_path):
    settings = {'opt': 'adamw', **{f'name_{i}': name for i, name in enumerate(NAMES)}}
    text = yaml.safe_dump(published_settings(settings), allow_unicode=True)
    kept = yaml.safe_load(text.encode('utf-8'))
    assert kept['opt'] == 'adamw' and all(kept[k] == settings[k] for k in kept) and len(kept) > len(NAMES) / 2
    model = timm.create_model('test_resnet', num_classes=len(NAMES))
    summary = tmp_path / 'summary.csv'
    with open(summary, 'w', newline='', errors='surrogateescape') as f:
        csv.writer(f).writerows([['epoch', 'eval_top1', *NAMES], ['0', '-1.5', *NAMES]])
    folder = write_export(
        model, tmp_path / 'out', Publication('user/name', license='mit', dataset='x'), label_names=NAMES,
        summary=summary)
    assert json.loads((folder / 'config.json').read_text('utf-8'))['label_names'] == NAMES
    with open(folder / 'summary.csv', newline='', encoding='utf-8') as f:
        for row in csv.reader(f):
            assert row[1] in ('eval_top1', '-1.5')
            assert {cell for cell in row[2:] if re.match(r'[=+\-@\t\r]', cell)} == {'+1', '-1'}, 'numbers'
            assert [from_csv_cell(cell) for cell in row[2:]] == NAMES
    assert (folder / 'curves.png').exists()


def file_names(names):
    """Those that a file can have here, and that begin with no dot."""
    return [n for n in dict.fromkeys(names) if n.strip() and not n.startswith('.') and not set('/\0') & set(n)
            and len(os.fsencode(n)) < 200]


@pytest.mark.slow
def test_tables_of_the_commands(tmp_path, photo, capsys):
    """Folders and files of every name, and class names of a checkpoint; the tables give them back."""
    files = file_names(NAMES)
    classes = [name for name in files if name.isprintable()]
    for i, name in enumerate(files):
        folder = tmp_path / 'data/val' / classes[i % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        photo.resize((40, 40)).save(folder / f'{name}.jpg')
    model = timm.create_model('test_resnet', num_classes=len(classes))
    args = argparse.Namespace(model='test_resnet', num_classes=len(classes), label_names=sorted(classes))
    torch.save(dict(arch='test_resnet', state_dict=model.state_dict(), args=args), tmp_path / 'm.pth.tar')
    common = [str(tmp_path / 'data'), '--checkpoint', str(tmp_path / 'm.pth.tar'), '--img-size', '64', '-j', '0',
              '--device', 'cpu', '--output', str(tmp_path / 'out')]
    main(['area', *common])
    main(['area', *common])  # goes on with nothing: it knows them again
    main(['validate', *common, '--no-erase'])
    capsys.readouterr()
    found = {}
    for table, columns in (('area', ['image']), ('images', ['image', 'label', 'prediction']), ('classes', ['label'])):
        lines = (tmp_path / f'out/{table}.csv').read_text('utf-8')
        rows = list(csv.DictReader(lines.splitlines()))
        assert len(rows) == len(classes if table == 'classes' else files) and lines.count('\n') == len(rows) + 1
        for column in columns:
            cells = [row[column] for row in rows]
            assert not any(re.match(r'[=+\-@\t\r]', cell) for cell in cells)
            found[table, column] = {from_csv_cell(cell) for cell in cells}
    assert found['classes', 'label'] == found['images', 'label'] == set(classes) >= found['images', 'prediction']
    assert found['area', 'image'] == found['images', 'image']
    assert {os.path.basename(name) for name in found['area', 'image']} == {f'{name}.jpg' for name in files}


def test_a_class_with_a_line_break_is_not_trained(image_folder, refusal, tmp_path):
    for split in ('train', 'val'):
        (image_folder / split / 'left').rename(image_folder / split / 'left\nright')
    assert re.search(r"'left\\nright'.*[Rr]ename", refusal())
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_pictures(tmp_path, photos):
    """Every name in every place of every picture: drawn as text, where a formula that is none would end in an error."""
    from matplotlib.figure import Figure

    from timm_focus.analysis.plots import coverage_plot, focus_sheet, save_figure
    from timm_focus.release.pictures import draw_curves
    bad = r'$\frac{'
    with pytest.raises(ValueError):  # what matplotlib makes of it
        figure = Figure()
        figure.text(0, 0, f'{bad}$')
        figure.savefig(tmp_path / 'x.png')
    names = [*NAMES, f'{bad}$', '$a^$']
    coverage_plot({(name, other): [0.1, 0.2] for name in names[:30] for other in ('a', f'{bad}$')}, tmp_path / 'a.png')
    coverage_plot({('a', name): [0.1, 0.2] for name in names}, tmp_path / 'b.png')
    summary = tmp_path / 'summary.csv'
    with open(summary, 'w', newline='', errors='surrogateescape') as f:
        csv.writer(f).writerows([['epoch', *(f'eval_top{n}' for n in names)], *([i, *range(len(names))] for i in '01')])
    assert draw_curves(summary, tmp_path / 'c.png')
    model = timm.create_model('focus_test_resnet', num_classes=3)
    for i in range(0, len(names), 8):
        some = names[i:i + 8]
        focus_sheet(model, photos(len(some), 64), tmp_path / 'd.png', (0.45,) * 3, (0.225,) * 3, some)
    figure = Figure()
    figure.subplots().set_xticks(range(3), [f'{bad}$'] * 3)
    save_figure(figure, tmp_path / 'e.png', 50)
    assert {p.name for p in tmp_path.iterdir()} == {'summary.csv', *(f'{c}.png' for c in 'abcde')}, 'and no draft'
