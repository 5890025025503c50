"""
Segmentation from a latent
==========================

A segmenter gives every pixel a class, from a latent with one value for 8x8 pixels (Torfason et al., section 5). The
packaged one knows streets only: it was trained on 367 photographs of CamVid, which may not be passed on. So the street
on this page is drawn. Use a photograph of a street, about 240 pixels wide.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw

import cdzoo
from cdzoo.codecs import read_header

# %%
# The picture: sky, two rows of houses, a road between pavements, a tree and two cars.
picture = Image.new("RGB", (480, 360), (225, 228, 230))
draw = ImageDraw.Draw(picture)
draw.rectangle((0, 150, 480, 360), fill=(140, 132, 126))
draw.polygon([(234, 150), (246, 150), (490, 360), (20, 360)], fill=(92, 90, 92))
for side in (-1, 1):
    for near, far, color in ((240, 140, (202, 159, 132)), (140, 50, (238, 205, 173))):
        points = ((near, -1.1), (far, -1.1), (far, 0.27), (near, 0.27))
        draw.polygon([(240 + side * x, 150 + x * y) for x, y in points], fill=color)
for x, y in np.random.default_rng(0).normal((360, 110), (18, 18), (400, 2)):
    draw.ellipse((x - 5, y - 4, x + 5, y + 4), fill=(38, 48, 30) if x < 360 else (50, 64, 40))
draw.rectangle((357, 120, 363, 205), fill=(60, 48, 40))
for x, y, size, color in ((100, 235, 100, (120, 24, 28)), (262, 195, 52, (40, 52, 90))):
    draw.rectangle((x + 0.2 * size, y - 0.7 * size, x + 0.8 * size, y), fill=(40, 46, 54))
    draw.rectangle((x, y - 0.42 * size, x + size, y - 0.06 * size), fill=color)
    for wheel in (0.2, 0.8):
        draw.circle((x + wheel * size, y - 0.05 * size), 0.1 * size, fill=(20, 20, 20))
image = torch.tensor(np.array(picture.reduce(2))).permute(2, 0, 1)[None] / 255

# %%
# The first of the packaged segmenters that read latents, and the codec that it belongs to.
names = [*cdzoo.list_models("c*_d", pretrained=True), *cdzoo.list_models("*_seg", pretrained=True)]
weights = cdzoo.get_model_weights(names[0]).DEFAULT
codec = weights.build_codec()
network = cdzoo.compose(codec, cdzoo.get_model(names[0], weights=weights).eval())

# %%
# Bits to classes; the logits have the size of the image, whatever that is.
[stream] = codec.compress(image)
with torch.no_grad():
    classes = network.from_streams([stream]).argmax(1)[0]
print(f"{names[0]}: {tuple(classes.shape)} pixels from {read_header(stream).bpp:.3f} bits per pixel")

# %%
# The classes as colors, over the picture. Sky, road and the near car are found, and most of the houses. The tree and
# the far car are not: a drawing lacks the details of a photograph.
labels = list(weights.meta["classes"])
palette = plt.get_cmap("tab20")(np.arange(len(labels)))[:, :3]
colors = torch.from_numpy(palette).float()[classes]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
left.imshow(image[0].permute(1, 2, 0))
left.set_title("picture", fontsize=9)
right.imshow(0.4 * image[0].permute(1, 2, 0) + 0.6 * colors)
right.set_title("classes, from the latent", fontsize=9)
for panel in (left, right):
    panel.set_axis_off()
present, counts = classes.unique(return_counts=True)
for number in present[counts.argsort(descending=True)][:8].tolist():
    right.plot([], [], "s", color=palette[number], label=labels[number])
right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
