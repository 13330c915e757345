"""Reads files of weights: detects damage, and runs no code from them."""
import argparse
import hashlib
import os
import re
import zipfile
from typing import Any, Dict

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ['CHECKSUM', 'digest', 'read_weight_file']

CHECKSUM = 'sha256'  # the key of `digest` in the metadata of safetensors


def read_weight_file(path: str) -> Dict[str, Any]:
    """Read a file of weights in torch's zip format, in its old format or in safetensors, whatever its name.

    Checksums detect damage in zips and in safetensors written by this package. Torch's old format and other safetensors
    have none, so there only unreadable files are refused. Only tensors, plain values
    and `argparse.Namespace` are loaded.

    Returns:
        The saved object. Its tensors are in main memory; those of a zip are mapped from the file.

    Raises:
        ValueError: There is no such file, it is damaged, or it does not hold a dict with names as keys.
    """
    if not os.path.exists(path):
        raise ValueError(f'There is no checkpoint {path}.')
    if not os.path.isfile(path):  # such as a pipe, on which reading would block
        what = 'a folder' if os.path.isdir(path) else 'no regular file'
        raise ValueError(f'The checkpoint {path} cannot be read: it is {what}.')
    try:
        with open(path, 'rb') as f:
            start = f.read(9)
        if start[8:] == b'{':
            return _read_safetensors(path)
        found = _read_torch(path, zipped=start.startswith(b'PK'))
    except _Damaged as e:
        raise ValueError(f'The checkpoint {path} is damaged: {e}. Take another copy of it.') from None
    except OSError as e:
        raise ValueError(f'The checkpoint {path} cannot be read: {e.strerror or e}.') from e
    except Exception as e:  # a damaged file makes a reader raise anything
        foreign = re.search(r'GLOBAL (\S+) was not an allowed global', str(e))
        if foreign:
            raise ValueError(f'The checkpoint {path} holds objects beside weights, such as {foreign[1]}, which are not '
                             'loaded, as that could run code: have its state dict saved by itself.') from e
        raise ValueError(f'The checkpoint {path} cannot be read, so it is damaged or none: {type(e).__name__} '
                         f'{" ".join(str(e).split())[:200]}'.rstrip() + '.') from e
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        kind = 'keys that are no names' if isinstance(found, dict) else f'a {type(found).__name__}'
        raise ValueError(f'The checkpoint {path} holds {kind}, not weights by their names.')
    return found


def digest(tensors: Dict[str, Tensor]) -> str:
    """SHA-256 of named tensors, independent of their order, device and memory format."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        found.update(f'{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0'.encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


class _Damaged(Exception):
    """A part of a file differs from what was written."""


def _read_torch(path: str, zipped: bool) -> Any:
    mapped = False
    if zipped:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.CRC for entry in entries):  # torch can be told to write no checksums
                wrong = archive.testzip()
                if wrong is not None:
                    raise _Damaged(f'{wrong} in it has another checksum than when it was written')
        # torch would map compressed entries, of another program, as if they were not compressed
        mapped = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)


def _read_safetensors(path: str) -> Dict[str, Tensor]:
    with safe_open(path, 'pt') as f:
        expected = (f.metadata() or {}).get(CHECKSUM)
        tensors = f.get_tensors()
    if expected is not None and digest(tensors) != expected:
        raise _Damaged('its tensors have another checksum than when it was written')
    return tensors
