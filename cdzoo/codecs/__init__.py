"""Codecs: images to latents to bits, and back as far as the latent."""

from cdzoo.codecs.choi import Choi2019_Weights as Choi2019_Weights
from cdzoo.codecs.choi import choi2019 as choi2019
from cdzoo.codecs.hyperprior import BMSHJ2018_Factorized_Weights as BMSHJ2018_Factorized_Weights
from cdzoo.codecs.hyperprior import BMSHJ2018_Hyperprior_Weights as BMSHJ2018_Hyperprior_Weights
from cdzoo.codecs.hyperprior import MBT2018_Mean_Weights as MBT2018_Mean_Weights
from cdzoo.codecs.hyperprior import bmshj2018_factorized as bmshj2018_factorized
from cdzoo.codecs.hyperprior import bmshj2018_hyperprior as bmshj2018_hyperprior
from cdzoo.codecs.hyperprior import mbt2018_mean as mbt2018_mean
from cdzoo.codecs.torfason import Torfason2018_Weights as Torfason2018_Weights
from cdzoo.codecs.torfason import torfason2018 as torfason2018
from cdzoo.coding.base import Codec as Codec
from cdzoo.coding.calibrated import CalibratedCodec as CalibratedCodec
from cdzoo.coding.container import StreamHeader as StreamHeader
from cdzoo.coding.container import read_header as read_header
from cdzoo.coding.identity import CodingState as CodingState
from cdzoo.coding.symbols import SymbolCoder as SymbolCoder
from cdzoo.coding.tables import SymbolTables as SymbolTables
from cdzoo.coding.transform import TransformCodec as TransformCodec
from cdzoo.jpeg.files import JPEGHeader as JPEGHeader
from cdzoo.jpeg.files import JPEGWarning as JPEGWarning
from cdzoo.jpeg.files import read_jpeg as read_jpeg
from cdzoo.jpeg.files import read_jpeg_header as read_jpeg_header
from cdzoo.jpeg.files import write_jpeg as write_jpeg
from cdzoo.jpeg.pixels import decode_jpeg as decode_jpeg
from cdzoo.jpeg.pixels import encode_jpeg as encode_jpeg
from cdzoo.types import MAX_IMAGE_PIXELS as MAX_IMAGE_PIXELS
