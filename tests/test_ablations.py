"The knobs of Table 1 against plain restatements."
import json, shutil, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from mae_nb import cli
from mae_nb.ablations.grids import AblateConfig, ablation_runs, grids
from mae_nb.ablations.results import read_rows
from mae_nb.cli import mae_ablate
from mae_nb.core.files import read_json, read_jsonl, save_json
from mae_nb.model.config import DVAEConfig, MAEConfig, mae_configs
from mae_nb.model.cost import forward_flops
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.data.bundled import fashion
from mae_nb.data.datasets import normalise
from mae_nb.evaluate.config import ReportConfig
from mae_nb.evaluate.report import write_report
from mae_nb.model.masking import gather_patches, mask_from_scores
from mae_nb.model.targets import PCATarget
from mae_nb.model.tokenizer import DiscreteVAE
from mae_nb.plots.images import show_reconstruction
from mae_nb.model.patches import positions_for
from mae_nb.tasks.config import PretrainConfig, TokenizerConfig
from mae_nb.tasks.pretrain import PretrainTask, pretrain
from mae_nb.tasks.tokenizer import dalle_encoder, load_tokenizer, train_tokenizer
from mae_nb.train.checkpoint import checkpoints
from mae_nb.weights.config import ConvertConfig
from mae_nb.weights.export import convert
from mae_nb.weights.hub import from_pretrained

TINY = MAEConfig(img_size=28, patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=4, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=4)

# --- Table 1c: mask tokens in the encoder ---
def loss_in_image_order(model, imgs, scores):
    "All places in their order, as a ViT sees them; where a patch is masked, the mask token is put instead of its embedding."
    patches,grid = model.to_patches(imgs)
    m = mask_from_scores(scores, 0.75)
    x = model.embed(patches, grid)
    pos = positions_for(model.pos_embed, model.grid, grid)
    x = torch.cat([x[:,:1], torch.where(m.mask[:,:,None].bool(), model.encoder_mask_token + pos[:,1:], x[:,1:])], 1)
    y = model.decoder_embed(model.norm(model.blocks(x))) + positions_for(model.decoder_pos_embed, model.decoder_grid, grid)
    pred = model.decoder_pred(model.decoder_norm(model.decoder_blocks(y)[:,1:]))
    error = (pred - model.target(patches)).square().mean(-1)
    return (error*m.mask).sum()/m.mask.sum() if model.cfg.loss_on == 'masked' else error.mean()

@pytest.mark.parametrize('change', [{}, dict(norm_pix_loss=True), dict(loss_on='all')])
def test_mask_tokens_in_the_encoder(change):
    "Loss and gradients of the training path, of the full path, and of the restatement."
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(replace(TINY, encoder_mask_tokens=True, **change))
    imgs,scores = torch.randn(3, 1, 28, 28),torch.rand(3, 49)
    losses = [loss_in_image_order(model, imgs, scores)] + [model(imgs, scores=scores, loss_only=only).loss for only in (False, True)]
    learned = {n: p for n,p in model.named_parameters() if p.requires_grad}
    assert 'encoder_mask_token' in learned and 'mask_token' not in learned
    expected,*found = [torch.autograd.grad(l, [*learned.values()]) for l in losses]
    for loss,grads in zip(losses[1:], found):
        assert loss.item() == pytest.approx(losses[0].item(), rel=1e-5)
        for n,g,e in zip(learned, grads, expected): assert torch.allclose(g, e, atol=2e-6), n
    assert all(g.abs().sum() > 0 for n,g in zip(learned, expected) if not n.endswith('attn.qkv.bias'))

def test_it_does_not_peek():
    model = MaskedAutoencoderViT(replace(TINY, encoder_mask_tokens=True)).eval()
    imgs,scores = torch.randn(1, 1, 28, 28),torch.arange(49.)[None]
    hidden = imgs.clone()
    hidden[:,:,8:] = 7.  # rows of patches from the third on: masked, as scores go along the rows
    a,b = (model(x, scores=scores).pred for x in (imgs, hidden))
    assert torch.equal(a, b) and mask_from_scores(scores).mask[0,14:].all()

