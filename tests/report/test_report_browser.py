"""The page in a browser: Debian's chromium, without a window."""
import base64
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from pages import SIDE, page

BROWSER, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
if not (BROWSER and DRIVER and importlib.util.find_spec('selenium')):
    pytest.skip('needs chromium, chromium-driver and selenium: apt-get install chromium chromium-driver; pip install '
                'selenium', allow_module_level=True)
pytestmark = pytest.mark.slow  # a browser takes seconds to start, and draws without a card
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-dev-shm-usage',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars')
# text whose colour differs too little from what is behind it, WCAG's 4.5 (3 of large text)
CONTRAST = '''
const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = (c) => { const [r, g, b] = c.map((v) => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
const found = [];
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
  if (['SCRIPT', 'STYLE', 'OPTION'].includes(e.tagName)) continue;
  const style = getComputedStyle(e), drawn = parse(e instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(drawn), light(behind(e))].sort((x, y) => y - x);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 600);
  if ((a + .05) / (b + .05) < (large ? 3 : 4.5)) found.push(`${e.tagName} ${e.textContent.slice(0, 40)}`);
}
return found;'''
WIDE = '''
return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.closest('.scroll, nav')
  && e.getBoundingClientRect().right > arguments[0] + 1).map((e) => e.outerHTML.slice(0, 100));'''
UNNAMED = '''
const named = (e) => e.getAttribute('aria-label') || (e.labels && e.labels.length) || e.textContent.trim() || e.alt;
return [...document.querySelectorAll('button, a, select, input, img, [role=img], [role=region], [tabindex]')]
  .filter((e) => e.checkVisibility() && !named(e) && !e.getAttribute('aria-labelledby')).map((e) => e.outerHTML);'''


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    folder = tmp_path_factory.mktemp('browser')
    for flag in (*FLAGS, f'--user-data-dir={folder / "profile"}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'index.html'
    path.write_text(page(), 'utf-8')
    return path


@pytest.fixture
def opened(browser, file):
    """`opened(360, 'dark')` is the page in a window of that width, and a function that asks it something."""
    def open_page(width=1280, scheme='light', **media):
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600))
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(
            features=[dict(name='prefers-color-scheme', value=scheme)], **media))
        browser.get_log('browser')
        browser.get(file.as_uri())
        browser.execute_async_script(
            'const done = arguments[0]; Promise.all([...document.images].map((i) => i.decode())).then(() => '
            'requestAnimationFrame(() => setTimeout(done, 50)));')
        return lambda script, *args: browser.execute_script(script, *args)
    return open_page


def choose(ask, name, value):
    ask('const s = document.getElementById(arguments[0]); s.value = arguments[1]; '
        's.dispatchEvent(new Event("change"));', name, value)


def cards(ask):
    """True class, and whether each run is right, of the cards on the page."""
    return ask('return [...document.querySelectorAll(".card")].map((c) => [c.querySelector("h3").textContent, '
               '...[...c.querySelectorAll(".run")].map((r) => r.querySelector("b").className === "right")])')


def shown(ask):
    first = ask('return document.getElementById("gallery-count").textContent').split()[0]
    return 0 if first == 'None' else int(first)


def test_nothing_fails_and_nothing_leaves_the_file(opened, browser, file):
    opened()
    assert browser.get_log('browser') == []
    messages = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    asked = [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent'
             and m['params']['documentURL'] == file.as_uri()]  # the browser's own first page is another
    assert file.as_uri() in asked and all(url.startswith(('data:', file.as_uri())) for url in asked)


def test_names_are_text_in_the_gallery_too(opened):
    ask = opened()
    choose(ask, 'filter-class', '1')
    assert ask('return window.hacked') is None
    assert cards(ask)[0][0].startswith('</script><img src=x')
    assert ask('return document.querySelectorAll("img[src=x]").length') == 0


def test_filters(opened):
    ask = opened()
    assert all(sum(right) == 1 for _, *right in cards(ask)), 'what one gets right and the other wrong comes first'
    ask('document.getElementById("filter-none").click()')
    assert shown(ask) == 30 and len(cards(ask)) == 24
    ask('document.getElementById("more").click()')
    assert len(cards(ask)) == 30 and not ask('return document.getElementById("more").checkVisibility()')
    counts = {}
    for value in ('1>0', '0>1', 'all', 'none'):
        choose(ask, 'filter-right', value)
        counts[value] = shown(ask)
        wanted = {'1>0': [False, True], '0>1': [True, False], 'all': [True, True], 'none': [False, False]}[value]
        assert all(right == wanted for _, *right in cards(ask))
    assert sum(counts.values()) == 30 and min(counts.values()) > 0
    ask('document.getElementById("filter-none").click()')
    choose(ask, 'filter-class', '0')
    assert {name for name, *_ in cards(ask)} == {'beach'}


def test_a_class_and_a_confusion_lead_to_their_images(opened):
    ask = opened()
    ask('document.querySelector("#class-table button[data-class=\\"2\\"]").click()')
    assert {name for name, *_ in cards(ask)} == {'forest'} and ask('return document.activeElement.id') == 'filter-class'
    button = 'document.querySelector("button[data-taken]")'
    truth, taken = ask(f'return {button}.textContent').split(' → ')
    ask(f'{button}.click()')
    assert {name for name, *_ in cards(ask)} == {truth}
    answers = ask('return [...document.querySelectorAll(".card")].map((c) => '
                  '[...c.querySelectorAll(".run")].map((r) => r.querySelector("b").textContent))')
    assert all(any(text.startswith(taken) for text in of_card) for of_card in answers)
    ask('document.getElementById("filter-taken").click()')
    assert not ask('return document.getElementById("filter-taken").checkVisibility()')


