"""Fine-tune packaged weights on a new dataset: a folder with one sub-folder of JPEG files per class.

    python examples/finetune.py photos --out runs/finetuned
    cdzoo classify new.jpg --weights runs/finetuned

No file is decoded. Every fifth file is held out. The files may have any sizes.
"""

import argparse

import torch
from torch.utils.data import DataLoader, Subset

import cdzoo
from cdzoo.data import CoefficientDataset, RandomHorizontalFlip, SizeBucketSampler, collate_coefficients
from cdzoo.transforms import RandomResizedCrop

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="folder with one sub-folder of JPEG files per class")
parser.add_argument("--out", default="runs/finetuned")
parser.add_argument("--model", default="jpeg_efficientnet_lite0", help="of `cdzoo list --pretrained`, over JPEG files")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--lr", type=float, default=3e-4)
args = parser.parse_args()
torch.manual_seed(0)

model = cdzoo.get_model(args.model, weights="DEFAULT")
prepare, flip = model.transforms, RandomHorizontalFlip()
augment = RandomResizedCrop(prepare.crop, (0.3, 1.0)) if prepare.crop else lambda c: flip(prepare(c))
data = CoefficientDataset(args.data, gray="ycbcr", transform=prepare)
augmented = CoefficientDataset(args.data, gray="ycbcr", transform=augment)
held_out = range(0, len(data), 5)
train = Subset(augmented, [i for i in range(len(data)) if i % 5])
sampler = SizeBucketSampler(train, batch_size=args.batch, shuffle=True)
batches = DataLoader(train, batch_sampler=sampler, collate_fn=collate_coefficients)

model.reset_classifier(len(data.classes))
head = list(model.get_classifier().parameters())
body = [p for p in model.parameters() if all(p is not q for q in head)]
optimizer = torch.optim.AdamW([{"params": body}, {"params": head}], lr=args.lr, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [args.lr, 10 * args.lr], args.epochs * len(batches))
for epoch in range(args.epochs):
    sampler.set_epoch(epoch)
    model.train()
    for coefficients, labels in batches:
        loss = torch.nn.functional.cross_entropy(model(coefficients), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = sum(int(model(c).argmax() == label) for c, label in map(data.__getitem__, held_out))
    top1 = 100 * right / len(held_out)
    print(f"epoch {epoch + 1}: loss {loss:.3f}, {top1:.1f} % of {len(held_out)} files held out", flush=True)

model.meta |= {"classes": data.classes, "metrics": {"top1": top1}}
cdzoo.save_pretrained(model, args.out)
