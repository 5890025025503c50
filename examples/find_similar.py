"""Find near-duplicates in a folder, or the photographs most like one of them, without decoding any.

    python examples/find_similar.py photos                              # pairs of near-duplicates
    python examples/find_similar.py photos --query photos/holiday.jpg   # the most similar photographs, best first
    python examples/find_similar.py archive --query archive/holiday.cdz   # streams of the packaged codec

Similarity is the cosine between the inputs of the classifier's last layer. Files that cannot be read are left out.
"""

import argparse
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import cdzoo
from cdzoo.data import CoefficientDataset, SizeBucketSampler, StreamDataset, collate_coefficients, collate_latents

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--query", type=Path, help="a file of the same kind; without it, near-duplicates are listed")
parser.add_argument("--threshold", type=float, default=0.7, help="least similarity of near-duplicates (0.7)")
parser.add_argument("--top", type=int, default=5, help="photographs to show for a query (5)")
args = parser.parse_args()
warnings.formatwarning = lambda message, *_: f"{message}\n"  # of damaged files, without a line of source
latents = args.query.suffix == ".cdz" if args.query else not any(args.folder.rglob("*.[jJ][pP]*"))
name = "latent_efficientnet_lite0" if latents else "jpeg_efficientnet_lite0"
model = cdzoo.get_model(name, weights="DEFAULT").eval()
options = {"transform": model.transforms, "strict": False}


@torch.no_grad()
def embed(batch):
    """``(B, num_features)`` of length 1, of coefficients or latents."""
    return torch.nn.functional.normalize(model.forward_head(model.forward_features(batch), pre_logits=True))


try:
    if latents:
        codec = cdzoo.get_model_weights(name).DEFAULT.build_codec()
        query = embed(codec.decompress([args.query.read_bytes()])) if args.query else None
        data = StreamDataset(args.folder, codec, labels=str, on_error="skip")
        loader = DataLoader(data, batch_sampler=SizeBucketSampler(data, batch_size=32), collate_fn=collate_latents)
    else:
        query = embed(cdzoo.codecs.read_jpeg(args.query, **options)) if args.query else None
        data = CoefficientDataset(args.folder, labels=str, gray="ycbcr", on_error="skip", **options)
        loader = DataLoader(data, batch_size=32, collate_fn=collate_coefficients)
    rows, names = zip(*((embed(batch), paths) for batch, paths in loader), strict=True)
except (OSError, ValueError) as error:
    parser.error(str(error))
embeddings, paths = torch.cat(rows), [path for batch in names for path in batch]
if query is not None:
    for value, i in zip(*(embeddings @ query.T).squeeze(1).topk(min(args.top, len(paths))), strict=True):
        print(f"{value:.3f}  {paths[i]}")
else:
    similarity = (embeddings @ embeddings.T).triu(1)
    for i, j in (similarity >= args.threshold).nonzero().tolist():
        print(f"{similarity[i, j]:.3f}  {paths[i]}  {paths[j]}")
