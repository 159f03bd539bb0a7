"The site: built strictly, complete, and used in a real browser, by mouse and by keyboard."
import hashlib, json, os, re, shutil, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'docs'))
pytestmark = pytest.mark.slow

def browser_path():
    "A Chromium of this machine, or None."
    return next((p for n in ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable') if (p := shutil.which(n))), None)

def build(*args):
    return subprocess.run([sys.executable, ROOT/'docs/build.py', *args], capture_output=True, text=True, cwd=ROOT)

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The whole site, built as `make docs` does it."
    out = tmp_path_factory.mktemp('site')
    done = build('--output', str(out))
    assert done.returncode == 0 and 'WARNING' not in done.stderr, done.stderr
    return out/'site'

@pytest.fixture(scope='module')
def browser():
    if sys.version_info < (3, 11): pytest.skip("Python 3.10 gets an older theme, whose pages are built, but not tried in a browser")
    if not browser_path():
        assert not os.environ.get('CI'), 'CI needs a Chromium'
        pytest.skip('no Chromium here: the site is not tried in a browser')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=browser_path())
        yield b
        b.close()

@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport=dict(width=1280, height=900))
    yield context.new_page()
    context.close()

def pages(site): return sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if '_static' not in p.parts)
def visit(tab, site, page): tab.goto(f'file://{site}/{page}'); tab.wait_for_load_state('load')

