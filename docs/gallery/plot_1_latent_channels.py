"""
What a network reads: the channels of a latent
==============================================

Torfason et al. (figure 9) show some channels of a codec's latent as images, to make it plain that a compressed
representation keeps the layout of the picture. Here is the same for the codec that ships with the package.
"""

import matplotlib.pyplot as plt
import torch

import cdzoo
from cdzoo.codecs import read_header
from cdzoo.demo import load_photo
from cdzoo.ops import rank_channels

# %%
# The codec compresses a photograph to a stream. The stream holds a latent: 64 channels, each with one value for 16x16
# pixels. The hyperprior gives a standard deviation for each of these values.
photo = load_photo(384)
codec = cdzoo.get_weight("BMSHJ2018_Hyperprior_Weights.DEFAULT").build_codec()
[stream] = codec.compress(photo)
latent = codec.decompress([stream])
header = read_header(stream)
print(f"{header.num_bytes:,} bytes, {header.bpp:.3f} bits per pixel")
print(f"y_hat {tuple(latent.y_hat.shape)}, scales {tuple(latent.scales.shape)}")

# %%
# The twelve channels of most variance (:func:`cdzoo.ops.rank_channels`). Zero is gray, and each channel's largest
# magnitude black or white.
best = rank_channels(latent)[:12].tolist()

figure, axes = plt.subplot_mosaic(
    [["photo", "photo", 0, 1, 2, 3], ["photo", "photo", 4, 5, 6, 7], ["decoded", "decoded", 8, 9, 10, 11]],
    figsize=(9, 4.6), layout="constrained", gridspec_kw={"width_ratios": [1.25, 1.25, 1, 1, 1, 1]},
)  # fmt: skip
axes["photo"].imshow(photo[0].permute(1, 2, 0))
axes["photo"].set_title("photograph", fontsize=8)
axes["decoded"].imshow(codec.decode(latent)[0].permute(1, 2, 0))
axes["decoded"].set_title(f"decoded, {header.bpp:.2f} bpp", fontsize=8)
for place, channel in enumerate(best):
    values = latent.y_hat[0, channel]
    axes[place].imshow(values, cmap="gray", vmin=-values.abs().max(), vmax=values.abs().max())
    axes[place].set_title(f"channel {channel}", fontsize=8)
for panel in axes.values():
    panel.set_axis_off()

# %%
# Some networks also read the standard deviations (``scales``). They are large where the codec expects large values,
# which is where the picture has detail. Deng and Karam feed them to a branch of their own.
figure, panels = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for panel, channel in zip(panels, best, strict=False):
    image = panel.imshow(latent.scales[0, channel], cmap="magma", vmin=0)
    panel.set_title(f"scales of channel {channel}", fontsize=8)
    panel.set_axis_off()
    figure.colorbar(image, ax=panel, shrink=0.8)

# %%
# The packaged network reads the stream's latent and scales, and knows 1,000 classes. It needs no decoded image.
weights = cdzoo.models.LatentEfficientNetLite0_Weights.DEFAULT
network = cdzoo.compose(codec, cdzoo.models.latent_efficientnet_lite0(weights=weights).eval())
with torch.no_grad():
    probabilities = network.from_streams([stream])[0].softmax(0)
for probability, label in zip(*probabilities.topk(3), strict=True):
    print(f"{probability:6.1%}  {weights.meta['classes'][label]}")
