"Sphinx's configuration; docs/build.py runs it on what it has converted."
import sys
from pathlib import Path
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from configparser import ConfigParser
import site_hooks

cfg = ConfigParser(delimiters=['='])
cfg.read(HERE.parent/'settings.ini')
cfg = cfg['DEFAULT']
project,author,copyright,release,language = cfg['lib_name'], cfg['author'], cfg['copyright'], cfg['version'], 'en'
extensions = ['myst_nb', 'sphinx_design', 'sphinx_copybutton', 'sphinx.ext.linkcode']
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'attrs_inline', 'smartquotes']
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_execution_mode = 'off'
nb_merge_streams = True
add_module_names = False
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = 'hide'
suppress_warnings = []
exclude_patterns = ['_extra', 'notebooks.json']
html_theme = 'sphinx_book_theme'
html_title = 'mae_nb'
html_static_path = ['_static']
html_css_files,html_js_files = ['site.css'], ['site.js']
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_context = dict(default_mode='auto')
copybutton_exclude = '.linenos, .gp, .go'
html_theme_options = dict(
    repository_url=cfg['git_url'].rstrip('/'), repository_branch='main', use_repository_button=True, use_issues_button=False, use_download_button=False,
    use_fullscreen_button=False, show_navbar_depth=1, show_toc_level=2, navbar_persistent=[], home_page_in_toc=False, max_navbar_depth=3, collapse_navbar=True,
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark',
    logo=dict(text='mae_nb', image_light='_static/logo.svg', image_dark='_static/logo.svg', alt_text='mae_nb: home'),
    extra_footer='')

def linkcode_resolve(domain, info):
    from api import lines
    return lines(HERE.parent, info['module'], info['fullname']) if domain == 'py' else None

def setup(app): site_hooks.setup(app)
