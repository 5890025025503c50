"""A photograph to bits, and from its bits to labels. Pixels are decoded only so that you can see them.

python examples/quickstart.py [IMAGE]
"""

import sys

import torch

import cdzoo
from cdzoo.demo import PHOTO
from cdzoo.images import png_bytes, read_image

image = read_image(sys.argv[1] if len(sys.argv) > 1 else PHOTO)

# Weights know the codec whose latents they were trained on.
weights = cdzoo.get_weight("LatentEfficientNetLite0_Weights.DEFAULT")
codec = weights.build_codec()
model = cdzoo.models.latent_efficientnet_lite0(weights=weights).eval()
network = cdzoo.compose(codec, model)

[stream] = codec.compress(image)
print(f"{len(stream):,} bytes, {cdzoo.codecs.read_header(stream).bpp:.3f} bits per pixel")

with torch.no_grad():
    probabilities = network.from_streams([stream])[0].softmax(0)
names = weights.meta.get("class_names") or weights.meta["classes"]
for probability, label in zip(*probabilities.topk(5), strict=True):
    print(f"{probability:6.1%}  {names[label]}")

with open("decoded.png", "wb") as file:  # only for looking at
    file.write(png_bytes(codec.decode(codec.decompress([stream]))))
