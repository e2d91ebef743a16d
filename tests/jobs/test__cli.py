from __future__ import annotations

import pytest
import typer

from jobs._cli import (
    TROUBLE,
    USAGE,
    errors_as_status,
    load_settings,
    run_app,
    split_change,
)
from musev.errors import ConfigError, ManifestError, StorageError
from musev.registry import get_profile


def test_no_changes_is_the_profile_itself() -> None:
    assert load_settings("musev").profile == get_profile("musev")


def test_set_replaces_settings_and_nothing_else() -> None:
    profile = load_settings("mini", ["sampling.num_steps=20", "negative_prompt=a=b, c"]).profile
    assert (profile.sampling.num_steps, profile.negative_prompt) == (20, "a=b, c")
    assert profile.sampling.windows == get_profile("mini").sampling.windows


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("window", "overlap"), [(3, 1), (40, 20)])
def test_settings_that_only_fit_together_fit_in_any_order(
    order: int, window: int, overlap: int
) -> None:
    changes = [f"sampling.windows.num_frames={window}", f"sampling.windows.overlap={overlap}"]
    windows = load_settings("mini", changes[::order]).profile.sampling.windows
    assert (windows.num_frames, windows.overlap) == (window, overlap)


@pytest.mark.parametrize(
    ("profile", "changes", "expected"),
    [
        ("mini", ["weights.bundle=/b"], ("/b", None, None, None)),
        ("mini", ["weights.t2i=/t", "weights.motion=/m"], (None, None, "/t", "/m")),
        ("musev", ["weights.random_seed=5"], (None, 5, None, None)),
        ("musev", ["weights.t2i=/t"], (None, None, "/t", "checkpoints/motion/musev_referencenet")),
        ("mini", ["weights.random_seed=none", "weights.bundle=/b"], ("/b", None, None, None)),
    ],
)
def test_naming_one_source_of_weights_drops_the_others(profile, changes, expected) -> None:
    weights = load_settings(profile, changes).profile.weights
    assert (weights.bundle, weights.random_seed, weights.t2i, weights.motion) == expected


def test_a_source_of_weights_takes_the_published_parts_with_it() -> None:
    weights = load_settings("musev", ["weights.random_seed=5"]).profile.weights
    assert (weights.vae, weights.referencenet, weights.image_encoder) == (None, None, None)
    weights = load_settings("musev", ["weights.random_seed=5", "weights.vae=/v"]).profile.weights
    assert weights.vae == "/v"
    weights = load_settings("musev", ["weights.t2i=/t"]).profile.weights
    assert weights.vae == get_profile("musev").weights.vae


@pytest.mark.parametrize(
    ("profile", "changes", "phrase"),
    [
        ("minii", [], "Did you mean 'mini'"),
        ("mini", ["sampling.num_steps"], "KEY=VALUE"),
        ("mini", ["=3"], "KEY=VALUE"),
        ("mini", ["sampling.steps=3"], "no setting 'steps'"),
        ("mini", ["sampling.num_steps=many"], "must be int"),
        ("mini", ["sampling.windows.overlap=12"], "overlap"),
        ("mini", ["weights.random_seed=x"], "must be int"),
        ("mini", ["weights.bundle=/b", "weights.random_seed=1"], "exactly one"),
        ("mini", ["weights.t2i=/t"], "both"),
        ("mini", ["name=x"], "--profile"),
    ],
)
def test_wrong_settings_are_named(profile: str, changes: list[str], phrase: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(profile, changes)
    assert phrase in str(caught.value)


def test_other_profiles_get_the_same_changes() -> None:
    settings = load_settings("musev", ["weights.bundle=/b", "sampling.num_steps=4"])
    other = settings.find_profile("upstream")
    assert other.weights == settings.profile.weights
    assert (other.name, other.sampling.num_steps) == ("upstream", 4)
    assert other.sampling.windows.layout == "upstream"
    assert settings.find_profile("musev") is settings.profile


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("no"), USAGE),
        (ManifestError("no"), USAGE),
        (StorageError("no"), TROUBLE),
    ],
)
def test_expected_errors_become_a_status(error: Exception, status: int, capsys) -> None:
    with pytest.raises(typer.Exit) as caught, errors_as_status():
        raise error
    assert caught.value.exit_code == status
    assert "no" in capsys.readouterr().err


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(KeyError), errors_as_status():
        raise KeyError("bug")


@pytest.mark.parametrize("change", ["a", "", "=1", " =1"])
def test_a_change_without_key_or_value_is_refused_with_the_jobs_own_example(change: str) -> None:
    assert split_change(" a = 1=2", "fps=4") == ("a", " 1=2")
    with pytest.raises(ConfigError, match=r"KEY=VALUE.*fps=4"):
        split_change(change, "fps=4")


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_is_the_commands_own(status: int) -> None:
    app = typer.Typer()

    @app.command()
    def run() -> None:
        raise typer.Exit(status)

    assert run_app(app, [], prog_name="x") == status
    assert run_app(app, ["--colour"], prog_name="x") == 2
