"""The networks: gradients, judging and measures against torch's own modules, one agent at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpi_resmtl.neighbourhoods import tiles
from mpi_resmtl.tasks.classifier import Adam, Shuffled
from mpi_resmtl.tasks.digit_cnn import DigitCNN
from mpi_resmtl.tasks.linear_classifier import LinearClassifier


def reference(network: LinearClassifier | DigitCNN) -> torch.nn.Module:
    nn = torch.nn
    if isinstance(network, LinearClassifier):
        return nn.Linear(network.inputs, network.classes)
    layers = [nn.Unflatten(1, (1, 28, 28))]
    for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10))


def loaded(network: LinearClassifier | DigitCNN, model: np.ndarray) -> torch.nn.Module:
    module = reference(network)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(model.copy()), module.parameters())
    return module


def loss(module: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y))


@pytest.fixture(params=["linear", "cnn"])
def case(request: pytest.FixtureRequest):
    random = np.random.default_rng(4)
    network = LinearClassifier(561, 6) if request.param == "linear" else DigitCNN()
    inputs, classes, agents, batch = (561, 6, 4, 10) if request.param == "linear" else (784, 10, 3, 7)
    models = random.normal(0, 0.05, (agents + 3, network.parameters)).astype(np.float32)
    x = random.normal(size=(agents, batch, inputs)).astype(np.float32)
    return network, models, x, random.integers(0, classes, (agents, batch))


def test_parameters_are_counted_and_ordered_as_in_pytorch(case):
    network = case[0]
    sizes = tuple(p.numel() for p in reference(network).parameters())
    assert network.tensors == sizes
    assert network.parameters == sum(sizes)


def test_gradients_and_losses_are_those_of_torch_and_inactive_agents_have_none(case):
    network, models, x, y = case
    active = np.arange(len(x)) != 1
    gradients, losses = network.gradients(models[: len(x)], x, y, active), network.losses(models[: len(x)], x, y)
    for k in range(len(x)):
        module = loaded(network, models[k])
        value = loss(module, x[k], y[k])
        value.backward()
        expected = torch.cat([p.grad.reshape(-1) for p in module.parameters()]).numpy()
        np.testing.assert_allclose(losses[k], value.item(), rtol=1e-5)
        np.testing.assert_allclose(gradients[k], expected * active[k], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("complete", [True, False])
def test_each_message_is_judged_on_its_targets_batch(case, complete: bool):
    network, models, x, y = case
    agents, random = len(x), np.random.default_rng(0)
    heard = np.ones((agents, agents), bool) if complete else random.random((agents, agents)) < 0.5
    np.fill_diagonal(heard, True)
    target, source = np.argwhere(heard).T
    row = source.copy()
    lies = source == 2
    row[lies & (target != 2)] = agents + random.integers(0, 3, np.count_nonzero(lies & (target != 2)))
    (tile,) = tiles(target, source, row, 0, network.parameters, gathered=False)
    found = network.judge(models, tile, x, y)
    for e in range(len(target)):
        expected = loss(loaded(network, models[row[e]]), x[target[e]], y[target[e]]).item()
        np.testing.assert_allclose(found[e], expected, rtol=1e-5)


def test_what_an_agent_finds_does_not_depend_on_who_else_is_on_the_rank(case):
    network, models, x, y = case
    agents = len(x)
    target, source = np.divmod(np.arange(agents**2), agents)
    (whole,) = tiles(target, source, source, 0, network.parameters, gathered=False)
    together = network.judge(models, whole, x, y).reshape(agents, agents)
    gradients = network.gradients(models[:agents], x, y, np.ones(agents, bool))
    for k in range(agents):
        own = target == k
        (tile,) = tiles(target[own], source[own], source[own], k, network.parameters, gathered=False)
        assert network.judge(models, tile, x[k : k + 1], y[k : k + 1]).tobytes() == together[k].tobytes()
        alone = network.gradients(models[k : k + 1], x[k : k + 1], y[k : k + 1], np.ones(1, bool))
        assert alone.tobytes() == gradients[k].tobytes()


def test_evaluation_is_loss_and_accuracy_on_all_rows(case):
    network, models, x, y = case
    rows, labels = np.tile(x.reshape(-1, x.shape[-1]), (20, 1)), np.tile(y.reshape(-1), 20)
    found = network.evaluate(models[0], rows, labels)
    module = loaded(network, models[0])
    right = (module(torch.from_numpy(rows)).argmax(dim=1).numpy() == labels).mean()
    np.testing.assert_allclose(found, (loss(module, rows, labels).item(), right), rtol=1e-5)


def test_adam_is_torchs_with_a_step_count_for_each_agent():
    random = np.random.default_rng(0)
    models = random.normal(size=(2, 50)).astype(np.float32)
    ours, adam = models.copy(), Adam(models.shape, 0.001)
    theirs = [torch.nn.Parameter(torch.from_numpy(m.copy())) for m in models]
    optimizers = [torch.optim.Adam([p], lr=0.001) for p in theirs]
    for i in range(20):
        for k in range(2):
            if i % (k + 1):
                continue
            gradient = random.normal(size=50).astype(np.float32)
            adam.step(k, ours[k], gradient)
            theirs[k].grad = torch.from_numpy(gradient)
            optimizers[k].step()
    for k in range(2):
        np.testing.assert_allclose(ours[k], theirs[k].detach().numpy(), rtol=1e-5, atol=1e-7)


def test_an_agent_sees_all_its_rows_before_it_sees_one_again():
    rows = Shuffled(23, lambda p: np.random.default_rng(p))
    drawn = np.concatenate([rows.batch(i, 5) for i in range(46)])
    passes = drawn.reshape(-1, 23)
    assert (np.sort(passes, axis=1) == np.arange(23)).all()
    assert len(np.unique(passes, axis=0)) == len(passes)
    again = Shuffled(23, lambda p: np.random.default_rng(p))
    np.testing.assert_array_equal(again.batch(40, 5), drawn[200:205])
