"""List the trainings behind ``docs/results.md``, the most useful first.

A run is a command of a recipe. ``run.py`` fills in the names in braces: ``{data}`` is the training split of Imagenette,
``{kodak}`` the Kodak photographs, ``{camvid}`` CamVid, ``{home}`` the folder of all runs, and ``{cache}`` the folder of
latents and decoded images of frozen codecs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Planned(NamedTuple):
    """One run.

    Attributes:
        name: of its folder below ``{home}`` and of its result.
        script: below ``examples``.
        arguments: of the script, but for ``--out``.
        needs: names of runs whose results it reads.
    """

    name: str
    script: str
    arguments: str
    needs: tuple[str, ...] = ()


HYPERPRIOR = "BMSHJ2018_Hyperprior_Weights.IMAGENETTE_N48_M64"
"""Ships with the package; the other codecs with a prior start from it, since an hour of training is in it."""

_CODEC = (
    "codec --small --data {data} --test {kodak} --threads 1 --cpu-clock --half --checkpoint-minutes 2 "
    "--evaluate-every 4"
)
_HEAD = "classifier --small --data {data} --cache {cache} --threads 1 --cpu-clock"


def _hyperprior(name: str, arguments: str, minutes: int) -> Planned:
    more = f"--init {HYPERPRIOR} --lr 5e-4 --minutes {minutes}"
    return Planned(name, "recipes/hyperprior.py", f"{_CODEC} {more} {arguments}")


def _choi2019(name: str, beta1: int) -> Planned:
    more = f"--N 48 --latent-channels 64 --init {HYPERPRIOR} --lr 5e-4 --beta1 {beta1} --minutes 10"
    return Planned(name, "recipes/wang2022.py", f"{_CODEC} {more}")


CODECS = [
    Planned("codec-torfason2018", "recipes/torfason2018.py", f"{_CODEC} --rate 0.330 --minutes 25"),
    _choi2019("codec-choi2019", 100),
    _hyperprior("codec-mbt2018-mean", "--model mbt2018_mean --lmbda 0.006", 8),
    _hyperprior("codec-low", "--lmbda 0.0012", 7),
    _hyperprior("codec-high", "--lmbda 0.02", 7),
    _hyperprior("codec-ms-ssim", "--metric ms-ssim --lmbda 12 --crop 176 --batch 4", 8),
]
"""At one rate, about 0.3 bits per pixel of Kodak's photographs, for each codec; then the lowest and the highest, and
another metric."""

TORFASON2018 = [
    Planned(f"codec-torfason2018-{name}", "recipes/torfason2018.py", f"{_CODEC} --rate {rate} --minutes 15")
    for name, rate in (("low", 0.0983), ("high", 0.635))
]
"""Torfason et al.'s codec at its other rates."""

CHOI2019 = [_choi2019("codec-choi2019-low", 40), _choi2019("codec-choi2019-high", 200)]
"""The codec of Wang et al. at its highest rate and at a low one.

With the paper's lowest weight, 20, most values of this codec round to 0 after so few steps (15 dB); training with noise
does not see that.
"""

_FOLDERS = {
    planned.name.removeprefix("codec-"): f"{{home}}/{planned.name}/codec"
    for planned in (*CODECS, *TORFASON2018, *CHOI2019)
}
_FOLDERS["hyperprior"] = HYPERPRIOR

PACKAGED = {
    "hyperprior": HYPERPRIOR,
    "low": f"{HYPERPRIOR}_LOW",
    "high": f"{HYPERPRIOR}_HIGH",
    "torfason2018": "Torfason2018_Weights.IMAGENETTE_C16_N32",
    "choi2019": "Choi2019_Weights.IMAGENETTE_N48_M64",
}
"""What of these came to ship."""


def head(codec: str | None, model: str, arguments: str = "", *, name: str = "") -> Planned:
    """A network of ``recipes/heads.py`` on what a codec leaves, or on the original images."""
    width = "--width 0.5 " if model.startswith("mobilenet") else ""
    given = f"--codec {_FOLDERS[codec]} " if codec else ""
    label = f"head-{codec or 'original'}-{name or model}"
    needs = () if codec in (None, "hyperprior") else (f"codec-{codec}",)
    return Planned(label, "recipes/heads.py", f"{_HEAD} {given}--model {model} {width}{arguments}".strip(), needs)