def test_features_are_of_the_whole_image():
    "`encode` masks nothing, so it is the same with the knob and without."
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(replace(TINY, encoder_mask_tokens=True)).eval()
    plain = MaskedAutoencoderViT(TINY).eval()
    plain.load_state_dict({k: v for k,v in model.state_dict().items() if k != 'encoder_mask_token'})
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model.encode(x).tokens, plain.encode(x).tokens)

def test_flops_of_mask_tokens():
    large = mae_configs['mae_vit_large_patch16']
    assert forward_flops(replace(large, encoder_mask_tokens=True))/forward_flops(large) == pytest.approx(3.3, abs=0.1)  # Table 1c

@pytest.mark.slow
def test_a_run_with_mask_tokens_in_the_encoder(tmp_path):
    cfg = PretrainConfig(output_dir=str(tmp_path/'run'), encoder_mask_tokens=True, max_steps=3, batch_size=8, device='cpu')
    assert PretrainTask(cfg).flops_per_image > 2*PretrainTask(replace(cfg, encoder_mask_tokens=False)).flops_per_image
    run = pretrain(cfg, lambda line: None)
    whole = from_pretrained(run, 'autoencoder')
    assert whole.cfg.encoder_mask_tokens and torch.isfinite(whole.encoder_mask_token).all()
    encoder = from_pretrained(run, 'encoder')
    assert not [k for k in encoder.state_dict() if 'mask_token' in k]
    on = pretrain(replace(cfg, output_dir=str(tmp_path/'on'), init_from=str(run), model=None), lambda line: None)
    assert from_pretrained(on, 'autoencoder').cfg.encoder_mask_tokens
    with pytest.raises(ValueError, match='was trained with encoder_mask_tokens=True'):
        pretrain(replace(cfg, output_dir=str(tmp_path/'off'), init_from=str(run), model=None, encoder_mask_tokens=False), lambda line: None)
    other = pretrain(replace(cfg, output_dir=str(tmp_path/'other'), init_from=str(run), model=None, init_decoder=False, encoder_mask_tokens=False), lambda line: None)
    assert not from_pretrained(other, 'autoencoder').cfg.encoder_mask_tokens

# --- Table 1d: principal components of patches ---
def test_pca_target_is_that_of_numpy():
    patches = torch.randn(4, 49, 16, generator=torch.Generator().manual_seed(0)) @ torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    target = PCATarget(16, 5).fit(patches)
    x = patches.flatten(0, 1).double().numpy()
    _,_,v = np.linalg.svd(x - x.mean(0), full_matrices=False)
    v = v[:5]*np.sign(np.take_along_axis(v[:5], np.abs(v[:5]).argmax(1)[:,None], 1))
    expected = ((x - x.mean(0)) @ v.T).reshape(4, 49, 5)
    assert np.abs(target(patches).numpy() - expected).max() < 1e-4
    whole = PCATarget(16, 16).fit(patches)
    assert torch.allclose(whole.to_pixels(whole(patches)), patches, atol=1e-4)
    assert torch.equal(target(patches.bfloat16()), target(patches.bfloat16().float()))

def test_loss_of_components():
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(replace(TINY, target='pca', pca_components=5))
    imgs,scores = torch.randn(3, 1, 28, 28),torch.rand(3, 49)
    model.target.fit(model.to_patches(imgs)[0])
    full,short = (model(imgs, scores=scores, loss_only=only) for only in (False, True))
    wanted = model.target(model.to_patches(imgs)[0])
    by_hand = (full.pred - wanted)[full.mask == 1].square().mean()
    assert full.pred.shape == (3, 49, 5) and full.loss.item() == pytest.approx(by_hand.item()) == pytest.approx(short.loss.item(), rel=1e-5)

