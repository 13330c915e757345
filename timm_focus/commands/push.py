"""`timm-focus push`: a run on the Hugging Face Hub."""
import argparse
import sys
from typing import Any

from timm_focus.release import (
    Publication, add_publication_flags, check_push, export_run, is_export, list_export, push_export)
from timm_focus.utils.text import one_line

__all__ = ['add_parser']

ABOUT = ('license', 'license_name', 'license_link', 'dataset', 'dataset_terms', 'tag', 'no_gallery', 'data',
         'class_map', 'output', 'model', 'report')  # flags that change what an export contains


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'push', help='publish a run on the Hugging Face Hub',
        description='Publish the best weights of a run on the Hugging Face Hub as a plain timm model, with the heads '
                    'of focus training, its settings, numbers and pictures, and a model card. The export is kept in '
                    'the folder hub of the run. To send it again as it is, for example after you have edited its card, '
                    'give that folder as RUN. On a terminal, the command asks for a licence and a data set if they are '
                    'not given.',
        examples=("timm-focus push output/train/scenes user/name --license cc-by-4.0 --dataset 'My Scenes' "
                  "--dataset-terms 'CC BY 4.0'",))
    parser.add_argument('source', metavar='RUN', help='folder of a run, a checkpoint of it or of timm, an export, '
                        'hf-hub:user/name or local-dir:FOLDER')
    parser.add_argument('repo_id', metavar='USER/NAME', help='repository, made if it is not there')
    add_publication_flags(parser.add_argument_group('What it is, where it goes'))
    g = parser.add_argument_group('What is exported')
    g.add_argument('--data', metavar='DIR', help='images for pictures of what the model looks at (default: those '
                   'of a run that was trained here, else none)')
    g.add_argument('--class-map', metavar='FILE', help="names of the classes, one a line (default: the run's)")
    g.add_argument('--model', metavar='NAME', help='timm name of the model, if the weights do not have it')
    g.add_argument('--report', metavar='PAGE', help='page of timm-focus report, or its folder, to send as '
                   'report.html')
    g.add_argument('--output', metavar='DIR', help='where the export is kept (default: hub, in the folder of the run)')
    g.add_argument('--dry-run', action='store_true', help='write the export and say what would be sent; send nothing')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export the run, unless it is an export already, and push it."""
    from timm_focus.report import find_page

    args.source = args.source.removeprefix('local-dir:')
    publication = Publication.of(args, args.repo_id)
    publication.check_where()
    report = find_page(args.report, images=not args.no_gallery) if args.report else None
    if not args.dry_run:
        check_push(publication)
    if is_export(args.source):
        foreign = [publication.flag(name) for name in ABOUT if getattr(args, name)]
        if foreign:
            raise ValueError(f'{args.source} is an export already, and is sent as it is: change its card, or name the '
                             f'run to have it made anew with {", ".join(foreign)}.')
        folder = args.source
    else:
        folder = export_run(
            args.source, publication, model=args.model, data=args.data, class_map=args.class_map, output=args.output,
            report=report, asks=True)
        print(f'Exported to {folder}', flush=True)
    if args.dry_run:
        how = 'a pull request to ' if args.create_pr else ''
        branch = f', branch {args.revision}' if args.revision else ''
        print(f'To {how}{args.repo_id}{branch} would go:')
        for name, size in list_export(folder):
            print(f'{size:>15,}  {one_line(name)}')
        return
    try:
        url = push_export(folder, publication)
    except KeyboardInterrupt:
        print(f'Interrupted. The export is whole in {folder}: `{publication.again(folder)}` goes on with it.',
              file=sys.stderr)
        sys.exit(130)
    print(f'Published: {url}')
