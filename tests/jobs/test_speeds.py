from puna.jobs.load import load
from puna.jobs.speeds import measure_speeds


def test_every_model_has_its_speeds_whatever_the_length_of_the_prompt(world) -> None:
    model = load(world.run).llama
    for tokens in (3, 10 * model.config.max_seq_len):
        speeds = measure_speeds([model, model], [1] * tokens)
        assert len(speeds) == 2
        assert all(min(each.decode_tokens_per_second, each.prefill_tokens_per_second) > 0 for each in speeds)
