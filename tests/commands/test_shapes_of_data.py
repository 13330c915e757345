"""The same images in every shape that data comes in, measured and explained alike by every command."""
import json
import os
import tarfile

import numpy as np
import pytest
import timm
import torch

import test_data_of_commands
from test_data_of_commands import rows
from timm_focus.commands.main import main

command = test_data_of_commands.command  # a fixture
SPLIT = "--split 'train[24:]'"  # of 24 training images and 2 for validation: these


@pytest.fixture
def shapes(image_folder, tmp_path):
    """The data of a command and its flags, by the shape that the folder's images have."""
    datasets = pytest.importorskip('datasets', reason="needs Hugging Face's datasets")
    datasets.disable_progress_bars()
    for file in image_folder.glob('val/*/[1-4].jpg'):
        file.unlink()
    found = dict(folder=([image_folder], ''), torch=([image_folder], '--dataset torch/image_folder'))
    for split in ('train', 'val'):
        with tarfile.open(tmp_path / f'{split}.tar', 'w') as tar:
            tar.add(image_folder / split, arcname='.')
    found['tar'] = [tmp_path / 'val.tar'], ''
    files = [file for split in ('train', 'val') for file in sorted(image_folder.glob(f'{split}/*/*.jpg'))]
    names = ['left', 'right']
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    dataset = datasets.Dataset.from_dict(dict(
        image=[dict(bytes=file.read_bytes(), path=file.name) for file in files],
        label=[names.index(file.parent.name) for file in files]), features=features)
    (tmp_path / 'parquet').mkdir()
    dataset.to_parquet(tmp_path / 'parquet/train-00000-of-00001.parquet')
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / 'disk')
    for shape in ('parquet', 'disk'):
        found[shape] = [tmp_path / 'cache'] if shape == 'parquet' else [], f'--dataset hfds/{tmp_path}/{shape} {SPLIT}'
    (tmp_path / 'shards').mkdir()
    with tarfile.open(tmp_path / 'shards/val-0000.tar', 'w') as tar:
        for i, file in enumerate(files[24:]):
            tar.add(file, arcname=f'{i:06}.jpg')
            label = tmp_path / 'label'
            label.write_text(str(names.index(file.parent.name)))
            tar.add(label, arcname=f'{i:06}.cls')
    info = dict(class_names=names, splits=dict(validation=dict(filenames=['val-0000.tar'])))
    (tmp_path / 'shards/_info.json').write_text(json.dumps(info))
    found['shards'] = [tmp_path / 'shards'], ''
    return found


