"""`timm-focus models` and `rf`, as they are typed."""
import argparse
import csv
import json
import math
import resource
import subprocess
import sys
import time

import pytest
import timm

from conftest import ENVIRONMENT
from timm_focus.commands.main import main
from timm_focus.commands.models import describe_model
from timm_focus.commands.table import write_rows, write_table


@pytest.fixture
def command(capsys):
    """`command('models', 'resnet18')` is what it prints, and what it says beside that."""
    def run(*argv):
        capsys.readouterr()
        main([str(a) for a in argv])
        return capsys.readouterr()
    return run


def formatted(name):
    return argparse.Namespace(format=name)


# tables

@pytest.mark.parametrize('kind', ['table', 'csv', 'json'])
def test_rows_are_written_as_they_come(kind, capsys):
    written = []

    def rows():
        for i in range(3):
            yield dict(name=f'm{i}', number=1000 * i or None, half=i / 2)
            written.append(capsys.readouterr().out)
    assert write_rows(rows(), formatted(kind), dict(name=-6, number=8, half=4)) == 3
    assert all(f'm{i}' in text and f'm{i + 1}' not in text for i, text in enumerate(written))
    text = ''.join(written) + capsys.readouterr().out
    if kind == 'json':
        assert json.loads(text) == [dict(name=f'm{i}', number=1000 * i or None, half=i / 2) for i in range(3)]
    elif kind == 'csv':
        assert [r['number'] for r in csv.DictReader(text.splitlines())] == ['', '1000', '2000']
    else:
        assert text.splitlines() == [
            'name      number  half', 'm0                 0.0', 'm1         1,000   0.5', 'm2         2,000   1.0']


def test_no_rows(capsys):
    assert write_rows([], formatted('json'), dict(name=4)) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_table_is_as_wide_as_it_has_to_be(capsys):
    write_table([dict(model='a', n=1, why='x'), dict(model='long', n=None, why=None)], formatted('table'))
    assert capsys.readouterr().out == 'model  n  why\na      1  x\nlong\n'


# models

@pytest.mark.slow('cait', 'tnt', 'gemma4', 'naflex')
@pytest.mark.parametrize('name, parameters, tap, through', [
    ('cait_xxs24_224', 12e6, (192, 14, 14), 'blocks.0.attn'),
    ('pit_ti_224', 5e6, (128, 14, 14), 'transformers.0.blocks.0.attn'),
    ('tnt_s_legacy_patch16_224', 24e6, (384, 14, 14), 'blocks.0.attn_in'),
    ('naflexvit_base_patch16_gap', 86e6, (768, 24, 24), 'blocks.0.attn'),
    ('gemma4_vit_167m', 167e6, (768, 48, 48), 'encoder.blocks.0.attn'),  # its grid is the values of a tensor
    ('resnet18', 11.4e6, (256, 14, 14), None)])
def test_models_of_every_kind_are_listed(name, parameters, tap, through):
    if not timm.is_model(name):
        pytest.skip('this timm does not have it')
    row = describe_model(name, 365)
    assert row['parameters'] == pytest.approx(parameters, rel=0.1)
    assert (row['channels'], row['height'], row['width']) == tap
    assert row['through'] == through and (row['receptive_field'] == 'inf') == (through is not None)
    assert 1e8 < row['multiply_adds'] < 1e12


@pytest.mark.slow
def test_processes_list_the_same(command):
    argv = ('models', 'test_vit*', '--format', 'json', '--num-classes', '7')
    alone, several = command(*argv, '-j', '0'), command(*argv, '-j', '2')
    rows = json.loads(alone.out)
    assert json.loads(several.out) == rows and not alone.err and not several.err
    assert [r['model'] for r in rows] == [n for n in timm.list_models('test_vit*') if timm.is_model(f'focus_{n}')]


@pytest.mark.slow
def test_a_model_that_cannot_be_described_is_named_and_the_others_are_listed(command):
    out, err = command('models', '*g*11', '--img-size', '16', '--format', 'json', '-j', '0')
    listed = [r['model'] for r in json.loads(out)]
    assert listed == ['repghostnet_111']
    assert 'vgg11 is left out: ' in err and 'Traceback' not in err


def test_none_that_can_be_described(capsys):
    with pytest.raises(SystemExit):
        main(['models', 'vgg11', '--img-size', '16', '-j', '0'])
    assert 'error: None of the models could be described' in capsys.readouterr().err


@pytest.mark.long
def test_all_models_in_little_memory(request):
    """Every name of timm: listed, with values that make sense."""
    if not request.config.getoption('--all-models'):
        pytest.skip('takes half an hour on two cores: give --all-models')
    start = time.time()
    done = subprocess.run(
        [sys.executable, '-m', 'timm_focus.commands.main', 'models', '--format', 'csv'], env=ENVIRONMENT,
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2 ** 20
    print(f'{len(rows)} models, {time.time() - start:.0f} s, {peak:.2f} GB at most in a process')
    names = [n for n in timm.list_models(exclude_filters='focus_*') if timm.is_model(f'focus_{n}')]
    assert [r['model'] for r in rows] == names and not done.stderr
    assert peak < 2
    for row in rows:
        assert 1e5 < int(row['parameters']) < 1e10 and 1e7 < int(row['multiply_adds']) < 1e13, row
        side = int(row['input'].split('x')[1])
        assert 1 < int(row['height']) == int(row['width']) <= side and int(row['channels']) > 1, row
        assert not row['receptive_field'] or float(row['receptive_field']) > 3, row
        assert bool(row['through']) == (row['receptive_field'] == 'inf'), row
        assert math.isfinite(float(row['parameters'])), row
