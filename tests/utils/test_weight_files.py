"""What is damaged is told, and nothing in a file of weights runs."""
import argparse
import os
import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from timm_focus.runs.names import read_class_names
from timm_focus.utils.weight_files import digest, read_weight_file

STATE = dict(
    conv=torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last), bias=torch.randn(8).bfloat16(),
    n=torch.tensor(3), empty=torch.zeros(0, 2), flags=torch.tensor([True, False]))


@pytest.fixture
def files(tmp_path):
    """The same tensors in each of the formats."""
    checkpoint = dict(state_dict=STATE, epoch=3, args=argparse.Namespace(lr=0.1))
    torch.save(checkpoint, tmp_path / 'new.pth.tar')
    torch.save(checkpoint, tmp_path / 'old.pth.tar', _use_new_zipfile_serialization=False)
    contiguous = {k: v.contiguous() for k, v in STATE.items()}
    save_file(contiguous, tmp_path / 'ours.safetensors', metadata=dict(format='pt', sha256=digest(STATE)))
    save_file(contiguous, tmp_path / 'foreign.safetensors')
    return tmp_path


def tensors(path):
    found = read_weight_file(str(path))
    return found.get('state_dict', found)


def same(found):
    return found.keys() == STATE.keys() and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in STATE.items())


@pytest.mark.parametrize('name', ['new.pth.tar', 'old.pth.tar', 'ours.safetensors', 'foreign.safetensors'])
def test_every_format_is_read_by_what_it_is(files, name):
    (files / name).rename(files / 'weights')
    assert same(tensors(files / 'weights'))


@pytest.mark.parametrize('name', ['new.pth.tar', 'ours.safetensors'])
def test_no_flipped_bit_changes_weights(files, name):
    whole, generator, refused = (files / name).read_bytes(), random.Random(0), 0
    for _ in range(220):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        (files / 'damaged').write_bytes(damaged)
        try:
            assert same(tensors(files / 'damaged'))  # of what fills up space
        except ValueError as e:
            refused += 1
            assert str(e).startswith(f'The checkpoint {files}/damaged ')
    assert refused > 100


def test_what_another_program_zipped_again_is_read_right(files):
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(files / 'new.pth.tar') as old, zipfile.ZipFile(files / 'again', 'w', method) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert same(tensors(files / 'again'))


def test_a_zip_without_checksums_is_read(files):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, files / 'unchecked')
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(tensors(files / 'unchecked'))


class _Code:
    def __reduce__(self):
        return eval, ('1 / 0',)


@pytest.mark.parametrize('content, words', [
    (torch.nn.Linear(1, 1), 'holds objects beside weights, such as torch.nn.modules.linear.Linear'),
    (dict(state_dict=STATE, code=_Code()), 'holds objects beside weights, such as .*eval'),
    ([1, 2], 'holds a list, not weights by their names'),
    ({1: torch.zeros(1)}, 'holds keys that are no names'),
    (None, 'holds a NoneType'),
])
@pytest.mark.parametrize('zipped', [True, False])
def test_what_is_no_checkpoint_is_told(tmp_path, content, words, zipped):
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=words):
        read_weight_file(str(tmp_path / 'x.pth'))


def test_what_is_no_file_of_weights_is_told(files):
    (files / 'empty').touch()
    (files / 'text').write_text('hello, world')
    (files / 'cut').write_bytes((files / 'new.pth.tar').read_bytes()[:-200])
    for name, words in dict(
            empty='cannot be read, so it is damaged or none', text='damaged or none', cut='damaged or none',
            nowhere='There is no checkpoint').items():
        with pytest.raises(ValueError, match=words):
            read_weight_file(str(files / name))
    with pytest.raises(ValueError, match='it is a folder'):
        read_weight_file(str(files))


def _header(length, text):
    return length.to_bytes(8, 'little') + text


@pytest.mark.parametrize('data', [
    _header(2 ** 62, b'{}'),
    _header(100, b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    _header(54, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}' + bytes(8)),
    _header(54, b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}' + bytes(8)),
    _header(54, b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}' + bytes(8)),
    _header(54, b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' + bytes(4)),
    _header(64, b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,8]}}'[:64] + bytes(8)),
    _header(3, b'{"a'),
])
def test_safetensors_that_lie_about_themselves_are_told(tmp_path, data):
    (tmp_path / 'x.safetensors').write_bytes(data)
    with pytest.raises(ValueError, match='cannot be read, so it is damaged or none'):
        read_weight_file(str(tmp_path / 'x.safetensors'))


def test_the_digest_is_of_names_and_numbers():
    turned = {k: v.contiguous() for k, v in reversed(STATE.items())}
    assert digest(turned) == digest(STATE) and len(digest(STATE)) == 64
    for other in ({**STATE, 'n': torch.tensor(4)}, {**STATE, 'conv': STATE['conv'].reshape(8, 27)},
                  {**STATE, 'flags': STATE['flags'].byte()}, {k: v for k, v in STATE.items() if k != 'empty'}):
        assert digest(other) != digest(STATE)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe.pth')
    with pytest.raises(ValueError, match='it is no regular file'):
        read_weight_file(str(tmp_path / 'pipe.pth'))
    with pytest.raises(ValueError, match='it is no regular file'):
        read_class_names(str(tmp_path / 'pipe.pth'))
