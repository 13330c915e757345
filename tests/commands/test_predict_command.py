"""timm-focus predict: the classes that validation would find, in every format."""
import csv
import io
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from PIL import Image
from timm.data import create_transform

from timm_focus.commands.main import main
from timm_focus.runs import load_model
from timm_focus.utils.text import from_csv_cell

RUN = ('--device', 'cpu', '-j', '0', '-b', '4')


@pytest.fixture
def predict(finished_run, capsys):
    """`predict(image, '--topk', 1)` is what the command says on stdout and stderr, by a run of two classes."""
    def run(*argv, of=('--checkpoint', finished_run)):
        capsys.readouterr()
        main([str(a) for a in ('predict', *argv, *of, *RUN)])
        return capsys.readouterr()
    return run


@pytest.fixture
def refusal(predict, capsys):
    def run(*argv, **kwargs):
        with pytest.raises(SystemExit) as e:
            predict(*argv, **kwargs)
        out, err = capsys.readouterr()
        assert e.value.code == 2 and not out, out
        return err
    return run


def rows(text):
    return [{k: from_csv_cell(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]


def expected(path, run):
    """Classes and probabilities of an image, with timm's own transform."""
    loaded = load_model(checkpoint=str(run))
    x = create_transform(**loaded.data_config, is_training=False)(Image.open(path).convert('RGB'))
    with torch.inference_mode():
        p = loaded.model(x[None]).softmax(1)[0]
    order = p.argsort(descending=True).tolist()
    return [loaded.label_names[k] for k in order], [p[k].item() for k in order]


def test_the_answers_of_validation(predict, finished_run, image_folder):
    turned = image_folder / 'val/left/turned.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side, which timm's validation does not mind
    Image.open(image_folder / 'val/left/0.jpg').save(turned, exif=exif)
    out, err = predict(image_folder, '--format', 'csv')
    found = rows(out)
    assert len(found) == 11 and list(found[0]) == ['image', 'class_1', 'probability_1', 'class_2', 'probability_2']
    for row in found:
        names, p = expected(row['image'], finished_run)
        assert [row['class_1'], row['class_2']] == names
        assert [float(row['probability_1']), float(row['probability_2'])] == pytest.approx(p, abs=1e-4)
    assert '11 images in ' in err and ' a second' in err


def test_all_formats_say_the_same(predict, image_folder, tmp_path, monkeypatch):
    parquet = pytest.importorskip('pyarrow.parquet', reason='writes parquet')
    monkeypatch.chdir(image_folder)
    for ending in ('csv', 'jsonl', 'parquet'):
        predict('val/left', 'val/right/1.jpg', '--topk', 1, '--output', tmp_path / f'a.{ending}')
    found = rows((tmp_path / 'a.csv').read_text())
    found = [dict(row, probability_1=float(row['probability_1'])) for row in found]
    assert [row['image'] for row in found] == [*(f'val/left/{i}.jpg' for i in range(5)), 'val/right/1.jpg']
    assert [json.loads(line) for line in open(tmp_path / 'a.jsonl')] == found
    assert parquet.read_table(tmp_path / 'a.parquet').to_pylist() == found
    lines = predict('val/left', '--topk', 1)[0].splitlines()
    first = found[0]
    assert lines[0].split() == ['image', 'class', '1'] and len(lines) == 6
    assert lines[1].split() == ['val/left/0.jpg', first['class_1'], f'{first["probability_1"]:.1%}']


def test_what_cannot_be_read_is_named_and_counted(predict, image_folder, tmp_path, monkeypatch):
    bad = image_folder / 'val/left/bad.jpg'
    bad.write_bytes(b'no image')
    given = f'{image_folder}/val/left\n{image_folder}/val/right/0.jpg\n{tmp_path}/gone.jpg\n\n'
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(given.encode())))
    out, err = predict('-', '--format', 'csv')
    assert len(rows(out)) == 6
    assert f'{bad} is left out: it is no image' in err and f'{tmp_path}/gone.jpg is left out: No such file' in err
    assert '6 images in' in err and '2 of 8 cannot be read and are left out' in err


def test_hostile_names_are_text(predict, image_folder, tmp_path, monkeypatch):
    folder = tmp_path / 'names'
    folder.mkdir()
    for name in (b'=1+1.jpg', b'caf\xe9.jpg', b'a\nb.jpg'):
        os.link(image_folder / 'val/left/0.jpg', os.path.join(os.fsencode(folder), name))
    monkeypatch.chdir(folder)
    out = predict('=1+1.jpg', '--format', 'csv')[0]
    assert "'=1+1.jpg" in out and rows(out)[0]['image'] == '=1+1.jpg'
    found = {row['image'] for row in rows(predict(folder, '--format', 'csv')[0])}
    assert found == {os.path.join(folder, os.fsdecode(name)) for name in os.listdir(os.fsencode(folder))}
    assert len(predict(folder)[0].splitlines()) == 4
    predict(folder, '--output', tmp_path / 'a.jsonl')
    assert {json.loads(line)['image'] for line in open(tmp_path / 'a.jsonl')} == found


def test_names_of_classes_by_a_file(predict, image_folder, tmp_path):
    (tmp_path / 'names.txt').write_text('day\nnight\n')
    out = predict(image_folder / 'val/left/0.jpg', '--class-map', tmp_path / 'names.txt', '--format', 'jsonl')[0]
    assert {json.loads(out)['class_1'], json.loads(out)['class_2']} == {'day', 'night'}


@pytest.mark.parametrize('argv, words', [
    (['nowhere.jpg'], 'There is no file or folder nowhere.jpg'),
    ([], 'No images are named'),
    (['IMAGE', '--format', 'parquet'], '--format parquet is of bytes'),
    (['IMAGE', '--output', 'IMAGE'], 'is there already: give another --output'),
    (['IMAGE', '--topk', '0'], 'argument --topk: 0 is given, where 1 or more is allowed'),
    (['IMAGE', '--checkpoint', 'b'], 'predict takes one model'),
    (['BAD', '--output', 'x.csv'], 'None of 1 images can be read'),
])
def test_a_mistake_is_told(refusal, argv, words, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    named = dict(IMAGE=image_folder / 'val/left/0.jpg', BAD='bad.jpg')
    assert words in refusal(*(named.get(a, a) for a in argv)).splitlines()[-1]
    assert not (tmp_path / 'x.csv').exists()


def test_random_weights_are_refused(image_folder, capsys):
    with pytest.raises(SystemExit):
        main(['predict', str(image_folder / 'val/left/0.jpg'), '--model', TINY])
    assert f'{TINY} would have random weights' in capsys.readouterr().err
