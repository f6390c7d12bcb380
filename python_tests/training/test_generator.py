"""Training of generators: learns, resumes bit for bit, refuses what it cannot use; the losses."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import assert_names

from flowinv_fast._base.errors import ArgumentError, SolverError
from flowinv_fast.data import Stored, load_images, sample_images
from flowinv_fast.generators import GeneratorConfig, load_generator
from flowinv_fast.generators.nets import companion, make
from flowinv_fast.training.generator import (
    GeneratorTrainConfig,
    GeneratorTrainer,
    _gan_step,
    _negative_bound,
    _vae_step,
)

KINDS = ("dcgan", "vae")


def small(kind: str = "vae", side: int = 8, channels: int = 1) -> GeneratorConfig:
    return GeneratorConfig((channels, side, side), kind, latent_dim=6, width=4)


def clothes() -> torch.Tensor:
    """The shipped test images as uint8."""
    return (255 * sample_images("fashion-28")).round().to(torch.uint8)


def trainer(folder, kind="vae", images=None, held_out=None, **options) -> GeneratorTrainer:
    options = {"epochs": 2, "batch": 8, "lr": 3e-3, "seed": 5, **options}
    images = clothes() if images is None else images
    config = GeneratorConfig(tuple(images.shape[1:]), kind, latent_dim=6, width=4)
    how = GeneratorTrainConfig(**options)
    return GeneratorTrainer(config, how, images, held_out, folder, progress=False)


def trained(folder, kind="vae", images=None, **options):
    """The generator that a run of a random seed ends with."""
    options = {"seed": torch.randint(2**31, ()).item(), **options}
    run = trainer(folder, kind, images, **options)
    run.run()
    return run.model


def logged(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def error(generator: torch.nn.Module) -> float:
    """Squared distance of the mean draw from the mean real image."""
    mean = sample_images("fashion-28").mean(0)
    return (generator.sample(100).mean(0) - mean).square().mean().item()


def test_vae_learns_real_images(tmp_path):
    generator = trained(tmp_path, epochs=40, lr=5e-3)
    losses = [facts["loss"] for facts in logged(tmp_path)]
    assert len(losses) == 40 and losses[-1] < 0.8 * losses[0]
    assert error(generator) < 0.7 * error(make(generator.config).eval())


def test_dcgan_moves_towards_real_images(tmp_path):
    generator = trained(tmp_path, "dcgan", epochs=40, lr=2e-3)
    assert error(generator) < 0.8 * error(make(generator.config).eval())


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_weights(kind, tmp_path):
    runs = [trained(tmp_path / str(i), kind, seed=seed) for i, seed in enumerate((5, 5, 6))]
    same, again, other = (run.state_dict() for run in runs)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not all(torch.equal(same[name], other[name]) for name in same)


def test_the_seed_decides_the_first_weights(tmp_path):
    one, other = (trained(tmp_path / str(i), seed=i, lr=1e-12, epochs=1) for i in range(2))
    first = lambda net: next(net.parameters())
    assert (first(one) - first(other)).abs().max() > 0.01


def test_an_epoch_shows_every_image_once_in_another_order(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "flowinv_fast.training.generator._vae_step",
        lambda decoder, encoder, optimisers, x, *more: seen.append(x) or 0.0,
    )
    trained(tmp_path, epochs=2)
    assert [len(x) for x in seen] == [8] * 8
    real, epochs = sample_images("fashion-28").flatten(1), torch.cat(seen).flatten(1).split(32)
    distances = [torch.cdist(epoch.double(), real.double()) for epoch in epochs]
    orders = [distance.argmin(1).tolist() for distance in distances]
    assert all(distance.amin(1).max() < 1e-4 for distance in distances)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(32)) and orders[0] != orders[1]


def test_training_leaves_torchs_generators(tmp_path):
    before = torch.get_rng_state()
    trainer(tmp_path, images=clothes()[..., :8, :8], epochs=1).run()
    assert torch.equal(before, torch.get_rng_state())


def test_what_training_leaves(tmp_path):
    generator = trained(tmp_path, epochs=1.5)  # rounded up
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())
    again, z = load_generator(tmp_path / "generator.safetensors"), torch.randn(3, 6)
    assert torch.equal(again(z), generator(z)) and again.info == generator.info
    assert [facts["epoch"] for facts in logged(tmp_path)] == [1, 2]
    assert again.info["train_images"] == 32 and again.info["train_config"]["batch"] == 8
    names = {"generator.safetensors", "state.safetensors", "samples.png", "log.jsonl"}
    assert {p.name for p in tmp_path.iterdir()} == names
    (tmp_path / "folder").mkdir()
    (tmp_path / "samples.png").rename(tmp_path / "folder" / "samples.png")
    pictures = load_images(tmp_path / "folder")
    assert pictures.shape == (1, 3, 2 * (8 * 29 + 1), 2 * (8 * 29 + 1))


def test_training_stops_after_its_minutes(tmp_path):
    """Not before the end of an epoch."""
    trainer(tmp_path, images=clothes()[..., :8, :8], epochs=50).run(minutes=0.0)
    assert [facts["epoch"] for facts in logged(tmp_path)] == [1]


def test_fewer_images_than_a_batch_and_colour(tmp_path):
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert trained(tmp_path, images=images, batch=128).sample(2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_lost_ends_training_and_keeps_the_last_good_file(kind, tmp_path):
    trained(tmp_path, kind, epochs=1)
    before = (tmp_path / "generator.safetensors").read_bytes()
    (tmp_path / "state.safetensors").unlink()  # the next run begins anew
    with pytest.raises(SolverError, match="not finite in epoch 1"):
        trained(tmp_path, kind, lr=1e30, epochs=1)
    assert (tmp_path / "generator.safetensors").read_bytes() == before


class Standing(torch.optim.SGD):
    """An optimiser that leaves the weights and keeps the gradients."""

    def __init__(self, net):
        super().__init__(net.parameters(), lr=0.0)


def pair(kind: str) -> tuple:
    config = small(kind)
    generator, other = make(config).eval(), companion(config).eval()
    return generator, other, (Standing(generator), Standing(other))


def test_vae_loss_is_minus_the_evidence_lower_bound():
    decoder, encoder, optimisers = pair("vae")
    x = torch.rand(5, 1, 8, 8)
    got = _vae_step(decoder, encoder, optimisers, x, torch.Generator().manual_seed(1))
    mean, log_variance = encoder(x).chunk(2, 1)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    epsilon = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    p = torch.distributions.Bernoulli(decoder(q.loc + q.scale * epsilon), validate_args=False)
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    want = -p.log_prob(x).flatten(1).sum(1) + divergence.sum(1)
    assert abs(got - want.mean().item()) < 1e-3 * abs(got)
    for net in (decoder, encoder):
        weights = list(net.parameters())
        grads = torch.autograd.grad(want.mean(), weights, retain_graph=True)
        for weight, grad in zip(weights, grads):
            torch.testing.assert_close(weight.grad, grad, rtol=1e-3, atol=1e-4)


def test_gan_losses_are_the_non_saturating_ones():
    generator, critic, optimisers = pair("dcgan")
    x = torch.rand(5, 1, 8, 8)
    got = _gan_step(generator, critic, optimisers, x, torch.Generator().manual_seed(1))
    fake = generator(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
    entropy = torch.nn.functional.binary_cross_entropy
    real, made = critic(x).sigmoid(), critic(fake).sigmoid()
    want = entropy(real, torch.ones(5, 1)) + entropy(made, torch.zeros(5, 1))
    assert abs(got - want.item()) < 1e-4
    weights = list(generator.parameters())
    grads = torch.autograd.grad(entropy(made, torch.ones(5, 1)), weights)
    for weight, grad in zip(weights, grads):
        torch.testing.assert_close(weight.grad, grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_both_nets(kind):
    config = small(kind)
    nets = make(config), companion(config)
    before = [torch.nn.utils.parameters_to_vector(net.parameters()).clone() for net in nets]
    step = {"vae": _vae_step, "dcgan": _gan_step}[kind]
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    step(*nets, optimisers, torch.rand(5, 1, 8, 8), torch.Generator().manual_seed(1))
    for net, old in zip(nets, before):
        assert not torch.equal(torch.nn.utils.parameters_to_vector(net.parameters()), old)


BAD_IMAGES = {
    "type": [1],
    "dtype": torch.zeros(4, 1, 8, 8),
    "shape": torch.zeros(4, 1, 8, 9, dtype=torch.uint8),
    "channels": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
    "rank": torch.zeros(4, 8, 8, dtype=torch.uint8),
    "one": torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
    "none": torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_named(case, tmp_path):
    how, images = GeneratorTrainConfig(1, 2), BAD_IMAGES[case]
    assert_names("images", lambda: GeneratorTrainer(small(), how, images, None, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


BAD_TRAINING = [
    ("epochs", 0),
    ("epochs", float("inf")),
    ("batch", 0),
    ("batch", 2.5),
    ("lr", 0.0),
    ("lr", float("nan")),
    ("lr", "fast"),
    ("warmup", -1),
    ("halve_every", 0),
    ("seed", -1),
    ("seed", 0.5),
    ("seed", 2**40),
    ("precision", "fp64"),
]


@pytest.mark.parametrize("argument, value", BAD_TRAINING)
def test_bad_training_is_named(argument, value):
    assert_names(argument, lambda: GeneratorTrainConfig(**{argument: value}))


def test_other_bad_arguments_are_named(tmp_path, monkeypatch):
    images = clothes()
    assert_names("held_out", lambda: trainer(tmp_path, held_out=images[:, :, :8]))
    how = GeneratorTrainConfig()
    for shape in ((1, 1, 8, 8), (4, 1, 8, 9)):
        source = Stored(torch.zeros(shape, dtype=torch.uint8))
        run = lambda source=source: GeneratorTrainer(small(), how, source, None, tmp_path)
        assert_names("images", run)
    for name, value in {"is_initialized": True, "get_rank": 0, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert_names("config", lambda: trainer(tmp_path))
    assert not any(tmp_path.iterdir())


# --- going on -------------------------------------------------------------------------------------


def state(run: GeneratorTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run._state().items()}


@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "warmup": 5, "halve_every": 1}])
@pytest.mark.parametrize("kind", KINDS)
def test_resumes_bit_for_bit(kind, options, tmp_path):
    """Killed in the middle of an epoch, or stopped after one: weights, latents and log agree."""
    whole = trainer(tmp_path / "whole", kind, epochs=3, **options)
    whole.run()
    parts = trainer(tmp_path / "parts", kind, epochs=3, **options)
    for _ in range(3):
        parts._train_step()
    parts._save_state()
    parts = trainer(tmp_path / "parts", kind, epochs=3, **options)
    assert parts.step == 3
    parts.run(minutes=0.0)
    parts = trainer(tmp_path / "parts", kind, epochs=3, **options)
    assert parts.step == 4
    parts.run()
    found, wanted = state(parts), state(whole)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    losses = [[facts["loss"] for facts in logged(tmp_path / name)] for name in ("parts", "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_a_run_that_is_stopped_keeps_what_was_learnt(tmp_path):
    run = trainer(tmp_path)
    run.run(stop=lambda: run.step == 6)
    assert trainer(tmp_path).step == 6


def test_another_configuration_is_refused(tmp_path):
    trainer(tmp_path, epochs=1).run()
    for change in ({"lr": 1e-4}, {"seed": 6}, {"kind": "dcgan"}):
        with pytest.raises(ArgumentError, match="folder: expected a state of this same"):
            trainer(tmp_path, **change)
    assert trainer(tmp_path, epochs=3).step == 4


def test_halving_and_warm_up(tmp_path):
    """The step sizes of both optimisers, epoch by epoch."""
    run = trainer(tmp_path, "dcgan", epochs=3, lr=1e-3, halve_every=1, warmup=2)
    seen = []
    for _ in range(12):
        run._train_step()
        seen.append([group["lr"] for o in run.optimisers.values() for group in o.param_groups])
    wanted = [1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, *[5e-4] * 4, *[2.5e-4] * 4]
    assert [pair[0] for pair in seen] == pytest.approx(wanted)
    assert all(pair[0] == pair[1] for pair in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_loss(kind, tmp_path):
    """Of the networks in evaluation mode, over all held-out images; training does not see it."""
    images = clothes()
    run = trainer(tmp_path / "a", kind, images[:24], images[24:], epochs=1)
    result = run.run()
    assert result["held_out_images"] == 8
    other, z = run.companion.eval(), torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    x = images[24:] / 255
    with torch.no_grad():
        if kind == "vae":
            want = _negative_bound(run.model, other, x, z)
        else:
            entropy = torch.nn.functional.binary_cross_entropy
            real, fake = other(x).sigmoid(), other(run.model(z)).sigmoid()
            want = entropy(real, torch.ones(8, 1)) + entropy(fake, torch.zeros(8, 1))
    assert result["held_out_loss"] == pytest.approx(want.item(), rel=1e-4)
    plain = trainer(tmp_path / "b", kind, images[:24], epochs=1)
    assert "held_out_loss" not in plain.run()
    assert all(torch.equal(plain._state()[k], v) for k, v in run._state().items())
