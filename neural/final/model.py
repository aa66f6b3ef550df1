"""The network: embeddings of categories beside the numbers, cross layers, hidden layers, one score."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neural.final.settings import NetworkRankerSettings

#: numbers in the embedding of a category
EMBEDDED = 8


class Cross(nn.Module):
    """A layer in which every input meets every other: x0 * (U V x + b) + x (DCN-V2, Wang et al., arXiv 2008.13535)."""

    def __init__(self, d: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(d, rank, bias=False)
        self.up = nn.Linear(rank, d)
        nn.init.zeros_(self.up.weight)  # training starts from the inputs as they are

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """first, x: [n, d] -> [n, d]."""
        crossed: Tensor = first * self.up(self.down(x)) + x
        return crossed


class Network(nn.Module):
    """Scores rows of a numbers and k codes."""

    def __init__(self, numbers: int, codes: int, slots: int, settings: NetworkRankerSettings) -> None:
        """slots: rows of the embedding, of which 0 is an unknown category and stays zero."""
        super().__init__()
        self.table = nn.Embedding(slots, EMBEDDED, padding_idx=0)
        d = numbers + codes * EMBEDDED
        self.crosses = nn.ModuleList(Cross(d, settings.rank) for _ in range(settings.crosses))
        layers: list[nn.Module] = []
        for wide in [d, *[settings.width] * (settings.layers - 1)]:
            layers += [nn.Linear(wide, settings.width), nn.LayerNorm(settings.width), nn.SiLU()]
            layers.append(nn.Dropout(settings.dropout))
        self.body = nn.Sequential(*layers)
        self.score = nn.Linear(settings.width, 1, bias=False)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """numbers: [n, a], codes: int64[n, k] -> [n]."""
        first = torch.cat([numbers, self.table(codes).flatten(1)], dim=1)  # [n, d]
        x = first
        for cross in self.crosses:
            x = cross(first, x)
        scores: Tensor = self.score(self.body(x)).squeeze(-1)
        return scores


class Mean(nn.Module):
    """The mean of several networks, as it is served."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """numbers: [n, a], codes: int64[n, k] -> [n]."""
        return torch.stack([network(numbers, codes) for network in self.networks]).mean(0)
