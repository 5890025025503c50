"""cdzoo inside other libraries, one module each, named after the library and imported by that name.

    cdzoo.interop.timm          classifiers in timm's registry
    cdzoo.interop.torchvision   coefficients and latents in torchvision's transforms v2
    cdzoo.interop.datasets      image columns of Hugging Face datasets to coefficients, latents and streams
    cdzoo.interop.compressai    CompressAI's models as codecs
    cdzoo.interop.ray           archives compressed and classified on a cluster, by Ray Data

Nothing here is imported by ``import cdzoo``.
"""
