"""A pass over a data set: real versions, read once, and found again by content."""

from pathlib import Path

import pytest
import torch
from models import awaken
from torch import Tensor, nn

from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab import passes
from psic_core.lab.passes import Reader, read
from psic_core.lab.versions import VERSIONS, code_versions
from psic_core.metrics import psnr

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8)


class Mean(nn.Module):
    """A reader that counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.shown: list[int] = []

    def look(self, pictures: Tensor) -> Tensor:
        self.shown.append(len(pictures))
        return self.weight * pictures.mean((2, 3))


@pytest.fixture(scope="module")
def model() -> PSIC:
    torch.manual_seed(0)
    return awaken(PSIC.build(TINY)).eval()


@pytest.fixture(scope="module")
def plain(model: PSIC) -> PSIC:
    torch.manual_seed(0)
    plain = PSIC.build(TINY)
    plain.kind = "plain"
    return plain.eval()


def pictures(n: int = 1, seed: int = 0) -> EvalSet:
    rng = torch.Generator().manual_seed(seed)
    drawn = [(torch.rand(3, 64, 80, generator=rng) * 255).round() / 255 for _ in range(n)]
    return EvalSet("drawn", n, lambda i: drawn[i])


def run(model: PSIC, plain: PSIC, data: EvalSet, reader: Mean, cache: Path | None) -> passes.Pass:
    return read(model, plain, data, [Reader("mean", reader, reader.look)], cache)[0]


def test_a_pass_is_what_the_reader_makes_of_every_version(model: PSIC, plain: PSIC):
    data, reader = pictures(2), Mean()
    found = run(model, plain, data, reader, None)
    for i in range(2):
        x = data.picture(i)[None]
        coded = code_versions(model, plain, x, model.secret, seed=i)
        assert set(found.seen) == set(VERSIONS)
        for version, picture in coded.pictures.items():
            assert torch.allclose(found.seen[version][i], picture.mean((2, 3))[0]), version
            if version != "original":
                assert float(found.psnr[version][i]) == pytest.approx(psnr(picture, x))
        assert float(found.bpp[i]) == 8 * coded.psic_bytes / (64 * 80)
        assert float(found.bpp_plain[i]) == 8 * coded.plain_bytes / (64 * 80)


def test_a_second_pass_reads_nothing(model: PSIC, plain: PSIC, tmp_path: Path):
    first, second = Mean(), Mean()
    one, two = (run(model, plain, pictures(), r, tmp_path) for r in (first, second))
    assert first.shown
    assert not second.shown
    assert all(torch.equal(one.seen[v], two.seen[v]) for v in VERSIONS)
    assert all(torch.equal(one.psnr[v], two.psnr[v]) for v in VERSIONS[1:])
    assert torch.equal(one.bpp, two.bpp)
    assert len(list(tmp_path.iterdir())) == 1  # nothing half written is left


@pytest.mark.parametrize("what", ["picture", "weight", "decoder", "secret", "reader", "versions"])
def test_whatever_changes_the_result_is_another_pass(what: str, model: PSIC, plain: PSIC, tmp_path: Path):
    run(model, plain, pictures(), Mean(), tmp_path)
    data, reader, versions = pictures(seed=int(what == "picture")), Mean(), VERSIONS
    torch.manual_seed(0)
    other = awaken(PSIC.build(TINY)).eval()
    with torch.no_grad():
        if what == "weight":
            next(iter(other.g_s.triggers[0].parameters())).add_(0.1)
        if what == "decoder":
            next(iter(other.g_s.stages.parameters())).add_(0.1)
        if what == "reader":
            reader.weight.mul_(2)
    if what == "secret":
        other.secret = bytes(16)
    if what == "versions":
        versions = VERSIONS[:3]
    read(other, plain, data, [Reader("mean", reader, reader.look)], tmp_path, versions)
    assert reader.shown
    assert len(list(tmp_path.iterdir())) == 2
