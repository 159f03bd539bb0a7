// The forward pass of a masked autoencoder for one image, in plain JavaScript: what mae_nb/model does in PyTorch.
// Numbers stand in Float32Arrays, row by row: tokens (N, D), a layer's weight (in, out). No library, no request.
const MAE = (() => {
  'use strict';

  // --- what the file holds ---
  function decode(text) {  // base64 to bytes
    const s = atob(text), bytes = new Uint8Array(s.length);
    for (let i = 0; i < s.length; i++) bytes[i] = s.charCodeAt(i);
    return bytes;
  }

  function half(h) {  // 16 bits (1 sign, 5 exponent, 10 fraction) to a number
    const e = h >> 10 & 31, f = h & 1023, v = e ? 2**(e - 15)*(1 + f/1024) : 2**-14*f/1024;
    return h & 0x8000 ? -v : v;
  }

  function numbers(bytes, {kind, at, shape}) {  // a tensor: float32, float16, or 8 bits and a scale for each row
    const n = shape.reduce((a, b) => a*b, 1), rows = shape[0], out = new Float32Array(n), v = new DataView(bytes.buffer, at);
    if (kind === 'f32') for (let i = 0; i < n; i++) out[i] = v.getFloat32(4*i, true);
    else if (kind === 'f16') for (let i = 0; i < n; i++) out[i] = half(v.getUint16(2*i, true));
    else if (kind === 'i8') for (let i = 0; i < n; i++) out[i] = v.getInt8(4*rows + i)*v.getFloat32(4*Math.floor(i*rows/n), true);
    else throw new Error('unknown kind of numbers: ' + kind);
    return out;
  }

  // --- matrix products ---
  const up = (n, step) => Math.ceil(n/step)*step;

  function plainProduct(f, a, b, c, M, K, N) {  // C = A B at places a, b, c of f; blocks of 4 x 4 sums
    for (let m = 0; m < M; m += 4) for (let n = 0; n < N; n += 4) {
      let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
      let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
      for (let k = 0, x = a + m*K, y = b + n; k < K; k++, x++, y += N) {
        const b0 = f[y], b1 = f[y + 1], b2 = f[y + 2], b3 = f[y + 3];
        const a0 = f[x], a1 = f[x + K], a2 = f[x + 2*K], a3 = f[x + 3*K];
        s00 += a0*b0; s01 += a0*b1; s02 += a0*b2; s03 += a0*b3;
        s10 += a1*b0; s11 += a1*b1; s12 += a1*b2; s13 += a1*b3;
        s20 += a2*b0; s21 += a2*b1; s22 += a2*b2; s23 += a2*b3;
        s30 += a3*b0; s31 += a3*b1; s32 += a3*b2; s33 += a3*b3;
      }
      let z = c + m*N + n;
      f[z] = s00; f[z + 1] = s01; f[z + 2] = s02; f[z + 3] = s03; z += N;
      f[z] = s10; f[z + 1] = s11; f[z + 2] = s12; f[z + 3] = s13; z += N;
      f[z] = s20; f[z + 1] = s21; f[z + 2] = s22; f[z + 3] = s23; z += N;
      f[z] = s30; f[z + 1] = s31; f[z + 2] = s32; f[z + 3] = s33;
    }
  }

  function workshop(weights, scratch, wasm) {  // one memory for a model's weights and the matrices at hand, and their product
    const floats = weights + 3*scratch, A = weights, B = A + scratch, C = B + scratch;
    let f, product, fast = false, used = 0;
    try {  // some browsers have no WebAssembly, or no SIMD in it, and some pages forbid it
      const memory = new WebAssembly.Memory({initial: Math.ceil(floats/16384)});
      const {multiply} = new WebAssembly.Instance(new WebAssembly.Module(wasm), {page: {memory}}).exports;
      f = new Float32Array(memory.buffer);
      product = (a, b, c, M, K, N) => multiply(4*a, 4*b, 4*c, M, K, N);
      fast = true;
    } catch (e) {
      f = new Float32Array(floats);
      product = (a, b, c, M, K, N) => plainProduct(f, a, b, c, M, K, N);
    }
    return {
      fast,
      keep(w, outs, ins) {  // a weight (out, in), turned into (in, out) and filled up to whole blocks; returns its place
        const at = used, N = up(outs, 8);
        for (let o = 0; o < outs; o++) for (let i = 0; i < ins; i++) f[at + i*N + o] = w[o*ins + i];
        used += ins*N;
        return at;
      },
      lay(K, N, value) {  // a matrix (K, N) of the moment; returns its place
        const wide = up(N, 8);
        for (let k = 0; k < K; k++) for (let n = 0; n < N; n++) f[B + k*wide + n] = value(k, n);
        return B;
      },
      times(x, M, K, place, N, bias) {  // x (M, K) times the matrix (K, N) at a place, plus a bias
        const wide = up(N, 8), y = new Float32Array(M*N);
        f.set(x, A);
        product(A, place, C, up(M, 4), K, wide);
        for (let m = 0; m < M; m++) for (let n = 0; n < N; n++) y[m*N + n] = f[C + m*wide + n] + (bias ? bias[n] : 0);
        return y;
      },
    };
  }

  function load({name, config, tensors, weights}, wasm) {  // a model as mae_nb.demo.export writes it
    const bytes = decode(weights), c = config, linear = {}, t = {};
    const matrices = tensors.filter(({shape}) => shape.length === 2), room = matrices.reduce((n, {shape: [o, i]}) => n + up(o, 8)*i, 0);
    const tokens = up(1 + c.grid[0]*c.grid[1], 8), widest = Math.max(tokens, ...matrices.map(({shape}) => up(Math.max(...shape), 8)));
    const shop = workshop(room, tokens*widest, wasm);
    for (const one of tensors) {
      if (one.shape.length === 1) t[one.name] = numbers(bytes, one);
      else linear[one.name] = {place: shop.keep(numbers(bytes, one), ...one.shape), outs: one.shape[0], ins: one.shape[1]};
    }
    return {name, c, t, linear, shop};
  }

  // --- the Transformer ---
  function erf(x) {  // Abramowitz and Stegun 7.1.26, right to 1.5e-7
    const u = 1/(1 + 0.3275911*Math.abs(x));
    const y = 1 - ((((1.061405429*u - 1.453152027)*u + 1.421413741)*u - 0.284496736)*u + 0.254829592)*u*Math.exp(-x*x);
    return x < 0 ? -y : y;
  }

  function apply({shop, linear, t}, name, x, M) {  // a linear layer on tokens (M, in)
    const {place, outs, ins} = linear[name + '.weight'];
    return shop.times(x, M, ins, place, outs, t[name + '.bias']);
  }

  function normalised({t}, name, x, D) {  // LayerNorm, eps 1e-6
    const w = t[name + '.weight'], b = t[name + '.bias'], y = new Float32Array(x.length);
    for (let i = 0; i < x.length; i += D) {
      let mean = 0, variance = 0;
      for (let d = 0; d < D; d++) mean += x[i + d]/D;
      for (let d = 0; d < D; d++) variance += (x[i + d] - mean)**2/D;
      const scale = 1/Math.sqrt(variance + 1e-6);
      for (let d = 0; d < D; d++) y[i + d] = (x[i + d] - mean)*scale*w[d] + b[d];
    }
    return y;
  }

  function softmax(s, N) {  // of each row of N numbers, in place
    for (let i = 0; i < s.length; i += N) {
      let most = -Infinity, sum = 0;
      for (let n = 0; n < N; n++) most = Math.max(most, s[i + n]);
      for (let n = 0; n < N; n++) sum += s[i + n] = Math.exp(s[i + n] - most);
      for (let n = 0; n < N; n++) s[i + n] /= sum;
    }
    return s;
  }

  function attend(model, name, x, N, D, heads) {  // every token reads from all: new tokens, and who read from whom, (N, N)
    const qkv = apply(model, name + '.qkv', x, N), d = D/heads, out = new Float32Array(N*D), map = new Float32Array(N*N), q = new Float32Array(N*d);
    for (let h = 0; h < heads; h++) {
      const at = (part, n, i) => qkv[n*3*D + part*D + h*d + i];
      for (let n = 0; n < N; n++) for (let i = 0; i < d; i++) q[n*d + i] = at(0, n, i)/Math.sqrt(d);
      const weights = softmax(model.shop.times(q, N, d, model.shop.lay(d, N, (i, n) => at(1, n, i)), N), N);
      const y = model.shop.times(weights, N, N, model.shop.lay(N, d, (n, i) => at(2, n, i)), d);
      for (let n = 0; n < N; n++) for (let i = 0; i < d; i++) out[n*D + h*d + i] = y[n*d + i];
      for (let i = 0; i < N*N; i++) map[i] += weights[i]/heads;
    }
    return [apply(model, name + '.proj', out, N), map];
  }

  function blocks(model, name, count, x, N, D, heads) {  // changes x; returns each block's attention, its heads averaged
    const maps = [], add = y => { for (let i = 0; i < x.length; i++) x[i] += y[i]; };
    for (let b = 0; b < count; b++) {
      const at = `${name}.${b}`, [read, map] = attend(model, at + '.attn', normalised(model, at + '.norm1', x, D), N, D, heads);
      add(read);
      const hidden = apply(model, at + '.mlp.fc1', normalised(model, at + '.norm2', x, D), N).map(v => v*(1 + erf(v*Math.SQRT1_2))/2);
      add(apply(model, at + '.mlp.fc2', hidden, N));
      maps.push(map);
    }
    return maps;
  }

  // --- images and patches ---
  function eachPixel({grid: [h, w], patch: p, channels: C}, visit) {  // (place in an image (C, H, W), place in patches (L, p*p*C), channel)
    for (let c = 0; c < C; c++) for (let y = 0; y < h*p; y++) for (let x = 0; x < w*p; x++) {
      const patch = Math.floor(y/p)*w + Math.floor(x/p), inside = (y % p*p + x % p)*C + c;
      visit((c*h*p + y)*w*p + x, patch*p*p*C + inside, c);
    }
  }

  function statistics(patches, d) {  // mean and standard deviation of each patch, as in mae_nb.model.targets
    const n = patches.length/d, mean = new Float32Array(n), std = new Float32Array(n);
    for (let l = 0; l < n; l++) {
      for (let i = 0; i < d; i++) mean[l] += patches[l*d + i]/d;
      for (let i = 0; i < d; i++) std[l] += (patches[l*d + i] - mean[l])**2/(d - 1);
      std[l] = Math.sqrt(std[l] + 1e-6);
    }
    return [mean, std];
  }

  function guessed(values, mask, [, w]) {  // statistics of masked patches from visible ones nearby, by a bell of radius 1
    const near = (a, b) => Math.exp(-((Math.floor(a/w) - Math.floor(b/w))**2 + (a % w - b % w)**2)/2);
    return values.map((own, l) => {
      let sum = 0, weight = 0;
      if (mask[l]) values.forEach((v, k) => { if (!mask[k]) { sum += near(l, k)*v; weight += near(l, k); } });
      return weight ? sum/weight : own;
    });
  }

  // image: numbers in [0, 1], (C, H, W); mask: 1 = masked, one a patch; honest: take no statistics from masked patches
  function reconstruct(model, image, mask, honest = false) {
    const {c, t} = model, [h, w] = c.grid, L = h*w, d = c.patch**2*c.channels, D = c.width, E = c.decoder_width;
    const patches = new Float32Array(L*d), keep = [];
    eachPixel(c, (at, to, ch) => { patches[to] = (image[at] - c.mean[ch])/c.std[ch]; });
    for (let l = 0; l < L; l++) if (!mask[l]) keep.push(l);

    const K = keep.length, visible = new Float32Array(K*d), x = new Float32Array((1 + K)*D);  // the encoder: CLS and the visible patches
    keep.forEach((l, k) => visible.set(patches.subarray(l*d, l*d + d), k*d));
    const embedded = K ? apply(model, 'patch_embed', visible, K) : [];
    for (let i = 0; i < D; i++) x[i] = t.cls_token[i] + t.pos_embed[i];
    keep.forEach((l, k) => { for (let i = 0; i < D; i++) x[(1 + k)*D + i] = embedded[k*D + i] + t.pos_embed[(1 + l)*D + i]; });
    const encoder = blocks(model, 'blocks', c.depth, x, 1 + K, D, c.heads);

    const y = apply(model, 'decoder_embed', normalised(model, 'norm', x, D), 1 + K), z = new Float32Array((1 + L)*E);  // the decoder: all
    for (let l = 0; l < L; l++) z.set(t.mask_token, (1 + l)*E);
    z.set(y.subarray(0, E));
    keep.forEach((l, k) => z.set(y.subarray((1 + k)*E, (2 + k)*E), (1 + l)*E));
    for (let i = 0; i < z.length; i++) z[i] += t.decoder_pos_embed[i];
    const decoder = blocks(model, 'decoder_blocks', c.decoder_depth, z, 1 + L, E, c.decoder_heads);
    const pred = apply(model, 'decoder_pred', normalised(model, 'decoder_norm', z, E), 1 + L).subarray(d);  // without CLS's

    const [mean, std] = statistics(patches, d), scale = c.norm_pix_loss, painted = new Float32Array(image.length), losses = new Float32Array(L);
    const [m, s] = honest ? [mean, std].map(v => guessed(v, mask, c.grid)) : [mean, std];
    let error = 0;
    eachPixel(c, (at, from, ch) => {
      const l = Math.floor(from/d), target = scale ? (patches[from] - mean[l])/std[l] : patches[from];
      losses[l] += (pred[from] - target)**2/d;
      painted[at] = (scale ? pred[from]*s[l] + m[l] : pred[from])*c.std[ch] + c.mean[ch];
      if (mask[l]) error += (Math.min(1, Math.max(0, painted[at])) - image[at])**2/(L - K)/d;
    });
    const loss = losses.reduce((sum, v, l) => sum + mask[l]*v, 0)/(L - K);  // NaN where nothing is masked
    return {painted, pred, losses, loss, error: K < L ? Math.sqrt(error) : NaN, keep, encoder, decoder};
  }

  function attention({keep, encoder, decoder}, block, patch, L) {  // where a patch looks in a block; null where it isn't there
    const inside = block < encoder.length, map = inside ? encoder[block] : decoder[block - encoder.length];
    const N = Math.sqrt(map.length), row = inside ? 1 + keep.indexOf(patch) : 1 + patch, out = new Float32Array(L);
    if (!row) return null;
    if (inside) keep.forEach((l, k) => { out[l] = map[row*N + 1 + k]; });
    else out.set(map.subarray(row*N + 1, row*N + 1 + L));
    return out;
  }

  return {load, reconstruct, attention, eachPixel, decode, plainProduct};
})();
