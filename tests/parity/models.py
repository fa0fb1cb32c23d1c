"""Random models of the family, as whole diffusers folders.

    for m in models.all(): m.folder, m.unet(torch.float64), ...

Shapes differ on purpose: levels, layers and heads as numbers and as lists,
transformer depths, linear and convolutional projections, groups, odd and
oblong latents, SD1.5's, SD2.1's and SDXL's ways.  Every weight is random,
norms and biases too, so that nothing is hidden by a zero or a one.
"""
import json
import math
import os
import shutil

import torch
from safetensors.torch import save_file

import parity

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

C, D, U, X = ("CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D",
              "CrossAttnUpBlock2D")
TOKENS = 16             # of a prompt, as the demo's tokenizer has it
VOCABULARY, BOS, EOS = 593, 591, 592


def unet(channels, down, up, cross, **more):
    return dict(in_channels=4, out_channels=4, block_out_channels=channels,
                down_block_types=down, up_block_types=up,
                cross_attention_dim=cross, norm_num_groups=8,
                layers_per_block=2, attention_head_dim=4) | more


def xl(pooled, size):
    """What SDXL adds: pooled text and sizes, `size` wide each."""
    return dict(use_linear_projection=True, addition_embed_type="text_time",
                addition_time_embed_dim=size,
                projection_class_embeddings_input_dim=pooled + 6 * size)


def text(hidden, layers, heads, act, projection=None):
    return dict(hidden_size=hidden, num_hidden_layers=layers,
                num_attention_heads=heads, hidden_act=act,
                intermediate_size=3 * hidden, vocab_size=VOCABULARY,
                projection_dim=projection or hidden,
                max_position_embeddings=TOKENS, bos_token_id=BOS,
                eos_token_id=EOS, pad_token_id=EOS)


def vae(channels, layers=1, groups=4, **more):
    n = len(channels)
    return dict(block_out_channels=channels, layers_per_block=layers,
                down_block_types=["DownEncoderBlock2D"] * n,
                up_block_types=["UpDecoderBlock2D"] * n, latent_channels=4,
                norm_num_groups=groups, scaling_factor=0.5) | more


# name: latent's height and width, UNet, text encoder(s), VAE, scheduler
ZOO = {
    "sd-four-levels": ((11, 8), unet(
        [16, 32, 48, 48], [C, C, C, D], [U, X, X, X], 24),
        [text(24, 3, 4, "quick_gelu")], vae([8, 16, 16, 24], 2), {}),
    "sd-one-level": ((5, 9), unet(
        [24], [C], [X], 20, layers_per_block=1, attention_head_dim=3),
        [text(20, 2, 2, "gelu")], vae([8]), {}),
    "sd21-lists": ((9, 7), unet(
        [16, 24, 40], [C, C, D], [U, X, X], 40, layers_per_block=[1, 2, 3],
        attention_head_dim=[2, 3, 5], use_linear_projection=True),
        [text(40, 4, 5, "gelu")], vae([8, 12], groups=2), {}),
    "sd-deep": ((7, 7), unet(
        [16, 24, 32], [C, C, C], [X, X, X], 28, norm_num_groups=4,
        transformer_layers_per_block=[1, 2, 3], layers_per_block=1),
        [text(28, 2, 7, "quick_gelu")], vae([8, 16], 3, 8),
        dict(prediction_type="v_prediction")),
    "sd-wide": ((6, 10), unet(
        [64, 128], [C, D], [U, X], 72, norm_num_groups=32,
        attention_head_dim=[2, 16], layers_per_block=1),
        [text(72, 2, 6, "quick_gelu")], vae([32, 64], groups=32), {}),
    "sd-embedding": ((8, 3), unet(
        [16, 32], [D, C], [X, U], 24, freq_shift=1, flip_sin_to_cos=False,
        norm_eps=1e-6, attention_head_dim=1),
        [text(24, 1, 3, "gelu")], vae([8, 16, 16], scaling_factor=0.18215),
        dict(beta_schedule="linear")),
    "xl": ((10, 6), unet(
        [16, 24, 32], [D, C, C], [X, X, U], 60,
        transformer_layers_per_block=[1, 2, 4], attention_head_dim=[2, 3, 4],
        **xl(20, 8)),
        [text(24, 3, 4, "quick_gelu"), text(36, 2, 6, "gelu", 20)],
        vae([8, 16, 16, 16]), {}),
    "xl-two-levels": ((5, 5), unet(
        [24, 48], [D, C], [X, U], 48, layers_per_block=[2, 1],
        transformer_layers_per_block=[1, 3], attention_head_dim=6,
        norm_num_groups=12, **xl(28, 6)),
        [text(16, 2, 2, "quick_gelu"), text(32, 3, 4, "gelu", 28)],
        vae([16, 16]), {}),
    "xl-all-cross": ((7, 12), unet(
        [32, 32, 48], [C, C, C], [X, X, X], 44, layers_per_block=1,
        attention_head_dim=[8, 4, 2], norm_num_groups=16, **xl(24, 10)),
        [text(24, 2, 3, "gelu"), text(20, 2, 5, "quick_gelu", 24)],
        vae([8, 8, 16], scaling_factor=0.13025), {}),
}


