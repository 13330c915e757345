"""Reads checkpoints of runs and weights from elsewhere; an unusable one is refused with one sentence."""
import argparse
import json
import math
import numbers
import os
from typing import Any, Collection, Dict, Mapping, NamedTuple, Optional, Tuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError
from timm.models import clean_state_dict, parse_model_name
from torch import Tensor

from timm_focus.method import HEADS
from timm_focus.models import FOCUS_ARGS
from timm_focus.utils.errors import sentence
from timm_focus.utils.hub_errors import answered, explanation
from timm_focus.utils.text import brief
from timm_focus.utils.weight_files import read_weight_file

__all__ = ['Checkpoint', 'check_home', 'find_checkpoint', 'is_source', 'parse_checkpoint', 'read_checkpoint']

RUN_FILES = ('model_best.pth.tar', 'last.pth.tar')
EXPORT_CONFIG, EXPORT_WEIGHTS, EXPORT_HEADS = 'config.json', 'model.safetensors', 'focus_heads.safetensors'
LOCAL, HUB = 'local-dir:', 'hf-hub:'
STATES = ('state_dict', 'model', 'model_state_dict')  # keys of the weights in checkpoints of various scripts
MOST_PIXELS = 8192 ** 2  # of an image; more would fill the memory
INPUT_SIZE = f'channels, height and width of at most {MOST_PIXELS:,} pixels'
State = Dict[str, Tensor]


class Checkpoint(NamedTuple):
    """The content of a file of weights.

    Attributes:
        path: The file.
        arch: Name of the model; '' if the file does not give it.
        settings: Settings of train_focus.py or timm's train.py; {} for weights from elsewhere.
        epoch: Epoch of the weights; None if the file does not give it.
        metric: Value by which the run ranked the epoch; None if the file does not give it.
        state: State dict of the plain model; the running average, if the run validated one.
        heads: State dicts of the heads of focus training; {} without heads.
    """
    path: str
    arch: str
    settings: Dict[str, Any]
    epoch: Optional[int]
    metric: Optional[float]
    state: State
    heads: Dict[str, State]


def is_source(name: Optional[str]) -> bool:
    """Whether a model name also locates its weights, in timm's form: hf-hub:user/name or local-dir:PATH."""
    return bool(name) and name.startswith((LOCAL, HUB, 'hf_hub:'))


def check_home(source: str, output: Optional[str]) -> None:
    """Refuse weights from the Hub without an output folder, since output beside them would go into the Hub's cache.

    Args:
        source: Location of the weights.
        output: Output folder; None for beside the weights.

    Raises:
        ValueError: The weights are on the Hub, and `output` is missing.
    """
    if is_source(source) and not source.startswith(LOCAL) and not output:
        raise ValueError(f'{source} has no folder to write into: give --output, too.')


def find_checkpoint(path: str) -> str:
    """Find the file of weights for a path; in the folder of a run, the best epoch.

    Raises:
        ValueError: There is no such file.
    """
    if not os.path.isdir(path):
        if not os.path.isfile(path):
            raise ValueError(f'There is no checkpoint {path}.')
        return path
    for name in RUN_FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise ValueError(f'The folder {path} has neither {" nor ".join(RUN_FILES)}: name a file.')


def read_checkpoint(path: str) -> Checkpoint:
    """Read weights from a file, a folder of a run, an export or a repository on the Hub.

    Args:
        path: A file, a folder of a run or of an export, local-dir:FOLDER, or hf-hub:user/name.

    Raises:
        ValueError: There is no such file, it is damaged, or it is no checkpoint; the message says which part is
            wrong, and why.
    """
    if not is_source(path) and all(os.path.isfile(os.path.join(path, f)) for f in (EXPORT_CONFIG, EXPORT_WEIGHTS)):
        path = LOCAL + path
    if is_source(path):
        return _read_source(path)
    file = find_checkpoint(path)
    return parse_checkpoint(read_weight_file(file), file)


def parse_checkpoint(found: Dict[str, Any], path: str) -> Checkpoint:
    """Sort the content of a file of weights into a `Checkpoint`.

    The running average is taken, if there is one, unless the run kept it unvalidated on the CPU.

    Args:
        found: Result of `read_weight_file`: a checkpoint of timm or of another script, or a state dict.
        path: The file, for messages.

    Raises:
        ValueError: It is no checkpoint; the message says which part is wrong, and why.
    """
    args, arch = found.get('args'), found.get('arch')
    settings = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    _check(settings, SETTINGS, path)
    for part in ('pretrained_cfg_overlay', 'model_kwargs'):
        _check(settings.get(part), SIZES, path)
    if not isinstance(arch, (str, type(None), Tensor)):  # in a state dict it may be a weight
        raise ValueError(f'The checkpoint {path} is of the model {brief(arch)}, which is no name.')
    average = '' if settings.get('model_ema_force_cpu') else next(
        (name for name in ('state_dict_ema', 'model_ema') if found.get(name) is not None), '')
    name = average or next((name for name in STATES if not isinstance(found.get(name), (Tensor, type(None)))), '')
    if not name and 'state_dict' in found:
        name = 'state_dict'
    state = clean_state_dict(_tensors(found[name] if name else found, path, name))
    if settings.get('split_bn'):  # the statistics of the augmented splits serve training only
        state = {k: v for k, v in state.items() if '.aux_bn.' not in k}
    heads = found.get('task_state_ema' if average == 'state_dict_ema' else 'task_state') if name else None
    if heads is not None and not isinstance(heads, dict):
        raise ValueError(f'The checkpoint {path} has a task_state that is {brief(heads)}, no heads by name.')
    heads = heads if all(head in (heads or {}) for head in HEADS) else {}
    heads = {head: _tensors(heads[head], path, head) for head in HEADS if heads}
    parts = {part: _under(f'{part}.', state) for part in ('backbone', *HEADS)}
    if all(parts.values()):  # the state dict of a FocusNet
        state, heads = parts.pop('backbone'), parts
    epoch, metric = found.get('epoch'), found.get('metric')
    return Checkpoint(
        path, arch if isinstance(arch, str) else '', settings,
        epoch if isinstance(epoch, int) else None, float(metric) if isinstance(metric, (int, float)) else None,
        state, heads)


