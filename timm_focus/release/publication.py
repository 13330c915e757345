"""Describes a publication: what goes to the Hub, where and how, from flags or from a program."""
import argparse
import dataclasses
import difflib
import re
import shlex
import sys
from typing import Any, Dict, List, Optional, Sequence

from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, validate_repo_id

from timm_focus.utils.text import word

__all__ = ['LICENSES', 'Publication', 'add_publication_flags', 'is_repo_id']

# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = tuple('''
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
'''.split())
HOW = ('private', 'create_pr', 'revision', 'overwrite')  # flags of a push that sends an export as it is
QUESTIONS = dict(
    license='Licence of the weights, by the identifier of the Hub (such as apache-2.0): ',
    dataset='Data set that they were trained on: ',
    dataset_terms='Its terms of use, or where they are: ')


def _flag(default: Any, help: str, **kwargs: Any) -> Any:
    """Declare a field that is also a flag of a command."""
    return dataclasses.field(default=default, metadata=dict(help=help, **kwargs))


@dataclasses.dataclass(frozen=True)
class Publication:
    """A publication on the Hugging Face Hub: what is published, where and how.

    Its fields are the publishing flags of `timm-focus push` and, with a prefix, of train_focus.py.

    Args:
        repo_id: 'user/name'. The repository is made if it is not there.
        prefix: Prefix of the flags in messages; None if it was made by a program, not from flags.
    """
    repo_id: str
    license: str = _flag('', "licence of the weights, by the Hub's identifier (apache-2.0), or other", metavar='ID')
    license_name: str = _flag('', 'name of a licence that is other', metavar='NAME')
    license_link: str = _flag('', 'where it is', metavar='URL')
    dataset: str = _flag('', "name of the data set, or the Hub's id of it", metavar='NAME')
    dataset_terms: str = _flag('', 'its terms of use, or where they are', metavar='TEXT')
    tag: str = _flag('', "timm's tag of these weights (default: of the method and the data set)", metavar='TAG')
    no_gallery: bool = _flag(False, 'publish no images of the data set')
    private: bool = _flag(False, 'make the repository private')
    create_pr: bool = _flag(False, 'open a pull request')
    revision: str = _flag('', 'branch, made if it is not there (default: main)', metavar='BRANCH')
    overwrite: bool = _flag(False, 'replace files that are in the repository')
    prefix: Optional[str] = None

    @classmethod
    def of(cls, args: argparse.Namespace, repo_id: str, prefix: str = '') -> 'Publication':
        """Make a publication from the flags of `add_publication_flags`."""
        given = {f.name: getattr(args, _dest(f.name, prefix)) for f in _flags()}
        return cls(repo_id, prefix=prefix, **{k: v for k, v in given.items() if v is not None})

    def flag(self, name: str) -> str:
        """The name of a field in messages: its flag, or the argument of a program."""
        return name if self.prefix is None else f'--{self.prefix}{name.replace("_", "-")}'

    def filled(self, settings: Dict[str, Any]) -> 'Publication':
        """Fill in missing licence and data set from the settings of a run."""
        texts = ('license', 'license_name', 'license_link', 'dataset', 'dataset_terms')
        said = {name: settings.get(f'hub_{name}') for name in texts if not getattr(self, name)}
        known: Dict[str, Any] = {name: value for name, value in said.items() if isinstance(value, str)}
        return dataclasses.replace(self, **known)

    def asked(self) -> 'Publication':
        """Ask for missing values if standard input is a terminal. An empty answer leaves a value missing."""
        answers: Dict[str, Any] = {}
        if sys.stdin is not None and sys.stdin.isatty():
            try:
                for name, question in QUESTIONS.items():
                    if not getattr(self, name):
                        answers[name] = input(question).strip()
            except EOFError:
                pass
        return dataclasses.replace(self, **answers)

    def command(self, run: Any) -> str:
        """The command line that publishes a run with these options."""
        return self._command(run, [f.name for f in _flags()])

    def again(self, export: Any) -> str:
        """The command line that pushes an export, which already has licence and data set, with these options."""
        return self._command(export, HOW)

    def _command(self, source: Any, names: Sequence[str]) -> str:
        words: List[str] = []
        for name in names:
            value = getattr(self, name)
            if value:
                words += [f'--{name.replace("_", "-")}', *([] if value is True else [str(value)])]
        return shlex.join(['timm-focus', 'push', str(source), self.repo_id, *words])

    def check(self) -> None:
        """Refuse a publication without licence or data set, or with values that the Hub would not accept.

        Raises:
            ValueError: Something is missing or wrong; the message names the flag.
        """
        self.check_where()
        license, named = self.license.strip(), word(self.license_name) and self.license_link.strip()
        other = f'or other with {self.flag("license_name")} and {self.flag("license_link")}'
        if not license:
            raise ValueError(
                f'The licence of the weights is not given, and is never guessed: give {self.flag("license")}, such as '
                f'apache-2.0 or cc-by-nc-4.0, {other}.')
        if license.lower() not in LICENSES:
            near = _near(license.lower(), LICENSES)
            raise ValueError(
                f'The licence {license!r} is no identifier of the Hub, such as apache-2.0 or cc-by-nc-4.0'
                f'{f" (did you mean {near}?)" if near else ""}: give one to {self.flag("license")}, {other}.')
        if license.lower() == 'other' and not named:
            raise ValueError(f'A licence that is other needs its name and where it is: give '
                             f'{self.flag("license_name")} and {self.flag("license_link")}.')
        if self.license_name.strip() and license.lower() != 'other':
            raise ValueError(f'{self.flag("license_name")} names a licence that is other, not {license}: leave it out, '
                             f'or give other to {self.flag("license")}.')
        if self.license_link and not re.fullmatch(r'https?://[^\s<>()\[\]"\'`\\]+|LICENSE(\.md|\.txt)?',
                                                  self.license_link.strip()):
            raise ValueError(f'{self.flag("license_link")} is {self.license_link!r}: give an address that begins with '
                             'https://, or LICENSE, a file of the repository.')
        if not self.dataset.strip():
            raise ValueError(
                'The data set that the weights were trained on is not given, and is never guessed: give '
                f'{self.flag("dataset")}, its name, and {self.flag("dataset_terms")}, its terms of use.')
        if self.tag and not re.fullmatch(r'[\w.-]+', self.tag, re.A):
            raise ValueError(f'{self.flag("tag")} is {self.tag!r}: give letters, digits, dots, hyphens, underscores.')

    def check_where(self) -> None:
        """Refuse a repository that is no `user/name`, and a pull request to a branch.

        Raises:
            ValueError: One of these is the case.
        """
        if not is_repo_id(self.repo_id):
            raise ValueError(f'{self.repo_id!r} is no user/name of a Hub repository: give both, with one slash between '
                             'them; each has letters, digits, and single dots, hyphens and underscores inside.')
        if self.create_pr and self.revision not in ('', constants.DEFAULT_REVISION):
            raise ValueError(f'A pull request goes to the main branch: leave out {self.flag("create_pr")} or '
                             f'{self.flag("revision")}.')


def is_repo_id(text: str) -> bool:
    """Whether a text is the id of a repository of the Hub, 'user/name'."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count('/') == 1


def add_publication_flags(parser: Any, prefix: str = '') -> None:
    """Add the publishing flags to a parser or a group of it.

    Args:
        parser: The parser or group.
        prefix: Prefix of each flag, such as 'hub-'.
    """
    for field in _flags():
        kwargs = dict(field.metadata)
        if field.default is False:
            kwargs['action'] = 'store_true'
        parser.add_argument(f'--{prefix}{field.name.replace("_", "-")}', **kwargs)


def _flags() -> Sequence[dataclasses.Field]:
    return [f for f in dataclasses.fields(Publication) if f.metadata]


def _dest(name: str, prefix: str) -> str:
    return f'{prefix}{name}'.replace('-', '_')


def _near(word: str, known: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, 1)), '')
