"""Datasets of streams and of JPEG files, batches of one geometry, and exact transforms of coefficients."""

from cdzoo.data.coefficients import CoefficientDataset as CoefficientDataset
from cdzoo.data.coefficients import CoefficientShards as CoefficientShards
from cdzoo.data.collate import collate_coefficients as collate_coefficients
from cdzoo.data.collate import collate_latents as collate_latents
from cdzoo.data.sampler import SizeBucketSampler as SizeBucketSampler
from cdzoo.data.shard_writer import write_shards as write_shards
from cdzoo.data.streams import StreamDataset as StreamDataset
from cdzoo.data.streams import StreamShards as StreamShards
from cdzoo.jpeg.transform_modules import CenterCrop as CenterCrop
from cdzoo.jpeg.transform_modules import Downscale as Downscale
from cdzoo.jpeg.transform_modules import RandomCrop as RandomCrop
from cdzoo.jpeg.transform_modules import RandomHorizontalFlip as RandomHorizontalFlip
from cdzoo.jpeg.transform_modules import RandomRotation90 as RandomRotation90
from cdzoo.jpeg.transform_modules import RandomVerticalFlip as RandomVerticalFlip
from cdzoo.jpeg.transform_modules import Scale as Scale
from cdzoo.jpeg.transforms import alignment as alignment
from cdzoo.jpeg.transforms import center_crop as center_crop
from cdzoo.jpeg.transforms import crop as crop
from cdzoo.jpeg.transforms import downscale as downscale
from cdzoo.jpeg.transforms import gray_to_ycbcr as gray_to_ycbcr
from cdzoo.jpeg.transforms import horizontal_flip as horizontal_flip
from cdzoo.jpeg.transforms import rotate as rotate
from cdzoo.jpeg.transforms import scale as scale
from cdzoo.jpeg.transforms import transpose as transpose
from cdzoo.jpeg.transforms import upright as upright
from cdzoo.jpeg.transforms import vertical_flip as vertical_flip
