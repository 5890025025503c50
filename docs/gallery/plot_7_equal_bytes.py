"""
JPEG, WebP, AVIF and a codec of this package at equal bytes
===========================================================

One photograph is coded by the packaged hyperprior codec and by three image formats, each with at most as many bytes.
The packaged codec is small and was trained for an hour on one core. On this photograph its PSNR is that of JPEG and
below that of WebP and AVIF. Its purpose is not the picture: networks read its latent without decoding.
"""

import io
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, features

import cdzoo
from cdzoo.demo import PHOTO
from cdzoo.images import to_pillow

# %%
# The codec sets the number of bytes. Files are counted whole, with their headers.
x = cdzoo.load_images(PHOTO)
pixels = x.shape[2] * x.shape[3]
codec = cdzoo.get_weight("BMSHJ2018_Hyperprior_Weights.DEFAULT").build_codec()
[stream] = codec.compress(x)
decoded = {"cdzoo": (len(stream), codec.decode(codec.decompress([stream])))}


# %%
# Each format gets the highest quality whose file is not larger. AVIF needs Pillow 11.3, and is left out without it.
def coded(name, **options):
    """The largest file of a format that has at most the bytes of the stream, and its pixels."""
    best = None
    for quality in range(101):
        buffer = io.BytesIO()
        to_pillow(x).save(buffer, name, quality=quality, **options)
        if buffer.tell() > len(stream):
            break
        best = buffer
    with Image.open(best) as image:
        again = torch.from_numpy(np.array(image.convert("RGB")))
    return best.getbuffer().nbytes, again.permute(2, 0, 1)[None] / 255


decoded["JPEG"] = coded("JPEG", optimize=True, subsampling="4:2:0")
decoded["WebP"] = coded("WEBP", method=6)
if features.check("avif"):
    decoded["AVIF"] = coded("AVIF", speed=6)


# %%
# PSNR is that of pixels of 8 bits. The photograph in the package is itself a JPEG file, of higher quality.
def psnr(x_hat):
    """PSNR in dB."""
    return 10 * math.log10(255**2 / (x_hat.mul(255).round() - x.mul(255).round()).square().mean())


print("          bytes    bpp   PSNR")
for name, (size, x_hat) in decoded.items():
    print(f"{name:8} {size:6,}  {8 * size / pixels:.3f}  {psnr(x_hat):.2f} dB")

# %%
# Part of the photograph, magnified, and all of it.
shown = [("photograph", x), *((f"{name}, {psnr(image):.2f} dB", image) for name, (_, image) in decoded.items())]
for rows, columns in ((slice(140, 260), slice(250, 430)), (slice(None), slice(None))):
    figure, panels = plt.subplots(2, 3, figsize=(9, 4.4), layout="constrained")
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, (title, image) in zip(panels.flat, shown, strict=False):
        panel.imshow(image[0, :, rows, columns].permute(1, 2, 0))
        panel.set_title(title, fontsize=8)
