# %% [markdown]
# # One prompt, by hand
#
# A prompt becomes ids, ids become a context, the context becomes keys and values, and a UNet that looks at them
# pulls a picture out of noise. Every tensor of that path is printed here with its shape.
#
# Run it as a script (`python docs/walkthrough.py`) or open it as a notebook (`jupytext --to ipynb`). It takes a
# few seconds on two CPU cores and downloads nothing.
#
# b batch, c channels, h w latent height and width, n = h*w tokens, l text tokens, e text width, m heads, d head width.

# %%
import minisd
from minisd.diffusion.denoise import denoiser
from minisd.diffusion.guidance import guided
from minisd.diffusion.samplers import euler_a, final
from minisd.diffusion.schedule import make_plan
from minisd.image import grid, to_pil
from minisd.nn.attention import explicit, weights
from minisd.noise import ImageNoise

PROMPT = "a large red circle to the left of a small blue square on a white background"
model = minisd.load()
print(model.config.name, "on", model.runtime.reason)


def show(name, x, meaning):
    print(f"{name:<24}{list(x.shape)!s:<22}{meaning}")


# %% [markdown]
# ## 1. Words to ids
# The tokenizer knows pieces of words. BOS comes first, EOS and padding fill up to the fixed length.

# %%
tokenizer, tower = model.tokenizers[0], model.text[0]
ids = tokenizer([PROMPT]).to(model.runtime.device)
show("ids", ids, "(b, l)")
pieces = tokenizer.pieces(ids[0].tolist())
print(" ".join(piece.replace("</w>", "") for piece in pieces[:18]), "...")

# %% [markdown]
# ## 2. Ids to a context
# A causal transformer reads from left to right: the vector of each token knows the tokens before it. Clip skip s
# stops s - 1 blocks early. The empty prompt is encoded too: guidance will lead away from it.

# %%
context, _ = tower(ids, clip_skip=1)
show("context", context, "(b, l, e): one vector a token")
cond, uncond = model.encode([PROMPT]), model.encode([""])
assert cond.context.equal(context)

# %% [markdown]
# ## 3. Context to keys and values
# Cross-attention: the query comes from the picture, key and value from the text. The text does not change over the
# steps, so `prepare` computes all keys and values once.

# %%
prepared = model.unet.prepare(cond)
keys, values = prepared.kv[0]
show("keys", keys, "(b, m, l, d) of the first cross-attention")
show("values", values, "(b, m, l, d)")
print(len(prepared.kv), "cross-attentions in this UNet")

# %% [markdown]
# ## 4. Noise, and the levels to visit
# x = x0 + sigma * noise. The plan lists the sigmas from almost pure noise down to none.

# %%
factor, defaults = model.config.vae.factor, model.config.defaults
shape = (model.config.unet.in_channels, defaults.height // factor, defaults.width // factor)
draw = ImageNoise(seeds=[0], shape=shape, device=model.runtime.device)
noise = draw()
plan = make_plan(model.table, defaults.steps, "euler_a", defaults.schedule, defaults.steps_offset)
x = noise * plan.start
show("x", x, f"(b, c, h, w) at sigma {plan.sigmas[0]:.3g}")
show("sigmas", plan.sigmas, "(steps + 1,), the last is 0: " + " ".join(f"{s:.3g}" for s in plan.sigmas[1:6]) + " ...")

# %% [markdown]
# ## 5. One look through the UNet, with its attention
# The attention core is an attribute of each layer. Swapped for one that keeps what it sees, it shows which words the
# pixels look at. The fused core gives the same numbers without ever holding the table.

# %%
layer = [t for t in model.unet.transformers() if t.blocks][-1].blocks[0].cross_attention
seen = []


def watching(q, k, v, causal=False):
    seen.append(weights(q, k))
    return explicit(q, k, v, causal)


fused, layer.core = layer.core, watching
late = plan.sigmas[len(plan.t) // 2]  # half way down there is something to look at
denoise = denoiser(guided(model.unet, cond), plan, model.config.noise.prediction)
for step in minisd.sample(model, PROMPT, seed=0, cfg_scale=1.0):
    attention = seen[-1]
    if step.sigma <= late:
        break
layer.core = fused
show("attention", attention, "(b, m, n, l): rows of a softmax, they sum to 1")
by_word = attention.mean(dim=(0, 1, 2))
for position in by_word.argsort(descending=True)[:6].tolist():
    print(f"  {by_word[position]:.3f}  {pieces[position]}")

# %% [markdown]
# ## 6. Step by step to a latent
# `denoise(x, sigma)` is the model's whole opinion of what the clean latent is. Guidance asks with and without the
# prompt and goes further in the direction of the difference. The sampler only decides how far to move; this one
# ("Euler a") adds fresh noise of the same seed at every step, which lets it mend what went wrong before.

# %%
predict = guided(model.unet, cond, uncond, scale=defaults.cfg_scale)
denoise = denoiser(predict, plan, model.config.noise.prediction)
estimates = []
for step in euler_a(denoise, x, plan, noise=draw):
    x = step.x
    estimates.append(step.denoised)
    if step.i % 5 == 0:
        show(f"step {step.i} denoised", step.denoised, f"estimate of x0 at sigma {step.sigma:.3g}")
latent = final(x, plan)
show("latent", latent, "(b, c, h, w)")

# %% [markdown]
# ## 7. Latent to picture
# The VAE decoder turns each latent into a square of pixels. Decoding the estimates along the way shows what the model
# believed at each step: first a colour, then a place, then a shape.

# %%
pixels = model.vae.decode(latent)
show("pixels", pixels, "(b, 3, H, W) in [-1, 1]")
picture = to_pil(pixels)[0]
strip = grid([to_pil(model.vae.decode(estimate))[0] for estimate in estimates], columns=len(estimates))

# %% [markdown]
# `minisd.generate` is these steps and nothing else: the same seed gives the same picture.

# %%
(same,) = minisd.generate(model, PROMPT, seed=0)
assert same.tobytes() == picture.tobytes()

# %%
if __name__ == "__main__":
    strip.save("walkthrough.png")
    print("what the model believed, step by step: walkthrough.png")
