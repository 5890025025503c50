"""Label a folder of photographs (JPEG) and streams (.cdz), of any sizes, into a CSV file; no pixel is decoded.

    python examples/label_folder.py photos labels.csv
    python examples/label_folder.py photos labels.csv --model timm/resnet50.a1_in1k

The column "problem" has the error of a file that cannot be read, and the damage of one that was read in part.
"""

import argparse
import csv
import warnings
from collections import Counter

import cdzoo
from cdzoo.codecs import JPEGWarning

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", help="folder that is searched with its subfolders")
parser.add_argument("output", help="CSV file to write")
parser.add_argument("--model", help="builder's name or timm/NAME (by default, a packaged network per kind of file)")
parser.add_argument("--top", type=int, default=3, help="classes per file (3)")
parser.add_argument("--min-probability", type=float, default=0.0, help="leave out classes that are less probable")
args = parser.parse_args()

warnings.simplefilter("ignore", JPEGWarning)  # the table has the damage of each file
results = cdzoo.classify(args.folder, model=args.model, top=args.top)
with open(args.output, "w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["path", "rank", "class", "label", "probability", "problem"])
    for result in results:
        if result.error is not None:
            table.writerow([result.path, "", "", "", "", result.error])
        for rank, label in enumerate(result.classes, 1):
            if label.probability >= args.min_probability:
                table.writerow([result.path, rank, label.number, label.name, f"{label.probability:.4f}", result.damage])

failed = sum(result.error is not None for result in results)
damaged = sum(bool(result.damage) for result in results)
print(f"{len(results) - failed} files labeled, {damaged} of them damaged, {failed} could not be read")
for name, count in Counter(r.classes[0].name for r in results if r.classes).most_common(10):
    print(f"{count:6}  {name}")
