"Going on from weights, and weights as other tools leave them: each kind of fault has its test."
import json, shutil, warnings
from dataclasses import asdict
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors.torch import save_file
from mae_nb.cli import mae_convert, mae_finetune, mae_knn, mae_pretrain
from mae_nb.core.files import read_json, read_jsonl, save_weights
from mae_nb.core.rng import seed_all
from mae_nb.data.bundled import fashion
from mae_nb.data.datasets import normalise
from mae_nb.model.config import ClassifierConfig, MAEConfig
from mae_nb.model.classifier import ViTClassifier
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.plots.images import attention_maps, reconstruct, show_attention, show_reconstruction
from mae_nb.tasks.config import PretrainConfig
from mae_nb.tasks.pretrain import PretrainTask, pretrain
from mae_nb.weights.export import convert
from mae_nb.weights.config import ConvertConfig
from mae_nb.weights.files import read_file, unwrap
from mae_nb.weights.formats import read_weights, to_hf
from mae_nb.weights.hub import from_pretrained, resolve_weights

NARROW = dict(embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
HEADS = ['--num_heads', '4', '--decoder_num_heads', '4']
quiet = lambda *_: None

def shaken(model, seed=0):
    "Every number other than its neighbour, positions apart."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k,p in model.named_parameters():
            if 'pos_embed' not in k: p.add_(torch.randn(p.shape, generator=g)*0.05)
    return model.eval()

def encoder_of(state): return {k: v for k,v in state.items() if not k.startswith(('decoder_', 'mask_token'))}

@pytest.fixture(scope='module')
def colour():
    "An autoencoder of colour images, 32 x 32 in patches of 8."
    return shaken(MaskedAutoencoderViT(MAEConfig(img_size=32, patch_size=8, in_chans=3, norm_pix_loss=True, **NARROW)))

@pytest.fixture(scope='module')
def grey():
    "An autoencoder of grey images as fashion has them."
    return shaken(MaskedAutoencoderViT(MAEConfig(img_size=28, patch_size=4, in_chans=1, mean=(0.3,), std=(0.4,), **NARROW)))

def official(state, path, **more):
    torch.save(dict(model=state, **more), path)
    return path

def start(tmp_path, *flags, name='run'):
    "The losses of the first two steps of a run that starts so, by its log; and its folder."
    run = tmp_path/name
    args = ['--output_dir', run, '--max_steps', 2, '--batch_size', 16, '--log_every', 1, '--device', 'cpu', *flags]
    assert mae_pretrain([str(a) for a in args]) == 0
    return [r['loss'] for r in read_jsonl(run/'log.jsonl')], run

def first_batch(**changes):
    "What the first step is given, made by a task with random weights: images in bytes, and scores."
    return next(iter(PretrainTask(PretrainConfig(batch_size=16, max_steps=2, device='cpu', **changes)).batches(0, quiet)))

def loss_of(model, batch, mean, std):
    with torch.no_grad(): return model(normalise(batch[0], mean, std), 0.75, batch[1]).loss.item()

# -- going on

def bicubic(x, size, antialias): return F.interpolate(x, size, mode='bicubic', align_corners=False, antialias=antialias)

def adapted_by_hand(state, old, grid, p):
    "One channel, another grid and patch size: each rule restated."
    out = dict(state)
    for k in 'pos_embed', 'decoder_pos_embed':
        table = state[k]
        maps = table[:,1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
        out[k] = torch.cat([table[:,:1], bicubic(maps, grid, False).flatten(2).mT], dim=1)
    w = state['patch_embed.proj.weight'].sum(1)                                        # (D, q, q): grey is the sum
    q = w.shape[-1]
    B = bicubic(torch.eye(q*q).reshape(-1, 1, q, q), (p, p), True).reshape(q*q, p*p).T  # enlarges a patch, (p*p, q*q)
    out['patch_embed.proj.weight'] = (torch.linalg.pinv(B.T) @ w.flatten(1).T).T.reshape(-1, 1, p, p)
    W,b = state['decoder_pred.weight'],state['decoder_pred.bias']
    paint = lambda v: bicubic(v.reshape(-1, q, q, 3).mean(-1)[:,None], (p, p), True).flatten(1)
    out['decoder_pred.weight'],out['decoder_pred.bias'] = paint(W.T).T,paint(b[None])[0]
    return out

def test_first_loss_is_that_of_the_weights(grey, tmp_path):
    "As they are: of a run, and of a bare file that was told its heads, target and normalisation."
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    bare = official(grey.state_dict(), tmp_path/'bare.pth')
    expected = loss_of(grey, first_batch(), (0.3,), (0.4,))
    assert start(tmp_path, '--init_from', tmp_path/'own')[0][0] == pytest.approx(expected, abs=1e-6)
    told = [*HEADS, '--no_norm_pix_loss', '--mean', 0.3, '--std', 0.4]
    losses,run = start(tmp_path, '--init_from', bare, *told, name='bare')
    assert losses[0] == pytest.approx(expected, abs=1e-6)
    assert read_json(run/'config.json')['init_from'] == str(bare) and read_json(run/'model.json')['num_heads'] == 4

def test_first_loss_on_other_channels_size_and_patch(colour, tmp_path):
    "A bare official file of colour images, for grey ones of another size in other patches: every rule restated here."
    bare = official(colour.state_dict(), tmp_path/'bare.pth')
    flags = ['--init_from', bare, *HEADS, '--norm_pix_loss', '--in_chans', 1, '--img_size', '36x48', '--patch_size', 12]
    losses,run = start(tmp_path, *flags)
    cfg = MAEConfig(**read_json(run/'model.json'))
    assert (cfg.img_size, cfg.patch_size, cfg.in_chans, cfg.norm_pix_loss) == ((36, 48), 12, 1, True)
    by_hand = MaskedAutoencoderViT(cfg)
    by_hand.load_state_dict(adapted_by_hand(colour.state_dict(), (4, 4), (3, 4), 12))
    batch = first_batch(img_size=(36, 48), patch_size=12)
    assert losses[0] == pytest.approx(loss_of(by_hand.eval(), batch, cfg.mean, cfg.std), abs=1e-5)
    alone = from_pretrained(bare, num_heads=4, decoder_num_heads=4, norm_pix_loss=True, img_size=(36, 48), patch_size=12, in_chans=1)
    assert losses[0] == pytest.approx(loss_of(alone, batch, cfg.mean, cfg.std), abs=1e-6)
    other = first_batch(img_size=(36, 48), patch_size=12, seed=1)
    assert abs(losses[0] - loss_of(alone, other, cfg.mean, cfg.std)) > 1e-4            # a difference would be seen

@pytest.mark.parametrize('how', ['file', 'part'])
def test_first_loss_from_an_encoder_alone(how, grey, tmp_path, capsys):
    "Its decoder starts from the seed, of the shape of the paper's unless flags say otherwise, and the plan says so."
    state = grey.state_dict()
    bare = official(encoder_of(state) if how == 'file' else state, tmp_path/'bare.pth')
    flags = ['--init_from', bare, '--num_heads', 4, '--decoder_embed_dim', 64, '--decoder_depth', 1, '--decoder_num_heads', 2, '--seed', 5]
    losses,run = start(tmp_path, *flags, *['--no_init_decoder']*(how == 'part'))
    assert 'fresh decoder, 64 wide and 1 deep; mean and std measured on the images' in capsys.readouterr().out
    cfg = MAEConfig(**read_json(run/'model.json'))
    seed_all(5)
    mixed = MaskedAutoencoderViT(cfg)
    mixed.load_state_dict(mixed.state_dict() | encoder_of(state))
    assert losses[0] == pytest.approx(loss_of(mixed, first_batch(seed=5), cfg.mean, cfg.std), abs=1e-6)

def test_it_goes_on_training(grey, tmp_path):
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    run = pretrain(PretrainConfig(init_from=tmp_path/'own', output_dir=tmp_path/'run', max_steps=30, warmup_epochs=0., batch_size=32, log_every=1, device='cpu'), quiet)
    losses = [r['loss'] for r in read_jsonl(run/'log.jsonl')]
    assert losses[-1] < losses[0] and not torch.equal(from_pretrained(run).mask_token, grey.mask_token)

def test_init_ema(grey, tmp_path):
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    other = {k: v*0.5 for k,v in grey.state_dict().items()}
    save_file(other, tmp_path/'own'/'ema.safetensors')
    task = PretrainTask(PretrainConfig(init_from=tmp_path/'own', init_ema=True, device='cpu'))
    assert torch.equal(task.model.cls_token, other['cls_token'])

def test_conflicts_name_both(grey, colour, tmp_path, capsys):
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    save_weights(colour.state_dict(), asdict(colour.cfg), tmp_path/'colour')
    cases = [(['own', '--model', 'mae_vit_micro_patch4'], 'model=mae_vit_micro_patch4 has embed_dim 128, and', 'has 48'),
             (['own', '--recipe', 'paper_vit_large'], 'embed_dim 1024', 'give --model none'),
             (['own', '--decoder_depth', 5], 'decoder_depth=5, and', 'give --no_init_decoder'), (['own', '--num_heads', 2], 'num_heads: 4', '2 was requested'),
             (['own', '--in_chans', 3], 'images have 1 channels', 'in_chans=3'), (['colour'], 'takes 3', 'give --in_chans 1'),
             (['own', '--img_size', 30], 'patch_size=4', '30x30')]
    for (weights,*flags),*says in cases:
        args = ['--init_from', tmp_path/weights, '--data', 'fashion', *flags, '--output_dir', tmp_path/'run', '--device', 'cpu']
        assert mae_pretrain([str(a) for a in args]) == 2
        said = capsys.readouterr().err
        assert all(s in said for s in says), said
    assert not (tmp_path/'run').exists()
    with pytest.raises(ValueError, match='cannot have .* for its own folder'): PretrainConfig(init_from=tmp_path/'own', output_dir=tmp_path, overwrite=True)

def test_other_target_is_told(grey, tmp_path):
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    task = PretrainTask(PretrainConfig(init_from=tmp_path/'own', norm_pix_loss=True, device='cpu'))
    assert 'its decoder predicted raw pixels, and continues with normalised ones' in task.summary() and task.model.cfg.norm_pix_loss
    assert PretrainTask(PretrainConfig(init_from=tmp_path/'own', device='cpu')).model.cfg.norm_pix_loss is False

@pytest.mark.slow
def test_resume_does_not_read_the_weights_again(grey, tmp_path):
    "They may be gone; and the end is that of an uninterrupted run."
    job = dict(init_from=str(tmp_path/'own'), warmup_epochs=0., batch_size=32, save_every=2, device='cpu', img_size=(32, 32))
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    whole = pretrain(PretrainConfig(output_dir=tmp_path/'whole', max_steps=4, **job), quiet)
    cut = pretrain(PretrainConfig(output_dir=tmp_path/'cut', max_steps=4, **job), quiet)
    shutil.rmtree(cut/'checkpoints'/'step-00000004')                                  # as if it had ended after two steps
    shutil.rmtree(tmp_path/'own')
    said = []
    pretrain(PretrainConfig(output_dir=cut, max_steps=4, resume='auto', **job), said.append)
    assert any('not read again' in line for line in said) and any('after step 2' in line for line in said)
    assert (cut/'model.safetensors').read_bytes() == (whole/'model.safetensors').read_bytes()

def test_card_tells_what_it_started_from(grey, tmp_path):
    from mae_nb.weights.export import _licence
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    run = pretrain(PretrainConfig(init_from=tmp_path/'own', output_dir=tmp_path/'run', max_steps=1, batch_size=8, device='cpu'), quiet)
    card = (convert(ConvertConfig(source=run, output=tmp_path/'hf', to='hf'), quiet)/'README.md').read_text()
    assert '| init_from | own |' in card and str(tmp_path) not in card and 'license: unknown' in card
    config = read_json(run/'config.json')
    (run/'config.json').write_text(json.dumps(config | dict(init_from='mae_visualize_vit_base')))
    card = (convert(ConvertConfig(source=run, output=tmp_path/'hf2', to='hf'), quiet)/'README.md').read_text()
    assert 'license: cc-by-nc-4.0' in card and _licence(None) is None                 # what is made of their weights is under their licence

def test_report_of_a_run_that_went_on(tmp_path):
    run = pretrain(PretrainConfig(init_from='fashion_nano', output_dir=tmp_path/'run', max_steps=1, batch_size=8, log_every=1, norm_pix_loss=True, device='cpu'), quiet)
    from mae_nb.evaluate import report
    text = report._report_text(read_json(run/'config.json'), read_jsonl(run/'log.jsonl'), '', 'x')
    assert 'fashion_nano on fashion: 1 steps' in text

def test_without_a_checkpoint_resume_auto_starts_from_the_weights(grey, tmp_path):
    "Also where the weights' copy is all that is left of a run."
    save_weights(grey.state_dict(), asdict(grey.cfg), tmp_path/'own')
    cfg = PretrainConfig(init_from=tmp_path/'own', output_dir=tmp_path/'run', max_steps=1, batch_size=8, resume='auto', device='cpu')
    save_weights(MaskedAutoencoderViT(grey.cfg).state_dict(), asdict(grey.cfg), tmp_path/'run')
    assert torch.equal(PretrainTask(cfg).model.cls_token, grey.cls_token)

# -- not finite

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('form', ['pth', 'safetensors', 'run'])
def test_values_that_are_not_finite(value, form, grey, tmp_path, capsys):
    state = {k: v.clone() for k,v in grey.state_dict().items()}
    state['blocks.1.mlp.fc2.bias'][3] = value
    path = tmp_path/f'x.{form}'
    if form == 'pth': official(state, path)
    if form == 'safetensors': save_file(state, path)
    if form == 'run':
        save_weights(grey.state_dict(), asdict(grey.cfg), path)
        save_file(state, path/'model.safetensors')
    with pytest.raises(ValueError, match='not finite in 1 of .* tensors .blocks.1.mlp.fc2.bias'): from_pretrained(path)
    for command,flag in (mae_knn, '--encoder'), (mae_finetune, '--encoder'), (mae_pretrain, '--init_from'):
        assert command([flag, str(path), '--device', 'cpu', *['--output_dir', str(tmp_path/'out')]*(command is not mae_knn)]) == 2
        assert 'blocks.1.mlp.fc2.bias' in capsys.readouterr().err

# -- grids

def with_grid(grid, learned):
    "An encoder with positions of a grid, in patches of 8."
    from mae_nb.model.config import ViTConfig
    from mae_nb.model.encoder import MAEEncoder
    model = shaken(MAEEncoder(ViTConfig(img_size=(grid[0]*8, grid[1]*8), patch_size=8, embed_dim=48, depth=1, num_heads=4)))
    if learned: torch.nn.init.normal_(model.pos_embed)
    return model

@pytest.mark.parametrize('grid', [(2, 8), (4, 4), (8, 2), (2, 6), (6, 2), (1, 16), (3, 3), (1, 1)])
@pytest.mark.parametrize('half', [False, True])
def test_sine_cosine_positions_show_their_grid(grid, half, tmp_path):
    model = with_grid(grid, False)
    state = {k: v.bfloat16() if half else v for k,v in model.state_dict().items()}
    loaded = from_pretrained(official(state, tmp_path/'x.pth'), num_heads=4)
    x = torch.randn(2, 3, grid[0]*8, grid[1]*8)
    assert loaded.grid == grid and 'assumed' not in loaded.load_message
    if not half: assert torch.equal(loaded.encode(x).tokens, model.encode(x).tokens)

def test_learned_positions_of_any_grid_load_when_told(tmp_path, capsys):
    two_by_six,two_by_eight = with_grid((2, 6), True),with_grid((2, 8), True)
    a,b = official(two_by_six.state_dict(), tmp_path/'a.pth'),official(two_by_eight.state_dict(), tmp_path/'b.pth')
    with pytest.raises(ValueError, match=r'12 positions are learned, and may be 3x4, 4x3, 2x6, .*give grid=\(3, 4\)'): from_pretrained(a, num_heads=4)
    for told in dict(grid=(2, 6)), dict(img_size=(16, 48)):
        assert torch.equal(from_pretrained(a, num_heads=4, **told).pos_embed, two_by_six.pos_embed)
    square = from_pretrained(b, num_heads=4)
    assert square.grid == (4, 4) and 'a grid of 4x4 was assumed; its 16 positions are learned, and may be 4x4, 2x8' in square.load_message
    with pytest.raises(ValueError, match='may be 4x4, 2x8'): from_pretrained(b, num_heads=4, img_size=(16, 64))   # taken as it is, or resampled?
    assert torch.equal(from_pretrained(b, num_heads=4, grid=(2, 8), img_size=(16, 64)).pos_embed, two_by_eight.pos_embed)
    assert from_pretrained(b, num_heads=4, grid=(4, 4), img_size=(16, 64)).grid == (2, 8)
    with pytest.raises(ValueError, match='16 positions are no grid of 2x6'): from_pretrained(b, num_heads=4, grid=(2, 6))
    line = ['--source', a, '--num_heads', 4, '--output', tmp_path/'out']
    assert mae_convert([str(w) for w in line]) == 2 and 'give --grid 3x4' in capsys.readouterr().err
    assert mae_convert([str(w) for w in [*line, '--grid', '2x6']]) == 0
    assert from_pretrained(tmp_path/'out'/'model.pth').grid == (2, 6)                  # and now it is stored

# -- wrapped

def named(state, start): return {start + k: v for k,v in state.items()}

class AverageOf(torch.nn.Module):
    def __init__(self, model): super().__init__(); self.module = model

WRAPPED = {
    'state_dict': (lambda s: dict(state_dict=s, epoch=3), 'found under state_dict'), 'model_state_dict': (lambda s: dict(model_state_dict=s), 'found under model_state_dict'),
    'nested': (lambda s: dict(model=dict(state_dict=s)), 'found under model.state_dict'), 'teacher': (lambda s: dict(teacher=s), 'found under teacher'),
    'ema': (lambda s: dict(ema=s, step=1), 'found under ema'), 'net': (lambda s: dict(net=s), 'found under net'),
    'model and ema': (lambda s: dict(model=s, model_ema={k: v*0 for k,v in s.items()}), 'not taken: model_ema'),
    'module.': (lambda s: named(s, 'module.'), "'module.' removed"), '_orig_mod.': (lambda s: named(s, '_orig_mod.'), '_orig_mod removed'),
    'module._orig_mod.': (lambda s: dict(model=named(s, 'module._orig_mod.')), '_orig_mod removed'), '_orig_mod.module.': (lambda s: named(s, '_orig_mod.module.'), "'module.' removed"),
    'compiled blocks': (lambda s: {k.replace('.attn.', '._orig_mod.attn.'): v for k,v in s.items()}, '_orig_mod removed'),
    'lightning': (lambda s: dict(state_dict=named(s, 'model.'), callbacks={}), "'model.' removed"),
    'one number': (lambda s: s | dict(epoch=3), 'left out, no weights: epoch'), 'averaged': (lambda s: named(s, 'module.') | dict(n_averaged=torch.tensor(7)), "'module.' removed")}

@pytest.mark.parametrize('how', WRAPPED)
@pytest.mark.parametrize('layout', ['official', 'hf'])
def test_wrapped_weights(how, layout, grey, tmp_path):
    "What is certain is unwrapped and told; the tensors are those that were wrapped."
    wrap,says = WRAPPED[how]
    if (how, layout) == ('compiled blocks', 'hf'): pytest.skip('they are named otherwise')
    state = grey.state_dict()
    torch.save(wrap(to_hf(state) if layout == 'hf' else state), tmp_path/'x.pth')
    loaded = from_pretrained(tmp_path/'x.pth', num_heads=4, decoder_num_heads=4, norm_pix_loss=False, mean=(0.3,), std=(0.4,))
    assert says in loaded.load_message and loaded.cfg == grey.cfg
    for k,v in loaded.state_dict().items(): assert torch.equal(v, state[k]), k

prefixes = st.lists(st.sampled_from(['module.', '_orig_mod.', 'model.', 'net.', '_fsdp_wrapped_module.']), max_size=4)
boxes = st.lists(st.sampled_from(['model', 'state_dict', 'teacher', 'ema', 'checkpoint']), max_size=3)

@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(prefixes, boxes, st.booleans())
def test_any_wrapping_is_undone(prefixes, boxes, hf):
    "Prefixes on top of each other, dictionaries in each other, and numbers beside."
    mine = {'cls_token': torch.zeros(1), 'patch_embed.proj.weight': torch.ones(1), 'blocks.0.norm1.bias': torch.ones(2)}
    if hf: mine = {'vit.embeddings.patch_embeddings.projection.weight': torch.ones(1), 'decoder.mask_token': torch.zeros(1)}
    found = named(mine, ''.join(prefixes))
    for box in boxes: found = {box: found, 'epoch': 3, 'optimizer': dict(state={0: dict(step=torch.tensor(1.))})}
    got,_ = unwrap(found)
    assert got.keys() == mine.keys() and all(got[k] is mine[k] for k in mine)

def test_a_dictionary_that_holds_itself(tmp_path):
    found = dict(epoch=3)
    found['me'] = found
    torch.save(found, tmp_path/'x.pth')
    with pytest.raises(ValueError, match='no dictionary of tensors'): read_file(tmp_path/'x.pth')

@pytest.mark.parametrize('wrap,says', [
    (lambda s: dict(teacher=s, student=s), 'several sets of weights: teacher, student'), (lambda s: named(s, 'student.') | named(s, 'teacher.'), 'several encoders: student., teacher.'),
    (lambda s: named(s, 'backbone.') | {'head.weight': torch.ones(3)}, "under 'backbone.', and next to it there are head.weight"),
    (lambda s: dict(optimizer=dict(state={}), epoch=3, lr=0.1), 'no dictionary of tensors: there are optimizer, epoch, lr'),
    (lambda s: {'conv1.weight': torch.ones(2), 'fc.bias': torch.ones(2)}, "no encoder in it.*conv1.weight"), (lambda s: [1, 2], 'no dictionary of tensors'),
    (lambda s: s | {'module.cls_token': s['cls_token'] + 1}, 'module.cls_token')])
def test_wrapping_that_is_not_certain(wrap, says, grey, tmp_path):
    torch.save(wrap(grey.state_dict()), tmp_path/'x.pth')
    with pytest.raises(ValueError, match=f'(?s)x.pth.*{says}'): from_pretrained(tmp_path/'x.pth', num_heads=4, decoder_num_heads=4, norm_pix_loss=False)

def shards(state, folder, config, parts=3):
    names = sorted(state)
    files = {k: f'model-{i % parts + 1:05d}-of-{parts:05d}.safetensors' for i,k in enumerate(names)}
    folder.mkdir()
    for f in set(files.values()): save_file({k: state[k].contiguous() for k in names if files[k] == f}, folder/f)
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=files)))
    (folder/'config.json').write_text(json.dumps(config))
    return folder

