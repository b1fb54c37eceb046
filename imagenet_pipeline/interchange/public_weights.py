"""A short list of weights on the web: where they are, what they are, and what tells whether they arrived whole.

Addresses, sizes (in MiB to three decimals), accuracies and crops are those of torchvision's source
(`torchvision.models.*_Weights` of 0.28: `url`, `_file_size`, `_metrics`, `transforms`), and its file names end in the
first eight hexadecimal digits of their SHA-256, which is what torch.hub checks. Longer digests, and sizes to the byte,
are what at least two public repositories that know nothing of each other state of the same file; where there are no
two, the eight digits must do.
"""

from __future__ import annotations

from dataclasses import dataclass

ADDRESS = "https://download.pytorch.org/models/"
LICENCE = (
    "BSD-3-Clause as torchvision is; pre-trained weights may have terms of their own, says torchvision, from the data "
    "they were trained on (ImageNet: for research)"
)
SOURCE = "torchvision 0.28, models/*.py"
DIGITS = 64
"""Hexadecimal digits of a SHA-256."""
MIB = 2**20


@dataclass(frozen=True)
class PublicWeights:
    """A file of weights on the web. Accuracies in percent, on ImageNet's 50,000 validation images."""

    name: str
    network: str
    url: str
    digest: str
    """Its SHA-256, or the first digits of it."""
    mib: float
    size_bytes: int | None
    """Its size, where it is known to the byte."""
    rank1: float
    rank5: float
    crop_fraction: float
    licence: str = LICENCE
    source: str = SOURCE

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def is_digest_whole(self) -> bool:
        return len(self.digest) == DIGITS

    def has_size(self, size_bytes: int) -> bool:
        """True for a number of bytes that is the stated one, as far as it is stated."""
        return size_bytes == self.size_bytes if self.size_bytes else abs(size_bytes / MIB - self.mib) <= 0.001

    @property
    def most_bytes(self) -> int:
        """The largest size that is the stated one."""
        return self.size_bytes or int((self.mib + 0.001) * MIB)


def _torchvision(
    name: str,
    file_name: str,
    mib: float,
    rank1: float,
    rank5: float,
    digest: str = "",
    size_bytes: int | None = None,
    network: str = "",
    crop: float = 224 / 256,
) -> PublicWeights:
    digest = digest or file_name.rpartition("-")[2].partition(".")[0]
    return PublicWeights(name, network or name, ADDRESS + file_name, digest, mib, size_bytes, rank1, rank5, crop)


