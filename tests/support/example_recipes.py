"""Two recipes that use every kind of section: pretrained parts, and parts from scratch."""

PRETRAINED = """\
# What: both stages of a 7B model.
format: 1
seed: 42
model:
  vision:    {from: weights/vit, feature_layer: -2}
  connector: {kind: mlp2x_gelu}
  text:      {from: weights/vicuna, context: 2048}
  tokenizer: {from: weights/vicuna, kind: sentencepiece}
  chat:      {template: vicuna_v1, image_fit: pad}
numerics: {compute: bfloat16, frozen: bfloat16}
plugins:
  directed_token: {place: end}
  image_order:    {grid: 24, permutations: 10000}
  text_order:     {}
  guided_loss:    {alpha: mass, mean: token, query: response, layers: all}
data:
  captions: {kind: llava, records: captions.json, images: x, template: plain, image_fit: crop}
  mix665k:  {kind: llava, records: mix.json, images: ., template: vicuna_v1, image_fit: pad}
  heldout:  {kind: llava, records: heldout.json, images: ., template: vicuna_v1, image_fit: pad}
stages:
  pretrain:
    data:   {captions: 1.0}
    batch:  {samples: 256, too_long: truncate, tail: keep}
    length: {epochs: 1}
    train:  {connector: {}, plugins: {}}
    optim:  {kind: adamw, lr: 1.0e-3, weight_decay: 0.0, clip: none, schedule: cosine, warmup: 0.03}
    losses: {next_token: 1.0, image_order: 1.0, text_order: 1.0, guided_loss: 1.0}
  finetune:
    data:   {mix665k: 1.0}
    batch:  {samples: 128, too_long: truncate, tail: keep}
    length: {epochs: 1}
    train:  {connector: {}, plugins: {}, text: {}}
    optim:  {kind: adamw, lr: 2e-5, weight_decay: 0.0, clip: none, schedule: cosine, warmup: 0.03}
    losses: {next_token: 1.0, image_order: 1.0, guided_loss: 1.0}
    validate: {every: 500, data: heldout, samples: 1000, tasks: [pope], best: pope/f1}
evaluate: {tasks: {pope: {data: heldout}}, controls: [blank, swapped]}
output:   {save_every: 500, keep: 2, log_every: 1, images_every: 250}
speed:    {tokens: 16384, share_prefix: true, attention: auto, recompute: all, compile: false,
           workers: 4}
parallel: {shard: 8, replicate: 1}
"""

# every key of the schema that a recipe from scratch can hold, so that tests can break each
SCRATCH = """\
format: 1
seed: 7
model:
  vision:
    width: 64
    depth: 4
    heads: 4
    patch: 8
    image_size: 64
    mlp: 128
    class_token: false
    pre_norm: false
    activation: gelu_tanh
    norm_eps: 1e-6
    feature_layer: -1
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
  connector: {kind: linear}
  text: {width: 64, depth: 4, heads: 4, kv_heads: 2, mlp: 128, context: 256, head_size: 16,
         rope_theta: 10000, norm_eps: 1e-5, qkv_bias: true, qk_norm: true, tied: true}
  tokenizer: {from: scenes/tokenizer, kind: sentencepiece}
  chat: {template: vicuna_v1, image_fit: crop, after_eos: hf437}
numerics: {compute: float32, frozen: float32}
plugins:
  order: {use: image_order, grid: 4, layers: [0, -1], teacher: null}
data:
  scenes: {kind: llava, records: train.json, images: images, template: plain, image_fit: crop}
  heldout: {kind: llava, records: test.json, images: images, template: plain, image_fit: crop}
stages:
  only:
    data: {scenes: 1}
    batch: {samples: 16, too_long: error, tail: drop}
    length: {steps: 200}
    train:
      vision: {lr: 1e-4}
      connector: {lr: 1e-3}
      text: {lr: 2e-4, lora: {r: 8, alpha: 16, dropout: 0.05, targets: [q, out]}}
      plugins: {lr: 1e-3}
    optim: {kind: adamw, lr: 1e-3, weight_decay: 0.1, betas: [0.9, 0.95], eps: 1e-8, clip: 1.0,
            schedule: constant, warmup: 10}
    losses:
      next_token: {weight: 1, watch: true}
      order: {from: 0, to: 1.5, over: 0.5, watch: true}
    validate: {every: 50, data: heldout, samples: all, tasks: [words], best: words/accuracy}
    start: runs/before/model/pretrain
evaluate:
  tasks:
    words: {kind: questions, data: heldout, samples: 100, max_new_tokens: 16}
    pope: {kind: pope, data: heldout}
  controls: [blank]
output: {save_every: 0, keep: 3, async_save: false, log_every: 1, images_every: 0, observers: [watch.py]}
speed: {tokens: 2048, share_prefix: false, attention: eager, attention_mb: 64, recompute: none, compile: false, deterministic: true,
        workers: 0, threads: 2, image_cache_mb: 64}
parallel: {shard: 1, replicate: 2, exchange: step}
"""
