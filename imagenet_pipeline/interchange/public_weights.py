"""A short list of weights on the web: where they are, what they are, and what tells whether they arrived whole.

torchvision's names end in the first eight hexadecimal digits of their SHA-256, which is what torch.hub checks them by;
the sizes (in MiB to three decimals), accuracies and crops are those that torchvision's source states
(`torchvision.models.*_Weights` of 0.28: `_file_size`, `_metrics`, `transforms`). No longer digest is stated there.
"""

from __future__ import annotations

from dataclasses import dataclass

ADDRESS = "https://download.pytorch.org/models/"
LICENCE = (
    "torchvision's, BSD-3-Clause; it adds that pre-trained weights may have terms of their own, from the data set "
    "(ImageNet: research only)"
)
SOURCE = "torchvision 0.28, models/*.py"
MIB = 2**20


@dataclass(frozen=True)
class PublicWeights:
    """A file of weights on the web. Accuracies in percent, on ImageNet's 50,000 validation images."""

    name: str
    network: str
    url: str
    digest: str
    """The first hexadecimal digits of its SHA-256."""
    mib: float
    rank1: float
    rank5: float
    crop_fraction: float
    licence: str = LICENCE
    source: str = SOURCE

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    def has_size(self, size_bytes: int) -> bool:
        """True for a number of bytes that is the stated one, as far as it is stated."""
        return abs(size_bytes / MIB - self.mib) <= 0.001

    @property
    def most_bytes(self) -> int:
        """The largest size that is the stated one."""
        return int((self.mib + 0.001) * MIB)


def _torchvision(
    name: str, file_name: str, mib: float, rank1: float, rank5: float, network: str = "", crop: float = 224 / 256
) -> PublicWeights:
    digest = file_name.rpartition("-")[2].partition(".")[0]
    return PublicWeights(name, network or name, ADDRESS + file_name, digest, mib, rank1, rank5, crop)


_V2 = 224 / 232
"""Of torchvision's second recipe (2021)."""
PUBLIC_WEIGHTS = (
    _torchvision("alexnet", "alexnet-owt-7be5be79.pth", 233.087, 56.522, 79.066, "alexnet_one_tower"),
    _torchvision("vgg11", "vgg11-8a719046.pth", 506.840, 69.020, 88.628),
    _torchvision("vgg13", "vgg13-19584684.pth", 507.545, 69.928, 89.246),
    _torchvision("vgg16", "vgg16-397923af.pth", 527.796, 71.592, 90.382),
    _torchvision("vgg19", "vgg19-dcbb9e9d.pth", 548.051, 72.376, 90.876),
    _torchvision("vgg11_bn", "vgg11_bn-6002323d.pth", 506.881, 70.370, 89.810),
    _torchvision("vgg13_bn", "vgg13_bn-abd245e5.pth", 507.590, 71.586, 90.374),
    _torchvision("vgg16_bn", "vgg16_bn-6c64b313.pth", 527.866, 73.360, 91.516),
    _torchvision("vgg19_bn", "vgg19_bn-c79401a0.pth", 548.143, 74.218, 91.842),
    _torchvision("resnet18", "resnet18-f37072fd.pth", 44.661, 69.758, 89.078),
    _torchvision("resnet34", "resnet34-b627a593.pth", 83.275, 73.314, 91.420),
    _torchvision("resnet50", "resnet50-11ad3fa6.pth", 97.790, 80.858, 95.434, crop=_V2),
    _torchvision("resnet50-imagenet1k_v1", "resnet50-0676ba61.pth", 97.781, 76.130, 92.862, "resnet50"),
    _torchvision("resnet101", "resnet101-cd907fc2.pth", 170.530, 81.886, 95.780, crop=_V2),
    _torchvision("resnet101-imagenet1k_v1", "resnet101-63fe2227.pth", 170.511, 77.374, 93.546, "resnet101"),
    _torchvision("resnet152", "resnet152-f82ba261.pth", 230.474, 82.284, 96.002, crop=_V2),
    _torchvision("resnet152-imagenet1k_v1", "resnet152-394f9c45.pth", 230.434, 78.312, 94.046, "resnet152"),
    _torchvision("squeezenet1_0", "squeezenet1_0-b66bff10.pth", 4.778, 58.092, 80.420),
    _torchvision("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", 4.729, 58.178, 80.624),
    _torchvision("densenet121", "densenet121-a639ec97.pth", 30.845, 74.434, 91.972),
    _torchvision("densenet161", "densenet161-8d451a50.pth", 110.369, 77.138, 93.560),
    _torchvision("densenet169", "densenet169-b2777c0a.pth", 54.708, 75.600, 92.806),
    _torchvision("densenet201", "densenet201-c1103571.pth", 77.373, 76.896, 93.370),
    _torchvision("googlenet", "googlenet-1378be20.pth", 49.731, 69.778, 89.530, "googlenet_bn"),
    _torchvision("inception_v3", "inception_v3_google-0cc3c7bd.pth", 103.903, 77.294, 93.450, crop=299 / 342),
)


def weights_of_digest(sha256: str) -> PublicWeights | None:
    """The file on the list that a digest is the digest of, as far as it is known."""
    return next((entry for entry in PUBLIC_WEIGHTS if sha256.startswith(entry.digest)), None)