# --- what makes a build fail ---
def project(tmp_path, cells):
    "A project with one chapter, of these cells."
    for name in ('mae_nb', 'docs', 'tests', 'tools', 'settings.ini', 'Makefile', 'results'): (tmp_path/name).symlink_to(ROOT/name)
    path = tmp_path/'nbs/1_paper/03_masking.ipynb'
    path.parent.mkdir(parents=True)
    png = dict(output_type='display_data', metadata={}, data={'image/png': 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=='})
    def cell(i, text):
        if not text.startswith('%%'): return dict(id=f'c{i}', cell_type='markdown', metadata={}, source=text)
        return dict(id=f'c{i}', cell_type='code', metadata={}, execution_count=None, source=text[2:], outputs=[png])
    cells = ['# Masking\n\n> A page', *cells]
    path.write_text(json.dumps(dict(cells=[cell(i, c) for i,c in enumerate(cells)], nbformat=4, nbformat_minor=5, metadata={})))
    return tmp_path

def problems(root):
    from convert import Book
    book = Book(root, root/'out')
    for c in book.chapters: book.write(c)
    return book.problems

def test_a_good_chapter_has_no_problems(tmp_path):
    good = ['A link ([itself](03_masking.ipynb)), a symbol (`mae_nb.model.masking.num_keep`, `random_masking`, `torch.argsort`), $$ x \\tag{3.1} $$ and equation (3.1).',
            '%%#| fig-alt: A dot.\n#| fig-cap: One dot.\ndraw()', 'See Figure 3.1.', '> **Tip.** Read on.']
    assert problems(project(tmp_path, good)) == []

@pytest.mark.parametrize('cell,says', {
    'link': ('[nowhere](../4a_model/99_nothing.ipynb)', 'broken link: ../4a_model/99_nothing.ipynb'),
    'symbol': ('Call `mae_nb.model.masking.randomly_masking`.', 'mae_nb.model.masking has no such symbol'),
    'module': ('Import `mae_nb.maskings`.', 'mae_nb has no such module'),
    'name': ('Call `no_such' '_function` instead.', 'unknown symbol'),
    'figure': ('![a picture](nothing.png)', 'missing figure: nothing.png'),
    'alt of a picture': ('![](../../results/demo.png)', 'no alternative text'),
    'alt of a plot': ('%%#| fig-cap: Nobody knows.\nplot()', 'no alternative text'),
    'equation': ('$$ x = y $$', 'should end in \\tag{3.1}'),
    'reference': ('See Figure 3.7.', 'there is no Figure 3.7'),
    'call-out': ('> **Beware.** of the dog', 'unknown call-out'),
}.values())
def test_what_a_reader_would_stumble_over_is_told(tmp_path, cell, says):
    told = problems(project(tmp_path, [cell]))
    assert len(told) == 1 and says in told[0] and 'nbs/1_paper/03_masking.ipynb: cell 1' in told[0], told

@pytest.mark.parametrize('problems,complaints,look,status', [([], 0, False, 0), (['a picture: no alternative text'], 0, False, 1), ([], 1, False, 1),
                                                             (['a picture: no alternative text'], 1, True, 0)])
def test_a_problem_fails_the_build(tmp_path, monkeypatch, capsys, problems, complaints, look, status):
    "What the converter finds and what Sphinx complains of: either makes the exit status 1, unless one only wants to look."
    import build as builder
    monkeypatch.setattr(builder, 'convert', lambda book: problems)
    monkeypatch.setattr(builder, 'sphinx', lambda source, site, strict: complaints if strict != look else pytest.fail('strictness is not passed on'))
    assert builder.build(project(tmp_path, []), tmp_path/'out', look) == status
    out,err = capsys.readouterr()
    assert f'1 chapters, {len(problems)} problems' in out and err.splitlines() == problems

def test_sphinx_is_strict(tmp_path):
    "A heading that is not there is Sphinx's to find."
    for target in '#a-heading', '#no-such-heading':
        source = tmp_path/target[1:]
        (source/'_extra').mkdir(parents=True)
        (source/'notebooks.json').write_text('{}')
        (source/'index.md').write_text(f'# A page\n\n## A heading\n\nSee [there]({target}).\n')
    code = f'''import sys; sys.path.insert(0, {str(ROOT/'docs')!r})
from pathlib import Path
from build import sphinx
print([sphinx(Path({str(tmp_path)!r})/name, Path({str(tmp_path/'site')!r})/name, True) for name in ('a-heading', 'no-such-heading')])'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.endswith('[0, 1]\n') and done.stderr.count('WARNING') == 1 and 'no-such-heading' in done.stderr, done.stdout + done.stderr

# --- what the built site holds ---
def test_every_address_of_nbdev_is_there(site):
    "Each symbol that nbdev_export indexed has its anchor, where nbdev says it is."
    space = {}
    exec((ROOT/'mae_nb/_modidx.py').read_text(), space)
    texts,missing = {}, []
    for entries in space['d']['syms'].values():
        for name,(address,_) in entries.items():
            page,_,anchor = address.partition('#')
            text = texts.setdefault(page, (site/page).read_text())
            if f'id="{anchor}"' not in text: missing.append(name)
    assert not missing

def test_every_public_symbol_has_an_entry_with_its_parameters(site):
    import importlib
    from convert import Book
    for module in Book(ROOT, site).syms:
        if module == 'mae_nb._modidx': continue
        text = (site/'api'/f'{module.removeprefix("mae_nb.").replace(".", "/")}.html').read_text()
        for name in importlib.import_module(module).__all__:
            obj = getattr(importlib.import_module(module), name)
            made = getattr(obj, '__qualname__', name) != name  # by another function, as commands are
            if callable(obj) and getattr(obj, '__module__', '') == module and not made: assert f'id="{module}.{name}"' in text, f'{module}.{name}'
    text = (site/'api/model/masking.html').read_text()
    entry = text[text.index('id="mae_nb.model.masking.mask_from_scores"'):][:6000]
    for word in ('mask_ratio', '0.75', 'Fraction of patches to mask', 'Returns', 'masking.py#L'): assert word in entry

def test_buttons_lead_to_the_notebook_itself(site):
    text = (site/'1_paper/masking.html').read_text()
    assert 'colab.research.google.com/github/mae-nb/mae_nb/blob/main/nbs/1_paper/03_masking.ipynb' in text
    assert 'href="../_notebooks/03_masking.ipynb"' in text
    for path in (ROOT/'nbs').rglob('*.ipynb'):
        if 'runs' not in path.parts and '.ipynb_checkpoints' not in path.parts: assert (site/'_notebooks'/path.name).read_bytes() == path.read_bytes()

def test_the_map_names_every_table_and_figure_of_the_paper(site):
    rows = re.findall(r'^\| ([^|]+) \|', (ROOT/'docs/paper.md').read_text(), re.M)
    for table in [f'1{c}' for c in 'abcdef'] + [str(n) for n in range(2, 14)]: assert table in rows
    figures = {n.strip() for row in rows[rows.index('figure'):] for n in row.split(',')}
    assert {str(n) for n in range(1, 12)} <= figures

def test_cells_that_only_import_are_folded(site):
    sys.path.insert(0, str(ROOT/'docs'))
    try: from convert import only_imports
    finally: sys.path.remove(str(ROOT/'docs'))
    assert only_imports('import torch\nfrom a import b\nstyle(); torch.manual_seed(0)')
    assert not any(map(only_imports, ('import torch\nfrom a import b\nx = b()', 'style()', 'import torch', 'import torch\nfrom')))
    text = (site/'4b_data/batches.html').read_text()
    folded = re.findall(r'<details.*?</details>', text, re.S)
    assert any('Imports' in f and 'import' in f for f in folded)

# --- in a browser ---
TOO_WIDE = 'document.documentElement.scrollWidth - document.documentElement.clientWidth'
LOOKED_AT = """(() => { const all = (s, f) => [...document.querySelectorAll(s)].filter(f); return [%s,
    all(".katex-error", () => true).map(e => e.textContent), all(".math", e => !e.querySelector(".katex")).length,
    all("article img", e => !e.alt || !e.complete || !e.naturalWidth).length]; })()""" % TOO_WIDE

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        if self.path != '/favicon.ico': return super().do_GET()
        self.send_response(204)  # Chromium asks for it, no page does
        self.end_headers()

@pytest.fixture
def served(site):
    "The site's address when it is served, as on the web: Chromium keeps what all pages share, and asks for it once."
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

def test_every_page_is_whole_and_asks_nobody(site, served, tab):
    "No message of an error, no request outside, no formula in red, nothing to scroll sideways on a phone, no picture without a text."
    found = []
    tab.on('console', lambda m: found.append((tab.url, m.text)) if m.type == 'error' else None)
    tab.on('pageerror', lambda e: found.append((tab.url, str(e))))
    tab.on('request', lambda r: found.append((tab.url, r.url)) if not r.url.startswith((served, 'data:')) else None)
    tab.on('response', lambda r: found.append((tab.url, r.url, r.status)) if r.status >= 400 else None)
    tab.set_viewport_size(dict(width=390, height=844))
    assert len(pages(site)) > 80
    for page in pages(site):
        tab.goto(served + page)
        wide,red,raw,dumb = tab.evaluate(LOOKED_AT)
        if wide > 0: found.append((page, f'{wide} pixels too wide'))
        if red or raw or dumb: found.append((page, red, f'{raw} formulas as text', f'{dumb} pictures missing or without a text'))
    assert not found

@pytest.mark.parametrize('scripts', [True, False])
def test_the_smallest_phone(site, browser, scripts):
    "The row of buttons fits, also before scripts have drawn the icons, or without them."
    context = browser.new_context(viewport=dict(width=320, height=640))
    tab = context.new_page()
    if not scripts: tab.route('**/*.js*', lambda route: route.abort())
    for page in ('index.html', '1_paper/tour.html', '4b_data/lists.html'):
        visit(tab, site, page)
        assert tab.evaluate(TOO_WIDE) == 0, page
    context.close()

def test_search_finds_a_symbol(site, tab):
    visit(tab, site, 'search.html?q=random_masking')
    tab.wait_for_selector('#search-results li a', timeout=20_000)
    hits = tab.eval_on_selector_all('#search-results li a', 'nodes => nodes.map(n => n.getAttribute("href"))')
    assert any('api/model/masking.html#mae_nb.model.masking.random_masking' in h for h in hits) and any('1_paper/masking.html' in h for h in hits), hits

def test_the_dark_switch_works_and_is_remembered(site, tab):
    visit(tab, site, '1_paper/tour.html')
    ground = lambda: tab.evaluate('getComputedStyle(document.body).backgroundColor')
    theme = lambda: tab.evaluate('document.documentElement.dataset.theme')
    light = ground()
    assert theme() == 'light'
    for _ in range(3):  # a menu in newer themes, a button for all modes in older ones
        if theme() == 'dark': break
        tab.locator('button.theme-switch-button:visible').first.click()
        if (dark := tab.locator('button[data-mode=dark]:visible')).count(): dark.first.click()
    assert theme() == 'dark' and ground() != light
    tab.wait_for_function('localStorage.getItem("theme") === "dark"')
    for _ in range(10):  # on a busy machine Chromium hands what a page stored to the next page's process a moment later
        visit(tab, site, '1_paper/masking.html')
        if theme() == 'dark': break
        tab.wait_for_timeout(300)
    assert theme() == 'dark'

TOUCHED = [('index.html', 0), ('1_paper/masking.html', 0), ('1_paper/patches.html', 0),
           ('4a_model/touch.html', 0), ('4a_model/touch.html', 1), ('4a_model/touch.html', 2)]

def state(tab, n): return tab.evaluate('n => { const f = document.querySelectorAll(".touch")[n]; return [f.querySelector("img").src, f.querySelector("figcaption").textContent, f.querySelector("img").alt]; }', n)
def drawn(uri): return hashlib.sha1(uri.encode()).hexdigest()[:8]

@pytest.mark.parametrize('page,n', TOUCHED)
def test_figures_answer_to_mouse_and_keyboard(site, tab, page, n):
    visit(tab, site, page)
    fig = tab.locator('.touch').nth(n)
    fig.scroll_into_view_if_needed()
    seen = [state(tab, n)]
    def changed(what):
        (picture,caption,alt),before = state(tab, n), seen[-1]
        assert drawn(picture) != drawn(before[0]), f'{what} changed nothing: {caption}'
        assert alt.endswith(caption)
        seen.append((picture, caption, alt))
    place,sliders,choices = fig.locator('.touch-box[role=slider]'), fig.locator('input[type=range]'), fig.locator('input[type=radio]')
    assert place.count() + sliders.count() + choices.count() > 0
    for i in range(sliders.count()):
        s = sliders.nth(i)
        box = s.bounding_box()
        tab.mouse.click(box['x'] + box['width']*0.95, box['y'] + box['height']/2); changed('a click on the slider')
        s.focus(); tab.keyboard.press('ArrowLeft'); changed('an arrow key')
        tab.keyboard.press('Home'); changed('the home key')
    if choices.count():
        fig.locator('input[type=radio]:not(:checked)').first.click(); changed('a click on a button')
        tab.keyboard.press('ArrowRight'); changed('an arrow key')
    if place.count():
        box = place.bounding_box()
        place.click(position=dict(x=box['width']*0.9, y=box['height']*0.1)); changed('a click on the picture')
        tab.keyboard.press('ArrowDown'); changed('an arrow key')
        tab.keyboard.press('ArrowLeft'); changed('an arrow key')
        assert place.get_attribute('aria-valuetext') == 'row 2, column 11'
    assert len({caption for _,caption,_ in seen}) > 1

def test_without_scripts_there_is_a_still_picture(site, browser):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    for page in ('index.html', '1_paper/patches.html'):
        visit(tab, site, page)
        img = tab.locator('.touch img').first
        assert img.bounding_box()['width'] > 200 and len(img.get_attribute('alt')) > 20
    context.close()

@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('page', ['index.html', 'start.html', '1_paper/tour.html', '1_paper/masking.html', '4f_tools/recipes.html', 'api/model/masking.html', 'glossary.html', 'paper.html'])
def test_accessible(site, browser, page, dark):
    "axe-core's rules of WCAG 2 A and AA: contrast, names, roles, keyboard."
    from axe_playwright_python.sync_playwright import Axe
    context = browser.new_context(viewport=dict(width=1280, height=900), color_scheme='dark' if dark else 'light')
    tab = context.new_page()
    visit(tab, site, page)
    tab.wait_for_timeout(300)
    found = Axe().run(tab, options={'runOnly': ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']}).response['violations']
    context.close()
    assert not found, [(v['id'], len(v['nodes']), v['nodes'][0]['html'][:200], v['nodes'][0]['failureSummary'][:300]) for v in found]
