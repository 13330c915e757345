"""What is published, as flags of two commands and as arguments of a program say it."""
import argparse
import dataclasses
import re
import shlex

import pytest

import train_focus
from timm_focus.commands.main import build_parser
from timm_focus.release import Publication, add_publication_flags
from timm_focus.release.publication import LICENSES

RIGHT = Publication('user/name', license='cc-by-4.0', dataset='My Scenes')
FULL = dict(license='other', license_name='My Licence', license_link='https://x.org/licence', dataset='Scenes, 2nd',
            dataset_terms="'no' $commerce", tag='a.b-c', no_gallery=True, private=True, create_pr=True, revision='main',
            overwrite=True)


def of(*argv, prefix=''):
    parser = argparse.ArgumentParser()
    add_publication_flags(parser, prefix)
    return Publication.of(parser.parse_args(argv), 'user/name', prefix)


@pytest.mark.parametrize('prefix', ['', 'hub-'])
def test_every_field_is_a_flag(prefix):
    assert of(prefix=prefix) == Publication('user/name', prefix=prefix)
    words = [w for k, v in FULL.items() for w in (
        f'--{prefix}{k.replace("_", "-")}', *([] if v is True else [v]))]
    assert of(*words, prefix=prefix) == Publication('user/name', prefix=prefix, **FULL)
    assert set(FULL) == {f.name for f in dataclasses.fields(Publication)} - {'repo_id', 'prefix'}


def test_both_commands_have_them():
    args = build_parser().parse_args(['push', 'run', 'user/name'])
    assert Publication.of(args, 'user/name') == Publication('user/name', prefix='')
    args = train_focus.parser.parse_args(['--hub-license', 'mit', '--hub-create-pr'])
    assert Publication.of(args, 'u/n', 'hub-') == Publication('u/n', license='mit', create_pr=True, prefix='hub-')


def test_the_command_that_does_it_again():
    """The shell and the parser read it as it was."""
    for publication, source in ((RIGHT, 'a run'), (Publication('user/name', **FULL), "it's")):
        words = shlex.split(publication.command(source))
        args = build_parser().parse_args(words[1:])
        assert words[0] == 'timm-focus' and args.source == source
        assert dataclasses.replace(Publication.of(args, args.repo_id), prefix=None) == publication
        again = build_parser().parse_args(shlex.split(publication.again(source))[1:])
        assert not again.license and not again.dataset and again.private == publication.private


@pytest.mark.parametrize('change, words', [
    (dict(license=''), 'licence of the weights is not given, and is never guessed: give {license}, such as apache-2.0'),
    (dict(license=' '), 'licence .* or other with {license_name} and {license_link}'),
    (dict(license='my own'), "'my own' is no identifier of the Hub"),
    (dict(license='apache2'), r'is no identifier .*\(did you mean apache-2.0\?\): give one to {license}'),
    (dict(license='cc-by-5.0'), 'did you mean cc-by-'),
    (dict(license='other'), 'needs its name and where it is: give {license_name} and {license_link}'),
    (dict(license='other', license_name='mine'), 'needs its name'),
    (dict(license='other', license_name='???', license_link='https://x.org'), 'needs its name'),
    (dict(license_name='mine'), '{license_name} names a licence that is other, not cc-by-4.0'),
    (dict(license_link='javascript:alert(1)'), '{license_link} is .*: give an address'),
    (dict(license_link='https://x.org)['), '{license_link} is .*: give an address'),
    (dict(dataset=''), 'data set .* is not given.*: give {dataset}, its name, and {dataset_terms}'),
    (dict(tag='`x`'), '{tag} is .*: give letters'),
    (dict(create_pr=True, revision='dev'), 'leave out {create_pr} or {revision}'),
    (dict(repo_id='name'), "'name' is no user/name"),
    (dict(repo_id='a/b/c'), 'is no user/name'),
])
@pytest.mark.parametrize('prefix', [None, '', 'hub-'])
def test_what_is_refused_names_the_flag_of_its_command(change, words, prefix):
    flags = {k: k if prefix is None else f'--{prefix}{k.replace("_", "-")}' for k in FULL}
    with pytest.raises(ValueError) as e:
        dataclasses.replace(RIGHT, prefix=prefix, **change).check()
    text = str(e.value)
    assert re.search(re.sub('{([a-z_]+)}', lambda m: flags[m[1]], words), text), text
    assert set(re.findall('--[a-z-]+', text)) <= set(flags.values()) and '\n' not in text


@pytest.mark.parametrize('change', [
    {}, dict(license='MIT '), dict(license='unknown'), dict(license='openrail++'), dict(license_link='LICENSE.md'),
    dict(license='other', license_name='Mine', license_link='https://x.org/a?b=c'), dict(tag='a.b-c_d'),
    dict(create_pr=True, revision='main'), dict(revision='dev')])
def test_what_is_taken(change):
    dataclasses.replace(RIGHT, **change).check()


def test_the_hubs_identifiers():
    assert len(LICENSES) == len(set(LICENSES)) > 70 and all(re.fullmatch(r'[a-z0-9.+-]+', name) for name in LICENSES)


def test_what_a_run_says_already():
    settings = dict(hub_license='mit', hub_dataset='Theirs', hub_license_link=3, hub_private=True)
    assert RIGHT.filled(settings) == RIGHT
    assert Publication('user/name').filled(settings) == Publication('user/name', license='mit', dataset='Theirs')
