"""torchvision's ResNet, MobileNetV2 and VGG in few lines: its names, shapes and functions, or, with `keras`, Keras' functions.

Strides, padding and epsilon are not in a checkpoint; with `keras` they are those of keras.applications.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, shortcut: bool, keras: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if keras else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if shortcut:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, blocks: Sequence[int] = (3, 4, 6, 3), classes: int = 1000, keras: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(blocks):
            width = 64 << stage
            some = []
            for block in range(count):
                some.append(Bottleneck(inputs, width, 2 if stage and not block else 1, not block, keras))
                inputs = 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*some))
        self.stages = len(blocks)
        self.fc = nn.Linear(inputs, classes)
        _set_epsilon(self, 1.001e-5 if keras else 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class _Strided(nn.Conv2d):
    """A strided 3x3 convolution; with `keras` it is padded as Keras pads even sizes."""

    keras = False

    def forward(self, x: Tensor) -> Tensor:
        if self.keras:
            return nn.functional.conv2d(pad(x, (0, 1, 0, 1)), self.weight, None, 2, 0, 1, self.groups)
        return super().forward(x)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    kind = nn.Conv2d if stride == 1 else _Strided
    conv = kind(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        parts: list[nn.Module] = [_convolution(inputs, width, 1)] if expand != 1 else []
        parts += [_convolution(width, width, 3, stride, width)]
        self.conv = nn.Sequential(*parts, nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """`keras` is of the padding, `epsilon` goes with the weights' origin."""

    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, width: float = 1.0, classes: int = 1000, keras: bool = False, epsilon: float = 1e-5) -> None:
        super().__init__()
        inputs = _rounded(32 * width)
        features: list[nn.Module] = [_convolution(3, inputs, 3, 2)]
        for expand, channels, count, stride in self.rows:
            for block in range(count):
                outputs = _rounded(channels * width)
                features.append(Inverted(inputs, outputs, 1 if block else stride, expand))
                inputs = outputs
        last = _rounded(1280 * max(1.0, width))
        self.features = nn.Sequential(*features, _convolution(inputs, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        _set_epsilon(self, epsilon)
        for module in self.modules():
            if isinstance(module, _Strided):
                module.keras = keras

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Vgg(nn.Module):
    """`size`: rows and columns before Flatten."""

    def __init__(self, blocks: Sequence[int] = (2, 2, 3, 3, 3), classes: int = 1000, size: tuple[int, int] = (7, 7)) -> None:
        super().__init__()
        features: list[nn.Module] = []
        inputs = 3
        for width, count in zip((64, 128, 256, 512, 512), blocks, strict=True):
            for _ in range(count):
                features += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(size)
        head = [nn.Linear(512 * size[0] * size[1], 4096), nn.Linear(4096, 4096), nn.Linear(4096, classes)]
        self.classifier = nn.Sequential(head[0], nn.ReLU(), nn.Dropout(), head[1], nn.ReLU(), nn.Dropout(), head[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _rounded(width: float) -> int:
    """The multiple of 8 nearest to a width, but no tenth below it."""
    found = max(8, int(width + 4) // 8 * 8)
    return found + 8 if found < 0.9 * width else found


def _set_epsilon(model: nn.Module, epsilon: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon
