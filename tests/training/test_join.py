"""Networks of two trainings in one folder."""

from __future__ import annotations

import pytest
import torch

from medrl.bundle import load_weights, read_settings
from medrl.data.write import write_json
from medrl.networks.click_network import ClickNet
from medrl.networks.seed_networks import SeedNetworks, compact_weights
from medrl.networks.seednet import SeedNet
from medrl.training.join import join_networks, main
from medrl.types import InputError


def write_training(folder, dims) -> SeedNetworks:
    options = {"dims": dims, "grid": [2] * dims, "width": 2}, {"dims": dims, "channels": [2, 4, 4]}
    network = SeedNetworks([SeedNet(**options[0])], [ClickNet(**options[1])])
    folder.mkdir()
    torch.save(compact_weights(network), folder / "model.pt")
    session = {"lattice": {str(dims): [8] * dims}, "zoom": 0.5}
    write_json(folder / "agent.json", {"agents": [options[0]], "clicks": [options[1]], "session": session})
    return network


def test_two_trainings(tmp_path, capsys):
    parts = [write_training(tmp_path / f"models{dims}", dims) for dims in (2, 3)]
    folders = [tmp_path / "models2", tmp_path / "models3"]
    assert main([*map(str, folders), "--output", str(tmp_path / "both")]) == 0
    settings = read_settings(tmp_path / "both")
    assert settings["session"] == {"lattice": {"2": [8, 8], "3": [8, 8, 8]}, "zoom": 0.5}
    both = SeedNetworks([SeedNet(**o) for o in settings["agents"]], [ClickNet(**o) for o in settings["clicks"]])
    load_weights(both, tmp_path / "both/model.pt", "cpu")
    for dims, part in zip((2, 3), parts, strict=True):
        for image in (torch.full((1, 6, *[8] * dims), 9), torch.ones(1, 7, *[8] * dims)):
            assert torch.allclose(both(image), part.eval()(image), atol=2e-2)
    with pytest.raises(InputError, match="models2: has networks that another folder has"):
        join_networks([folders[0], folders[0]], tmp_path / "none")
    (folders[1] / "model.pt").write_bytes(b"")
    assert main([*map(str, folders), "--output", str(tmp_path / "none")]) == 1
    assert "models3: model.pt or agent.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
