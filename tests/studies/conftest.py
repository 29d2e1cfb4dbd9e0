import pytest
from comparison.experiment import load_experiment
from comparison.running import load_data
from tiny_experiment import write_experiment


@pytest.fixture
def fresh(parts, tmp_path):
    experiment = load_experiment(write_experiment(tmp_path, parts))
    return experiment, load_data(experiment)
