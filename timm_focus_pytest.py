"""Options of timm_focus's tests that name folders.

pytest takes the value of an option that it does not know yet for the tests to run, and then looks for settings and
conftest files there. So these two are made known by the installed package, not by the tests' conftest.
"""
import os


def pytest_addoption(parser):
    group = parser.getgroup('timm_focus')
    group.addoption('--timm-tests', metavar='PATH', help='unpacked timm sdist whose own tests are run on timm_focus')
    group.addoption('--scenes', metavar='PATH', default=os.environ.get('TIMM_FOCUS_SCENES'),
                    help='folder of real scene images, train/<class>/ and val/<class>/ (or $TIMM_FOCUS_SCENES)')