V2 = 224 / 232
"""Crop of torchvision's second recipe (2021)."""
PUBLIC_WEIGHTS = (
    _torchvision("alexnet", "alexnet-owt-7be5be79.pth", 233.087, 56.522, 79.066,
                 "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02", 244_408_911, "alexnet_one_tower"),
    _torchvision("vgg11", "vgg11-8a719046.pth", 506.840, 69.020, 88.628),
    _torchvision("vgg13", "vgg13-19584684.pth", 507.545, 69.928, 89.246),
    _torchvision("vgg16", "vgg16-397923af.pth", 527.796, 71.592, 90.382,
                 "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0", 553_433_881),
    _torchvision("vgg19", "vgg19-dcbb9e9d.pth", 548.051, 72.376, 90.876,
                 "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44", 574_673_361),
    _torchvision("vgg11_bn", "vgg11_bn-6002323d.pth", 506.881, 70.370, 89.810),
    _torchvision("vgg13_bn", "vgg13_bn-abd245e5.pth", 507.590, 71.586, 90.374),
    _torchvision("vgg16_bn", "vgg16_bn-6c64b313.pth", 527.866, 73.360, 91.516),
    _torchvision("vgg19_bn", "vgg19_bn-c79401a0.pth", 548.143, 74.218, 91.842),
    _torchvision("resnet18", "resnet18-f37072fd.pth", 44.661, 69.758, 89.078,
                 "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 46_830_571),
    _torchvision("resnet34", "resnet34-b627a593.pth", 83.275, 73.314, 91.420,
                 "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"),
    _torchvision("resnet50", "resnet50-11ad3fa6.pth", 97.790, 80.858, 95.434,
                 "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca", 102_540_417, crop=V2),
    _torchvision("resnet50-imagenet1k_v1", "resnet50-0676ba61.pth", 97.781, 76.130, 92.862,
                 "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", 102_530_333, "resnet50"),
    _torchvision("resnet101", "resnet101-cd907fc2.pth", 170.530, 81.886, 95.780,
                 "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e", crop=V2),
    _torchvision("resnet101-imagenet1k_v1", "resnet101-63fe2227.pth", 170.511, 77.374, 93.546,
                 "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a", network="resnet101"),
    _torchvision("resnet152", "resnet152-f82ba261.pth", 230.474, 82.284, 96.002, crop=V2),
    _torchvision("resnet152-imagenet1k_v1", "resnet152-394f9c45.pth", 230.434, 78.312, 94.046,
                 "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58", network="resnet152"),
    _torchvision("resnext50_32x4d", "resnext50_32x4d-1a0047aa.pth", 95.833, 81.198, 95.340, crop=V2),
    _torchvision("resnext50_32x4d-imagenet1k_v1", "resnext50_32x4d-7cdf4587.pth", 95.789, 77.618, 93.698,
                 network="resnext50_32x4d"),
    _torchvision("resnext101_32x8d", "resnext101_32x8d-110c445d.pth", 339.673, 82.834, 96.228, crop=V2),
    _torchvision("resnext101_32x8d-imagenet1k_v1", "resnext101_32x8d-8ba56ff5.pth", 339.586, 79.312, 94.526,
                 network="resnext101_32x8d"),
    _torchvision("resnext101_64x4d", "resnext101_64x4d-173b62eb.pth", 319.318, 83.246, 96.454, crop=V2),
    _torchvision("wide_resnet50_2", "wide_resnet50_2-9ba9bcbe.pth", 263.124, 81.602, 95.758, crop=V2),
    _torchvision("wide_resnet50_2-imagenet1k_v1", "wide_resnet50_2-95faca4d.pth", 131.820, 78.468, 94.086,
                 network="wide_resnet50_2"),
    _torchvision("wide_resnet101_2", "wide_resnet101_2-d733dc28.pth", 484.747, 82.510, 96.020, crop=V2),
    _torchvision("wide_resnet101_2-imagenet1k_v1", "wide_resnet101_2-32ee1156.pth", 242.896, 78.848, 94.284,
                 network="wide_resnet101_2"),
    _torchvision("squeezenet1_0", "squeezenet1_0-b66bff10.pth", 4.778, 58.092, 80.420),
    _torchvision("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", 4.729, 58.178, 80.624,
                 "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b", 4_958_839),
    _torchvision("densenet121", "densenet121-a639ec97.pth", 30.845, 74.434, 91.972,
                 "a639ec97d7c33b07ae66f0b5fb7d0192f95a3b11b7576c66c0126c2a727c4395", 32_342_954),
    _torchvision("densenet161", "densenet161-8d451a50.pth", 110.369, 77.138, 93.560),
    _torchvision("densenet169", "densenet169-b2777c0a.pth", 54.708, 75.600, 92.806),
    _torchvision("densenet201", "densenet201-c1103571.pth", 77.373, 76.896, 93.370),
    _torchvision("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth", 13.598, 72.154, 90.822, crop=V2),
    _torchvision("mobilenet_v2-imagenet1k_v1", "mobilenet_v2-b0353104.pth", 13.555, 71.878, 90.286,
                 network="mobilenet_v2"),
    _torchvision("mobilenet_v3_large", "mobilenet_v3_large-5c1a4163.pth", 21.107, 75.274, 92.566, crop=V2),
    _torchvision("mobilenet_v3_large-imagenet1k_v1", "mobilenet_v3_large-8738ca79.pth", 21.114, 74.042, 91.340,
                 network="mobilenet_v3_large"),
    _torchvision("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth", 9.829, 67.668, 87.402),
    _torchvision("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth", 20.451, 77.692, 93.532),
    _torchvision("convnext_tiny", "convnext_tiny-983f1562.pth", 109.119, 82.520, 96.146, crop=224 / 236),
    _torchvision("googlenet", "googlenet-1378be20.pth", 49.731, 69.778, 89.530,
                 "1378be20a8e875cf1568b8a71654e704449655e34711a959a38b04fb34905cef", network="googlenet_bn"),
    _torchvision("inception_v3", "inception_v3_google-0cc3c7bd.pth", 103.903, 77.294, 93.450,
                 "0cc3c7bd75056d25e46cba549dc184522069b81e9787eff6df84f397bd52a5ef", 108_949_747, crop=299 / 342),
)  # fmt: skip


def weights_of_digest(sha256: str) -> PublicWeights | None:
    """The file on the list that a digest is the digest of, as far as it is known."""
    return next((entry for entry in PUBLIC_WEIGHTS if sha256.startswith(entry.digest)), None)
