"""
From a JPEG file to labels, by way of its coefficients
======================================================

A JPEG file stores quantized DCT coefficients of 8x8 blocks. :func:`cdzoo.codecs.read_jpeg` undoes the entropy coding
and stops there; a network takes them as they are.
"""

import matplotlib.pyplot as plt
import torch

from cdzoo.codecs import decode_jpeg, read_jpeg
from cdzoo.data import downscale, horizontal_flip
from cdzoo.demo import PHOTO
from cdzoo.models import JPEGEfficientNetLite0_Weights, jpeg_efficientnet_lite0

# %%
# One plane of coefficients for each component. This file stores chroma at full size; most files, 4:2:0, have a quarter
# of the blocks there.
coefficients = read_jpeg(PHOTO)
print(coefficients.color_space, coefficients.image_size, coefficients.sampling)
for name, plane in zip(["Y", "Cb", "Cr"], coefficients.planes, strict=True):
    print(f"{name:2}  {tuple(plane.shape)}  {plane.dtype}, {(plane == 0).float().mean():.0%} zeros")

# %%
# The DC coefficients alone are the picture at an eighth of its size. Each other frequency is a picture of its own:
# where horizontal or vertical detail of that frequency is.
luma = coefficients.planes[0][0].float() * coefficients.qtables[0, 0]
frequencies = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 3), (3, 0)]
figure, panels = plt.subplots(2, 3, figsize=(9, 4.4), layout="constrained")
for panel, (down, across) in zip(panels.flat, frequencies, strict=True):
    values = luma[..., down, across]
    limit = None if (down, across) == (0, 0) else values.abs().quantile(0.98).item()
    panel.imshow(values, cmap="gray", vmin=None if limit is None else -limit, vmax=limit)
    panel.set_title(f"coefficient ({down}, {across})", fontsize=9)
    panel.set_axis_off()

# %%
# Few coefficients hold most of a photograph: mean magnitude of each, over all blocks of luma.
figure, axes = plt.subplots(figsize=(4.2, 3.2), layout="constrained")
image = axes.imshow(luma.abs().mean((0, 1)).clamp_min(0.1).log10(), cmap="viridis")
axes.set(xlabel="horizontal frequency", ylabel="vertical frequency")
figure.colorbar(image, ax=axes, label="log10 of mean magnitude")

# %%
# Transforms act on coefficients and are exact: a mirrored picture, and one of half the size, without decoding.
trimmed = horizontal_flip(coefficients, trim=True)
half = downscale(coefficients, 2)
figure, panels = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained")
titles = ("as stored", "horizontal_flip(c, trim=True)", "downscale(c, 2)")
for panel, c, title in zip(panels, (coefficients, trimmed, half), titles, strict=True):
    panel.imshow(decode_jpeg(c)[0].permute(1, 2, 0))
    panel.set_title(f"{title}: {c.image_size[0]}x{c.image_size[1]}", fontsize=8)
    panel.tick_params(labelsize=6)

# %%
# The packaged network knows the 1,000 classes of ImageNet. Its transform resizes and crops the coefficients to 224x224.
weights = JPEGEfficientNetLite0_Weights.DEFAULT
model = jpeg_efficientnet_lite0(weights=weights).eval()
with torch.no_grad():
    probabilities = model(model.transforms(coefficients))[0].softmax(0)
for probability, label in zip(*probabilities.topk(3), strict=True):
    print(f"{probability:6.1%}  {weights.meta['classes'][label]}")
