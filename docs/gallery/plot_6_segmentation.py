"""
Segmentation from a latent
==========================

A segmenter gives every pixel a class, from a latent with one value for 8x8 or 16x16 pixels (Torfason et al., section
5). This one ships with the package; it was trained on other pictures than this photograph.
"""

import matplotlib.pyplot as plt
import torch

import cdzoo
from cdzoo.codecs import read_header
from cdzoo.demo import PHOTO
from cdzoo.images import read_image

# %%
# The first of the packaged segmenters that read latents, and the codec that it belongs to.
names = [*cdzoo.list_models("c*_d", pretrained=True), *cdzoo.list_models("*_seg", pretrained=True)]
weights = cdzoo.get_model_weights(names[0]).DEFAULT
codec = weights.build_codec()
network = cdzoo.compose(codec, cdzoo.get_model(names[0], weights=weights).eval())

# %%
# Bits to classes; the logits have the size of the image, whatever that is.
photo = read_image(PHOTO)
[stream] = codec.compress(photo)
with torch.no_grad():
    classes = network.from_streams([stream]).argmax(1)[0]
print(f"{names[0]}: {tuple(classes.shape)} pixels from {read_header(stream).bpp:.3f} bits per pixel")

# %%
# For the eye, over the photograph.
labels = list(weights.meta.get("class_names") or weights.meta.get("classes") or [])
palette = plt.get_cmap("tab20")(torch.arange(network.model.num_classes).numpy() % 20)[:, :3]
colors = torch.from_numpy(palette).float()[classes]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
left.imshow(photo[0].permute(1, 2, 0))
left.set_title("photograph", fontsize=9)
right.imshow(0.4 * photo[0].permute(1, 2, 0) + 0.6 * colors)
right.set_title("classes, from the latent", fontsize=9)
for panel in (left, right):
    panel.set_axis_off()
present, counts = classes.unique(return_counts=True)
for number in present[counts.argsort(descending=True)][:8].tolist():
    name = labels[number] if number < len(labels) else f"class {number}"
    right.plot([], [], "s", color=palette[number], label=name)
right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