@pytest.mark.slow
def test_every_command_takes_every_shape(command, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
    coverage, right, explained, predicted = {}, {}, {}, {}
    for shape, (data, flags) in shapes.items():
        for name, more in dict(area='', validate='--no-erase', explain='--sheet 0', predict='--format csv').items():
            if name != 'explain' or shape in ('folder', 'tar', 'disk'):  # which draws, and takes its time
                command(name, data, f'{flags} {more}')
                os.rename(tmp_path / name, tmp_path / f'{name}-{shape}')
        found = rows(tmp_path / f'area-{shape}/area.csv')
        assert len({row['image'] for row in found}) == 2
        coverage[shape] = sorted(row['coverage'] for row in found)
        right[shape] = [[row[key] for key in ('label', 'prediction', 'correct')]
                        for row in rows(tmp_path / f'validate-{shape}/images.csv')]
        answers = rows(tmp_path / f'predict-{shape}')
        assert len({row.pop('image') for row in answers}) == 2
        predicted[shape] = answers
        if shape not in ('folder', 'tar', 'disk'):
            continue
        manifest = json.loads((tmp_path / f'explain-{shape}/explained.json').read_text())
        explained[shape] = [(e['true'], e['before']) for e in manifest['images']]
        assert all((tmp_path / f'explain-{shape}' / e['files']['picture']).is_file() for e in manifest['images'])
        assert np.load(tmp_path / f'explain-{shape}' / manifest['images'][1]['files']['map']).ndim == 2
    assert [row['class_1'] for row in predicted['folder']] == [prediction for _, prediction, _ in right['folder']]
    for by_shape, n in ((coverage, 6), (right, 6), (explained, 3), (predicted, 6)):
        assert len(by_shape) == n
        for shape, numbers in by_shape.items():
            assert numbers == by_shape['folder'] and len(numbers) == 2, shape


@pytest.mark.slow
def test_a_train_split_alone_is_trained_and_validated_on(train, shapes, tmp_path, monkeypatch):
    """As Places365 has it in parquet files."""
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
    for shape, at, n in (('parquet', '80%', 21), ('disk', '24', 24)):
        more = f"--dataset hfds/{tmp_path}/{shape} --train-split 'train[:{at}]' --val-split 'train[{at}:]'"
        run = train(more, data=tmp_path / 'cache', experiment=shape)
        assert f'Data: {n} training images, {26 - n} validation images, 2 classes' in run.err
        assert (run.folder / 'classes.txt').read_text() == 'left\nright\n'
        assert len(run.rows) == 1 and 0 <= run.column('eval_top1')[0] <= 100


def test_a_measurement_goes_by_what_is_in_an_archive(command, image_folder, tmp_path):
    for n in (1, 2):
        with tarfile.open(tmp_path / 'val.tar', 'w') as tar:
            tar.add(image_folder / 'val', arcname='.')
        err = command('area', tmp_path / 'val.tar', ends=n == 2)[1]
        (image_folder / 'val/left/0.jpg').write_bytes((image_folder / 'val/right/0.jpg').read_bytes())
    assert 'holds a measurement with other images of val.tar' in err


@pytest.mark.parametrize('name, data, more, told', [
    ('area', [], '', 'No images are named: give a folder, a tar file or --dataset.'),
    ('validate', [], '', 'No images are named'), ('explain', [], '', 'No images are named'),
    ('explain', ['{tmp_path}/a.jpg'], '--dataset folder', '--dataset is of folders and archives, and'),
    ('area', ['{data}'], '--dataset hfids/x', 'hfids/x is a stream'),
    ('area', ['{data}', '{data}/'], '', 'Two of the folders are called data, by which results go'),
    ('validate', ['{data}'], '--split test', 'has no folder test'),
    ('validate', ['{tmp_path}/parquet'], '', 'holds parquet files: give --dataset hfds/'),
    ('explain', ['{tmp_path}/parquet'], '', 'holds parquet files: give --dataset hfds/'),
    ('area', ['{tmp_path}/parquet'], '', 'holds parquet files: give --dataset hfds/')])
def test_what_makes_no_sense_is_a_sentence(name, data, more, told, command, image_folder, tmp_path):
    (tmp_path / 'parquet').mkdir()
    (tmp_path / 'parquet/train-00000-of-00001.parquet').touch()
    (tmp_path / 'a.jpg').write_bytes((image_folder / 'val/left/0.jpg').read_bytes())
    data = [path.format(data=image_folder, tmp_path=tmp_path) for path in data]
    assert told in command(name, data, more, ends=True)[1]


@pytest.mark.slow
def test_a_mode_of_four_channels_is_asked_for(image_folder, tmp_path, capsys):
    torch.save(timm.create_model('test_resnet', num_classes=2, in_chans=4).state_dict(), tmp_path / 'w.pth')
    argv = ['area', str(image_folder), '--model', 'test_resnet', '--checkpoint', str(tmp_path / 'w.pth'), '--img-size',
            '128', '-j', '0', '--device', 'cpu', '--output', str(tmp_path / 'out')]
    for more, told in (([], 'RGBA or CMYK, by --input-img-mode'), (['--input-img-mode', 'L'], 'but mode L has 1')):
        with pytest.raises(SystemExit):
            main([*argv, *more])
        assert told in capsys.readouterr().err
    main([*argv, '--input-img-mode', 'RGBA'])
    assert len(rows(tmp_path / 'out/area.csv')) == 10