def test_sharded_weights(grey, tmp_path):
    from mae_nb.weights.export import hf_config
    folder = shards(to_hf(grey.state_dict()), tmp_path/'hub', hf_config(asdict(grey.cfg)))
    loaded = from_pretrained(folder, mean=(0.3,), std=(0.4,))
    assert loaded.cfg == grey.cfg and all(torch.equal(v, grey.state_dict()[k]) for k,v in loaded.state_dict().items())
    assert read_weights(folder/'model.safetensors.index.json').state.keys() == grey.state_dict().keys()
    one = folder/'model-00002-of-00003.safetensors'
    with pytest.raises(ValueError, match='is one of several files: give their folder'): from_pretrained(one)
    one.unlink()
    with pytest.raises(FileNotFoundError, match='lists model-00002-of-00003.safetensors, and there is no such file'): from_pretrained(folder)
    index = folder/'model.safetensors.index.json'
    index.write_text(json.dumps(dict(weight_map={'cls_token': '../secret.safetensors'})))
    with pytest.raises(FileNotFoundError, match='secret'): from_pretrained(folder)    # nothing outside the folder is opened

# -- files of something else

def spoil(how, state, p):
    if how == 'numpy scalar': torch.save(dict(model=state, best=np.float64(1.)), p)
    if how == 'numpy array': torch.save({k: v.numpy() for k,v in state.items()}, p)
    if how == 'path': torch.save(dict(model=state, out=Path('runs')), p)
    if how == 'module': torch.save(torch.nn.Linear(2, 2), p)
    if how == 'script':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p)
    if how == 'page': p.write_text('\n<!DOCTYPE HTML>\n<html><body>Sign in</body></html>')
    if how == 'pointer': p.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n')
    if how == 'xml': p.write_text('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
    if how == 'text': p.write_text('Here are the weights.')
    if how == 'noise': p.write_bytes(np.random.default_rng(0).bytes(5000))
    if how == 'gzip': p.write_bytes(b'\x1f\x8b\x08' + bytes(50))
    if how == 'empty': p.write_bytes(b'')
    return p

@pytest.mark.parametrize('how,says', {
    'numpy scalar': r'holds an object of numpy\S*\.scalar', 'numpy array': r'holds an object of numpy\S*_reconstruct', 'path': r'holds an object of pathlib\.\w*Path', 'module': 'holds an object of torch.nn.modules.linear.Linear',
    'script': 'TorchScript', 'page': 'is a web page: take the address of the file itself', 'pointer': 'is a git-lfs pointer.*git lfs pull', 'xml': 'XML page', 'text': 'corrupted, incomplete, or not a file of PyTorch',
    'noise': 'corrupted, incomplete, or not a file of PyTorch', 'gzip': 'gzip archive: unpack it', 'empty': 'corrupted, incomplete'}.items())
@pytest.mark.parametrize('ending', ['pth', 'safetensors', 'bin'])
def test_files_of_something_else_are_called_by_name(how, says, ending, grey, tmp_path):
    "In our words: without torch's advice to run what is in the file, without terminal codes, in one line."
    path = spoil(how, grey.state_dict(), tmp_path/f'x.{ending}')
    if ending == 'safetensors' and how in ('text', 'noise', 'empty'): says = 'is corrupted, or not a safetensors file'
    with pytest.raises(ValueError, match=f'x.{ending}.*{says}') as e: read_file(path)
    assert 'weights_only' not in str(e.value) and '\x1b' not in str(e.value) and '\n' not in str(e.value)

def test_endings_do_not_matter(grey, tmp_path):
    "A file is what its first bytes say."
    save_file(grey.state_dict(), tmp_path/'x.bin')
    official(grey.state_dict(), tmp_path/'x.safetensors')
    for name in 'x.bin', 'x.safetensors': assert read_file(tmp_path/name)[0].keys() == grey.state_dict().keys()

# -- names

def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    def asked(*a, **k): raise AssertionError('the network was asked')
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'runs'/'pretrain').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='did you mean runs/pretrain'): resolve_weights('runs/pretrian', quiet)
    with pytest.raises(FileNotFoundError, match='write hf:run/pretrain'): resolve_weights('run/pretrain', quiet)
    with pytest.raises(AssertionError, match='asked'): resolve_weights('hf:run/pretrain', quiet)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert resolve_weights('~/runs/pretrain', quiet)[0] == tmp_path/'runs'/'pretrain'