def seeded(planned: Planned, seed: int) -> Planned:
    """The same from other random values, as is everything that it reads but for codecs; without another search."""
    names = {name: name if name.startswith("codec-") else f"{name}-seed{seed}" for name in planned.needs}
    arguments = planned.arguments + (" --rates 0.004" if planned.script == "recipes/heads.py" else "")
    for name, other in names.items():
        arguments = arguments.replace(f"{{home}}/{name}/", f"{{home}}/{other}/")
    return planned._replace(
        name=f"{planned.name}-seed{seed}", arguments=f"{arguments} --seed {seed}", needs=tuple(names.values())
    )


ONE_RATE = [
    head("hyperprior", "resnet50"),
    head("hyperprior", "cresnet39+scales", "--enlarge 2"),
    head("hyperprior", "mobilenet_v2_45"),
    head("torfason2018", "cresnet39", "--centre"),
    head("choi2019", "resnet41"),
    head("hyperprior", "fa_cresnet39", "--enlarge 2"),
    head("torfason2018", "resnet50"),
    head("hyperprior", "cresnet39", "--enlarge 2"),
    head("hyperprior", "resnet41"),
    head(None, "resnet50"),
    head("choi2019", "resnet50"),
    head("hyperprior", "mobilenet_v2"),
    head(None, "mobilenet_v2"),
]
"""Step 1: every head on latents at the first rate, and its rivals on pixels."""

_ICAT = "--small --data {data} --threads 1 --cpu-clock --checkpoint-minutes 2 --evaluate-every 4"
ICAT = [
    Planned("icat-first", "recipes/icat2022.py", f"first {_ICAT} --minutes 18"),
    Planned(
        "icat-second", "recipes/icat2022.py",
        f"second {_ICAT} --minutes 14 --init {{home}}/icat-first/icat --test {{kodak}}", ("icat-first",),
    ),
    Planned(
        "icat-rival", "recipes/icat2022.py",
        f"rival {_ICAT} --minutes 32 --codec {_FOLDERS['mbt2018-mean']} --test {{kodak}}", ("codec-mbt2018-mean",),
    ),
    Planned("icat-pixels", "recipes/icat2022.py", f"pixels {_ICAT} --minutes 18"),
]  # fmt: skip
"""Both steps; DeiT of that width behind a codec, trained on with it, for as long as both; and alone, as the first."""

ICAT_ABLATIONS = [
    *(
        Planned(
            f"icat-second-ratio{ratio}", "recipes/icat2022.py",
            f"second {_ICAT} --minutes 14 --ratio {ratio} --init {{home}}/icat-first/icat --test {{kodak}}",
            ("icat-first",),
        )
        for ratio in (50, 200)
    ),
    Planned("icat-first-plain", "recipes/icat2022.py", f"first {_ICAT} --minutes 18 --no-aggregation"),
    Planned(
        "icat-second-plain", "recipes/icat2022.py",
        f"second {_ICAT} --minutes 14 --init {{home}}/icat-first-plain/icat --test {{kodak}}", ("icat-first-plain",),
    ),
]  # fmt: skip
"""What bits are spent on, and aggregation (Bai et al., figure 6)."""

_SEGMENTER = "segmenter --small --data {camvid} --threads 1 --cpu-clock --checkpoint-minutes 2 --evaluate-every 20"


def _segmenting(name: str, script: str, codec: str, model: str, *needs: str) -> Planned:
    """From the layers of the classifier that the last of ``needs`` has trained, on what ``codec`` leaves."""
    more = f"--epochs 18 --codec {codec} --model {model} --classifier {{home}}/{needs[-1]}/classifier"
    return Planned(f"segmenter-{name}", script, f"{_SEGMENTER} {more}", needs)


def _segmenter(codec: str, kind: str, script: str, model: str, start: str) -> Planned:
    return _segmenting(f"{codec}-{kind}", script, _FOLDERS[codec], model, f"head-{codec}-{start}")