def randomise(model, seed):
    """Matrices that keep variance, norms around one, biases around zero."""
    gen = torch.Generator().manual_seed(seed)
    for key, p in sorted(model.named_parameters()):
        if p.dim() >= 2 and "embedding.weight" not in key:
            scale, shift = p[0].numel() ** -0.5, 0
        elif p.dim() >= 2:
            scale, shift = 0.5, 0
        else:
            scale, shift = 0.2, key.endswith("weight")
        p.data = scale * torch.randn(p.shape, generator=gen) + shift
    return model.eval()


def save_text(model, where):
    """As transformers 4 names the weights: with text_model. before them."""
    os.makedirs(where)
    config = {k: v for k, v in model.config.to_dict().items()
              if v is not None and k not in ("transformers_version", "dtype")}
    config["architectures"] = [type(model).__name__]
    with open(f"{where}/config.json", "w", encoding="utf8") as f:
        json.dump(config, f, indent=1)
    save_file({k if k.startswith("text_") else "text_model." + k:
               v.contiguous() for k, v in model.named_parameters()},
              f"{where}/model.safetensors")


class Model:
    """A folder and its parts as torch modules."""

    def __init__(self, name):
        self.name = name
        (self.h, self.w), self.config, self.texts, self.vae_config, \
            self.schedule = ZOO[name]
        self.xl = len(self.texts) == 2
        self.folder = parity.path(name)
        self.pooled = self.texts[1]["projection_dim"] if self.xl else 0
        self.factor = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        self.seed = sorted(ZOO).index(name)
        self.parts = {}
        if not os.path.exists(self.folder):
            self.save()

    def save(self):
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import (CLIPTextConfig, CLIPTextModel,
                                  CLIPTextModelWithProjection)
        os.makedirs(self.folder)
        randomise(UNet2DConditionModel(sample_size=self.h, **self.config),
                  10 * self.seed).save_pretrained(f"{self.folder}/unet")
        randomise(AutoencoderKL(**self.vae_config), 10 * self.seed + 1
                  ).save_pretrained(f"{self.folder}/vae")
        for i, config in enumerate(self.texts):
            tail = "_2" if i else ""
            cls = CLIPTextModelWithProjection if i else CLIPTextModel
            save_text(randomise(cls(CLIPTextConfig(**config)),
                                10 * self.seed + 2 + i),
                      f"{self.folder}/text_encoder{tail}")
            self.save_tokenizer(f"{self.folder}/tokenizer{tail}", i)
        os.makedirs(f"{self.folder}/scheduler")
        self.write("scheduler/scheduler_config.json", dict(
            _class_name="DDIMScheduler", beta_start=0.00085, beta_end=0.012,
            beta_schedule="scaled_linear", num_train_timesteps=1000,
            clip_sample=False, set_alpha_to_one=False, steps_offset=1)
            | self.schedule)
        self.write("model_index.json", {
            "_class_name": "StableDiffusionXLPipeline" if self.xl else
            "StableDiffusionPipeline"})

    def save_tokenizer(self, where, second):
        """The demo's; a second one pads with "!", as SDXL's does."""
        shutil.copytree(f"{parity.ROOT}/demo/model/tokenizer", where)
        if second:
            for name in ("special_tokens_map", "tokenizer_config"):
                with open(f"{where}/{name}.json", encoding="utf8") as f:
                    config = json.load(f)
                config["pad_token"] = "!"
                with open(f"{where}/{name}.json", "w", encoding="utf8") as f:
                    json.dump(config, f)

    def write(self, name, value):
        with open(f"{self.folder}/{name}", "w", encoding="utf8") as f:
            json.dump(value, f, indent=1)

    def kept(self, part, dtype, make):
        """A module that is read once and handed out without gradients; who
        changes its weights works on a copy."""
        if (part, dtype) not in self.parts:
            self.parts[part, dtype] = make().to(dtype).eval()
        module = self.parts[part, dtype]
        module.zero_grad(set_to_none=True)
        return module.requires_grad_(True)

    def unet(self, dtype):
        from diffusers import UNet2DConditionModel
        return self.kept("unet", dtype, lambda: exact_time(
            UNet2DConditionModel.from_pretrained(f"{self.folder}/unet")
            .to(dtype)))

    def vae(self, dtype):
        from diffusers import AutoencoderKL
        return self.kept("vae", dtype, lambda: AutoencoderKL.from_pretrained(
            f"{self.folder}/vae"))

    def text(self, dtype, which=0):
        """Encoder `which`, made from the numbers that were saved."""
        from transformers import (CLIPTextConfig, CLIPTextModel,
                                  CLIPTextModelWithProjection)
        cls = CLIPTextModelWithProjection if which else CLIPTextModel
        return self.kept(f"text{which}", dtype, lambda: randomise(
            cls(CLIPTextConfig(**self.texts[which])),
            10 * self.seed + 2 + which))

    def ids(self, rows, seed=0, which=0):
        """Token ids as a tokenizer makes them: BOS, words, EOS, padding."""
        gen = torch.Generator().manual_seed(seed)
        pad = 0 if which else EOS
        ids = torch.full((rows, TOKENS), pad)
        for i in range(rows):
            n = int(torch.randint(0, TOKENS - 1, (1,), generator=gen))
            words = torch.randint(1, BOS, (n,), generator=gen)
            ids[i, 0], ids[i, 1:n + 1], ids[i, n + 1] = BOS, words, EOS
        return ids

    def empty(self, which=0):
        """The ids of ""."""
        ids = torch.full((1, TOKENS), 0 if which else EOS)
        ids[0, 0], ids[0, 1] = BOS, EOS
        return ids

    def conditioning(self, rows, gen):
        """Random inputs of the UNet besides the latent."""
        more = {}
        if self.xl:
            more["text_embeds"] = torch.randn(rows, self.pooled,
                                              generator=gen)
            more["time_ids"] = torch.randint(
                0, 1024, (rows, 6), generator=gen).float()
        return torch.randn(rows, TOKENS, self.config["cross_attention_dim"],
                           generator=gen), more


def sinusoid(t, dim, flip, shift):
    """diffusers' timestep embedding, in the precision of t."""
    half = dim // 2
    freq = torch.exp(-math.log(10000) * torch.arange(half, dtype=t.dtype)
                     / (half - shift))
    x = t[:, None] * freq[None]
    a, b = torch.sin(x), torch.cos(x)
    return torch.cat([b, a] if flip else [a, b], -1)


def exact_time(model):
    """diffusers makes sinusoids in f32 whatever the model: in an f64 model
    they are made in f64, or the truth would share f32's error."""
    if next(model.parameters()).dtype == torch.float64:
        exact_sinusoids(model)
    return model


def exact_sinusoids(model):
    def exact(m):
        m.forward = lambda t: sinusoid(t.double(), m.num_channels,
                                       m.flip_sin_to_cos,
                                       m.downscale_freq_shift)

    exact(model.time_proj)
    if hasattr(model, "add_time_proj"):
        exact(model.add_time_proj)


def all():
    """Every model of the zoo, made when asked for."""
    for name in ZOO:
        yield Model(name)
