"""`timm-focus push`: a run on the Hugging Face Hub."""
import argparse
import csv
import logging
import os
import shlex
import sys
from typing import Any, Dict, List, Optional

from timm_focus.runs import Loaded, check_plain, load_model

__all__ = ['add_parser', 'check_run_push', 'push_run']

IMAGES = 100  # of which the coverage ratio is measured
ABOUT = ('license', 'license_name', 'license_link', 'dataset', 'dataset_terms', 'tag', 'data', 'class_map', 'output',
         'model')  # flags of what is written into an export


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'push', help='publish a run on the Hugging Face Hub',
        description='Publish the best weights of a run on the Hugging Face Hub as a plain timm model, with the heads '
                    'of focus training beside it, its settings, numbers and pictures, and a model card. The export is '
                    'kept in the folder hub of the run; pushed again by its own name, it is sent as it is, with '
                    'whatever was changed in its card.')
    parser.add_argument('source', metavar='RUN', help='folder of a run, a checkpoint of it or of timm, or an export')
    parser.add_argument('repo_id', metavar='USER/NAME', help='repository, made if it is not there')
    g = parser.add_argument_group('What it is; asked for on a terminal, if it is not given')
    g.add_argument('--license', metavar='ID', help="licence of the weights, by the Hub's identifier (apache-2.0), or "
                   'other')
    g.add_argument('--license-name', metavar='NAME', help='name of a licence that is other')
    g.add_argument('--license-link', metavar='URL', help='where it is')
    g.add_argument('--dataset', metavar='NAME', help="name of the data set, or the Hub's id of it")
    g.add_argument('--dataset-terms', metavar='TEXT', help='its terms of use, or where they are')
    g = parser.add_argument_group('What goes with it')
    g.add_argument('--data', metavar='DIR', help="images to show what it looks at (default: the run's own, if they are "
                   'there)')
    g.add_argument('--no-gallery', action='store_true', help='publish no images of the data set')
    g.add_argument('--class-map', metavar='FILE', help="names of the classes, one a line (default: the run's)")
    g.add_argument('--tag', metavar='TAG', help="timm's tag of these weights (default: of the method and the data set)")
    g.add_argument('--model', metavar='NAME', help='timm name, of weights that do not say it')
    g.add_argument('--output', metavar='DIR', help='where the export is kept (default: hub, in the folder of the run)')
    g = parser.add_argument_group('How')
    g.add_argument('--private', action='store_true', help='make the repository private')
    g.add_argument('--create-pr', action='store_true', help='open a pull request')
    g.add_argument('--revision', metavar='BRANCH', help='branch (default: main)')
    g.add_argument('--overwrite', action='store_true', help='replace files that are in the repository')
    g.add_argument('--dry-run', action='store_true', help='write the export and say what would be sent; send nothing')
    parser.set_defaults(run=run, asks=True)


def run(args: argparse.Namespace) -> None:
    """Export what is no export yet, and push it."""
    from timm_focus.release.export import is_export
    from timm_focus.release.hub import check_push, check_repo_id, list_export, push_folder

    check_repo_id(args.repo_id)
    if not args.dry_run:
        check_push(args.repo_id)
    if is_export(args.source):
        foreign = [f'--{name.replace("_", "-")}' for name in ABOUT if getattr(args, name)]
        if foreign or args.no_gallery:
            raise ValueError(f'{args.source} is an export already, and is sent as it is: change its card, or name the '
                             f'run to have it made anew with {", ".join(foreign) or "--no-gallery"}.')
        folder = args.source
    else:
        folder = export_run(args)
        print(f'Exported to {folder}', flush=True)
    if args.dry_run:
        how = 'a pull request to ' if args.create_pr else ''
        branch = f', branch {args.revision}' if args.revision else ''
        print(f'To {how}{args.repo_id}{branch} would go:')
        for name, size in list_export(folder):
            print(f'{size:>15,}  {name}')
        return
    try:
        url = push_folder(
            folder, args.repo_id, private=args.private, create_pr=args.create_pr, revision=args.revision,
            overwrite=args.overwrite)
    except KeyboardInterrupt:
        again = f'`timm-focus push {folder} {args.repo_id}` goes on with it.'
        print(f'Interrupted. The export is whole in {folder}: {again}', file=sys.stderr)
        sys.exit(130)
    print(f'Published: {url}')


def export_run(args: argparse.Namespace) -> str:
    """Write the export of a run; the flags are those of `timm-focus push`. Returns its folder."""
    from timm_focus.release.export import KIND, check_about, save_for_hub, sent_as_it_is
    from timm_focus.release.folder import check_free

    loaded = load_model(args.model, args.source, heads=True)
    check_plain(loaded)
    record, settings = loaded.record, loaded.record['settings']
    home = os.path.dirname(record['path'])
    folder = args.output or os.path.join(home, 'hub')
    about = {name: getattr(args, name) or settings.get(f'hub_{name}') or ''
             for name in ('license', 'dataset', 'dataset_terms')}
    if args.asks and sys.stdin is not None and sys.stdin.isatty():
        ask(about)
    check_about(about['license'], about['dataset'])
    check_free(folder, KIND, sent_as_it_is(folder, args.repo_id))
    summary = os.path.join(home, 'summary.csv')
    summary = summary if os.path.isfile(summary) else None
    label_names = _label_names(loaded, args.class_map, home)
    if not label_names:
        print('The names of the classes are not known, so they are left out: --class-map gives them.', file=sys.stderr)
    save_for_hub(
        loaded.model, folder, **about, license_name=args.license_name or '',
        license_link=args.license_link or '', label_names=label_names, data_config=loaded.data_config,
        metrics=_metrics(record, summary), settings=_settings(settings, home), summary=summary,
        images=_images(args.data, settings, loaded.data_config), gallery=not args.no_gallery,
        base_model=_base_model(settings), tag=args.tag or '', repo_id=args.repo_id)
    return folder


