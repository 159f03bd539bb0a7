"""Build the wheel, install it alone in a bare environment (newest fastcore, no nbdev), and run its commands there.

    python tools/check_wheel.py [--keep FOLDER]
"""
import argparse, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECK = '''
import importlib.util, fastcore, mae_nb
assert importlib.util.find_spec("nbdev") is None, "nbdev is installed"
assert "site-packages" in mae_nb.__file__, mae_nb.__file__
print("mae_nb", mae_nb.__version__, "with fastcore", fastcore.__version__, "and no nbdev")
'''

def run(*cmd, **kw):
    "Run a command; stop when it fails."
    print('$', *[Path(c).name if i == 0 else c for i,c in enumerate(map(str, cmd))], flush=True)
    subprocess.run(list(map(str, cmd)), check=True, **kw)

def check(folder):
    "Build, install, run."
    run(sys.executable, '-m', 'build', '--wheel', '--outdir', folder/'dist', ROOT)
    run(sys.executable, '-m', 'venv', folder/'venv')
    python = folder/'venv'/'bin'/'python'
    run(python, '-m', 'pip', 'install', '--quiet', *folder.glob('dist/*.whl'))
    run(python, '-c', CHECK, cwd=folder)
    run(python.parent/'mae_pretrain', '--help', cwd=folder, stdout=subprocess.DEVNULL)
    run(python.parent/'mae_pretrain', '--max_steps', 2, '--output_dir', 'run', cwd=folder)
    run(python.parent/'mae_report', 'run', cwd=folder)
    run(python.parent/'mae_finetune', '--encoder', 'run', '--max_steps', 2, '--rand_augment', 'rand-m9-mstd0.5-inc1', '--mixup', 0.8, '--output_dir', 'tuned', cwd=folder)
    run(python.parent/'mae_linprobe', '--encoder', 'run', '--max_steps', 2, '--output_dir', 'probe', cwd=folder)
    run(python.parent/'mae_knn', '--encoder', 'run', '--label_fraction', 0.1, cwd=folder)
    run(python.parent/'mae_eval', '--weights', 'tuned', '--data', 'fashion', cwd=folder)
    run(python.parent/'mae_convert', '--source', 'run', '--output', 'published', '--to', 'timm', cwd=folder)
    run(python.parent/'mae_export', '--model', 'run', '--output', 'demo.html', cwd=folder)
    run(python.parent/'mae_relative', 'bert', '--max_steps', 2, '--output_dir', 'words', cwd=folder)
    run(python.parent/'mae_segment', '--model', 'mae_vit_nano_patch6', '--img_size', 72, '--head_channels', 16, '--max_steps', 2, '--label_fraction', 0.02, '--eval_every', 9, '--output_dir', 'maps', cwd=folder)
    run(python.parent/'mae_data', 'check', cwd=folder)
    run(python.parent/'mae_bench', 'tokens', '--model', 'mae_vit_tiny_patch16', '--rounds', 1, '--ratios', '', '--sizes', '', '--depths', '', cwd=folder)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--keep', type=Path, help='work in this folder and leave it there')
    keep = p.parse_args().keep
    if keep: keep.mkdir(parents=True); check(keep.resolve())
    else:
        with tempfile.TemporaryDirectory() as tmp: check(Path(tmp))
