"What was chosen, and what stands in the code, are the same thing."
import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from atr_nb.methods.baseline import Baseline
from atr_nb.methods.cmlf import SHARES
from atr_nb.methods.diffatr import DiffATR
from atr_nb.methods.hci_ac import HCI
from atr_nb.methods.mgrl import MGRL
from atr_nb.methods.tha_dcr import THA
from atr_nb.results.choices import choices_of, chosen, declaring, first_written
from atr_nb.results.experiment import mined
from atr_nb.results.records import REPORTS
from atr_nb.settings import load


def defaults(function): return {name: p.default for name, p in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize('method', declaring())
def test_what_was_chosen_is_one_of_the_values(method):
    values = chosen(load('embedded'), method)
    assert set(values) == set(choices_of(method)), 'run `atr-nb reproduce --papers choices`'
    assert all(values[name] in choices_of(method)[name] for name in values)


@pytest.mark.parametrize('method, of', [('mgrl', MGRL), ('hci_ac', HCI), ('tha_dcr', THA),
                                        ('diffatr', DiffATR)])
def test_the_winner_is_the_default(method, of):
    "Of the methods; the baseline stays as it was published, and a learning rate belongs to a profile"
    values = {name: value for name, value in chosen(load('embedded'), method).items() if name != 'learning_rate'}
    assert values and values == {name: defaults(of)[name] for name in values}


@pytest.mark.parametrize('module, method', [('methods.mgrl', 'mgrl'), ('methods.hci_ac', 'hci_ac'),
                                            ('methods.tha_dcr', 'tha_dcr'), ('methods.diffatr', 'diffatr'),
                                            ('results.experiment', 'cmlf')])
def test_the_code_names_the_trial_that_won(module, method):
    source = Path(import_module(f'atr_nb.{module}').__file__).read_text()
    named = re.findall(r'trial (\d+) of reports/embedded/choices', source)
    assert named == [str(json.loads((REPORTS/'embedded/choices/chosen.json').read_text())[method]['trial'])]


def test_the_winning_curriculum_is_the_default():
    values, of_mining = chosen(load('embedded'), 'cmlf'), defaults(mined)
    assert (of_mining['which'], of_mining['guard'], SHARES) == (values['which'], values['guard'], values['shares'])


def test_the_baseline_is_as_published():
    of_baseline = defaults(Baseline)
    assert all(of_baseline[name] == value for name, value in first_written('baseline').items()
               if name != 'learning_rate')
