"""What an adaptation is judged by: held-out records, a text of the kind that the base knows, and answers to prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.adaptation.encoding import EncodedRecord
from puna.adaptation.rows import collate
from puna.evaluation.perplexity import evaluate_text
from puna.generation.decode import generate
from puna.generation.sampling import Sampler, SamplingSettings
from puna.jobs.adapt_data import PackedData
from puna.jobs.held_out import judge
from puna.jobs.load import LoadedModel
from puna.text.corpus import read_documents
from puna.training.events import HeldOut

__all__ = ["ANSWER_TOKENS", "AnsweredPrompt", "Judge"]

ANSWER_TOKENS = 64
_OLD_CHARACTERS = 200_000  # of the old kind of text are judged by


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredPrompt:
    """The prompt of a held-out record, and what the model answered before and after it was adapted."""

    place: str
    prompt: str
    before: str
    after: str


class Judge:
    """Nats on the held-out records, and on a text of the kind that the base knows; answers to held-out prompts."""

    def __init__(
        self, loaded: LoadedModel, packed: PackedData, micro_batch: int, old: Path | None, *, answers: bool
    ) -> None:
        """Args: old: a text of the kind that the base knows, if there is any. answers: whether prompts are answered."""
        self._loaded, self._prompts = loaded, packed.prompts if answers else []
        self._batches = {
            name: [collate(rows[start : start + micro_batch]) for start in range(0, len(rows), micro_batch)]
            for name, rows in packed.held_out.items()
        }
        texts = [] if old is None else [document.text for document in read_documents([old]).documents]
        self._texts, room = [], _OLD_CHARACTERS
        for text in texts:
            self._texts.append(text[:room])
            room -= len(text)
            if room <= 0:
                break

    def held_out(self) -> HeldOut:
        """Per learned token of the held-out records, of all and of each file's."""
        return judge(self._loaded.llama, self._batches)

    def new(self) -> float:
        """Per learned token of all held-out records."""
        return self.held_out().nats

    def old(self) -> float | None:
        """Per token of the old kind of text, of its first 200,000 characters; None where none was named."""
        if not self._texts:
            return None
        return evaluate_text(self._loaded.llama, self._loaded.tokenizer, *self._texts).nats_per_token

    def answers(self) -> list[str]:
        """To each prompt the likeliest tokens, at most 64."""
        llama, tokenizer = self._loaded.llama, self._loaded.tokenizer
        greedy = Sampler(SamplingSettings(temperature=0.0))
        prompts = [record.ids[: record.prompt_tokens].tolist() for record in self._prompts]
        return [generate(llama, tokenizer, ids, greedy, max_new_tokens=ANSWER_TOKENS).text for ids in prompts]

    def compare(self, before: Sequence[str]) -> list[AnsweredPrompt]:
        """Answer again. Args: before: what `answers` gave before adaptation."""
        return [
            AnsweredPrompt(place=record.place, prompt=self._prompt(record), before=first, after=second)
            for record, first, second in zip(self._prompts, before, self.answers(), strict=True)
        ]

    def everything(self) -> tuple[float, float | None]:
        """New and old."""
        return self.new(), self.old()

    def _prompt(self, record: EncodedRecord) -> str:
        """Its text without BOS."""
        tokenizer, ids = self._loaded.tokenizer, record.ids[: record.prompt_tokens].tolist()
        return tokenizer.decode(ids[1:] if ids[0] == tokenizer.bos_id else ids)
