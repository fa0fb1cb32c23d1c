"""UNet, text encoders and VAE of random models: values and gradients."""
import copy

import models
import parity
import torch
from safetensors.torch import save_file

ROWS = 2


def added(more, dtype):
    return {k: v.to(dtype) for k, v in more.items()} or None


def unet(m):
    """Forward, input gradient, gradient of every weight."""
    gen = torch.Generator().manual_seed(m.seed)
    x, d = torch.randn(2, ROWS, 4, m.h, m.w, generator=gen)
    t = torch.tensor([951, 3])
    context, more = m.conditioning(ROWS, gen)

    def run(dtype):
        net = m.unet(dtype)
        sample = x.to(dtype).clone().requires_grad_()
        out = net(sample, t, context.to(dtype),
                  added_cond_kwargs=added(more, dtype)).sample
        out.backward(d.to(dtype))
        return ({"out": out.detach()}, {"d_sample": sample.grad},
                {f"grad.{k}": p.grad for k, p in net.named_parameters()})

    got = parity.probe("unet", dict(
        sample=x, timestep=t, d_out=d, encoder_hidden_states=context, **more),
        "--grad", "--full", model=m.folder)
    truth, own = parity.both(run)
    for i, what in enumerate(("UNet forward", "UNet input gradient",
                              "UNet weight gradients")):
        parity.check(what, m.name, got, truth[i], own[i])


def bf16(m):
    """The same in bf16, against torch's own bf16."""
    gen = torch.Generator().manual_seed(400 + m.seed)
    x, d = torch.randn(2, ROWS, 4, m.h, m.w, generator=gen)
    t = torch.tensor([951, 3])
    context, more = m.conditioning(ROWS, gen)
    ids = m.ids(ROWS, m.seed)

    def run(dtype):
        net = m.unet(dtype)
        sample = x.to(dtype).clone().requires_grad_()
        out = net(sample, t, context.to(dtype),
                  added_cond_kwargs=added(more, dtype)).sample
        out.backward(d.to(dtype))
        with torch.no_grad():
            hidden = m.text(dtype)(ids).last_hidden_state
            image = m.vae(dtype).decode(x.to(dtype)).sample
        return dict(out=out.detach(), d_sample=sample.grad,
                    last_hidden_state=hidden, image=image,
                    weights=flat({f"grad.{k}": p.grad for k, p in
                                  net.named_parameters()}))

    def flat(grads):        # as one: a single tensor's error in bf16 is luck
        return torch.cat([grads[k].flatten().double()
                          for k in sorted(grads) if k.startswith("grad.")])

    truth, own = run(torch.float64), run(torch.bfloat16)

    def probe(*args):
        return parity.probe(*args, model=m.folder, precision="bf16")

    got = probe("unet", dict(sample=x, timestep=t, d_out=d,
                             encoder_hidden_states=context, **more),
                "--grad", "--full")
    got["weights"] = flat(got)
    got |= probe("text", dict(input_ids=ids))
    got |= probe("vae-decode", dict(latent=x))
    for key, what in dict(
            out="UNet forward", d_sample="UNet input gradient",
            weights="UNet weight gradients", last_hidden_state="text encoder",
            image="VAE decode").items():
        parity.check(f"bf16: {what}", m.name, got[key], truth[key], own[key])


ENDS = (".to_q", ".to_k", ".to_v", ".to_out.0")
MORE = (".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out", ".conv1",
        ".conv2", ".conv_shortcut", "samplers.0.conv")