@pytest.mark.slow
def test_a_run_on_components(tmp_path):
    cfg = PretrainConfig(output_dir=str(tmp_path/'run'), target='pca', pca_components=6, max_steps=4, save_every=2, batch_size=8, device='cpu')
    run = pretrain(cfg, lambda line: None)
    model = from_pretrained(run, 'autoencoder')
    clothes = normalise(fashion().imgs[::20], model.cfg.mean, model.cfg.std)
    again = PCATarget(16, 6).fit(model.to_patches(clothes)[0])
    assert (model.target.components*again.components).sum(1)[:5].abs().min() > 0.9  # about the same directions on other crops
    show_reconstruction(model, clothes[:2])
    assert 'target.mean' not in from_pretrained(run, 'encoder').state_dict()
    stopped = pretrain(replace(cfg, output_dir=str(tmp_path/'two'), max_steps=2), lambda line: None)
    pretrain(replace(cfg, output_dir=str(stopped), resume='auto'), lambda line: None)
    other = from_pretrained(stopped, 'autoencoder')
    assert torch.equal(other.target.components, model.target.components)
    on = pretrain(replace(cfg, output_dir=str(tmp_path/'on'), init_from=str(run), model=None, target=None, pca_components=None), lambda line: None)
    assert torch.equal(from_pretrained(on, 'autoencoder').target.components, model.target.components)
    for wrong in dict(target='pixel', pca_components=None), dict(pca_components=7):
        with pytest.raises(ValueError, match='was trained with'): pretrain(replace(cfg, output_dir=str(tmp_path/'no'), init_from=str(run), model=None, **wrong), lambda line: None)
    with pytest.raises(ValueError, match='between 1 and 16'): PretrainTask(replace(cfg, pca_components=17))
    with pytest.raises(ValueError, match='norm_pix_loss normalises pixels, and target is pca'): PretrainTask(replace(cfg, norm_pix_loss=True))

# --- Table 1d: tokens ---
DVAE = DVAEConfig(img_size=28, in_chans=1, vocab_size=32, embed_dim=8, groups=3, blocks=1)

def test_loss_of_tokens():
    "Cross-entropy with the tokenizer's codes, by hand, over the masked patches."
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(replace(TINY, target='token', tokenizer=DVAE, mean=(0.3,), std=(0.4,)))
    imgs,scores = torch.rand(3, 1, 28, 28),torch.rand(3, 49)
    x = (imgs - 0.3)/0.4
    full,short = (model(x, scores=scores, loss_only=only) for only in (False, True))
    with torch.no_grad(): codes = model.target.tokenizer.encoder(0.8*imgs + 0.1).argmax(1).flatten(1)
    by_hand = [-full.pred[b,i].softmax(0)[codes[b,i]].log() for b in range(3) for i in range(49) if full.mask[b,i]]
    assert full.pred.shape == (3, 49, 32) and len(by_hand) == 3*37
    assert full.loss.item() == pytest.approx(sum(by_hand).item()/len(by_hand), rel=1e-5) == pytest.approx(short.loss.item(), rel=1e-5)
    short.loss.backward()
    assert all(p.grad is None for p in model.target.parameters()) and model.decoder_pred.weight.grad.abs().sum() > 0
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(model.target(model.to_patches(x)[0], (7, 7))[...,0], codes)

def test_codes_of_the_mask_alone():
    "All probability on the right codes costs nothing on the masked patches, whatever the others say."
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(replace(TINY, target='token', tokenizer=DVAE))
    imgs,scores = torch.rand(2, 1, 28, 28),torch.rand(2, 49)
    mask = mask_from_scores(scores, 0.75).mask.bool()
    codes = model.target(model.to_patches(imgs)[0], (7, 7))[...,0]
    pred = 50.*torch.nn.functional.one_hot(torch.where(mask, codes, (codes + 1) % 32), 32)
    error = model.target.error(pred, codes[...,None])[...,0]
    assert error[mask].max() < 1e-5 and error[~mask].min() > 49

