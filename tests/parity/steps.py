"""DDIM, the LPO loss and what else LPO's checks share, in torch."""
import torch


def alphas(m, dtype):
    """Cumulative alphas of a model's scheduler, by diffusers."""
    from diffusers import DDIMScheduler
    return DDIMScheduler.from_pretrained(
        f"{m.folder}/scheduler").alphas_cumprod.to(dtype)


class Ddim:
    """One transition of `steps` with eta, prev clamped to 0; t: [n]"""

    def __init__(self, m, dtype, t, steps, eta):
        table = alphas(m, dtype)
        shape = (-1, 1, 1, 1)
        self.a = table[t].reshape(shape)
        self.p = table[(t - 1000 // steps).clamp(min=0)].reshape(shape)
        self.sigma = eta * ((1 - self.p) / (1 - self.a)
                            * (1 - self.a / self.p)).sqrt()
        self.v = m.schedule.get("prediction_type") == "v_prediction"

    def mean(self, x, out):
        """mu of a latent and the network's output"""
        a, b = self.a.sqrt(), (1 - self.a).sqrt()
        if self.v:
            x0, eps = a * x - b * out, a * out + b * x
        else:
            x0, eps = (x - b * out) / a, out
        return self.p.sqrt() * x0 + \
            (1 - self.p - self.sigma ** 2).sqrt() * eps

    def logp(self, x, mu):
        """A mean over elements, as the official code has it."""
        each = -(x - mu) ** 2 / (2 * self.sigma ** 2) - self.sigma.log()
        return each.mean((1, 2, 3))


def lpo_loss(ddim, out, ref, x_t, win, lose, beta, clip):
    """loss per pair, ratios before and after the clamp"""
    mine, theirs = ddim.mean(x_t, out), ddim.mean(x_t, ref)
    raw = [(ddim.logp(x, mine) - ddim.logp(x, theirs)).exp()
           for x in (win, lose)]
    r = [x.clamp(1 - clip, 1 + clip) for x in raw]
    h = beta * (r[0].log() - r[1].log())
    return torch.nn.functional.softplus(-h), raw, r


def guided(unet, x, t, cond, uncond, g, weights=None):
    """u + g (c - u); cond, uncond: (context, embeds, time ids)"""
    both = [None if c is None else torch.cat([c, u.expand_as(c)])
            for c, u in zip(cond, uncond)]
    added = None if both[1] is None else dict(text_embeds=both[1],
                                              time_ids=both[2])
    args = (torch.cat([x, x]), torch.cat([t, t]), both[0])
    kw = dict(added_cond_kwargs=added)
    out = unet(*args, **kw).sample if weights is None else \
        torch.func.functional_call(unet, weights, args, kw).sample
    c, u = out.chunk(2)
    return u + g * (c - u)


ENDS = ("to_q", "to_k", "to_v", "to_out.0")


def layers(unet):
    """Attention's layers in the order of the forward pass."""
    names = [n for n, _ in unet.named_modules() if n.endswith(ENDS)]
    part = ["down_blocks", "mid_block", "up_blocks"]
    return sorted(names, key=lambda n: part.index(n.split(".")[0]))


def with_lora(unet, lora):
    """Weights with up @ down added; lora: {layer: (down, up)}"""
    return {k: v + lora[k[:-7]][1] @ lora[k[:-7]][0]
            if k.endswith(".weight") and k[:-7] in lora else v
            for k, v in unet.named_parameters()}


def lora_file(lora):
    """diffusers' keys"""
    return {f"unet.{k}.lora.{w}.weight": p for k, ab in lora.items()
            for w, p in zip(("down", "up"), ab)}