# -- advice where it is given

def test_advice_fits_where_it_is_given(grey, tmp_path, capsys):
    bare = str(official(grey.state_dict(), tmp_path/'x.pth'))
    with pytest.raises(ValueError, match='Give num_heads=...$'): from_pretrained(bare)
    for command,flag,says in (mae_pretrain, '--init_from', 'Give --num_heads ...'), (mae_convert, '--source', 'Give --num_heads ...'), \
                             (mae_finetune, '--encoder', 'Give --num_heads ... to mae_convert'), (mae_knn, '--encoder', 'Give --num_heads ... to mae_convert'):
        out = [] if command is mae_knn else ['--output_dir' if command is not mae_convert else '--output', str(tmp_path/'out')]
        assert command([flag, bare, *out]) == 2
        said = capsys.readouterr().err
        assert says in said and 'num_heads=' not in said, said
    assert mae_pretrain(['--init_from', bare, *HEADS, '--output_dir', str(tmp_path/'out')]) == 2
    assert 'Give --norm_pix_loss ...' in capsys.readouterr().err
    (tmp_path/'full').mkdir(); (tmp_path/'full'/'a').touch()
    assert mae_pretrain(['--output_dir', str(tmp_path/'full'), '--device', 'cpu']) == 2 and '--resume auto' in capsys.readouterr().err

