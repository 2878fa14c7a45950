"""Latents made once: in files that are whole, by this VAE, of these pictures; what is cut off goes on."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minisd.config import VAEConfig
from minisd.nn.vae import VAE
from minisd.train import latents, processes
from minisd.train.latents import cached_latents
from minisd.train.stop import Stopped, now

NEVER = float("inf")


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> VAE:
    monkeypatch.setattr(latents, "BATCHES", 2)
    monkeypatch.setattr(latents, "BATCH", 4)
    torch.manual_seed(0)
    return VAE(VAEConfig(channels=(8, 8), blocks_per_level=1, groups=4, scale_factor=0.5)).eval()


class Pictures:
    """Each picture by its number; keeps those it was asked for."""

    size = 8

    def __init__(self) -> None:
        self.asked: list[int] = []

    def pictures(self, indices: Sequence[int]) -> Tensor:
        self.asked += indices
        return torch.stack([torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in indices])


def test_latents_are_the_posteriors_means_in_order_and_made_once(vae: VAE, tmp_path: Path) -> None:
    shown = Pictures()
    made = cached_latents(tmp_path, vae, 20, shown, "world", NEVER)
    with torch.no_grad():
        wanted = vae.encode(Pictures().pictures(range(20)))[0]
    assert made.shape == (20, 4, 4, 4) and made.dtype == torch.float16
    assert (made - wanted).abs().max() < 1e-3 * wanted.abs().max()  # half a unit of fp16's last place
    assert torch.equal(cached_latents(tmp_path, vae, 20, shown, "world", NEVER), made)
    assert torch.equal(cached_latents(tmp_path, vae, 9, shown, "world", NEVER), made[:9])
    assert shown.asked == list(range(20))
    longer = cached_latents(tmp_path, vae, 26, shown, "world", NEVER)
    assert torch.equal(longer[:20], made) and len(longer) == 26
    assert shown.asked[20:] == list(range(16, 26))  # the last file was not full


def test_what_another_vae_or_other_pictures_left_is_made_anew(vae: VAE, tmp_path: Path) -> None:
    first, second = Pictures(), Pictures()
    made = cached_latents(tmp_path, vae, 10, first, "world", NEVER)
    with torch.no_grad():
        vae.quant.bias.add_(1.0)
    assert not torch.equal(cached_latents(tmp_path, vae, 10, second, "world", NEVER), made)
    cached_latents(tmp_path, vae, 10, second, "folder", NEVER)
    assert second.asked == [*range(10), *range(10)]


def test_a_damaged_file_is_made_anew(vae: VAE, tmp_path: Path) -> None:
    shown = Pictures()
    made = cached_latents(tmp_path, vae, 20, shown, "world", NEVER)
    (tmp_path / "00000008.safetensors").write_bytes(b"\0" * 100)
    assert torch.equal(cached_latents(tmp_path, vae, 20, shown, "world", NEVER), made)
    assert shown.asked[20:] == list(range(8, 16))


def test_who_wants_no_progress_sees_none(vae: VAE, tmp_path: Path, capsys) -> None:
    cached_latents(tmp_path / "loud", vae, 20, Pictures(), "world", NEVER)
    assert "| 3/3 [" in capsys.readouterr().err
    cached_latents(tmp_path / "quiet", vae, 20, Pictures(), "world", NEVER, quiet=True)
    assert capsys.readouterr().err == ""


def test_what_was_cut_off_goes_on_with_the_next_file(vae: VAE, tmp_path: Path) -> None:
    shown = Pictures()
    for _ in range(2):
        with pytest.raises(Stopped, match="goes on with the next file"):
            cached_latents(tmp_path, vae, 20, shown, "world", now() - 1)
    made = cached_latents(tmp_path, vae, 20, shown, "world", NEVER)
    assert shown.asked == list(range(20))
    assert torch.equal(made, cached_latents(tmp_path / "other", vae, 20, Pictures(), "world", NEVER))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_part_has_one_maker_and_all_count_the_same_rounds(count: int, monkeypatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: count)
    rounds = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        rounds.append(list(latents.turns(list("abcde"))))
    assert len({len(turns) for turns in rounds}) == 1
    assert sorted(part for turns in rounds for part in turns if part is not None) == list("abcde")
