"The page of mae_export in a real browser: painted on by mouse, finger and keyboard, given bad files and hostile names, looked at by axe."
import pytest, torch
from PIL import Image
from mae_nb.core.files import save_weights
from mae_nb.data.datasets import normalise
from mae_nb.demo.config import ExportConfig
from mae_nb.demo.export import build_page, example_images, export, first_frame, model_record, rounded
from mae_nb.model.mae import mae_model
from mae_nb.plots.images import reconstruct
from mae_nb.weights.hub import from_pretrained
from test_demo import BOUND, masks, shaken
from test_site import browser, tab  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
pytest.importorskip('playwright', reason='no Playwright here: the page is not tried in a browser')

@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "The page of the bundled model, by the command."
    from mae_nb.cli import mae_export
    path = tmp_path_factory.mktemp('demo')/'demo.html'
    assert mae_export(['--model', 'fashion_nano', '--output', str(path)]) == 0
    assert path.stat().st_size < 3e6
    return path

def visit(tab, page, asked=None):
    "Open it from the disk, and wait until it is live; collect what goes wrong and what is asked for."
    found = [] if asked is None else asked
    tab.emulate_media(reduced_motion='reduce')  # scroll at once
    tab.on('console', lambda m: found.append(m.text) if m.type in ('error', 'warning') else None)
    tab.on('pageerror', lambda e: found.append(str(e)))
    tab.on('request', lambda r: found.append(r.url) if not r.url.startswith(('data:', 'blob:')) and r.url != f'file://{page}' else None)
    tab.goto(f'file://{page}')
    tab.wait_for_selector('html[data-ready]', timeout=20_000)
    return found

def wait(tab, condition, arg=None):
    "Until something is true; Playwright's own way evaluates text in the page, which the page forbids."
    for _ in range(400):
        if tab.evaluate(condition, arg): return
        tab.wait_for_timeout(50)
    pytest.fail(f'never true: {condition}')