SEGMENTATION = [
    _segmenter(codec, kind, "recipes/torfason2018.py", model, start)
    for codec in ("torfason2018", "torfason2018-low")
    for kind, model, start in (("latents", "cresnet39_d", "cresnet39"), ("decoded", "resnet50_d", "resnet50"))
]

DEEPER_SEGMENTATION = [
    *(
        _segmenter(codec, "latents51", "recipes/torfason2018.py", "cresnet51_d", "cresnet51")
        for codec in ("torfason2018", "torfason2018-low", "torfason2018-high")
    ),
    _segmenter("torfason2018-high", "decoded", "recipes/torfason2018.py", "resnet50_d", "resnet50"),
    _segmenter("torfason2018-high", "latents", "recipes/torfason2018.py", "cresnet39_d", "cresnet39"),
    _segmenter("choi2019", "latents", "recipes/wang2022.py", "resnet41_seg", "resnet41"),
]
"""The network with the cost of its rival, and the highest rate (Torfason et al., table 2; Wang et al., table 5)."""

_ANCHOR = "resnet50v1.5"


_FA = {"low": "fa_cresnet39+few"}
"""At the lowest rate Deng & Karam's FA modules have two to four convolutions, at others three to five."""


def _started(codec: str, model: str, of: Callable[..., Planned] = head, epochs: float = 8) -> Planned:
    """As Deng & Karam train: from the layers of a ResNet-50 on decoded images, frozen for 15 of 35 epochs."""
    trained = of(codec, _ANCHOR).name
    more = f"--enlarge 2 --start {{home}}/{trained}/classifier --frozen {round(epochs * 15 / 35, 1)}"
    planned = of(codec, model, more, name=f"{model}-started")
    return planned._replace(needs=(*planned.needs, trained))


STARTED = [
    planned
    for codec in ("hyperprior", "low", "high")
    for planned in (
        head(codec, _ANCHOR), _started(codec, _FA.get(codec, "fa_cresnet39")), _started(codec, "cresnet39+scales")
    )
]  # fmt: skip
"""Deng & Karam at three rates; the lowest and the highest are step 2."""

PARTS = [_started("hyperprior", f"cresnet39+scales+{part}") for part in ("attention", "enhancement")]
"""Half of each FA module (Deng & Karam, table 3)."""

METRICS = [head("ms-ssim", _ANCHOR), _started("ms-ssim", "fa_cresnet39")]
"""Another metric (Deng & Karam, figure 7)."""

INPUTS = [_started("hyperprior", "fa_cresnet39-scales")]
"""Without scales (Deng & Karam, table 3)."""

VARIANTS = [
    *(
        _started("hyperprior", f"fa_cresnet39+{variant}")
        for variant in (
            "last", "pool-max", "pool-avg", "pool-max-avg", "pool-shared", "cau-skip", "cau-inner", "cau-post",
            "scale", "bias", "1fc", "r1", "convs444",
        )
    ),
    head("hyperprior", "fa_resnet50"),
]  # fmt: skip
"""The rest of Deng & Karam's table 3, at one rate: one thing changed at a time, as ``heads.py`` names it."""

CONVOLUTIONS = [_started("low", "fa_cresnet39")]
"""As many convolutions at the lowest rate as at others (Deng & Karam, table 3)."""

CHANNELS = [head("choi2019", "resnet41", f"--channels {n}", name=f"resnet41-{n}channels") for n in (8, 4)]
"""An eighth and a sixteenth of all channels, as 32 and 16 of 256 in the paper."""

UNMIRRORED = [
    head("hyperprior", "cresnet39", "--enlarge 2 --rates 0.004 --no-mirror", name="cresnet39-unmirrored"),
    head("choi2019", "resnet41", "--rates 0.004 --no-mirror", name="resnet41-unmirrored"),
]
"""A mirrored latent is not that of the mirrored image: what the common recipe wins or loses by mirroring latents."""

