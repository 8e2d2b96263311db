import torch
from torch import nn

from pipeline.training.weight_average import WeightAverage


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[2].requires_grad_(False)
    return model


def test_it_is_torchs_average_once_the_start_is_forgotten():
    model = make_model()
    ours = WeightAverage(model, decay=0.5)
    theirs = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(100, 104):
        with torch.no_grad():
            model[0].weight += torch.randn_like(model[0].weight)
        ours.update(step=step)
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
        average(list(theirs.values()), list(model.parameters()), None)
    state = ours.state_dict()
    for name, expected in theirs.items():
        torch.testing.assert_close(state[name], expected)
    assert not torch.equal(state["0.weight"], model[0].weight)


def test_the_first_steps_follow_the_weights():
    model = make_model()
    start = model[0].weight.detach().clone()
    average = WeightAverage(model, decay=0.999)
    with torch.no_grad():
        model[0].weight += 1
    average.update(step=0)
    torch.testing.assert_close(average.state_dict()["0.weight"], start + 0.9)


def test_everything_that_is_not_trained_is_the_models_own():
    model = make_model()
    average = WeightAverage(model, decay=0.9)
    model(torch.randn(2, 3, 4, 4))
    average.update(step=0)
    state = average.state_dict()
    assert list(state) == list(model.state_dict())
    assert torch.equal(state["1.running_mean"], model[1].running_mean)
    assert torch.equal(state["2.weight"], model[2].weight)


def test_swapping_twice_changes_nothing():
    model = make_model()
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model[0].weight += 1
    weights, averaged = model[0].weight.detach().clone(), average.state_dict()["0.weight"].clone()
    average.swap()
    assert torch.equal(model[0].weight, averaged)
    average.swap()
    assert torch.equal(model[0].weight, weights)
    assert torch.equal(average.state_dict()["0.weight"], averaged)
