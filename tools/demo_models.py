"""Make the models that a page of the site compares with `fashion_nano`: `OMP_NUM_THREADS=1 python tools/demo_models.py` (half an hour on one core).

    docs/models/pixels-epoch-1, pixels-epoch-10     `fashion_nano` itself, on its way
    docs/models/normalised-pixels-epoch-100         trained as it was, but to predict normalised pixels

Both are trained with the configuration that lies with `fashion_nano`, seed and all; a run that was stopped goes on. The last state of the
first must be `fashion_nano`, up to rounding on another machine, or nothing is written. Weights are kept in 16 bits.
"""
import argparse
from dataclasses import replace
from pathlib import Path
from mae_nb.core.files import read_json, save_json, save_tensors
from mae_nb.tasks.config import PretrainConfig
from mae_nb.tasks.pretrain import pretrain
from mae_nb.weights.hub import from_pretrained

ROOT = Path(__file__).parent.parent
STEPS = 78  # an epoch

def write(source, name):
    "Keep a model as a folder of weights."
    model = from_pretrained(source)
    folder = ROOT/'docs/models'/name
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({k: v.half() for k,v in model.state_dict().items()}, folder/'model.safetensors')
    save_json(read_json(Path(source)/'model.json'), folder/'model.json')
    print(f'{folder}: {(folder/"model.safetensors").stat().st_size/1e6:.2f} MB')

def main(home):
    cfg = PretrainConfig(**read_json(ROOT/'mae_nb/assets/fashion_nano/config.json'))
    runs = {name: pretrain(replace(cfg, output_dir=str(home/name), milestone_epochs=1, resume='auto', norm_pix_loss=name == 'normalised-pixels'))
            for name in ('pixels', 'normalised-pixels')}
    ours,theirs = (from_pretrained(w).state_dict() for w in (runs['pixels'], 'fashion_nano'))
    far = max((v - theirs[k]).abs().max().item() for k,v in ours.items())
    print(f'largest difference between weights of {runs["pixels"]} and fashion_nano: {far:.2g}')
    if far > 0.01: raise SystemExit('this is another run than that of fashion_nano: earlier states of it are none of fashion_nano')
    for epoch in 1, 10: write(runs['pixels']/'checkpoints'/f'step-{STEPS*epoch:08d}', f'pixels-epoch-{epoch}')
    write(runs['normalised-pixels'], 'normalised-pixels-epoch-100')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--home', type=Path, default=ROOT/'runs/demo_models', help='folder of the runs')
    main(p.parse_args().home)
