"""Networks for sensors and sound: dense, one-dimensional, recurrent, and with two inputs."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn

from architectures.blocks import conv_relu


def autoencoder() -> nn.Module:
    """The anomaly detector of MLPerf Tiny, narrower: dense layers to 8 and back."""
    widths = (128, 64, 64, 8, 64, 64)
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts.extend((nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()))
    return nn.Sequential(*parts, nn.Linear(64, 128))


def cnn_1d() -> nn.Module:
    """Activity from 128 steps of 6 inertial signals."""
    return nn.Sequential(
        nn.Conv1d(6, 24, 5, padding=2),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(24, 32, 5, stride=2, padding=2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 32),
        nn.Tanh(),
        nn.Linear(32, 6),
    )


class Temporal(nn.Module):
    """Bai et al. 2018: causal dilated convolutions with shortcuts."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.fill = 2 * dilation
        self.conv1 = nn.Conv1d(in_channels, out_channels, 3, dilation=dilation)
        self.conv2 = nn.Conv1d(out_channels, out_channels, 3, padding=self.fill, dilation=dilation)
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv1d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(F.pad(x, (self.fill, 0))))
        y = F.relu(self.conv2(y)[:, :, : -self.fill])
        return F.relu(y + self.shortcut(x))


class TemporalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Temporal(6, 24, 1), Temporal(24, 24, 2), Temporal(24, 32, 4))
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x)[:, :, -1])
        return y


def tcn() -> nn.Module:
    """Three blocks; the last step decides."""
    return TemporalNet()


class Keywords(nn.Module):
    """Frames in, a recurrent layer, the last state decides."""

    def __init__(
        self, kind: type[nn.LSTM | nn.GRU | nn.RNN], *, both: bool = False, layers: int = 1
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 16)
        self.recurrent = kind(16, 32, num_layers=layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(64 if both else 32, 12)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(F.relu(self.enter(x)))
        y: Tensor = self.head(states[:, -1])
        return y


def lstm() -> nn.Module:
    """Two layers."""
    return Keywords(nn.LSTM, layers=2)


def gru() -> nn.Module:
    """One layer."""
    return Keywords(nn.GRU)


def bidirectional_lstm() -> nn.Module:
    """One layer in both directions."""
    return Keywords(nn.LSTM, both=True)


def rnn() -> nn.Module:
    """One layer without gates."""
    return Keywords(nn.RNN)


class Convolutions(nn.Module):
    """Convolutions over a spectrogram, a GRU in both directions over time, weights over steps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_relu(1, 16, stride=2), conv_relu(16, 24, stride=2))
        self.recurrent = nn.GRU(24 * 3, 24, batch_first=True, bidirectional=True)
        self.weigh = nn.Linear(48, 1)
        self.head = nn.Linear(48, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x[:, None]).permute(0, 2, 1, 3).flatten(2)
        states, _ = self.recurrent(x)
        weights = self.weigh(states).softmax(dim=1)
        y: Tensor = self.head((weights * states).sum(dim=1))
        return y


def crnn() -> nn.Module:
    """Sound events: convolutions, then a recurrent layer."""
    return Convolutions()


class Streaming(nn.Module):
    """One frame and the state in, scores and the next state out, as devices run keyword nets."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 24)
        self.cell = nn.GRUCell(24, 32)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(F.relu(self.enter(x)), state)
        return self.head(state), state


def gru_streaming() -> nn.Module:
    """Two inputs and two outputs; the state goes round outside the network."""
    return Streaming()


class SequenceAutoencoder(nn.Module):
    """Srivastava et al., ICML 2015: the last state, repeated, is what the decoder has."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(6, 24, batch_first=True)
        self.decoder = nn.LSTM(24, 24, batch_first=True)
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        _, (state, _) = self.encoder(x)
        states, _ = self.decoder(state[-1][:, None].repeat(1, 16, 1))
        y: Tensor = self.head(states)
        return y


def lstm_autoencoder() -> nn.Module:
    """Anomalies in 16 steps of 6 signals."""
    return SequenceAutoencoder()


class RawAudio(nn.Module):
    """A learned filter bank over samples, its power in decibels, convolutions, log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 24, 64, stride=32, bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm1d(24),
            nn.Conv1d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Conv1d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            nn.Linear(32, 12),
            nn.LogSoftmax(dim=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(torch.log(self.filters(x) ** 2 + 1e-2))
        return y


def raw_audio() -> nn.Module:
    """Keywords from 1024 samples."""
    return RawAudio()


class TwoInputs(nn.Module):
    """An image and a vector of readings, joined before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            conv_relu(3, 16, stride=2), conv_relu(16, 24, stride=2), nn.AdaptiveAvgPool2d(1)
        )
        self.readings = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, image: Tensor, readings: Tensor) -> Tensor:
        joined = torch.cat([self.image(image).flatten(1), self.readings(readings)], dim=1)
        y: Tensor = self.head(joined)
        return y


def two_inputs() -> nn.Module:
    """A convolutional and a dense branch."""
    return TwoInputs()