def ask(about: Dict[str, str]) -> None:
    """Ask at the terminal for what was not given; an answer may be left out, and is then found missing."""
    for name, question in (
            ('license', 'Licence of the weights, by the identifier of the Hub (such as apache-2.0): '),
            ('dataset', 'Data set that they were trained on: '),
            ('dataset_terms', 'Its terms of use, or where they are: ')):
        if not about[name]:
            try:
                about[name] = input(question).strip()
            except EOFError:
                return


def _label_names(loaded: Loaded, class_map: Optional[str], home: str) -> List[str]:
    path = class_map or os.path.join(home, 'classes.txt')
    if class_map or (not loaded.label_names and os.path.isfile(path)):
        with open(path) as f:
            return [line.strip() for line in f if line.strip()]
    return loaded.label_names


def _metrics(record: Dict[str, Any], summary: Optional[str]) -> Dict[str, float]:
    """What validation measured of the epoch of a checkpoint."""
    if summary is not None:
        with open(summary, newline='') as f:
            rows = {row.get('epoch'): row for row in csv.DictReader(f)}
        row = rows.get(str(record['epoch']), {})
        return {k: float(row[f'eval_{k}']) for k in ('top1', 'top5', 'loss') if row.get(f'eval_{k}')}
    name = record['settings'].get('eval_metric')
    if name in ('top1', 'top5') and record['metric'] is not None:
        return {name: float(record['metric'])}
    return {}


def _settings(settings: Dict[str, Any], home: str) -> Dict[str, Any]:
    """Settings of a run: those that its args.yaml names, as they turned out, or all."""
    import yaml

    try:
        with open(os.path.join(home, 'args.yaml')) as f:
            given = yaml.safe_load(f)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        given = None
    if not isinstance(given, dict):
        return settings
    return {k: settings.get(k, v) for k, v in given.items()} if settings else given


def _images(data: Optional[str], settings: Dict[str, Any], data_config: Dict[str, Any]) -> List[Any]:
    """Validation images, spread over the data set, none if they are no longer there."""
    from timm_focus.data import open_images
    from timm_focus.demo import SYNTHETIC

    channels = data_config['input_size'][0]
    path = data or settings.get('data_dir') or ''
    ours = settings.get('dataset') in (None, '', 'places365', 'folder', 'imagefolder', 'image_folder', SYNTHETIC)
    if channels not in (1, 3) or (not data and not (ours and os.path.isdir(path))):
        return []
    try:
        dataset = open_images(path)
    except (OSError, ValueError):
        if data:
            raise
        return []
    dataset.input_img_mode = 'L' if channels == 1 else 'RGB'
    n = min(IMAGES, len(dataset))
    return [dataset[i * len(dataset) // n][0] for i in range(n)]


def _base_model(settings: Dict[str, Any]) -> str:
    """Id on the Hub of the weights that training started from, if it is known."""
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


# of a run of train_focus.py, by its --push-to-hub

def check_run_push(args: argparse.Namespace) -> None:
    """Refuse a push that cannot be before anything is trained; asks on a terminal for what is not given.

    Raises:
        ValueError: What is missing.
    """
    from timm_focus.release import check_push
    from timm_focus.release.export import check_about

    check_push(args.push_to_hub)
    about = {name: getattr(args, f'hub_{name}') or '' for name in ('license', 'dataset', 'dataset_terms')}
    if not args.distributed and sys.stdin is not None and sys.stdin.isatty():
        ask(about)
    try:
        check_about(about['license'], about['dataset'])
    except ValueError as e:
        raise ValueError(str(e).replace('--', '--hub-')) from None
    for name, value in about.items():
        setattr(args, f'hub_{name}', value)


def push_run(args: argparse.Namespace, folder: str) -> None:
    """Publish the run that has just ended.

    Raises:
        HubError: It could not be published. It is kept, and the message says how to go on.
    """
    from timm_focus.release import HubError

    words = ['push', folder, args.push_to_hub, '--license', args.hub_license, '--dataset', args.hub_dataset]
    words += ['--dataset-terms', args.hub_dataset_terms] if args.hub_dataset_terms else []
    words += ['--private'] if args.hub_private else []
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    for name in ('httpx', 'httpx2'):  # they log each request, signed addresses of storage among them
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        run(argparse.Namespace(**{**vars(parser.parse_args(words)), 'asks': False}))  # nobody waits at the terminal
    except HubError:
        raise
    except (OSError, ValueError) as e:
        raise HubError(
            f'The run is whole in {folder}, but not published: {e} `timm-focus {shlex.join(words)}` tries again.'
        ) from e
