"""Fine-tune a network over latents on new classes: a folder with one sub-folder of ``.cdz`` streams per class.

    cdzoo compress photos -o streams --max-side 1024
    python examples/finetune_streams.py streams --out runs/finetuned
    cdzoo classify new.cdz --weights runs/finetuned

No stream is decoded to pixels. Every fifth stream is held out. Each batch holds images of one size.
"""

import argparse

import torch
from torch.utils.data import DataLoader, Subset

import cdzoo
from cdzoo.data import SizeBucketSampler, StreamDataset, collate_latents

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="folder with one sub-folder of streams per class")
parser.add_argument("--out", default="runs/finetuned")
parser.add_argument("--model", default="latent_efficientnet_lite0", help="of `cdzoo list --pretrained`, over latents")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--lr", type=float, default=3e-4)
args = parser.parse_args()
torch.manual_seed(0)

model = cdzoo.get_model(args.model, weights="DEFAULT")
codec = cdzoo.get_model_weights(args.model).DEFAULT.build_codec()
network = cdzoo.compose(codec, model)  # prepares latents as the weights need it
data = StreamDataset(args.data, codec)
train = Subset(data, [i for i in range(len(data)) if i % 5])
held_out = range(0, len(data), 5)
sampler = SizeBucketSampler(train, batch_size=args.batch, shuffle=True)
batches = DataLoader(train, batch_sampler=sampler, collate_fn=collate_latents)

model.reset_classifier(len(data.classes))
head = list(model.get_classifier().parameters())
body = [p for p in model.parameters() if all(p is not q for q in head)]
optimizer = torch.optim.AdamW([{"params": body}, {"params": head}], lr=args.lr, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [args.lr, 10 * args.lr], args.epochs * len(batches))
for epoch in range(args.epochs):
    sampler.set_epoch(epoch)
    network.train()
    for latent, labels in batches:
        loss = torch.nn.functional.cross_entropy(network.from_latent(latent), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        right = sum(int(network.from_latent(latent).argmax() == y) for latent, y in map(data.__getitem__, held_out))
    top1 = 100 * right / len(held_out)
    print(f"epoch {epoch + 1}: loss {loss:.3f}, {top1:.1f} % of {len(held_out)} streams held out", flush=True)

model.meta |= {"classes": data.classes, "metrics": {"top1": top1}}
cdzoo.save_pretrained(model, args.out, codec=codec)