def lora(m, everything):
    """Gradients of a LoRA, under PEFT's keys and under kohya's."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    rank, alpha = (3, 6) if everything else (4, 4)
    gen = torch.Generator().manual_seed(100 + m.seed)
    x, d = torch.randn(2, ROWS, 4, m.h, m.w, generator=gen)
    t = torch.tensor([501, 51])
    context, more = m.conditioning(ROWS, gen)

    def run(dtype):
        net = copy.deepcopy(m.unet(torch.float32))
        names = [n for n, _ in net.named_modules()
                 if n.endswith(ENDS + (MORE if everything else ()))]
        net.requires_grad_(False)
        net.add_adapter(LoraConfig(r=rank, lora_alpha=alpha,
                                   target_modules=names))
        own = torch.Generator().manual_seed(200 + m.seed)
        for k, p in sorted(net.named_parameters()):
            if "lora_" in k:        # small, as an update is: large random
                # ones make a network whose rounding errors all but explode
                p.data = torch.randn(p.shape, generator=own) / \
                    p[0].numel() ** 0.5 * (0.1 if "lora_B" in k else 1)
        net = models.exact_time(net.to(dtype).eval())
        state = {k.replace(".default", ""): v.detach().float() for k, v in
                 get_peft_model_state_dict(net).items()}
        out = net(x.to(dtype), t, context.to(dtype),
                  added_cond_kwargs=added(more, dtype)).sample
        out.backward(d.to(dtype))
        return state, {k.replace(".default", ""): p.grad for k, p in
                       net.named_parameters() if "lora_" in k}, out.detach()

    (state, truth, out), (_, own, own_out) = parity.both(run)
    inputs = dict(sample=x, timestep=t, d_out=d,
                  encoder_hidden_states=context, **more)
    kind = "LoRA on all layers" if everything else "LoRA on attention"
    files = {"PEFT": (state, lambda k: k)}
    kohya = convert_state_dict_to_kohya(
        {f"base_model.model.{k}": v for k, v in state.items()})
    if everything:                      # PEFT's file does not hold alpha
        files = {}
    kohya = {k.replace("base_model_model_", "lora_unet_"): v
             for k, v in kohya.items()}
    for k in [k for k in kohya if k.endswith(".alpha")]:
        kohya[k] = torch.tensor(float(alpha))

    def kohya_key(k):
        name, _, which = k.rpartition(".lora_")
        return (f"lora_unet_{name.replace('.', '_')}.lora_"
                + ("down" if which.startswith("A") else "up") + ".weight")

    files["kohya"] = (kohya, kohya_key)
    for form, (tensors, key) in files.items():
        save_file({k: v.contiguous() for k, v in tensors.items()},
                  parity.path("lora"))
        got = parity.probe("unet", inputs, "--grad", "--lora",
                           parity.path("lora"), model=m.folder)
        parity.check(f"{kind}, forward", m.name, got["out"], out, own_out)
        parity.check(f"{kind}, gradients by {form} keys", m.name, got,
                     {f"grad.{key(k)}": v for k, v in truth.items()},
                     {f"grad.{key(k)}": v for k, v in own.items()})


@torch.no_grad()
def texts(m):
    for which in range(len(m.texts)):
        ids = m.ids(4, m.seed, which)

        def run(dtype):
            o = m.text(dtype, which)(ids, output_hidden_states=True)
            got = dict(last_hidden_state=o.last_hidden_state,
                       penultimate=o.hidden_states[-2])
            if which:
                return got | dict(projected=o.text_embeds)
            return got | dict(pooled=o.pooler_output)

        got = parity.probe("text_2" if which else "text",
                           dict(input_ids=ids), model=m.folder)
        truth, own = parity.both(run)
        for k in truth:
            parity.check(f"text encoder {which + 1}, {k}", m.name,
                         got[k], truth[k], own[k])


@torch.no_grad()
def vae(m):
    gen = torch.Generator().manual_seed(300 + m.seed)
    z = torch.randn(ROWS, 4, m.h, m.w, generator=gen)
    # a picture whose sides are no multiple of the factor
    image = torch.rand(ROWS, 3, m.h * m.factor + m.factor // 2,
                       m.w * m.factor, generator=gen) * 2 - 1

    def run(dtype):
        net = m.vae(dtype)
        return (net.encode(image.to(dtype)).latent_dist.parameters,
                net.decode(z.to(dtype)).sample)

    truth, own = parity.both(run)
    got = parity.probe("vae-encode", dict(image=image), model=m.folder)
    parity.check("VAE encode", m.name, got["moments"], truth[0], own[0])
    got = parity.probe("vae-decode", dict(latent=z), model=m.folder)
    parity.check("VAE decode", m.name, got["image"], truth[1], own[1])


def main():
    for m in models.all():
        unet(m)
        lora(m, False)
        lora(m, True)
        texts(m)
        vae(m)
        bf16(m)


parity.run(main)