def _read_source(source: str) -> Checkpoint:
    """Read an export, local or on the Hub, as a checkpoint."""
    config = _source_file(source, EXPORT_CONFIG)
    weights = _source_file(source, EXPORT_WEIGHTS) or _source_file(source, 'pytorch_model.bin')
    if config is None or weights is None:
        raise ValueError(f'{source} has no {EXPORT_CONFIG if config is None else EXPORT_WEIGHTS}: it is no model of '
                         "timm's.")
    try:
        with open(config, encoding='utf-8') as f:
            found = json.load(f)
        focus = found.get('focus') or {}
        settings = {k: v for k, v in focus.items() if k in FOCUS_ARGS}
    except (AttributeError, OSError, ValueError) as e:
        raise ValueError(f'{config} cannot be read: {sentence(e)}') from e
    for part in (found.get('pretrained_cfg', found), found.get('model_args')):
        _check(part, SIZES, config)
    state = _tensors(clean_state_dict(read_weight_file(weights)), weights, '')
    heads: Dict[str, State] = {}
    file = _source_file(source, EXPORT_HEADS) if focus else None
    if file is not None:
        tensors = _tensors(read_weight_file(file), file, '')
        heads = {head: _under(f'{head}.', tensors) for head in HEADS}
    return Checkpoint(weights, source, settings, None, None, state, heads)


def _source_file(source: str, name: str) -> Optional[str]:
    """Path of a file of an export, downloaded where needed; None if the export has no such file."""
    kind, place = parse_model_name(source)
    if kind == 'local-dir':
        path = os.path.join(place, name)
        return path if os.path.isfile(path) else None
    repo_id, _, revision = place.partition('@')
    try:
        return hf_hub_download(repo_id, name, revision=revision or None)
    except Exception as e:  # of the client and of its HTTP library
        is_local = type(e).__name__ == 'LocalEntryNotFoundError'  # there is no copy here, and the Hub gave none
        if isinstance(e, EntryNotFoundError) and not is_local:
            return None
        why = f'The Hub cannot be reached for {source}, and there is no copy of it here.'
        if answered(e) or not is_local:
            why = f'{source} cannot be had from the Hub: {explanation(e, repo_id)}'
        raise ValueError(why) from None  # their texts may show a token, or addresses with a key


def _check(settings: Any, names: Collection[str], path: str) -> None:
    """Check that some of the settings that a file gives are what they must be.

    Raises:
        ValueError: One is not.
    """
    for name in names if isinstance(settings, dict) else ():
        value, (wanted, right) = settings.get(name), SETTINGS[name]
        if value is not None and not right(value):
            raise ValueError(f'The checkpoint {path} has the setting {name} {brief(value)}, where {wanted} belongs.')


def _tensors(found: Any, path: str, name: str) -> State:
    """Check that an object is a state dict, and return it.

    Raises:
        ValueError: It is not a state dict.
    """
    what = f'its {name}' if name else 'it'
    if not isinstance(found, dict) or not found:
        raise ValueError(f'The checkpoint {path} has no weights: {what} is {brief(found)}.')
    for key, value in found.items():
        if not isinstance(key, str):
            raise ValueError(f'The checkpoint {path} has no weights by names: {what} has the key {brief(key)}.')
        if not isinstance(value, Tensor):
            raise ValueError(f'The checkpoint {path} has no weights by names: {key} of {what} is {brief(value)}.')
        if value.layout != torch.strided or value.is_quantized:
            kind = 'quantized' if value.is_quantized else 'sparse'
            raise ValueError(f'The checkpoint {path} has {kind} weights, such as {key}, which no model here takes.')
    return found


def _under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0


def _size(value: Any) -> bool:
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    return all(map(_whole, sides)) and len(sides) == 2 and sides[0] * sides[1] <= MOST_PIXELS


def is_input_size(value: Any) -> bool:
    """Whether these are channels, height and width of an image that does not fill the memory."""
    return (isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_whole, value))
            and math.prod(value) <= 3 * MOST_PIXELS and _size(list(value[1:])))


def _several(value: Any, kind: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(v, kind) for v in value)


_TEXT = 'text', lambda v: isinstance(v, str)
_NUMBERS = 'one number or more', lambda v: _several(v, numbers.Real)
_NAMED = 'values by names', lambda v: isinstance(v, dict) and all(isinstance(k, str) for k in v)
SIZES = 'img_size', 'input_size'  # which may be in other settings, too
# requirements of the settings that determine a model and its images
SETTINGS: Dict[str, Tuple[str, Any]] = dict(
    num_classes=('a number from 1 on', _whole), in_chans=('a number from 1 on', _whole),
    img_size=(f'a size of at most {MOST_PIXELS:,} pixels', _size),
    input_size=(INPUT_SIZE, is_input_size), model_kwargs=_NAMED, pretrained_cfg_overlay=_NAMED,
    label_names=('names', lambda v: _several(v, str)),
    mean=_NUMBERS, std=_NUMBERS, crop_pct=('a number', lambda v: isinstance(v, numbers.Real)), gp=_TEXT,
    interpolation=_TEXT, crop_mode=_TEXT, method=_TEXT)
