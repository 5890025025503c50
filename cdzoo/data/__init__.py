"""Data in the compressed domain: folders and shards of streams, batches of one image size, collate functions."""

from cdzoo.data.collate import collate_latents as collate_latents
from cdzoo.data.sampler import SizeBucketSampler as SizeBucketSampler
from cdzoo.data.shard_writer import write_shards as write_shards
from cdzoo.data.shards import StreamShards as StreamShards
from cdzoo.data.streams import StreamDataset as StreamDataset
