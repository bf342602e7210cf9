"""Which fast paths give a language model's own numbers: tried on a few tokens when it is loaded.

Updates read hidden states and apply the head themselves, share the beginnings of rows, and sampling keeps key/value
caches. Architectures differ in what of this is right: some scale their logits after the head, some have states that
cannot be put together row by row, some read padding. So every path is compared with a plain forward pass of every row
alone, and one that does not give its numbers is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from collm.errors import ConfigurationError
from collm.inference import transformers_engine as stock
from collm.inference.forward import StockReader
from collm.inference.generation import Sampling, generate
from collm.inference.prefill import Memory
from collm.inference.transformers_engine import Batching
from collm.kernels import shared_prefix as prefixes
from collm.models.architectures import decoder_of
from collm.models.forward import last_hidden_states, logits_of, without_cache

_LENGTHS = (4, 7, 7)  # of the rows that are tried; the last two are equal
_SPREAD = 3.0  # standard deviation of the logits that are compared: differences are seen in any model
_LENIENT = 20  # times the tolerance, where a model that does worse is refused instead of read in another way
_MARK = 20.0  # standard deviation of logits that stand in for the head's, beyond what caps leave as it is


@dataclass(frozen=True)
class Support:
    """What may be done with a language model.

    Args:
        plain_head: Its logits are what the head makes of the last hidden states, unscaled.
        shared_prefixes: What rows share may be computed once in updates.
        cached_decoding: The decode loop of this project gives its numbers, with key/value states kept between turns.
        batching: How `generate` of transformers gives its numbers.
    """

    plain_head: bool = True
    shared_prefixes: bool = True
    cached_decoding: bool = True
    batching: Batching = Batching()

    def slower(self, engine: str, embedded: bool) -> str | None:
        """What a run with this engine cannot do in the fastest way, in words; None if there is nothing.

        Args:
            engine: What samples.
            embedded: Whether nothing faster was wanted, or the embedded decoder reads the model.
        """
        how = []
        if not embedded:
            how.append(f"sampled by {'`generate`' if engine == 'transformers' else 'the forward pass'} of transformers")
        if engine == "transformers" and not self.batching.padding:
            how.append("prompts of one length at a time")
        if engine == "transformers" and not self.batching.use_cache:
            how.append("without a cache")
        if not self.shared_prefixes:
            how.append("updates read what rows share once for each")
        return ", ".join(how) or None


_tried: dict[tuple, Support] = {}


def support_of(lm: PreTrainedModel, path: str) -> Support:
    """What may be done with `lm`, which is put into evaluation mode.

    Raises:
        ConfigurationError: Nothing gives the numbers of a plain forward pass.
    """
    if lm.device.type == "meta" or decoder_of(lm) is not None:
        return Support()
    key = (lm.config.to_json_string(), lm.dtype)
    if key not in _tried:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _tried[key] = _Trial(lm.eval(), path).run()
    return _tried[key]


class _Trial:
    def __init__(self, lm: PreTrainedModel, path: str):
        self.lm = lm
        self.path = path
        self.source = torch.Generator().manual_seed(0)
        size = lm.config.get_text_config().vocab_size
        lengths = _LENGTHS[:-1]
        rows = [torch.randint(size, (length,), generator=self.source).tolist() for length in lengths]
        rows[1][:2] = rows[0][:2]  # a shared prefix
        self.rows = [*rows, rows[-1]]
        self.tolerance = 1e-4 if torch.finfo(lm.dtype).bits >= 32 else 0.2

    def run(self) -> Support:
        self._check_rows()
        plain_head = self._plain_head()
        if not plain_head and not self._scaled_head():
            raise self._refusal("the log-probabilities of its tokens cannot be computed from its last hidden states")
        with self._spread(plain_head):
            score = (lambda states: self.lm.get_output_embeddings()(states)) if plain_head else self._own_logits
            return Support(
                plain_head,
                self._works(self._prefixes),
                self._works(lambda: self._decodes(score)),
                self._batching(score),
            )

    def _refusal(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path!r} is a {self.lm.config.model_type!r} model ({type(self.lm).__name__}), which cannot be "
            f"trained here: {reason}; choose another model."
        )

    @staticmethod
    def _works(path: Callable[[], bool]) -> bool:
        """Whether a path gives the right numbers; one that a model has no interface for raises all kinds of errors."""
        try:
            return path()
        except Exception:
            return False

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows padded on the right, [R, L]."""
        width = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.lm.device)

    def _check_rows(self) -> None:
        """Refuse models whose states depend on what comes behind or on other rows."""
        if not isinstance(self.lm.get_output_embeddings(), nn.Module):
            raise self._refusal("it has no head that predicts tokens")
        try:
            alone = [last_hidden_states(self.lm, self._ids([row]))[0] for row in self.rows]
            together = last_hidden_states(self.lm, self._ids(self.rows))
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
            raise self._refusal(f"a plain forward pass raises {type(error).__name__}: {error}") from error
        error = max(self._error(states[: len(own)], own) for states, own in zip(together, alone, strict=True))
        if not error <= _LENIENT * self.tolerance:
            raise self._refusal("what it makes of a token depends on tokens behind it or on other sequences")
        self.alone = alone

    @staticmethod
    def _error(found: Tensor, expected: Tensor) -> float:
        """The largest difference, in standard deviations of what is expected."""
        return float((found.float() - expected.float()).abs().max() / expected.float().std().clamp(min=1e-6))

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        return self._error(found, expected) <= self.tolerance

    @contextmanager
    def _marked(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Put large random numbers in place of what the head makes of the first row; yields them and what it reads."""
        head = self.lm.get_output_embeddings()
        shape = (len(self.rows[0]), head.weight.shape[0])
        marks = (_MARK * torch.randn(shape, generator=self.source)).to(self.lm.device, self.lm.dtype)
        read: list[Tensor] = []
        hook = head.register_forward_hook(lambda module, args, out: read.append(args[0]) or marks.view_as(out))
        try:
            yield marks, read
        finally:
            hook.remove()

    def _plain_head(self) -> bool:
        """Whether the head reads the last hidden states, and logits are what it writes."""
        with self._marked() as (marks, read):
            logits = self._logits()
        read_states = len(read) == 1 and self._close(read[0].view_as(self.alone[0]), self.alone[0])
        return read_states and logits.shape == marks.shape and bool((logits == marks).all())

    def _scaled_head(self) -> bool:
        """Whether the model's own code makes the same logits of last hidden states that are given to it."""

        def same() -> bool:
            with self._marked() as (_, read):
                own = self._logits()
                found = logits_of(self.lm, self.alone[0])
            return len(read) == 2 and self._close(read[1], read[0]) and bool((own == found).all())

        return self._works(same)

    def _logits(self) -> Tensor:
        """Logits of the first row, [L, V]."""
        return self.lm(input_ids=self._ids(self.rows[:1]), **without_cache(self.lm)).logits[0]

    def _own_logits(self, states: Tensor) -> Tensor:
        return logits_of(self.lm, states)

    @contextmanager
    def _spread(self, plain_head: bool) -> Iterator[None]:
        """Scale what the head writes so that logits differ as much in every model, also in untrained ones."""
        head = self.lm.get_output_embeddings()
        gain = _SPREAD / head(self.alone[0]).float().std().clamp(min=1e-6)
        hook = head.register_forward_hook(lambda module, args, out: out * gain.to(out.dtype))
        try:
            yield
        finally:
            hook.remove()

    def _prefixes(self) -> bool:
        """Whether states that go on from those of a shared prefix are those of whole rows.

        The first segments differ in length, so that some rows go on behind padding.
        """
        segment, ends = prefixes.Segment, [len(row) for row in self.rows]
        levels = [
            [segment([0, 1], 0, 2), segment([2], 0, ends[2] - 1)],
            [segment([0], 2, ends[0]), segment([1], 2, ends[1]), segment([2], ends[2] - 1, ends[2], parent=1)],
        ]
        ids = self._ids(self.rows)
        found = prefixes.by_level(self.lm, levels, ids, torch.ones_like(ids, dtype=torch.bool))
        return all(self._close(found[row, : len(own)], own) for row, own in enumerate(self.alone))

    def _decodes(self, score: Callable[[Tensor], Tensor]) -> bool:
        """Whether the decode loop of this project samples from the model, in a second turn too."""
        reader, memory, rows = StockReader(self, [None]), Memory(), self.rows
        ends: list[int] = []
        for _ in range(2):
            drawn = generate(reader, rows, self._greedy(3), ends, self._chance(), memory)
            if not self._right(rows, drawn, score):
                return False
            ends = [drawn[0][0][0]]  # rows end at different times
            rows = [[*row, *tokens, row[0]] for row, (tokens, _) in zip(rows, drawn, strict=True)]
        return True

    def _batching(self, score: Callable[[Tensor], Tensor]) -> Batching:
        """How `generate` of transformers samples from the model."""
        for batching in (Batching(), Batching(padding=False), Batching(padding=False, use_cache=False)):

            def samples(batching: Batching = batching) -> bool:
                drawn = stock.generate(self.lm, self.rows, self._greedy(3), [], self._chance(), batching)
                return self._right(self.rows, drawn, score, 1 if batching.use_cache else _LENIENT)

            if self._works(samples):
                return batching
        raise self._refusal("`generate` of transformers samples other tokens than a plain forward pass predicts")

    def _right(
        self,
        prompts: Sequence[Sequence[int]],
        drawn: Sequence[tuple[list[int], list[float]]],
        score: Callable[[Tensor], Tensor],
        leniency: float = 1,
    ) -> bool:
        """Whether sampled tokens have the log-probabilities of a plain forward pass."""
        for prompt, (tokens, log_probs) in zip(prompts, drawn, strict=True):
            states = last_hidden_states(self.lm, self._ids([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
            expected = score(states).float().log_softmax(-1)
            expected = expected.gather(-1, torch.tensor(tokens, device=states.device)[:, None]).squeeze(-1)
            if (torch.tensor(log_probs) - expected.cpu()).abs().max() > leniency * self.tolerance * _SPREAD:
                return False
        return True

    @staticmethod
    def _greedy(size: int) -> Sampling:
        return Sampling(size, greedy=True)

    def _chance(self) -> torch.Generator:
        return torch.Generator(self.lm.device).manual_seed(0)
