"""Find near-duplicates in a folder, or the photographs most like one of them, without decoding any.

    python examples/find_similar.py photos                          # pairs of near-duplicates
    python examples/find_similar.py photos --query holiday.jpg      # the most similar photographs, best first
    python examples/find_similar.py streams --latents --query holiday.cdz

An embedding is what the network's classifier reads, scaled to length 1; similarity is the cosine. With --latents, the
folder holds .cdz streams of the packaged hyperprior codec. A file that cannot be read is logged and left out.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import cdzoo
from cdzoo.data import CoefficientDataset, SizeBucketSampler, StreamDataset, collate_coefficients, collate_latents

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder")
parser.add_argument("--query", help="a file of the same kind; without it, near-duplicates are listed")
parser.add_argument("--latents", action="store_true", help="read .cdz streams instead of JPEG files")
parser.add_argument("--threshold", type=float, default=0.7, help="least similarity of near-duplicates (0.7)")
parser.add_argument("--top", type=int, default=5, help="photographs to show for a query (5)")
args = parser.parse_args()

name = "latent_efficientnet_lite0" if args.latents else "jpeg_efficientnet_lite0"
weights = cdzoo.get_model_weights(name).DEFAULT
model = cdzoo.get_model(name, weights=weights).eval()
if args.latents:
    codec = weights.build_codec()
    data = StreamDataset(args.folder, codec, labels=str, on_error="skip")
    loading = {"batch_sampler": SizeBucketSampler(data, batch_size=32), "collate_fn": collate_latents}
    read = lambda path: codec.decompress([Path(path).read_bytes()])  # noqa: E731
else:
    options = {"transform": model.transforms, "strict": False}
    data = CoefficientDataset(args.folder, labels=str, gray="ycbcr", on_error="skip", **options)
    loading = {"batch_size": 32, "collate_fn": collate_coefficients}
    read = lambda path: cdzoo.codecs.read_jpeg(path, **options)  # noqa: E731


@torch.no_grad()
def embed(batch):
    """``(B, num_features)`` of length 1, of coefficients or latents."""
    return torch.nn.functional.normalize(model.forward_head(model.forward_features(batch), pre_logits=True))


batches = [(embed(batch), paths) for batch, paths in DataLoader(data, **loading)]
embeddings = torch.cat([rows for rows, _ in batches])  # (number of files, num_features)
paths = [path for _, names in batches for path in names]
if args.query is not None:
    similarity = (embeddings @ embed(read(args.query)).T).squeeze(1)
    for value, i in zip(*similarity.topk(min(args.top, len(paths))), strict=True):
        print(f"{value:.3f}  {paths[i]}")
else:
    similarity = (embeddings @ embeddings.T).triu(1)
    for i, j in (similarity >= args.threshold).nonzero().tolist():
        print(f"{similarity[i, j]:.3f}  {paths[i]}  {paths[j]}")
