"""The papers' claims, each with its figures and the judge that compares them with the results at hand.

A claim is a row of ``docs/results.md``. A judge returns the finding and a verdict; it raises
:class:`~studies.verdicts.MissingError` if a result that it needs does not exist. The claim then counts as not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import judges
from .verdicts import HOLDS, NOT_RUN, Finding, MissingError, Results, beats, compare, elsewhere


def not_run(results: Results) -> Finding:
    """Judge a claim that nobody has run."""
    raise MissingError("nothing")


class Claim(NamedTuple):
    """One claim.

    Attributes:
        paper: authors and year.
        where: figure, table or section of the paper.
        text: the claim itself.
        figures: those of the paper.
        judge: compares the claim with the results.
        command: repeats the runs that the judge reads.
    """

    paper: str
    where: str
    text: str
    figures: str
    judge: Callable[[Results], Finding]
    command: str


WANG, TORFASON, DENG = "Wang et al. 2022", "Torfason et al. 2018", "Deng & Karam 2023"
EHRLICH, BAI = "Ehrlich & Davis 2019", "Bai et al. 2022"


def _zoo(*patterns: str) -> str:
    return "`run.py --only " + " ".join(f"'{p}'" for p in patterns) + "`"


_RATES = ("low", "hyperprior", "high")
_LOWEST = "head-torfason2018-low"
_NOT_LOWEST = "not the paper's lowest rate, and at 0.30 bpp it has the opposite"
_STARTED = ("fa_cresnet39-started", "cresnet39+scales-started", "resnet50v1.5")


def _at_rates(first: str, second: str) -> list[tuple[str, str]]:
    """Pair the networks of Deng & Karam at each rate; the lowest rate has FA modules of its own."""
    few = {"low": "fa_cresnet39+few-started"}
    return [(f"head-{c}-{few.get(c, first)}", f"head-{c}-{second}") for c in _RATES]


def _variant(text: str, figures: str, *variants: str) -> Claim:
    """A row of Deng & Karam's table 3: FA-cResNet-39 against itself with one change."""
    pairs = [(f"head-hyperprior-{_STARTED[0]}", f"head-hyperprior-fa_cresnet39+{name}-started") for name in variants]
    return Claim(DENG, "T3", text, figures, compare(pairs), _zoo(*(second for _, second in pairs), pairs[0][0]))


