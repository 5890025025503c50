"""
Which channels matter: ranking by variance
==========================================

Wang et al. (section 3.4.4) observe that the channels of a latent carry very unequal amounts of information, and rank
them by the variance of their maps. Networks then learn from the best 32 or 16 of 256, and the rest need not be stored.
"""

import matplotlib.pyplot as plt
import torch

import cdzoo
from cdzoo.demo import load_photo
from cdzoo.ops import ChannelSelect, rank_channels

# %%
# Latents of the packaged photograph at several sizes stand in for a training set: images may differ in size, and each
# counts the same.
codec = cdzoo.get_weight("BMSHJ2018_Hyperprior_Weights.DEFAULT").build_codec()
latents = [codec.encode(load_photo(size)) for size in (192, 256, 320, 427)]
ranking = rank_channels(latents)
variances = torch.stack([latent.y_hat[0].flatten(1).var(1, correction=0) for latent in latents]).mean(0)
print(ranking[:8].tolist(), "...")

# %%
# Variance is very unequal: one channel alone has most of it.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.bar(range(len(ranking)), variances[ranking], width=0.8)
left.set(xlabel="rank", ylabel="variance", title="variance of each channel")
right.plot(range(1, len(ranking) + 1), variances[ranking].cumsum(0) / variances.sum())
right.set(xlabel="channels kept", ylabel="share of all variance", title="what the best channels hold", ylim=(0, 1.02))
right.grid(alpha=0.3)

# %%
# The decoder shows how much of the picture is in the best channels; all other channels are set to zero.
latent = codec.encode(load_photo(256))
figure, panels = plt.subplots(1, 5, figsize=(9, 2.1), layout="constrained")
for panel, count in zip(panels, (4, 8, 16, 32, 64), strict=True):
    select = ChannelSelect(ranking[:count])
    kept = select.put_back(select(latent).y_hat, codec.latent_channels)
    panel.imshow(codec.decode(latent._replace(y_hat=kept))[0].permute(1, 2, 0))
    panel.set_title(f"{count} channels", fontsize=8)
    panel.set_axis_off()

# %%
# A codec whose tables are measured per channel, ``torfason2018`` or ``choi2019``, can leave the other channels out of
# its streams as well: ``codec.select(ranking[:16])`` is a codec of its own. Networks that read a selection of whole
# latents take ``channels=``, as :func:`cdzoo.models.resnet41` does.