_JOINT = (
    "joint --small --data {data} --threads 1 --cpu-clock --rate 0.330 --half --lr 0.0025 --clip 1 --evaluate-every 4"
)
_ALONE = head("torfason2018", "cresnet39").name
JOINT = [
    Planned(
        "joint-both", "recipes/torfason2018.py",
        f"{_JOINT} --minutes 6 --codec {_FOLDERS['torfason2018']} --classifier {{home}}/{_ALONE}/classifier",
        ("codec-torfason2018", _ALONE),
    ),
    Planned(
        "joint-control", "recipes/torfason2018.py",
        f"{_JOINT} --minutes 5 --train codec --codec {_FOLDERS['torfason2018']} "
        f"--classifier {{home}}/{_ALONE}/classifier",
        ("codec-torfason2018", _ALONE),
    ),
    Planned(
        "joint-control-classifier", "recipes/heads.py",
        f"{_HEAD} --codec {{home}}/joint-control/codec --model cresnet39 --centre", ("joint-control",),
    ),
    Planned(
        "joint-control-longer", "recipes/torfason2018.py",
        f"{_JOINT} --minutes 3 --train classifier --codec {{home}}/joint-control/codec "
        "--classifier {home}/joint-control-classifier/classifier",
        ("joint-control", "joint-control-classifier"),
    ),
]  # fmt: skip
"""Joint training, and the three steps of its control (Torfason et al., 6.1)."""

JOINT_SEGMENTATION = [
    _segmenting(needs[-1], "recipes/torfason2018.py", f"{{home}}/{needs[0]}/codec", "cresnet39_d", *needs)
    for needs in (("joint-both",), ("joint-control", "joint-control-longer"))
]
"""Segmentation from what joint training and its control came to (Torfason et al., 6.2)."""

OTHER_RATES = [
    head(f"torfason2018-{rate}", model, arguments)
    for rate in ("low", "high")
    for model, arguments in (("cresnet39", "--centre"), ("resnet50", ""))
]
"""Torfason et al. at its lowest and highest rate."""

OTHER_RATES_CHOI = [
    *(head(f"choi2019-{rate}", model) for rate in ("low", "high") for model in ("resnet41", "resnet50")),
    head("choi2019-low", "resnet41", "--channels 8", name="resnet41-8channels"),
]
"""Wang et al. at a low rate and at its highest; few channels are said to be better at its lowest (table 4)."""

DEPTHS = [head("torfason2018", model, "--centre") for model in ("cresnet51", "cresnet72")]
OTHER_DEPTHS = [
    head(f"torfason2018-{rate}", model, "--centre" if model.startswith("c") else "")
    for rate, model in (("low", "cresnet51"), ("low", "cresnet72"), ("low", "resnet71"), ("high", "cresnet51"))
]
"""Torfason et al., table 2, which has the deepest at the lowest rate; figure 6."""

_SIZES = "classifier --small --data {data} --threads 1 --cpu-clock --checkpoint-minutes 2 --evaluate-every 10"
SIZES = [
    Planned(
        f"sizes-{name}", "recipes/wang2022.py",
        f"{_SIZES} --codec {_FOLDERS['choi2019']} --model resnet41 --epochs 4 --mixed-sizes 96 192 "
        f"--min-size {low} --max-size {high}",
        ("codec-choi2019",),
    )
    for name, low, high in (("variable", 96, 192), ("fixed-small", 96, 96), ("fixed-large", 192, 192))
]  # fmt: skip
"""Training on one size or on many, for validation images of many (Wang et al., table 3); the paper has 224 and 448."""
SIZES.append(
    Planned(
        "sizes-decoded", "recipes/wang2022.py",
        f"{_SIZES} --codec {_FOLDERS['choi2019']} --model resnet50 --epochs 4 --mixed-sizes 96 192 --pixel-size 128",
        ("codec-choi2019",),
    )
)  # fmt: skip
"""And after reconstruction, at one size (Wang et al., table 2)."""

LARGE = [
    Planned(
        f"large-{name}", "recipes/wang2022.py",
        f"{_SIZES} --codec {_FOLDERS['choi2019']} --model resnet49 --epochs 4 --mixed-sizes 224 336 "
        f"--min-size {low} --max-size {high}",
        ("codec-choi2019",),
    )
    for name, low, high in (("variable", 168, 280), ("fixed", 224, 224))
]  # fmt: skip
"""Table 7 at a quarter of its sizes, 896 and 672 to 1120, for larger validation images."""