def mask_of(tab): return tab.evaluate('[...PAGE.now.mask]')
def settle(tab): tab.evaluate('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
def middle(tab, l, tile='masked'):
    "Where a patch is on the screen."
    box = tab.locator(f'#{tile} .frame').bounding_box()
    return box['x'] + box['width']*(l % 7 + 0.5)/7, box['y'] + box['height']*(l//7 + 0.5)/7

PIXELS = 'id => { const c = document.querySelector(id + " canvas"); return c.toDataURL(); }'

def test_in_a_browser_it_is_pytorchs_too(demo, tab):
    "Three images and three masks, with WebAssembly and without, in the page itself; and nothing is asked of anybody."
    model = rounded(from_pretrained('fashion_nano'), 'int8')
    examples = example_images(model.cfg, 'fashion')
    asked = visit(tab, demo)
    assert tab.evaluate('MAE.load(JSON.parse(document.getElementById("data").textContent).models[0], null).shop.fast') is False
    code = '''([k, mask, plain]) => {
      const data = JSON.parse(document.getElementById("data").textContent), model = MAE.load(data.models[0], plain ? null : MAE.decode(data.wasm));
      return [model.shop.fast, [...MAE.reconstruct(model, Float32Array.from(MAE.decode(data.images[k].pixels), v => v/255), Uint8Array.from(mask)).painted]];
    }'''
    for k in range(3):
        for scores,ratio in masks(7, 7):
            r = reconstruct(model, normalise(examples[k][1][None], model.cfg.mean, model.cfg.std), ratio, scores)
            for plain in (False, True):
                fast,painted = tab.evaluate(code, [k, r.mask[0].int().tolist(), plain])
                assert fast != plain and (torch.tensor(painted).view(28, 28) - r.reconstruction[0,0]).abs().max() < BOUND
    assert asked == []

def test_the_first_frame_is_what_the_script_computes(demo, tab):
    "The still picture and the live one show the same mask; their pixels are at most a few levels apart (8 bits)."
    model = from_pretrained('fashion_nano')
    mask,_ = first_frame(model, example_images(model.cfg, 'fashion')[0][1])
    visit(tab, demo)
    assert mask_of(tab) == mask
    assert 'Loss on 37 masked patches' in tab.evaluate('new Promise(done => setTimeout(() => done(document.getElementById("said").textContent), 900))')

def test_mouse_paints(demo, tab):
    visit(tab, demo)
    tab.click('#none')
    before = tab.evaluate(PIXELS, '#pasted')
    tab.mouse.move(*middle(tab, 8)); tab.mouse.down(); tab.mouse.move(*middle(tab, 12)); tab.mouse.move(*middle(tab, 33)); tab.mouse.up()
    settle(tab)
    mask = mask_of(tab)
    assert all(mask[l] for l in (8, 9, 10, 11, 12, 19, 26, 33)) and sum(mask) == 8  # the patches between are painted, too
    assert tab.is_checked('input[value=painted]') and tab.evaluate(PIXELS, '#pasted') != before
    assert '8 of 49' in tab.inner_text('#ratio-said') and 'On 8 masked patches' in tab.inner_text('#numbers')
    tab.mouse.click(*middle(tab, 8)); assert mask_of(tab)[8] == 0  # a second touch shows it again

def test_touch_paints(demo, browser):
    "On a phone, by events of fingers: painting doesn't scroll the page."
    context = browser.new_context(viewport=dict(width=390, height=844), has_touch=True, is_mobile=True)
    tab = context.new_page()
    visit(tab, demo)
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    tab.tap('#none')
    tab.evaluate('scrollTo(0, 0)')
    cdp = context.new_cdp_session(tab)
    for kind,l in [('touchStart', 7), ('touchMove', 21), ('touchMove', 35)]:
        x,y = middle(tab, l)
        cdp.send('Input.dispatchTouchEvent', dict(type=kind, touchPoints=[dict(x=x, y=y)]))
    cdp.send('Input.dispatchTouchEvent', dict(type='touchEnd', touchPoints=[]))
    assert [l for l,m in enumerate(mask_of(tab)) if m] == [7, 14, 21, 28, 35] and tab.evaluate('scrollY') == 0
    context.close()

def test_keyboard_paints_and_looks(demo, tab):
    visit(tab, demo)
    tab.click('#none')
    for _ in range(12):  # backwards from that button
        tab.keyboard.press('Shift+Tab')
        if tab.evaluate('document.activeElement.closest("figure")?.id') == 'masked': break
    for key in ('ArrowRight', 'ArrowDown', 'Space', 'Shift+ArrowRight', 'ArrowLeft', 'ArrowLeft'): tab.keyboard.press(key)
    assert [l for l,m in enumerate(mask_of(tab)) if m] == [8, 9]
    assert tab.inner_text('#said') == 'row 2, column 1: visible'
    tab.locator('#look .frame').focus()
    tab.keyboard.press('ArrowUp')
    assert tab.evaluate('PAGE.now.look') == 17 and 'patch in row 3, column 4 looks most at' in tab.inner_text('#said')

def test_attention_of_a_touched_patch(demo, tab):
    visit(tab, demo)
    tab.select_option('#block', '0')
    visible,hidden = mask_of(tab).index(0), mask_of(tab).index(1)
    tab.mouse.click(*middle(tab, visible, 'painted'))
    assert tab.evaluate('PAGE.now.look') == visible and 'looks most at' in tab.get_attribute('#look canvas', 'aria-label')
    tab.mouse.click(*middle(tab, hidden, 'look'))
    assert 'it is masked, and the encoder sees visible patches only' in tab.get_attribute('#look canvas', 'aria-label')

def test_ratio_kinds_and_comparison(demo, tab):
    visit(tab, demo)
    for kind in ('block', 'grid', 'random'):
        tab.check(f'input[value={kind}]')
        assert sum(mask_of(tab)) == 37
    tab.fill('#ratio', '24')
    assert sum(mask_of(tab)) == 24
    before = mask_of(tab)
    tab.click('#again'); assert mask_of(tab) != before and sum(mask_of(tab)) == 24
    tab.click('#swap'); assert sum(mask_of(tab)) == 25
    assert not tab.is_visible('#painted2')
    tab.select_option('#other', label='untrained')
    settle(tab)
    losses = [float(t) for t in tab.locator('#numbers td:nth-child(2)').all_inner_texts()]
    assert tab.is_visible('#painted2') and len(losses) == 2 and losses[1] > 2*losses[0]

def test_each_guided_step_shows_something(demo, tab):
    asked = visit(tab, demo)
    steps = tab.locator('aside li')
    assert steps.count() == 8
    seen = set()
    for i in range(8):
        if i % 2: steps.nth(i - 1).locator('.next').click()
        else: steps.nth(i).locator('h3 button').click()
        settle(tab)
        assert steps.locator('p:visible').count() == 2  # the others are folded
        assert steps.nth(i).get_attribute('aria-current') == 'step' and tab.locator('[aria-current]').count() == 1
        seen.add(tab.evaluate('JSON.stringify([[...PAGE.now.mask], PAGE.now.name, PAGE.now.block, PAGE.now.other, PAGE.now.look])'))
    assert len(seen) >= 7 and tab.evaluate('PAGE.now.name') == 'your drawing' and asked == []
    x,y = middle(tab, 17, 'image')
    tab.mouse.move(x, y); tab.mouse.down(); tab.mouse.move(x + 20, y + 20); tab.mouse.up()
    assert tab.evaluate('Math.max(...PAGE.now.image)') > 0.9  # a line of ink
    assert tab.locator('#strip [aria-pressed=true]').count() == 0  # none of the page's own
    tab.check('#invert')
    assert tab.evaluate('Math.min(...PAGE.now.image)') < 0.1 and tab.evaluate('PAGE.now.image[0]') == 1
    tab.click('#own3')
    assert tab.get_attribute('#own3', 'aria-pressed') == 'true' and tab.evaluate('PAGE.now.image[0]') == 1  # it stays swapped

def test_models_to_compare(tab, tmp_path):
    "The site's second page: earlier states, and another target, each a guided step of its own; names in the lists, reconstructions as PyTorch's."
    from pathlib import Path
    models = [Path(__file__).parent.parent/'docs/models'/name for name in ('pixels-epoch-1', 'pixels-epoch-10', 'normalised-pixels-epoch-100')]
    page = export(ExportConfig('fashion_nano', tmp_path/'compare.html', compare=models), log=lambda line: None)
    asked = visit(tab, page)
    steps = tab.locator('aside li')
    assert steps.count() == 10
    def compared(title):
        steps.filter(has_text=title).locator('h3 button').click()
        settle(tab)
        return tab.evaluate('PAGE.now.other'), [float(t) for t in tab.locator('#numbers td:nth-child(2)').all_inner_texts()]
    k,losses = compared('As training went on')
    assert k == 2 and len(losses) == 2 and losses[1] > 1.2*losses[0]  # after one epoch
    assert tab.locator('#painted2 figcaption').inner_text() == 'Reconstruction · pixels-epoch-1'
    k,losses = compared('Another target')
    assert k == 4 and tab.locator('#other option:checked').inner_text() == 'normalised-pixels-epoch-100' and asked == []
    tab.set_viewport_size(dict(width=390, height=844))
    settle(tab)
    assert tab.evaluate('[...document.querySelectorAll("#numbers td")].every(c => { const r = document.createRange(); r.selectNodeContents(c); return r.getClientRects().length === 1; })')  # in one line, on a phone too
    theirs = rounded(from_pretrained(models[2]), 'int8')
    assert theirs.cfg.norm_pix_loss
    imgs = normalise(example_images(theirs.cfg, 'fashion')[0][1][None], theirs.cfg.mean, theirs.cfg.std)
    mask = torch.tensor(mask_of(tab), dtype=torch.float)[None]
    expected = theirs(imgs, scores=mask + torch.arange(mask.numel())/1000, mask_ratio=mask.mean().item()).loss.item()
    assert abs(losses[1] - expected) < 0.01

def pictures(folder):
    "Files as people drop them: name, what the page says (None: it works)."
    noise = Image.effect_noise((5200, 4000), 80).convert('RGB')
    noise.save(folder/'large.jpg', quality=60)  # 20.8 megapixels
    Image.new('RGBA', (64, 40), (255, 0, 0, 128)).save(folder/'clear.png')
    good = (folder/'clear.png').read_bytes()
    (folder/'torn.png').write_bytes(good[:40] + b'\0'*30)
    (folder/'notes.txt').write_text('no picture')
    (folder/'empty.png').write_bytes(b'')
    (folder/'shape.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><script>document.title="gone"</script><circle cx="5" cy="5" r="4" fill="#c00"/></svg>')
    (folder/'<img src=x onerror=document.title=1>.png').write_bytes(good)
    return {'large.jpg': None, 'clear.png': None, 'shape.svg': None, 'torn.png': 'cannot be read', 'notes.txt': 'cannot be read', 'empty.png': 'cannot be read',
            '<img src=x onerror=document.title=1>.png': None}

def test_files_of_all_kinds(demo, tab, tmp_path):
    "A large photograph, a transparent one, an SVG work; a text, an empty and a torn file get a message; a name with markup stays text."
    asked = visit(tab, demo)
    title = tab.title()
    for name,says in pictures(tmp_path).items():
        before = tab.evaluate('[...PAGE.now.image]')
        tab.set_input_files('#file', tmp_path/name)
        if says:
            wait(tab, 'n => document.getElementById("message").textContent.startsWith(n)', arg=name)
            assert says in tab.inner_text('#message') and tab.evaluate('[...PAGE.now.image]') == before
        else:
            wait(tab, 'n => PAGE.now.name === n', arg=name)
            assert not tab.is_visible('#message') and tab.evaluate('PAGE.now.image.every(v => v >= 0 && v <= 1)') and tab.evaluate('[...PAGE.now.image]') != before
    assert tab.title() == title and tab.locator('img').count() == 0 and asked == []

def test_files_are_dropped(demo, tab):
    visit(tab, demo)
    drop = '''([name, type, text]) => {
      const files = new DataTransfer(), event = new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: files});
      if (name) files.items.add(new File([text], name, {type}));
      document.body.dispatchEvent(event);
    }'''
    tab.evaluate(drop, ['shape.svg', 'image/svg+xml', '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="5"/></svg>'])
    wait(tab, 'PAGE.now.name === "shape.svg"')
    tab.evaluate(drop, ['notes.txt', 'text/plain', 'no picture'])
    wait(tab, 'document.getElementById("message").textContent.includes("notes.txt cannot be read")')
    tab.evaluate(drop, [None, '', ''])
    assert 'Nothing was dropped' in tab.inner_text('#message')

def test_hostile_names_stay_text(tmp_path, tab):
    "Of a model, an image and the page."
    bad = '</script><img src=x onerror="document.title=1"><b id=planted>'
    model = from_pretrained('fashion_nano')
    examples = [(bad, t) for _,t in example_images(model.cfg, 'fashion')[:2]]
    records = [model_record(model, bad), model_record(model, bad + '2')]
    path = tmp_path/'page.html'
    path.write_text(build_page(records, examples, *first_frame(model, examples[0][1]), bad), encoding='utf-8')
    asked = visit(tab, path)
    tab.select_option('#other', '1')
    settle(tab)
    assert tab.title() == bad and tab.inner_text('h1') == bad and tab.locator('#planted').count() == 0 and asked == []
    assert tab.get_attribute('#own0', 'aria-label') == bad and bad in tab.inner_text('#numbers') and bad in tab.inner_text('#painted2')

def test_a_smuggled_script_does_not_run(demo, tmp_path, tab):
    "The policy knows the page's script by its hash, and no other."
    path = tmp_path/'page.html'
    path.write_text(demo.read_text().replace('<main>', '<script>document.title = "gone"</script><img src="http://example.org/x.png" alt=""><main>'))
    asked = visit(tab, path)
    assert tab.title() != 'gone' and len([a for a in asked if 'Content Security Policy' in a]) >= 2

def test_the_camera(demo, tab):
    "With one, a picture is taken, and the camera let go; without one, there is a message."
    tab.add_init_script("""addEventListener('DOMContentLoaded', () => Object.defineProperty(navigator, 'mediaDevices', {value: {getUserMedia: async () => {
      if (window.blind) throw new Error('no camera');
      const canvas = document.createElement('canvas'), g = canvas.getContext('2d');
      setInterval(() => { g.fillStyle = '#fff'; g.fillRect(0, 0, 300, 75); g.fillStyle = '#000'; g.fillRect(0, 75, 300, 75); }, 20);
      return window.stream = canvas.captureStream();
    }}}))""")
    visit(tab, demo)
    tab.click('#camera')
    wait(tab, 'document.querySelector("video").videoWidth > 0 && document.querySelector("video").readyState > 1')
    tab.wait_for_timeout(200)
    tab.click('#shoot')
    wait(tab, 'PAGE.now.name === "from the camera"')
    image = tab.evaluate('[...PAGE.now.image]')
    assert image[14] > 0.8 and image[-14] < 0.2  # white above, black below
    wait(tab, 'stream.getTracks().every(t => t.readyState === "ended")')
    tab.evaluate('window.blind = true')
    tab.click('#camera')
    wait(tab, 'document.getElementById("message").textContent.startsWith("There is no camera")')

def test_without_webassembly_it_works_too(demo, tab):
    tab.add_init_script('delete globalThis.WebAssembly')
    assert visit(tab, demo) == []
    assert 'in plain JavaScript' in tab.inner_text('#about')
    tab.mouse.click(*middle(tab, 24))
    settle(tab)
    assert tab.is_checked('input[value=painted]')

def test_without_scripts_there_is_a_still_picture(demo, browser):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f'file://{demo}')
    stills = tab.locator('#tiles img')
    assert stills.count() == 4 and all(stills.nth(i).bounding_box()['width'] > 100 and stills.nth(i).get_attribute('alt') for i in range(4))
    assert 'still picture' in tab.inner_text('main') and not tab.is_visible('#controls')
    context.close()

@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_axe_finds_nothing(demo, browser, dark, width):
    "Rules of WCAG 2 A and AA and the best practices, while a message, a comparison and a sheet to draw on are shown."
    from axe_playwright_python.sync_playwright import Axe
    context = browser.new_context(viewport=dict(width=width, height=900), color_scheme='dark' if dark else 'light')
    tab = context.new_page()
    visit(tab, demo)
    tab.select_option('#other', '1')
    tab.click('#draw')
    tab.evaluate('document.querySelector("aside button").click(); document.getElementById("message").hidden = false; document.getElementById("message").textContent = "A message"')
    tab.wait_for_timeout(700)
    found = Axe().run(tab).response['violations']
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    context.close()
    assert not found, [(v['id'], len(v['nodes']), v['nodes'][0]['html'][:200], v['nodes'][0]['failureSummary'][:300]) for v in found]

def test_the_mode_is_switched_and_a_frame_is_bare(demo, tab):
    visit(tab, demo)
    ground = lambda: tab.evaluate('getComputedStyle(document.body).backgroundColor')
    light = ground()
    tab.click('#theme')
    assert ground() != light and tab.inner_text('#theme') == 'Light mode'
    tab.goto('about:blank')
    tab.goto(f'file://{demo}#bare')
    tab.wait_for_selector('html[data-ready]')
    assert not tab.is_visible('h1') and not tab.is_visible('aside') and tab.is_visible('#masked')

def test_colour_and_normalised_targets(tmp_path, tab):
    "A page of colour photographs with a model of normalised pixels beside one of pixels: the choice of statistics is there, and changes the picture."
    colour = dict(img_size=32, patch_size=8, in_chans=3, mean=(0.5,)*3, std=(0.25,)*3)
    for name,norm in (('pixels', False), ('normalised', True)):
        m = shaken(mae_model('mae_vit_nano_patch4', **colour, norm_pix_loss=norm))
        save_weights(m.state_dict(), vars(m.cfg), tmp_path/name)
    path = export(ExportConfig(str(tmp_path/'pixels'), str(tmp_path/'page.html'), compare=(str(tmp_path/'normalised'),), untrained=False))
    assert visit(tab, path) == []
    assert tab.locator('#strip button').count() == 5 and tab.get_attribute('#own0', 'aria-label') == 'astronaut'
    said = tab.locator('aside li h3').all_inner_texts()
    assert len(said) == 8 and any('Another target' in t for t in said) and not any('As training went on' in t or 'What training changed' in t for t in said)
    tab.select_option('#model', label='normalised')
    settle(tab)
    own = tab.evaluate(PIXELS, '#painted')
    tab.select_option('#honest', '1')
    settle(tab)
    assert tab.evaluate(PIXELS, '#painted') != own and 'different targets' not in tab.inner_text('#numbers')
    tab.select_option('#other', label='pixels')
    settle(tab)
    assert 'different targets' in tab.inner_text('#numbers')
