"""cdzoo: networks that read what a codec stores, and never rebuild the pixels."""

from cdzoo import codecs as codecs
from cdzoo import data as data
from cdzoo import errors as errors
from cdzoo import models as models
from cdzoo import ops as ops
from cdzoo._compose import CompressedDomainModel as CompressedDomainModel
from cdzoo._compose import compose as compose
from cdzoo._registry import get_codec as get_codec
from cdzoo._registry import get_model as get_model
from cdzoo._registry import get_model_weights as get_model_weights
from cdzoo._registry import get_weight as get_weight
from cdzoo._registry import list_codecs as list_codecs
from cdzoo._registry import list_models as list_models
from cdzoo._version import __version__ as __version__
from cdzoo.bulk.classify import classify as classify
from cdzoo.hub import from_pretrained as from_pretrained
from cdzoo.hub import push_to_hub as push_to_hub
from cdzoo.hub import save_pretrained as save_pretrained
from cdzoo.images import load_images as load_images
from cdzoo.types import CodecOutput as CodecOutput
from cdzoo.types import JPEGCoefficients as JPEGCoefficients
from cdzoo.types import Latent as Latent
