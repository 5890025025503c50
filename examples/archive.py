"""Keep photographs as small streams of a learned codec, and label or look at them later.

    python examples/archive.py add archive photos            # every image below photos, as archive/NAME.cdz
    python examples/archive.py label archive                 # from latents: no picture is decoded
    python examples/archive.py show archive/holiday.cdz holiday.png

`add` leaves out photographs whose stream is there, so that it can be stopped and started again. A stream names its
codec by a fingerprint: it is never decoded by another one.
"""

import argparse
import os
from pathlib import Path

import cdzoo
from cdzoo.images import IMAGE_SUFFIXES, png_bytes, read_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = parser.add_subparsers(dest="command", required=True)
for command, first, second in (("add", "archive", "photos"), ("label", "archive", None), ("show", "stream", "output")):
    one = commands.add_parser(command)
    one.add_argument(first, type=Path)
    if second is not None:
        one.add_argument(second, type=Path)
    one.add_argument("--weights", default="LatentEfficientNetLite0_Weights.DEFAULT", help="of a network over latents")
args = parser.parse_args()
weights = cdzoo.get_weight(args.weights)
source = {"add": "photos", "label": "archive", "show": "stream"}[args.command]
if not vars(args)[source].exists():
    parser.error(f"{vars(args)[source]} does not exist")

if args.command == "add":
    codec = weights.build_codec()
    read = written = 0
    for path in sorted(p for p in args.photos.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        target = args.archive / path.relative_to(args.photos).with_suffix(".cdz")
        if target.exists():
            continue
        try:
            [stream] = codec.compress(read_image(path))
        except (OSError, ValueError) as error:
            print(f"{path} is left out: {error}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.write_bytes(stream)
        os.replace(part, target)  # a stream is there whole or not at all
        read, written = read + path.stat().st_size, written + len(stream)
    print(f"{read:,} bytes of images became {written:,} bytes of streams")
elif args.command == "label":
    for result in cdzoo.classify(args.archive, weights=weights, top=1):
        print(result.path, result.error or f"{result.classes[0].probability:.1%} {result.classes[0].name}", sep="\t")
else:
    codec = weights.build_codec()
    try:
        args.output.write_bytes(png_bytes(codec.decode(codec.decompress([args.stream.read_bytes()]))))
    except (OSError, ValueError) as error:
        parser.error(f"{args.stream} cannot be shown: {error}")
