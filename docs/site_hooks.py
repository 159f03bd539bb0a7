"What the theme lacks: maths without a network, and buttons that lead to the notebook itself."
import json, re
from pathlib import Path
from docutils import nodes

COLAB = 'https://colab.research.google.com/github/mae-nb/mae_nb/blob/main/'

def inline_math(self, node):
    "KaTeX finds these by their class."
    self.body.append(self.starttag(node, 'span', '', CLASS='math') + self.encode(node.astext()) + '</span>')
    raise nodes.SkipNode

def block_math(self, node):
    "An equation on display; one with a number can be pointed at."
    tex = node.astext()
    m = re.search(r'\\tag\{([^}]*)\}', tex)
    self.body.append(f'<div class="math" {f"""id="eq-{m[1]}" """ if m else ""}tabindex="0">{self.encode(tex)}</div>\n')
    raise nodes.SkipNode

def maths_only_where_needed(app, page, template, context, doctree):
    "Only pages with formulas load KaTeX."
    if doctree is not None and any(True for _ in doctree.findall(lambda n: isinstance(n, (nodes.math, nodes.math_block)))):
        app.add_css_file('katex/katex.min.css')
        app.add_js_file('katex/katex.min.js', loading_method='defer')
        app.add_js_file('maths.js', loading_method='defer')

def notebook_buttons(app, page, template, context, doctree):
    "Open a chapter in Colab, or take the notebook as it is."
    where = json.loads((Path(app.srcdir)/'notebooks.json').read_text(encoding='utf-8')).get(page)
    if not where: return
    context.setdefault('header_buttons', [])
    up = context['pathto']('_notebooks', 1)
    context['header_buttons'][:0] = [
        dict(type='link', url=COLAB + where, text='Colab', icon='fas fa-play', tooltip='Run this chapter in Colab', label='colab'),
        dict(type='link', url=f'{up}/{Path(where).name}', text='.ipynb', icon='fas fa-download', tooltip='Download this notebook', label='notebook')]

def setup(app):
    app.add_html_math_renderer('katex', inline_renderers=(inline_math, None), block_renderers=(block_math, None))
    app.connect('html-page-context', maths_only_where_needed)
    app.connect('html-page-context', notebook_buttons, priority=900)