@pytest.mark.slow
def test_a_run_on_tokens(tmp_path):
    quiet = lambda line: None
    tokens = TokenizerConfig(output_dir=str(tmp_path/'tokenizer'), vocab_size=32, embed_dim=8, max_steps=6, save_every=3, batch_size=16, device='cpu')
    tokenizer = train_tokenizer(tokens, quiet)
    metrics = read_jsonl(tokenizer/'log.jsonl')[-1]
    assert 1 <= metrics['perplexity'] <= 32 and 0 < metrics['test_error'] < 1
    cfg = PretrainConfig(output_dir=str(tmp_path/'run'), target='token', tokenizer=str(tokenizer), max_steps=4, save_every=2, batch_size=8, device='cpu')
    run = pretrain(cfg, quiet)
    model = from_pretrained(run, 'autoencoder')
    state = load_tokenizer(tokenizer).state_dict()
    assert all(torch.equal(v, state[k]) for k,v in model.target.tokenizer.state_dict().items()) and model.cfg.tokenizer.vocab_size == 32
    show_reconstruction(model, normalise(fashion().imgs[:2], model.cfg.mean, model.cfg.std))
    assert not [k for k in from_pretrained(run, 'encoder').state_dict() if 'tokenizer' in k]
    assert PretrainTask(cfg).flops_per_image > PretrainTask(replace(cfg, target='pixel', tokenizer=None)).flops_per_image
    stopped = pretrain(replace(cfg, output_dir=str(tmp_path/'two'), max_steps=2), quiet)
    pretrain(replace(cfg, output_dir=str(stopped), resume='auto'), quiet)
    assert all(torch.equal(v, model.state_dict()[k]) for k,v in from_pretrained(stopped, 'autoencoder').state_dict().items())
    on = pretrain(replace(cfg, output_dir=str(tmp_path/'on'), init_from=str(run), model=None, target=None, tokenizer=None), quiet)
    assert from_pretrained(on, 'autoencoder').cfg.tokenizer == model.cfg.tokenizer
    new = replace(cfg, output_dir=str(tmp_path/'new'), init_from=str(run), model=None)
    with pytest.raises(ValueError, match='has its own tokenizer'): pretrain(new, quiet)
    assert from_pretrained(pretrain(replace(new, init_decoder=False), quiet), 'autoencoder').cfg.target == 'token'
    other = train_tokenizer(replace(tokens, output_dir=str(tmp_path/'other'), seed=1, max_steps=1), quiet)
    with pytest.raises(ValueError, match='tokenizer'): pretrain(replace(cfg, output_dir=str(stopped), tokenizer=str(other), resume='auto', max_steps=6), quiet)
    with pytest.raises(ValueError, match='target=token needs a tokenizer'): replace(cfg, tokenizer=None)
    with pytest.raises(ValueError, match='target=token needs a tokenizer'): replace(cfg, target='pixel')
    with pytest.raises(ValueError, match='holds no model.json'): PretrainTask(replace(cfg, tokenizer=str(tmp_path)))
    with pytest.raises(ValueError, match='is no tokenizer'): PretrainTask(replace(cfg, tokenizer=str(run)))