def test_the_slider_uncovers_the_map(opened, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    ask = opened()
    slider = browser.find_element(By.CSS_SELECTOR, '.card input[type=range]')
    slider.send_keys(*[Keys.ARROW_LEFT] * 3)
    assert slider.get_attribute('value') == '47'
    clips = ask('return [...document.querySelector(".card").querySelectorAll("canvas.map")].map((c) => '
                'getComputedStyle(c).clipPath)')
    assert clips == ['inset(0px 0px 0px 47%)'] * 2, 'both runs of the image'
    pixels = ask('const c = document.querySelector("canvas.map"); return [...c.getContext("2d")'
                 '.getImageData(0, 0, c.width, c.height).data]')
    assert len(pixels) == 4 * SIDE * SIDE and len(set(pixels)) > 50


def test_what_is_kept_is_the_image_and_the_rest_the_mean(opened):
    """By the map as the network enlarges it: torch says what is below the threshold."""
    import torch

    from timm_focus.method.erase import resize_map
    ask = opened()
    image = json.loads(ask('return document.getElementById("data").textContent'))['images']
    name = ask('return document.querySelector(".card .file").textContent')
    run = next(i for i in image if i['n'] == name)['r'][0]
    values = torch.tensor(list(base64.b64decode(run['m']))).view(1, run['h'], run['w']) / 255
    wanted = resize_map(values, (SIDE, SIDE))[0] >= 0.7
    grey = torch.tensor(ask(
        'const c = document.querySelector(".card .picture:nth-of-type(2) canvas"); const d = c.getContext("2d")'
        '.getImageData(0, 0, c.width, c.height).data; const out = []; for (let i = 0; i < d.length; i += 4) '
        'out.push(d[i] === 124 && d[i + 1] === 116 && d[i + 2] === 104); return out;')).view(SIDE, SIDE)
    assert wanted.any() and (wanted != grey).float().mean() < 0.002


def test_values_by_keyboard_and_pointer(opened, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    ask = opened()
    plot = browser.find_element(By.CSS_SELECTOR, '.plot[data-chart="curve-0-epochs"]')
    plot.send_keys(Keys.HOME)
    plot.send_keys(Keys.ARROW_RIGHT)
    tip = 'return document.querySelector(".plot[data-chart=\\"curve-0-epochs\\"] .tip")'
    assert ask(f'{tip}.innerText').splitlines() == ['epoch 1', 'plain, validation: 43', 'scenes, validation: 48']
    plot.send_keys(Keys.ESCAPE)
    assert not ask(f'{tip}.checkVisibility()')
    ask('const p = arguments[0], b = p.getBoundingClientRect(); p.dispatchEvent(new PointerEvent("pointermove", '
        '{clientX: b.right - 5, clientY: b.top + 20}));', plot)
    assert ask(f'{tip}.innerText').startswith('epoch 5')
    ask('document.querySelector("input[name=axis][value=passes]").click()')
    assert not plot.is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, '.plot[data-chart="curve-0-passes"]').is_displayed()


def test_tables_sort(opened):
    ask = opened()
    column = ('return [...document.querySelectorAll("#class-table tbody tr")]'
              '.map((r) => r.children[arguments[0]].textContent)')
    differences = [float(v) for v in ask(column, 1)]
    assert differences == sorted(differences, reverse=True)
    ask('document.querySelectorAll("#class-table th button")[2].click()')
    tops = [float(v) for v in ask(column, 2)]
    assert tops == sorted(tops, reverse=True)
    ask('document.querySelectorAll("#class-table th button")[0].click()')
    assert ask('return document.querySelector("#class-table th").getAttribute("aria-sort")') == 'ascending'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [360, 1280])
def test_it_is_legible_on_any_screen(opened, browser, width, scheme):
    ask = opened(width, scheme)
    ask('document.getElementById("filter-none").click()')
    assert ask(WIDE, width) == [] and ask('return document.documentElement.scrollWidth') <= width
    assert ask(CONTRAST) == []
    assert ask(UNNAMED) == []
    dark = ask('return getComputedStyle(document.body).backgroundColor') != 'rgb(255, 255, 255)'
    assert dark == (scheme == 'dark')


def test_axe_finds_nothing(opened, browser):
    """axe-core, whose file TIMM_FOCUS_AXE names: `npm install axe-core` has it."""
    axe = os.environ.get('TIMM_FOCUS_AXE', '')
    if not os.path.isfile(axe):
        pytest.skip('TIMM_FOCUS_AXE names no axe.min.js (npm install axe-core)')
    for width, scheme in ((360, 'dark'), (1280, 'light')):
        ask = opened(width, scheme)
        ask(Path(axe).read_text('utf-8'))
        found = browser.execute_async_script(
            'const done = arguments[0]; axe.run().then((r) => done(r.violations.map((v) => `${v.id}: ${v.help}: '
            '${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 200)).join(" ")}`)))')
        assert found == []


def test_it_prints(opened, browser):
    ask = opened(media='print')
    assert not ask('return document.querySelector("nav").checkVisibility()')
    assert ask('const t = document.querySelector(".tall"); return t.scrollHeight <= t.clientHeight + 1')
    assert len(browser.execute_cdp_cmd('Page.printToPDF', dict(printBackground=True))['data']) > 20_000
