"""Settings: every YAML in the repository loads, and every mistake is named with its place."""

from pathlib import Path

import pytest
import yaml

from assistant.adapter_kinds import KINDS
from assistant.config import Config, dump_config, load_config, parse_config
from assistant.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_yaml_loads(path: Path) -> None:
    assert load_config(path)


def test_tiny_is_the_default() -> None:
    assert load_config(Path(__file__).parents[1] / "configs" / "tiny.yaml") == Config()


def test_the_bundled_settings_load() -> None:
    """They name the weights of the losses alone, as run directories of the first version do."""
    config = load_config(Path(__file__).parents[1] / "assistant" / "weights" / "config.yaml")
    assert (config.loss.itm.weight, config.loss.itc.weight) == (1.0, 0.0)


def test_dump_reads_back() -> None:
    config = load_config(None, ["adapter.r_max=8", "hnf.patch_sizes=[8, 16]", "decoder.base=/models/llama"])
    assert parse_config(yaml.safe_load(dump_config(config)), origin="dump") == config


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("adapter.r_maxx=3", "unknown_key", "Did you mean 'r_max'?"),
        ("adapter.r_min=20", "bad_value", "adapter: r_min 20 is below 1 or larger than r_max 16. Correct them."),
        ("adapter.r_min=few", "bad_value", "adapter.r_min"),
        ("adapter.kind=lora", "bad_value", "none of dyqlora_fa, dya_mope, none"),
        ("adapter.rank_update=first", "bad_value", "adapter.rank_update: Input should be 'prefix' or 'last'"),
        ("adapter=3", "bad_value", "adapter"),
        ("training.steps=many", "bad_value", "training.steps"),
        ("training.steps=0", "bad_value", "greater than 0"),
        ("training.aux_dropout=1.5", "bad_value", "less than or equal to 1"),
        ("hnf.patch_sizes=[16, 33]", "bad_value", "not a multiple of the patch size 33"),
        ("hnf.patch_sizes=[32, 16]", "bad_value", "must grow"),
        ("hnf.dynamics=euclidean", "bad_value", "'fields' or 'ode_rnn'"),
        ("hnf.edge_weights=cosine", "bad_value", "no setting any more, it is always 'binary'"),
        ("adapter.rslora=true", "bad_value", "no setting any more, it is always False"),
        ("loss.itm.negatives=easy", "bad_value", "loss.itm.negatives"),
        ("loss.itc=-1", "bad_value", "loss.itc.weight"),
        ("loss.itm.wait=1", "unknown_key", "Did you mean 'weight'?"),
        ("decoder.cross_attention_dim=100", "bad_value", "multiple of cross_attention_heads"),
        ("init=null", "bad_value", "decoder.base must name"),
        ("steps", "bad_override", "section.key=value"),
        ("seed.a=1", "unknown_key", "seed"),
        ("vit.dim=[", "bad_override", "not YAML"),
    ],
)
def test_mistakes_are_named(override: str, code: str, words: str) -> None:
    if override == "seed.a=1":
        code, words = "bad_value", "seed"
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert caught.value.code == code
    assert words in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_serves_every_kind_it_is_switched_to(kind: str) -> None:
    """What another kind alone knows is left aside; it is no unknown key."""
    path = Path(__file__).parents[1] / "configs" / "moe-llama2-7b.yaml"
    config = load_config(path, [f"adapter.kind={kind}"])
    assert type(config.adapter) is KINDS[kind]
    assert parse_config(yaml.safe_load(dump_config(config)), origin="dump") == config


def test_an_option_out_of_range_is_named_for_the_kind_that_has_it() -> None:
    with pytest.raises(ConfigError, match=r"adapter: top_k 9 is outside 1..4 experts"):
        load_config(None, ["adapter.kind=dya_mope", "adapter.top_k=9"])
    with pytest.raises(ConfigError, match=r"adapter.z_loss: .*greater than or equal to 0"):
        load_config(None, ["adapter.kind=dya_mope", "adapter.z_loss=-1"])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not_found"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "torn.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="bad_yaml"):
        load_config(tmp_path / "binary.yaml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3  # type: ignore[misc]
