"""Rebuild the text that the package carries, `mae_nb/assets/austen.txt.xz`: the openings of Jane Austen's six novels.

    apt-get install r-cran-janeaustenr       # Project Gutenberg's texts, as a data base of R
    pip install rdata
    python tools/austen.py [--data FOLDER]

Of each novel, whole paragraphs from the first chapter on are taken until there are 25 000 words. A novel begins with `# Title`,
and a paragraph is a line. Headings of volumes and chapters, rows of stars and remarks in square brackets are left out; marks of
emphasis and footnotes go, and two or more hyphens become a dash.
"""
import argparse, bz2, lzma, re, zlib
from pathlib import Path

ASSET = Path(__file__).parent.parent/'mae_nb'/'assets'/'austen.txt.xz'
NOVELS = {'Sense and Sensibility': 'sensesensibility', 'Pride and Prejudice': 'prideprejudice', 'Mansfield Park': 'mansfieldpark',
          'Emma': 'emma', 'Northanger Abbey': 'northangerabbey', 'Persuasion': 'persuasion'}
HEADING = re.compile(r'(volume|chapter) [ivxl\d]+', re.I)
LEFT_OUT = re.compile(r'[* ]+|\[.*\]')

def unpacked(raw):
    "Unpack a value of R's data base: its size, a letter for the method, and the compressed bytes."
    if raw[4:5] == b'Z': return lzma.decompress(raw[5:], lzma.FORMAT_RAW, filters=[dict(id=lzma.FILTER_LZMA2)])
    if raw[4:5] == b'2': return bz2.decompress(raw[5:])
    return zlib.decompress(raw[4:])

def read_novels(folder):
    "Read the lines of each novel from a package's `Rdata.rdx` (where each value is) and `Rdata.rdb` (the values)."
    from rdata.conversion import convert
    from rdata.parser import parse_data
    index = convert(parse_data((folder/'Rdata.rdx').read_bytes()))['variables']
    values = (folder/'Rdata.rdb').read_bytes()
    def lines(name):
        start,size = map(int, index[name])
        return [str(line) for line in convert(parse_data(unpacked(values[start:start + size])))]
    return {title: lines(name) for title,name in NOVELS.items()}

def paragraphs(lines):
    "Yield the paragraphs of a novel from the first chapter on, each on one line."
    blocks = re.split(r'\n\s*\n', '\n'.join(lines).strip())
    first = next(i for i,b in enumerate(blocks) if HEADING.fullmatch(b.strip()))
    for block in blocks[first:]:
        text = ' '.join(block.split())
        if not HEADING.fullmatch(text) and not LEFT_OUT.fullmatch(text): yield re.sub(r'-{2,}', '—', re.sub('[_*]', '', text))

def opening(lines, words=25_000):
    "Take paragraphs until there are so many words."
    taken,n = [],0
    for text in paragraphs(lines):
        if n >= words: break
        taken.append(text)
        n += len(text.replace('—', ' ').split())
    return taken

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=Path('/usr/lib/R/site-library/janeaustenr/data'), help='folder of Rdata.rdx and Rdata.rdb')
    novels = read_novels(p.parse_args().data)
    text = ''.join(f'# {title}\n' + '\n'.join(opening(lines)) + '\n' for title,lines in novels.items())
    ASSET.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f'{len(text)} characters, {len(text.replace("—", " ").split())} words, {ASSET.stat().st_size} bytes')
