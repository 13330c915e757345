"""Exports and pushes a run, with the facts that the run records."""
import argparse
import csv
import logging
import os
from typing import Any, Dict, List, Optional

from timm_focus.data import open_images
from timm_focus.runs import Loaded, check_home, check_plain, load_model, read_class_names

from .export import KIND, sent_as_it_is, write_export
from .folder import check_free
from .hub import HubError, check_push, push_export
from .provenance import images_of_run
from .publication import Publication

__all__ = ['export_run', 'planned_publication', 'push_run']

_logger = logging.getLogger(__name__)

IMAGES = 100  # to measure the coverage ratio on


def export_run(
        source: str,
        publication: Publication,
        *,
        model: Optional[str] = None,
        data: Optional[str] = None,
        class_map: Optional[str] = None,
        output: Optional[str] = None,
        report: Optional[str] = None,
        asks: bool = False,
) -> str:
    """Write the export of a run.

    Args:
        source: Folder of the run, or a checkpoint.
        publication: Licence, data set and names. Missing licence and data set come from the run's settings.
        model: timm's name of the model, for weights that do not give it.
        data: Folder of images for the pictures (default: the run's own images, if it was trained here).
        class_map: File with the names of the classes, one a line (default: the run's).
        output: Folder of the export (default: hub, in the folder of the run).
        report: Page of `timm-focus report` to include.
        asks: Ask for missing values on a terminal.

    Returns:
        The folder of the export.

    Raises:
        ValueError: A value is missing or makes no sense.
        OSError: The export cannot be written.
    """
    check_home(source, output)
    loaded = load_model(model, source, heads=True)
    check_plain(loaded)
    about, settings = loaded.checkpoint, loaded.checkpoint['settings']
    home = os.path.dirname(about['path'])
    folder = output or os.path.join(home, 'hub')
    publication = publication.filled(settings)
    if asks:
        publication = publication.asked()
    publication.check()
    check_free(folder, KIND, sent_as_it_is(folder, publication))
    table = os.path.join(home, 'summary.csv')
    summary = table if os.path.isfile(table) else None
    label_names = _label_names(loaded, class_map, home)
    if not label_names:
        _logger.warning(
            'The names of the classes are not known, so they are left out: `timm-focus push --class-map FILE` '
            'gives them.')
    images = _images(data, home, loaded.data_config, publication)
    write_export(
        loaded.model, folder, publication, label_names=label_names, data_config=loaded.data_config,
        metrics=_metrics(about, summary), settings=_settings(settings, home), summary=summary, images=images,
        base_model=_base_model(settings), report=report)
    return folder


def _label_names(loaded: Loaded, class_map: Optional[str], home: str) -> List[str]:
    path = class_map or os.path.join(home, 'classes.txt')
    if class_map or (not loaded.label_names and os.path.isfile(path)):
        return read_class_names(path)
    return loaded.label_names


def _metrics(about: Dict[str, Any], summary: Optional[str]) -> Dict[str, float]:
    """The validation metrics of a checkpoint's epoch."""
    if summary is not None:
        with open(summary, newline='', encoding='utf-8', errors='replace') as f:
            rows = {row.get('epoch'): row for row in csv.DictReader(f)}
        row = rows.get(str(about['epoch']), {})
        return {k: float(row[f'eval_{k}']) for k in ('top1', 'top5', 'loss') if row.get(f'eval_{k}')}
    name = about['settings'].get('eval_metric')
    if name in ('top1', 'top5') and about['metric'] is not None:
        return {name: float(about['metric'])}
    return {}


def _settings(settings: Dict[str, Any], home: str) -> Dict[str, Any]:
    """Final values of the settings in a run's args.yaml, or of all settings without that file."""
    import yaml

    try:
        with open(os.path.join(home, 'args.yaml')) as f:
            given = yaml.safe_load(f)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        given = None
    if not isinstance(given, dict):
        return settings
    return {k: settings.get(k, v) for k, v in given.items()} if settings else given


def _images(
        data: Optional[str],
        home: str,
        data_config: Dict[str, Any],
        publication: Publication,
) -> List[Any]:
    """Read validation images, spread over the data set, from the given folder, or from the one that the run was trained
    on here; a log line says which. A checkpoint's own folder is not trusted: the file may come from anywhere."""
    channels = data_config['input_size'][0]
    path = data or images_of_run(home)
    if not path or channels not in (1, 3):
        if not path:
            _logger.info('No images are used: `timm-focus push --data DIR` draws what the model looks at.')
        return []
    try:
        dataset = open_images(path)
    except (OSError, ValueError):
        if data:
            raise
        _logger.warning(f'No images are used: {path}, on which the run was trained, cannot be read.')
        return []
    dataset.input_img_mode = 'L' if channels == 1 else 'RGB'
    n = min(IMAGES, len(dataset))
    images = [dataset[i * len(dataset) // n][0] for i in range(n)]
    shown = f'some of them are shown ({publication.flag("no_gallery")} shows none)'
    _logger.info(f'Pictures are drawn of {n} images of {path}; '
                 f'{"none of them is shown" if publication.no_gallery else shown}.')
    return images


def _base_model(settings: Dict[str, Any]) -> str:
    """Hub id of the weights that training started from, '' if it is not known."""
    import timm

    name = str(settings.get('model') or '').removeprefix('focus_')
    if not settings.get('pretrained') or settings.get('pretrained_path') or settings.get('initial_checkpoint'):
        return ''
    if name.startswith('hf-hub:'):
        return name.removeprefix('hf-hub:').partition('@')[0]
    cfg = timm.get_pretrained_cfg(name) if ':' not in name and timm.is_model(name) else None
    if cfg is None or not cfg.hf_hub_id:
        return ''
    return cfg.hf_hub_id if not cfg.hf_hub_id.endswith('/') else f'{cfg.hf_hub_id}{cfg.architecture}.{cfg.tag}'


# --push-to-hub of train_focus.py

def planned_publication(args: argparse.Namespace) -> Publication:
    """The publication that a training run asks for at its end. Missing values are asked for on a terminal.

    Raises:
        ValueError: The run cannot be published; the message says why.
    """
    publication = Publication.of(args, args.push_to_hub, prefix='hub-')
    check_push(publication)
    if not args.distributed:
        publication = publication.asked()
    publication.check()
    if args.method == 'acol':
        raise ValueError(
            '--push-to-hub does not go with --method acol, whose classifier no timm model has: leave it out.')
    return publication


def push_run(folder: str, publication: Publication) -> None:
    """Publish a run that has just ended.

    Raises:
        HubError: The run could not be published. It is kept, and the message says how to go on.
    """
    try:
        url = push_export(export_run(folder, publication), publication)
    except HubError:
        raise
    except (OSError, ValueError) as e:
        raise HubError(
            f'The run is whole in {folder}, but not published: {e} `{publication.command(folder)}` tries again.') from e
    _logger.info(f'Published: {url}')