@pytest.mark.skipif(torch.backends.mps.is_available(), reason='it is there')
def test_devices_that_are_there_are_named(capsys):
    assert mae_pretrain(['--device', 'mps']) == 2
    said = capsys.readouterr().err
    assert "no device 'mps' here: there is cpu" in said and len(said) < 120

# -- pictures

@pytest.fixture(scope='module')
def painter(): return shaken(MaskedAutoencoderViT(MAEConfig(img_size=28, patch_size=4, in_chans=1, mean=(0.2842,), std=(0.3541,), **NARROW)))

@pytest.mark.parametrize('given', ['normalised', 'uint8', 'Pillow', 'Pillow of another size', 'list of Pillow', 'one', 'one in bytes', 'double', 'half'])
def test_pictures_of_any_images(given, painter):
    "The same images, given in any way, are painted the same."
    small = fashion('test').imgs[:1]
    x = normalise(small, painter.cfg.mean, painter.cfg.std)
    im = Image.fromarray(small[0,0].numpy())
    imgs = {'normalised': x, 'uint8': small, 'Pillow': im, 'Pillow of another size': im.resize((56, 84)).convert('RGBA'), 'list of Pillow': [im], 'one': x[0], 'one in bytes': small[0],
            'double': x.double(), 'half': x.half()}[given]
    scores = torch.rand(1, 49, generator=torch.Generator().manual_seed(0))
    r,expected = (reconstruct(painter, i, scores=scores) for i in (imgs, x))
    if 'size' not in given: torch.testing.assert_close(r.reconstruction, expected.reconstruction, atol=1e-3 if given == 'half' else 1e-6, rtol=0)
    assert r.image.shape == (1, 1, 28, 28) and len(show_reconstruction(painter, imgs, scores=scores).axes) == 4
    assert len(show_attention(painter, imgs).axes) == 2

def test_pictures_of_what_nobody_has_normalised(painter):
    for wrong,says in (fashion('test').imgs[:1].float(), 'not normalised: pixels would be up to'), (fashion('test').imgs[:1].long(), 'int64'), \
                      (np.zeros((1, 28, 28)), 'ndarray'), (torch.zeros(1, 3, 28, 28), 'of 1 channels, got shape'):
        for show in show_reconstruction, show_attention, attention_maps:
            with pytest.raises(ValueError, match=says) as e: show(painter, wrong)
            assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='for one image, got 2'): show_attention(painter, fashion('test').imgs[:2])

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_pictures_of_a_model_in_16_bits(dtype, painter):
    import copy
    small,scores = fashion('test').imgs[:2],torch.rand(2, 49, generator=torch.Generator().manual_seed(0))
    half = copy.deepcopy(painter).to(dtype)
    a,b = (reconstruct(m, small, scores=scores) for m in (half, painter))
    torch.testing.assert_close(a.reconstruction, b.reconstruction, atol=0.1, rtol=0)
    assert torch.equal(a.image, b.image) and a.reconstruction.dtype == torch.float32
    assert len(show_reconstruction(half, small).axes) == 8 and len(show_attention(half, small[0], block=0).axes) == 5
