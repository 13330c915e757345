"""Writes a trained model as a folder: plain timm weights, their configuration, and the heads of focus training.

The folder has timm's format and the plain architecture's name: `timm.create_model('local-dir:FOLDER', pretrained=True)`
loads it where this project is not installed, and so does 'hf-hub:user/name' once it is pushed. To go on with focus
training, the folder also has the heads, and the key 'focus' in config.json; timm ignores both.
"""
import copy
import csv
import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf  # save_for_hf with weights that timm's own saving refuses
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_focus.method import FocusNet, export_backbone
from timm_focus.utils.errors import sentence
from timm_focus.utils.text import csv_cell, one_line
from timm_focus.utils.warned import warned
from timm_focus.utils.weight_files import CHECKSUM, digest

from .card import write_card
from .folder import written_whole
from .pictures import draw_coverage, draw_curves, draw_gallery
from .publication import Publication
from .settings import published_settings

__all__ = ['save_for_hub', 'save_onnx', 'save_plain']

_logger = logging.getLogger(__name__)

WEIGHTS, CONFIG, HEADS, CARD = 'model.safetensors', 'config.json', 'focus_heads.safetensors', 'README.md'
SETTINGS, SUMMARY = 'args.yaml', 'summary.csv'
CURVES, COVERAGE, GALLERY = 'curves.png', 'coverage.png', 'focus.png'
REPORT = 'report.html'
FILES = (WEIGHTS, CONFIG, HEADS, CARD, SETTINGS, SUMMARY, CURVES, COVERAGE, GALLERY)
# entries of a timm configuration about the weights that training started from: wrong for the trained weights
SOURCE = ('license', 'tag', 'origin_url', 'paper_name', 'paper_ids', 'notes', 'custom_load', 'label_names',
          'label_descriptions')
KIND = 'Hub export'
Folder = Union[str, Path]