CLAIMS = [
    Claim(WANG, "Fig. 2", "log variance and discrete entropy of features are linearly correlated", "0.99",
          judges.entropy_correlation, "`entropy_correlation.py`"),
    Claim(WANG, "T2", "ResNet-41, trained on sizes that vary and reading latents of images of mixed size, is as good "
          "as ResNet-50 on decoded images of one size", "73.3 against 72.8 at 0.30 bpp",
          compare([("sizes-variable", "sizes-decoded")]), _zoo("sizes-variable*", "sizes-decoded")),
    Claim(WANG, "T2", "the same at 0.098, 0.49 and 0.72 bpp, and MobileNetV2-45", "+3.3, -0.5, -0.5; +2.4, +1.2, +0.2, "
          "+0.1", not_run, ""),
    Claim(WANG, "T5", "ResNet-41 on latents of one size comes within 3.5 points of ResNet-50 on decoded images (T2)",
          "69.3 against 72.8 at 0.30 bpp", compare([("head-choi2019-resnet41", "head-choi2019-resnet50")], -3.5),
          _zoo("codec-choi2019", "head-choi2019-resnet*")),
    Claim(WANG, "T5", "at the highest rate within 2.9 points", "71.7 against 74.6 at 0.72 bpp",
          compare([("head-choi2019-high-resnet41", "head-choi2019-high-resnet50")], -2.9),
          _zoo("codec-choi2019-high", "head-choi2019-high-*")),
    Claim(WANG, "T5", "and is better at the lowest", "67.7 against 67.1 at 0.098 bpp",
          elsewhere(compare([("head-choi2019-low-resnet41", "head-choi2019-low-resnet50")]), _NOT_LOWEST),
          _zoo("codec-choi2019-low", "head-choi2019-low-resnet*")),
    Claim(WANG, "T6", "MobileNetV2-45 on latents of one size comes within 3.2 points of MobileNetV2 on decoded images "
          "(T2)", "65.1 against 68.2 at 0.30 bpp",
          compare([("head-choi2019-mobilenet_v2_45", "head-choi2019-mobilenet_v2")], -3.2),
          _zoo("codec-choi2019", "head-choi2019-mobilenet*")),
    Claim(WANG, "T3", "training on sizes that vary is better than on one size, for images of mixed size",
          "+4.1 over 224, +3.4 over 448",
          compare([("sizes-variable", "sizes-fixed-small"), ("sizes-variable", "sizes-fixed-large")]),
          _zoo("sizes-variable*", "sizes-fixed-*")),
    Claim(WANG, "T3", "and for MobileNetV2-45, too", "+4.3, +3.1", not_run, ""),
    Claim(WANG, "T3", "of two sizes, the larger one is better", "69.0 against 68.7 at 0.30 bpp; +0.3 to +1.3",
          compare([("sizes-fixed-large", "sizes-fixed-small")]), _zoo("sizes-fixed-*")),
    Claim(WANG, "T4", "an eighth of the channels does as well as all", "73.3, 72.8, 71.0 at 0.30 bpp", judges.channels,
          _zoo("head-choi2019-resnet41*")),
    Claim(WANG, "T4", "at the lowest rate an eighth does better than all", "72.9 against 70.4 at 0.098 bpp",
          elsewhere(compare([("head-choi2019-low-resnet41-8channels", "head-choi2019-low-resnet41")]), _NOT_LOWEST),
          _zoo("codec-choi2019-low", "head-choi2019-low-resnet41*")),
    Claim(WANG, "T5", "ResNet-41 on choi2019's latents is better than cResNet-39 and cResNet-51 on torfason2018's at "
          "like rates", "69.3 against 64.1, 64.8 at 0.30 and 0.33 bpp",
          compare([("head-choi2019-resnet41", f"head-torfason2018-cresnet{n}") for n in (39, 51)]),
          _zoo("codec-torfason2018", "codec-choi2019", "head-torfason2018-cresnet39", "head-torfason2018-cresnet51",
               "head-choi2019-resnet41")),
    Claim(WANG, "T6", "MobileNetV2-45 likewise", "65.1 against 64.1",
          compare([("head-choi2019-mobilenet_v2_45", "head-torfason2018-cresnet39")]),
          _zoo("codec-torfason2018", "codec-choi2019", "head-torfason2018-cresnet39", "head-choi2019-mobilenet_v2_45")),
    Claim(WANG, "T5", "segmentation from latents is better than Torfason et al.'s",
          "64.5 against 60.8 mIoU at 0.30 and 0.33 bpp",
          judges.segmentation_of_codecs, _zoo("segmenter-choi2019-latents", "segmenter-torfason2018-latents")),
    Claim(WANG, "T7", "variable sizes help with large images (672 to 1120 pixels; here a quarter of that)",
          "76.4 against 75.5", compare([("large-variable", "large-fixed")]), _zoo("large-*")),
    Claim(WANG, "Fig. 3", "the codec is better than JPEG and JPEG 2000 in PSNR", "a plot",
          beats("choi2019", ("JPEG", "JPEG 2000"), ("psnr",)), "`rate_distortion.py`"),
    Claim(WANG, "Fig. 3", "and than Torfason et al.'s codec", "+3.3 dB", judges.better_codec, "`rate_distortion.py`"),
    Claim(TORFASON, "T2", "cResNet-39 on latents comes within 1.1 points of ResNet-50 on decoded images",
          "64.1 against 65.2 at 0.33 bpp",
          compare([("head-torfason2018-cresnet39", "head-torfason2018-resnet50")], -1.1),
          _zoo("codec-torfason2018", "head-torfason2018-cresnet39*", "head-torfason2018-resnet50*")),
    Claim(TORFASON, "T2", "the same at 0.098 and 0.635 bpp", "54.3 against 55.3, 67.2 against 68.3",
          compare([(f"head-torfason2018-{rate}-cresnet39", f"head-torfason2018-{rate}-resnet50")
                   for rate in ("low", "high")], -1.1),
          _zoo("codec-torfason2018-*", "head-torfason2018-low-*", "head-torfason2018-high-*")),
    Claim(TORFASON, "T2", "cResNet-51, which costs what ResNet-50 does, comes within 0.6 points of it",
          "55.2, 64.8, 67.7 against 55.3, 65.2, 68.3 at 0.098, 0.33 and 0.635 bpp",
          compare([(f"head-torfason2018{rate}-cresnet51", f"head-torfason2018{rate}-resnet50")
                   for rate in ("-low", "", "-high")], -0.6),
          _zoo("codec-torfason2018*", "head-torfason2018*-cresnet51", "head-torfason2018*-resnet50")),
    Claim(TORFASON, "T2", "cResNet-72, which costs what ResNet-71 does, comes within half a point of it",
          "55.8 against 56.2 at 0.098 bpp", compare([(f"{_LOWEST}-cresnet72", f"{_LOWEST}-resnet71")], -0.5),
          _zoo("codec-torfason2018-low", f"{_LOWEST}-*")),
    Claim(TORFASON, "T2", "deeper networks read latents better: cResNet-51 and -72 against cResNet-39",
          "64.8 against 64.1 at 0.33 bpp; 55.2 and 55.8 against 54.3 at 0.098",
          compare([(f"{head}-cresnet{n}", f"{head}-cresnet39")
                   for head in ("head-torfason2018", _LOWEST) for n in (51, 72)]),
          _zoo("codec-torfason2018", "codec-torfason2018-low", "head-torfason2018-cresnet*", f"{_LOWEST}-cresnet*")),
    Claim(TORFASON, "Fig. 6", "with decoding counted, latents give more for their computation: cResNet-72 (5.4 G) is "
          "better than ResNet-50 (6.7 G; 7.4 G with the decoder as it is here)",
          "55.8 against 55.3 at 0.098 bpp (T2; the figure has top-5)",
          compare([(f"{_LOWEST}-cresnet72", f"{_LOWEST}-resnet50")]), _zoo("codec-torfason2018-low", f"{_LOWEST}-*")),
    Claim(TORFASON, "Fig. 6", "cResNet-39 costs less than ResNet-50, even before decoding is counted",
          "2.95 G against 3.86 G", judges.computation,
          _zoo("codec-torfason2018", "head-torfason2018-cresnet39", "head-torfason2018-resnet50")),
    Claim(TORFASON, "T2", "segmentation by cResNet-39-d on latents comes up to ResNet-50-d on decoded images",
          "60.8 against 60.8 mIoU at 0.33 bpp, 53.5 against 53.0 at 0.098",
          compare([(f"segmenter-torfason2018{rate}-latents", f"segmenter-torfason2018{rate}-decoded")
                   for rate in ("", "-low")], 0.0, "miou"),
          _zoo("segmenter-torfason2018-latents", "segmenter-torfason2018-low-*", "segmenter-torfason2018-decoded")),
    Claim(TORFASON, "T2", "at the highest rate it comes within 1.2 points", "61.9 against 63.0 mIoU at 0.635 bpp",
          compare([("segmenter-torfason2018-high-latents", "segmenter-torfason2018-high-decoded")], -1.2, "miou"),
          _zoo("segmenter-torfason2018-high-*")),
    Claim(TORFASON, "T2", "segmentation by cResNet-51-d, which costs as much as ResNet-50-d, comes within 0.2 points",
          "54.6, 61.1, 62.9 against 53.0, 60.8, 63.0 mIoU at 0.098, 0.33 and 0.635 bpp",
          compare([(f"segmenter-torfason2018{rate}-latents51", f"segmenter-torfason2018{rate}-decoded")
                   for rate in ("-low", "", "-high")], -0.2, "miou"),
          _zoo("segmenter-torfason2018*-latents51", "segmenter-torfason2018*-decoded")),
    Claim(TORFASON, "Fig. 6", "segmentation by cResNet-72-d and ResNet-71-d", "55.8 against 54.6 mIoU at 0.098 bpp",
          not_run, ""),
    Claim(TORFASON, "Fig. 7", "joint training improves classification beyond its control, a codec trained on alone, a "
          "network trained on that from scratch, and then for longer (here cResNet-39 at 0.30 bpp, there cResNet-51)",
          "+2 at 0.098 bpp",
          compare([("joint-both", "joint-control-longer")]), _zoo("joint-*")),
    Claim(TORFASON, "Fig. 7", "and segmentation, from the codec and the classifier that were trained jointly",
          "+1.7 mIoU "
          "at 0.098 bpp", compare([("segmenter-joint-both", "segmenter-joint-control-longer")], 0.0, "miou"),
          _zoo("segmenter-joint-*")),
    Claim(TORFASON, "6.2", "training the codec alone on already helps classification slightly", "a plot",
          compare([("joint-control-classifier", "head-torfason2018-cresnet39")]),
          _zoo("head-torfason2018-cresnet39*", "joint-control*")),
    Claim(TORFASON, "6.2", "but hardly segmentation", "a plot", not_run, ""),
    Claim(TORFASON, "Fig. 11", "joint training gives better SSIM and MS-SSIM than training the codec alone", "a plot",
          judges.joint_quality, _zoo("joint-both", "joint-control")),
    Claim(TORFASON, "A.7", "but less PSNR", "a plot", judges.joint_psnr, _zoo("joint-both", "joint-control")),
    Claim(TORFASON, "Fig. 8", "the codec is better than JPEG and JPEG 2000 in SSIM and MS-SSIM", "a plot",
          beats("torfason2018", ("JPEG", "JPEG 2000"), ("ssim", "ms_ssim")), "`rate_distortion.py`"),
    Claim(TORFASON, "Fig. 12", "the order of run times is that of computation, of networks alone and with decoding",
          "a plot, of a GPU",
          judges.run_time, "`runtime.py`"),
    Claim(DENG, "T1", "FA-cResNet-39 is better than cResNet-39 with scales, at every rate (there MINC-2500's textures "
          "and codecs for MS-SSIM, here Imagenette and MSE)", "+2.9, +3.6, +3.5",
          compare(_at_rates(*_STARTED[:2])),
          _zoo("codec-low", "codec-high", "head-*-resnet50v1.5", "head-*-started")),
    Claim(DENG, "T1", "and than ResNet-50 on decoded images, of textures", "+1.4, +1.2, +2.0",
          compare(_at_rates(_STARTED[0], _STARTED[2])),
          _zoo("codec-low", "codec-high", "head-*-resnet50v1.5", "head-*-fa_cresnet39*-started")),
    Claim(DENG, "Fig. 6", "on ImageNet it is behind ResNet-50 on decoded images by a small gap (read as two points)",
          "a plot", compare(_at_rates(_STARTED[0], _STARTED[2]), -2.0),
          _zoo("codec-low", "codec-high", "head-*-resnet50v1.5", "head-*-fa_cresnet39*-started")),
    Claim(DENG, "Fig. 6", "on ImageNet it is better than Torfason et al.'s cResNet-39 and -51, and than Wang et al.'s "
          "ResNet-41 on images "
          "of one size", "a plot",
          compare([(f"head-hyperprior-{_STARTED[0]}", f"head-{rival}")
                   for rival in ("torfason2018-cresnet39", "torfason2018-cresnet51", "choi2019-resnet41")]),
          _zoo("codec-torfason2018", "codec-choi2019", "head-torfason2018-cresnet39", "head-torfason2018-cresnet51",
               "head-choi2019-resnet41", "head-hyperprior-resnet50v1.5", "head-hyperprior-fa_cresnet39-started")),
    Claim(DENG, "Fig. 6", "and up to 0.4 bpp than Chen et al.'s network, which reads the output of the first layers of "
          "a decoder (not implemented)", "a plot", not_run, ""),
    Claim(DENG, "not in the paper", "taking over the layers of a ResNet-50 (trained for 8 epochs) is better than "
          "random values, after 8 epochs", "none",
          compare([(f"head-hyperprior-{name}-started", f"head-hyperprior-{name}")
                   for name in ("fa_cresnet39", "cresnet39+scales")]),
          _zoo("head-hyperprior-fa_cresnet39*", "head-hyperprior-cresnet39+scales", "head-hyperprior-*-started")),
    Claim(DENG, "T3", "reading scales too helps", "+0.7, +1.0, +1.2",
          compare([("head-hyperprior-fa_cresnet39-started", "head-hyperprior-fa_cresnet39-scales-started")]),
          _zoo("head-hyperprior-fa_cresnet39-started", "head-hyperprior-fa_cresnet39-scales-started")),
    Claim(DENG, "T3", "attention and enhancement are better together than either", "76.5 against 74.5, 75.9",
          compare([("head-hyperprior-fa_cresnet39-started", f"head-hyperprior-cresnet39+scales+{part}-started")
                   for part in ("attention", "enhancement")]),
          _zoo("head-hyperprior-resnet50v1.5", "head-hyperprior-*-started")),
    Claim(DENG, "T3", "at the lowest rate, two to four convolutions in FA modules are better than three to five",
          "73.1 against 72.6 at 0.089 bpp",
          compare([("head-low-fa_cresnet39+few-started", "head-low-fa_cresnet39-started")]),
          _zoo("codec-low", "head-low-resnet50v1.5", "head-low-fa_cresnet39*-started")),
    Claim(DENG, "T3", "FA modules do more for latents than for decoded images: FA-cResNet-39 is better than FA-ResNet "
          "(from random values)", "73.1, 76.5, 77.9 against 73.0, 75.7, 75.4",
          compare([(f"head-hyperprior-{_STARTED[0]}", "head-hyperprior-fa_resnet50")]),
          _zoo("head-hyperprior-resnet50v1.5", f"head-hyperprior-{_STARTED[0]}", "head-hyperprior-fa_resnet50")),
    _variant("FA modules are better behind the first block of a layer than behind its last", "76.5 against 75.5",
             "last"),
    _variant("two attention poolings are better than the maximum, the mean, both, and one attention pooling",
             "76.5 against 75.8, 76.1, 76.1, 75.5", "pool-max", "pool-avg", "pool-max-avg", "pool-shared"),
    _variant("attention is better before the convolutions than on the skip connection, before the sum, and after it",
             "76.5 against 76.0, 74.9, 75.0", "cau-skip", "cau-inner", "cau-post"),
    _variant("weights and biases of channels are better than either", "76.5 against 75.4, 74.9", "scale", "bias"),
    _variant("a bottleneck of a sixteenth is better than one linear layer, and than two without reduction",
             "76.5 against 74.5, 74.8", "1fc", "r1"),
    _variant("more convolutions in later layers are better than as many in each", "76.5 against 76.3", "convs444"),
    Claim(DENG, "T3", "five other bottlenecks and six other numbers of convolutions; and table 3 at the lowest and the "
          "highest rate, but for what stands here", "74.7 to 76.5 at the middle rate", not_run, ""),
    Claim(DENG, "Fig. 2", "at low and middle rates a high portion of channels (read as half of them) has no or few "
          "values that are not 0 (read as 5 %)", "a plot", judges.sparsity, "`sparsity.py`"),
    Claim(DENG, "Fig. 7", "a codec for MS-SSIM serves FA-cResNet-39 better than one for MSE, at like rates", "a plot",
          compare([("head-ms-ssim-fa_cresnet39-started", "head-hyperprior-fa_cresnet39-started")]),
          _zoo("codec-ms-ssim", "head-hyperprior-resnet50v1.5", "head-*-fa_cresnet39-started")),
    Claim(DENG, "T2", "parameters and multiply-adds of the network", "42.0 M; nine figures",
          lambda results: ("all nine are reproduced by counting, in the tests", HOLDS), "`pytest tests`"),
    Claim(DENG, "T2", "the network is as fast as ResNet-50, and decoding takes a hundred times as long",
          "1.8 and 2.2 ms of a device that it does not name; 289 ms",
          judges.inference_time, "`runtime.py --paper deng2023`"),
    Claim(EHRLICH, "T1", "a converted network is the pixel network, to floating-point error (against a decoder that "
          "neither rounds nor clamps)", "9e-06 on CIFAR-10",
          judges.conversion, "`conversion_deviation.py`"),
    Claim(EHRLICH, "T1", "the MNIST and CIFAR-100 columns", "3e-06, 1e-06", not_run, ""),
    Claim(EHRLICH, "Fig. 4a", "ASM has a smaller error than APX", "a plot", judges.relu_error, "`relu_rmse.py`"),
    Claim(EHRLICH, "Fig. 4b", "ASM is more accurate than APX in a converted network", "a plot",
          judges.approximations(("converted", "asm"), ("converted", "apx")), "`accuracy.py`"),
    Claim(EHRLICH, "Fig. 4c", "and in a network that was trained with it: here trained on for 200 steps", "a plot",
          judges.approximations(("adapted", "asm"), ("adapted", "apx")), "`accuracy.py`"),
    Claim(EHRLICH, "Fig. 4c", "and from random values, for 700 steps", "a plot",
          judges.approximations(("scratch", "asm"), ("scratch", "apx")), "`accuracy.py`"),
    Claim(EHRLICH, "Fig. 4c", "weights learn to cope with the approximation (beyond new statistics of batch norm)",
          "a plot", judges.approximations(("adapted", "asm"), ("recalibrated", "asm")), "`accuracy.py`"),
    Claim(EHRLICH, "Fig. 5", "the JPEG network is faster than decoding and a pixel network", "a plot, of a GPU",
          judges.throughput, "`throughput.py`"),
    Claim(BAI, "T1", "the network without rate is as good as DeiT-S", "81.7 against 79.9 (DeiT-S)",
          compare([("icat-first", "icat-pixels")], -1.0), _zoo("icat-first", "icat-pixels")),
    Claim(BAI, "T1", "on iNaturalist 2019 too; and against ResNet-50 and Swin-T", "", not_run, ""),
    Claim(BAI, "Fig. 4", "rate and distortion are better than those of JPEG and JPEG 2000", "a plot",
          judges.icat_rate("JPEG", "JPEG 2000"), "`rate_distortion.py`"),
    Claim(BAI, "Fig. 4", "and than those of bmshj2018 and mbt2018_mean", "a plot",
          judges.icat_rate("bmshj2018_hyperprior", "mbt2018_mean"), "`rate_distortion.py`"),
    Claim(BAI, "Fig. 4", "and at low rates like BPG's (for which there is no encoder at hand)", "a plot", not_run, ""),
    Claim(BAI, "Fig. 4", "mbt2018_mean's are alike when it is trained on together with a classifier", "a plot",
          judges.rival_trained_on, _zoo("codec-mbt2018-mean", "icat-rival")),
    Claim(BAI, "Fig. 4", "rate and accuracy are better than those of mbt2018_mean + classifier, trained on together",
          "a plot", judges.icat_accuracy, _zoo("icat-first", "icat-second", "codec-mbt2018-mean", "icat-rival")),
    Claim(BAI, "Fig. 4", "and than those of classifiers that were not trained on, behind other codecs, with ResNet-50 "
          "and Swin-T", "a plot", not_run, ""),
    Claim(BAI, "Fig. 6", "larger alpha / beta trades PSNR for accuracy; aggregation helps both", "a plot",
          judges.icat_ablations, _zoo("icat-*")),
    Claim(BAI, "Fig. 7", "encoding costs what mbt2018_mean's does, rebuilding more, classifying less", "a plot",
          judges.icat_cost, "`cost.py`"),
]  # fmt: skip
"""In the order of the papers."""


def judged(claim: Claim, results: Results) -> Finding:
    """Return the finding on a claim and the verdict."""
    try:
        return claim.judge(results)
    except MissingError:
        return "", NOT_RUN