SEEDS = [
    seeded(planned, seed)
    for group in (
        (ONE_RATE[3], ONE_RATE[6]),  # Torfason et al., table 2
        (*STARTED[:3], *PARTS),  # Deng & Karam, tables 1 and 3
        (ONE_RATE[4], CHANNELS[0]),  # Wang et al., table 4
        (SIZES[0], SIZES[2]),  # Wang et al., table 3
    )
    for seed in (1, 2)
    for planned in group
]
"""Of comparisons at the first rate whose two networks differ by less than two points: three seeds, with that of all.
The rate is the one that the search of the first seed came to, the same for all of them."""

FULL_EPOCHS, WIDE_EPOCHS = 20, 34
_DEVICE = "--held --workers 16 --threads 1 --amp bf16 --ema 0.998 --evaluate-every 1000 --checkpoint-minutes 60"
_FULL = (
    f"classifier --data {{data}} --cache {{cache}} --size 224 --crop 192 --views 3 --epochs {FULL_EPOCHS} "
    f"--rates 1e-3 {_DEVICE}"
)


def full(codec: str, model: str, arguments: str = "", *, name: str = "") -> Planned:
    """As :func:`head`, at the published width, for an accelerator."""
    label = f"full-{codec}-{name or model}"
    return Planned(label, "recipes/heads.py", f"{_FULL} --codec {PACKAGED[codec]} --model {model} {arguments}".strip())


FULL = [
    *(full(codec, _ANCHOR) for codec in ("hyperprior", "low")),
    full("torfason2018", "resnet50"),
    full("torfason2018", "cresnet39", "--centre"),
    *(
        _started(codec, model, full, FULL_EPOCHS)
        for codec in ("hyperprior", "low")
        for model in (_FA.get(codec, "fa_cresnet39"), "cresnet39+scales")
    ),
    full("choi2019", "resnet41"),
    full("choi2019", "resnet50"),
]
"""The comparisons of Deng & Karam, Torfason et al. and Wang et al. at the published widths."""

_WIDE = (
    f"classifier --data {{data}} --cache {{cache}} --size 224 --crop 224 --views 5 --epochs {WIDE_EPOCHS} "
    f"--rates 2e-3 --smoothing 0.1 {_DEVICE}"
)
WIDE = [
    Planned(
        f"wide-{codec}-{model}", "recipes/heads.py",
        f"{_WIDE} --codec {PACKAGED[codec]} --model {model} --width {width} {arguments}".strip(),
    )
    for codec, model, width, arguments in (
        ("hyperprior", "fa_cresnet39", 0.25, "--enlarge 2"),
        ("torfason2018", "cresnet39", 0.25, "--centre"),
        ("choi2019", "resnet41", 0.25, ""),
        ("hyperprior", "mobilenet_v2_45", 0.5, ""),
    )
]  # fmt: skip
"""What is meant to ship: longer, at 224 pixels."""

PLAN = [
    *CODECS[:3],
    *ONE_RATE[:6],
    *SEGMENTATION[:1],
    *ICAT,
    *ONE_RATE[6:],
    *SEGMENTATION[1:2],
    *CODECS[3:5],
    *STARTED,
    *JOINT,
    *SIZES,
    *CHANNELS,
    *UNMIRRORED,
    *CODECS[5:],
    *METRICS,
    head("choi2019", "mobilenet_v2_45"),
    head("choi2019", "mobilenet_v2"),
    *DEPTHS,
    *PARTS,
    *INPUTS,
    *CONVOLUTIONS,
    *ICAT_ABLATIONS,
    *TORFASON2018,
    *OTHER_RATES,
    *SEGMENTATION[2:],
    *LARGE,
    *OTHER_DEPTHS,
    *CHOI2019,
    *OTHER_RATES_CHOI,
    *SEEDS,
    *DEEPER_SEGMENTATION,
    *JOINT_SEGMENTATION,
    *VARIANTS,
    *FULL,
    *WIDE,
]
"""Everything, the most useful first: what ships, then one rate, then the others."""