def _save_tensors(state: Dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors needs them: contiguous, in main memory, sharing no memory (CoaT shares some)."""
    whole = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    path.touch()  # to get the usual file mode; safetensors would let nobody else read the file
    mode = path.stat().st_mode
    save_file(whole, str(path), metadata={'format': 'pt', CHECKSUM: digest(whole)})
    path.chmod(mode)


def save_plain(
        model: nn.Module,
        folder: Folder,
        *,
        data_config: Optional[Dict[str, Any]] = None,
        label_names: Sequence[str] = (),
        model_args: Optional[Dict[str, Any]] = None,
        **pretrained_cfg: Any,
) -> nn.Module:
    """Write model.safetensors and config.json of the plain model into an existing folder.

    Args:
        model: A `FocusNet` or a plain timm model; it may be compiled, in DDP or in any memory format.
        folder: Folder to write.
        data_config: timm's data configuration of the evaluation (default: the model's own).
        label_names: Names of the classes, in the order of their indices.
        model_args: JSON values that replace arguments of the model which JSON cannot hold.
        **pretrained_cfg: More entries of timm's configuration of these weights, such as license and tag.

    Returns:
        The plain model.

    Raises:
        ValueError: The model is not a timm model, or the written files do not load as the same model.
    """
    plain = export_backbone(model).cpu()
    if label_names and len(label_names) != plain.num_classes:
        raise ValueError(
            f'There are {len(label_names)} label names and {plain.num_classes} classes: give one for each.')
    for key in SOURCE:
        plain.pretrained_cfg.pop(key, None)
    given: Dict[str, Any] = dict(pretrained_cfg=pretrained_cfg)
    if label_names:
        given['label_names'] = [str(name) for name in label_names]
    folder = Path(folder)
    _save_tensors(plain.state_dict(), folder / WEIGHTS)
    save_config_for_hf(plain, str(folder / CONFIG), given, model_args, data_config)
    _leave_out_num_classes(folder / CONFIG)
    _check_reload(plain, folder)
    return plain


def _leave_out_num_classes(path: Path) -> None:
    """Remove the number of classes from the model's arguments in config.json. timm reads it from its own entry there.
    transformers does, too, and would pass it to the model a second time if it were among the arguments."""
    config = json.loads(path.read_text('utf-8'))
    arguments = config.get('model_args', {})
    if arguments.get('num_classes') == config['num_classes']:
        del arguments['num_classes']
        path.write_text(json.dumps(config, indent=2) + '\n', 'utf-8')


def _check_reload(plain: nn.Module, folder: Path) -> None:
    """Refuse an export that timm would not load as the model that was exported."""
    logger = logging.getLogger('timm.models')  # it would log the draft's files
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        again = timm.create_model(f'local-dir:{folder}', pretrained=True).state_dict()
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f'What timm records of this model does not make it again: {sentence(e)}') from e
    finally:
        logger.setLevel(level)
    for name, tensor in plain.state_dict().items():
        if name not in again or not torch.equal(again[name], tensor.to(again[name].dtype)):
            if name in again and tensor.isnan().any():
                raise ValueError(f'{name} has weights that are no numbers (NaN): the run diverged.')
            raise ValueError(f'What timm records of this model does not make it again: {name} differs.')


def save_for_hub(
        model: nn.Module,
        folder: Folder,
        *,
        license: str,
        dataset: str,
        dataset_terms: str = '',
        license_name: str = '',
        license_link: str = '',
        tag: str = '',
        gallery: bool = True,
        repo_id: str = 'user/name',
        **about: Any,
) -> Path:
    """Write a folder for the Hugging Face Hub: a plain timm model, its heads and its card.

    Args:
        model: A `FocusNet` or a plain timm model; it may be compiled, in DDP or in any memory format.
        folder: Folder to write.
        license: Licence of these weights, by the Hub's identifier: 'apache-2.0', 'cc-by-nc-4.0', 'other' ...
        dataset: Name of the data set, or its id on the Hub ('user/name').
        dataset_terms: Terms of use of the data set, or where they are.
        license_name: Name of a licence that is 'other'.
        license_link: Address of that licence.
        tag: timm's tag of these weights (default: from the method and the data set).
        gallery: Show some of the images in focus.png.
        repo_id: Name of the repository on the Hub, for the card.
        **about: More arguments of `write_export`: label_names, data_config, metrics, settings, summary,
            images, base_model, model_args, report.

    Returns:
        The folder.

    Raises:
        ValueError: The licence or data set is missing, the model is not a timm model, or the folder is in use.
        OSError: The folder cannot be written.
    """
    publication = Publication(
        repo_id, license=license, license_name=license_name, license_link=license_link, dataset=dataset,
        dataset_terms=dataset_terms, tag=tag, no_gallery=not gallery)
    return write_export(model, folder, publication, **about)


def write_export(
        model: nn.Module,
        folder: Folder,
        publication: Publication,
        *,
        label_names: Sequence[str] = (),
        data_config: Optional[Dict[str, Any]] = None,
        metrics: Optional[Dict[str, float]] = None,
        settings: Optional[Dict[str, Any]] = None,
        summary: Optional[Folder] = None,
        images: Sequence[Any] = (),
        base_model: str = '',
        model_args: Optional[Dict[str, Any]] = None,
        report: Optional[Folder] = None,
) -> Path:
    """Write a folder for the Hub from a model and the known facts about it.

    The folder has model.safetensors and config.json, which timm loads, and README.md, the card. Depending on the
    arguments it also has focus_heads.safetensors (of a `FocusNet`), args.yaml, summary.csv, curves.png, coverage.png,
    focus.png and report.html. It is written whole or not at all. An earlier export is replaced, unless files in it were
    edited or added.

    Args:
        model: A `FocusNet` or a plain timm model; it may be compiled, in DDP or in any memory format.
        folder: Folder to write.
        publication: Licence, data set and names.
        label_names: Names of the classes, in the order of their indices.
        data_config: timm's data configuration of the evaluation (default: the model's own).
        metrics: Validation metrics: 'top1' and 'top5' in %, 'loss'.
        settings: Settings of the run; `published_settings` removes private ones.
        summary: The run's summary.csv.
        images: Pillow images for the pictures of what the network looks at.
        base_model: Hub id of the weights that training started from.
        model_args: JSON values that replace arguments of the model which JSON cannot hold.
        report: A page of `timm-focus report`.

    Returns:
        The folder.

    Raises:
        ValueError: As `save_for_hub`.
        OSError: The folder cannot be written.
    """
    publication.check()
    folder = Path(folder)
    focus = unwrap_model(model) if isinstance(unwrap_model(model), FocusNet) else None
    tag = publication.tag or f'{"focus" if focus is not None else "plain"}_{slug(publication.dataset)}'
    publication = dataclasses.replace(publication, tag=tag)
    with written_whole(folder, KIND, sent_as_it_is(folder, publication)) as draft:
        plain = save_plain(
            model, draft, data_config=data_config, label_names=label_names, model_args=model_args,
            license=one_line(publication.license_name) or publication.license.strip().lower(), tag=tag)
        data_config = _data_config(draft)
        if focus is not None:
            heads = {k: v for k, v in focus.state_dict().items() if not k.startswith('backbone.')}
            _save_tensors(heads, draft / HEADS)
            _add_focus_key(draft, focus)
        settings = published_settings(settings or {})
        if settings:
            text = yaml.safe_dump(settings, default_flow_style=False, allow_unicode=True)
            (draft / SETTINGS).write_text(text, 'utf-8')
        if summary is not None:
            _copy_table(summary, draft / SUMMARY)
            with warned('The curves of the run cannot be drawn', _logger):
                draw_curves(summary, draft / CURVES)
        if report is not None:
            shutil.copyfile(report, draft / REPORT)
        coverage = None
        if images:
            shown = () if publication.no_gallery else images
            coverage = _draw(plain, focus, shown, images, data_config, draft, publication.dataset)
        write_card(
            draft / CARD, plain, focus, publication, data_config=data_config, metrics=_finite(metrics),
            settings=settings, coverage=coverage, base_model=base_model, label_names=label_names,
            files={f.name for f in draft.iterdir()})
    return folder


def _copy_table(source: Folder, path: Path) -> None:
    """Copy a CSV, and escape its texts so that no spreadsheet calculates them."""
    def cell(text: str) -> str:
        try:
            float(text)
        except ValueError:
            return csv_cell(text)
        return text

    with open(source, newline='', encoding='utf-8', errors='surrogateescape') as f:
        rows = list(csv.reader(f))
    with open(path, 'w', newline='', encoding='utf-8') as f:
        csv.writer(f, lineterminator='\n').writerows([map(cell, row) for row in rows])


def _finite(metrics: Optional[Dict[str, float]]) -> Dict[str, float]:
    return {k: float(v) for k, v in (metrics or {}).items() if abs(float(v)) < float('inf')}


def _data_config(folder: Path) -> Dict[str, Any]:
    """The evaluation transform that the folder records, so that pictures and card match what others will get."""
    config = json.loads((folder / CONFIG).read_text('utf-8'))
    return timm.data.resolve_data_config({}, pretrained_cfg=config['pretrained_cfg'])


def _add_focus_key(folder: Path, focus: FocusNet) -> None:
    from timm_focus import __version__

    config = json.loads((folder / CONFIG).read_text('utf-8'))
    config['focus'] = dict(timm_focus_version=__version__, **focus.focus_args)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n', 'utf-8')


def _draw(plain, focus, shown, images, data_config, folder, dataset) -> Optional[Dict[str, Any]]:
    """Draw the pictures of the card. One that cannot be drawn is left out, with a warning."""
    coverage = None
    with warned('What this model looks at cannot be drawn', _logger):
        name = plain.pretrained_cfg['architecture']
        coverage = draw_coverage(plain, images, data_config, folder / COVERAGE, name, dataset)
        if focus is not None and shown and data_config['input_size'][0] in (1, 3):
            copied = copy.deepcopy(focus).cpu().float()
            draw_gallery(copied, shown, data_config, folder / GALLERY)
    return coverage


def sent_as_it_is(folder: Folder, publication: Publication) -> str:
    """Advice for a user who has edited an export."""
    return f'`{publication.again(folder)}` sends it as it is; a file that is removed is written anew.'


def is_export(folder: Folder) -> bool:
    """Whether a folder is an export as written by `save_for_hub`."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in (WEIGHTS, CONFIG))


