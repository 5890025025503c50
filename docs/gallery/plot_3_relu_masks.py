"""
ReLU without pixels: ASM and APX on a block
===========================================

A ReLU needs to know which pixels are negative, and DCT coefficients do not say. Ehrlich and Davis (section 4.2, figure
1) take the sign of each pixel from the lowest spatial frequencies only, and mask the exact block with it: *Approximated
Spatial Masking* (ASM). Its plain rival (APX) takes the values from the low frequencies, too.
"""

import matplotlib.pyplot as plt
import torch

from cdzoo.ops import apx_relu, asm_relu, dct2d, frequency_mask, idct2d

# %%
# A block of the kind that the paper draws: 4x4 values, enlarged to 8x8.
generator = torch.Generator().manual_seed(3)
pixels = (2 * torch.rand(4, 4, generator=generator) - 1).repeat_interleave(2, 0).repeat_interleave(2, 1)
block = dct2d(pixels)
exact = pixels.relu()

# %%
# With six of the fifteen spatial frequencies. ASM's mask is wrong for a few pixels, which it drops or lets through
# whole; APX is a blurred picture of the block.
frequencies = 6
low = idct2d(block * frequency_mask(frequencies))
asm, apx = (idct2d(relu(block, frequencies)) for relu in (asm_relu, apx_relu))

shown = {
    "block": pixels, "exact ReLU": exact, "low frequencies": low, "mask of ASM": (low > 0).float(),
    "ASM": asm, "its error": asm - exact, "APX": apx, "its error ": apx - exact,
}  # fmt: skip
figure, panels = plt.subplots(2, 4, figsize=(9, 4.6), layout="constrained")
for panel, (title, values) in zip(panels.flat, shown.items(), strict=True):
    image = panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    panel.set_title(title, fontsize=9)
    panel.set_axis_off()
figure.colorbar(image, ax=panels, shrink=0.7)

# %%
# Which coefficients that were: an anti-diagonal of the block is one spatial frequency.
figure, panels = plt.subplots(1, 5, figsize=(9, 2), layout="constrained")
for panel, count in zip(panels, (1, 3, 6, 10, 15), strict=True):
    mask = frequency_mask(count)
    panel.imshow(mask, cmap="Blues", vmin=0, vmax=1.4)
    panel.set_title(f"{count} frequencies, {int(mask.sum())} of 64", fontsize=7)
    panel.set_axis_off()

# %%
# Over many blocks (figure 4a has ten million): ASM's error is the smaller one everywhere, and with all fifteen
# frequencies both are exact.
small = 2 * torch.rand(20_000, 4, 4, generator=generator) - 1
many = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
coefficients, wanted = dct2d(many), many.relu()
counts = range(1, 16)
errors = {
    name: [(idct2d(relu(coefficients, n)) - wanted).square().mean((1, 2)).sqrt().mean().item() for n in counts]
    for name, relu in (("ASM", asm_relu), ("APX", apx_relu))
}
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, values in errors.items():
    axes.plot(counts, values, "o-", markersize=4, label=name)
axes.set(xlabel="spatial frequencies", ylabel="mean RMSE", title=f"error of one ReLU, {len(many):,} blocks")
axes.legend()
axes.grid(alpha=0.3)

# %%
# What this does to the accuracy of a network is another matter, and less clear-cut than the paper has it: see
# :doc:`/papers/jpeg_experiments`.
