"""Packaged JPEG weights as an int8 model for ONNX Runtime, calibrated on a folder of JPEG files.

    python examples/quantise.py photos --out jpeg_resnet18.int8.onnx

The model reads what read_jpeg gives: planes (int16) and quantization tables (int32) of one file at a time, of the
geometry that the first file has after a crop to --size. The entrance stays in float32; convolutions and the classifier
are int8.
"""

import argparse
import tempfile
from pathlib import Path

import torch

try:
    import onnxscript  # noqa: F401  # torch.onnx.export needs it
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is not installed; run: pip install 'cdzoo[interop]'") from error

import cdzoo
from cdzoo.data import CoefficientDataset, center_crop

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="folder of JPEG files, some dozens of those that the model will meet")
parser.add_argument("--out", default="jpeg_resnet18.int8.onnx")
parser.add_argument("--model", default="jpeg_resnet18")
parser.add_argument("--weights", default="DEFAULT")
parser.add_argument("--size", type=int, default=224, help="side of the crops")
parser.add_argument("--files", type=int, default=64, help="how many to calibrate on")
args = parser.parse_args()

model = cdzoo.get_model(args.model, weights=args.weights).eval()
prepare = model.transforms
dataset = CoefficientDataset(
    args.data, labels=None, gray="ycbcr", transform=lambda c: center_crop(prepare(c), args.size), on_error="skip"
)
inputs = [dataset[i] for i in range(0, len(dataset), max(1, len(dataset) // args.files))]
inputs = [c for c in inputs if c[2:] == inputs[0][2:] and c.planes[0].dtype == inputs[0].planes[0].dtype]


class Calibration(CalibrationDataReader):
    """Photographs, one at a time, as ONNX Runtime asks for them."""

    def __init__(self) -> None:
        self.files = iter(inputs)

    def get_next(self) -> dict[str, object] | None:
        """The inputs of the network by name; ``None`` at the end."""
        c = next(self.files, None)
        return None if c is None else dict(zip(names, [t.numpy() for t in (*c.planes, c.qtables)], strict=True))


with tempfile.TemporaryDirectory() as folder:
    exported, prepared = Path(folder, "float.onnx"), Path(folder, "prepared.onnx")
    program = torch.onnx.export(model, (inputs[0],), dynamo=True, verbose=False)
    program.save(exported)
    names = [value.name for value in program.model.graph.inputs]
    quant_pre_process(exported, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        args.out,
        Calibration(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "Add", "MaxPool"],
    )
    ratio = Path(args.out).stat().st_size / exported.stat().st_size
print(f"{args.out}: {ratio:.2f} of the size in float32, calibrated on {len(inputs)} files of {inputs[0].image_size}")
