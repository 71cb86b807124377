"""What the three integrations have in common: the recorder's options, and what they say without their library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from landscape.probes.integrations.options import RecorderOptions, check_options, recorder_options, with_facts
from landscape.probes.integrations.wrapped import Wrapped


def test_every_option_of_the_recorder_can_be_given():
    assert set(RecorderOptions.__annotations__) == recorder_options()


def test_an_unknown_option_is_refused_at_once():
    with pytest.raises(TypeError, match=r"no option 'probe' of the recorder; there are .*probes"):
        check_options({"probe": ()})


def test_what_the_user_says_of_the_run_wins():
    told = with_facts({"facts": {"schedule": "mine"}, "seed": 3}, {"schedule": "theirs", "precision": "16", "lr": None})
    assert told == {"facts": {"schedule": "mine", "precision": "16"}, "seed": 3}


@pytest.mark.parametrize("module", ["lightning", "transformers", "accelerate"])
def test_a_missing_library_is_named_with_the_line_to_type(module):
    # Hidden by an empty entry in sys.modules, as if it were not installed.
    code = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in ('{module}', 'pytorch_lightning'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name.split('.')[0])\n"
        "sys.meta_path.insert(0, Hidden())\n"
        f"import landscape.probes.integrations.{module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"ImportError: landscape.probes.integrations.{module} needs {module.capitalize()}")
    assert said.endswith(f"pip install 'landscape-probe[{module}]'")


class Owner:
    def value(self) -> int:
        return 1


def test_wrapped_methods_are_put_back():
    owner, wrapped = Owner(), Wrapped()
    wrapped.wrap(owner, "value", lambda original: lambda: original() + 1)
    wrapped.wrap(owner, "value", lambda original: lambda: original() * 10)
    assert (owner.value(), Owner().value()) == (20, 1)
    wrapped.restore()
    assert owner.__dict__ == {}


def test_a_method_that_somebody_else_wrapped_later_stays_theirs():
    owner, wrapped = Owner(), Wrapped()
    wrapped.wrap(owner, "value", lambda original: lambda: original())
    owner.value = theirs = lambda: 7
    wrapped.restore()
    assert owner.value is theirs