@pytest.mark.slow
def test_a_tokenizer_continues_exactly(tmp_path):
    cfg = TokenizerConfig(output_dir=str(tmp_path/'a'), vocab_size=32, embed_dim=8, max_steps=6, save_every=3, batch_size=16, device='cpu')
    whole = train_tokenizer(cfg, lambda line: None)
    half = Path(shutil.copytree(whole, tmp_path/'b'))
    shutil.rmtree(checkpoints(half)[-1])
    assert [c.name for c in checkpoints(half)] == [checkpoints(whole)[0].name]
    train_tokenizer(replace(cfg, output_dir=str(half), resume='auto'), lambda line: None)
    a,b = (load_tokenizer(r).state_dict() for r in (whole, half))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_the_layout_of_dalle():
    "Names and shapes of the released encoder, written down from its package (DALL-E 0.1)."
    with torch.device('meta'): ours = DiscreteVAE(DVAEConfig(decoder=False)).state_dict()
    expected = {'blocks.input.w': (256, 3, 7, 7), 'blocks.output.conv.w': (8192, 2048, 1, 1)}
    for g in range(1, 5):
        for b in (1, 2):
            dim = 256*2**(g - 1)
            dim_in = dim//2 if b == 1 and g > 1 else dim
            at = f'blocks.group_{g}.block_{b}'
            if dim_in != dim: expected[f'{at}.id_path.w'] = (dim, dim_in, 1, 1)
            sides = [(dim//4, dim_in, 3, 3), (dim//4, dim//4, 3, 3), (dim//4, dim//4, 3, 3), (dim, dim//4, 1, 1)]
            expected |= {f'{at}.res_path.conv_{k+1}.w': s for k,s in enumerate(sides)}
    state = {k: torch.empty(s, device='meta') for k,s in expected.items()}
    state |= {k.removesuffix('w') + 'b': v[:,0,0,0] for k,v in state.items()}
    cfg,named = dalle_encoder(state)
    assert cfg == DVAEConfig(decoder=False) and {k: v.shape for k,v in named.items()} == {k: v.shape for k,v in ours.items()}

# --- watching a run ---
def small_set(path):
    "48 garments for training and 24 to test on, as a folder of two classes."
    clothes = fashion()
    for i,(img,split) in enumerate((clothes[i][0], 'train' if i % 3 else 'test') for i in range(72)):
        folder = path/split/'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(img[0].numpy()).save(folder/f'{i}.png')
    return str(path)

@pytest.mark.slow
def test_watching_changes_nothing(tmp_path):
    "Weights are the same bytes with evaluations and without; the log has the metrics, and each evaluation its picture."
    cfg = PretrainConfig(data=small_set(tmp_path/'data'), output_dir=str(tmp_path/'plain'), max_steps=6, batch_size=12, save_every=100, log_every=1, ema_decay=0.5, device='cpu')
    plain = pretrain(cfg, lambda line: None)
    watched = pretrain(replace(cfg, output_dir=str(tmp_path/'watched'), eval_every=1, eval_images=30), lambda line: None)
    a,b = ((r/'model.safetensors').read_bytes() for r in (plain, watched))
    assert a == b
    losses = [[r['loss'] for r in read_jsonl(run/'log.jsonl') if 'loss' in r] for run in (plain, watched)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    found = [r for r in read_jsonl(watched/'log.jsonl') if 'token_knn' in r]
    assert [r['step'] for r in found] == [4, 6] and 'ema_avg_rank' in found[0]
    assert all(0 <= r['avg_linear'] <= 100 and 1 <= r['avg_rank'] <= 96 for r in found)
    assert sorted(p.name for p in (watched/'pictures').iterdir()) == ['image.png', 'masked.png', 'step-00000004.png', 'step-00000006.png']
    rows = [np.asarray(Image.open(p)) for p in sorted((watched/'pictures').glob('step-*.png'))]
    assert rows[0].shape == rows[1].shape and (rows[0] != rows[1]).any()
    write_report(watched, ReportConfig(max_images=200, device='cpu'), lambda line: None)
    assert (watched/'strip.png').is_file() and 'strip.png' in (watched/'report.html').read_text() and 'watch.png' in (watched/'report.html').read_text()
    write_report(plain, ReportConfig(max_images=200, device='cpu'), lambda line: None)
    assert 'strip.png' not in (plain/'report.html').read_text()

def photographs(folder):
    "A folder of twelve coloured images, 40 x 40 pixels of noise; its path as text."
    folder.mkdir()
    for i,img in enumerate(torch.randint(0, 256, (12, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))):
        Image.fromarray(img.numpy()).save(folder/f'{i}.png')
    return str(folder)

@pytest.mark.slow
def test_watching_photographs(tmp_path):
    "Without labels and without a test split there are the rank and the pictures."
    cfg = PretrainConfig(data=photographs(tmp_path/'photos'), output_dir=str(tmp_path/'run'), img_size=32, patch_size=8, max_steps=2, batch_size=6, eval_every=1, device='cpu')
    run = pretrain(cfg, lambda line: None)
    found = [r for r in read_jsonl(run/'log.jsonl') if 'avg_rank' in r]
    assert len(found) == 1 and 'avg_knn' not in found[0] and (run/'pictures'/'step-00000002.png').is_file()

# --- running grids ---
SHORT = 'from mae_nb.ablations.grids import grids; grids["table1c"].small["with"].update(max_steps=40)'

@pytest.mark.slow
def test_a_stopped_ablation_goes_on(tmp_path, capsys, monkeypatch):
    "SIGTERM stops the runs, which save; the next start repeats nothing that is finished, and resumes what is not."
    flags = ['table1c', '--scale', 'fashion', '--seeds', '1', '--epochs', '1', '--finetune_epochs', '1', '--eval_images', '200', '--label_fraction', '0.01',
             '--processes', '1', '--home', str(tmp_path/'home'), '--output', str(tmp_path/'out.csv')]
    command = [sys.executable, '-c', f'import sys; from mae_nb.cli import mae_ablate; {SHORT}; sys.exit(mae_ablate())', *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    logs = lambda row: [p for p in (tmp_path/'home'/'fashion').glob(f'{row}*/pretrain/log.jsonl')]
    begin = time.time()
    while not (logs('encoder') and read_jsonl(logs('encoder')[0], torn=True)):
        assert time.time() - begin < 200 and process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 143
    assert [r['row'] for r in read_rows(tmp_path/'out.csv')] == ['without']
    stopped = read_jsonl(logs('encoder')[0])
    assert stopped[-1]['step'] < 40 and checkpoints(logs('encoder')[0].parent)  # saved when it was stopped
    before = logs('default')[0].stat().st_mtime
    monkeypatch.setitem(grids['table1c'].small['with'], 'max_steps', 40)
    assert mae_ablate(flags) == 0
    rows = read_rows(tmp_path/'out.csv')
    assert [(r['row'], r['seed'], r['steps']) for r in rows] == [('without', 0, 78), ('with', 0, 40)]
    assert logs('default')[0].stat().st_mtime == before
    again = read_jsonl(logs('encoder')[0])
    assert again[:len(stopped)] == stopped and rows[1]['tflops']/rows[0]['tflops'] == pytest.approx(3.25*40/78, abs=0.01)
    capsys.readouterr()
    assert mae_ablate([*flags, '--show']) == 0
    shown = capsys.readouterr().out
    assert '| **without** |' in shown and '| 84.2 | 59.6 |' in shown and (tmp_path/'out.png').is_file()

@pytest.mark.slow
def test_commands_of_the_papers_runs(capsys):
    assert mae_ablate(['fig7', '--scale', 'paper', '--seeds', '1', '--print', 'commands']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith('torchrun --standalone --nproc-per-node 8 --no-python mae_pretrain --recipe paper_fig7_100 ')
    assert all(line.count(' && ') == 2 for line in lines)
    for line in lines:  # each is a command line that its command takes
        for part in line.split(' && '):
            name,*words = part.split('--no-python ')[1].split()
            assert vars(cli)[name]([*words, '--print']) == 0
    assert mae_ablate(['fig8']) == 2 and 'did you mean fig' in capsys.readouterr().err
    assert mae_ablate(['fig5', '--scale', 'paper']) == 2 and 'print' in capsys.readouterr().err

# --- less compute: options that are off by default ---
def test_cross_attention_by_hand():
    "Each mask token reads the visible patches alone: torch's own attention on the same weights gives the same loss."
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(replace(TINY, decoder_cross=True, predict_ratio=0.3))
    imgs,scores = torch.randn(3, 1, 28, 28),torch.rand(3, 49)
    patches,_ = model.to_patches(imgs)
    latent,m = model.forward_encoder(imgs, scores=scores)
    pos = model.decoder_pos_embed[0]
    wanted = m.ids_masked[:,:12]  # 0.3 of 37 are 11.1
    seen = model.decoder_embed(latent) + torch.stack([torch.cat([pos[:1], pos[1:][i]]) for i in m.ids_keep])
    x = model.mask_token + pos[1:][wanted]
    for block in model.decoder_blocks:
        a = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        a.in_proj_weight,a.in_proj_bias,a.out_proj = block.attn.qkv.weight,block.attn.qkv.bias,block.attn.proj
        keys = block.norm1(seen)
        x = x + a(block.norm1(x), keys, keys, need_weights=False)[0]
        x = x + block.mlp(block.norm2(x))
    pred = model.decoder_pred(model.decoder_norm(x))
    by_hand = (pred - gather_patches(patches, wanted)).square().mean()
    assert model(imgs, scores=scores, loss_only=True).loss.item() == pytest.approx(by_hand.item(), rel=1e-5)

@pytest.mark.parametrize('change', [dict(decoder_cross=True), dict(decoder_cross=True, predict_ratio=0.25), dict(predict_ratio=0.25), dict(decoder_cross=True, loss_on='all')])
def test_flops_of_a_smaller_decoder(change):
    "The formula is what torch counts, for ViT-L."
    cfg = replace(mae_configs['mae_vit_large_patch16'], **change)
    with torch.device('meta'): model,imgs,scores = MaskedAutoencoderViT(cfg),torch.empty(1, 3, 224, 224),torch.empty(1, 196)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter: model(imgs, 0.75, scores, True)
    assert counter.get_total_flops() == forward_flops(cfg)

@pytest.mark.slow
@pytest.mark.parametrize('change', [dict(decoder_cross=True), dict(predict_ratio=0.5), dict(optimizer='muon'), dict(small_size=(16, 16), small_epochs=1)])
def test_runs_with_less_compute(tmp_path, change):
    "They train, show, and continue exactly."
    cfg = PretrainConfig(data=small_set(tmp_path/'data'), output_dir=str(tmp_path/'a'), max_steps=6, save_every=3, batch_size=12, device='cpu', **change)  # 4 steps an epoch
    if change.get('optimizer') == 'muon': pytest.importorskip('timm.optim.muon')
    whole = pretrain(cfg, lambda line: None)
    model = from_pretrained(whole, 'autoencoder')
    show_reconstruction(model, fashion().imgs[:2])
    half = Path(shutil.copytree(whole, tmp_path/'b'))
    shutil.rmtree(checkpoints(half)[-1])
    pretrain(replace(cfg, output_dir=str(half), resume='auto'), lambda line: None)
    a,b = (from_pretrained(r, 'autoencoder').state_dict() for r in (whole, half))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_growing_resolution_changes_its_size_after_some_epochs():
    cfg = PretrainConfig(small_size=(16, 16), small_epochs=1, epochs=2, batch_size=5000, device='cpu')  # 2 steps an epoch
    sizes = [(imgs.shape[-2:], scores.shape[-1]) for imgs,scores in PretrainTask(cfg).batches(0)]
    assert sizes == [((16, 16), 16)]*2 + [((28, 28), 49)]*2
    assert [imgs.shape[-1] for imgs,_ in PretrainTask(cfg).batches(1)] == [16, 28, 28]

@pytest.mark.parametrize('bad,said', [(dict(predict_ratio=0.), 'predict_ratio must be in'), (dict(predict_ratio=0.5, mask_sampling='block'), 'needs mask_sampling random'),
                                      (dict(small_size=(16, 16)), 'belong together'), (dict(small_size=(18, 18), small_epochs=1), 'does not divide'),
                                      (dict(predict_ratio=0.5, loss_on='all'), "loss_on is 'all'"), (dict(decoder_cross=True, encoder_mask_tokens=True), 'give one of them')])
def test_refused(bad, said):
    with pytest.raises(ValueError, match=said): PretrainTask(PretrainConfig(device='cpu', **bad))

def test_a_run_of_an_earlier_version_continues(tmp_path, capsys):
    "Its configuration and its model lack the newer fields: they have their defaults, and that is told."
    cfg = PretrainConfig(output_dir=str(tmp_path/'run'), max_steps=2, save_every=1, batch_size=8, device='cpu')
    run = pretrain(cfg, lambda line: None)
    shutil.rmtree(checkpoints(run)[-1])
    newer = {'target', 'pca_components', 'tokenizer', 'encoder_mask_tokens', 'decoder_cross', 'predict_ratio', 'optimizer', 'small_size', 'small_epochs', 'eval_every', 'eval_images'}
    folder = checkpoints(run)[-1]
    for path in folder/'model.json', folder/'state.json', run/'config.json', run/'model.json':
        if not path.exists(): continue
        found = read_json(path)
        part = found['config'] if path.name == 'state.json' else found
        for k in newer: part.pop(k, None)
        if path.name == 'state.json': found['files'].pop('model.json')  # its size has changed
        save_json(found, path)
    said = []
    pretrain(replace(cfg, resume='auto'), said.append)
    assert any('without' in line and 'predict_ratio' in line for line in said) and len(checkpoints(run)) == 2

@pytest.mark.slow
def test_a_tokenizer_is_overwritten(tmp_path):
    flags = ['--output_dir', str(tmp_path/'run'), '--max_steps', '2', '--batch_size', '8', '--vocab_size', '8', '--overwrite', '--device', 'cpu']
    assert [cli.mae_tokenizer(flags) for _ in range(2)] == [0, 0] and read_jsonl(tmp_path/'run'/'log.jsonl')[-1]['step'] == 2

@pytest.mark.slow
def test_a_tokenizer_of_photographs(tmp_path):
    "A folder without labels and without test images trains, and is not evaluated."
    cfg = TokenizerConfig(data=photographs(tmp_path/'photos'), output_dir=str(tmp_path/'run'), vocab_size=8, embed_dim=4, max_steps=2, batch_size=6, device='cpu')
    run = train_tokenizer(cfg, lambda line: None)
    assert load_tokenizer(run).cfg.in_chans == 3 and not [r for r in read_jsonl(run/'log.jsonl') if 'perplexity' in r]

@pytest.mark.slow
@pytest.mark.parametrize('change', [dict(target='pca', pca_components=6), dict(encoder_mask_tokens=True), dict(decoder_cross=True)])
def test_what_other_layouts_cannot_tell(tmp_path, change):
    "An autoencoder that does something else than the release's is not written in its layout; its encoder is."
    run = pretrain(PretrainConfig(output_dir=str(tmp_path/'run'), max_steps=1, batch_size=8, device='cpu', **change), lambda line: None)
    for to in 'official', 'hf':
        with pytest.raises(ValueError, match=f'cannot be represented in the layout {to}'): convert(ConvertConfig(str(run), str(tmp_path/to), to), lambda line: None)
        assert (convert(ConvertConfig(str(run), str(tmp_path/to), to, kind='encoder'), lambda line: None)/'README.md').is_file()
    assert from_pretrained(convert(ConvertConfig(str(run), str(tmp_path/'ours'), 'mae_nb'), lambda line: None), 'autoencoder').cfg.target == change.get('target', 'pixel')

@pytest.mark.slow
@pytest.mark.parametrize('scale', ['cluttered', 'fashion'])
def test_commands_of_small_runs(scale, capsys):
    "Each is a command line that its command takes, and says what its row says."
    for name,grid in grids.items():
        for run in ablation_runs(name, AblateConfig(scale, seeds=1)):
            for command,*words in run.commands:
                assert vars(cli)[command]([*map(str, words), '--print']) == 0, words
                said = capsys.readouterr().out
                shown = json.loads(said[said.index('{'):])
                if command != 'mae_pretrain': continue
                for k,v in grid.small[run.row].items():
                    if k in shown and k not in ('tokenizer', 'decoder_depth', 'decoder_embed_dim'): assert shown[k] == (list(v) if isinstance(v, tuple) else v), (run.row, k)
