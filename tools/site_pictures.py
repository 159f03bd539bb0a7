"""Make the pictures of the site's front: `python tools/site_pictures.py hero`, `... architecture`, or, from a built
site and with a Chromium, `... screens [NAME ...]`.

hero           docs/_static/hero.webp: the first bundled test image of each class, masked, as `fashion_nano`
               reconstructs it, and as it is
architecture   docs/_static/architecture.png: the method on the first test image, at the top of the README
screens        docs/screens/*.png: landing page, chapter, library entry, phone and dark mode, the interactive page;
               README and chapter 73a show some of them
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCREENS = {  # page, width, height, dark, how far it is scrolled: to an element
    'landing': ('index.html', 1280, 860, False, None),
    'chapter': ('1_paper/tour.html', 1280, 860, False, '#reconstructions'),
    'library': ('api/model/masking.html', 1280, 860, False, '#mae_nb\\.model\\.masking\\.mask_from_scores'),
    'phone': ('1_paper/masking.html', 390, 844, False, '.touch'),
    'dark': ('1_paper/patches.html', 1280, 860, True, '.touch'),
    'demo': ('demo.html', 1280, 1000, False, None),
    'demo_dark': ('demo.html', 1280, 1000, True, None),
    'demo_phone': ('demo.html', 390, 844, False, None)}
SCROLL = 'where => window.scrollTo(0, document.querySelector(where).getBoundingClientRect().top - 80)'

def hero():
    "Three rows of ten images; the gaps are transparent, so that the picture stands on any ground."
    import torch
    from PIL import Image
    from mae_nb.data.bundled import fashion
    from mae_nb.data.datasets import normalise
    from mae_nb.weights.hub import from_pretrained
    from mae_nb.model.masking import random_scores
    from mae_nb.plots.images import reconstruct
    model,test = from_pretrained('fashion_nano'), fashion('test')
    ids = [int((test.labels == c).nonzero()[0]) for c in range(10)]
    imgs = normalise(test.imgs[ids], model.cfg.mean, model.cfg.std)
    r = reconstruct(model, imgs, scores=random_scores(10, 49, torch.Generator().manual_seed(0)))
    rows = [r.masked, r.pasted, r.image]
    side,gap = 28*6, 8
    sheet = Image.new('RGBA', (10*(side + gap) - gap, 3*(side + gap) - gap), (0, 0, 0, 0))
    for y,row in enumerate(rows):
        for x,img in enumerate(row):
            tile = Image.fromarray((img[0].clamp(0, 1)*255).round().byte().numpy()).resize((side, side), Image.NEAREST)
            sheet.paste(tile, (x*(side + gap), y*(side + gap)))
    sheet.save(ROOT/'docs/_static/hero.webp', lossless=True, method=6)

def architecture():
    "The method in one figure: the first test image, masked, and what `fashion_nano` makes of it."
    import io, torch
    from PIL import Image
    from mae_nb.data.bundled import fashion
    from mae_nb.model.masking import random_scores
    from mae_nb.plots.architecture import show_architecture
    from mae_nb.weights.hub import from_pretrained
    scores = random_scores(1, 49, torch.Generator().manual_seed(3))
    raw = io.BytesIO()
    show_architecture(from_pretrained('fashion_nano'), fashion('test').imgs[0], scores=scores).savefig(raw, dpi=200)
    Image.open(raw).convert('RGB').quantize(128).save(ROOT/'docs/_static/architecture.png', optimize=True)

def screens(names=()):
    "Photograph the built site, or some of it."
    from PIL import Image
    from playwright.sync_api import sync_playwright
    sys.path.insert(0, str(ROOT/'tests'))
    from test_site import browser_path
    (ROOT/'docs/screens').mkdir(exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path())
        for name,(page,width,height,dark,where) in SCREENS.items():
            if names and name not in names: continue
            scheme = 'dark' if dark else 'light'
            tab = browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme).new_page()
            tab.goto(f'file://{ROOT}/_build/site/{page}')
            tab.wait_for_load_state('load')
            if where: tab.evaluate(SCROLL, where)
            tab.wait_for_timeout(2000)
            path = ROOT/f'docs/screens/{name}.png'
            tab.screenshot(path=path)
            Image.open(path).convert('RGB').quantize(128).save(path, optimize=True)
        browser.close()

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['hero', 'architecture', 'screens'])
    p.add_argument('names', nargs='*', help='of screens: some of them')
    args = p.parse_args()
    screens(args.names) if args.what == 'screens' else dict(hero=hero, architecture=architecture)[args.what]()