def slug(name: str) -> str:
    """Convert a name to lower-case letters, digits and underscores."""
    return '_'.join(''.join(c if c.isascii() and c.isalnum() else ' ' for c in name.lower()).split()) or 'data'


def save_onnx(
        model: nn.Module,
        path: Folder,
        *,
        data_config: Dict[str, Any],
        label_names: Sequence[str] = (),
) -> None:
    """Write the plain model as ONNX: from normalised 'images' `[B, C, H, W]` to 'logits' `[B, K]`, for any B.

    The file's metadata has the data configuration and the names of the classes as JSON, under 'data_config' and
    'label_names'.

    Args:
        model: A `FocusNet` or a plain timm model.
        path: File to write.
        data_config: timm's data configuration of the evaluation.
        label_names: Names of the classes.

    Raises:
        ValueError: onnx is not installed, or torch cannot export the model.
    """
    try:
        import onnx  # noqa: F401  torch.onnx needs both
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ValueError(f"ONNX cannot be written ({e}): pip install 'timm_focus[onnx]' installs what it needs.") from e

    plain = export_backbone(model).cpu().float()
    timm.layers.set_exportable(True)
    try:
        program = torch.onnx.export(
            plain, (torch.zeros(2, *data_config['input_size']),), dynamo=True, verbose=False,
            input_names=['images'], output_names=['logits'], dynamic_shapes=({0: torch.export.Dim('batch')},))
    except Exception as e:  # the exporter raises many kinds
        raise ValueError(f'torch cannot export this model to ONNX: {sentence(e)}') from e
    finally:
        timm.layers.set_exportable(False)
    program.model.metadata_props.update(
        data_config=json.dumps(data_config), label_names=json.dumps(list(label_names)))
    program.save(str(path))


def read_config(path: Folder) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Read config.json, and the arguments of `FocusNet` in it; {} for a plain model.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        config = json.loads(Path(path).read_text('utf-8'))
        focus = config.get('focus') or {}
        return config, {k: v for k, v in focus.items() if k.startswith('focus_')}
    except (AttributeError, ValueError) as e:
        raise ValueError(f'{path} is no configuration of a model: {e}') from e
